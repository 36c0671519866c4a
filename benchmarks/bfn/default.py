"""What `headwater train bfn-crys` gives with no further argument: samples beside the training set. See ../README.md.

For each seed the default run, 256 samples of it, the task's metrics, and quantiles of volume per atom and of density.
Seeds that are finished are not run again, and a run that was stopped goes on where it was.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import headwater
import numpy as np
from harness import write_results
from headwater.run import Run
from headwater_bfn_crys.crystals import Crystals
from headwater_bfn_crys.tasks.scoring import densities, score

HERE = Path(__file__).resolve().parent
QUANTILES = (0.1, 0.5, 0.9)


def spread(crystals: Crystals) -> dict[str, list[float]]:
    """Quantiles of volume per atom (cubic angstrom) and of density (g/cm3)."""
    values = {"volume per atom": crystals.volumes / crystals.num_atoms, "density": densities(crystals)}
    return {name: np.quantile(some, QUANTILES).tolist() for name, some in values.items()}


def trained(path: Path, seed: int, steps: int | None) -> Run:
    """The finished default run of a seed."""
    if path.exists() and Run(path).checkpoints():
        run = Run(path)
        last = run.config()["fit"]["max_steps"]
        return run if run.checkpoints()[-1] >= last else headwater.resume(path)
    fit = {"seed": seed, "threads": 1, **({} if steps is None else {"max_steps": steps})}
    return headwater.train("bfn-crys", path, overrides={"fit": fit}, force=True)


def measured(run: Run, seed: int, samples: int) -> dict[str, Any]:
    """Samples of a run, scored; and how long it trained."""
    model = headwater.load(run)
    made = Crystals.concatenate(list(model.sample(samples, seed=0)))
    scores = score(made, model.task, ["validity", "unique", "novel"])
    return {"seed": seed, "samples": len(made), "training seconds": run.metrics()[-1]["seconds"],
            **spread(made), **scores, "training set": spread(model.task.train())}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=HERE.parents[1] / "build" / "default", help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="a few steps of one seed: does everything run?")
    options = parser.parse_args()
    rows = []
    for seed in range(1 if options.quick else options.seeds):
        path = options.runs / (f"quick-{seed}" if options.quick else f"seed{seed}")
        run = trained(path, seed, 3 if options.quick else None)
        rows.append(measured(run, seed, 16 if options.quick else options.samples))
        print(json.dumps(rows[-1]), flush=True)
    for name, value in rows[0].items():
        if isinstance(value, float) and len(rows) > 1:
            values = [row[name] for row in rows]
            print(f"{name:20} {mean(values):.3f} +- {stdev(values) / len(values) ** 0.5:.3f}")
    if not options.quick:
        print(f"written to {write_results('bfn-default', rows)}")


if __name__ == "__main__":
    main()
