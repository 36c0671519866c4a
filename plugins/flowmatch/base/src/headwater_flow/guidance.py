"""Classifier-free guidance of a velocity."""

from collections.abc import Callable

import torch
from torch import Tensor

from headwater_flow.shapes import as_time

__all__ = ["guided"]


def guided(
    network: Callable[[Tensor, Tensor, Tensor], Tensor], condition: Tensor, nothing: Tensor, weight: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity v = v_u + weight (v_c - v_u), with both parts from one call of the network on twice the batch.

    Args:
        network: velocity (2B, ...) of times (2B,), states (2B, ...) and conditions (2B, C).
        condition: (B, C).
        nothing: (B, C) or (C,), the condition that stands for none.
        weight: 0 is unconditional, 1 conditional, above 1 beyond it.

    Example:
        >>> v = guided(lambda t, x, c: c, torch.ones(3, 1), torch.zeros(1), 2.0)
        >>> v(torch.tensor(0.5), torch.zeros(3, 1)).ravel().tolist()
        [2.0, 2.0, 2.0]
    """
    both = torch.cat([condition, nothing.expand_as(condition)])

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        times = as_time(t, x).expand(len(x)).repeat(2)
        with_condition, without = network(times, torch.cat([x, x]), both).chunk(2)
        return without + weight * (with_condition - without)

    return velocity
