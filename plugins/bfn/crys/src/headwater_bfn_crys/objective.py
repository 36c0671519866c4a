"""The losses of CrysBFN, as pure functions.

All are n times the expected loss of one message, whose number i was drawn uniformly from 1..n; what is predicted was
predicted before message i (Wu et al., ICLR 2025, section 4; Graves et al. 2023).
"""

import math
from typing import Literal

import torch
from headwater_bfn import continuous, discrete, vonmises
from torch import Tensor

__all__ = ["coordinate_loss", "interval_loss", "interval_sigma1", "lattice_loss", "mean_weight", "type_loss"]


def lattice_loss(lattice: Tensor, estimate: Tensor, i: Tensor, n: int, sigma1: float) -> Tensor:
    """Mean over crystals and the 9 entries of n alpha_i (L - Lhat)^2 / 2.

    Args:
        lattice: (B, 3, 3), standardised.
        estimate: (B, 3, 3).
        i: (B,), numbers of the messages.
        n: how many messages there are.
        sigma1: deviation that is left after all.
    """
    return continuous.loss_discrete(lattice, estimate, i.view(-1, 1, 1), n, sigma1).mean()


def coordinate_loss(
    angles: Tensor,
    estimate: Tensor,
    alpha: Tensor,
    n: int,
    distance: Literal["wrapped-square", "cosine"] = "wrapped-square",
) -> Tensor:
    """Mean over atoms and axes of n alpha_i A(alpha_i) d(x, xhat).

    With d = 1 - cos(x - xhat) this is n times the divergence of sender and receiver. The official code takes the
    square of the wrapped difference, about twice as much near 0.

    Args:
        angles: (V, 3), in radians.
        estimate: (V, 3).
        alpha: (V,) or (V, 1), accuracies of the atoms' messages, double precision.
        n: how many messages there are.
        distance: which d.
    """
    accuracy = alpha.view(-1, 1)
    if distance == "cosine":
        return vonmises.loss_discrete(angles, estimate, accuracy, n).mean()
    weight = (n * accuracy * vonmises.mean_resultant(accuracy)).to(angles.dtype)
    return (weight * vonmises.wrap(angles - estimate).square()).mean()


def interval_sigma1(beta1: float) -> float:
    """The deviation of x/pi that is left when the accuracy of the angle x is beta1."""
    return 1 / math.sqrt(1 + math.pi**2 * beta1)


def interval_loss(angles: Tensor, estimate: Tensor, i: Tensor, n: int, beta1: float) -> Tensor:
    """Mean over atoms and axes of the Gaussian loss of x/pi, doubled as the wrapped square doubles the divergence.

    The difference is not wrapped: the interval has ends. So both flows weigh a small error in radians alike.
    """
    difference = (angles / math.pi, estimate / math.pi)
    return 2 * continuous.loss_discrete(*difference, i.view(-1, 1), n, interval_sigma1(beta1)).mean()


def mean_weight(alpha: Tensor) -> float:
    """The mean over all messages of n alpha_i A(alpha_i)."""
    return float((alpha * vonmises.mean_resultant(alpha)).sum())


def type_loss(types: Tensor, logits: Tensor, i: Tensor, n: int, beta1: float) -> Tensor:
    """Mean over atoms of K beta1 t |e - p|^2, t = (i - 1)/n: the continuous-time form that the released models used.

    Args:
        types: (V,), indices of the true types.
        logits: (V, K).
        i: (V,), numbers of the messages.
        n: how many messages there are.
        beta1: accuracy after all.
    """
    target = torch.nn.functional.one_hot(types, logits.shape[1]).to(logits.dtype)
    return discrete.loss_continuous(target, logits.softmax(1), (i - 1) / n, beta1).mean()
