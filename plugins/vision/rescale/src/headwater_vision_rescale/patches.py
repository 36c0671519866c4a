"""Random patches of large images with their small ones, cut by one gather for the whole batch."""

from collections.abc import Sequence

import numpy as np
import torch
from headwater.errors import DataError
from torch import Tensor

from headwater_vision_rescale.tasks.scoring import bicubic_bytes, cropped

__all__ = ["PatchPool"]


class PatchPool:
    """uint8 images with their small versions, in memory.

    The guide of a training image is computed once for the whole image: MATLAB's bicubic, 8-bit.
    """

    def __init__(self, images: Sequence[tuple[np.ndarray, np.ndarray | None]], scale: int, patch: int) -> None:
        large = [cropped(image, scale) for image, _ in images]
        small = []
        for image, (_, given) in zip(large, images, strict=True):
            height, width = (n // scale for n in image.shape[:2])
            if given is None:
                small.append(bicubic_bytes(image, 1 / scale))
            elif given.shape[0] < height or given.shape[1] < width:
                raise DataError(
                    f"a small training image is {given.shape[1]}x{given.shape[0]}; {width}x{height} is needed at "
                    f"scale {scale}"
                )
            else:
                small.append(given[:height, :width])
        if not large or min(min(image.shape[:2]) for image in large) < patch:
            raise DataError(f"training images of {patch}x{patch} pixels or more are needed; see task.skip_bad")
        self.scale, self.patch = scale, patch
        self.large, self.small = _Flat(large), _Flat(small)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` patches uint8 (n, 3, p, p) and their small ones (n, 3, p/s, p/s), turned and mirrored at random.

        The corner is a multiple of the scale, so both show the same.
        """
        which = torch.randint(len(self.large.widths), (n,), generator=generator)
        edge = self.patch // self.scale
        room = torch.stack([self.small.heights[which], self.small.widths[which]]) - edge + 1
        corner = (torch.rand(2, n, generator=generator, dtype=torch.float64) * room).long()
        turn = torch.randint(8, (n,), generator=generator)
        return (
            self.large.cut(which, corner * self.scale, self.patch, turn),
            self.small.cut(which, corner, edge, turn),
        )


class _Flat:
    """Images of several sizes in one tensor of pixels (T, 3)."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.pixels = torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images]))
        self.heights = torch.tensor([image.shape[0] for image in images])
        self.widths = torch.tensor([image.shape[1] for image in images])
        self.starts = torch.cumsum(self.heights * self.widths, 0) - self.heights * self.widths

    def cut(self, which: Tensor, corner: Tensor, edge: int, turn: Tensor) -> Tensor:
        """Squares of ``edge`` at ``corner`` (2, n), each in one of the eight positions of a square."""
        i = torch.arange(edge).view(1, -1, 1).expand(len(which), edge, edge)
        j = i.transpose(1, 2)
        mirrored_i, mirrored_j, swapped = ((turn >> bit & 1).bool().view(-1, 1, 1) for bit in range(3))
        row, column = torch.where(swapped, j, i), torch.where(swapped, i, j)
        row = torch.where(mirrored_i, edge - 1 - row, row) + corner[0].view(-1, 1, 1)
        column = torch.where(mirrored_j, edge - 1 - column, column) + corner[1].view(-1, 1, 1)
        index = self.starts[which].view(-1, 1, 1) + row * self.widths[which].view(-1, 1, 1) + column
        return self.pixels[index].permute(0, 3, 1, 2)
