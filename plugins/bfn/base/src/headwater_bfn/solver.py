"""BFN-Solver: sampling as the solution of a differential equation (Xue et al., ICML 2024).

The mean of a Gaussian belief is a diffusion with signal a = gamma and noise s = sqrt(gamma (1 - gamma)); the logits of
a categorical one follow a linear equation in z. Both have a stochastic and an ordinary form. Exponential integrators of
order 1 and 2 solve them in 10 to 50 network calls, where the ancestral chain, a first-order rule, needs hundreds.

Times are those of the flow: 0 knows nothing, 1 is the data. A grid starts at a small eta, never at 0, where the
coefficients are singular.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from headwater import UsageError
from torch import Tensor

from headwater_bfn import continuous, discrete

__all__ = [
    "ContinuousMethod",
    "DiscreteMethod",
    "continuous_step",
    "discrete_step",
    "grid",
    "solve_continuous",
    "solve_discrete",
]

ContinuousMethod = Literal["ode1", "ode2", "sde1", "sde2", "sde-euler"]
DiscreteMethod = Literal["ode-euler", "ode1", "ode2", "ode2-single", "sde1", "sde2"]


def grid(n: int, eta: float = 1e-3) -> list[float]:
    """n + 1 equally spaced times from eta to 1.

    Example:
        >>> grid(3, 0.1)
        [0.1, 0.4, 0.7, 1.0]
    """
    return [eta + (1 - eta) * k / n for k in range(n)] + [1.0]


def _log_signal_to_noise(t: float, sigma1: float) -> float:
    """lambda = log a - log s = (log gamma - log(1 - gamma))/2."""
    return 0.5 * (math.log(continuous.gamma(t, sigma1)) - 2 * t * math.log(sigma1))


def _signal_and_noise(t: float, sigma1: float) -> tuple[float, float]:
    a, rest = float(continuous.gamma(t, sigma1)), float(continuous.remaining(t, sigma1))
    return a, math.sqrt(a * rest)


def _none_needed(method: str, like: Tensor) -> Tensor:
    """What stands for the noise of a rule that has none.

    Raises:
        UsageError: the rule is stochastic.
    """
    if method.startswith("sde"):
        raise UsageError(f"the rule {method} is stochastic: give it noise")
    return torch.zeros_like(like)


def continuous_step(
    x: Tensor,
    estimate: Tensor,
    t1: float,
    t2: float,
    sigma1: float,
    method: ContinuousMethod,
    before: tuple[Tensor, float] | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """The mean of the belief at t2 from that at t1.

    Args:
        x: the mean at t1.
        estimate: the network's estimate of the data from it, already clipped.
        t1: time of x.
        t2: time of the result.
        sigma1: standard deviation that is left at t = 1.
        method: the rule; ``2`` extrapolates the estimate from the one before.
        before: the estimate before and its time, for rules of order 2; none at the first step, which is of order 1.
        noise: standard normal, for the stochastic rules.
    """
    if noise is None:
        noise = _none_needed(method, x)
    (a1, s1), (a2, s2) = _signal_and_noise(t1, sigma1), _signal_and_noise(t2, sigma1)
    lam1 = _log_signal_to_noise(t1, sigma1)
    h = _log_signal_to_noise(t2, sigma1) - lam1
    eps = (x - a1 * estimate) / s1
    if method == "ode1":
        return (a2 / a1) * x - s2 * math.expm1(h) * eps
    if method == "sde-euler":
        g, rest = float(continuous.gamma(t1, sigma1)), float(continuous.remaining(t1, sigma1))
        f, g2, dt = 2 * math.log(sigma1) * rest / g, -2 * math.log(sigma1) * rest, t2 - t1
        return x - (f * x + g2 * eps / s1) * dt + math.sqrt(g2 * dt) * noise
    slope = torch.zeros_like(estimate)
    if before is not None and method.endswith("2"):
        r = (lam1 - _log_signal_to_noise(before[1], sigma1)) / h
        slope = (estimate - before[0]) / (2 * r)
    if method == "ode2":
        return (s2 / s1) * x - a2 * math.expm1(-h) * (estimate + slope)
    gain = -math.expm1(-2 * h)
    return (s2 / s1) * math.exp(-h) * x + a2 * gain * (estimate + slope) + s2 * math.sqrt(gain) * noise


def solve_continuous(
    denoise: Callable[[Tensor, float], Tensor],
    like: Tensor,
    times: list[float],
    sigma1: float,
    method: ContinuousMethod = "ode2",
    generator: torch.Generator | None = None,
    bound: float | None = 1.0,
    last_drop: bool = True,
    start: Tensor | None = None,
) -> Tensor:
    """Sample continuous or discretised data along ``times``.

    Args:
        denoise: the network's estimate of the data from the mean of the belief at a time. One that predicts noise is
            wrapped in :func:`headwater_bfn.continuous.data_from_noise`.
        like: a tensor of the shape, type and device of the data.
        times: from :func:`grid`.
        sigma1: standard deviation that is left at t = 1.
        method: the rule.
        generator: source of all randomness.
        bound: estimates are clipped to +-bound; ``None`` does not clip.
        last_drop: return the last estimate in the place of the last update.
        start: the mean at the first time; N(0, gamma (1 - gamma)) without.

    Example:
        >>> zero = lambda x, t: torch.zeros_like(x)
        >>> float(solve_continuous(zero, torch.zeros(1), grid(4), 0.03, "ode2"))
        0.0
    """

    def draw() -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)

    x = _signal_and_noise(times[0], sigma1)[1] * draw() if start is None else start
    before = None
    for k, (t1, t2) in enumerate(pairwise(times)):
        estimate = denoise(x, t1)
        if bound is not None:
            estimate = estimate.clamp(-bound, bound)
        if last_drop and k == len(times) - 2:
            return estimate
        noise = draw() if method.startswith("sde") else None
        x = continuous_step(x, estimate, t1, t2, sigma1, method, before, noise)
        before = estimate, t1
    return x


def discrete_step(
    z: Tensor,
    p: Tensor,
    t1: float,
    t2: float,
    beta1: float,
    method: DiscreteMethod,
    slope: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """The logits at t2 from those at t1.

    Args:
        z: (..., K), logits at t1.
        p: (..., K), the network's probabilities at t1, or the one-hot of a class drawn from them.
        t1: time of z.
        t2: time of the result.
        beta1: accuracy at t = 1.
        method: the rule.
        slope: the derivative of p by t, for rules of order 2; without it they are of order 1.
        noise: standard normal, for the stochastic rules.
    """
    if noise is None:
        noise = _none_needed(method, z)
    k, dt = z.shape[-1], t2 - t1
    centred = k * p - 1
    if method == "ode-euler":
        return z + dt * (z / t1 + beta1 * t1 * centred)
    if method.startswith("ode"):
        z = (t2 / t1) * z + beta1 * t2 * dt * centred
        return z if slope is None or method == "ode1" else z + k * beta1 * t2 * dt * dt / 2 * slope
    z = z + beta1 * (t2 * t2 - t1 * t1) * centred
    if slope is not None and method == "sde2":
        z = z + k * beta1 * dt * dt * (t1 + 2 * t2) / 3 * slope
    return z + math.sqrt(k * beta1 * (t2 * t2 - t1 * t1)) * noise


def solve_discrete(
    predict: Callable[[Tensor, float], Tensor],
    like: Tensor,
    times: list[float],
    beta1: float,
    method: DiscreteMethod = "ode2",
    generator: torch.Generator | None = None,
    last_drop: bool = True,
    start: Tensor | None = None,
) -> Tensor:
    """Sample classes along ``times``; the result is probabilities (``last_drop``) or the softmax of the last logits.

    Args:
        predict: the network's probabilities from the logits of the belief at a time.
        like: (..., K), a tensor of the shape, type and device of the logits.
        times: from :func:`grid`.
        beta1: accuracy at t = 1.
        method: the rule; ``ode2-single`` calls the network twice a step and remembers nothing.
        generator: source of all randomness.
        last_drop: return the last probabilities in the place of the last update.
        start: logits at the first time; N(0, K beta) without.
    """
    k = like.shape[-1]

    def draw() -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)

    z = math.sqrt(k * discrete.beta(times[0], beta1)) * draw() if start is None else start
    before: tuple[Tensor, float] | None = None
    for step, (t1, t2) in enumerate(pairwise(times)):
        p = predict(z, t1)
        if last_drop and step == len(times) - 2:
            return p
        slope = None
        if method == "ode2-single":
            middle = 0.5 * (t1 + t2)
            slope = (predict(discrete_step(z, p, t1, middle, beta1, "ode1"), middle) - p) / (middle - t1)
        elif before is not None:
            slope = (p - before[0]) / (t1 - before[1])
        noise = draw() if method.startswith("sde") else None
        z = discrete_step(z, p, t1, t2, beta1, method, slope, noise)
        before = p, t1
    return z.softmax(-1)
