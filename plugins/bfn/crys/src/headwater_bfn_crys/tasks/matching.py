"""Which crystals are the same, by pymatgen's StructureMatcher."""

from functools import cache, cached_property
from typing import TYPE_CHECKING

from headwater_bfn_crys.crystals import Crystals

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher

__all__ = ["Matching", "displacement", "first_match"]

STOL, ANGLE_TOL, LTOL = 0.5, 10.0, 0.3
"""Tolerances of crystal structure prediction: sites in (V/N)^(1/3), angles in degrees, edges as a fraction."""


class Matching:
    """Samples beside references, as the processes that match them need them; structures are made once in each."""

    def __init__(self, samples: Crystals, references: Crystals) -> None:
        self.samples, self.references = samples, references

    def __getstate__(self) -> dict[str, Crystals]:
        return {"samples": self.samples, "references": self.references}

    @cached_property
    def sample(self) -> "_Structures":
        return _Structures(self.samples)

    @cached_property
    def reference(self) -> "_Structures":
        return _Structures(self.references)


class _Structures:
    """Structures of crystals, made on first use: as they are, and reduced as the matcher reduces them."""

    def __init__(self, crystals: Crystals) -> None:
        self.plain = cache(lambda i: crystals[i : i + 1].structures()[0])
        self.reduced = cache(lambda i: self.plain(i).get_reduced_structure().get_primitive_structure())


@cache
def _matcher(published: bool) -> "StructureMatcher":
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(stol=STOL, angle_tol=ANGLE_TOL, ltol=LTOL) if published else StructureMatcher()


def displacement(pair: Matching, item: tuple[int, int]) -> float | None:
    """Root mean square displacement of a sample from a reference in (V/N)^(1/3), ``None`` where they do not match."""
    sample, reference = item
    found = _matcher(True).get_rms_dist(pair.sample.plain(sample), pair.reference.plain(reference))
    return None if found is None else float(found[0])


def first_match(pair: Matching, item: tuple[int, tuple[int, ...]]) -> int | None:
    """The first of some references that a sample matches, ``None`` where it matches none; default tolerances."""
    sample, references = item
    mine = pair.sample.reduced(sample)
    for i in references:
        if _matcher(False).fit(mine, pair.reference.reduced(i), skip_structure_reduction=True):
            return i
    return None
