"""The losses: latent alignment over the late part of the reverse flow, and the regression of rectified flow."""

import math

import torch
from torch import Tensor

__all__ = ["alignment_losses", "class_log_weights", "flow_loss", "late", "straight_line"]


def late(log_targets: Tensor, cut_off: float) -> Tensor:
    """log q_i = max over steps k >= floor(c n) of log p^(k) of the right anchor.

    At the end of the reverse flow p is one-hot and has no gradient, near t = 1 it says nothing; between them there is
    a step at which the right anchor can be told by degrees.

    Args:
        log_targets: (n, B), log p of each latent's own anchor before each step.
        cut_off: c, the share of steps next to t = 1 that is dropped.

    Returns:
        log q (B,), at most 0.

    Example:
        >>> late(torch.tensor([[0.0], [-3.0], [-1.0]]), 0.4)
        tensor([-1.])
    """
    first = math.floor(cut_off * len(log_targets) + 1e-9)
    return log_targets[first:].amax(0)


def alignment_losses(log_targets: Tensor, cut_off: float) -> tuple[Tensor, Tensor]:
    """The two forms of the soft objective: -mean log q (cross entropy) and -mean q (probability).

    Args:
        log_targets: (n, B).
        cut_off: c.
    """
    q = late(log_targets, cut_off)
    return -q.mean(), -q.exp().mean()


def class_log_weights(labels: Tensor, classes: int) -> Tensor:
    """log of each class's share of ``labels`` (B,): (K,); -inf for a class that is not among them.

    Example:
        >>> class_log_weights(torch.tensor([0, 0, 2, 2]), 3).exp()
        tensor([0.5000, 0.0000, 0.5000])
    """
    return (torch.bincount(labels, minlength=classes).to(torch.get_default_dtype()) / len(labels)).log()


def straight_line(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = t x + (1-t) x_0, the image (t = 1) on its way from noise (t = 0).

    Args:
        x: images (B, C, H, W) in [-1, 1].
        noise: x_0 of the same shape.
        t: (B,).
    """
    t = t[:, None, None, None]
    return t * x + (1 - t) * noise


def flow_loss(predicted: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """Mean over batch and pixels of (u - (x - x_0))^2."""
    return (predicted - (x - noise)).square().mean()
