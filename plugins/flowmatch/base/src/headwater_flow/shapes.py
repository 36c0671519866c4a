"""Bringing times and states into one shape."""

import torch
from torch import Tensor

__all__ = ["as_time", "like_state"]


def as_time(t: float | Tensor, x: Tensor) -> Tensor:
    """The time ``t``, a number or a tensor () or (B,), as a tensor with the dtype and device of ``x`` (B, ...)."""
    return torch.as_tensor(t, dtype=x.dtype, device=x.device)


def like_state(t: float | Tensor, x: Tensor) -> Tensor:
    """The time ``t``, () or (B,), with dimensions of size 1 behind, so that it multiplies ``x`` (B, ...).

    Example:
        >>> like_state(torch.rand(4), torch.zeros(4, 3, 2)).shape
        torch.Size([4, 1, 1])
    """
    t = as_time(t, x)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t
