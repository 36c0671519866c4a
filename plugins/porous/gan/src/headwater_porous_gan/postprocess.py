"""From the generator's values in (-1, 1) to two phases: threshold at 0, or the published median filter and Otsu."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["majority", "otsu_level", "paper", "quantised", "reaches"]


def quantised(y: np.ndarray) -> np.ndarray:
    """floor(255 (y / 2 + 1 / 2)) as uint8: what the published code stores."""
    return np.floor((np.asarray(y, np.float32) + 1) * np.float32(127.5)).astype(np.uint8)


def paper(y: np.ndarray) -> np.ndarray:
    """The published post-processing of a whole volume of values in (-1, 1): quantised, 3^3 median, Otsu; 1 is grain."""
    filtered = _filtered(y)
    return (filtered >= _level(filtered)).astype(np.uint8)


def otsu_level(y: np.ndarray, kept: Sequence[slice] = ()) -> int:
    """The smallest stored value (0..255) that counts as grain by Otsu's threshold after the 3^3 median.

    ``kept`` is the part that is not cut off between the two.
    """
    return _level(_filtered(y)[tuple(kept)])


def _filtered(y: np.ndarray) -> np.ndarray:
    from scipy.ndimage import median_filter

    found: np.ndarray = median_filter(quantised(y), 3, mode="reflect")
    return found


def _level(stored: np.ndarray) -> int:
    from skimage.filters import threshold_otsu

    if stored.min() == stored.max():  # one phase only, which Otsu's threshold would not leave alone
        return 128
    return int(np.flatnonzero(np.arange(256) / 255 >= threshold_otsu(stored / 255))[0])


def reaches(y: Tensor, level: int) -> Tensor:
    """Which voxels of values in (-1, 1) are stored as ``level`` or more, as uint8."""
    return ((y + 1) * 127.5 >= level).to(torch.uint8)


def majority(reaching: Tensor) -> Tensor:
    """The 3^3 median under a threshold: the median of 27 values reaches a level where at least 14 of them do.

    Args:
        reaching: uint8 (d0 + 2, d1 + 2, d2 + 2), with one voxel of halo.

    Returns:
        uint8 (d0, d1, d2).
    """
    for axis in range(3):
        n = reaching.shape[axis] - 2
        reaching = reaching.narrow(axis, 0, n) + reaching.narrow(axis, 1, n) + reaching.narrow(axis, 2, n)
    return (reaching >= 14).to(torch.uint8)
