"""What the embedding buys: FM, CGFM and MFM (k = 0 and 50) on letters not seen in training, over several seeds.

    python benchmarks/flowmatch/letters.py [--seeds 3] [--steps 8000] [--budget MINUTES] [--arms ...]

The paper's letters in the DejaVu Sans font, 24 letters in 10 rotations, tested on 10 rotations of Y. Small scale: a
field of 128 x 3 and 10 populations of 200 points a step, 8,000 steps, where the paper has 512 x 4, 10 of 700 and
576,000. All arms have twenty times its frequencies of position (space_scale) and thirty times its learning rate, for
so few steps. Every arm and seed is a run of its own under ``--work``; what is there is not done again, a run that was
stopped goes on, and with ``--budget`` nothing is started after so many minutes. The whole takes about 70 minutes of
one thread.

Writes ``results/flow-meta-letters.json`` and the picture of the plugin's README beside this folder, and prints the
table: W1, W2 and MMD, mean over the rotations. A prediction moves all points of a letter, and is compared with where
these went. ``identity`` leaves the blurred letter as it is; ``two samplings`` compares two drawings of the same
silhouettes with noise of their own: no prediction can be expected below.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import mean
from typing import Any

import headwater
import torch
from headwater.run import Run
from headwater_flow_meta.evaluation import scores
from headwater_flow_meta.tasks.letters import Letters, LettersConfig
from headwater_flow_meta.tasks.populations import Population

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ARMS: dict[str, dict[str, Any]] = {
    "fm": {"model": "fm"},
    "cgfm": {"model": "cgfm"},
    "mfm-0": {"model": "mfm", "neighbours": 0},
    "mfm-50": {"model": "mfm", "neighbours": 50},
}
NAMES = {"fm": "FM", "cgfm": "CGFM", "mfm-0": "MFM, k = 0", "mfm-50": "MFM, k = 50"}
SCALE = {
    "hidden": 128, "layers": 3, "populations": 10, "points": 200, "learning_rate": 3e-3, "space_scale": 0.2,
}  # fmt: skip
WHICH = ("w1", "w2", "mmd")
SPLITS = {"unseen": ("test", 1), "training": ("train", 24)}
"""Populations that are scored: all of Y, and one rotation of ten training letters."""


def train(folder: Path, arm: str, seed: int, steps: int) -> Run:
    """The finished run of an arm and seed, gone on with if there is one."""
    path = folder / f"{arm}-{seed}"
    if (path / "manifest.json").exists():
        run = Run(path)
        return run if run.latest() == steps else headwater.resume(path, max_steps=steps)
    fit = {"max_steps": steps, "seed": seed, "accelerator": "cpu", "threads": 1, "ema": 0.999}
    fit |= {"checkpoint_every": 250, "log_every": 100, "validate_every": 0}
    return headwater.train("flow-meta", path, overrides={"trainer": {**SCALE, **ARMS[arm]}, "fit": fit})


def chosen(task: Letters, split: str) -> list[Population]:
    """The populations that are scored."""
    name, every = SPLITS[split]
    return task.populations(name)[::every]


def predictor_of(path: Path) -> Any:
    """What predicts by a run, with midpoint steps."""
    model: Any = headwater.load(path, device="cpu")
    return model.sampler(overrides={"sampler": {"method": "midpoint", "steps": 20}}).predictor


def distances(run: Run) -> dict[str, dict[str, float]]:
    """Mean distances of a run, on letters seen and not."""
    predictor, letters = predictor_of(run.path), Letters(LettersConfig())
    found = {}
    for split in SPLITS:
        each = []
        for population in chosen(letters, split):
            cloud = predictor(population, None, torch.Generator().manual_seed(0))
            truth = population.truth(cloud.rows)
            assert truth is not None
            each.append(scores(cloud.points, truth, 1500, WHICH, paired=True))
        found[split] = {name: mean(e[name] for e in each) for name in WHICH}
    return found


def bounds() -> dict[str, dict[str, dict[str, float]]]:
    """Identity, and two samplings of the same silhouettes in the same rotations."""
    noisy, clean = Letters(LettersConfig()), Letters(LettersConfig(sharp=0.0))
    found: dict[str, dict[str, dict[str, float]]] = {"identity": {}, "two samplings": {}}
    for split in SPLITS:
        identity, again = [], []
        for number, (a, b) in enumerate(zip(chosen(noisy, split), chosen(clean, split), strict=True)):
            assert a.target is not None
            assert b.target is not None
            generator = torch.Generator().manual_seed(number)
            other = b.target + noisy.config.sharp * torch.randn(b.target.shape, generator=generator)
            identity.append(scores(a.source, a.target, 1500, WHICH, paired=True))
            again.append(scores(other, a.target, 1500, WHICH, paired=True))
        found["identity"][split] = {name: mean(e[name] for e in identity) for name in WHICH}
        found["two samplings"][split] = {name: mean(e[name] for e in again) for name in WHICH}
    return found


def table(results: list[dict[str, Any]], limits: dict[str, Any]) -> str:
    """Markdown: each arm's mean (lowest to highest of the seeds) on letters not seen and seen."""
    lines = [
        "| | W1, unseen | W2, unseen | MMD x 1000, unseen | W2, training letters |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    columns = (("unseen", "w1", 1), ("unseen", "w2", 1), ("unseen", "mmd", 1000), ("training", "w2", 1))
    for name, found in limits.items():
        lines.append(f"| {name} | " + " | ".join(f"{k * found[s][w]:.4f}" for s, w, k in columns) + " |")
    for arm in ARMS:
        own = [r["distances"] for r in results if r["arm"] == arm]
        if own:
            cells = [[k * d[s][w] for d in own] for s, w, k in columns]
            told = [f"{mean(c):.4f} ({min(c):.4f} to {max(c):.4f})" for c in cells]
            lines.append(f"| {NAMES[arm]} ({len(own)} seeds) | " + " | ".join(told) + " |")
    return "\n".join(lines)


def picture(folder: Path, results: list[dict[str, Any]], out: Path) -> None:
    """One letter not seen, flowing under every arm, beside the true one."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    arms = [arm for arm in ARMS if any(r["arm"] == arm and r["seed"] == 0 for r in results)]
    population = Letters(LettersConfig()).populations("test")[0]
    assert population.target is not None
    times = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    fig, axes = plt.subplots(len(arms), 6, figsize=(9.5, 1.7 * len(arms)), constrained_layout=True, squeeze=False)
    for row, arm in zip(axes, arms, strict=True):
        cloud = predictor_of(folder / f"{arm}-0")(population, 700, torch.Generator().manual_seed(0), times=times)
        shown = [*cloud.points, population.target[cloud.rows]]
        titles = [f"t = {t:g}" for t in times] + ["true"]
        for axis, points, title in zip(row, shown, titles, strict=True):
            axis.scatter(
                *points.T, s=1.2, linewidths=0, color="#d9812a" if title == "true" else "#2f76b5", rasterized=True
            )
            axis.set(xlim=(-4.5, 4.5), ylim=(-4.5, 4.5), xticks=[], yticks=[], aspect="equal")
            axis.set_title(title, fontsize=8)
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(NAMES[arm], fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--budget", type=float, help="minutes after which no further run is started")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "benchmarks" / "letters", help="folder of the runs"
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "flow-meta-letters.svg")
    options = parser.parse_args()
    began = time.time()
    torch.set_num_threads(1)
    for seed in range(options.seeds):  # seed by seed, so that whatever is finished compares all arms
        for arm in options.arms:
            result = options.work / f"{arm}-{seed}.json"
            if result.exists() and json.loads(result.read_text())["steps"] == options.steps:
                continue
            if options.budget is not None and time.time() - began > 60 * options.budget:
                continue
            run = train(options.work, arm, seed, options.steps)
            if run.latest() != options.steps:
                raise SystemExit(f"{run.path} was stopped; the same command goes on")
            seconds = run.metrics()[-1]["seconds"]
            content = {
                "arm": arm,
                "seed": seed,
                "steps": options.steps,
                "seconds": seconds,
                "distances": distances(run),
            }
            result.write_text(json.dumps(content, indent=1) + "\n")
            print(f"{time.time() - began:6.0f} s  {arm} seed {seed}: {content['distances']}", flush=True)
    results = [json.loads(p.read_text()) for p in sorted(options.work.glob("*-*.json"))]
    results = [r for r in results if r["steps"] == options.steps]
    limits = bounds()
    about = {"machine": platform.platform(), "torch": torch.__version__, "threads": 1, "scale": SCALE}
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "bounds": limits, "runs": results}, indent=1)
    (options.out / "flow-meta-letters.json").write_text(text + "\n")
    print(table(results, limits))
    picture(options.work, results, options.figure)


if __name__ == "__main__":
    main()
