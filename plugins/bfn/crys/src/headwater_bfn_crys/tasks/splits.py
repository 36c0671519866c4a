"""Which crystals train, validate and test."""

import math

import numpy as np

from headwater_bfn_crys.crystals import Crystals

__all__ = ["reduced_composition", "split"]


def reduced_composition(composition: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Atomic numbers with their counts in one formula unit.

    Example:
        >>> reduced_composition(((8, 6), (22, 2), (38, 2)))
        ((8, 3), (22, 1), (38, 1))
    """
    units = math.gcd(*(n for _, n in composition))
    return tuple((z, n // units) for z, n in composition)


def split(crystals: Crystals, fractions: tuple[float, ...], seed: int, by_composition: bool) -> list[Crystals]:
    """Draw parts with these shares of the crystals, and last what is left, each in the order of ``crystals``.

    By composition, all crystals of a reduced formula come into one part; parts are filled one after another, so they
    can exceed their share by less than one formula's crystals.
    """
    groups: list[list[int]] = [[i] for i in range(len(crystals))]
    if by_composition:
        of: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for i, composition in enumerate(crystals.compositions):
            of.setdefault(reduced_composition(composition), []).append(i)
        groups = list(of.values())
    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    parts = []
    for fraction in fractions:
        part: list[int] = []
        while order and len(part) < round(fraction * len(crystals)):
            part += order.pop()
        parts.append(crystals[sorted(part)])
    return [*parts, crystals[sorted(i for group in order for i in group)]]
