"""Images of any size, tile by tile, with a result that does not depend on the tiles."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["spans", "tiled"]


def spans(size: int, tile: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """For each tile of an axis: where its own part begins and ends, and what is read for it, ``halo`` around.

    Example:
        >>> list(spans(10, 4, 2))
        [(0, 4, 0, 6), (4, 8, 2, 10), (8, 10, 6, 10)]
    """
    for start in range(0, size, tile):
        end = min(start + tile, size)
        yield start, end, max(0, start - halo), min(size, end + halo)


def tiled(
    fn: Callable[..., Tensor], inputs: Sequence[Tensor], *, tile: int, halo: int, times: int = 1, over: int = 1
) -> Tensor:
    """``fn`` of whole images, computed tile by tile.

    Args:
        fn: takes parts of the inputs and gives an output ``times``/``over`` as large.
        inputs: (N, C, H, W) each, on the same pixels; H, W, ``tile`` and ``halo`` are multiples of ``over``.
        halo: how far a pixel can have influence; with less the result differs near the seams.

    An image no larger than a tile with its halo goes through in one piece. At the image's own border a tile ends as
    the image does, so a network pads there alone.
    """
    height, width = inputs[0].shape[-2:]
    if height <= tile + 2 * halo and width <= tile + 2 * halo:
        return fn(*inputs)
    out: Tensor | None = None
    for top, bottom, above, below in spans(height, tile, halo):
        for left, right, before, after in spans(width, tile, halo):
            part = fn(*(x[..., above:below, before:after] for x in inputs))
            if out is None:
                shape = (*part.shape[:-2], height * times // over, width * times // over)
                out = torch.empty(shape, dtype=part.dtype, device=part.device)
            a, b, c, d = (v * times // over for v in (top, bottom, left, right))
            i, j = (top - above) * times // over, (left - before) * times // over
            out[..., a:b, c:d] = part[..., i : i + b - a, j : j + d - c]
    assert out is not None
    return out
