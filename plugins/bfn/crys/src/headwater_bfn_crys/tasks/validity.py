"""Whether a crystal can exist at all: atoms that keep their distance, charges that add up."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from headwater_bfn_crys.crystals import Crystals, wrap_unit

__all__ = ["SMALLEST_VOLUME", "composition_is_valid", "structural_validity"]

SMALLEST_DISTANCE = 0.5
"""Angstrom between two atoms."""

SMALLEST_VOLUME = 0.1
"""Cubic angstrom of a cell, read or generated."""

MOST_IMAGES = 64
"""Cells so thin that more images along an axis matter (0.008 angstrom) count as invalid."""

AT_ONCE = 1 << 21
"""So many vectors between atoms are held in memory together."""


def structural_validity(crystals: Crystals) -> np.ndarray:
    """Whether all pairs of different atoms are at least 0.5 angstrom apart and the cell has 0.1 cubic angstrom, (B,).

    As in the published metric an atom's distance to its own images does not count. Crystals of the same size are
    computed together.
    """
    matrices = crystals.matrices
    volumes = np.abs(np.linalg.det(np.nan_to_num(matrices)))
    finite = np.isfinite(matrices).all((1, 2))
    np.logical_and.at(finite, crystals.crystal_of, np.isfinite(crystals.frac).all(1))
    valid = finite & (volumes >= SMALLEST_VOLUME)
    images = np.zeros((len(crystals), 3), dtype=np.int64)
    images[valid] = _images(matrices[valid])
    reduced: dict[int, np.ndarray] = {}
    for i in np.flatnonzero(valid & (images > 1).any(1)).tolist():
        matrices[i], reduced[i] = _lll(matrices[i])
        images[i] = _images(matrices[i])
    valid &= (images <= MOST_IMAGES).all(1)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in np.flatnonzero(valid & (crystals.num_atoms > 1)).tolist():
        groups.setdefault((int(crystals.num_atoms[i]), *images[i].tolist()), []).append(i)
    offsets = crystals.offsets
    for (n, *reach), members in groups.items():
        shifts = np.array(list(product(*(range(-m, m + 1) for m in reach))), dtype=np.float64)
        first, second = np.triu_indices(n, 1)
        step = max(1, AT_ONCE // (len(first) * len(shifts)))
        for start in range(0, len(members), step):
            some = np.array(members[start : start + step])
            frac = crystals.frac[offsets[some][:, None] + np.arange(n)]
            for row, i in enumerate(some.tolist()):
                if i in reduced:
                    frac[row] = wrap_unit(frac[row] @ reduced[i])
            between = frac[:, first] - frac[:, second]
            between -= np.round(between)
            vectors = (between[:, :, None] + shifts) @ matrices[some][:, None]
            valid[some] = (vectors**2).sum(-1).min((1, 2)) >= SMALLEST_DISTANCE**2
    return valid


def _images(matrices: np.ndarray) -> np.ndarray:
    """How many images along each axis can bring two atoms within the smallest distance r, (..., 3).

    A vector v has along axis k at most |v| / h_k in fractions of the cell, h_k the distance of its lattice planes. So
    a difference d wrapped to [-1/2, 1/2] plus n cells can only be as short as r for |n| <= r / h_k + 1/2.
    """
    spacings = 1.0 / np.linalg.norm(np.linalg.inv(matrices), axis=-2)
    return np.floor(np.minimum(SMALLEST_DISTANCE / spacings + 0.5, MOST_IMAGES + 1)).astype(np.int64)


def _lll(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lattice rows with short vectors (3, 3), and what turns fractions of the old cell into those of the new."""
    from pymatgen.core import Lattice

    short = Lattice(matrix).get_lll_reduced_lattice().matrix
    return short, matrix @ np.linalg.inv(short)


def composition_is_valid(options: tuple[str, int], composition: Sequence[tuple[int, int]]) -> bool:
    """Whether SMACT finds oxidation states that are neutral and in the order of electronegativity.

    Elements and alloys of metals are valid. ``options``: the set of oxidation states, and the most elements; beyond
    that a composition counts as invalid, for the states to try grow exponentially.
    """
    from ase.data import chemical_symbols
    from pymatgen.core import Composition
    from smact.screening import smact_validity

    states, most = options
    if len(composition) > most:
        return False
    return bool(
        smact_validity(
            Composition({chemical_symbols[z]: n for z, n in composition}),
            use_pauling_test=True,
            include_alloys=True,
            oxidation_states_set=states,
        )
    )
