"""How far a predicted velocity is from the path's: mean over entries, with masks and weights."""

from typing import Literal

import torch
from torch import Tensor

from headwater_flow.shapes import like_state

__all__ = ["velocity_loss"]


def velocity_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    kind: Literal["mse", "l1", "pseudo-huber"] = "mse",
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    delta: float = 1.0,
) -> Tensor:
    """The mean over all entries (those under ``mask``) of the weighted deviation, a scalar.

    Args:
        prediction: (B, ...) from the network.
        target: (B, ...) from the path.
        kind: squares; absolute values; or delta^2 (sqrt(1 + (d/delta)^2) - 1), which is half the square for small
            deviations and grows linearly.
        mask: of a shape that broadcasts to (B, ...), true where an entry counts.
        weight: w(t), (B,).
        delta: where pseudo-Huber turns from square to linear.

    Example:
        >>> a, b = torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [5.0, 5.0]])
        >>> float(velocity_loss(a, b, mask=torch.tensor([[True], [False]])))
        1.0
    """
    deviation = prediction - target
    if mask is not None:  # before anything else: masked entries may hold NaN, and its gradient is NaN too
        mask = mask.bool().expand_as(deviation)
        deviation = torch.where(mask, deviation, 0)
    if kind == "mse":
        each = deviation.square()
    elif kind == "l1":
        each = deviation.abs()
    else:
        each = delta**2 * ((1 + (deviation / delta).square()).sqrt() - 1)
    if weight is not None:
        each = each * like_state(weight, each)
    if mask is None:
        return each.mean()
    return each.sum() / mask.sum()
