"""From SMILES to three dimensions, through RDKit: molecules, and both ends of a mapped reaction."""

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from headwater import DataError

from headwater_flow_tsgen.chemistry import calculator, check_closed_shell, have, need, relax
from headwater_flow_tsgen.tasks.formats import Faults, collecting
from headwater_flow_tsgen.tasks.reaction import Reaction, check

__all__ = ["embed", "follow", "parse", "reaction_of", "read_smiles"]


def parse(smiles: str, where: str = "") -> Any:
    """The molecule of a SMILES string, its hydrogens as they are written.

    Raises:
        DataError: RDKit cannot read it, or it is charged or has unpaired electrons.
    """
    need("rdkit", what="reading SMILES")
    from rdkit import Chem, rdBase

    prefix = f"{where}: " if where else ""
    options: Any = Chem.SmilesParserParams()
    options.removeHs = False
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles, options)
    if mol is None or mol.GetNumAtoms() == 0:
        raise DataError(f"{prefix}RDKit cannot read the SMILES {smiles!r}")
    charge = Chem.GetFormalCharge(mol)
    if charge != 0:
        raise DataError(f"{prefix}{smiles!r} has charge {charge:+d}; only neutral molecules can be used")
    if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
        raise DataError(f"{prefix}{smiles!r} has unpaired electrons; only closed shells can be used")
    return mol


def embed(mol: Any, seed: int) -> np.ndarray | None:
    """Coordinates (N, 3) of a molecule with all its hydrogens, relaxed by MMFF94 or else UFF; ``None`` without any."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    mol = Chem.Mol(mol)
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
    with rdBase.BlockLogs():
        if rdDistGeom.EmbedMolecule(mol, randomSeed=seed) != 0 and (
            rdDistGeom.EmbedMolecule(mol, randomSeed=seed, useRandomCoords=True) != 0
        ):
            return None
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=1000)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
            rdForceFieldHelpers.UFFOptimizeMolecule(mol, maxIters=1000)
    return np.asarray(mol.GetConformer().GetPositions())


def follow(mol: Any, start: np.ndarray, seed: int) -> np.ndarray | None:
    """Coordinates of ``mol`` near ``start`` (N, 3), those of its atoms in another molecule.

    UFF with the bonds of ``mol`` descends from there, so both ends of a reaction keep their conformation as far as they
    can. The start is shaken by 0.02 A, for a planar molecule would stay planar. ``None`` where UFF has no parameters.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdForceFieldHelpers
    from rdkit.Geometry import Point3D

    shaken = start + np.random.default_rng(seed).normal(0.0, 0.02, start.shape)
    conformer = Chem.Conformer(len(start))
    for i, place in enumerate(shaken):
        conformer.SetAtomPosition(i, Point3D(*map(float, place)))
    mol = Chem.Mol(mol)
    mol.RemoveAllConformers()
    mol.AddConformer(conformer)
    with rdBase.BlockLogs():
        if not rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
            return None
        rdForceFieldHelpers.UFFOptimizeMolecule(mol, maxIters=1000)
    return np.asarray(mol.GetConformer().GetPositions())


def _mapped(mol: Any, side: str, where: str) -> Any:
    """The molecule with all hydrogens, every atom mapped.

    A hydrogen without a number of its own gets one from its neighbour's, which tells as long as each atom keeps its
    hydrogens.
    """
    from rdkit import Chem

    for atom in mol.GetAtoms():
        if atom.GetAtomMapNum() == 0 and atom.GetAtomicNum() > 1:
            raise DataError(
                f"{where}: atom {atom.GetIdx() + 1} ({atom.GetSymbol()}) of the {side} has no map number; write every "
                "atom as in [CH3:1][OH:2]>>..., with the same numbers on both sides"
            )
    return Chem.AddHs(mol)


def _labels(mol: Any, side: str, where: str) -> list[tuple[int, int]]:
    """A name for each atom: its map number, or that of its neighbour and a count for a hydrogen without one."""
    names: list[tuple[int, int]] = []
    counted: dict[int, int] = {}
    for atom in mol.GetAtoms():
        number = atom.GetAtomMapNum()
        if number:
            names.append((number, 0))
            continue
        neighbours = atom.GetNeighbors()
        host = neighbours[0].GetAtomMapNum() if neighbours else 0
        if host == 0:
            raise DataError(f"{where}: a hydrogen of the {side} has no map number, nor has an atom bonded to it")
        counted[host] = counted.get(host, 0) + 1
        names.append((host, counted[host]))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: the map number {twice[0]} comes twice in the {side}")
    return names


def reaction_of(text: str, where: str = "", seed: int = 0, name: str = "") -> Reaction:
    """Both ends of a mapped reaction SMILES in three dimensions, in one order of atoms.

    The reactant is embedded, the product follows from the reactant's coordinates; where tblite is installed both are
    then relaxed by GFN2-xTB.

    Raises:
        DataError: it is no reaction, not mapped, or has different atoms on its two sides; RDKit finds no coordinates.
    """
    from rdkit import Chem

    where = where or f"reaction {text!r}"
    parts = text.split(">")
    if len(parts) != 3 or not parts[0] or not parts[2]:
        raise DataError(f"{where}: {text!r} is no reaction SMILES; write reactant>>product")
    mols = [
        _mapped(parse(part, where), side, where)
        for part, side in ((parts[0], "reactant"), (parts[2], "product"))
    ]  # fmt: skip
    labels = [_labels(mol, side, where) for mol, side in zip(mols, ("reactant", "product"), strict=True)]
    if set(labels[0]) != set(labels[1]):
        number, hydrogen = min(set(labels[0]) ^ set(labels[1]))
        if hydrogen:
            raise DataError(
                f"{where}: atom {number} has another number of hydrogens in the product; "
                "where hydrogens move they need map numbers of their own, as in [H:7]"
            )
        side = "product" if (number, 0) in labels[0] else "reactant"
        raise DataError(f"{where}: the map number {number} is missing in the {side}")
    order = [labels[1].index(label) for label in labels[0]]
    mols[1] = Chem.RenumberAtoms(mols[1], order)
    numbers = [np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()]) for mol in mols]
    differ = np.flatnonzero(numbers[0] != numbers[1])
    if len(differ):
        raise DataError(f"{where}: the map number {labels[0][int(differ[0])][0]} is on two different elements")
    reactant = embed(mols[0], seed + 1)
    product = None if reactant is None else follow(mols[1], reactant, seed)
    if reactant is None or product is None:
        raise DataError(f"{where}: RDKit finds no coordinates for {text!r}; give R and P as XYZ files")
    if have("tblite") and check_closed_shell(numbers[0]) is None:
        reactant, product = (_relaxed(numbers[0], x) for x in (reactant, product))
    group = Chem.MolToSmiles(Chem.MolFromSmiles(_unmapped(parts[0])))
    made = Reaction(numbers[0], reactant, product, name=name or text, group=group, info={"smiles": text})
    return check(made, where)


def _unmapped(smiles: str) -> str:
    mol = parse(smiles)
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
    from rdkit import Chem

    return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))


def _relaxed(numbers: np.ndarray, x: np.ndarray) -> np.ndarray:
    atoms = Atoms(numbers, x)
    atoms.calc = calculator()
    relax(atoms, fmax=0.02, steps=300)
    return np.asarray(atoms.positions)


def read_smiles(path: Path, faults: Faults = None) -> list[Reaction]:
    """One mapped reaction SMILES a line, a name after it if there is one.

    Raises:
        DataError: a line is no mapped reaction; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    found: list[Reaction] = []
    for number, line in enumerate(lines, 1):
        words = line.split(maxsplit=1)
        if words and not words[0].startswith("#"):
            name = words[1].strip() if len(words) > 1 else f"{path.stem}-{number}"
            with collecting(faults):
                found.append(reaction_of(words[0], f"{path}, line {number}", name=name))
    return found
