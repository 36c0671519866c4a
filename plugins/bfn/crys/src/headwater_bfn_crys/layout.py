"""How atoms, their pairs and their edges lie in a batch."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Chunk", "Group", "Layout"]

EDGES_AT_ONCE = 1024
"""Edges worked on at a time: at width 512 two buffers of them stay in the cache of a core."""


@dataclass(frozen=True)
class Group:
    """``crystals`` crystals of ``size`` atoms each, and where their atoms and pairs begin."""

    crystals: int
    size: int
    first_atom: int
    first_pair: int

    @property
    def atoms(self) -> slice:
        """Their atoms among all."""
        return slice(self.first_atom, self.first_atom + self.crystals * self.size)

    @property
    def pairs(self) -> slice:
        """Their unordered pairs of different atoms among all."""
        return slice(self.first_pair, self.first_pair + self.crystals * (self.size * (self.size - 1) // 2))


@dataclass(frozen=True)
class Chunk:
    """Atoms of crystals of one size, and all edges from them."""

    atoms: slice
    edges: slice
    size: int


class Layout:
    """How atoms lie in a batch: crystals one after another, those of one size together.

    Edges are all ordered pairs (i, j) of atoms of a crystal, i = j among them, by i and then by j.

    Args:
        num_atoms: atoms in each crystal.
        edges_at_once: about how many edges a chunk has.

    Example:
        >>> layout = Layout([1, 3, 3])
        >>> layout.atoms, layout.pairs, layout.edge_count, [(g.crystals, g.size) for g in layout.groups]
        (7, 6, 19, [(1, 1), (2, 3)])
    """

    def __init__(self, num_atoms: Sequence[int], edges_at_once: int = EDGES_AT_ONCE) -> None:
        self.num_atoms = tuple(int(n) for n in num_atoms)
        self.groups: list[Group] = []
        self.chunks: list[Chunk] = []
        self.crystals = len(self.num_atoms)
        self.atoms = self.pairs = self.edge_count = 0
        for size, count in _runs(self.num_atoms):
            self.groups.append(Group(count, size, self.atoms, self.pairs))
            some = max(1, edges_at_once // size)
            for begin in range(0, count * size, some):
                end = min(begin + some, count * size)
                edges = slice(self.edge_count + begin * size, self.edge_count + end * size)
                self.chunks.append(Chunk(slice(self.atoms + begin, self.atoms + end), edges, size))
            self.atoms += count * size
            self.pairs += count * (size * (size - 1) // 2)
            self.edge_count += count * size * size

    def crystal_of(self, device: torch.device) -> Tensor:
        """The crystal of each atom, (V,)."""
        counts = torch.tensor(self.num_atoms, device=device)
        return torch.repeat_interleave(torch.arange(self.crystals, device=device), counts, output_size=self.atoms)

    def mean_over_atoms(self, x: Tensor) -> Tensor:
        """The mean over the atoms of each crystal, (V, H) to (B, H)."""
        return torch.cat([x[g.atoms].view(g.crystals, g.size, -1).mean(1) for g in self.groups])

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Both atoms of each edge, (E,) each."""
        found = []
        for g in self.groups:
            atoms = torch.arange(g.atoms.start, g.atoms.stop).view(g.crystals, g.size)
            shape = (g.crystals, g.size, g.size)
            found.append((atoms.unsqueeze(2).expand(shape).flatten(), atoms.unsqueeze(1).expand(shape).flatten()))
        return torch.cat([i for i, _ in found]), torch.cat([j for _, j in found])

    @cached_property
    def pair_of_edge(self) -> Tensor:
        """The unordered pair of each edge, (E,): its number p if i < j, P + p if i > j, and 2P if i = j."""
        found = []
        for g in self.groups:
            i, j = _upper(g.size, torch.device("cpu"))
            first = g.first_pair + torch.arange(g.crystals).unsqueeze(1) * len(i)
            grid = torch.full((g.crystals, g.size, g.size), 2 * self.pairs)
            grid[:, i, j] = first + torch.arange(len(i))
            grid[:, j, i] = grid[:, i, j] + self.pairs
            found.append(grid.flatten())
        return torch.cat(found)

    def features(self, x: Tensor, frequencies: int) -> tuple[Tensor, Tensor]:
        """sin and cos of k d for the pairs i < j, each (P, 3 frequencies), axis by axis; d = x_j - x_i, wrapped."""
        parts = []
        for g in self.groups:
            i, j = _upper(g.size, x.device)
            grid = x[g.atoms].view(g.crystals, g.size, -1)
            parts.append((grid[:, j] - grid[:, i]).flatten(0, 1))
        d = torch.cat(parts)
        d = d - 2 * math.pi * (d / (2 * math.pi)).round()
        phase = (d.unsqueeze(-1) * torch.arange(frequencies, device=d.device, dtype=d.dtype)).flatten(1)
        return phase.sin(), phase.cos()


def _runs(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    begin = 0
    for k in range(1, len(sizes) + 1):
        if k == len(sizes) or sizes[k] != sizes[begin]:
            yield sizes[begin], k - begin
            begin = k


@functools.lru_cache(maxsize=256)
def _upper(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """i and j of the pairs i < j of a crystal."""
    i, j = torch.triu_indices(size, size, 1, device=device)
    return i, j
