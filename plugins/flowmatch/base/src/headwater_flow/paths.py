"""Conditional probability paths p_t(x | x0, x1) = N(mean, std^2 I) and the velocity that moves along them.

A path is a value with three functions of the time. Its velocity is (std'/std)(x - mean) + mean' (Tong et al., 2024,
theorem 2.1): the rate at which x = mean + std eps changes while x0, x1 and eps stay.

Which x0 goes with which x1 is not the path's matter: that is the coupling's. Optimal-transport flow matching (OT-CFM)
is the straight path on pairs of an optimal coupling.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headwater_flow.schedules import CondOT, Cosine, Schedule
from headwater_flow.shapes import like_state

__all__ = ["AffinePath", "BridgePath", "Path", "TargetPath", "draw", "score_weight", "variance_preserving"]


class Path(Protocol):
    """A Gaussian conditional path; all states are (B, ...), the time is () or (B,)."""

    def mean(self, t: float | Tensor, x0: Tensor, x1: Tensor) -> Tensor: ...

    def std(self, t: float | Tensor, x: Tensor) -> Tensor:
        """The standard deviation, with the dtype of ``x`` and a shape that multiplies it."""
        ...

    def velocity(self, t: float | Tensor, x: Tensor, x0: Tensor, x1: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class AffinePath:
    """mean = alpha x1 + sigma x0 and a constant std; the velocity alpha' x1 + sigma' x0 does not depend on x.

    With the default schedule this is CFM and OT-CFM: x1 - x0.

    Example:
        >>> x0, x1 = torch.zeros(2, 3), torch.ones(2, 3)
        >>> AffinePath().velocity(0.3, x0, x0, x1).unique()
        tensor([1.])
    """

    schedule: Schedule = CondOT()  # noqa: RUF009 - it is immutable
    sigma: float = 0.0

    def mean(self, t: float | Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        alpha, sigma, _, _ = self.schedule(like_state(t, x1))
        return alpha * x1 + sigma * x0

    def std(self, t: float | Tensor, x: Tensor) -> Tensor:
        return torch.full_like(like_state(t, x), self.sigma)

    def velocity(self, t: float | Tensor, x: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        _, _, d_alpha, d_sigma = self.schedule(like_state(t, x1))
        return d_alpha * x1 + d_sigma * x0


def variance_preserving(sigma: float = 0.0) -> AffinePath:
    """VP-CFM (Albergo and Vanden-Eijnden, 2023): along the quarter of a circle from x0 to x1."""
    return AffinePath(Cosine(), sigma)


@dataclass(frozen=True)
class TargetPath:
    """The path of Lipman et al. (2023) from a standard normal to N(x1, sigma^2): mean t x1, std 1 - (1 - sigma) t.

    x0 is not used.
    """

    sigma: float = 0.0

    def mean(self, t: float | Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        return like_state(t, x1) * x1

    def std(self, t: float | Tensor, x: Tensor) -> Tensor:
        return 1 - (1 - self.sigma) * like_state(t, x)

    def velocity(self, t: float | Tensor, x: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        return (x1 - (1 - self.sigma) * x) / self.std(t, x)


@dataclass(frozen=True)
class BridgePath:
    """A Brownian bridge (SB-CFM): mean t x1 + (1 - t) x0, std sigma sqrt(t (1 - t)).

    With pairs of entropic transport at ``reg`` = 2 sigma^2 it is a Schroedinger bridge. The velocity grows without
    bound towards both ends; 1e-8 in its denominator, as in torchcfm, keeps it finite there.
    """

    sigma: float = 1.0

    def mean(self, t: float | Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        t = like_state(t, x1)
        return t * x1 + (1 - t) * x0

    def std(self, t: float | Tensor, x: Tensor) -> Tensor:
        t = like_state(t, x)
        return self.sigma * (t * (1 - t)).sqrt()

    def velocity(self, t: float | Tensor, x: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
        t = like_state(t, x)
        return (1 - 2 * t) / (2 * t * (1 - t) + 1e-8) * (x - self.mean(t, x0, x1)) + x1 - x0


def draw(
    path: Path, t: float | Tensor, x0: Tensor, x1: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Points x_t (B, ...) of the path, the velocity there, and the standard normal noise that was used.

    Example:
        >>> x, u, noise = draw(AffinePath(), torch.tensor([0.0, 1.0]), torch.zeros(2, 1), torch.ones(2, 1))
        >>> x.ravel().tolist(), u.ravel().tolist()
        ([0.0, 1.0], [1.0, 1.0])
    """
    noise = torch.randn(x1.shape, dtype=x1.dtype, device=x1.device, generator=generator)
    x = path.mean(t, x0, x1) + path.std(t, x1) * noise
    return x, path.velocity(t, x, x0, x1), noise


def score_weight(path: Path, t: float | Tensor, x: Tensor, sigma: float) -> Tensor:
    """lambda_t = 2 std / (sigma^2 + 1e-8), the weight of the score loss of [SF]2M (Tong et al., 2024b).

    The score network times this weight is trained towards minus the noise.
    """
    if not math.isfinite(sigma) or sigma < 0:
        raise ValueError(f"sigma = {sigma}: a standard deviation is needed")
    return 2 * path.std(t, x) / (sigma**2 + 1e-8)
