"""Many crystals as flat arrays: what training reads, the sampler makes and files hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Crystals"]


@dataclass(frozen=True)
class Crystals:
    """B crystals of N atoms in all, one after another.

    Args:
        numbers: atomic numbers, int64 of shape (N,).
        frac: fractional coordinates in [0, 1), float64 of shape (N, 3).
        lengths: cell edges a, b, c in angstrom, float64 of shape (B, 3).
        angles: cell angles alpha, beta, gamma in degrees, float64 of shape (B, 3).
        num_atoms: atoms in each crystal, int64 of shape (B,), summing to N.
        ids: a name for each crystal, B strings, or empty.
    """

    numbers: np.ndarray
    frac: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray
    num_atoms: np.ndarray
    ids: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.num_atoms)
