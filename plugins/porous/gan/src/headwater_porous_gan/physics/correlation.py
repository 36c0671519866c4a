"""Two-point statistics of a segmented volume: S2 along the axes and over all directions, and what follows from it.

``phase`` is anything that is sliced like a uint8 array of shape (d0, d1, d2), 0 pore and 1 grain: an array, a memory
map or a file's :class:`~headwater_porous_gan.tasks.formats.Phase`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.fft

__all__ = [
    "chord_means",
    "complement",
    "interface_slope",
    "kappa",
    "s2_directional",
    "s2_mean",
    "s2_radial",
    "specific_surface",
]

BLOCK = 1 << 24
"""Voxels that are held at a time."""

BITS = 1 << 28
"""Bytes of packed lines along axis 0 that are held at a time: as many times as they fill, the volume is read."""

CACHE = 1 << 15
"""64-bit words (256 KB) that one pass over all lags works on: they stay in the second-level cache."""


def s2_directional(phase: Any, lags: int | None = None) -> list[np.ndarray]:
    """S2 of the pores along each axis, without wrapping.

        S2_a(r) = sum over x of I(x) I(x + r e_a) / number of such pairs in the volume,    r = 0..lags

    with I = 1 in pores. Lines are packed to bits and products counted with AND and population count, so the sums are
    exact integers. Memory: about 2^24 voxels as bytes, and at most 512 MB of bits for the lines along axis 0, which
    run through all pages (a volume of 2048^3 is read four times for them).

    Args:
        phase: uint8 (d0, d1, d2), 0 pore and 1 grain.
        lags: the longest lag; that of each axis (its length less one) without.

    Returns:
        One float64 array for each axis of the array, of length min(lags, d_a - 1) + 1.
    """
    found = []
    for axis in range(3):
        n = phase.shape[axis]
        most = n - 1 if lags is None else min(lags, n - 1)
        counts = np.zeros(most + 1, np.int64)
        for block in _line_blocks(phase, axis):
            counts += _pair_counts(block, most)
        lines = math.prod(phase.shape) // n
        found.append(counts / ((n - np.arange(most + 1)) * lines))
    return found


def _line_blocks(phase: Any, axis: int) -> Iterator[np.ndarray]:
    """Blocks of whole lines along ``axis``, each as pores packed to bits: uint64 (n, words)."""
    d0, d1, d2 = phase.shape
    if axis > 0:
        step = max(1, BLOCK // (d1 * d2))
        for start in range(0, d0, step):
            block = np.moveaxis(np.asarray(phase[start : start + step]), axis, 0)
            yield _packed(block.reshape(block.shape[0], -1) == 0).view(np.uint64)
        return
    # Lines along axis 0 run through all pages: a file is read page by page, and bits are kept.
    rows = max(1, 8 * BITS // (d0 * d2))
    pages = max(1, BLOCK // (min(rows, d1) * d2))
    for row in range(0, d1, rows):
        kept = [
            _packed(np.asarray(phase[start : start + pages, row : row + rows]).reshape(min(pages, d0 - start), -1) == 0)
            for start in range(0, d0, pages)
        ]
        yield np.concatenate(kept).view(np.uint64)


def _packed(pores: np.ndarray) -> np.ndarray:
    """A boolean array (n, lines) as bits, uint8 (n, 8 words), filled up with zeros."""
    bits = np.packbits(pores, axis=1)
    padded = np.zeros((len(bits), -(-bits.shape[1] // 8) * 8), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return padded


def _pair_counts(packed: np.ndarray, most: int) -> np.ndarray:
    """Number of pore pairs at lags 0..most along axis 0 of packed lines, uint64 (n, words)."""
    words = packed.shape[1]
    counts = np.zeros(most + 1, np.int64)
    width = max(1, CACHE // len(packed))
    for start in range(0, words, width):
        tile = np.ascontiguousarray(packed[:, start : start + width])
        both = np.empty_like(tile)
        ones = np.empty(tile.shape, np.uint8)
        for lag in range(most + 1):
            n = len(tile) - lag
            np.bitwise_and(tile[lag:], tile[:n], out=both[:n])
            np.bitwise_count(both[:n], out=ones[:n])
            counts[lag] += int(ones[:n].sum(dtype=np.uint32))
    return counts


def s2_mean(directional: Sequence[np.ndarray]) -> np.ndarray:
    """The plain mean over the axes, up to the shortest of them: what the paper calls radial."""
    length = min(map(len, directional))
    return np.mean([curve[:length] for curve in directional], axis=0)


def s2_radial(phase: Any, lags: int, block: int = 256) -> np.ndarray:
    """S2 of the pores averaged over all directions, without wrapping.

    Pairs x, x + h with round(|h|) = r are counted together: sum of I(x) I(x + h) over number of pairs. The counts are
    rounded to integers, so they are exact. Cubes of ``block`` voxels are taken one by one and their counts added
    (pairs across their faces are left out), so memory is that of one cube, padded by ``lags``: 24 bytes a voxel.

    Args:
        phase: uint8 (d0, d1, d2), 0 pore and 1 grain.
        lags: the longest lag; at most the shortest edge less one counts.
        block: edge of the cubes.

    Returns:
        float64 (lags + 1,); NaN where there is no pair.
    """
    sums, pairs = np.zeros(lags + 1), np.zeros(lags + 1)
    ranges = [range(0, n, block) for n in phase.shape]
    for i in ranges[0]:
        for j in ranges[1]:
            for k in ranges[2]:
                pore = np.asarray(phase[i : i + block, j : j + block, k : k + block]) == 0
                _add_radial(pore, lags, sums, pairs)
    with np.errstate(invalid="ignore"):
        return sums / pairs


def _add_radial(pore: np.ndarray, lags: int, sums: np.ndarray, pairs: np.ndarray) -> None:
    reach = [min(lags, n - 1) for n in pore.shape]
    sizes = [scipy.fft.next_fast_len(n + r, real=True) for n, r in zip(pore.shape, reach, strict=True)]
    spectrum = scipy.fft.rfftn(pore.astype(np.float64), sizes)
    np.multiply(spectrum, spectrum.conj(), out=spectrum)
    counts = np.rint(scipy.fft.irfftn(spectrum, sizes))
    # h and -h have equal counts; axes 0 and 1 run over both signs, axis 2 over h2 >= 0, and h2 > 0 counts twice.
    offsets = [np.arange(-r, r + 1) for r in reach[:2]] + [np.arange(reach[2] + 1)]
    values = counts[np.ix_(offsets[0], offsets[1], offsets[2])]
    d0, d1, d2 = pore.shape
    for h0, plane in zip(offsets[0].tolist(), values, strict=True):  # plane by plane: a bin index needs 8 bytes a voxel
        h1, h2 = offsets[1][:, None], offsets[2][None, :]
        bins = np.rint(np.sqrt(h0 * h0 + h1 * h1 + h2 * h2)).astype(np.int64)
        keep = bins <= lags
        weight = np.where(h2 > 0, 2.0, 1.0) * np.ones(bins.shape)
        number = weight * (d0 - abs(h0)) * (d1 - abs(h1)) * (d2 - h2)
        sums += np.bincount(bins[keep], (weight * plane)[keep], minlength=lags + 1)
        pairs += np.bincount(bins[keep], number[keep], minlength=lags + 1)


def kappa(s2: np.ndarray) -> np.ndarray:
    """(S2(r) - phi^2) / (phi - phi^2), 1 at lag 0 and 0 without order; ``s2[0]`` is the porosity phi."""
    phi = s2[0]
    return (s2 - phi**2) / (phi - phi**2)


def complement(s2: np.ndarray) -> np.ndarray:
    """S2 of the grains from that of the pores, 1 - 2 phi + S2; exact but for what the edges of the volume cut off."""
    return 1 - 2 * s2[0] + s2


def interface_slope(s2: np.ndarray, points: int = 5) -> float:
    """a of the least-squares fit S2(r) = S2(0) + a r over r = 0..points - 1, the intercept fixed; per voxel."""
    r = np.arange(points)
    return float((r * (s2[:points] - s2[0])).sum() / (r * r).sum())


def specific_surface(s2: np.ndarray) -> float:
    """Surface per volume from the slope of S2, -4 a (Debye), per voxel."""
    return -4 * interface_slope(s2)


def chord_means(s2: np.ndarray) -> tuple[float, float]:
    """Mean chord lengths of pore and grain from the slope, -phi / a and -(1 - phi) / a, in voxels."""
    a = interface_slope(s2)
    if a == 0:
        return math.inf, math.inf
    return float(-s2[0] / a), float(-(1 - s2[0]) / a)
