"""Continuous data: the Gaussian Bayesian flow.

The belief on x is Gaussian with mean mu and precision rho. It starts at mu = 0, rho = 1; a message y ~ N(x, 1/alpha)
adds alpha to rho. sigma1 is the standard deviation that is left at t = 1. Numbers in brackets are equations of Graves
et al. (2023), section 4.

Every t is in [0, 1], every i in 1..n; both are numbers or tensors that broadcast against the data.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "alpha",
    "beta",
    "data_from_noise",
    "flow",
    "gamma",
    "loss_continuous",
    "loss_discrete",
    "noise_from_data",
    "remaining",
    "sender",
    "step_alpha",
    "update",
]

Number = float | Tensor


def beta(t: Number, sigma1: float) -> Number:
    """Total accuracy of the messages up to t: sigma1^(-2t) - 1 (72)."""
    return sigma1 ** (-2.0 * t) - 1.0


def alpha(t: Number, sigma1: float) -> Number:
    """Accuracy rate, the derivative of beta: -2 ln(sigma1) sigma1^(-2t) (74)."""
    return -2.0 * math.log(sigma1) * sigma1 ** (-2.0 * t)


def remaining(t: Number, sigma1: float) -> Number:
    """1 - gamma = sigma1^(2t), the variance of the belief.

    It is computed as such: 1 minus a rounded gamma is wrong by a per cent at sigma1 = 1e-3 in single precision.
    """
    return sigma1 ** (2.0 * t)


def gamma(t: Number, sigma1: float) -> Number:
    """beta / (1 + beta) = 1 - sigma1^(2t), the share of x in the mean of the flow (80)."""
    exponent = 2.0 * math.log(sigma1) * t
    return -torch.expm1(exponent) if isinstance(exponent, Tensor) else -math.expm1(exponent)


def step_alpha(i: Number, n: int, sigma1: float) -> Number:
    """Accuracy of message i of n: sigma1^(-2i/n) (1 - sigma1^(2/n)) (95). The first k add up to beta(k/n).

    Example:
        >>> total = sum(step_alpha(i, 10, 0.03) for i in range(1, 11))
        >>> abs(total / beta(1.0, 0.03) - 1) < 1e-12
        True
    """
    return sigma1 ** (-2.0 * i / n) * -math.expm1(2.0 * math.log(sigma1) / n)


def sender(x: Tensor, accuracy: Number, generator: torch.Generator | None = None) -> Tensor:
    """A message y ~ N(x, 1/accuracy) (87)."""
    noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return x + noise * torch.as_tensor(accuracy, dtype=x.dtype, device=x.device).rsqrt()


def update(mean: Tensor, precision: Number, y: Tensor, accuracy: Number) -> tuple[Tensor, Number]:
    """The belief after the message y (49, 50).

    Example:
        >>> mean, precision = update(torch.tensor(0.0), 1.0, torch.tensor(2.0), 3.0)
        >>> float(mean), precision
        (1.5, 4.0)
    """
    total = precision + accuracy
    return (precision * mean + accuracy * y) / total, total


def flow(x: Tensor, t: Number, sigma1: float, generator: torch.Generator | None = None) -> Tensor:
    """The mean of the belief at time t: mu ~ N(gamma x, gamma (1 - gamma)) (77)."""
    g, rest = (torch.as_tensor(f(t, sigma1), dtype=x.dtype, device=x.device) for f in (gamma, remaining))
    noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    return g * x + (g * rest).sqrt() * noise


def data_from_noise(
    mean: Tensor, noise: Tensor, t: Number, sigma1: float, bound: float | None = 1.0, t_min: float = 1e-6
) -> Tensor:
    """The data that the network's noise stands for: mu/gamma - sqrt((1-gamma)/gamma) noise (84), within +-``bound``.

    Before ``t_min`` nothing is known and it is 0. ``bound=None`` does not clip.
    """
    t = torch.as_tensor(t, dtype=mean.dtype, device=mean.device)
    g, rest = gamma(t.clamp_min(t_min), sigma1), remaining(t, sigma1)
    x = mean / g - (rest / g) ** 0.5 * noise
    x = torch.where(t < t_min, torch.zeros_like(x), x)
    return x if bound is None else x.clamp(-bound, bound)


def noise_from_data(mean: Tensor, x: Tensor, t: Number, sigma1: float) -> Tensor:
    """The noise with which ``x`` gives the mean ``mean`` at time t > 0: the inverse of :func:`data_from_noise`."""
    g, rest = gamma(t, sigma1), remaining(t, sigma1)
    return (mean - g * x) / (g * rest) ** 0.5


def loss_continuous(x: Tensor, estimate: Tensor, t: Number, sigma1: float) -> Tensor:
    """-ln(sigma1) sigma1^(-2t) (x - xhat)^2, element by element (101); its sum is the loss in nats."""
    return -math.log(sigma1) * sigma1 ** (-2.0 * t) * (x - estimate).square()


def loss_discrete(x: Tensor, estimate: Tensor, i: Number, n: int, sigma1: float) -> Tensor:
    """n alpha_i (x - xhat)^2 / 2, element by element: the n-step loss with message i drawn uniformly (97)."""
    return 0.5 * n * step_alpha(i, n, sigma1) * (x - estimate).square()
