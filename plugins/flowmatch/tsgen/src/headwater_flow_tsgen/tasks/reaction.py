"""One elementary reaction, and what must be true of it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from headwater import DataError

__all__ = ["NEAREST", "Reaction", "check", "symbols"]

NEAREST = 0.4
"""Atoms nearer than this (Angstrom) overlap: the shortest bond there is, H-H, has 0.74."""


@dataclass(frozen=True)
class Reaction:
    """Reactant, product and, where it is known, the transition state (TS): the same atoms in the same order.

    ``numbers`` (N,) are atomic numbers, coordinates (N, 3) in Angstrom, ``barrier`` is E(TS) - E(reactant) in
    kcal/mol. ``group`` names what must stay on one side of a split (the reactant);
    ``part`` is train, val or test where the data says so. ``info`` is written along.
    """

    numbers: np.ndarray
    reactant: np.ndarray
    product: np.ndarray
    ts: np.ndarray | None = None
    name: str = ""
    group: str = ""
    part: str = ""
    barrier: float | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)


def symbols(numbers: np.ndarray) -> list[str]:
    """Chemical symbols."""
    return [chemical_symbols[int(z)] for z in numbers]


def check(reaction: Reaction, where: str) -> Reaction:
    """Return ``reaction`` if a model can use it.

    Raises:
        DataError: an atom is of no element, coordinates are missing or not finite, or atoms overlap; names ``where``
            and the atoms.
    """
    n = len(reaction.numbers)
    if n < 2:
        raise DataError(f"{where}: a reaction needs at least 2 atoms, and this has {n}")
    known = (reaction.numbers >= 1) & (reaction.numbers < len(chemical_symbols))
    if not known.all():
        odd = int(np.flatnonzero(~known)[0])
        raise DataError(f"{where}: atom {odd + 1} has the atomic number {reaction.numbers[odd]}, which is no element")
    frames = (("reactant", reaction.reactant), ("transition state", reaction.ts), ("product", reaction.product))
    for role, x in frames:
        if x is None:
            continue
        if x.shape != (n, 3):
            raise DataError(f"{where}, {role}: coordinates of shape {x.shape} for {n} atoms")
        bad = np.flatnonzero(~np.isfinite(x).all(1))
        if len(bad):
            raise DataError(f"{where}, {role}: the coordinates of atom {bad[0] + 1} are not finite numbers")
        distance = np.linalg.norm(x[:, None] - x[None], axis=-1) + np.diag(np.full(n, np.inf))
        i, j = np.unravel_index(int(distance.argmin()), distance.shape)
        if distance[i, j] < NEAREST:
            a, b = symbols(reaction.numbers[[i, j]])
            raise DataError(
                f"{where}, {role}: atoms {i + 1} ({a}) and {j + 1} ({b}) overlap, {distance[i, j]:.2f} A apart; "
                "coordinates are to be in Angstrom"
            )
    return reaction
