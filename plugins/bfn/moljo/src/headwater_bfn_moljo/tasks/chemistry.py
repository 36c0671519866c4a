"""Atom types, and molecules from the coordinates and elements of heavy atoms.

Bonds are perceived by Open Babel on the bare heavy atoms, orders before any hydrogen is added (hydrogens added first
saturate rings, P=O and S=O), and copied to an RDKit molecule.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from headwater import DataError, UsageError
from rdkit import Chem

__all__ = ["TYPES", "atoms_only", "heavy", "reconstruct", "scaffold_atoms", "type_of_atoms"]

TYPES: tuple[tuple[int, bool], ...] = (
    (1, False), (6, False), (6, True), (7, False), (7, True), (8, False), (8, True), (9, False), (15, False),
    (15, True), (16, False), (16, True), (17, False),
)  # fmt: skip
"""Atomic number and aromaticity of the types, in the order of the official networks."""


@cache
def _open_babel() -> Any:
    try:
        from openbabel import openbabel
    except ImportError as error:
        raise UsageError(
            "bonds are perceived by Open Babel, which is not installed: pip install openbabel-wheel"
        ) from error
    openbabel.obErrorLog.SetOutputLevel(0)
    return openbabel


def heavy(mol: Any, where: str) -> Any:
    """The molecule sanitised and without hydrogens, coordinates and all.

    Raises:
        DataError: it has no coordinates, no atom, or cannot be sanitised; ``where`` names it.
    """
    try:
        made = Chem.RemoveHs(mol)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{where}: {str(error).strip().splitlines()[0]}") from error
    if made.GetNumAtoms() == 0 or made.GetNumConformers() == 0:
        raise DataError(f"{where} has no atom with coordinates")
    return made


def type_of_atoms(mol: Any, where: str) -> np.ndarray:
    """The index in ``TYPES`` of each atom, (L,).

    Raises:
        DataError: an atom is none of them; the text names ``where``, the atom and its element.
    """
    known = {kind: i for i, kind in enumerate(TYPES)}
    found = []
    for atom in mol.GetAtoms():
        kind = (atom.GetAtomicNum(), atom.GetIsAromatic())
        if kind not in known:
            elements = " ".join(sorted({Chem.GetPeriodicTable().GetElementSymbol(z) for z, _ in TYPES}))
            aromatic = "aromatic " if kind[1] else ""
            raise DataError(
                f"{where}: atom {atom.GetIdx() + 1} is {aromatic}{atom.GetSymbol()}, which the model has no type for; "
                f"it knows {elements}"
            )
        found.append(known[kind])
    return np.array(found, dtype=np.int64)


def _perceived(numbers: Sequence[int], positions: np.ndarray) -> list[tuple[int, int, int]]:
    """Pairs of atoms and the order of the bond between them."""
    babel = _open_babel()
    mol = babel.OBMol()
    mol.BeginModify()
    for z, (x, y, w) in zip(numbers, positions.tolist(), strict=True):
        atom = mol.NewAtom()
        atom.SetAtomicNum(int(z))
        atom.SetVector(x, y, w)
    mol.EndModify()
    mol.ConnectTheDots()
    mol.PerceiveBondOrders()
    return [(b.GetBeginAtomIdx() - 1, b.GetEndAtomIdx() - 1, b.GetBondOrder()) for b in babel.OBMolBondIter(mol)]


def reconstruct(numbers: Sequence[int], positions: np.ndarray) -> Any | None:
    """The molecule of atoms with the atomic numbers ``numbers`` at ``positions`` (N, 3) in angstrom.

    It is sanitised and kekulised, and has one conformer; open valences are hydrogens. ``None`` where a coordinate is
    not finite or no sound molecule comes of it.
    """
    positions = np.asarray(positions, dtype=np.float64)
    if not len(numbers) or not np.isfinite(positions).all():
        return None
    orders = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    mol = atoms_only(numbers, positions)
    for i, j, order in _perceived(numbers, positions):
        mol.AddBond(i, j, orders[order])
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 7 and sum(b.GetBondTypeAsDouble() for b in atom.GetBonds()) == 4:
            atom.SetFormalCharge(1)
            # A pyridine N-oxide: the oxygen beside takes the other charge.
            for oxygen in atom.GetNeighbors():
                if oxygen.GetAtomicNum() == 8 and oxygen.GetDegree() == 1:
                    single = mol.GetBondBetweenAtoms(atom.GetIdx(), oxygen.GetIdx()).GetBondTypeAsDouble() == 1
                    if single:
                        oxygen.SetFormalCharge(-1)
                        break
    made = mol.GetMol()
    try:
        Chem.SanitizeMol(made)
        Chem.Kekulize(made, clearAromaticFlags=True)
    except (ValueError, RuntimeError):
        return None
    return made


def atoms_only(numbers: Sequence[int], positions: np.ndarray) -> Any:
    """An editable molecule of atoms at ``positions`` without a bond."""
    mol = Chem.RWMol()
    conformer = Chem.Conformer(len(numbers))
    for i, (z, where) in enumerate(zip(numbers, np.asarray(positions, dtype=np.float64).tolist(), strict=True)):
        mol.AddAtom(Chem.Atom(int(z)))
        conformer.SetAtomPosition(i, where)
    mol.AddConformer(conformer, assignId=True)
    return mol


def scaffold_atoms(mol: Any) -> np.ndarray:
    """Which atoms belong to the Bemis-Murcko scaffold (rings, what links them, what is doubly bound to them), (L,)."""
    from rdkit.Chem.Scaffolds.MurckoScaffold import GetScaffoldForMol

    mask = np.zeros(mol.GetNumAtoms(), dtype=bool)
    scaffold = GetScaffoldForMol(mol)
    if scaffold.GetNumAtoms():
        mask[list(mol.GetSubstructMatch(scaffold))] = True
    return mask
