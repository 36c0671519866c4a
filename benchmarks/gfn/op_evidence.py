"""What an order alone buys: Pareto fronts of grids, TFBind8 beside TB with four exponents, NAS-Bench-201.

    python benchmarks/gfn/op_evidence.py [--tfbind8 tfbind8.npz] [--nas nasbench201.npz] [--seeds 5]

Grids: exact mass on the true Pareto set through 1,000 updates of 128 trajectories, at a constant learning rate of 0.01
and along a cosine; the preference-conditioned baseline with the same budget. TFBind8: OP-TB beside TB on R^1, R^3,
R^10 and R^30, 2,000 rounds of 32 trajectories and 32 replayed ones, three updates each. NAS-Bench-201: the best cell
so far among 300 that are evaluated, beside random search. The last two need the user's tables.

Every finished run is written at once to ``results/gfn-op-evidence.json``, and what is there is not run again: stop and
start as you like (``--fresh`` starts anew). The figure of the plugin's README is drawn at the end.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import headwater
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
CONSTANT = 10**9
"""A cosine so long that the learning rate stays as it is."""

PAIR, TRIPLE = ["branin", "currin"], ["branin", "currin", "shubert"]
GRIDS: dict[str, dict[str, Any]] = {
    "OP-TB, constant rate": {"objectives": PAIR, "trainer": {"decay_steps": CONSTANT}},
    "OP-TB, cosine": {"objectives": PAIR, "trainer": {}},
    "PC-GFN, cosine": {"objectives": PAIR, "trainer": {"objective": "pc-tb"}},
    "OP-TB, cosine, 3 objectives": {"objectives": TRIPLE, "trainer": {}},
}
STRINGS: dict[str, dict[str, Any]] = {
    "OP-TB": {"objective": "op-tb"},
    **{f"TB, R^{b}": {"objective": "tb", "exponent": float(b)} for b in (1, 3, 10, 30)},
}
ROUNDS, CELLS, PER_ROUND = 2000, 300, 10


def one_run(folder: Path, part: str, name: str, seed: int, tables: dict[str, Path | None]) -> list[dict[str, float]]:
    """Train once; what each validation found."""
    common = {"seed": seed, "accelerator": "cpu", "keep": 1, "log_every": 1000, "checkpoint_every": 10_000}
    if part == "grid":
        overrides: dict[str, Any] = {
            "task": {"objectives": GRIDS[name]["objectives"]},
            "trainer": GRIDS[name]["trainer"],
            "fit": {**common, "max_steps": 1000, "validate_every": 50},
        }
        task, preset = "objective-grid", None
    elif part == "tfbind8":
        overrides = {
            "task": {"table": str(tables["tfbind8"])},
            "trainer": {**STRINGS[name], "decay_steps": CONSTANT},
            "fit": {**common, "max_steps": ROUNDS, "validate_every": 250},
        }
        task, preset = "tfbind8", "strings"
    else:
        overrides = {
            "task": {"table": str(tables["nas"]), "columns": ["cifar10"]},
            "trainer": {"decay_steps": CONSTANT},
            "fit": {**common, "max_steps": CELLS // PER_ROUND, "validate_every": 1},
        }
        task, preset = "nas-bench-201", "nas"
    run = headwater.train("gfn-op", folder / "run", task=task, preset=preset, overrides=overrides, force=True)
    if run.reason != "done":
        raise SystemExit(f"{part} {name} seed {seed} was {run.reason}; what is finished is kept")
    lines = [line for line in run.metrics() if "valid/different" in line]
    return [{k.removeprefix("valid/"): v for k, v in line.items()} for line in lines]


def random_search(path: Path, seed: int) -> list[dict[str, float]]:
    """The best of as many cells drawn without replacement."""
    values = np.load(path, allow_pickle=False)["acc"][:, 0]
    drawn = np.random.default_rng(seed).choice(values, CELLS, replace=False)
    best = np.maximum.accumulate(drawn)
    return [{"step": float(k), "best_reward": float(best[k * PER_ROUND - 1])} for k in range(1, CELLS // PER_ROUND + 1)]


def of(runs: list[dict[str, Any]], part: str, name: str, key: str, step: int) -> list[float]:
    """One figure of all seeds at one step."""
    chosen = [r for r in runs if r["part"] == part and r["name"] == name]
    return [line[key] for r in chosen for line in r["lines"] if line["step"] == step and line.get(key) is not None]


def names_of(runs: list[dict[str, Any]], part: str) -> list[str]:
    return list(dict.fromkeys(r["name"] for r in runs if r["part"] == part))


def table(runs: list[dict[str, Any]], part: str, key: str, steps: tuple[int, ...]) -> None:
    print(f"\n{part}: {key} (mean, lowest to highest of the seeds)")
    print("| | " + " | ".join(f"{s:,}" for s in steps) + " | seeds |")
    print("| --- |" + " ---: |" * (len(steps) + 1))
    for name in names_of(runs, part):
        cells = []
        for step in steps:
            v = of(runs, part, name, key, step)
            cells.append(f"{mean(v):.4g} ({min(v):.4g} to {max(v):.4g})" if v else "")
        seeds = len([r for r in runs if r["part"] == part and r["name"] == name])
        print(f"| {name} | " + " | ".join(cells) + f" | {seeds} |")


PANELS = (
    ("grid", "front_mass", "update", "mass on the true Pareto set"),
    ("grid", "effective", "update", "effective objects"),
    ("tfbind8", "modes", "round", "modes found, of 328"),
    ("tfbind8", "mean_objective", "round", "mean score of the policy"),
    ("nas", "best_reward", "cells evaluated", "best CIFAR-10 accuracy"),
)


def figure(runs: list[dict[str, Any]], path: Path) -> None:
    """A panel for each measure: mean of the seeds, and the span from the lowest to the highest."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams["svg.hashsalt"] = "gfn-op"
    panels = [p for p in PANELS if any(r["part"] == p[0] for r in runs)]
    fig, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.2), constrained_layout=True, squeeze=False)
    for axis, (part, key, x, title) in zip(axes[0], panels, strict=True):
        for i, name in enumerate(names_of(runs, part)):
            chosen = [r["lines"] for r in runs if r["part"] == part and r["name"] == name]
            columns = list(zip(*([line[key] for line in lines] for lines in chosen), strict=False))
            scale = PER_ROUND if part == "nas" else 1
            xs = [line["step"] * scale for line in chosen[0]][: len(columns)]
            axis.plot(xs, [mean(c) for c in columns], color=f"C{i}", label=name, linewidth=1.4)
            axis.fill_between(
                xs, [min(c) for c in columns], [max(c) for c in columns], color=f"C{i}", alpha=0.15, linewidth=0
            )
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel(x)
        if key == "effective":
            axis.set_yscale("log")
        if key in ("front_mass", "modes", "best_reward"):
            axis.legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tfbind8", type=Path, help="CSV or NPZ with the scores of all DNA strings of eight letters")
    parser.add_argument("--nas", type=Path, help="NPZ with the accuracies of NAS-Bench-201 (acc, columns)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--grid-seeds", type=int, default=5)
    parser.add_argument("--fresh", action="store_true", help="do not keep what was measured before")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "gfn-op-evidence.json")
    parser.add_argument("--figure", type=Path, default=HERE.parents[1] / "docs" / "figures" / "gfn-op-evidence.svg")
    options = parser.parse_args()
    tables = {"tfbind8": options.tfbind8, "nas": options.nas}
    runs: list[dict[str, Any]] = []
    if options.out.exists() and not options.fresh:
        runs = json.loads(options.out.read_text())["runs"]
    plan = [("grid", name, seed) for seed in range(options.grid_seeds) for name in GRIDS]
    if options.tfbind8:
        plan += [("tfbind8", name, seed) for seed in range(options.seeds) for name in STRINGS]
    if options.nas:
        plan += [("nas", name, seed) for seed in range(max(options.seeds, 10)) for name in ("OP-TB-KL-AUG", "random")]
    done = {(r["part"], r["name"], r["seed"]) for r in runs}
    about = {"machine": platform.platform(), "torch": torch.__version__, "threads": 1}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for part, name, seed in plan:
            if (part, name, seed) in done:
                continue
            began = time.perf_counter()
            if name == "random":
                lines = random_search(options.nas, seed)
            else:
                lines = one_run(Path(folder), part, name, seed, tables)
            seconds = round(time.perf_counter() - began, 1)
            runs.append({"part": part, "name": name, "seed": seed, "seconds": seconds, "lines": lines})
            text = json.dumps({"about": about, "runs": runs}, separators=(",", ":"))
            beside = options.out.with_suffix(".part")
            beside.write_text(text + "\n")
            beside.replace(options.out)
            last = {k: round(v, 4) for k, v in lines[-1].items()}
            print(f"{seconds:6.0f} s  {part} {name} seed {seed}: {last}", flush=True)
    table(runs, "grid", "front_mass", (50, 100, 250, 500, 1000))
    table(runs, "grid", "front_covered", (1000,))
    if any(r["part"] == "tfbind8" for r in runs):
        for key in ("modes", "mean_objective", "top_100_reward", "different"):
            table(runs, "tfbind8", key, (250, 500, 1000, 2000))
    if any(r["part"] == "nas" for r in runs):
        table(runs, "nas", "best_reward", (5, 10, 20, 30))
    figure(runs, options.figure)


if __name__ == "__main__":
    main()
