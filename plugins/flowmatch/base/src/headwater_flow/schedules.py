"""Affine schedules x_t = alpha(t) x1 + sigma(t) x0, from noise x0 at t = 0 to data x1 at t = 1.

What a network predicts (the data, the noise, the velocity or the score) is a matter of choice: under any schedule
each gives the others by a linear map (Lipman et al., *Flow Matching Guide and Code*, 2024, section 4.8).

The maps are singular where alpha or sigma is zero; :func:`clamp` keeps the time away from there.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headwater_flow.shapes import like_state

__all__ = [
    "VP",
    "CondOT",
    "Cosine",
    "LinearVP",
    "Polynomial",
    "Schedule",
    "clamp",
    "data_to_velocity",
    "noise_to_velocity",
    "score_to_velocity",
    "velocity_to_data",
    "velocity_to_noise",
    "velocity_to_score",
]


class Schedule(Protocol):
    """Gives alpha, sigma and their derivatives in t, each of the shape of ``t``."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class CondOT:
    """alpha = t, sigma = 1 - t: straight lines at constant speed.

    Example:
        >>> [float(v) for v in CondOT()(torch.tensor(0.25))]
        [0.25, 0.75, 1.0, -1.0]
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = torch.ones_like(t)
        return t, 1 - t, one, -one


@dataclass(frozen=True)
class Cosine:
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2): variance preserving on a circle."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        angle = 0.5 * math.pi
        sin, cos = torch.sin(angle * t), torch.cos(angle * t)
        return sin, cos, angle * cos, -angle * sin


@dataclass(frozen=True)
class Polynomial:
    """alpha = t^n, sigma = 1 - t^n."""

    n: float = 2.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alpha, slope = t**self.n, self.n * t ** (self.n - 1)
        return alpha, 1 - alpha, slope, -slope


@dataclass(frozen=True)
class VP:
    """The variance-preserving diffusion with beta from ``beta_min`` to ``beta_max``, run from noise to data.

    alpha = exp(-(1 - t)^2 (beta_max - beta_min) / 4 - (1 - t) beta_min / 2), sigma = sqrt(1 - alpha^2). The slope of
    sigma is infinite at t = 1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        left = 1 - t
        log_alpha = -0.25 * left**2 * (self.beta_max - self.beta_min) - 0.5 * left * self.beta_min
        alpha = log_alpha.exp()
        sigma = (-torch.expm1(2 * log_alpha)).sqrt()
        slope = alpha * (0.5 * left * (self.beta_max - self.beta_min) + 0.5 * self.beta_min)
        return alpha, sigma, slope, -alpha * slope / sigma


@dataclass(frozen=True)
class LinearVP:
    """alpha = t, sigma = sqrt(1 - t^2), whose slope is infinite at t = 1."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sigma = (1 - t**2).sqrt()
        return t, sigma, torch.ones_like(t), -t / sigma


def clamp(t: Tensor, margin: float = 1e-5) -> Tensor:
    """Times at least ``margin`` away from 0 and 1."""
    return t.clamp(margin, 1 - margin)


def _coefficients(schedule: Schedule, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return schedule(like_state(t, x))


def data_to_velocity(schedule: Schedule, t: float | Tensor, x: Tensor, x1: Tensor) -> Tensor:
    """u = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) x1, from the predicted data ``x1`` at ``x``, both (B, ...).

    Example:
        >>> x0, x1, t = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([0.1, 0.5, 0.9])
        >>> x = like_state(t, x1) * x1 + like_state(1 - t, x0) * x0
        >>> torch.allclose(data_to_velocity(CondOT(), t, x, x1), x1 - x0, atol=1e-5)
        True
    """
    alpha, sigma, d_alpha, d_sigma = _coefficients(schedule, t, x)
    rate = d_sigma / sigma
    return rate * x + (d_alpha - alpha * rate) * x1


def velocity_to_data(schedule: Schedule, t: float | Tensor, x: Tensor, u: Tensor) -> Tensor:
    """The predicted data; the inverse of :func:`data_to_velocity`."""
    alpha, sigma, d_alpha, d_sigma = _coefficients(schedule, t, x)
    return (sigma * u - d_sigma * x) / (d_alpha * sigma - alpha * d_sigma)


def noise_to_velocity(schedule: Schedule, t: float | Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """u = (alpha'/alpha) x + (sigma' - sigma alpha'/alpha) noise."""
    alpha, sigma, d_alpha, d_sigma = _coefficients(schedule, t, x)
    rate = d_alpha / alpha
    return rate * x + (d_sigma - sigma * rate) * noise


def velocity_to_noise(schedule: Schedule, t: float | Tensor, x: Tensor, u: Tensor) -> Tensor:
    """The predicted noise; the inverse of :func:`noise_to_velocity`."""
    alpha, sigma, d_alpha, d_sigma = _coefficients(schedule, t, x)
    return (alpha * u - d_alpha * x) / (d_sigma * alpha - sigma * d_alpha)


def velocity_to_score(schedule: Schedule, t: float | Tensor, x: Tensor, u: Tensor) -> Tensor:
    """The score grad log p_t(x) = (r u - x) / (sigma^2 - r sigma' sigma) with r = alpha/alpha', for Gaussian noise."""
    alpha, sigma, d_alpha, d_sigma = _coefficients(schedule, t, x)
    ratio = alpha / d_alpha
    return (ratio * u - x) / (sigma**2 - ratio * d_sigma * sigma)


def score_to_velocity(schedule: Schedule, t: float | Tensor, x: Tensor, score: Tensor) -> Tensor:
    """The velocity that has this score; the inverse of :func:`velocity_to_score`."""
    alpha, sigma, d_alpha, d_sigma = _coefficients(schedule, t, x)
    ratio = alpha / d_alpha
    return (x + (sigma**2 - ratio * d_sigma * sigma) * score) / ratio
