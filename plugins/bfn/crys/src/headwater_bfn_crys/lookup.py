"""Sums of cosines and sines of the differences of all pairs, by look-up.

What an edge perceptron makes of the distance features is, axis by axis, a trigonometric polynomial
f(d) = sum_k p_k cos(k d) + q_k sin(k d), k = 0..F-1, of the difference d of two coordinates, with values of H numbers.
For many pairs it is cheaper to tabulate f than to multiply 6F features of every pair by a matrix: with the terms
divided by the Fourier transform of a narrow kernel, a value is a sum of :data:`REACH` rows of a table of 4F points,
weighted by that kernel (a non-uniform Fourier transform with the kernel exp(beta (sqrt(1 - (2u/w)^2) - 1)) of Barnett,
Magland and af Klinteberg, SIAM J. Sci. Comput. 41, C479, 2019). That is more exact than multiplying features in single
precision: rounding d to it costs more.

Every edge is then a weighted sum of rows: those of f on three axes, that of its first atom and that of its second.
"""

import functools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear

from headwater_bfn_crys.layout import Layout

__all__ = ["REACH", "Exact", "Tabulated", "Terms", "terms_of"]

REACH = 7
"""w, width of the kernel in points of the table: errors of 3e-6 of the size of f."""

OVER = 2
"""Points of the table for each coefficient of f."""


def _points(frequencies: int) -> int:
    """How many points the table of a whole turn has."""
    return max(2 * OVER * frequencies, 2 * REACH)


def _sharpness() -> float:
    """beta of the kernel for this width and oversampling."""
    return 0.98 * math.pi * REACH * (1 - 1 / (2 * OVER))


@functools.lru_cache(maxsize=16)
def _basis(frequencies: int) -> tuple[Tensor, Tensor]:
    """cos(k d) and sin(k d) over the kernel's transform, on half a turn of points: each (points/2 + 1, F)."""
    points = _points(frequencies)
    k = np.arange(frequencies)
    node, weight = np.polynomial.legendre.leggauss(100)
    kernel = 0.5 * REACH * weight * np.exp(_sharpness() * (np.sqrt(1 - node**2) - 1))
    transform = np.cos(math.pi * REACH / points * np.outer(k, node)) @ kernel
    phase = 2 * math.pi / points * np.outer(np.arange(points // 2 + 1), k)
    cosine, sine = np.cos(phase) / transform, np.sin(phase) / transform
    return torch.from_numpy(cosine).float(), torch.from_numpy(sine).float()


@dataclass(frozen=True)
class Terms:
    """Each edge as a weighted sum of rows: first the rows of f, then those of first atoms, then of second atoms.

    Args:
        rows: (E, T), int32.
        weights: (E, T).
        count: how many rows there are.
    """

    rows: Tensor
    weights: Tensor
    count: int

    def values(self, even: Tensor, odd: Tensor) -> Tensor:
        """The rows of f for the coefficients of cosines and of sines, each (H, 3F) axis by axis."""
        raise NotImplementedError

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Each row as a weighted sum of edges: edges, where those of each row begin, weights."""
        flat = self.rows.flatten().numpy()
        # Numbers of 16 bits are sorted digit by digit, in a fraction of the time.
        order = flat.astype(np.uint16 if self.count < 2**16 else np.int32).argsort(kind="stable")
        counts = np.bincount(flat, minlength=self.count)
        begins = (counts.cumsum() - counts).astype(np.int32)
        edges = (order // self.rows.shape[1]).astype(np.int32)
        return torch.from_numpy(edges), torch.from_numpy(begins), self.weights.flatten()[torch.from_numpy(order)]


@dataclass(frozen=True)
class Exact(Terms):
    """f of every pair, from its features: for few pairs, and in double precision.

    Args:
        cosine: (P, 3F), cos(k d) of the unordered pairs i < j with d = x_j - x_i.
        sine: (P, 3F), sin(k d).
    """

    cosine: Tensor
    sine: Tensor

    def values(self, even: Tensor, odd: Tensor) -> Tensor:
        """f of the pairs i < j, of the same the other way round, and of an atom with itself: (2P + 1, H)."""
        c, s = linear(self.cosine, even), linear(self.sine, odd)
        return torch.cat([c + s, c - s, even.sum(1).unsqueeze(0)])


@dataclass(frozen=True)
class Tabulated(Terms):
    """f on the points of a table.

    Args:
        frequencies: F.
    """

    frequencies: int

    def values(self, even: Tensor, odd: Tensor) -> Tensor:
        """f(d) for d >= 0 on three axes, then f(-d): (6 (points/2 + 1), H)."""
        cosine, sine = _basis(self.frequencies)
        c = cosine @ even.t().view(3, self.frequencies, -1)
        s = sine @ odd.t().view(3, self.frequencies, -1)
        return torch.stack([c + s, c - s]).flatten(0, 2)


def terms_of(angles: Tensor, frequencies: int, layout: Layout) -> Exact | Tabulated:
    """The edges of a batch with coordinates ``angles`` (V, 3): by table if there are more pairs than points."""
    points = _points(frequencies)
    if angles.dtype != torch.float32 or layout.pairs < points:
        sine, cosine = layout.features(angles, frequencies)
        of_f = layout.pair_of_edge.unsqueeze(1)
        rows, count = _with_atoms(of_f, 2 * layout.pairs + 1, layout)
        return Exact(rows, torch.ones(rows.shape, dtype=angles.dtype), count, cosine, sine)
    i, j = layout.edges
    # In double precision: places reach hundreds of points, and what lies behind the point is what counts.
    place = (angles[j].double() - angles[i].double()) * (points / (2 * math.pi))
    first = (place - REACH / 2).ceil()
    distance = (place - first).float().unsqueeze(-1) - torch.arange(REACH)
    weights = ((1 - (2 / REACH * distance).square()).clamp_min(0).sqrt() - 1).mul(_sharpness()).exp()
    # Points behind half a turn are those of -d, in the second half of the table.
    point = (first.int().unsqueeze(-1) + torch.arange(REACH, dtype=torch.int32)).remainder(points)
    half = points // 2 + 1
    of_axis = half * torch.arange(3, dtype=torch.int32).view(3, 1)
    point = torch.where(point < half, point, 3 * half + points - point) + of_axis
    rows, count = _with_atoms(point.flatten(1), 6 * half, layout)
    return Tabulated(rows, torch.cat([weights.flatten(1), torch.ones(len(rows), 2)], 1), count, frequencies)


def _with_atoms(of_f: Tensor, count: int, layout: Layout) -> tuple[Tensor, int]:
    """Behind the rows of f, of which there are ``count``, those of both atoms of each edge; and how many there are."""
    i, j = layout.edges
    rows = torch.cat([of_f.int(), (i + count).int().unsqueeze(1), (j + count + layout.atoms).int().unsqueeze(1)], 1)
    return rows, count + 2 * layout.atoms


def weighted_sums(rows: Tensor, weights: Tensor, table: Tensor, begins: Tensor | None = None) -> Tensor:
    """Sums of rows of ``table``: for each line of ``rows`` (E, T), or for each stretch of ``rows`` from ``begins``."""
    return embedding_bag(rows, table, begins, mode="sum", per_sample_weights=weights)
