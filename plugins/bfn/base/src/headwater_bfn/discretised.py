"""Discretised data: the Gaussian flow with an output distribution over K bins on [-1, 1].

The network gives a Gaussian N(mean, deviation^2) on the data; its mass in each bin is the output distribution (Graves
et al. 2023, section 5). Bins are a last dimension of size K, in ascending order.
"""

import math

import torch
from torch import Tensor

from headwater_bfn import continuous

__all__ = [
    "bin_of",
    "bin_probabilities",
    "centres",
    "expected",
    "log_probability",
    "loss_continuous",
    "loss_discrete",
    "output_gaussian",
    "reconstruction",
]

SMALL = 1e-5
"""Probability below which a log-probability is taken from the density."""


def centres(k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The centres (2j - 1)/K - 1 of the bins j = 1..K.

    Example:
        >>> centres(4).tolist()
        [-0.75, -0.25, 0.25, 0.75]
    """
    return ((2 * torch.arange(1, k + 1, dtype=torch.float64) - 1) / k - 1).to(dtype)


def bin_of(x: Tensor, k: int) -> Tensor:
    """Which of the K bins, counted from 0, each value is in; values outside belong to the outermost ones."""
    return ((x + 1) * (k / 2)).floor().long().clamp(0, k - 1)


def output_gaussian(
    mean: Tensor, noise: Tensor, log_deviation: Tensor, t: continuous.Number, sigma1: float, t_min: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the data from the network's two outputs for the noise (Graves et al., 5.3).

    The standard normal before ``t_min``; the deviation stays within [1e-3, 10].
    """
    t = torch.as_tensor(t, dtype=mean.dtype, device=mean.device)
    g, rest = continuous.gamma(t.clamp_min(t_min), sigma1), continuous.remaining(t, sigma1)
    x = continuous.data_from_noise(mean, noise, t, sigma1, bound=None, t_min=t_min)
    deviation = (rest / g) ** 0.5 * log_deviation.clamp(-10, 10).exp()
    return x, torch.where(t < t_min, torch.ones_like(deviation), deviation.clamp(1e-3, 10))


def _cdf(edge: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf((edge - mean) / (deviation * math.sqrt(2))))


def bin_probabilities(mean: Tensor, deviation: Tensor, k: int, renormalise: bool = False) -> Tensor:
    """The mass of N(mean, deviation^2) in each bin, of shape (..., K).

    What lies outside [-1, 1] belongs to the outermost bins, or, with ``renormalise``, is cut off.

    Example:
        >>> p = bin_probabilities(torch.tensor(0.1), torch.tensor(0.3), 16)
        >>> round(float(p.sum()), 6), int(p.argmax())
        (1.0, 8)
    """
    edges = torch.linspace(-1, 1, k + 1, dtype=mean.dtype, device=mean.device)
    cdf = _cdf(edges, mean.unsqueeze(-1), deviation.unsqueeze(-1))
    if renormalise:
        p = cdf.diff(dim=-1)
        return p / p.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    inner = cdf[..., 1:-1]
    return torch.cat([torch.zeros_like(inner[..., :1]), inner, torch.ones_like(inner[..., :1])], -1).diff(dim=-1)


def expected(probabilities: Tensor) -> Tensor:
    """The mean of a distribution over bins: sum_j p(j) k_j."""
    return probabilities @ centres(probabilities.shape[-1], probabilities.dtype).to(probabilities.device)


def log_probability(x: Tensor, mean: Tensor, deviation: Tensor, k: int) -> Tensor:
    """Log of the mass of N(mean, deviation^2) in the bin of ``x``; outermost bins reach to infinity.

    Where the mass is below 1e-5, the density at the bin's centre times its width stands for it.
    """
    j = bin_of(x, k)
    left, right = (edge.to(mean.dtype) for edge in (2 * j / k - 1, 2 * (j + 1) / k - 1))
    low = torch.where(j == 0, torch.zeros_like(mean), _cdf(left, mean, deviation))
    high = torch.where(j == k - 1, torch.ones_like(mean), _cdf(right, mean, deviation))
    mass = high - low
    centre = (left + right) / 2
    density = -0.5 * ((centre - mean) / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(mass > SMALL, mass.clamp_min(SMALL).log(), density + math.log(2 / k))


def loss_continuous(x: Tensor, probabilities: Tensor, t: continuous.Number, sigma1: float) -> Tensor:
    """The continuous-time loss of the distribution's mean, element by element."""
    return continuous.loss_continuous(x, expected(probabilities), t, sigma1)


def loss_discrete(
    x: Tensor,
    probabilities: Tensor,
    i: continuous.Number,
    n: int,
    sigma1: float,
    generator: torch.Generator | None = None,
    draws: int = 10,
) -> Tensor:
    """The n-step loss, element by element: n KL(sender || receiver) by ``draws`` messages.

    The receiver is the mixture of senders of all bin centres with the weights p; a sample of the divergence is
    log N(y; x, 1/alpha_i) - log sum_j p_j N(y; k_j, 1/alpha_i) with y ~ N(x, 1/alpha_i).
    """
    accuracy = torch.as_tensor(continuous.step_alpha(i, n, sigma1), dtype=x.dtype, device=x.device)
    y = continuous.sender(x.expand(draws, *x.shape), accuracy, generator)
    k = centres(probabilities.shape[-1], x.dtype).to(x.device)
    terms = probabilities.log() - 0.5 * accuracy.unsqueeze(-1) * (y.unsqueeze(-1) - k).square()
    return n * (-0.5 * accuracy * (y - x).square() - terms.logsumexp(-1)).mean(0)


def reconstruction(x: Tensor, estimate: Tensor, sigma1: float, k: int) -> Tensor:
    """-log p of the data's bins when the output is one number, element by element: N(xhat, sigma1^2) in ``k`` bins."""
    return -log_probability(x, estimate, torch.full_like(estimate, sigma1), k)
