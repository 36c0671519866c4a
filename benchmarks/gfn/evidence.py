"""What local credit buys: FL-DB with its three terminal flows beside DB and TB, over several seeds.

    python benchmarks/gfn/evidence.py [--energies set_energies.json] [--seeds 5]

Three tasks of the paper's set generation: ``tiny`` (12 items, sets of 6) can be gone through exactly, ``small`` (30
items, 20) and ``medium`` (80, 60) have its sizes. The energies are those of the official code where ``--energies``
names its constants, else the task's own drawn ones. All else is the published protocol: 16 training trajectories of
the behaviour policy and 16 of the policy itself a step, Adam at 1e-3, the exploration of the paper's grid search.

Writes ``results/gfn-fl-evidence.json`` and the figure of the plugin's README beside this folder, and prints the tables.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import headwater
import torch
from harness import about
from headwater.config import validate
from headwater_gfn.rollout import roll_out
from headwater_gfn_fl.config import FLConfig
from headwater_gfn_fl.trainer import FLTrainer

HERE = Path(__file__).resolve().parent
MODES: dict[str, dict[str, Any]] = {
    "FL-DB zero": {"objective": "fl-db", "terminal_flow": "zero"},
    "FL-DB const": {"objective": "fl-db", "terminal_flow": "const"},
    "FL-DB free": {"objective": "fl-db", "terminal_flow": "free"},
    "DB": {"objective": "db"},
    "TB": {"objective": "tb"},
}
# The behaviour's share of uniform actions, per task: (FL-DB, DB, TB).
EXPLORATION = {"tiny": (1.0, 1.0, 0.0), "small": (1.0, 1.0, 0.0), "medium": (0.5, 1.0, 0.0625)}
STEPS = {"tiny": 2000, "small": 2000, "medium": 1000}
MARKS = (100, 250, 500, 1000, 2000)
SAMPLES = 4096


def one_run(folder: Path, task: str, mode: str, seed: int, energies: Path | None, cosine: int | None) -> dict[str, Any]:
    """Train once; what was found at each mark."""
    steps = cosine or STEPS[task]
    exploration = EXPLORATION[task][("fl-db", "db", "tb").index(MODES[mode]["objective"])]
    settings: dict[str, Any] = {"size": task}
    if energies is not None:
        settings = settings_of(task, energies, folder)
    every = 2000 if cosine else 50
    run = headwater.train(
        "gfn-fl",
        folder / "run",
        force=True,
        overrides={
            "task": settings,
            "trainer": {**MODES[mode], "exploration": exploration, "archive_batch": 16, "decay_steps": cosine},
            "fit": {
                "max_steps": steps, "seed": seed, "accelerator": "cpu", "keep": 100,
                "validate_every": every, "checkpoint_every": every, "log_every": every,
            },
        },
    )  # fmt: skip
    lines = []
    for line in run.metrics():
        if "valid/different" in line:
            lines.append({k.removeprefix("valid/"): v for k, v in line.items()})
    if not cosine:
        for line in lines:
            if line["step"] in MARKS:
                line["mean_log_reward"] = mean_log_reward(run, line["step"])
    return {"task": task, "mode": mode, "seed": seed, "cosine": cosine, "lines": lines}


def settings_of(task: str, energies: Path, folder: Path) -> dict[str, Any]:
    """The task's config with the official energies; the tiny one has the first twelve of the small one."""
    if task != "tiny":
        return {"size": task, "energies": str(energies)}
    first = json.loads(energies.read_text())["small"]["energies"][:12]
    (folder / "tiny.json").write_text(json.dumps(first))
    return {"energies": str(folder / "tiny.json"), "set_size": 6}


def mean_log_reward(run: Any, step: int) -> float:
    """Mean log-reward of objects that the policy samples after ``step``."""
    model_task = headwater.load(run, device="cpu").task
    config = validate(FLConfig, run.config()["trainer"], "trainer")
    policy: Any = FLTrainer.build(config, model_task, {})["policy"]
    policy.load_state_dict(run.load(step, "model")["modules"]["policy"])
    x = roll_out(model_task, policy, SAMPLES, torch.Generator().manual_seed(1)).last
    return float(model_task.log_reward(x).double().mean())


def table(runs: list[dict[str, Any]], task: str, name: str, steps: tuple[int, ...]) -> None:
    print(f"\n{task}: {name} (mean, lowest - highest of the seeds)")
    print(f"{'':12} " + " ".join(f"{s:>26}" for s in steps))
    for mode in MODES:
        cells = []
        for step in steps:
            found = [
                line.get(name)
                for run in runs
                if run["task"] == task and run["mode"] == mode
                for line in run["lines"]
                if line["step"] == step
            ]
            values = [v for v in found if v is not None]
            cells.append(f"{mean(values):.4g} ({min(values):.4g} - {max(values):.4g})" if values else "-")
        print(f"{mode:12} " + " ".join(f"{c:>26}" for c in cells))


def figure(runs: list[dict[str, Any]], path: Path) -> None:
    """Four panels: exact L1, top-100 reward against steps and seconds, error of log Z."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    fig, axes = plt.subplots(1, 4, figsize=(13, 3.1), constrained_layout=True)
    panels = (
        ("tiny", "l1", "step", "exact L1, 924 sets"),
        ("small", "top_100_reward", "step", "mean reward of the best 100, 30 choose 20"),
        ("small", "top_100_reward", "seconds", "the same against seconds"),
        ("small", "log_z_error", "step", "|log Z error|, 30 choose 20"),
    )
    for axis, (task, name, x, title) in zip(axes, panels, strict=True):
        for i, mode in enumerate(MODES):
            chosen = [r["lines"] for r in runs if r["task"] == task and r["mode"] == mode]
            rows = [[abs(line[name]) for line in lines if name in line] for lines in chosen]
            if not rows or not rows[0]:
                continue
            xs = [mean(v) for v in zip(*([line[x] for line in lines] for lines in chosen), strict=True)]
            columns = list(zip(*rows, strict=True))
            axis.plot(xs, [mean(c) for c in columns], color=f"C{i}", label=mode, linewidth=1.4)
            axis.fill_between(
                xs,
                [min(c) for c in columns],
                [max(c) for c in columns],
                color=f"C{i}",
                alpha=0.15,
                linewidth=0,
            )
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xlabel(x)
        if name != "top_100_reward":
            axis.set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--energies", type=Path, help="JSON with the official energies of the sizes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    parser.add_argument("--figure", type=Path, default=HERE.parents[1] / "docs" / "figures" / "gfn-fl-evidence.svg")
    options = parser.parse_args()
    began, runs = time.time(), []
    plan = [(task, mode, seed, None) for task in options.tasks for mode in MODES for seed in range(options.seeds)]
    if "tiny" in options.tasks:
        plan += [("tiny", mode, seed, 8000) for mode in MODES if "FL" in mode for seed in range(options.seeds)]
    with tempfile.TemporaryDirectory() as folder:
        for task, mode, seed, cosine in plan:
            run = one_run(Path(folder), task, mode, seed, options.energies, cosine)
            runs.append({**run, "task": "tiny, cosine" if cosine else task})
            last = {k: round(v, 4) for k, v in run["lines"][-1].items()}
            print(f"{time.time() - began:6.0f} s  {runs[-1]['task']} {mode} seed {seed}: {last}", flush=True)
    facts = {**about(), "energies": "official" if options.energies else "drawn", "torch": torch.__version__}
    facts |= {"threads": 1, "seconds": round(time.time() - began)}
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": facts, "runs": runs}, indent=None, separators=(",", ":"))
    (options.out / "gfn-fl-evidence.json").write_text(text + "\n")
    table(runs, "tiny", "l1", (500, 1000, 2000))
    table(runs, "tiny", "log_z_error", (500, 1000, 2000))
    table(runs, "tiny, cosine", "l1", (8000,))
    for task in ("small", "medium"):
        for name in ("top_100_reward", "near_best", "log_z_error", "mean_log_reward"):
            table(runs, task, name, MARKS if task == "small" else MARKS[:-1])
    figure(runs, options.figure)


if __name__ == "__main__":
    main()
