"""flow-tsgen on RDB7: learning curves and ablations on the split by reactant, a budget of time for each arm.

    python benchmarks/flowmatch/rdb7.py --table rdb7_r_ts_p.npz --minutes 120 --arms midpoint
    python benchmarks/flowmatch/rdb7.py --table rdb7_r_ts_p.npz --minutes 20            # all arms, the ablation

Training goes in slices, each a ``headwater train`` or ``resume``; stopped at any point, the same command goes on.
After each slice the curve is drawn anew: ``benchmarks/results/flow-tsgen-rdb7.json`` and
``docs/figures/flow-tsgen-rdb7.svg``. ``--minutes`` counts the seconds of the training loop, whatever the machine.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import headwater
import numpy as np
import torch
from headwater import seeding
from headwater.run import Run
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
    "noise, published (not centred)": {**NOISE, "centred": False},
}
"""What each arm changes; the first is the default."""


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def train_slice(path: Path, overrides: dict[str, Any], steps: int) -> Run:
    """The first ``steps`` of a run, or so many more."""
    if (path / "manifest.json").exists() and Run(path).latest() is not None:
        run = Run(path)
        return headwater.resume(path, max_steps=(run.latest() or 0) + steps)
    tables = {**overrides, "fit": {**overrides["fit"], "max_steps": steps}}
    return headwater.train("flow-tsgen", path, task="reactions", overrides=tables, force=True)


def seconds_of(path: Path) -> float:
    lines = Run(path).metrics() if (path / "metrics.jsonl").exists() else []
    return float(lines[-1]["seconds"]) if lines else 0.0


def evaluate(path: Path, most: int, arm: dict[str, Any]) -> dict[str, Any]:
    """One guess for each test reaction, by different numbers of network calls; the midpoint on the same ones."""
    model = headwater.load(path, device="cpu")
    test = [r for r in model.task.parts()["test"] if r.ts is not None][:most]
    refs = [np.asarray(r.ts) for r in test]
    found: dict[str, Any] = {"reactions": len(test)}

    def measured(structures: list[np.ndarray]) -> dict[str, float]:
        pairs = list(zip(structures, refs, strict=True))
        plain, mirrored = rmsds(pairs), rmsds(pairs, reflect=True)
        distances = [float(distance_mae(*map(torch.tensor, (a, b)))) for a, b in pairs]
        return {
            "rmsd_mirror": float(mirrored.mean()), "rmsd_mirror_median": float(np.median(mirrored)),
            "rmsd": float(plain.mean()), "rmsd_median": float(np.median(plain)), "d_mae": float(np.mean(distances)),
        }  # fmt: skip

    found["baseline"] = measured([middle(r) for r in test])
    solvers = [("euler", 1), ("euler", 4), ("midpoint", 5)] if arm.get("times") != "start" else [("euler", 1)]
    for solver, steps in solvers:
        settings = {"sampler": {"solver": solver, "steps": steps, "trials": 1, "block_size": 64}}
        sampler = model.sampler(None, settings)
        guesses = []
        for k in range(0, len(test), 64):
            with torch.no_grad():
                guesses += sampler.guesses(test[k : k + 64], seeding.generator(0, k))
        found[f"{solver}-{steps}"] = measured([guess.ts for guess in guesses])
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    """Learning curves of all arms, over seconds and over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for name, arm in results["arms"].items():
        for axis, x in zip(axes, ("seconds", "step"), strict=True):
            axis.plot([p[x] for p in arm["curve"]], [p["rmsd_mirror"] for p in arm["curve"]], label=name, marker=".")
    base = next(iter(results["arms"].values()))["curve"]
    if base:
        for axis in axes:
            axis.axhline(base[-1]["midpoint_rmsd_mirror"], color="grey", linestyle="--", label="midpoint of R and P")
    axes[0].set(xlabel="seconds of training", ylabel="mean RMSD to the TS / Angstrom")
    axes[1].set(xlabel="steps")
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="RDB7 as NPZ with the column split_grouped")
    parser.add_argument("--minutes", type=float, default=20.0, help="training time of each arm")
    parser.add_argument("--arms", default="all", help=f"'all', or names joined by '+': {'; '.join(ARMS)}")
    parser.add_argument("--max-atoms", type=int, default=None, help="leave larger reactions out, of test too")
    parser.add_argument("--test", type=int, default=10_000, help="how many test reactions")
    parser.add_argument("--slice", type=int, default=500, help="steps between two evaluations on the validation part")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks" / "rdb7", help="where the runs lie")
    parser.add_argument("--name", default="flow-tsgen-rdb7", help="name of the result and the figure")
    arguments = parser.parse_args()
    chosen = list(ARMS) if arguments.arms == "all" else [name.strip() for name in arguments.arms.split("+")]
    unknown = [name for name in chosen if name not in ARMS]
    if unknown:
        parser.error(f"no arm {unknown[0]!r}; there are: {'; '.join(ARMS)}")
    out = ROOT / "benchmarks" / "results" / f"{arguments.name}.json"
    results: dict[str, Any] = {"arms": {}}
    if out.exists():
        results = json.loads(out.read_text(encoding="utf-8"))
    keep = ("minutes", "max_atoms", "width", "layers", "batch", "threads")
    results["settings"] = {name: getattr(arguments, name) for name in keep}
    for name in chosen:
        path = arguments.work / f"{arguments.name}-{slug(name)}"
        task = {"path": str(arguments.table), "idpp": False, "energies": False}
        task |= {} if arguments.max_atoms is None else {"max_atoms": arguments.max_atoms}
        overrides = {
            "task": task,
            "trainer": {
                "width": arguments.width, "layers": arguments.layers, "batch_size": arguments.batch, **ARMS[name],
            },
            "fit": {
                "threads": arguments.threads, "ema": 0.99, "log_every": 50, "accelerator": "cpu",
                "validate_every": 0, "checkpoint_every": arguments.slice,
            },
        }  # fmt: skip
        while seconds_of(path) < 60 * arguments.minutes:
            run = train_slice(path, overrides, arguments.slice)
            if run.reason == "interrupted":
                raise SystemExit(f"stopped; the same command goes on from step {run.latest()}")
            curve = [
                {"step": line["step"], "seconds": line["seconds"]}
                | {k.removeprefix("valid/"): v for k, v in line.items() if k.startswith("valid/")}
                for line in run.metrics()
                if "valid/rmsd" in line
            ]
            results["arms"][name] = {**results["arms"].get(name, {}), "curve": curve}
            _write(out, results)
            draw(results, ROOT / "docs" / "figures" / f"{arguments.name}.svg")
            print(f"{name}: step {run.latest()}, {curve[-1]}", flush=True)
        results["arms"][name]["test"] = evaluate(path, arguments.test, ARMS[name])
        _write(out, results)
        print(name, json.dumps(results["arms"][name]["test"], indent=1), flush=True)
    draw(results, ROOT / "docs" / "figures" / f"{arguments.name}.svg")


def _write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
