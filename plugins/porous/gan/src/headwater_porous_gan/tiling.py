"""The generator run tile by tile: batch normalisation frozen and folded, one cell of halo at every level.

A voxel depends on two or three cells of the first layer along each axis, so a tile needs, at every level, one neighbour
beyond what is wanted (more with extra layers). What lies outside a volume that ends is zero at every level, as the
padding of the published network makes it. A tile then holds what the whole volume would hold there.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from headwater_porous_gan.latents import Latents
from headwater_porous_gan.layers import Extra, Filtered, Last, Plain, Scratch, first_layer
from headwater_porous_gan.networks import Generator, interleave

__all__ = ["Folded", "Statistics", "boxes", "running_statistics", "statistics"]

Cells = tuple[int, int, int]
Statistics = list[tuple[Tensor, Tensor]]
"""Mean and biased variance of every channel before each batch normalisation."""

SLAB = 2 << 20
"""Numbers in the largest activation that is held at once; the last layers run in slabs of about that size."""

WIDEST = 256
"""Input channels up to which a layer runs by minimal filtering, which needs eight times the memory for weights."""


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
    Activations are (d0, d1, d2, channels).

    Args:
        generator: where weights come from; it is left as it is.
        statistics: mean and biased variance for each batch normalisation.
        dtype: of weights and activations; what comes out is float32, or float64.
    """

    def __init__(self, generator: Generator, statistics: Statistics, dtype: torch.dtype = torch.float32) -> None:
        self.m, self.halos, self.dtype = generator.m, generator.halos, dtype
        self.last = len(generator.norms)
        self.layers: list[Any] = []
        convs: Any = generator.convs
        self.width = convs[-1].in_channels
        scratch = Scratch()
        for k, conv in enumerate(convs[: len(statistics) + 1]):
            weight, bias = conv.weight.detach(), conv.bias
            extra = isinstance(conv, nn.Conv3d)
            if k < len(statistics):
                weight, bias = _folded(weight, bias, generator.norms[k], statistics[k], extra)
            bias = weight.new_zeros(conv.out_channels) if bias is None else bias.detach()
            weight, bias = weight.to(dtype), bias.to(dtype)
            if k == 0:
                self.layers.append(partial(first_layer, weight=weight.permute(2, 3, 4, 0, 1).contiguous(), bias=bias))
            elif k == self.last:
                self.layers.append(Last(weight, bias))
            elif extra:
                self.layers.append(Extra(weight, bias))
            elif conv.in_channels <= WIDEST and dtype != torch.bfloat16:  # sums of a few inputs lose bits of bfloat16
                self.layers.append(Filtered(weight, bias, scratch))
            else:
                self.layers.append(Plain(weight, bias))

    @property
    def factor(self) -> int:
        """F: voxels that a cell covers along each axis."""
        return 1 << self.m

    def level(self, k: int) -> int:
        """How often the resolution has doubled after layer ``k``."""
        return self.m if k == self.last else min(k, self.m - 1)

    def _first(self, latents: Latents, low: Cells, high: Cells) -> Tensor:
        """The first layer in the cells [low, high), out of those latents alone that reach one of them."""
        begin, end = [a - 3 for a in low], list(high)
        if latents.extent is not None:
            begin = [max(a, 0) for a in begin]
            end = [max(a, min(b, n)) for a, b, n in zip(begin, end, latents.extent, strict=True)]
        z = latents.window(begin, end)[0].permute(1, 2, 3, 0).to(self.dtype).contiguous()
        place = [a - b for a, b in zip(begin, low, strict=True)]
        found: Tensor = self.layers[0](z, place=place, size=[b - a for a, b in zip(low, high, strict=True)])
        return found

    def _bounded(self, x: Tensor, k: int, low: Sequence[int], extent: Sequence[int] | None) -> Tensor:
        """The output of hidden layer ``k`` whose first voxel is ``low``, zero beyond the volume's end."""
        if extent is not None:
            for axis, (a, n) in enumerate(zip(low, extent, strict=True)):
                size, end = x.shape[axis], n << self.level(k)
                if a < 0:
                    x.narrow(axis, 0, min(-a, size)).zero_()
                if a + size > end:
                    kept = max(end - a, 0)
                    x.narrow(axis, kept, size - kept).zero_()
        return x

    def _excess(self, k: int) -> int:
        """How much more of its halo than needed layer ``k`` gives on each side."""
        doubles = self.level(k) > self.level(k - 1)
        return (2 if doubles else 1) * self.halos[k - 1] - 1 - self.halos[k]

    def _hidden(self, latents: Latents, low: Cells, high: Cells, k: int, rectify: bool = True) -> Tensor:
        """What hidden layer ``k`` gives in the cells [low, high) and its halo there.

        Without ``rectify`` it is what the layer hands to its batch normalisation.
        """
        extent, halo = _cells(latents), self.halos[0]
        x = self._first(latents, _moved(low, -halo), _moved(high, halo))
        if rectify or k > 0:
            x.relu_()
        for j in range(k + 1):
            if j > 0:
                x = _inner(self.layers[j](x, rectify or j < k), self._excess(j))
            if rectify or j < k:
                x = self._bounded(x, j, [(a << self.level(j)) - self.halos[j] for a in low], extent)
        return x

    def raw(self, latents: Latents, low: Cells, high: Cells, k: int) -> Tensor:
        """What layer ``k`` hands to its batch normalisation in the cells [low, high), without halo."""
        return _inner(self._hidden(latents, low, high, k, rectify=False), self.halos[k])

    def tile(
        self,
        latents: Latents,
        low: Cells,
        high: Cells,
        convert: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The voxels of the cells [low, high), with one voxel of halo on each side.

        The last layers run slab by slab. Each keeps the planes of its input that the next slab needs again, so nothing
        is computed twice, and only what is before them is held for the whole tile.

        Args:
            latents: the field.
            low: first cell along each axis.
            high: the cell after the last along each axis.
            convert: maps values in (-1, 1), each by itself, to what is kept of them (a phase, say).
        """
        first = max(self.m - 1, 1)
        x = self._hidden(latents, low, high, first - 1)
        extent = _cells(latents)
        level, overlap = self.level(first - 1), self.layers[first].overlap
        grown = 1 << (self.level(self.last - 1) - level)
        # Whole cubes of minimal filtering; the first slab has to reach through the layers with kernel 3 as well.
        step = 3 * max(self.last - self.m + 1, SLAB // (3 * self.width * grown**3 * x.shape[1] * x.shape[2]))
        size = [((b - a) << self.m) + 2 for a, b in zip(low, high, strict=True)]
        out: Tensor | None = None
        kept: dict[int, Tensor] = {}
        for start in range(0, len(x) - overlap, step):
            y = x[start : start + step + overlap]
            at = (low[0] << level) - self.halos[first - 1] + start  # of the first plane of y, at its own level
            for k in range(first, self.last):
                ahead = kept.get(k)
                y = self.layers[k](y, True, ahead)
                at = (at << (self.level(k) - self.level(k - 1))) + 1 - (0 if ahead is None else len(ahead))
                kept[k] = y[-self.layers[k + 1].overlap :].clone()
                y = _inner(y, self._excess(k), axes=(1, 2))
                corner = [(a << self.level(k)) - self.halos[k] for a in low]
                y = self._bounded(y, k, [at, *corner[1:]], extent)
            values = self.layers[self.last](y)
            values = torch.tanh_(values if self.dtype == torch.float64 else values.float())
            part = interleave(values if convert is None else convert(values))[0, 0]
            if out is None:
                out = torch.empty(size, dtype=part.dtype, device=part.device)
            at = 2 * at + 1 - ((low[0] << self.m) - 1)
            part = part[max(0, -at) : size[0] - at]
            out[max(0, at) : max(0, at) + len(part)] = part
        assert out is not None
        return out


def _moved(cells: Cells, n: int) -> Cells:
    a, b, c = cells
    return a + n, b + n, c + n


def _inner(x: Tensor, n: int, axes: Sequence[int] = (0, 1, 2)) -> Tensor:
    """x without ``n`` voxels on each side."""
    for axis in axes:
        x = x.narrow(axis, n, x.shape[axis] - 2 * n)
    return x


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
            count += x[..., 0].numel()
            total = total + x.sum((0, 1, 2))
            squares = squares + x.square().sum((0, 1, 2))
        mean = total / count
        found.append((mean, (squares / count - mean.square()).clamp_min(0)))
    return found
