"""The report's pictures: populations on their way, and the run's distances beside those of trivial predictions."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from headwater import Run
from headwater.reporting import Images, Panel, Table
from torch import Tensor

from headwater_flow_meta.evaluation import scores, subsample
from headwater_flow_meta.flow import ideal_shift, mean_shift
from headwater_flow_meta.prediction import Predictor
from headwater_flow_meta.tasks.populations import Population

__all__ = ["TIMES", "draw_cloud", "panels", "trivial"]

TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN = 4
POINTS = 700
SCORED = 10
SIDE = 180

CLAIMS = (
    "What the paper says of letters not seen, in words: flow matching from Gaussian noise is worst; CGFM is good on "
    "training letters and no better than FM on others; MFM is best, and better with k = 50 neighbours than with none. "
    "Ideal shift knows the true mean; two draws are two halves of the true points, as far apart as chance has them."
)


def draw_cloud(points: Tensor, frame: tuple[Tensor, Tensor], colour: tuple[int, int, int] = (47, 118, 181)) -> bytes:
    """A PNG of points (n, 2) within the frame (low (2,), high (2,)), darker where they lie dense."""
    from PIL import Image

    low, high = frame
    place = ((points - low) / (high - low) * (SIDE - 1)).round().long()
    inside = ((place >= 0) & (place < SIDE)).all(1)
    x, y = place[inside].T
    counts = torch.zeros(SIDE, SIDE).index_put_((SIDE - 1 - y, x), torch.ones(len(x)), accumulate=True)
    # A point covers three by three pixels.
    spread = torch.nn.functional.avg_pool2d(counts[None, None], 3, 1, 1)[0, 0] * 9
    ink = 1 - torch.exp(-0.8 * spread).unsqueeze(2)
    pixels = (255 * (1 - ink) + ink * torch.tensor(colour, dtype=torch.float32)).round().byte().numpy()
    out = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(out, "PNG")
    return out.getvalue()


def _plane(x: Tensor) -> Tensor:
    """Two directions (D, 2) in which points (n, D) are shown: their own two, or the first two principal ones."""
    if x.shape[1] == 2:
        return torch.eye(2)
    if x.shape[1] == 1:
        return torch.tensor([[1.0, 0.0]])
    return torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:2].T


def trivial(population: Population, training_targets: Tensor) -> dict[str, Tensor]:
    """Predictions that take no learning, by name."""
    assert population.target is not None
    return {
        "identity": population.source,
        "mean shift": mean_shift(population.source, training_targets),
        "ideal shift": ideal_shift(population.source, population.target),
    }


def panels(task: Any, run: Run) -> list[Panel]:
    """Populations flowing, and a table of distances."""
    from headwater.sampling import Model

    model = Model(run, device="cpu")
    populations = [p for p in task.populations("test") or task.populations("train") if p.target is not None]
    if not populations:
        return []
    settings = {k: v for k, v in run.config()["sampler"].items() if k in ("method", "steps", "tolerance")}
    base = model.facts.get("base", "source")
    predictor = Predictor(model.modules, model.facts, model.place.device, base=base, **settings)
    return [_flowing(predictor, populations[:SHOWN]), _distances(task, predictor, populations[:SCORED])]


def _flowing(predictor: Predictor, populations: Sequence[Population]) -> Images:
    images, labels = [], []
    for population in populations:
        assert population.target is not None
        generator = torch.Generator().manual_seed(0)
        cloud = predictor(population, POINTS, generator, times=torch.tensor(TIMES))
        target = subsample(population.target, POINTS)
        plane = _plane(population.target)
        shown = [*(cloud.points @ plane), target @ plane]
        low = torch.stack([s.min(0).values for s in shown]).min(0).values - 0.1
        high = torch.stack([s.max(0).values for s in shown]).max(0).values + 0.1
        centre, half = (low + high) / 2, (high - low).max() / 2
        frame = (centre - half, centre + half)
        images += [draw_cloud(s, frame) for s in shown[:-1]] + [draw_cloud(shown[-1], frame, (217, 129, 42))]
        labels += [f"{population.name}, t = {t:g}" for t in TIMES] + [f"{population.name}, true"]
    return Images(
        "Populations on their way", images, labels,
        caption="From the population before the change (t = 0) to the prediction (t = 1), and the true one in orange; "
        "more than two features are shown in the two main directions of the true population.",
    )  # fmt: skip


def _distances(task: Any, predictor: Predictor, populations: Sequence[Population]) -> Table:
    training = torch.cat([p.target for p in task.populations("train") if p.target is not None])
    found: dict[str, list[dict[str, float]]] = {}
    points = min(task.config.metric_points, 500)
    which = ("w1", "w2", "mmd")
    for population in populations:
        assert population.target is not None
        generator = torch.Generator().manual_seed(0)
        cloud = predictor(population, points, generator)
        truth = population.truth(cloud.rows)
        assert truth is not None
        seen = replace(population, source=population.source[cloud.rows], target=truth)
        for name, guess in {"this run": cloud.points, **trivial(seen, training)}.items():
            found.setdefault(name, []).append(scores(guess, truth, points, which, paired=population.paired))
        mixed = population.target[torch.randperm(len(population.target), generator=generator)]
        half = len(mixed) // 2
        found.setdefault("two draws", []).append(scores(mixed[:half], mixed[half:], points, which))
    rows = [[name, *(sum(s[w] for s in each) / len(each) for w in which)] for name, each in found.items()]
    return Table(
        f"Distance to the true population, mean of {len(populations)}", ["prediction", "W1", "W2", "MMD"], rows,
        caption=f"At most {points} points of each. {CLAIMS}" if task.__class__.__name__ == "Letters" else
        f"At most {points} points of each.",
    )  # fmt: skip
