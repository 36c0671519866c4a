"""Pockets from PDB files, ligands from SDF files, and the pocket of a ligand.

Of a PDB file ATOM records of its first model count; HETATM records (waters, metals, cofactors) are no part of a pocket
here. Of alternate locations the one with the highest occupancy is taken, the first of equals. Hydrogens are left out;
docking adds its own.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from headwater import DataError
from rdkit import Chem
from rdkit.rdBase import BlockLogs

from headwater_bfn_moljo.tasks.chemistry import heavy, type_of_atoms

__all__ = [
    "RADIUS",
    "RESIDUES",
    "Complex",
    "Pocket",
    "cut",
    "pair",
    "protein_features",
    "read_ligand",
    "read_pdb",
    "unique",
]

ELEMENTS = (1, 6, 7, 8, 16, 34)
RESIDUES = (
    "ALA", "CYS", "ASP", "GLU", "PHE", "GLY", "HIS", "ILE", "LYS", "LEU", "MET", "ASN", "PRO", "GLN", "ARG", "SER",
    "THR", "VAL", "TRP", "TYR",
)  # fmt: skip
BACKBONE = ("CA", "C", "N", "O")
WATERS = ("HOH", "WAT", "DOD")

RADIUS = 10.0
"""A residue whose centre of mass is nearer to a ligand atom than this, in angstrom, belongs to the pocket."""


@dataclass(frozen=True)
class Pocket:
    """P heavy atoms of whole residues.

    ``positions`` (P, 3) in angstrom; ``numbers`` (P,); ``residue`` (P,), the index in ``RESIDUES``; ``backbone`` (P,);
    ``group`` (P,), which residue of the chain an atom belongs to; ``lines``, the PDB records they come from.
    """

    positions: np.ndarray
    numbers: np.ndarray
    residue: np.ndarray
    backbone: np.ndarray
    group: np.ndarray
    lines: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def of(self, chosen: np.ndarray) -> "Pocket":
        """The atoms that the mask ``chosen`` (P,) names."""
        lines = tuple(line for line, keep in zip(self.lines, chosen, strict=True) if keep)
        return Pocket(
            self.positions[chosen], self.numbers[chosen], self.residue[chosen], self.backbone[chosen],
            self.group[chosen], lines,
        )  # fmt: skip

    @property
    def text(self) -> str:
        """The pocket as a PDB file."""
        return "".join(f"{line}\n" for line in self.lines) + "END\n"


@dataclass(frozen=True)
class Complex:
    """A ligand in its pocket; ``receptor`` is the PDB text that molecules are docked into.

    ``ligand`` is sanitised, without hydrogens; ``types`` (L,) its atoms' types. ``labels`` are properties that came
    with the data.
    """

    name: str
    pocket: Pocket
    ligand: Any
    types: np.ndarray
    receptor: str
    labels: dict[str, float]

    @property
    def positions(self) -> np.ndarray:
        """The ligand's atoms, (L, 3), in angstrom."""
        return self.ligand.GetConformer().GetPositions()


def protein_features(pocket: Pocket) -> np.ndarray:
    """Element (6), residue (20) and backbone (1) of each atom, (P, 27)."""
    element = pocket.numbers[:, None] == np.array(ELEMENTS)
    residue = pocket.residue[:, None] == np.arange(len(RESIDUES))
    return np.concatenate([element, residue, pocket.backbone[:, None]], 1).astype(np.float32)


def _element(line: str, where: str) -> int:
    """The atomic number of a record: columns 77-78, else the first letter of the atom's name."""
    symbol = line[76:78].strip().capitalize() or line[12:16].strip().lstrip("0123456789")[:1].upper()
    try:
        number = Chem.GetPeriodicTable().GetAtomicNumber(symbol)
    except RuntimeError:
        number = 0
    if number not in ELEMENTS:
        known = " ".join(Chem.GetPeriodicTable().GetElementSymbol(z) for z in ELEMENTS)
        residue = f"{line[17:20].strip()} {line[21:26].strip()}"
        raise DataError(f"{where}: element {symbol or '?'} in residue {residue}; a protein here has {known}")
    return number


def read_pdb(path: Path) -> Pocket:
    """All heavy protein atoms of the first model of ``path``.

    What is left out, residues that are no amino acid, waters and metals among them, is said once on stderr.

    Raises:
        DataError: the file cannot be read, a record is damaged or of an unknown element (the line is named), or there
            is no protein atom.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    chosen: dict[tuple[str, str], tuple[float, str, int, int, np.ndarray]] = {}
    left: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("ENDMDL"):
            break
        if not line.startswith("ATOM  "):
            continue
        where = f"{path}, line {number}"
        name = line[17:20].strip()
        if name not in RESIDUES:
            what = "water" if name in WATERS else f"{name or 'unnamed residue'} {line[21:26].strip()}"
            left[what] = left.get(what, 0) + 1
            continue
        try:
            position = np.array([float(line[k : k + 8]) for k in (30, 38, 46)])
            occupancy = float(line[54:60]) if line[54:60].strip() else 1.0
        except ValueError as error:
            raise DataError(f"{where}: columns 31-60 are no coordinates and occupancy: {line[30:60]!r}") from error
        if not np.isfinite(position).all():
            raise DataError(f"{where}: a coordinate is not finite")
        z = _element(line, where)
        key = (line[21:27], line[12:16].strip())
        if z == 1 or (key in chosen and chosen[key][0] >= occupancy):
            continue
        chosen[key] = (occupancy, line, z, RESIDUES.index(name), position)
    if left:
        some = ", ".join(f"{count} atoms of {what}" for what, count in list(left.items())[:5])
        more = f" and {len(left) - 5} more residues" if len(left) > 5 else ""
        print(f"{path}: left out, for they are no amino acids: {some}{more}", file=sys.stderr)
    if not chosen:
        raise DataError(f"{path} has no heavy protein atom among its ATOM records")
    groups = {group: i for i, group in enumerate(dict.fromkeys(group for group, _ in chosen))}
    return Pocket(
        np.stack([v[4] for v in chosen.values()]).astype(np.float64),
        np.array([v[2] for v in chosen.values()]),
        np.array([v[3] for v in chosen.values()]),
        np.array([name in BACKBONE for _, name in chosen]),
        np.array([groups[group] for group, _ in chosen]),
        # Docking reads these lines: one location each, and no mark of others.
        tuple(f"{v[1][:16]} {v[1][17:]}" for v in chosen.values()),
    )


def read_ligand(path: Path) -> Any:
    """The first molecule of an SDF file, sanitised, without hydrogens.

    Raises:
        DataError: there is none, or it cannot be parsed; the reason is RDKit's.
    """
    try:
        block = path.read_text(encoding="utf-8", errors="replace").split("$$$$")[0]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    with BlockLogs():
        mol = Chem.MolFromMolBlock(block, sanitize=False, removeHs=False)
        if mol is None:
            raise DataError(f"{path}: its first record is no SDF molecule")
        problems = Chem.DetectChemistryProblems(mol)
        if problems:
            raise DataError(f"{path}: {problems[0].Message()}")
        Chem.SanitizeMol(mol)
    return heavy(mol, str(path))


def cut(protein: Pocket, ligand: np.ndarray, radius: float = RADIUS) -> Pocket:
    """The whole residues whose centre of mass is within ``radius`` of any ligand atom (L, 3), in angstrom."""
    table = Chem.GetPeriodicTable()
    mass = np.array([table.GetAtomicWeight(int(z)) for z in protein.numbers])
    count = int(protein.group.max()) + 1
    total = np.bincount(protein.group, mass, count)
    centre = np.stack([np.bincount(protein.group, mass * x, count) for x in protein.positions.T], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = centre / total[:, None]
    nearest = np.sqrt(((middle[:, None] - ligand[None]) ** 2).sum(-1)).min(1)
    return protein.of((nearest < radius)[protein.group])


def pair(
    name: str,
    protein: Path,
    ligand: Path,
    radius: float = RADIUS,
    receptor: Path | None = None,
    labels: dict[str, float] | None = None,
) -> Complex:
    """The complex of a protein, or an already cut pocket, and a ligand.

    Raises:
        DataError: a file is damaged, the ligand has an atom of no known type, or no residue is near it.
    """
    whole, mol = read_pdb(protein), read_ligand(ligand)
    positions = mol.GetConformer().GetPositions()
    pocket = cut(whole, positions, radius)
    if not len(pocket):
        gap = np.sqrt(((whole.positions[:, None] - positions[None]) ** 2).sum(-1)).min()
        raise DataError(
            f"the pocket is empty: no residue of {protein} is within {radius:g} angstrom of the ligand {ligand}, "
            f"whose nearest protein atom is {gap:.1f} angstrom away"
        )
    text = whole.text if receptor is None else read_pdb(receptor).text
    return Complex(name, pocket, mol, type_of_atoms(mol, str(ligand)), text, labels or {})


def unique(names: Sequence[str]) -> None:
    """Refuse names that occur twice.

    Raises:
        DataError: one does.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"two complexes have the name {name!r}")
        seen.add(name)
