"""Which atoms of a batch of complexes hear which: k nearest neighbours as dense tables.

Atoms are numbered protein atoms of all complexes first, then ligand atoms of all complexes. Protein atoms do not move
while molecules are made, so their nearest protein atoms are found once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Edges", "Layout", "safe_norm"]


@dataclass(frozen=True)
class Edges:
    """Incoming edges of T target atoms: the sources' numbers and which of them there are, both (T, k)."""

    sources: Tensor
    valid: Tensor


def safe_norm(difference: Tensor) -> Tensor:
    """The length of (..., 3) vectors, whose gradient at 0 is 0: ligand atoms coincide at t = 0.

    Example:
        >>> v = torch.zeros(1, 3, requires_grad=True)
        >>> safe_norm(v).sum().backward(); v.grad.tolist()
        [[0.0, 0.0, 0.0]]
    """
    squares = difference.square().sum(-1)
    zero = squares == 0
    return torch.where(zero, 1.0, squares).sqrt().masked_fill(zero, 0.0)


def _padded(sizes: Sequence[int], offset: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers of each complex's atoms, (B, largest), and which of them there are."""
    counts = torch.tensor(sizes, device=device)
    column = torch.arange(max(sizes), device=device)
    valid = column < counts[:, None]
    first = counts.cumsum(0) - counts + offset
    return (first[:, None] + column).masked_fill(~valid, 0), valid


class Layout:
    """B complexes: where their pockets' atoms are, and how many atoms each ligand has.

    Args:
        protein_pos: (P, 3), of all complexes, one after another.
        protein_sizes: atoms of each pocket.
        ligand_sizes: atoms of each ligand.
        knn: k, how many atoms each atom hears; fewer where a complex is smaller.
    """

    def __init__(
        self, protein_pos: Tensor, protein_sizes: Sequence[int], ligand_sizes: Sequence[int], knn: int
    ) -> None:
        device = protein_pos.device
        self.protein_pos = protein_pos
        self.protein_sizes, self.ligand_sizes = tuple(protein_sizes), tuple(ligand_sizes)
        self.knn = knn
        self.complexes = len(self.protein_sizes)
        self.proteins, self.ligands = sum(self.protein_sizes), sum(self.ligand_sizes)
        each = torch.arange(self.complexes, device=device)
        self.protein_of = torch.repeat_interleave(each, torch.tensor(self.protein_sizes, device=device))
        self.ligand_of = torch.repeat_interleave(each, torch.tensor(self.ligand_sizes, device=device))
        self._protein, self._has_protein = _padded(self.protein_sizes, 0, device)
        self._ligand, self._has_ligand = _padded(self.ligand_sizes, self.proteins, device)

    @cached_property
    def _near_proteins(self) -> tuple[Tensor, Tensor]:
        """The k nearest protein atoms of every protein atom, nearest first, and their distances: (P, k) each."""
        pos = self.protein_pos[self._protein]
        d = torch.cdist(pos, pos, compute_mode="donot_use_mm_for_euclid_dist")
        d = d.masked_fill(~self._has_protein[:, None, :], torch.inf)
        d.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        d, order = d.sort(stable=True)
        keep = self._has_protein
        numbers = torch.gather(self._protein[:, None, :].expand_as(order), 2, order)
        return numbers[..., : self.knn][keep], d[..., : self.knn][keep]

    @torch.no_grad()
    def edges(self, ligand_pos: Tensor) -> tuple[Edges, Edges]:
        """The incoming edges of all protein atoms and of all ligand atoms, by distances of ``ligand_pos`` (L, 3).

        Of equally distant atoms those with the smaller number are taken, protein atoms first.
        """
        ligand, has_ligand = self._ligand, self._has_ligand
        near, near_d = self._near_proteins
        pos = torch.cat([self.protein_pos, ligand_pos])
        ligands = pos[ligand]
        across = torch.cdist(pos[self._protein], ligands, compute_mode="donot_use_mm_for_euclid_dist")
        across = across.masked_fill(~has_ligand[:, None, :], torch.inf)
        to_protein = torch.cat([near_d, across[self._has_protein]], 1)
        numbers = torch.cat([near, ligand[self.protein_of]], 1)
        within = torch.cdist(ligands, ligands, compute_mode="donot_use_mm_for_euclid_dist")
        within = within.masked_fill(~has_ligand[:, None, :], torch.inf)
        within.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        back = across.transpose(1, 2).masked_fill(~self._has_protein[:, None, :], torch.inf)
        to_ligand = torch.cat([back, within], 2)[has_ligand]
        of_ligand = torch.cat([self._protein, ligand], 1)[self.ligand_of]
        return self._nearest(to_protein, numbers), self._nearest(to_ligand, of_ligand)

    def _nearest(self, d: Tensor, numbers: Tensor) -> Edges:
        d, order = d.sort(dim=1, stable=True)
        sources = numbers.gather(1, order[:, : self.knn])
        return Edges(sources, d[:, : self.knn].isfinite())
