"""Vina on molecules of an SDF file: score them, minimise them where they are, or dock them."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from headwater import Operation, UsageError
from headwater_bfn.pool import Failure
from rdkit import Chem

from headwater_bfn_moljo.tasks import docking
from headwater_bfn_moljo.tasks.poses import Pose, sound
from headwater_bfn_moljo.tasks.scoring import chemistry

__all__ = ["Dock", "Minimize", "Score"]


class _Vina(Operation):
    """One molecule out for each one in, with its energies or ``vina_error`` among the properties."""

    input_suffixes = (".sdf",)
    mode: ClassVar[docking.Mode]

    def read(self, path: Path) -> Sequence[Pose]:
        docking.check_installed()
        if not self.task.receptors():
            raise UsageError("no receptor is known; name it: --set task.pocket=P.pdb")
        poses: list[Pose] = self.task.read(path)
        return poses

    def apply(self, items: Sequence[Pose], generator: torch.Generator) -> list[Pose]:
        c = self.task.config
        references = {t: mol.GetConformer().GetPositions() for t, mol in self.task.references().items()}
        results = docking.run(
            items, self.task.receptors(), references, self.mode, c.cache, c.processes, c.time_limit, c.exhaustiveness
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
