"""Molecules in space, and the SDF files that hold them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from headwater import DataError, Writer
from headwater.task import join_bytes
from rdkit import Chem
from rdkit.rdBase import BlockLogs

from headwater_bfn_moljo.tasks.chemistry import atoms_only, reconstruct

__all__ = ["BROKEN", "TARGET", "Pose", "PoseWriter", "pose_of_atoms", "sound"]

TARGET = "target"
"""The SDF property that names the complex a molecule belongs to."""

BROKEN = "reconstruction"
"""The SDF property of atoms of which no molecule came; its value is ``failed``."""


@dataclass(frozen=True)
class Pose:
    """A molecule with coordinates in angstrom, kekulised and not sanitised, as a file holds it."""

    name: str
    mol: Any
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The name of its complex, or ``""``."""
        return self.properties.get(TARGET, "")

    @property
    def block(self) -> str:
        """The molecule as a V2000 record."""
        return Chem.MolToMolBlock(self.mol, includeStereo=False, kekulize=False)

    @property
    def positions(self) -> np.ndarray:
        """The atoms, (N, 3), in angstrom."""
        return self.mol.GetConformer().GetPositions()

    def with_properties(self, **values: float | str) -> "Pose":
        """The same molecule with more properties; numbers get six significant digits."""
        text = {k: v if isinstance(v, str) else f"{v:.6g}" for k, v in values.items()}
        return replace(self, properties={**self.properties, **text})


def pose_of_atoms(name: str, numbers: Sequence[int], positions: np.ndarray, target: str) -> Pose:
    """The molecule of atoms at ``positions``, or the bare atoms, marked as such, where none comes of them."""
    made = reconstruct(numbers, positions)
    properties = {TARGET: target} if target else {}
    if made is None:
        finite = np.nan_to_num(np.asarray(positions, dtype=np.float64), posinf=0.0, neginf=0.0)
        return Pose(name, atoms_only(numbers, finite).GetMol(), {**properties, BROKEN: "failed"})
    return Pose(name, made, properties)


def sound(pose: Pose) -> Any | None:
    """The molecule sanitised and without hydrogens, or ``None`` where that fails or it is marked as broken."""
    if pose.properties.get(BROKEN) == "failed":
        return None
    mol = Chem.Mol(pose.mol)
    with BlockLogs():
        try:
            Chem.SanitizeMol(mol)
            return Chem.RemoveHs(mol)
        except (ValueError, RuntimeError):
            return None


class PoseWriter(Writer):
    """Writes molecules as SDF, with their properties."""

    suffixes = (".sdf",)

    def write(self, samples: Sequence[Pose], path: Path, start: int = 0) -> None:
        """Write V2000 records, coordinates to four decimals; a molecule without a name is numbered."""
        out = io.StringIO()
        for i, pose in enumerate(samples, start):
            mol = Chem.Mol(pose.mol)
            mol.SetProp("_Name", pose.name or f"molecule-{i:06d}")
            out.write(Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False))
            for key, value in pose.properties.items():
                out.write(f">  <{key}>\n{value}\n\n")
            out.write("$$$$\n")
        path.write_text(out.getvalue(), encoding="utf-8")

    def read(self, path: Path) -> list[Pose]:
        """Read all records of an SDF file.

        Raises:
            DataError: the file cannot be read, or one of its records cannot be parsed; the text gives its number.
        """
        if not path.is_file():
            raise DataError(f"{path} is no file")
        if path.stat().st_size == 0:
            raise DataError(f"{path} holds no SDF record")
        poses = []
        with BlockLogs():
            for number, mol in enumerate(Chem.SDMolSupplier(str(path), sanitize=False, removeHs=False), 1):
                if mol is None:
                    raise DataError(f"{path}: record {number} is no SDF molecule")
                if mol.GetNumAtoms() == 0 or mol.GetNumConformers() == 0:
                    raise DataError(f"{path}: record {number} has no atom with coordinates")
                properties = {k: str(v) for k, v in mol.GetPropsAsDict(autoConvertStrings=False).items()}
                poses.append(Pose(mol.GetProp("_Name"), mol, properties))
        if not poses:
            raise DataError(f"{path} holds no SDF record")
        return poses

    def join(self, parts: Sequence[Path], path: Path) -> None:
        join_bytes(parts, path)
