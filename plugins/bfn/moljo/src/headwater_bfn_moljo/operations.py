"""Vina on molecules of an SDF file: score them, minimise them where they are, or dock them."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from headwater import Operation, UsageError
from headwater_bfn.pool import Failure
from rdkit import Chem

from headwater_bfn_moljo.tasks import docking
from headwater_bfn_moljo.tasks.poses import Pose, sound
from headwater_bfn_moljo.tasks.reading import read_pdb
from headwater_bfn_moljo.tasks.scoring import chemistry

__all__ = ["Dock", "Minimize", "Score"]


class _Everywhere(dict[str, str]):
    """One receptor for every target."""

    def get(self, target: str, default: Any = None) -> Any:
        return self[""]


class _Vina(Operation):
    """One molecule out for each one in, with its energies or ``vina_error`` among the properties."""

    input_suffixes = (".sdf",)
    mode: ClassVar[docking.Mode]

    @cached_property
    def receptors(self) -> dict[str, str]:
        """PDB texts by target; ``""`` is that of molecules which name none."""
        pocket = self.config.pocket
        return dict(self.task.receptors()) if pocket is None else _Everywhere({"": read_pdb(pocket).text})

    def read(self, path: Path) -> Sequence[Pose]:
        docking.check_installed()
        poses: list[Pose] = self.task.read(path)
        known = self.receptors
        strange = [] if self.config.pocket else [pose for pose in poses if pose.target not in known]
        if strange:
            of = f"of the target {strange[0].target!r}" if strange[0].target else "which names no target"
            raise UsageError(f"{path}: no receptor is known for {strange[0].name!r} {of}; --set operation.pocket=P.pdb")
        return poses

    def apply(self, items: Sequence[Pose], generator: torch.Generator) -> list[Pose]:
        c = self.config
        references = {} if c.pocket else self.task.references()
        positions = {t: mol.GetConformer().GetPositions() for t, mol in references.items()}
        results = docking.run(
            items, self.receptors, positions, self.mode, c.cache, c.processes, c.time_limit, c.exhaustiveness
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
