"""Data sets that need no download: the prototypes inside pymatgen, and perovskites built from ionic radii."""

import gzip
import importlib.resources
import json
import math
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from headwater import HeadwaterError

from headwater_bfn_crys.crystals import Crystals
from headwater_bfn_crys.tasks.reading import Item, parse, unique_ids
from headwater_bfn_crys.tasks.task import CrystalTask

__all__ = ["Perovskites", "Prototypes", "aflow_prototypes", "perovskite_compositions", "perovskites"]

HOMES = ("prototypes/aflow_prototypes.json.gz", "aflow_prototypes.json.gz", "aflow_prototypes.json")
"""Where releases of pymatgen keep the prototypes, below pymatgen.analysis, the newest first."""

HEAVIEST = 83
"""Beyond bismuth all elements are radioactive."""

TOLERANCE = (0.8, 1.1)
"""Goldschmidt's tolerance factors between which perovskites are found."""


@cache
def aflow_prototypes() -> Crystals:
    """The AFLOW prototypes inside pymatgen, Niggli-reduced, named by AFLOW's label."""
    folder = importlib.resources.files("pymatgen.analysis")
    found = next((folder.joinpath(home) for home in HOMES if folder.joinpath(home).is_file()), None)
    if found is None:
        raise HeadwaterError("this pymatgen has no AFLOW prototypes; install another: pip install 'pymatgen>=2024.8'")
    raw = found.read_bytes()
    entries = json.loads(gzip.decompress(raw) if found.name.endswith(".gz") else raw)
    return _crystals([(entry["tags"]["aflow"], entry["snl"]) for entry in entries])


def _crystals(entries: list[tuple[str, Any]]) -> Crystals:
    made = [parse(Item(f"prototype {name}", name, "json", structure), reduce=True) for name, structure in entries]
    whole = Crystals.concatenate([one for one in made if isinstance(one, Crystals)])
    return whole.named(unique_ids(whole.ids))


@cache
def perovskite_compositions() -> tuple[tuple[int, int, int, float], ...]:
    """Atomic numbers of A, B, X and the cubic edge in angstrom of all charge-neutral ABX3 that ions would pack into.

    With Shannon's radii r of A for 12 neighbours, of B and X for 6, the tolerance factor
    (r_A + r_X) / (sqrt 2 (r_B + r_X)) lies in ``TOLERANCE``. The edge is the larger of those at which B touches X,
    2 (r_B + r_X), and A touches X, sqrt 2 (r_A + r_X): no ions overlap. Of several charges of the same elements the
    tolerance factor nearest to 1 is taken.
    """
    large, small, anions = _ions("XII", 1), _ions("VI", 1), _ions("VI", -1)
    found: dict[tuple[int, int, int], tuple[float, float]] = {}
    for (a, qa, ra), (b, qb, rb), (x, qx, rx) in product(large, small, anions):
        if a == b or qa + qb + 3 * qx != 0:
            continue
        tolerance = (ra + rx) / (math.sqrt(2.0) * (rb + rx))
        if not TOLERANCE[0] <= tolerance <= TOLERANCE[1]:
            continue
        off = abs(tolerance - 1.0)
        if (a, b, x) not in found or off < found[a, b, x][0]:
            found[a, b, x] = (off, max(2.0 * (rb + rx), math.sqrt(2.0) * (ra + rx)))
    return tuple((*sites, edge) for sites, (_, edge) in sorted(found.items()))


def _ions(neighbours: str, sign: int) -> list[tuple[int, int, float]]:
    """Atomic number, charge and Shannon radius in angstrom of the ions tabulated for so many ``neighbours``."""
    from pymatgen.core import Element

    ions = []
    for element in Element:
        if element.Z > HEAVIEST:
            continue
        for charge, by_number in (element.data.get("Shannon radii") or {}).items():
            if not charge or int(charge) * sign <= 0 or neighbours not in by_number:
                continue
            spins = by_number[neighbours]
            radius = spins.get("High Spin", next(iter(spins.values())))["ionic_radius"]
            ions.append((element.Z, int(charge), float(radius)))
    return ions


def perovskites(n: int, strain: float, seed: int) -> Crystals:
    """``n`` perovskites in the five-site cell: A at the corner, B in the middle, X on the faces.

    Compositions are drawn without repetition while they last, then all of them again. Each cell edge is multiplied by
    1 + ``strain`` times a standard normal number.
    """
    from ase.data import chemical_symbols

    known = perovskite_compositions()
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(len(known)) for _ in range(-(-n // len(known)))])[:n]
    factors = np.maximum(1.0 + strain * generator.standard_normal((n, 3)), 0.5)
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    chosen = [known[i] for i in order]
    # Ascending edges with the sites permuted alike are the Niggli cell of a box with right angles.
    edges = np.array([edge for *_, edge in chosen])[:, None] * factors
    axes = np.argsort(edges, axis=1, kind="stable")
    names = [f"{chemical_symbols[a]}{chemical_symbols[b]}{chemical_symbols[x]}3" for a, b, x, _ in chosen]
    return Crystals(
        np.array([[a, b, x, x, x] for a, b, x, _ in chosen], dtype=np.int64).ravel(),
        np.stack([sites[:, axis] for axis in axes]).reshape(-1, 3),
        np.take_along_axis(edges, axes, axis=1),
        np.full((n, 3), 90.0),
        np.full(n, 5, dtype=np.int64),
        unique_ids(names),
    )


class Prototypes(CrystalTask):
    """The AFLOW prototypes with at most ``max_atoms`` atoms."""

    def load(self) -> Crystals:
        found = aflow_prototypes()
        return found[found.num_atoms <= self.config.max_atoms]


class Perovskites(CrystalTask):
    """Perovskites built from ionic radii."""

    def load(self) -> Crystals:
        return perovskites(self.config.crystals, self.config.strain, self.config.seed)
