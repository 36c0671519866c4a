"""Bicubic resizing as MATLAB's imresize does it, which is what the field compares with."""

import torch
from torch import Tensor

__all__ = ["bicubic", "bicubic_bytes", "taps"]


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


def taps(size: int, out: int, scale: float) -> tuple[Tensor, Tensor]:
    """Weights float64 (out, P) and source indices (out, P) of one axis of ``size`` pixels.

    Shrinking (scale < 1) widens the kernel by 1/scale against aliasing. The image goes on beyond its borders as its
    mirror image, edge pixels twice.
    """
    wide = max(1.0, 1 / scale)
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    count = int(4 * wide) + 3
    index = torch.floor(centre - 2 * wide).long()[:, None] + torch.arange(count)
    weights = _cubic((centre[:, None] - index) / wide)
    weights /= weights.sum(1, keepdim=True)
    mirrored = index % (2 * size)
    return weights, torch.minimum(mirrored, 2 * size - 1 - mirrored)


def _axis(x: Tensor, weights: Tensor, index: Tensor, dim: int) -> Tensor:
    shape = [1] * x.ndim
    shape[dim] = len(weights)
    used = (weights != 0).any(0).nonzero().flatten().tolist()
    out = None
    for p in used:
        part = x.index_select(dim, index[:, p]) * weights[:, p].to(x.dtype).view(shape)
        out = part if out is None else out.add_(part)
    assert out is not None
    return out


def _along(x: Tensor, dim: int, scale: float) -> Tensor:
    size = x.shape[dim]
    weights, index = taps(size, -int(-size * scale // 1), scale)
    return _axis(x, weights.to(x.device), index.to(x.device), dim)


def bicubic(x: Tensor, scale: float) -> Tensor:
    """Resize floating-point (..., H, W) by ``scale``; each edge becomes ceil(edge * scale).

    The cost is proportional to the number of pixels. Values are neither clipped nor rounded.
    """
    return _along(_along(x, x.ndim - 2, scale), x.ndim - 1, scale)


def bicubic_bytes(x: Tensor, scale: float) -> Tensor:
    """Resize uint8 (..., H, W) by ``scale``, rows first; as in MATLAB, values are bytes again after each direction.

    Old versions of MATLAB repeat the edge pixel where later ones mirror the image: that changes the outer two pixels.
    """
    for dim in (x.ndim - 2, x.ndim - 1):
        x = torch.floor(_along(x.double(), dim, scale) + 0.5).clamp_(0, 255).to(torch.uint8)
    return x
