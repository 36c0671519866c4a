"""The authors' own script of set generation, run from a checkout of their repository and timed from outside.

The script is loaded and its ``main`` called as its command line would; the progress bar that it loops over is
replaced by a clock. Its logging service, which it imports but does not use here, is an empty module meanwhile.
"""

import importlib.util
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import clock
import torch

SET_SIZE = {"small": 20, "medium": 60, "large": 80}


def load_official(folder: str) -> Any:
    """The module ``set/gflownet.py`` of a checkout, not run."""
    spec = importlib.util.spec_from_file_location("official_sets_script", Path(folder) / "set" / "gflownet.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder} has no set/gflownet.py")
    module = importlib.util.module_from_spec(spec)
    empty = {"wandb": ModuleType("wandb"), "tqdm": ModuleType("tqdm")}
    vars(empty["tqdm"])["tqdm"] = iter
    before = {name: sys.modules.get(name) for name in empty}
    sys.modules.update(empty)
    try:
        spec.loader.exec_module(module)
    finally:
        for name, held in before.items():
            del sys.modules[name]
            if held is not None:
                sys.modules[name] = held
    return module


def arguments_of(module: Any, size: str, steps: int, seed: int, batch: int = 16) -> Any:
    """What its command line gives for forward-looking detailed balance; it runs one step more than it is told."""
    words = ["--device", "cpu", "--method", "db_gfn", "--fl", "1", "--size", size, "--seed", str(seed)]
    words += ["--mbsize", str(batch), "--bufsize", str(batch), "--n_train_steps", str(steps - 1)]
    return module.parser.parse_args(words)


def main() -> None:
    parser = clock.arguments()
    parser.add_argument("--official", required=True, metavar="DIR", help="a checkout of the authors' repository")
    parser.add_argument("--size", choices=tuple(SET_SIZE), default="small")
    options = parser.parse_args()
    torch.set_num_threads(1)
    module = load_official(options.official)

    def timed(steps: Any, **_: Any) -> Iterator[int]:
        watch = clock.Clock(options.steps)
        for i in steps:
            if i == options.warmup:
                watch.start()
            yield i
        watch.stop(mean_length=float(SET_SIZE[options.size]), versions={"torch": version("torch")})

    module.tqdm = timed
    steps = options.warmup + options.steps
    module.main(arguments_of(module, options.size, steps, options.seed, options.batch))


if __name__ == "__main__":
    main()
