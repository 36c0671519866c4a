"""Vina on molecules of an SDF file: score them, minimise them where they are, or dock them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from headwater import Operation, UsageError
from headwater_bfn.pool import Failure
from rdkit import Chem

from headwater_bfn_moljo.tasks import docking
from headwater_bfn_moljo.tasks.poses import Pose, sound
from headwater_bfn_moljo.tasks.reading import read_pdb
from headwater_bfn_moljo.tasks.scoring import chemistry

__all__ = ["Dock", "Minimize", "Score"]


class _Vina(Operation):
    """One molecule out for each one in, with its energies or ``vina_error`` among the properties."""

    input_suffixes = (".sdf",)
    mode: ClassVar[docking.Mode]

    def receptors(self, poses: Sequence[Pose]) -> dict[str, str]:
        """PDB texts by target; ``""`` is that of molecules which name none."""
        if self._text is None:
            return dict(self.task.receptors())
        return {pose.target: self._text for pose in poses}

    @cached_property
    def _text(self) -> str | None:
        """The protein that was named for all molecules."""
        return None if self.config.pocket is None else read_pdb(self.config.pocket).text

    def read(self, path: Path) -> Sequence[Pose]:
        docking.check_installed()
        poses: list[Pose] = self.task.read(path)
        known = self.receptors(poses)
        strange = [pose for pose in poses if pose.target not in known]
        if strange:
            of = f"of the target {strange[0].target!r}" if strange[0].target else "which names no target"
            raise UsageError(f"{path}: no receptor is known for {strange[0].name!r} {of}; --set operation.pocket=P.pdb")
        return poses

    def apply(self, items: Sequence[Pose], generator: torch.Generator) -> list[Pose]:
        c = self.config
        references = {} if c.pocket else self.task.references()
        positions = {t: mol.GetConformer().GetPositions() for t, mol in references.items()}
        results = docking.run(
            items, self.receptors(items), positions, self.mode, c.cache, c.processes, c.time_limit, c.exhaustiveness
        )
        return [_annotated(pose, result) for pose, result in zip(items, results, strict=True)]


def _annotated(pose: Pose, result: "docking.Energies | Failure") -> Pose:
    mol = sound(pose)
    known = {} if mol is None else chemistry(mol)
    if isinstance(result, Failure):
        return pose.with_properties(**known, vina_error=" ".join(result.reason.split()))
    named = {"vina_score": result.score, "vina_minimize": result.minimize, "vina_dock": result.dock}
    moved = pose
    if result.block is not None:
        moved = Pose(pose.name, Chem.MolFromMolBlock(result.block, sanitize=False, removeHs=False), pose.properties)
    return moved.with_properties(**known, **{k: v for k, v in named.items() if v is not None})


class Score(_Vina):
    """The score of each molecule as it lies."""

    mode = "score"


class Minimize(_Vina):
    """Each molecule moved to the nearest minimum."""

    mode = "minimize"


class Dock(_Vina):
    """Each molecule in its best docked pose."""

    mode = "dock"
