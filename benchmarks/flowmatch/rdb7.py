"""flow-tsgen on RDB7: learning curves and ablations on the split by reactant.

    python benchmarks/flowmatch/rdb7.py --table rdb7_r_ts_p.npz --minutes 120 --arms midpoint
    python benchmarks/flowmatch/rdb7.py --table rdb7_r_ts_p.npz --minutes 12            # the other arms too

``--minutes`` is processor time of each arm's training, reading and placing the data included; ``--until HH:MM`` ends
it earlier. Stopped at any point, the same command goes on, and an arm that has had its minutes is only evaluated: on
all test reactions, one guess each, at every kept checkpoint by one network call, at the last also by more, beside the
midpoint. Arms are compared at equal steps. Writes ``benchmarks/results/flow-tsgen-rdb7.json`` and
``docs/figures/flow-tsgen-rdb7.svg``.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import headwater
import numpy as np
import torch
from budget import Budget, deadline
from headwater import registry, seeding
from headwater.run import Run
from headwater.state import load_state
from headwater.training import model_state
from headwater_flow_tsgen.evaluation import middle, rmsds
from headwater_flow_tsgen.geometry import distance_mae

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

NOISE = {"prior": "noise", "prior_scale": 1.0}
ARMS: dict[str, dict[str, Any]] = {
    "midpoint": {},
    "midpoint, no condition": {"conditioned": False},
    "midpoint, regression": {"times": "start", "prior_scale": 0.0},
    "noise, rotation OT": {**NOISE, "ot": "rotation"},
    "noise, no OT": dict(NOISE),
    "noise, no condition": {**NOISE, "ot": "rotation", "conditioned": False},
}
"""What each arm changes; the first is the default."""

BLOCK = 64


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def spent(path: Path) -> Mapping[str, Any]:
    """The budget's notes of a run at its latest checkpoint."""
    step = Run(path).latest() if (path / "manifest.json").exists() else None
    if step is None:
        return {"seconds": 0.0, "at": {}}
    notes: Mapping[str, Any] = load_state(Run(path).checkpoint_path(step), "training")["hooks"]["benchmark-budget"]
    return notes


def train(path: Path, overrides: dict[str, Any], budget: Budget) -> Run:
    """Train within the budget, or go on with what a run has left of it."""
    registry.register(budget, "benchmark-budget")
    try:
        if (path / "manifest.json").exists() and Run(path).latest() is not None:
            return headwater.resume(path)
        return headwater.train("flow-tsgen", path, task="reactions", overrides=overrides, force=True)
    finally:
        registry.unregister("benchmark-budget")


def measured(structures: list[np.ndarray], refs: list[np.ndarray]) -> dict[str, float]:
    """RMSD with and without mirror images, and the error of distances."""
    pairs = list(zip(structures, refs, strict=True))
    plain, mirrored = rmsds(pairs), rmsds(pairs, reflect=True)
    distances = [float(distance_mae(*map(torch.tensor, (a, b)))) for a, b in pairs]
    return {
        "rmsd_mirror": float(mirrored.mean()), "rmsd_mirror_median": float(np.median(mirrored)),
        "rmsd": float(plain.mean()), "rmsd_median": float(np.median(plain)), "d_mae": float(np.mean(distances)),
    }  # fmt: skip


def evaluate(path: Path, most: int, arm: dict[str, Any]) -> dict[str, Any]:
    """The midpoint, the curve over the kept checkpoints, and different numbers of network calls at the last."""
    model = headwater.load(path, device="cpu")
    test = [r for r in model.task.parts()["test"] if r.ts is not None][:most]
    refs = [np.asarray(r.ts) for r in test]
    at, seconds = dict(spent(path)["at"]), float(spent(path)["seconds"])

    def of(solver: str, steps: int) -> dict[str, float]:
        settings = {"sampler": {"solver": solver, "steps": steps, "trials": 1, "block_size": BLOCK}}
        sampler = model.sampler(None, settings)
        guesses = []
        for k in range(0, len(test), BLOCK):
            with torch.no_grad():
                guesses += sampler.guesses(test[k : k + BLOCK], seeding.generator(0, k))
        return measured([guess.ts for guess in guesses], refs)

    # From noise one call cannot do: its answer is the mean over all that may come.
    few = ("euler", 1) if "prior" not in arm else ("midpoint", 5)
    found: dict[str, Any] = {"reactions": len(test), "middle of R and P": measured([middle(r) for r in test], refs)}
    solvers = [("euler", 1), ("euler", 4), ("midpoint", 5)] if arm.get("times") != "start" else [("euler", 1)]
    found["last"] = {f"{solver}-{steps}": of(solver, steps) for solver, steps in solvers}
    curve = []
    for step in Run(path).checkpoints():
        if str(step) in at or step == model.step:
            model.modules["network"].load_state_dict(model_state(Run(path), step)["ema"]["network"])
            curve.append({"step": step, "cpu_seconds": at.get(str(step), seconds), **of(*few)})
    return {"steps": model.step, "cpu_seconds": seconds, "curve_by": "-".join(map(str, few)), "curve": curve, **found}


def draw(results: dict[str, Any], path: Path) -> None:
    """Learning curves of all arms, over processor time and over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for name, arm in results["arms"].items():
        for axis, x, scale in zip(axes, ("cpu_seconds", "step"), (60.0, 1.0), strict=True):
            points = [(p[x] / scale, p["rmsd_mirror"]) for p in arm["curve"]]
            axis.plot(*zip(*points, strict=True), label=name, marker=".")
    base = next(iter(results["arms"].values()))["middle of R and P"]["rmsd_mirror"]
    for axis in axes:
        axis.axhline(base, color="grey", linestyle="--", label="midpoint of R and P")
    axes[0].set(xlabel="training, minutes of one processor", ylabel="mean RMSD to the TS / Å", xscale="log")
    axes[1].set(xlabel="steps", xscale="log")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="RDB7 as NPZ with the column split_grouped")
    parser.add_argument("--minutes", type=float, default=12.0, help="processor time of each arm")
    parser.add_argument("--until", default=None, help="time of day, HH:MM, after which no arm trains")
    parser.add_argument("--arms", default="all", help=f"'all', or names joined by '+': {'; '.join(ARMS)}")
    parser.add_argument("--max-atoms", type=int, default=None, help="leave larger reactions out, of test too")
    parser.add_argument("--test", type=int, default=10_000, help="how many test reactions")
    parser.add_argument("--every", type=int, default=500, help="steps between two checkpoints of the curve")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights; less for few steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks" / "rdb7", help="where the runs lie")
    parser.add_argument("--name", default="flow-tsgen-rdb7", help="name of the result and the figure")
    arguments = parser.parse_args()
    chosen = list(ARMS) if arguments.arms == "all" else [name.strip() for name in arguments.arms.split("+")]
    unknown = [name for name in chosen if name not in ARMS]
    if unknown:
        parser.error(f"no arm {unknown[0]!r}; there are: {'; '.join(ARMS)}")
    until = deadline(arguments.until)
    out = ROOT / "benchmarks" / "results" / f"{arguments.name}.json"
    results: dict[str, Any] = {"arms": {}}
    if out.exists():
        results = json.loads(out.read_text(encoding="utf-8"))
    keep = ("max_atoms", "width", "layers", "batch", "ema", "threads")
    results["settings"] = {name: getattr(arguments, name) for name in keep}
    for name in chosen:
        path = arguments.work / slug(name)
        task = {"path": str(arguments.table), "idpp": False, "energies": False}
        task |= {} if arguments.max_atoms is None else {"max_atoms": arguments.max_atoms}
        overrides = {
            "task": task,
            "trainer": {
                "width": arguments.width, "layers": arguments.layers, "batch_size": arguments.batch, **ARMS[name],
            },
            "fit": {
                "threads": arguments.threads, "ema": arguments.ema, "log_every": 50, "accelerator": "cpu",
                "validate_every": arguments.every, "checkpoint_every": arguments.every, "keep": 1000,
                "max_steps": 1_000_000,
            },
        }  # fmt: skip
        budget = Budget(arguments.minutes, until, arguments.every)
        if float(spent(path)["seconds"]) < budget.seconds:
            run = train(path, overrides, budget)
            if run.reason == "interrupted":
                raise SystemExit(f"stopped; the same command goes on from step {run.latest()}")
        found = evaluate(path, arguments.test, ARMS[name])
        results["arms"][name] = found
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps({k: v for k, v in found.items() if k != "curve"}, indent=1), flush=True)
        draw(results, ROOT / "docs" / "figures" / f"{arguments.name}.svg")


if __name__ == "__main__":
    main()
