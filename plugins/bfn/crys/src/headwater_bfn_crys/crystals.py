"""Many crystals as flat arrays: what training reads, the sampler makes and files hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

__all__ = ["Crystals", "cell_matrix", "cell_parameters", "cell_volume", "wrap_unit"]


def wrap_unit(frac: np.ndarray) -> np.ndarray:
    """Fractional coordinates of any shape, float64, wrapped to [0, 1).

    A tiny negative number modulo 1 rounds to 1.0, which is not in the cell: it becomes 0.
    """
    wrapped = np.mod(np.asarray(frac, dtype=np.float64), 1.0)
    wrapped[wrapped >= 1.0] = 0.0
    return wrapped


def cell_matrix(lengths: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Lattice vectors as rows (..., 3, 3), in angstrom, in the canonical orientation.

    With edges a, b, c ``lengths`` (..., 3) in angstrom and alpha, beta, gamma ``angles`` (..., 3) in degrees:
    a = a (sin beta, 0, cos beta), b = b (-sin alpha cos g*, sin alpha sin g*, cos alpha), c = c (0, 0, 1), where
    cos g* = (cos alpha cos beta - cos gamma) / (sin alpha sin beta), cut to [-1, 1]. An angle of 0 gives NaN.

    Example:
        >>> cell_matrix(np.array([2.0, 3.0, 4.0]), np.array([90.0, 90.0, 90.0])).round(9).tolist()
        [[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 4.0]]
    """
    lengths = np.asarray(lengths, dtype=np.float64)
    cos, sin = _cosines(angles)
    with np.errstate(divide="ignore", invalid="ignore"):
        star = (cos[..., 0] * cos[..., 1] - cos[..., 2]) / (sin[..., 0] * sin[..., 1])
    star = np.where(np.isfinite(star), np.clip(star, -1.0, 1.0), np.nan)
    matrix = np.zeros((*lengths.shape, 3))
    matrix[..., 0, 0] = lengths[..., 0] * sin[..., 1]
    matrix[..., 0, 2] = lengths[..., 0] * cos[..., 1]
    matrix[..., 1, 0] = -lengths[..., 1] * sin[..., 0] * star
    matrix[..., 1, 1] = lengths[..., 1] * sin[..., 0] * np.sqrt(1.0 - star**2)
    matrix[..., 1, 2] = lengths[..., 1] * cos[..., 0]
    matrix[..., 2, 2] = lengths[..., 2]
    return matrix + 0.0  # zero without a sign


def cell_parameters(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges (..., 3) in angstrom and angles alpha, beta, gamma (..., 3) in degrees of lattice rows (..., 3, 3)."""
    matrix = np.asarray(matrix, dtype=np.float64)
    lengths = np.linalg.norm(matrix, axis=-1)
    unit = matrix / np.maximum(lengths, np.finfo(np.float64).tiny)[..., None]
    u, v = unit[..., [1, 0, 0], :], unit[..., [2, 2, 1], :]
    cos = (u * v).sum(-1)
    # The arc cosine loses half the digits near 0 and 180 degrees; the arc tangent of cross and dot loses none.
    x, y = [1, 2, 0], [2, 0, 1]
    sin = np.linalg.norm(u[..., x] * v[..., y] - u[..., y] * v[..., x], axis=-1)
    return lengths, np.degrees(np.arctan2(sin, cos))


def cell_volume(lengths: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Volumes (...,) in cubic angstrom: abc sqrt(1 - sum of cos^2 + 2 times the product of the cosines).

    Three angles that close no cell have the volume 0.
    """
    cos, _ = _cosines(angles)
    square = 1.0 - (cos**2).sum(-1) + 2.0 * cos.prod(-1)
    return np.asarray(lengths, dtype=np.float64).prod(-1) * np.sqrt(np.maximum(square, 0.0))


def _cosines(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of angles in degrees; those of right angles are 0 and 1 exactly."""
    angles = np.asarray(angles, dtype=np.float64)
    cos = np.where(angles == 90.0, 0.0, np.cos(np.radians(angles)))
    return cos, np.sin(np.radians(angles))


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

    Example:
        >>> salt = Crystals.of([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [3.0, 3.0, 3.0], [90.0, 90.0, 90.0], "salt")
        >>> both = Crystals.concatenate([salt, salt])
        >>> len(both), both[1:].ids, both.formulas
        (2, ('salt',), ('Na1 Cl1', 'Na1 Cl1'))
    """

    numbers: np.ndarray
    frac: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray
    num_atoms: np.ndarray
    ids: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.num_atoms)

    def __getitem__(self, index: "slice | Sequence[int] | np.ndarray") -> "Crystals":
        """The crystals of a slice, of a list of positions, or where a mask is true, in that order."""
        if isinstance(index, int | np.integer):
            raise TypeError(f"write [{index}:{index + 1}]: a part of Crystals is Crystals")
        chosen = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index, dtype=self._kind(index))]
        sizes, starts = self.num_atoms[chosen], self.offsets[chosen]
        # Position of each atom: the start of its crystal plus its place in it.
        atoms = np.repeat(starts - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(sizes.sum())
        ids = tuple(self.ids[i] for i in chosen) if self.ids else ()
        return Crystals(
            self.numbers[atoms], self.frac[atoms], self.lengths[chosen], self.angles[chosen], sizes, ids
        )  # fmt: skip

    @staticmethod
    def _kind(index: "Sequence[int] | np.ndarray") -> type:
        return bool if getattr(index, "dtype", None) == np.bool_ else np.int64

    @property
    def offsets(self) -> np.ndarray:
        """Where each crystal's atoms begin, and where the last one's end, int64 of shape (B + 1,)."""
        return np.concatenate([[0], np.cumsum(self.num_atoms)]).astype(np.int64)

    @property
    def crystal_of(self) -> np.ndarray:
        """The crystal that each atom belongs to, int64 of shape (N,)."""
        return np.repeat(np.arange(len(self)), self.num_atoms)

    @property
    def matrices(self) -> np.ndarray:
        """Lattice rows in the canonical orientation (B, 3, 3), in angstrom."""
        return cell_matrix(self.lengths, self.angles)

    @property
    def volumes(self) -> np.ndarray:
        """Cell volumes (B,) in cubic angstrom."""
        return cell_volume(self.lengths, self.angles)

    @property
    def compositions(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each crystal its atomic numbers with their counts in the cell, ascending."""
        found = []
        for i, j in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            numbers, counts = np.unique(self.numbers[i:j], return_counts=True)
            found.append(tuple(zip(numbers.tolist(), counts.tolist(), strict=True)))
        return tuple(found)

    @property
    def formulas(self) -> tuple[str, ...]:
        """For each crystal the atoms of its cell, such as ``"O3 Ti1 Sr1"``, by atomic number."""
        from ase.data import chemical_symbols

        return tuple(" ".join(f"{chemical_symbols[z]}{n}" for z, n in parts) for parts in self.compositions)

    @classmethod
    def of(cls, numbers: Any, frac: Any, lengths: Any, angles: Any, name: str = "") -> "Crystals":
        """One crystal; its coordinates are wrapped."""
        numbers = np.asarray(numbers, dtype=np.int64)
        return cls(
            numbers,
            wrap_unit(np.asarray(frac, dtype=np.float64).reshape(len(numbers), 3)),
            np.asarray(lengths, dtype=np.float64).reshape(1, 3),
            np.asarray(angles, dtype=np.float64).reshape(1, 3),
            np.array([len(numbers)], dtype=np.int64),
            (name,) if name else (),
        )

    @classmethod
    def concatenate(cls, parts: "Iterable[Crystals]") -> "Crystals":
        """All crystals of ``parts``, in order; without names unless every part has them."""
        some = list(parts)
        named = all(len(part.ids) == len(part) for part in some)
        if not some:
            none = np.zeros((0, 3))
            return cls(np.zeros(0, np.int64), none, none.copy(), none.copy(), np.zeros(0, np.int64))
        return cls(
            np.concatenate([part.numbers for part in some]),
            np.concatenate([part.frac for part in some]),
            np.concatenate([part.lengths for part in some]),
            np.concatenate([part.angles for part in some]),
            np.concatenate([part.num_atoms for part in some]),
            tuple(name for part in some for name in part.ids) if named else (),
        )

    def named(self, ids: Sequence[str]) -> "Crystals":
        """The same crystals under these names."""
        return replace(self, ids=tuple(ids))

    @classmethod
    def from_structures(cls, structures: "Iterable[Structure]", ids: Sequence[str] = ()) -> "Crystals":
        """From ordered pymatgen structures, the cells as they are."""
        made = [
            cls.of([site.specie.Z for site in s], s.frac_coords, s.lattice.abc, s.lattice.angles) for s in structures
        ]
        return cls.concatenate(made).named(ids)

    def structures(self) -> "list[Structure]":
        """One pymatgen structure for each crystal, in the canonical orientation."""
        from ase.data import chemical_symbols
        from pymatgen.core import Lattice, Structure

        symbols = [chemical_symbols[z] for z in self.numbers]
        return [
            Structure(Lattice(matrix), symbols[i:j], self.frac[i:j])
            for matrix, i, j in zip(self.matrices, self.offsets[:-1], self.offsets[1:], strict=True)
        ]

    @classmethod
    def from_atoms(cls, atoms: "Iterable[Atoms]", ids: Sequence[str] = ()) -> "Crystals":
        """From periodic ASE atoms, the cells as they are."""
        made = []
        for one in atoms:
            lengths, angles = cell_parameters(one.cell.array)
            made.append(cls.of(one.numbers, one.get_scaled_positions(wrap=False), lengths, angles))
        return cls.concatenate(made).named(ids)

    def atoms(self) -> "list[Atoms]":
        """One periodic ASE ``Atoms`` for each crystal, in the canonical orientation."""
        from ase import Atoms

        return [
            Atoms(numbers=self.numbers[i:j], scaled_positions=self.frac[i:j], cell=matrix, pbc=True)
            for matrix, i, j in zip(self.matrices, self.offsets[:-1], self.offsets[1:], strict=True)
        ]
