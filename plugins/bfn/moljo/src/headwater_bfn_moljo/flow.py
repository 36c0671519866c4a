"""The joint Bayesian flow of a ligand's coordinates and atom types, its losses, and the guided transition.

A belief is (mu, y): mu (N, 3) is the mean of the coordinates, whose precision rho depends on the time alone; y (N, K)
are logits of the types. Coordinates are in the network's units (angstrom / 2, centred on the pocket). Letters in
brackets, (W) and (G), name the two formulas on which both samplers rest: a transition over a window of messages, and
its shift by the gradient of log P. Times run from 0 (prior) to 1 (data); step i of n ends at t = i/n.
"""

import math
from typing import NamedTuple

import torch
from headwater_bfn import continuous, discrete
from torch import Tensor

__all__ = [
    "POSITION_SCALE",
    "Belief",
    "coordinate_loss",
    "coordinate_window",
    "flow",
    "guided",
    "mean_by_molecule",
    "prior",
    "type_loss",
    "type_window",
]

POSITION_SCALE = 2.0
"""Angstrom in one unit of the network."""


class Belief(NamedTuple):
    """What is known of the ligands of a batch: ``mu`` (N, 3) and logits ``y`` (N, K)."""

    mu: Tensor
    y: Tensor

    @property
    def theta(self) -> Tensor:
        """The probabilities of the types, (N, K)."""
        return self.y.softmax(-1)


def prior(atoms: int, types: int, like: Tensor) -> Belief:
    """The belief at t = 0: mu = 0 and equal probabilities."""
    return Belief(like.new_zeros(atoms, 3), like.new_zeros(atoms, types))


def flow(x: Tensor, e: Tensor, t: Tensor, sigma1: float, beta1: float, generator: torch.Generator) -> Belief:
    """A belief drawn at time ``t`` around coordinates ``x`` (N, 3) and types ``e`` (N, K); ``t`` is (N,).

    mu ~ N(gamma x, gamma (1 - gamma) I) and y ~ N(beta (K e - 1), beta K I).
    """
    mu = continuous.flow(x, t.unsqueeze(-1), sigma1, generator)
    return Belief(mu, discrete.flow(e, t, beta1, generator))


def _difference(i: int, j: int, n: int, sigma1: float) -> float:
    """rho_i - rho_j, without the cancellation that two rounded precisions would have."""
    return sigma1 ** (-2.0 * j / n) * math.expm1(-2.0 * math.log(sigma1) * (i - j) / n)


def coordinate_window(mu: Tensor, x: Tensor, j: int, i: int, n: int, sigma1: float) -> tuple[Tensor, float]:
    """Mean and variance of mu_i given mu_j and the estimate ``x``, by messages j+1..i of n (W).

    With rho_i = sigma1^(-2i/n) and dA = rho_i - rho_j: mean (rho_j mu_j + dA x)/rho_i, variance dA/rho_i^2.

    Example:
        >>> mean, variance = coordinate_window(torch.tensor(9.0), torch.tensor(1.0), 0, 5, 5, 0.1)
        >>> round(float(mean), 5), round(variance, 5)  # from the prior rho_0 = 1: gamma x + mu/rho, gamma (1 - gamma)
        (1.08, 0.0099)
    """
    rho_j, rho_i = sigma1 ** (-2.0 * j / n), sigma1 ** (-2.0 * i / n)
    added = _difference(i, j, n, sigma1)
    return (rho_j / rho_i) * mu + (added / rho_i) * x, added / rho_i**2


def type_window(y: Tensor, e: Tensor, j: int, i: int, n: int, beta1: float) -> tuple[Tensor, float]:
    """Mean and variance of y_i given y_j and the estimate ``e`` (N, K), by messages j+1..i of n (W).

    With dB = beta1 (i^2 - j^2)/n^2: mean y_j + dB (K e - 1), variance dB K. ``e`` may be any real vector.
    """
    k = e.shape[-1]
    added = beta1 * (i * i - j * j) / (n * n)
    return y + added * (k * e - 1), added * k


def guided(mean: Tensor, variance: float, gradient: Tensor, weight: float) -> Tensor:
    """The mean of a Gaussian N(mean, variance I) times exp(weight * log P), log P being linear (G).

    The product of the two is the same Gaussian about mean + weight * variance * grad log P.
    """
    return mean + (weight * variance) * gradient


def mean_by_molecule(values: Tensor, owner: Tensor, molecules: int) -> Tensor:
    """The mean of ``values`` (N,) over the atoms of each molecule, (molecules,)."""
    total = values.new_zeros(molecules).index_add(0, owner, values)
    count = values.new_zeros(molecules).index_add(0, owner, torch.ones_like(values))
    return total / count


def coordinate_loss(x: Tensor, estimate: Tensor, t: Tensor, sigma1: float, steps: int | None) -> Tensor:
    """The loss of each atom's coordinates, (N,), summed over xyz.

    With ``steps`` N the N-step loss at message i = floor(N t) + 1, w_i |x_hat - x|^2 with
    w_i = N (1 - sigma1^(2/N)) / (2 sigma1^(2i/N)); without it the limit -ln(sigma1) sigma1^(-2t) |x_hat - x|^2.
    """
    column = t.unsqueeze(-1)
    if steps is None:
        return continuous.loss_continuous(x, estimate, column, sigma1).sum(-1)
    return continuous.loss_discrete(x, estimate, (steps * column).floor() + 1, steps, sigma1).sum(-1)


def type_loss(
    e: Tensor,
    logits: Tensor,
    t: Tensor,
    beta1: float,
    steps: int | None,
    generator: torch.Generator | None = None,
    draws: int = 200,
) -> Tensor:
    """The loss of each atom's type, (N,).

    With ``steps`` N the N-step loss by ``draws`` messages, at i = floor(N t) + 1; without it the limit
    K beta1 t |e - e_hat|^2.
    """
    if steps is None:
        return discrete.loss_continuous(e, logits.softmax(-1), t, beta1)
    return discrete.loss_discrete(e, logits, (steps * t).floor() + 1, steps, beta1, generator, draws)
