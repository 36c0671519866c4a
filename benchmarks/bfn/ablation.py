"""The paper's ablation: flow on the torus, told its entropy or the time alone, or a Gaussian flow on an interval.

Structure prediction (csp): one sample for each composition, scored by pymatgen's StructureMatcher (stol 0.5,
angle_tol 10, ltol 0.3) as the paper does. All arms share the network, the optimiser, the steps and the seeds; arms and
metric were fixed before the first run, and every run is reported.

- perovskites: learns from 800 generated perovskites, predicts 200 of other compositions.
- perov-5: learns from one CSV of Perov-5, predicts the first 1,000 crystals of another. `--perov-5 TRAIN.csv TEST.csv`
- prototypes: the embedded default. 288 prototypes are too few to predict unseen ones from, so what is scored is the
  structures of the training compositions: how well the flow remembers.

A run takes up where it was stopped, so the whole can be made in slices: `--minutes 30`, as often as needed. Finished
runs are not made again. The figure and the JSON hold all runs in the folder that are finished so far.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import headwater
import numpy as np
import torch
from headwater.run import Run

HERE = Path(__file__).resolve().parent
ARMS: dict[str, dict[str, Any]] = {
    "torus, entropy": {"coordinates": "torus", "conditioning": "entropy"},
    "torus, time only": {"coordinates": "torus", "conditioning": "time"},
    "Gaussian": {"coordinates": "interval", "conditioning": "time"},
}
NETWORK = {"target": "csp", "width": 128, "layers": 4, "frequencies": 16, "learning_rate": 1e-3}
FIGURE = HERE.parents[1] / "plugins" / "bfn" / "crys" / "docs" / "figures" / "ablation.svg"
DATA = ("perovskites", "perov-5", "prototypes")
SLICE = 1000
TESTED = 1000


def settings(arm: str, n: int, seed: int, steps: int, batch_size: int, task: dict[str, Any]) -> dict[str, Any]:
    """The config of one run."""
    fit = {"max_steps": steps, "seed": seed, "ema": 0.995, "checkpoint_every": SLICE, "keep": 1, "threads": 1}
    trainer = {**NETWORK, **ARMS[arm], "steps": n, "batch_size": batch_size, "decay_steps": steps}
    return {"task": task, "trainer": trainer, "fit": {**fit, "accelerator": "auto", "log_every": SLICE}}


def advance(path: Path, name: str, config: dict[str, Any], until: float) -> bool:
    """Train up to the end or the deadline; whether the end is reached."""
    last = config["fit"]["max_steps"]
    while True:
        reached = Run(path).checkpoints()[-1] if path.exists() and Run(path).checkpoints() else 0
        if reached >= last:
            return True
        if time.time() > until:
            return False
        goal = min(last, reached + SLICE)
        if reached:
            run = headwater.resume(path, max_steps=goal)
        else:
            overrides = {**config, "fit": {**config["fit"], "max_steps": goal}}
            run = headwater.train("bfn-crys", path, task=name, overrides=overrides, force=True)
        if run.reason == "interrupted":  # by Ctrl-C, which fit takes as a wish to save and stop
            raise SystemExit("interrupted; give the same command to go on")


def score(path: Path, compositions: str) -> dict[str, Any]:
    """Match rate and RMSE of one sample for each of the compositions."""
    model = headwater.load(path)
    wanted = model.task.train() if compositions == "train" else model.task.test()[:TESTED]
    sampler = {"compositions": compositions, "block_size": len(wanted)}
    began = time.process_time()
    with torch.random.fork_rng():
        (samples,) = list(model.sample(len(wanted), seed=0, overrides={"sampler": sampler}))
    seconds = time.process_time() - began
    rms = [distance(a, b) for a, b in zip(samples.structures(), wanted.structures(), strict=True)]
    found = [r for r in rms if r is not None]
    return {"match_rate": len(found) / len(rms), "rmse": float(np.mean(found)) if found else None,
            "tested": len(rms), "sampling_cpu_seconds": round(seconds, 2)}  # fmt: skip


def distance(predicted: Any, truth: Any) -> float | None:
    """RMS distance of the structures, ``None`` where they do not match or the prediction is no valid structure."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    apart = predicted.distance_matrix[np.triu_indices(len(predicted), 1)]
    if predicted.volume < 0.1 or (len(apart) and apart.min() < 0.5):
        return None
    found = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3).get_rms_dist(predicted, truth)
    return None if found is None else float(found[0])


def _setting(row: dict[str, Any]) -> tuple[str, int, int, int]:
    """What the arms share: data, n, training steps, crystals in a batch."""
    return row["data"], row["n"], row["steps"], row["batch_size"]


def finished(folder: Path) -> list[dict[str, Any]]:
    """The finished runs in a folder, seed by seed."""
    rows = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    order = list(ARMS)
    return sorted(
        rows, key=lambda row: (DATA.index(row["data"]), *_setting(row)[1:], row["seed"], order.index(row["arm"]))
    )


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Match rate of every run, and the means, by data set and n."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    panels = list(dict.fromkeys(_setting(r) for r in rows))
    fig, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3), constrained_layout=True, squeeze=False)
    for axis, setting in zip(axes[0], panels, strict=True):
        data, n, steps, _ = setting
        for place, arm in enumerate(ARMS):
            values = [r["match_rate"] for r in rows if (_setting(r), r["arm"]) == (setting, arm)]
            axis.plot([place] * len(values), values, "o", color=f"C{place}", alpha=0.6)
            if values:
                axis.plot([place - 0.25, place + 0.25], [mean(values)] * 2, color=f"C{place}", linewidth=2)
        axis.set_xticks(range(len(ARMS)), [arm.replace(", ", "\n") for arm in ARMS])
        axis.set_ylim(bottom=0)
        axis.set_title(f"{data}, {n} network calls, {steps:,} steps", fontsize=9, loc="left")
    axes[0][0].set_ylabel("match rate, one sample")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path)


def report(rows: list[dict[str, Any]]) -> None:
    """Match rate (mean and standard error) and RMSE (mean) of each arm."""
    for (data, n, steps, batch), arm in dict.fromkeys((_setting(r), r["arm"]) for r in rows):
        some = [r for r in rows if (_setting(r), r["arm"]) == ((data, n, steps, batch), arm)]
        values = [r["match_rate"] for r in some]
        error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        found = [r["rmse"] for r in some if r["rmse"] is not None]
        rmse = f"RMSE {mean(found):.3f}" if found else "no RMSE"
        print(f"{data:12} n={n:<4} {steps}x{batch:<4} {arm:18} "
              f"match {mean(values):.3f} +- {error:.3f}, {rmse}  ({len(values)} seeds)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=HERE.parents[1] / "build" / "ablation", help="folder of the runs")
    parser.add_argument("--perov-5", nargs=2, type=Path, metavar=("TRAIN", "TEST"), help="CSV files with a cif column")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--n", nargs="+", type=int, default=[10, 100], help="messages, and network calls of a sample")
    parser.add_argument("--steps", type=int, default=20000, help="training steps of each run")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this long; go on next time")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "bfn-crys-ablation.json")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    until = time.time() + 60 * options.minutes
    tasks: dict[str, tuple[str, dict[str, Any], str]] = {
        "prototypes": ("aflow-prototypes", {}, "train"),
        "perovskites": ("perovskites", {"crystals": 1000, "validation_fraction": 0.0, "test_fraction": 0.2}, "test"),
    }
    if options.perov_5:
        train, test = options.perov_5
        given = {"path": str(train), "test_path": str(test), "validation_fraction": 0.0, "cache": str(options.runs)}
        tasks["perov-5"] = ("crystals", given, "test")
    elif "perov-5" in options.data:
        parser.error("--perov-5 TRAIN.csv TEST.csv is needed, or --data perovskites prototypes")
    # Seed by seed, so that every arm has as many runs when the time is over.
    for data in options.data:
        name, task, compositions = tasks[data]
        for n, seed, arm in ((n, seed, arm) for n in options.n for seed in range(options.seeds) for arm in ARMS):
            size = f"{options.steps}x{options.batch_size}"
            words = f"{data}-n{n}-{arm.replace(', ', '-').replace(' ', '-')}-{size}-seed{seed}"
            path, scored = options.runs / words, options.runs / f"{words}.json"
            if not scored.exists():
                if not advance(path, name, settings(arm, n, seed, options.steps, options.batch_size, task), until):
                    continue
                loss = Run(path).metrics()[-1]
                row = {"data": data, "n": n, "arm": arm, "seed": seed, "steps": options.steps}
                row["batch_size"] = options.batch_size
                row |= {"training_seconds": loss["seconds"], **score(path, compositions)}
                scored.write_text(json.dumps(row) + "\n")
                print(row, flush=True)
    rows = finished(options.runs)
    if not rows:
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"network": NETWORK, "torch": torch.__version__}
    options.out.write_text(json.dumps({"about": about, "runs": rows}, indent=1) + "\n")
    report(rows)
    figure(rows, options.figure)


if __name__ == "__main__":
    main()
