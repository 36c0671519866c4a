"""Which weights are the best: judged on the morphology of what they make, never on the loss of a GAN."""

from collections.abc import Mapping
from typing import Any

import torch
from headwater import seeding
from torch import Tensor, nn

from headwater_porous_gan.latents import Latents
from headwater_porous_gan.networks import Generator
from headwater_porous_gan.physics.correlation import s2_directional, s2_mean
from headwater_porous_gan.physics.minkowski import minkowski
from headwater_porous_gan.postprocess import majority, otsu_level, reaches
from headwater_porous_gan.tiling import Folded, Statistics, statistics

__all__ = ["Best", "errors", "make", "morphology", "pilot_latents", "pilot_level"]

LAGS = 40
"""Longest lag of S2 that is compared, in voxels."""

UNITS = {"s2": 0.01, "surface": 0.03, "euler": 0.1}
"""What counts as an error of 1 in the score: about the spread of volumes of a few hundred voxels."""


def pilot_latents(generator: Generator, device: torch.device, dtype: torch.dtype = torch.float32) -> Latents:
    """The one field that statistics and thresholds are measured on, whatever is sampled."""
    return Latents(generator.nz, seeding.key(0x9110_7), device=device, dtype=dtype)


def pilot_level(folded: Folded, latents: Latents, cells: int) -> int:
    """Otsu's level of the pilot volume, 128 voxels along each axis at most."""
    edge = min(cells, max(1, 128 // folded.factor))
    return otsu_level(folded.tile(latents, (0, 0, 0), (edge, edge, edge)).cpu().numpy())


def make(folded: Folded, latents: Latents, low: Any, high: Any, level: int | None) -> Tensor:
    """The phase (uint8, 1 grain) of the cells [low, high); post-processed as published where ``level`` is given."""
    if level is None:
        return folded.tile(latents, low, high, lambda y: (y > 0).to(torch.uint8))[1:-1, 1:-1, 1:-1]
    return majority(folded.tile(latents, low, high, lambda y: reaches(y, level)))


def morphology(phase: Any) -> dict[str, Any]:
    """Porosity, Crofton surface and Euler number per voxel (grains by faces), and S2 of the pores, of a volume."""
    found = minkowski(phase)
    cells = max(found.cells, 1)
    s2 = s2_mean(s2_directional(phase, min(LAGS, *(n - 1 for n in phase.shape))))
    return {
        "porosity": float(s2[0]), "surface": found.surface / cells, "euler": found.euler6 / cells,
        "s2": torch.from_numpy(s2.copy()),
    }  # fmt: skip


def errors(made: Mapping[str, Any], real: Mapping[str, Any]) -> dict[str, float]:
    """Errors of generated morphology beside the real one, and one score (less is better).

    ``s2``: mean absolute difference of S2 over the lags that both have, over phi - phi^2 of the real one; ``surface``
    and ``euler``: relative differences. The score is the mean of the three in units of 1 %, 3 % and 10 %.
    """
    lags = min(len(made["s2"]), len(real["s2"]))
    spread = max(real["porosity"] - real["porosity"] ** 2, 1e-9)
    found = {
        "s2": float((made["s2"][:lags] - real["s2"][:lags]).abs().mean()) / spread,
        "surface": abs(made["surface"] - real["surface"]) / max(real["surface"], 1e-9),
        "euler": abs(made["euler"] - real["euler"]) / max(abs(real["euler"]), 1e-9),
    }
    found["score"] = sum(found[name] / unit for name, unit in UNITS.items()) / len(UNITS)
    return {"porosity": made["porosity"], **found}


class Best(nn.Module):
    """The generator with the best score so far, with its pilot's batch-norm statistics; a module, so it is saved.

    ``step`` is -1 until there is one. Where no validation fell on a multiple of ``trainer.select_every`` it is the
    latest one, which gives way to the first that does: so a run that was stopped and resumed selects as if it had not.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator.requires_grad_(False)
        self.register_buffer("score", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(-1))
        self.register_buffer("regular", torch.tensor(False))
        norms: Any = generator.norms
        for i, norm in enumerate(norms):
            self.register_buffer(f"mean_{i}", torch.zeros(norm.num_features, dtype=torch.float64))
            self.register_buffer(f"variance_{i}", torch.ones(norm.num_features, dtype=torch.float64))

    @property
    def found(self) -> bool:
        """Whether any weights were chosen yet."""
        return int(self.get_buffer("step")) >= 0

    @property
    def statistics(self) -> Statistics:
        """The pilot's mean and biased variance before each batch normalisation."""
        return [
            (self.get_buffer(f"mean_{i}"), self.get_buffer(f"variance_{i}")) for i in range(len(self.generator.norms))
        ]

    @torch.no_grad()
    def consider(self, generator: nn.Module, found: Statistics, score: float, step: int, regular: bool) -> bool:
        """Take over ``generator`` if it is better; say whether it was."""
        known = bool(self.get_buffer("regular"))
        if known and (not regular or score >= float(self.get_buffer("score"))):
            return False
        self.generator.load_state_dict(generator.state_dict())
        for (mean, variance), (new_mean, new_variance) in zip(self.statistics, found, strict=True):
            mean.copy_(new_mean)
            variance.copy_(new_variance)
        self.get_buffer("score").fill_(score)
        self.get_buffer("step").fill_(step)
        self.get_buffer("regular").fill_(regular)
        return True


def judge(
    generator: Generator, real: Mapping[str, Any], cells: int, postprocess: str
) -> tuple[dict[str, float], Statistics]:
    """Errors of a volume of ``cells``^3 by ``generator`` under the statistics of that volume, and these."""
    latents = pilot_latents(generator, next(generator.parameters()).device)
    low, high = (0, 0, 0), (cells, cells, cells)
    found = statistics(generator, latents, low, high)
    folded = Folded(generator, found)
    level = pilot_level(folded, latents, cells) if postprocess == "paper" else None
    phase = make(folded, latents, low, high, level)
    return errors(morphology(phase.cpu().numpy()), real), found
