"""Chemical formulas in words of the user."""

import numpy as np
from headwater import UsageError

__all__ = ["parse_formula"]


MOST_ATOMS = 1000
"""Atoms of one cell that may be asked for."""


def parse_formula(text: str) -> np.ndarray:
    """The atoms of a cell with this content, as atomic numbers in ascending order, int64 of shape (N,).

    The formula is taken as it stands: ``"SrTiO3"`` has 5 atoms, ``"Sr2Ti2O6"`` 10, ``"Ca3(PO4)2"`` 13.

    Raises:
        UsageError: it cannot be read, has an unknown element or a fraction of an atom, or too many atoms.

    Example:
        >>> parse_formula("SrTiO3").tolist()
        [8, 8, 8, 22, 38]
    """
    from pymatgen.core import Composition

    try:
        amounts = {element.Z: amount for element, amount in Composition(text, strict=True).items()}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{text!r} is no chemical formula ({error}); write one such as SrTiO3") from error
    if not amounts:
        raise UsageError(f"{text!r} is no chemical formula; write one such as SrTiO3")
    if any(amount != int(amount) for amount in amounts.values()):
        raise UsageError(f"{text!r} has a fraction of an atom; multiply it out to whole atoms of one cell")
    total = int(sum(amounts.values()))
    if total > MOST_ATOMS:
        raise UsageError(f"{text!r} has {total} atoms; a cell of at most {MOST_ATOMS} can be asked for")
    return np.sort(np.repeat(list(amounts), [int(n) for n in amounts.values()]).astype(np.int64))
