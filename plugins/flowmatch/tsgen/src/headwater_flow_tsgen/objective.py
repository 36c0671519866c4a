"""The losses of both generations, on velocities (B, N, 3): v of the network, u of the path.

All are means over the atoms of a molecule, then over the molecules. ``mask`` (B, N) is true at atoms.
"""

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = ["LOSSES", "divergence", "flow_loss", "mean_over_atoms", "variance_loss"]

LOSSES = ("l1", "l2", "symm", "alpha", "reverse", "forward")

Kind = Literal["l1", "l2", "symm", "alpha", "reverse", "forward"]


def mean_over_atoms(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean (B,) of ``values`` (B, N) or (B, N, 3) over the atoms."""
    each = values if values.ndim == 2 else values.mean(-1)
    if mask is None:
        return each.mean(-1)
    return torch.where(mask, each, 0.0).sum(-1) / mask.sum(-1)


def flow_loss(v: Tensor, u: Tensor, t: Tensor, kind: Kind = "l1", mask: Tensor | None = None) -> Tensor:
    """How far ``v`` is from ``u``, one number a molecule (B,).

    - ``l1``: |v - u|
    - ``l2``: v^2 / 2 - u v, half the squared error less u^2 / 2 (v1; below zero when trained)
    - ``symm``: see :func:`divergence`
    - ``alpha``: 0.1 D_alpha + |v - u|, D_alpha = (1 - sum_xyz p^0.3 q^0.7) / (0.3 (0.3 - 1))
    - ``reverse``: 0.3 q log(q / p) + |v - u|
    - ``forward``: p log(p / q) + |v - u|

    where p = exp(-(t u)^2 / 2) and q = exp(-(t v)^2 / 2), component by component.
    """
    if kind == "l2":
        return mean_over_atoms(0.5 * v.square() - u * v, mask)
    if kind == "symm":
        return divergence(v, u, t, mask)
    error = (v - u).abs()
    if kind == "l1":
        return mean_over_atoms(error, mask)
    log_p, log_q = _logs(v, u, t)
    if kind == "alpha":
        a = 0.3
        apart = (1.0 - (a * log_p + (1 - a) * log_q).exp().sum(-1)) / (a * (a - 1))
        return 0.1 * mean_over_atoms(apart, mask) + mean_over_atoms(error, mask)
    if kind == "reverse":
        return mean_over_atoms(0.3 * log_q.exp() * (log_q - log_p) + error, mask)
    return mean_over_atoms(log_p.exp() * (log_p - log_q) + error, mask)


def _logs(v: Tensor, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    t = t.reshape(-1, 1, 1)
    return -0.5 * (t * u).square(), -0.5 * (t * v).square()


def divergence(v: Tensor, u: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
    """``symm`` of v3 (B,): half of sum_xyz p log(p / m) + q log(q / m) with m = (p + q) / 2, a mean over atoms.

    p and q as in :func:`flow_loss`: the form of a Jensen-Shannon divergence, of Gaussians that are not normalised.
    """
    log_p, log_q = _logs(v, u, t)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    both = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return mean_over_atoms(0.5 * both.sum(-1), mask)


def variance_loss(v: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - cos(v_i, v_j), the mean over the pairs of S velocities (S, B, N, 3) of one structure under S noises (B,).

    The sum of the cosines of all pairs is (|sum_i e_i|^2 - sum_i |e_i|^2) / 2 with e_i = v_i / |v_i|, so no pair is
    gone through.
    """
    s = len(v)
    unit = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp(min=1e-8)
    cosines = 0.5 * (unit.sum(0).square().sum(-1) - unit.square().sum((0, -1)))
    return mean_over_atoms(1.0 - cosines / (s * (s - 1) / 2), mask)
