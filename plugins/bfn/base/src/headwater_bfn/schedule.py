"""Accuracy schedules under which the entropy of the belief falls linearly, by quadrature.

For Gaussian data sigma1^(-2t) - 1 is such a schedule in closed form. For others the total accuracies come from solving
H(beta_i) = (1 - i/n) H(0) + (i/n) H(beta_n). Von Mises accuracies do not add up, so a second equation gives the message
accuracies: the mean concentration after message i is beta_i (Wu et al., ICLR 2025, appendix).
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import i0e, i1e
from torch import Tensor

__all__ = ["accuracies_of_linear_entropy", "draw_steps", "von_mises_schedule"]

Floats = NDArray[np.float64]
NODES = 128


def accuracies_of_linear_entropy(entropy: Callable[[Floats], Floats], n: int, end: float) -> Floats:
    """beta_1..beta_n at which a falling ``entropy`` of the accuracy takes n equal steps from 0 down to ``end``.

    Bisection of all n at once, down to the last bit.

    Example:
        >>> gaussian = lambda b: -0.5 * np.log1p(b)
        >>> beta = accuracies_of_linear_entropy(gaussian, 4, 0.1**-2 - 1)
        >>> np.allclose(beta, 0.1 ** (-2 * np.arange(1, 5) / 4) - 1)
        True
    """
    first, last = (float(entropy(np.array([v]))[0]) for v in (0.0, end))
    targets = first + (last - first) * np.arange(1, n) / n
    low, high = np.zeros(n - 1), np.full(n - 1, float(end))
    for _ in range(80):
        middle = 0.5 * (low + high)
        above = entropy(middle) > targets
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.append(0.5 * (low + high), float(end))


def _entropy(k: Floats) -> Floats:
    return np.log(2 * np.pi) + np.log(i0e(k)) + k - k * i1e(k) / i0e(k)


def _mean_concentration(before: Floats, a: Floats) -> tuple[Floats, Floats]:
    """E |before + a e^{iy}| over y ~ vM(0, a), and its derivative by a; both arguments of shape (n,).

    Gauss-Legendre on [0, min(pi, 12/sqrt(a))]. Where a is near ``before`` the integrand has almost a corner at pi, the
    end of the interval, which is where the nodes are dense.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    reach = np.minimum(np.pi, 12 / np.sqrt(a))[:, None]
    y = 0.5 * reach * (nodes + 1)
    cosine = np.cos(y)
    a, b = a[:, None], before[:, None]
    p = weights * np.exp(a * (cosine - 1))
    p /= p.sum(1, keepdims=True)
    length = np.sqrt(np.maximum(a * a + b * b + 2 * a * b * cosine, 1e-300))
    mean = (p * length).sum(1)
    slope = (p * (a + b * cosine) / length).sum(1)
    return mean, slope + (p * length * cosine).sum(1) - mean * (p * cosine).sum(1)


@functools.lru_cache(maxsize=16)
def von_mises_schedule(n: int, beta1: float = 1000.0) -> tuple[Tensor, Tensor]:
    """The accuracies alpha_1..alpha_n of the messages, and the mean concentrations beta_1..beta_n after them.

    Both are double precision tensors of shape (n,). Newton's method for all n at once, kept inside a bracket.

    Example:
        >>> alpha, beta = von_mises_schedule(10, 1000.0)
        >>> [round(v, 5) for v in alpha[:3].tolist()], round(float(alpha[9]), 4)
        ([1.47803, 1.58701, 2.62813], 539.0327)
    """
    beta = accuracies_of_linear_entropy(_entropy, n, beta1)
    before, after = beta[:-1], beta[1:]
    low, high = after - before, np.full(n - 1, beta1)
    a = np.minimum(np.sqrt(np.maximum(after**2 - before**2, low**2)), high)
    for _ in range(100):
        mean, slope = _mean_concentration(before, a) if n > 1 else (after, after)
        too_far = mean > after
        low, high = np.where(too_far, low, a), np.where(too_far, a, high)
        moved = a - (mean - after) / slope
        inside = (moved >= low) & (moved <= high)
        moved = np.where(inside, moved, 0.5 * (low + high))
        done = np.all(np.abs(moved - a) <= 1e-12 * a)
        a = moved
        if done:
            break
    return torch.from_numpy(np.append(beta[:1], a)), torch.from_numpy(beta)


def draw_steps(batch: int, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Step numbers in 1..n, (batch,), each uniform, and spread evenly over the batch so that losses vary less.

    Example:
        >>> sorted(draw_steps(4, 4, torch.Generator().manual_seed(0)).tolist())
        [1, 2, 3, 4]
    """
    u = (torch.arange(batch, dtype=torch.float64) + torch.rand((), dtype=torch.float64, generator=generator)) / batch
    steps = (u * n).long().clamp_max(n - 1) + 1
    return steps[torch.randperm(batch, generator=generator)]
