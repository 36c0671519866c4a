"""A segmented volume, or one tile of it: what training reads, the sampler makes and files hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Shape", "Volume"]

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Volume:
    """A segmented volume, or the tile of one that begins at ``start``.

    Args:
        phase: uint8 of shape (d0, d1, d2), 0 pore and 1 grain; may be a memory map. Axis 2 runs fastest, as in files.
        voxel_size: edge of a voxel in metres, where it is known.
        start: where the tile begins in the whole volume.
        whole: shape of the whole volume; that of ``phase`` for a volume that is no tile.
        step: shape of the regular tile; tiles begin at multiples of it, those at the end may be smaller.
        number: which realisation of several this is.
        provenance: what made it (seed, weights, batch-norm mode, post-processing): scalars, strings and lists.
    """

    phase: np.ndarray
    voxel_size: float | None = None
    start: Shape = (0, 0, 0)
    whole: Shape = (0, 0, 0)
    step: Shape = (0, 0, 0)
    number: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("whole", "step"):
            if not any(getattr(self, name)):
                object.__setattr__(self, name, self.phase.shape)
