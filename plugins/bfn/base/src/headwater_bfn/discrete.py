"""Discrete data: the categorical Bayesian flow.

The belief on one of K classes is kept as logits z, known up to a constant: it starts at 0, a message y adds to it, and
its probabilities are softmax(z). Products of probabilities with exp(y) overflow; sums of logits do not. Numbers in
brackets are equations of Graves et al. (2023), section 6. Classes are the last dimension.
"""

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "alpha",
    "beta",
    "entropy_linear_beta",
    "flow",
    "log_sender",
    "loss_continuous",
    "loss_discrete",
    "network_input",
    "reconstruction",
    "sender",
    "step_alpha",
    "update",
]

Number = float | Tensor


def beta(t: Number, beta1: float) -> Number:
    """Total accuracy of the messages up to t: beta1 t^2 (182)."""
    return beta1 * t * t


def alpha(t: Number, beta1: float) -> Number:
    """Accuracy rate, the derivative of beta: 2 beta1 t (183)."""
    return 2.0 * beta1 * t


def step_alpha(i: Number, n: int, beta1: float) -> Number:
    """Accuracy of message i of n: beta1 (2i - 1)/n^2 (190).

    Example:
        >>> round(sum(step_alpha(i, 7, 3.0) for i in range(1, 8)), 12)
        3.0
    """
    return beta1 * (2 * i - 1) / (n * n)


def entropy_linear_beta(t: Number, beta1: float, k: int) -> Number:
    """The accuracy of ChemBFN (Tao and Abe 2024), under which the belief's entropy falls about linearly."""
    scale = (k - 1) / 4
    inner = 1.0 - t + t * math.exp(-scale * beta1)
    return -(inner.log() if isinstance(inner, Tensor) else math.log(inner)) / scale


def _column(accuracy: Number, like: Tensor) -> Tensor:
    """An accuracy for each variable, with a last dimension for the classes."""
    a = torch.as_tensor(accuracy, dtype=like.dtype, device=like.device)
    return a.unsqueeze(-1) if a.ndim else a


def _message(target: Tensor, accuracy: Number, noise: Tensor) -> Tensor:
    a, k = _column(accuracy, target), target.shape[-1]
    return a * (k * target - 1) + (a * k).sqrt() * noise


def sender(target: Tensor, accuracy: Number, generator: torch.Generator | None = None) -> Tensor:
    """A message y ~ N(a (K e - 1), a K I) (157).

    Args:
        target: (..., K), one-hot classes, or probabilities, whose message is that of the expected class.
        accuracy: a, for each variable.
        generator: source of the noise.
    """
    noise = torch.randn(target.shape, dtype=target.dtype, device=target.device, generator=generator)
    return _message(target, accuracy, noise)


def update(logits: Tensor, y: Tensor) -> Tensor:
    """The belief after the message y: softmax(z + y) is softmax(z) exp(y), normalised (171).

    Example:
        >>> update(torch.zeros(2), torch.tensor([0.0, math.log(3.0)])).softmax(-1).round(decimals=5).tolist()
        [0.25, 0.75]
    """
    return logits + y


def flow(target: Tensor, t: Number, beta1: float, generator: torch.Generator | None = None) -> Tensor:
    """The logits of the belief at time t, one message of accuracy beta(t) (185)."""
    return sender(target, beta(t, beta1), generator)


def network_input(logits: Tensor) -> Tensor:
    """What the network reads: 2 theta - 1; for two classes the one number 2 theta_1 - 1 of the first class."""
    theta = 2 * logits.softmax(-1) - 1
    return theta[..., :1] if logits.shape[-1] == 2 else theta


def loss_continuous(target: Tensor, probabilities: Tensor, t: Number, beta1: float) -> Tensor:
    """K beta1 t |e - p|^2, for each variable (205)."""
    k = target.shape[-1]
    return k * beta1 * t * (target - probabilities).square().sum(-1)


def log_sender(y: Tensor, accuracy: Number, target: Tensor) -> Tensor:
    """log N(y; a (K e - 1), a K I) for each variable."""
    a, k = _column(accuracy, y), y.shape[-1]
    squares = (y - a * (k * target - 1)).square() / (a * k)
    return -0.5 * (squares + (2 * math.pi * a * k).log()).sum(-1)


def loss_discrete(
    target: Tensor,
    logits: Tensor,
    i: Number,
    n: int,
    beta1: float,
    generator: torch.Generator | None = None,
    draws: int = 10,
    receiver: Literal["joint", "marginal"] = "joint",
) -> Tensor:
    """The n-step loss for each variable: n KL(sender || receiver), by ``draws`` messages (189).

    ``joint`` is the paper's receiver, a mixture of K Gaussians in K dimensions. All of them share the terms that are
    quadratic in y, so a sample of the divergence is y_x - logsumexp_k(log p_k + y_k), and no K x K table is needed.
    ``marginal`` is what the authors' image and text code computes: each coordinate of y is mixed on its own.

    Args:
        target: (..., K), one-hot.
        logits: (..., K), the network's output.
        i: the message's number, for each variable.
        n: how many messages there are.
        beta1: accuracy at t = 1.
        generator: source of the messages.
        draws: how many messages are averaged.
        receiver: which mixture.
    """
    accuracy, k = step_alpha(i, n, beta1), target.shape[-1]
    y = sender(target.expand(draws, *target.shape), accuracy, generator)
    log_p = logits.log_softmax(-1)
    if receiver == "joint":
        return n * ((target * y).sum(-1) - (log_p + y).logsumexp(-1)).mean(0)
    a = _column(accuracy, y)
    norm = -0.5 * (2 * math.pi * a * k).log()

    def log_normal(centre: Tensor) -> Tensor:
        return norm - 0.5 * (y - centre).square() / (a * k)

    other = torch.log1p(-log_p.exp().clamp_max(1 - torch.finfo(y.dtype).eps))
    mixture = torch.logaddexp(log_p + log_normal(a * (k - 1)), other + log_normal(-a))
    return n * (log_normal(a * (k * target - 1)) - mixture).sum(-1).mean(0)


def reconstruction(target: Tensor, logits: Tensor) -> Tensor:
    """-log p of the true class, for each variable."""
    return -(target * logits.log_softmax(-1)).sum(-1)
