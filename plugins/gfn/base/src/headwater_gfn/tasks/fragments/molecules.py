"""From block trees to molecules."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from headwater_gfn.tasks.fragments.library import Block, rdkit

__all__ = ["Molecule", "assemble", "join"]


@dataclass(frozen=True)
class Molecule:
    """A molecule made of blocks: RDKit's ``mol``, its SMILES where that is known, and the atoms of its free stems."""

    mol: Any
    known_smiles: str | None
    stems: tuple[int, ...]

    @cached_property
    def smiles(self) -> str:
        """The SMILES, canonical where it is made here. Most molecules are never written down."""
        return self.known_smiles or str(rdkit("Chem").MolToSmiles(self.mol))


def join(parts: Sequence[Any], bonds: Sequence[tuple[int, int, int, int]]) -> Any:
    """Join molecules by single bonds, each from atom ``i`` of part ``a`` to atom ``j`` of part ``b``: (a, i, b, j).

    An explicit hydrogen at either end makes room for the bond.

    Raises:
        ValueError: the result is no molecule.
    """
    chem = rdkit("Chem")
    whole, first, n = chem.RWMol(), [], 0
    for part in parts:
        first.append(n)
        whole.InsertMol(part)
        n += part.GetNumAtoms()
    for a, i, b, j in bonds:
        ends = first[a] + i, first[b] + j
        whole.AddBond(*ends, chem.BondType.SINGLE)
        for end in ends:
            atom = whole.GetAtomWithIdx(end)
            if atom.GetNumExplicitHs():
                atom.SetNumExplicitHs(atom.GetNumExplicitHs() - 1)
    mol = whole.GetMol()
    chem.SanitizeMol(mol)
    return mol


def assemble(
    blocks: Sequence[Block], mols: Sequence[Any], atoms: Sequence[Sequence[int]], row: Sequence[int]
) -> Molecule:
    """Build one molecule.

    Args:
        blocks: the library.
        mols: RDKit's molecules of it.
        atoms: the atom of each stem of each block.
        row: block, parent's slot, parent's stem and own stem of each slot, one after another (4 N,).
    """
    n = len(row) // 4
    slots = [i for i in range(n) if row[i] >= 0]
    used, bonds = set(), []
    for i in slots:
        parent, stem, own = row[n + i], row[2 * n + i], row[3 * n + i]
        if parent >= 0:
            used |= {(parent, stem), (i, own)}
            bonds.append((parent, atoms[row[parent]][stem], i, atoms[row[i]][own]))
    mol = join([mols[row[i]] for i in slots], bonds)
    stems, first = [], 0
    for i in slots:
        free = [first + atoms[row[i]][k] for k in range(len(blocks[row[i]].stems)) if (i, k) not in used]
        stems += free
        first += mols[row[i]].GetNumAtoms()
    return Molecule(mol, None, tuple(stems))
