"""Latents that are addressed, not drawn in turn: what a cell holds depends on seed, channel and place alone.

So any tile can be made by itself, in any order and in parallel, and a finished volume can be extended later.
The random words are those of Philox4x32-10 (Salmon et al., SC 2011), the counter being the cell's place and a group of
four channels; Box and Muller's transform makes them normal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Latents", "philox"]

LOW = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
CHUNK = 1 << 14
"""Counters at a time: their words stay in the processor's cache."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words for every counter of four 32-bit words, under a 64-bit key.

    All words are int64 tensors with values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & LOW, key >> 32 & LOW
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # modulo 2^64: the bits are right, the sign is not
        c0, c1, c2, c3 = (p1 >> 32 & LOW) ^ c1 ^ k0, p1 & LOW, (p0 >> 32 & LOW) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def _normal(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two normal numbers (float64) from two uniform 32-bit words."""
    radius = ((first.double() + 0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
    angle = second.double().mul_(2 * math.pi * 2.0**-32)
    return radius * angle.cos(), radius.mul_(angle.sin_())


@dataclass(frozen=True)
class Latents:
    """A field of latent vectors over integer cells.

    Args:
        channels: nz.
        key: 64-bit key of the field.
        extent: number of cells along each axis, counted from 0, beyond which there is nothing (zeros); without, the
            field has no end.
        period: number of cells along each axis after which the field repeats itself.
        table: (nz, n0, n1, n2) numbers drawn before; they then stand for the random ones, ``extent`` being their shape.
        offset: cell at which the table begins.
        device: where windows are made.
        dtype: of the windows.
    """

    channels: int
    key: int = 0
    extent: tuple[int, int, int] | None = None
    period: tuple[int, int, int] | None = None
    table: Tensor | None = None
    offset: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - it is immutable
    dtype: torch.dtype = torch.float32

    def window(self, low: Sequence[int], high: Sequence[int]) -> Tensor:
        """The vectors (1, nz, d0, d1, d2) of the cells from ``low`` up to, not including, ``high``."""
        places = [torch.arange(a, b, device=self.device) for a, b in zip(low, high, strict=True)]
        if self.period is not None:
            places = [place % p for place, p in zip(places, self.period, strict=True)]
        inside = None
        if self.extent is not None:
            inside = [(place >= 0) & (place < n) for place, n in zip(places, self.extent, strict=True)]
        if self.table is not None:
            found = self._of_table(places)
        else:
            found = self._of_counters(places)
        if inside is not None:
            for axis, keep in enumerate(inside):
                shape = [1] * 4
                shape[axis + 1] = -1
                found = found * keep.view(shape)
        return found.unsqueeze(0).to(self.dtype)

    def _of_table(self, places: list[Tensor]) -> Tensor:
        assert self.table is not None
        i, j, k = ((place - self.offset).clamp(0, n - 1) for place, n in zip(places, self.table.shape[1:], strict=True))
        return self.table[:, i][:, :, j][:, :, :, k]

    def _of_counters(self, places: list[Tensor]) -> Tensor:
        groups = torch.arange(-(-self.channels // 4), device=self.device)
        sizes = [len(place) for place in places]
        grid = torch.meshgrid(groups, *(place & LOW for place in places), indexing="ij")
        group, *cell = (g.flatten() for g in grid)
        found = torch.empty(4, len(group), dtype=torch.float32, device=self.device)
        step = CHUNK if self.device.type == "cpu" else len(group)
        for start in range(0, len(group), step):
            part = slice(start, start + step)
            words = philox((cell[0][part], cell[1][part], cell[2][part], group[part]), self.key)
            found[0, part], found[1, part] = _normal(words[0], words[1])
            found[2, part], found[3, part] = _normal(words[2], words[3])
        # Channels of a group lie together: (4, groups, cells) to (groups 4, cells).
        return found.view(4, len(groups), *sizes).transpose(0, 1).reshape(4 * len(groups), *sizes)[: self.channels]
