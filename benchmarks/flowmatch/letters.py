"""What the embedding buys: FM, CGFM and MFM on populations not seen in training, over several seeds.

    python benchmarks/flowmatch/letters.py [--setting letters|upright|blood] [--seeds 3] [--steps N] [--arms ...]

- ``letters``: the paper's, 24 letters in 10 random rotations of the DejaVu Sans font, tested on 10 rotations of Y.
- ``upright``: an easier one of our own. The same letters upright, in the 12 faces of the DejaVu family that matplotlib
  ships instead of rotations, blurred by 1.0 instead of 0.5, tested on Y in all faces.
- ``blood``: the task ``pbmc-response``, real cells with a made response (``--cells FILE``, or an installed scanpy).

Small scale: the paper has a field of 512 x 4, 10 populations of 700 points a step and 576,000 steps; what each setting
has here is in ``SETTINGS``. All arms of a setting share everything but what they change. Every arm and seed is a run of
its own under ``--work``; what is there is not done again, a run that was stopped goes on.

Writes ``results/flow-meta-SETTING.json`` and, of letters, ``docs/figures/flow-meta-SETTING.svg``, and prints the table:
W1, W2 and MMD, means over the unseen populations (MFM without neighbours, k = 0, and with). A prediction moves points
of a population, and is compared with where these went. ``identity`` leaves it as it is; ``two samplings`` compares two
drawings of the same silhouettes with noise of their own: no prediction can be expected below.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import headwater
import torch
from headwater import registry, seeding
from headwater.api import task_of
from headwater.run import Run
from headwater_flow_meta.evaluation import scores
from headwater_flow_meta.tasks.letters import Letters, LettersConfig, silhouette
from headwater_flow_meta.tasks.populations import Data, Population, PopulationTask

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
from harness import machine  # noqa: E402

WHICH = ("w1", "w2", "mmd")
SCORED = 600
"""Points of each population that distances are computed on."""


@registry.task("upright-letters", config=LettersConfig)
class Upright(Letters):
    """Letters upright, in every face of the DejaVu family instead of rotations."""

    def load(self) -> Data:
        from matplotlib import font_manager

        names = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono")
        faces = sorted({f.fname for f in font_manager.fontManager.ttflist if f.name in names and "mpl-data" in f.fname})
        config = self.config
        splits = {
            split: [self._upright(letter, k, face) for letter in letters for k, face in enumerate(faces)]
            for split, letters in (("train", config.letters), ("valid", config.valid), ("test", config.test))
        }
        return Data(("x", "y"), splits)

    def _upright(self, letter: str, number: int, face: str) -> Population:
        generator = seeding.generator(self.config.seed, ord(letter), number)
        points = silhouette(letter, face)
        target = points + self.config.sharp * torch.randn(points.shape, generator=generator)
        source = target + self.config.blur * torch.randn(points.shape, generator=generator)
        name = f"{letter}-{number:02d}"
        return Population(name, source, target, paired=True, where=f"letter {name}")


@dataclass(frozen=True)
class Setting:
    """A task and the scale at which all arms are trained; of its training populations one in ``every`` is scored."""

    task: str
    trainer: dict[str, Any]
    steps: int
    neighbours: int
    every: int
    overrides: dict[str, Any] = field(default_factory=dict)

    def data(self, **changes: Any) -> PopulationTask:
        """The task."""
        made: PopulationTask = task_of(self.task, {"task": {**self.overrides, **changes}})
        return made

    def arms(self) -> dict[str, dict[str, Any]]:
        """What each arm changes."""
        return {
            "fm": {"model": "fm"},
            "cgfm": {"model": "cgfm"},
            "mfm-0": {"model": "mfm", "neighbours": 0},
            "mfm-k": {"model": "mfm", "neighbours": self.neighbours},
        }


# Frequencies of position (space_scale) and learning rates are above the paper's, for so few steps.
SMALL = {"hidden": 128, "layers": 3, "time_features": 16, "space_features": 16, "space_scale": 0.1}
SETTINGS = {
    "letters": Setting(
        "letters", {**SMALL, "populations": 4, "points": 700, "learning_rate": 2e-3, "space_scale": 0.2}, 8000, 50, 24
    ),
    "upright": Setting(
        "upright-letters", {**SMALL, "populations": 4, "points": 400, "learning_rate": 2e-3}, 1500, 30, 24,
        {"blur": 1.0},
    ),
    "blood": Setting(
        "pbmc-response", {**SMALL, "populations": 8, "points": 100, "learning_rate": 1e-3}, 1500, 20, 5,
    ),
}  # fmt: skip
NAMES = {"fm": "FM", "cgfm": "CGFM", "mfm-0": "MFM, k = 0", "mfm-k": "MFM, k = {}"}


def train(folder: Path, setting: Setting, arm: str, seed: int, steps: int) -> Run:
    """The finished run of an arm and seed, gone on with if there is one."""
    path = folder / f"{arm}-{seed}"
    if (path / "manifest.json").exists() and Run(path).latest() is not None:
        run = Run(path)
        return run if run.latest() == steps else headwater.resume(path, max_steps=steps)
    fit = {"max_steps": steps, "seed": seed, "accelerator": "cpu", "threads": 1, "ema": 0.995}
    fit |= {"checkpoint_every": 250, "log_every": 100, "validate_every": 0}
    trainer = {**setting.trainer, **setting.arms()[arm]}
    overrides = {"task": setting.overrides, "trainer": trainer, "fit": fit}
    return headwater.train("flow-meta", path, task=setting.task, overrides=overrides, force=True)


def chosen(setting: Setting, task: PopulationTask) -> dict[str, list[Population]]:
    """The populations that are scored: all unseen ones, and some of training."""
    return {"unseen": task.populations("test"), "training": task.populations("train")[:: setting.every]}


def predictor_of(path: Path) -> Any:
    """What predicts by a run, with midpoint steps."""
    model: Any = headwater.load(path, device="cpu")
    return model.sampler(overrides={"sampler": {"method": "midpoint", "steps": 20}}).predictor


def distances(setting: Setting, path: Path) -> dict[str, dict[str, float]]:
    """Mean distances of a run, on populations seen and not."""
    predictor, found = predictor_of(path), {}
    for split, populations in chosen(setting, setting.data()).items():
        each = []
        for population in populations:
            cloud = predictor(population, SCORED, torch.Generator().manual_seed(0))
            truth = population.truth(cloud.rows)
            assert truth is not None
            each.append(scores(cloud.points, truth, SCORED, WHICH, paired=True))
        found[split] = {name: mean(e[name] for e in each) for name in WHICH}
    return found


def bounds(setting: Setting) -> dict[str, dict[str, dict[str, float]]]:
    """Identity, and of letters two samplings of the same silhouettes."""
    task, found = setting.data(), {}
    found["identity"] = {
        split: _means([(p.source, p.target) for p in populations])
        for split, populations in chosen(setting, task).items()
    }
    if isinstance(task, Letters):
        clean = chosen(setting, setting.data(sharp=0.0))
        found["two samplings"] = {
            split: _means([(_again(b, task.config.sharp), a.target) for a, b in zip(own, clean[split], strict=True)])
            for split, own in chosen(setting, task).items()
        }
    return found


def _again(population: Population, noise: float) -> torch.Tensor:
    assert population.target is not None
    generator = torch.Generator().manual_seed(0)
    return population.target + noise * torch.randn(population.target.shape, generator=generator)


def _means(pairs: list[tuple[Any, Any]]) -> dict[str, float]:
    each = [scores(a, b, SCORED, WHICH, paired=True) for a, b in pairs]
    return {name: mean(e[name] for e in each) for name in WHICH}


def table(setting: Setting, results: list[dict[str, Any]], limits: dict[str, Any]) -> str:
    """Markdown: each arm's mean (lowest to highest of the seeds) on populations not seen and seen."""
    lines = ["| | W1, unseen | W2, unseen | MMD x 1000, unseen | W2, training |", "| --- | ---: | ---: | ---: | ---: |"]
    columns = (("unseen", "w1", 1), ("unseen", "w2", 1), ("unseen", "mmd", 1000), ("training", "w2", 1))
    for name, found in limits.items():
        lines.append(f"| {name} | " + " | ".join(f"{k * found[s][w]:.3f}" for s, w, k in columns) + " |")
    for arm, name in NAMES.items():
        own = [r["distances"] for r in results if r["arm"] == arm]
        if own:
            cells = [[k * d[s][w] for d in own] for s, w, k in columns]
            told = [f"{mean(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in cells]
            lines.append(f"| {name.format(setting.neighbours)} ({len(own)} seeds) | " + " | ".join(told) + " |")
    return "\n".join(lines)


def picture(setting: Setting, folder: Path, results: list[dict[str, Any]], out: Path) -> None:
    """One letter not seen, flowing under every arm, beside the true one."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    arms = [arm for arm in NAMES if any(r["arm"] == arm and r["seed"] == 0 for r in results)]
    population = setting.data().populations("test")[0]
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
        row[0].set_ylabel(NAMES[arm].format(setting.neighbours), fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out, dpi=160)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="letters", choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every arm; the setting's own without")
    parser.add_argument("--arms", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--cells", help="pbmc68k_reduced as h5ad, for blood")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "benchmarks" / "letters", help="folder of the runs"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = SETTINGS[options.setting]
    if options.cells is not None:
        setting = replace(setting, overrides={**setting.overrides, "file": options.cells})
    steps, folder = options.steps or setting.steps, options.work / options.setting
    limits: dict[str, Any] = {}
    for seed in range(options.seeds):  # seed by seed, so that whatever is finished compares all arms
        for arm in options.arms:
            result = folder / f"{arm}-{seed}.json"
            if result.exists() and json.loads(result.read_text())["steps"] == steps:
                continue
            run = train(folder, setting, arm, seed, steps)
            if run.latest() != steps:
                raise SystemExit(f"{run.path} was stopped; the same command goes on")
            found = distances(setting, run.path)
            content = {"arm": arm, "seed": seed, "steps": steps, "distances": found}
            result.write_text(json.dumps(content, indent=1) + "\n")
            print(f"{arm} seed {seed}: {found}", flush=True)
    results = [json.loads(p.read_text()) for p in sorted(folder.glob("*-*.json"))]
    results = [r for r in results if r["steps"] == steps]
    limits = bounds(setting)
    about = {"torch": torch.__version__, "threads": 1, "trainer": setting.trainer, "neighbours": setting.neighbours}
    text = json.dumps({**about, "machine": machine(), "bounds": limits, "runs": results}, indent=1)
    out = HERE.parent / "results" / f"flow-meta-{options.setting}.json"
    out.write_text(text + "\n")
    print(table(setting, results, limits))
    if isinstance(setting.data(), Letters):
        picture(setting, folder, results, ROOT / "docs" / "figures" / f"flow-meta-{options.setting}.svg")


if __name__ == "__main__":
    main()
