"""The generator's layers at inference, each as quick as one core makes it; activations are (d0, d1, d2, channels).

An upsampling layer makes two voxels of every window of two inputs along an axis, each by a filter of two taps
(:func:`headwater_porous_gan.networks.phases`). Three windows in a row share four inputs, and Winograd's minimal
filtering F(3, 2) makes the three results of a filter with four products where the plain sum takes six:

    y0 = d0 g0 + d1 g1    p0 = (d0 - d2) g0               y0 = p0 + p1 + p2
    y1 = d1 g0 + d2 g1    p1 = (d1 + d2) (g0 + g1) / 2    y1 = p1 - p2
    y2 = d2 g0 + d3 g1    p2 = (d2 - d1) (g0 - g1) / 2    y2 = p1 + p2 + p3
                          p3 = (d3 - d1) g1

Along three axes that is 64 products where there were 216; what else is done are additions.
"""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from headwater_porous_gan.networks import phases

__all__ = ["Extra", "Filtered", "Last", "Plain", "Scratch", "first_layer"]

INPUTS = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1))
TAPS = ((1, 0), (0.5, 0.5), (0.5, -0.5), (0, 1))
OUTPUTS = ((1, 1, 1, 0), (0, 1, -1, 0), (0, 1, 1, 1))
EVERYWHERE = 21
"""The product (1, 1, 1) of 4 x 4 x 4, which enters every result with weight 1: a bias is added there."""

ROWS = 128
"""Cubes of 3^3 windows at a time: what is between the steps stays in the processor's cache."""


def first_layer(z: Tensor, weight: Tensor, bias: Tensor, place: Sequence[int], size: Sequence[int]) -> Tensor:
    """The first layer (transposed convolution, kernel 4, stride 1) in a box of cells: (*size, c).

    Latent i reaches the cells i to i + 3; where there are no latents, or none are given, nothing is computed.

    Args:
        z: latents (n0, n1, n2, nz).
        weight: (4, 4, 4, nz, c).
        bias: (c,).
        place: where the first latent lies, counted from the first cell of the box.
        size: of the box.
    """
    y = bias.to(torch.promote_types(z.dtype, torch.float32)).expand(*size, -1).clone()
    for taps in product(range(4), repeat=3):
        shift = [p + t for p, t in zip(place, taps, strict=True)]
        low = [max(0, s) for s in shift]
        high = [min(n, s + d) for n, s, d in zip(size, shift, z.shape, strict=False)]
        if all(a < b for a, b in zip(low, high, strict=True)):
            cells = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            part = z[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, shift, strict=True))]
            y[cells] += (part.reshape(-1, z.shape[3]) @ weight[taps]).view(*part.shape[:3], -1)
    return y.to(z.dtype)


class Scratch:
    """Memory that is used again and again: a new piece for every step costs as much time as the step."""

    def __init__(self) -> None:
        self._pieces: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """An uninitialised tensor of ``shape``; it is overwritten when ``name`` is taken again."""
        n = prod(shape)
        piece = self._pieces.get(name)
        if piece is None or piece.numel() < n or piece.dtype != like.dtype or piece.device != like.device:
            piece = self._pieces[name] = like.new_empty(n)
        return piece[:n].view(shape)


class Plain:
    """An upsampling layer as eight products of matrices, one for each of the 2^3 inputs of a window.

    Args:
        weight: (c, d, 4, 4, 4) of the transposed convolution.
        bias: (d,).
    """

    overlap = 1

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weights = phases(weight).permute(3, 4, 5, 2, 0, 1).flatten(4).contiguous()  # (2, 2, 2, c, 8 d)
        self.bias = bias.repeat(8)

    def __call__(self, x: Tensor, rectify: bool = True, ahead: Tensor | None = None) -> Tensor:
        """Inputs (n0, n1, n2, c) give the voxels 1 to 2 n - 3 along each axis, counted from twice the first input.

        ``ahead`` (k, ., ., d) is put before the result along axis 0.
        """
        w0, w1, w2 = windows = [n - 1 for n in x.shape[:3]]
        y = self.bias.repeat(w0 * w1 * w2, 1)
        for i, j, k in product((0, 1), repeat=3):
            y.addmm_(x[i : i + w0, j : j + w1, k : k + w2].reshape(len(y), -1), self.weights[i, j, k])
        d = y.shape[1] // 8
        out, made = _with(x, ahead, [2 * w for w in windows], d)
        target = made.view(w0, 2, w1, 2, w2, 2 * d).permute(0, 2, 4, 1, 3, 5)
        _put(y.view(w0, w1, w2, 2, 2, 2 * d), target, rectify)
        return out


class Filtered:
    """The same layer by minimal filtering; half of the time of :class:`Plain` for at least a few hundred windows.

    Args:
        weight: (c, d, 4, 4, 4) of the transposed convolution.
        bias: (d,).
        scratch: shared by the layers of a network, which run one after another.
    """

    overlap = 1

    def __init__(self, weight: Tensor, bias: Tensor, scratch: Scratch) -> None:
        self.c, self.d = weight.shape[:2]
        taps = phases(weight).permute(3, 4, 5, 0, 2, 1)  # (2, 2, 2, 8, c, d)
        products = (_cubed(TAPS, weight.double()) @ taps.double().reshape(8, -1)).to(weight.dtype)
        pairs = products.view(64, 4, 2, self.c, self.d).permute(1, 0, 3, 2, 4)
        self.weights = pairs.reshape(4, 64, self.c, 2 * self.d)  # (places along axes 0 and 1, products, c, 2 d)
        self.bias = bias.repeat(2)
        self.inputs, self.outputs = _cubed(INPUTS, weight), _cubed(OUTPUTS, weight)
        self.scratch = scratch

    def __call__(self, x: Tensor, rectify: bool = True, ahead: Tensor | None = None) -> Tensor:
        """As :meth:`Plain.__call__`; the result may be a part of a larger piece of memory."""
        c, d = self.c, self.d
        windows = [n - 1 for n in x.shape[:3]]
        n0, n1, n2 = cubes = [-(-n // 3) for n in windows]
        missing = [3 * n - w for n, w in zip(cubes, windows, strict=True)]
        if any(missing):
            x = F.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        out, made = _with(x, ahead, [6 * n for n in cubes], d)
        # Voxel 6 i + 2 m + b is place b of window m in cube i: (n0, 3, 2) of each axis, places along axis 2 with d.
        made = made.view(n0, 3, 2, n1, 3, 2, n2, 3, 2 * d)
        inputs = x.unfold(0, 4, 3).unfold(1, 4, 3).unfold(2, 4, 3).permute(4, 5, 6, 0, 1, 2, 3)
        step0 = max(1, ROWS // (n1 * n2))
        step1 = -(-n1 // max(1, round(n1 * n2 / ROWS)))
        for i, j in product(range(0, n0, step0), range(0, n1, step1)):
            part = inputs[:, :, :, i : i + step0, j : j + step1]
            three = part.shape[3:6]
            rows = prod(three)
            gathered = self._take("products", x, *part.shape).copy_(part)
            mixed = torch.mm(self.inputs, gathered.view(64, -1), out=self._take("mixed", x, 64, rows * c))
            for place, weight in enumerate(self.weights):
                q = torch.bmm(mixed.view(64, rows, c), weight, out=self._take("products", x, 64, rows, 2 * d))
                q[EVERYWHERE] += self.bias
                y = torch.mm(self.outputs, q.view(64, -1), out=self._take("results", x, 27, rows * 2 * d))
                target = made[i : i + step0, :, place // 2, j : j + step1, :, place % 2]
                _put(y.view(3, 3, 3, *three, 2 * d), target.permute(1, 3, 5, 0, 2, 4, 6), rectify)
        kept = [2 * n for n in windows]
        kept[0] += len(out) - 6 * n0
        return out[: kept[0], : kept[1], : kept[2]]

    def _take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        return self.scratch.take(name, like, *shape)


class Extra:
    """A convolution with kernel 3 that keeps the resolution; its border is cut.

    Args:
        weight: (d, c, 3, 3, 3).
        bias: (d,).
    """

    overlap = 2

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight.contiguous(memory_format=torch.channels_last_3d), bias

    def __call__(self, x: Tensor, rectify: bool = True, ahead: Tensor | None = None) -> Tensor:
        """Inputs (n0, n1, n2, c) give (n0 - 2, n1 - 2, n2 - 2, d), with ``ahead`` before them along axis 0."""
        out, made = _with(x, ahead, [n - 2 for n in x.shape[:3]], len(self.weight))
        _put(_convolved(x, self.weight, self.bias), made, rectify)
        return out


class Last:
    """The last layer: all eight voxels of a window out of one convolution with 2^3 taps.

    Args:
        weight: (c, 1, 4, 4, 4) of the transposed convolution.
        bias: (1,).
    """

    overlap = 1

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = phases(weight).flatten(0, 1).contiguous(memory_format=torch.channels_last_3d)
        self.bias = bias.expand(8).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs (n0, n1, n2, c) give (1, 8, n0 - 1, n1 - 1, n2 - 1), which interleave puts in their places."""
        return F.conv3d(x.permute(3, 0, 1, 2).unsqueeze(0), self.weight, self.bias)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv3d(x.permute(3, 0, 1, 2).unsqueeze(0), weight, bias)[0].permute(1, 2, 3, 0)


def _with(x: Tensor, ahead: Tensor | None, size: list[int], d: int) -> tuple[Tensor, Tensor]:
    """A new tensor (k + size[0], size[1], size[2], d) whose first k planes are ``ahead``, and the rest of it."""
    k = 0 if ahead is None else len(ahead)
    out = x.new_empty(k + size[0], size[1], size[2], d)
    if ahead is not None:
        out[:k, : ahead.shape[1], : ahead.shape[2]] = ahead  # what Filtered makes is larger than what it gives
    return out, out[k:]


def _put(y: Tensor, place: Tensor, rectify: bool) -> None:
    if rectify:
        torch.clamp_min(y, 0, out=place)
    else:
        place.copy_(y)


def _cubed(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """The matrix that does along each of three axes what ``matrix`` does along one."""
    one = torch.tensor(matrix, dtype=like.dtype, device=like.device)
    return torch.kron(torch.kron(one, one), one)
