"""Speed of HyperGrid training and sampling: headwater beside torchgfn and gfnx. See ../README.md."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import HERE, ROOT, Contestant, add_arguments, interleave, make_environment, table, write_results

SCRIPTS = HERE / "gfn" / "contestants"
PEERS = {
    "torchgfn": ("torchgfn==2.4.1", "numpy<2"),
    "gfnx": ("gfnx==0.0.1", "jax==0.6.2", "jaxlib==0.6.2", "optax==0.2.8", "numpy==1.26.4"),
}
WORKLOADS = {(4, 8, 16): 400, (4, 8, 128): 100, (4, 20, 16): 200, (4, 20, 128): 50}
"""(D, H, B) and how many steps are timed: half a second to some seconds of the slowest contestant."""


def peers(options: argparse.Namespace) -> dict[str, str]:
    """The interpreters of the peers: given ones, or environments made for them."""
    found = {}
    for name, requirements in PEERS.items():
        given = getattr(options, name)
        if given == "none":
            continue
        constraints = ROOT / "constraints.txt" if name == "torchgfn" else None
        found[name] = given or make_environment(name, requirements, constraints)
    return found


def add_interpreters(parser: argparse.ArgumentParser) -> None:
    """The options that choose interpreters."""
    parser.add_argument("--headwater", default=sys.executable, help="interpreter that has headwater-gfn-fl")
    parser.add_argument("--torchgfn", metavar="PYTHON", help="interpreter that has torchgfn; 'none' leaves it out")
    parser.add_argument("--gfnx", metavar="PYTHON", help="interpreter that has gfnx; 'none' leaves it out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_interpreters(parser)
    add_arguments(parser, 5)
    parser.add_argument("--modes", nargs="+", choices=("train", "sample"), default=["train", "sample"])
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    interpreters = {"headwater": options.headwater, **peers(options)}
    grid = {name: Contestant(name, python, SCRIPTS / f"{name}_grid.py") for name, python in interpreters.items()}
    jobs = []
    for mode in options.modes:
        contestants = list(grid.values())
        if mode == "sample":
            own = ("--through", "sampler")
            contestants.append(Contestant("headwater-sampler", options.headwater, SCRIPTS / "headwater_grid.py", own))
        for (d, h, b), steps in WORKLOADS.items():
            steps = 3 if options.quick else steps * (2 if mode == "sample" else 1)
            arguments = ["--mode", mode, "--dimensions", d, "--side", h, "--batch", b, "--steps", steps]
            words = [str(a) for a in arguments]
            jobs += [(f"G({d},{h},{b}) {mode}", contestant, words) for contestant in contestants]
    measured = interleave(jobs, repeats, options.core)
    print(table(measured, "headwater"))
    if not options.quick:
        print(f"\nwritten to {write_results('gfn', measured, core=options.core)}")


if __name__ == "__main__":
    main()
