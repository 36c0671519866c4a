"""Rectified flow (Liu et al., 2023): train again on the pairs that a trained flow makes, and its paths straighten."""

from typing import Any

import torch
from torch import Tensor

from headwater_flow.solvers import Velocity, solve

__all__ = ["reflow_pairs"]


@torch.no_grad()
def reflow_pairs(velocity: Velocity, x0: Tensor, method: str = "dopri5", **settings: Any) -> tuple[Tensor, Tensor]:
    """(x0, x1) with x1 the flow's end point from ``x0``: the fixed pairs of the next round, or of distillation.

    ``settings`` are those of :func:`headwater_flow.solvers.solve`.

    Example:
        >>> x0, x1 = reflow_pairs(lambda t, x: torch.ones_like(x), torch.zeros(2, 1), "euler", steps=1)
        >>> x1.ravel().tolist()
        [1.0, 1.0]
    """
    return x0, solve(velocity, x0, method, **settings)
