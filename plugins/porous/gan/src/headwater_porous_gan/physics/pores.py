"""Pore space: porosity, what of it connects opposite faces, chord lengths and local thickness."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from headwater.errors import UsageError

__all__ = [
    "Connection",
    "chord_lengths",
    "connected_porosity",
    "local_thickness",
    "mean_chord",
    "percolating",
    "porosity",
]

BLOCK = 1 << 24
"""Voxels that are held at a time."""


def porosity(phase: Any) -> float:
    """Share of voxels that are pore (0) in a uint8 volume; read slab by slab."""
    grain = sum(int(np.count_nonzero(phase[a:b])) for a, b in _slabs(phase.shape))
    return 1 - grain / math.prod(phase.shape)


def _slabs(shape: Sequence[int]) -> list[tuple[int, int]]:
    step = max(1, BLOCK // (shape[1] * shape[2]))
    return [(a, min(a + step, shape[0])) for a in range(0, shape[0], step)]


@dataclass(frozen=True)
class Connection:
    """Porosity in 6-connected components by what they touch.

    Args:
        axes: porosity of the components that touch both end faces of an axis, for axes 0, 1 and 2.
        any: porosity of the components that do so for at least one axis.
        components: number of pore components.
    """

    axes: tuple[float, float, float]
    any: float
    components: int


def connected_porosity(phase: Any) -> Connection:
    """Effective porosity along each axis: voxels of 6-connected pore components that touch both end faces.

    Slabs are labelled one after another and joined where pores meet between two pages, so memory is that of one slab
    (5 bytes a voxel) and a few numbers for each component.
    """
    sizes: list[np.ndarray] = [np.zeros(1, np.int64)]
    touches: list[np.ndarray] = [np.zeros(1, np.uint8)]
    links: list[np.ndarray] = []
    total = 0
    last: np.ndarray | None = None
    for a, b in _slabs(phase.shape):
        labels, n = scipy.ndimage.label(np.asarray(phase[a:b]) == 0)
        sizes.append(np.bincount(labels.ravel(), minlength=n + 1)[1:])
        touch = np.zeros(n + 1, np.uint8)
        ends = [labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]]
        for bit, face in enumerate(ends, start=2):
            touch[np.unique(face)] |= np.uint8(1 << bit)
        if a == 0:
            touch[np.unique(labels[0])] |= np.uint8(1)
        if b == phase.shape[0]:
            touch[np.unique(labels[-1])] |= np.uint8(2)
        touches.append(touch[1:])
        first = np.where(labels[0] > 0, labels[0].astype(np.int64) + total, 0)
        if last is not None:
            both = (first > 0) & (last > 0)
            if both.any():
                links.append(np.unique(np.stack([last[both], first[both]], 1), axis=0))
        last = np.where(labels[-1] > 0, labels[-1].astype(np.int64) + total, 0)
        total += n
    size, touch = np.concatenate(sizes), np.concatenate(touches)
    group = _groups(total + 1, links)
    number = int(group.max()) + 1
    volume = np.bincount(group, size, number)
    faces = np.zeros(number, np.uint8)
    np.bitwise_or.at(faces, group[1:], touch[1:])
    through = [(faces >> 2 * axis & 3) == 3 for axis in range(3)]
    voxels = math.prod(phase.shape)
    each = tuple(float(volume[t].sum() / voxels) for t in through)
    return Connection(each, float(volume[np.any(through, axis=0)].sum() / voxels), number - 1)  # type: ignore[arg-type]


def _groups(n: int, links: Sequence[np.ndarray]) -> np.ndarray:
    """Number of the component of each of ``n`` labels (0, the grains, is one of its own) under pairs that are one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate(links) if links else np.empty((0, 2), np.int64)
    graph = coo_array((np.ones(len(pairs), np.uint8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def percolating(phase: np.ndarray, axis: int) -> np.ndarray:
    """Mask of the 6-connected pore components that touch both end faces of ``axis``; bool, the shape of ``phase``."""
    labels, _ = scipy.ndimage.label(np.asarray(phase) == 0)
    ends = np.moveaxis(labels, axis, 0)
    through = np.intersect1d(ends[0], ends[-1])
    return np.isin(labels, through[through > 0])


def chord_lengths(phase: Any, axis: int, value: int = 0) -> np.ndarray:
    """Numbers of chords of each length along ``axis``: runs of ``value`` that do not touch the ends of their line.

    The volume is read in slabs of about 2^24 voxels.

    Returns:
        int64 (d_axis - 1,), the number of chords of 0, 1, 2... voxels.
    """
    n = phase.shape[axis]
    counts = np.zeros(max(n - 1, 1), np.int64)
    if axis == 0:
        _chords_through_pages(phase, value, counts)
        return counts
    for a, b in _slabs(phase.shape):
        lines = np.moveaxis(np.asarray(phase[a:b]) == value, axis, -1).reshape(-1, n)
        change = np.diff(lines.astype(np.int8), axis=1)
        rises, falls = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
        # Each rise is followed by its fall in the same line, or by none there: the run reaches the end.
        nxt = np.searchsorted(falls, rises)
        inside = nxt < len(falls)
        rises, falls = rises[inside], falls[nxt[inside]]
        same = rises // (n - 1) == falls // (n - 1)
        counts += np.bincount(falls[same] - rises[same], minlength=len(counts))
    return counts


def _chords_through_pages(phase: Any, value: int, counts: np.ndarray) -> None:
    """Chords along axis 0, page after page: only where each line's run began is kept, 0 for the end of the line."""
    before: np.ndarray | None = None
    began = np.zeros(phase.shape[1:], np.int32)
    for a, b in _slabs(phase.shape):
        for z, page in enumerate(np.asarray(phase[a:b]) == value, start=a):
            if before is not None:
                ends = before & ~page & (began > 0)
                counts += np.bincount(z - began[ends], minlength=len(counts))
                began[page & ~before] = z
            before = page


def mean_chord(counts: np.ndarray) -> float:
    """Mean of a distribution of chord lengths, in voxels; NaN without any chord."""
    number = counts.sum()
    return float(np.arange(len(counts)) @ counts / number) if number else math.nan


def local_thickness(phase: np.ndarray, value: int = 0, sizes: int = 25) -> np.ndarray:
    """Radius in voxels of the largest sphere inside the phase ``value`` that covers each voxel; 0 outside (porespy).

    ``sizes`` is the number of radii tried. Memory grows with the volume: take a crop of a large one.

    Raises:
        UsageError: porespy is not installed.
    """
    try:
        import porespy
    except ImportError as error:
        raise UsageError("local thickness needs porespy; try: pip install 'headwater-porous-gan[physics]'") from error
    porespy.settings.tqdm["disable"] = True
    return np.asarray(porespy.filters.local_thickness(np.asarray(phase) == value, sizes=sizes))
