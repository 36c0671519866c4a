"""The maps of which a rescaling network is made: Haar cells, quantisation, latent noise. Tensors are (N, C, H, W)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "haar",
    "haar_inverse",
    "haar_log_det",
    "orthonormal_haar",
    "orthonormal_haar_inverse",
    "quantise",
    "reflect_to_multiple",
    "scale_of",
    "to_bytes",
    "to_unit",
]


def haar(x: Tensor) -> Tensor:
    """Split every 2x2 cell p00 p01 / p10 p11 of (N, C, H, W), H and W even, into (N, 4C, H/2, W/2).

    First the C means (p00+p01+p10+p11)/4, then C each of (p00-p01+p10-p11)/4, (p00+p01-p10-p11)/4 and
    (p00-p01-p10+p11)/4. The inverse is :func:`haar_inverse`, not the transpose: the map is not orthonormal.
    """
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    total, across, down, diagonal = a + b, a - b, c + d, c - d
    bands = (total + down, across + diagonal, total - down, across - diagonal)
    return torch.cat(bands, 1).mul_(0.25) if not x.requires_grad else torch.cat(bands, 1) * 0.25


def haar_inverse(y: Tensor) -> Tensor:
    """Put (N, 4C, h, w) of :func:`haar` together again: (N, C, 2h, 2w)."""
    low, one, two, three = y.chunk(4, 1)
    a, b = low + one, low - one
    c, d = two + three, two - three
    rows = torch.stack([torch.stack([a + c, b + d], -1), torch.stack([a - c, b - d], -1)], -3)
    n, channels, h, _, w, _ = rows.shape
    return rows.reshape(n, channels, 2 * h, 2 * w)


def haar_log_det(channels: int, height: int, width: int) -> float:
    """log |det| of :func:`haar` for one sample of C x H x W: (C H W / 4) ln(1/16)."""
    return channels * height * width / 4 * math.log(1 / 16)


_SIGNS = (2.0, -2.0, -2.0, 2.0)


def _signs(x: Tensor) -> Tensor:
    return x.new_tensor(_SIGNS).repeat_interleave(x.shape[1] // 4).view(1, -1, 1, 1)


def orthonormal_haar(x: Tensor) -> Tensor:
    """The wavelet of image hiding: orthonormal, and its horizontal and vertical details with the other sign."""
    y = haar(x)
    return y * _signs(y)


def orthonormal_haar_inverse(y: Tensor) -> Tensor:
    """The inverse, and transpose, of :func:`orthonormal_haar`."""
    return haar_inverse(y / _signs(y))


def scale_of(h: Tensor, clamp: float) -> Tensor:
    """The logarithm s = clamp (2 sigmoid(h) - 1) of a coupling's scale, in float32 or better."""
    h = h.float() if h.dtype in (torch.bfloat16, torch.float16) else h
    return clamp * (2 * torch.sigmoid(h) - 1)


class _Quantise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, u: Tensor) -> Tensor:
        return u.clamp(0, 1).mul(255).round_().div_(255)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def quantise(u: Tensor) -> Tensor:
    """Q(u) = round(255 clip(u, 0, 1)) / 255; its gradient is taken to be 1 everywhere, also where it clips."""
    out: Tensor = _Quantise.apply(u)
    return out


def to_bytes(u: Tensor) -> Tensor:
    """Values in [0, 1] as uint8, clipped and rounded."""
    return (u.float().clamp(0, 1) * 255).round_().to(torch.uint8)


def to_unit(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 as floating-point values in [0, 1]; what is floating-point already keeps its values."""
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


def _reflected(n: int, wanted: int) -> Tensor:
    """Indices 0..n-1 continued to ``wanted`` by reflection about the last pixel (a single pixel repeats)."""
    i = torch.arange(wanted)
    if n == 1:
        return torch.zeros_like(i)
    i = i % (2 * n - 2)
    return torch.minimum(i, 2 * n - 2 - i)


def reflect_to_multiple(x: Tensor, of: int, size: Sequence[int] | None = None) -> Tensor:
    """(..., H, W) grown at the lower and right border by reflection until both edges are multiples of ``of``.

    With ``size`` it is grown to at least that (height, width).
    """
    height, width = x.shape[-2:]
    least = size or (height, width)
    to = [-(-max(n, m) // of) * of for n, m in zip((height, width), least, strict=True)]
    if to == [height, width]:
        return x
    return x[..., _reflected(height, to[0])[:, None], _reflected(width, to[1])]
