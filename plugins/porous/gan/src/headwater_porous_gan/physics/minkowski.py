"""Minkowski functionals of the grains from one histogram of the 256 configurations of 2x2x2 voxels.

Bit i + 2 j + 4 k of a configuration is set where the voxel at offset (k, j, i) along axes (0, 1, 2) is grain. The
window is not padded: the functionals are those of the interface inside it, and histograms of tiles that share one
plane of voxels add up to that of the whole.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

__all__ = ["Functionals", "configurations", "functionals", "minkowski", "tables"]

BLOCK = 1 << 23
"""Voxels that are held at a time."""

C1, C2, C3 = 0.0915557824, 0.0739612558, 0.0703912796
"""Share of the sphere nearest to an axis, a face diagonal and a space diagonal (3 C1 + 6 C2 + 4 C3 = 1)."""


@dataclass(frozen=True)
class Functionals:
    """Functionals of the grain phase in a window, in voxel units.

    Args:
        volume: volume of grain, each configuration counting an eighth for each of its grain voxels.
        surface: area of the interface, Crofton formula in 13 directions.
        faces: unlike pairs of nearest neighbours, the area of the voxel faces between the phases.
        breadth: mean breadth; the integral of mean curvature is 2 pi times this.
        euler6: Euler number with grains joined through faces (pores through faces, edges and corners).
        euler26: Euler number with grains joined through faces, edges and corners (pores through faces).
        cells: number of configurations, (d0 - 1) (d1 - 1) (d2 - 1): divide by it for densities.
    """

    volume: float
    surface: float
    faces: float
    breadth: float
    euler6: float
    euler26: float
    cells: int


def configurations(phase: Any) -> np.ndarray:
    """Histogram int64 (256,) of the 2x2x2 configurations of a uint8 volume (d0, d1, d2), 0 pore and 1 grain.

    Pages are read about 2^23 voxels at a time, with one page kept from the slab before; memory is about 12 bytes a
    voxel of a slab.
    """
    histogram = np.zeros(256, np.int64)
    step = max(1, BLOCK // max(1, phase.shape[1] * phase.shape[2]))
    before: np.ndarray | None = None
    for start in range(0, phase.shape[0], step):
        slab = np.asarray(phase[start : start + step])
        flat = slab[:, :-1, :-1] | slab[:, :-1, 1:] << 1 | slab[:, 1:, :-1] << 2 | slab[:, 1:, 1:] << 3
        layers = flat if before is None else np.concatenate([before, flat])
        histogram += np.bincount((layers[:-1] | layers[1:] << 4).ravel(), minlength=256)
        before = flat[-1:]
    return histogram


@cache
def tables() -> dict[str, np.ndarray]:
    """Contribution of each configuration to each functional, float64 (256,).

    volume: v/8 for v grain voxels.
    surface: 2 (C1 e/4 + C2 f/(2 sqrt 2) + C3 d/sqrt 3), with e, f, d the unlike pairs among the 12 edges, 12 face
    diagonals and 4 space diagonals; faces: e/4.
    breadth: C1/2 sum chi(6 faces) + C2/sqrt 2 sum chi(6 diagonal rectangles) + C3/sqrt 3 sum chi(8 corner triangles),
    with chi = v/4 - e/2 + f of a rectangle and v/6 - e/2 + f of a triangle (v grain corners, e sides and f polygons
    that are all grain): a corner is shared by 4 rectangles or 6 triangles of a section.
    euler6: v/8 - e/4 + f/2 - c, with e, f, c the edges, faces and cube that are all grain; euler26: the same, read at
    the complement.
    """
    corners = list(itertools.product((0, 1), repeat=3))
    number = {corner: corner[2] + 2 * corner[1] + 4 * corner[0] for corner in corners}
    grain = np.arange(256)[:, None] >> np.arange(8) & 1

    def distance(a: int, b: int) -> int:
        return bin(a ^ b).count("1")

    pairs = {n: [(a, b) for a, b in itertools.combinations(range(8), 2) if distance(a, b) == n] for n in (1, 2, 3)}
    unlike = {n: sum((grain[:, a] != grain[:, b]).astype(float) for a, b in found) for n, found in pairs.items()}
    faces, rectangles = [], []
    for axis in range(3):
        other = [i for i in range(3) if i != axis]
        for side in (0, 1):
            cycle = [(0, 0), (0, 1), (1, 1), (1, 0)]
            faces.append([number[_at({axis: side, other[0]: p, other[1]: q})] for p, q in cycle])
        # Two opposite edges along `axis`, joined by face diagonals.
        for flip in (0, 1):
            ends = [(0, flip), (1, 1 - flip)]
            edge = [[number[_at({axis: t, other[0]: p, other[1]: q})] for t in (0, 1)] for p, q in ends]
            rectangles.append([edge[0][0], edge[0][1], edge[1][1], edge[1][0]])
    triangles = [[c ^ 1, c ^ 2, c ^ 4] for c in range(8)]

    def chi(polygons: list[list[int]], shared: int) -> np.ndarray:
        total = np.zeros(256)
        for polygon in polygons:
            own = grain[:, polygon]
            sides = (own & np.roll(own, -1, axis=1)).sum(1)
            total += own.sum(1) / shared - sides / 2 + own.all(1)
        return total

    filled = sum((grain[:, a] & grain[:, b]).astype(float) for a, b in pairs[1])
    euler6 = grain.sum(1) / 8 - filled / 4 + sum(grain[:, f].all(1).astype(float) for f in faces) / 2 - grain.all(1)
    return {
        "volume": grain.sum(1) / 8,
        "surface": 2 * (C1 * unlike[1] / 4 + C2 * unlike[2] / (2 * math.sqrt(2)) + C3 * unlike[3] / math.sqrt(3)),
        "faces": unlike[1] / 4,
        "breadth": C1 / 2 * chi(faces, 4)
        + C2 / math.sqrt(2) * chi(rectangles, 4)
        + C3 / math.sqrt(3) * chi(triangles, 6),
        "euler6": euler6,
        "euler26": euler6[::-1].copy(),
    }


def _at(values: dict[int, int]) -> tuple[int, int, int]:
    return values[0], values[1], values[2]


def functionals(histogram: np.ndarray) -> Functionals:
    """The functionals that a histogram of configurations stands for."""
    found = {name: float(histogram @ table) for name, table in tables().items()}
    return Functionals(**found, cells=int(histogram.sum()))


def minkowski(phase: Any) -> Functionals:
    """Minkowski functionals of the grains of a uint8 volume (d0, d1, d2), 0 pore and 1 grain, window not padded."""
    return functionals(configurations(phase))
