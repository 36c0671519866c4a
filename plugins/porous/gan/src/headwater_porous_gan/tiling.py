"""The generator run tile by tile: batch normalisation frozen and folded, one cell of halo at every level.

A voxel depends on two or three cells of the first layer along each axis, so a tile needs, at every level, one neighbour
beyond what is wanted (more with extra layers). What lies outside a volume that ends is zero at every level, as the
padding of the published network makes it. A tile then holds what the whole volume would hold there.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater_porous_gan.latents import Latents
from headwater_porous_gan.networks import Generator, first_as_convolution, interleave, phases

__all__ = ["Folded", "Statistics", "boxes", "running_statistics", "statistics"]

Cells = tuple[int, int, int]
Statistics = list[tuple[Tensor, Tensor]]
"""Mean and biased variance of every channel before each batch normalisation."""

SLAB = 4 << 20
"""Numbers in the largest activation that is held at once; the last two layers run in slabs of that size."""


def boxes(low: Sequence[int], high: Sequence[int], step: Sequence[int]) -> Iterator[tuple[Cells, Cells]]:
    """The boxes of ``step`` that cover [low, high), last axis fastest; those at the end are cut."""
    axes = [[(a, min(a + s, h)) for a in range(lo, h, s)] for lo, h, s in zip(low, high, step, strict=True)]
    for (a0, b0), (a1, b1), (a2, b2) in product(*axes):
        yield (a0, a1, a2), (b0, b1, b2)


def running_statistics(generator: Generator) -> Statistics:
    """The running statistics in the generator's buffers."""
    norms: Any = generator.norms
    return [(norm.running_mean, norm.running_var) for norm in norms]


class Folded:
    """A generator whose batch normalisation is frozen at ``statistics`` and folded into the weights.

    With fewer statistics than layers it is the front of the network, up to the layer that the next ones are of.

    Args:
        generator: where weights come from; it is left as it is.
        statistics: mean and biased variance for each batch normalisation.
        dtype: of weights and activations; what comes out is float32, or float64.
    """

    def __init__(self, generator: Generator, statistics: Statistics, dtype: torch.dtype = torch.float32) -> None:
        self.m, self.halos, self.dtype = generator.m, generator.halos, dtype
        self.weights: list[list[Tensor]] = []
        self.biases: list[Tensor | None] = []
        convs: Any = generator.convs
        for k, conv in enumerate(convs):
            weight, bias = conv.weight.detach(), conv.bias
            if k < len(statistics):
                weight, bias = _folded(weight, bias, generator.norms[k], statistics[k], isinstance(conv, nn.Conv3d))
            laid_out = torch.channels_last_3d
            if k == 0:  # the one layer that is faster with channels first
                weight, laid_out = first_as_convolution(weight), torch.contiguous_format
            elif isinstance(conv, nn.ConvTranspose3d):
                weight = phases(weight)
            if k == len(generator.convs) - 1:
                weight = weight.flatten(0, 1)
                bias = None if bias is None else bias.expand(8)
            parts = weight.to(dtype).unbind() if weight.ndim == 6 else [weight.to(dtype)]
            self.weights.append([part.contiguous(memory_format=laid_out) for part in parts])
            self.biases.append(None if bias is None else bias.detach().to(dtype).contiguous())

    @property
    def factor(self) -> int:
        """F: voxels that a cell covers along each axis."""
        return 1 << self.m

    def level(self, k: int) -> int:
        """How often the resolution has doubled after layer ``k``."""
        hidden = len(self.weights) - 1
        return self.m if k == hidden else min(k, self.m - 1)

    def _run(self, x: Tensor, k: int, rectify: bool = True) -> Tensor:
        """Hidden layer ``k``; x has the halo of its level, and the result that of the next one."""
        weights, bias = self.weights[k], self.biases[k]
        if len(weights) == 1:
            y = F.conv3d(x, weights[0], bias).contiguous(memory_format=torch.channels_last_3d)
            return F.relu_(y) if rectify else y
        b, _, *size = x.shape
        shape = (b, weights[0].shape[0], *(2 * (n - 1) for n in size))
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        for weight, (a0, a1, a2) in zip(weights, product((0, 1), repeat=3), strict=True):
            y = F.conv3d(x, weight, bias)
            place = out[:, :, a0::2, a1::2, a2::2]
            if rectify:
                torch.clamp_min(y, 0, out=place)
            else:
                place.copy_(y)
        return _cropped(out, 2 * self.halos[k - 1] - 1 - self.halos[k])

    def _bounded(self, x: Tensor, k: int, low: Sequence[int], extent: Sequence[int] | None) -> Tensor:
        """The output of hidden layer ``k`` whose first voxel is ``low``, zero beyond the volume's end."""
        if extent is not None:
            for axis, (a, n) in enumerate(zip(low, extent, strict=True)):
                size, end = x.shape[axis + 2], n << self.level(k)
                if a < 0:
                    x.narrow(axis + 2, 0, min(-a, size)).zero_()
                if a + size > end:
                    kept = max(end - a, 0)
                    x.narrow(axis + 2, kept, size - kept).zero_()
        return x

    def _front(self, latents: Latents, low: Cells, high: Cells, layers: int) -> Tensor:
        """The activations after ``layers`` hidden layers, in the cells [low, high) and their halo."""
        extent = _cells(latents)
        halo = self.halos[0]
        x = latents.window([a - halo - 3 for a in low], [b + halo for b in high]).to(self.dtype)
        for k in range(layers):
            h = self.halos[k]
            x = self._bounded(self._run(x, k), k, [(a << self.level(k)) - h for a in low], extent)
        return x

    def raw(self, latents: Latents, low: Cells, high: Cells, k: int) -> Tensor:
        """What layer ``k`` hands to its batch normalisation in the cells [low, high), without halo."""
        return _cropped(self._run(self._front(latents, low, high, k), k, rectify=False), self.halos[k])

    def tile(
        self,
        latents: Latents,
        low: Cells,
        high: Cells,
        convert: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The voxels of the cells [low, high), with one voxel of halo on each side.

        ``convert`` maps values in (-1, 1) to what is kept of them (a phase, say), slab by slab.
        """
        first = max(self.m - 1, 1)
        x = self._front(latents, low, high, first)
        extent = _cells(latents)
        level, halo = self.level(first - 1), self.halos[first - 1]
        scale = 1 << (self.m - level)
        origin = [a << level for a in low]
        rows, *across = ((b - a) << level for a, b in zip(low, high, strict=True))
        step = max(1, SLAB // (self.weights[-1][0].shape[1] * (scale // 2) ** 3 * (across[0] + 2) * (across[1] + 2)))
        out: Tensor | None = None
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            y = x[:, :, start : stop + 2 * halo]
            for k in range(first, len(self.weights) - 1):
                h = self.halos[k]
                up = self.level(k) - level
                corner = [((o + (start if axis == 0 else 0)) << up) - h for axis, o in enumerate(origin)]
                y = self._bounded(self._run(y, k), k, corner, extent)
            values = interleave(F.conv3d(y, self.weights[-1][0], self.biases[-1]))[0, 0]
            values = torch.tanh_(values if self.dtype == torch.float64 else values.float())
            part = values if convert is None else convert(values)
            if out is None:
                size = (rows * scale + 2, *part.shape[1:])
                out = torch.empty(size, dtype=part.dtype, device=part.device)
            out[start * scale : stop * scale + 2] = part
        assert out is not None
        return out


def _cropped(x: Tensor, n: int) -> Tensor:
    """x without ``n`` voxels on each side."""
    return x if n == 0 else x[:, :, n:-n, n:-n, n:-n]


def _cells(latents: Latents) -> Cells | None:
    """How many cells the first layer has along each axis; ``None`` where the field has no end."""
    if latents.extent is None:
        return None
    a, b, c = (n + 3 for n in latents.extent)
    return a, b, c


def _folded(
    weight: Tensor, bias: Tensor | None, norm: Any, found: tuple[Tensor, Tensor], plain: bool
) -> tuple[Tensor, Tensor]:
    """Weights and bias of a convolution followed by ``norm`` under fixed statistics, computed in float64."""
    mean, variance = (s.double() for s in found)
    scale = norm.weight.detach().double() / (variance + norm.eps).sqrt()
    shift = norm.bias.detach().double() + ((0 if bias is None else bias.detach().double()) - mean) * scale
    shape = (-1, 1, 1, 1, 1) if plain else (1, -1, 1, 1, 1)
    return weight.double() * scale.view(shape), shift


def statistics(generator: Generator, latents: Latents, low: Cells, high: Cells, step: int = 4) -> Statistics:
    """Mean and biased variance before each batch normalisation over the cells [low, high), layer after layer.

    Over all cells of a volume these are what the published sampler normalises by, which leaves batch normalisation in
    train mode. Computed tile by tile (``step`` cells), so the size of the volume does not matter for memory.
    """
    found: Statistics = []
    for k in range(len(generator.norms)):
        front = Folded(generator, found, latents.dtype)
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for a, b in boxes(low, high, (step,) * 3):
            x = front.raw(latents, a, b, k).double()
            count += x[0, 0].numel()
            total = total + x.sum((0, 2, 3, 4))
            squares = squares + x.square().sum((0, 2, 3, 4))
        mean = total / count
        found.append((mean, (squares / count - mean.square()).clamp_min(0)))
    return found
