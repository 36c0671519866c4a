"""The integer tables of a library, from which all of the tree engine is computed.

Blocks with one SMILES and the same stems, whichever comes first, are one *kind*, and its lowest number stands for it.
The stems of a kind are its *positions*, sorted by atom. A symmetry of the block's molecule permutes the atoms of
its stems; positions that symmetries carry into one another are one *orbit*.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from headwater_gfn.tasks.fragments.library import Block, rdkit

__all__ = ["FREE", "MOST_SYMMETRIES", "Tables", "make_tables", "random_words", "symmetries"]

FREE = 2**63 - 1
"""What arrives at a stem without a bond; the largest number, so that free stems are sorted last."""
MOST_SYMMETRIES = 120
"""A block with more symmetries of its stems counts as having none."""


def random_words(n: int, seed: int) -> list[int]:
    """``n`` odd 64-bit words, signed, the same on every machine (splitmix64)."""
    words, state = [], seed
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        z = (z ^ (z >> 31)) | 1
        words.append(z - 2**64 if z >= 2**63 else z)
    return words


@dataclass(frozen=True)
class Tables:
    """Tables of nb blocks with at most S positions and G symmetries each; all are int64.

    ``kind`` (nb,): the block that stands for this one. ``own`` (nb,): the position of its first stem.
    ``count`` (nb,): how many positions it has. ``atom`` (nb, S): the atom of each.
    ``image`` (nb, G, S): where each symmetry puts the atom of each position, as that atom's first position; positions
    that do not exist stay where they are. ``turned`` (nb, S, G): the random word of that image, 0 where there is no
    position. ``free`` (nb, G): the sum of these words times FREE. ``label`` (nb,): a random word of each kind.
    ``orbit`` (nb, S): a number of the orbit, unlike those of other kinds. ``attach`` (nb, S): the lowest block whose
    first stem lies in that orbit, -1 for none.
    """

    kind: Tensor
    own: Tensor
    count: Tensor
    atom: Tensor
    image: Tensor
    turned: Tensor
    free: Tensor
    label: Tensor
    orbit: Tensor
    attach: Tensor

    def to(self, device: torch.device | str) -> "Tables":
        """The same tables on ``device``."""
        return Tables(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def symmetries(mol: Any, stems: Sequence[int]) -> list[dict[int, int]]:
    """How the symmetries of a molecule permute the atoms of its stems, the identity first.

    A symmetry keeps elements, charges, isotopes, hydrogens, bonds and how often each atom is a stem.
    """

    def traits(i: int) -> tuple[int, ...]:
        atom = mol.GetAtomWithIdx(i)
        return (
            atom.GetAtomicNum(),
            atom.GetFormalCharge(),
            atom.GetIsotope(),
            atom.GetTotalNumHs(),
            stems.count(i),
        )

    traits_of = [traits(i) for i in range(mol.GetNumAtoms())]
    atoms = sorted(set(stems))
    identity = tuple(atoms)
    most = 20_000
    found = mol.GetSubstructMatches(mol, uniquify=False, useChirality=True, maxMatches=most)
    images = {tuple(m[i] for i in atoms) for m in found if all(traits_of[i] == traits_of[m[i]] for i in range(len(m)))}
    if len(found) >= most or len(images) > MOST_SYMMETRIES:
        images = set()
    return [dict(zip(atoms, m, strict=True)) for m in (identity, *sorted(images - {identity}))]


def make_tables(blocks: Sequence[Block]) -> Tables:
    """Make the tables of a library."""
    chem = rdkit("Chem")
    size = len(blocks)
    width = max(len(b.stems) for b in blocks)
    kinds: dict[tuple[str, tuple[int, ...]], int] = {}
    kind = [kinds.setdefault((b.smiles, tuple(sorted(b.stems))), i) for i, b in enumerate(blocks)]
    groups = {i: symmetries(chem.MolFromSmiles(blocks[i].smiles), blocks[i].stems) for i in kinds.values()}
    most = max(map(len, groups.values()))
    words = random_words(width + size, seed=105)

    first_of = [{a: sorted(b.stems).index(a) for a in b.stems} for b in blocks]
    atom = torch.zeros(size, width, dtype=torch.int64)
    image = torch.arange(width).repeat(size, most, 1)
    weight = torch.zeros(size, most, width, dtype=torch.int64)
    orbit = torch.full((size, width), -1)
    attach = torch.full((size, width), -1)
    for i, block in enumerate(blocks):
        stems, group = sorted(block.stems), groups[kind[i]]
        for g in range(most):
            # A group smaller than the largest is filled up with its identity, which changes no minimum over it.
            symmetry = group[g] if g < len(group) else group[0]
            for p, a in enumerate(stems):
                image[i, g, p] = first_of[i][symmetry[a]]
                weight[i, g, p] = words[first_of[i][symmetry[a]]]
        atom[i, : len(stems)] = torch.tensor(stems)
        orbit[i, : len(stems)] = kind[i] * width + image[i, :, : len(stems)].amin(0)
    own = torch.tensor([first_of[i][b.stems[0]] for i, b in enumerate(blocks)])
    for i in reversed(range(size)):
        attach[orbit == orbit[i, own[i]]] = i
    return Tables(
        kind=torch.tensor(kind),
        own=own,
        count=torch.tensor([len(b.stems) for b in blocks]),
        atom=atom,
        image=image,
        turned=weight.mT.contiguous(),
        free=weight.sum(2) * FREE,
        label=torch.tensor([words[width + i] for i in kind]),
        orbit=orbit,
        attach=attach,
    )
