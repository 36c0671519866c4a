"""The mathematics of meta flow matching: features, losses, and the trivial predictions beside it."""

import math

import torch
from headwater_flow.losses import velocity_loss
from torch import Tensor

__all__ = [
    "f_loss",
    "flow_loss",
    "g_loss",
    "ideal_shift",
    "interpolate",
    "mean_shift",
    "space_features",
    "time_features",
]


def time_features(t: Tensor, size: int) -> Tensor:
    """[sin(t f), cos(t f)] of ``t`` (...), (..., size), with f_j = exp(-j ln(10000) / (size/2 - 1)).

    Example:
        >>> time_features(torch.tensor(0.0), 4)
        tensor([0., 0., 1., 1.])
    """
    half = size // 2
    steps = torch.arange(half, dtype=t.dtype, device=t.device)
    angles = t.unsqueeze(-1) * torch.exp(-math.log(10_000) / (half - 1) * steps)
    return torch.cat([angles.sin(), angles.cos()], -1)


def space_features(x: Tensor, frequencies: Tensor) -> Tensor:
    """[cos(2 pi x B), sin(2 pi x B)] of ``x`` (..., D) with B (D, F): (..., 2F)."""
    angles = (2 * math.pi * x) @ frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def interpolate(t: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t x1, with a time (P, n) for each point (P, n, D)."""
    return torch.lerp(x0, x1, t.unsqueeze(-1))


def flow_loss(velocity: Tensor, x0: Tensor, x1: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over points of |velocity - (x1 - x0)|^2, all (P, n, D), summed over the D coordinates.

    The published code leaves the constant mean |x1 - x0|^2 out, so that its loss is negative; gradients are the same.

    Example:
        >>> x0, x1 = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
        >>> float(flow_loss(x0, x0, x1))
        3.0
    """
    loss = velocity_loss(velocity, x1 - x0, mask=None if mask is None else mask.unsqueeze(-1))
    return loss * velocity.shape[-1]


def g_loss(f_of_moved: Tensor, x0: Tensor, moved: Tensor, penalty: Tensor) -> Tensor:
    """CellOT's loss of g: mean f(grad g(x0)) - <x0, grad g(x0)>, and the penalty. f is (N,), the rest (N, D)."""
    return (f_of_moved - (x0 * moved).sum(1)).mean() + penalty


def f_loss(f_of_moved: Tensor, f_of_target: Tensor) -> Tensor:
    """CellOT's loss of f: mean f(x1) - f(grad g(x0)), each (N,)."""
    return f_of_target.mean() - f_of_moved.mean()


def mean_shift(x0: Tensor, training_targets: Tensor) -> Tensor:
    """The population (n, D) moved so that its mean is that of all training targets (N, D)."""
    return x0 - x0.mean(0) + training_targets.mean(0)


def ideal_shift(x0: Tensor, x1: Tensor) -> Tensor:
    """The population (n, D) moved so that its mean is that of its own target (m, D), which a prediction cannot know."""
    return x0 - x0.mean(0) + x1.mean(0)
