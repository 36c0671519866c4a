"""AutoDock Vina on poses: score, local minimisation and docking, in processes, each result kept on disk at once.

The ligand gets its hydrogens from RDKit and its torsions from Meeko; the receptor, protein atoms only, its hydrogens at
pH 7.4 from Open Babel. This differs a little from the published preparation (pdb2pqr and AutoDockTools). Energies are
in kcal/mol.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from headwater import UsageError
from headwater_bfn.pool import Failure, Pool
from rdkit import Chem

from headwater_bfn_moljo.tasks.poses import Pose, sound

__all__ = ["Energies", "Mode", "check_installed", "run"]

Mode = Literal["score", "minimize", "dock"]
"""``minimize`` also scores, ``dock`` does all three."""

MARGIN = 5.0
"""How much larger the box is than the ligand with its hydrogens, along each axis, in angstrom."""

SEED = 42
NEEDED = {"vina": "vina", "meeko": "meeko", "openbabel": "openbabel-wheel", "gemmi": "gemmi"}


class Energies(NamedTuple):
    """What Vina says of a pose; ``block`` is the minimised or docked molecule, without hydrogens."""

    score: float
    minimize: float | None = None
    dock: float | None = None
    block: str | None = None


class _Item(NamedTuple):
    key: str
    block: str
    receptor: str
    box: tuple[tuple[float, ...], tuple[float, ...]] | None


def check_installed() -> None:
    """Refuse to go on without what docking needs.

    Raises:
        UsageError: a package is missing; the text says how to get it.
    """
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"Vina scores need {', '.join(missing)}: pip install 'headwater-bfn-moljo[dock]', or leave them out with "
            "--set task.vina=off"
        )


def run(
    poses: Sequence[Pose],
    receptors: Mapping[str, str],
    references: Mapping[str, np.ndarray],
    mode: Mode,
    cache: Path | None,
    processes: int | None = None,
    limit: float = 600.0,
    exhaustiveness: int = 8,
) -> list[Energies | Failure]:
    """The energies of every pose, or why there are none.

    Args:
        poses: the molecules.
        receptors: PDB texts by the name of the target; ``""`` is that of poses which name none.
        references: positions (L, 3) of the reference ligands, by target. Poses that lie within the box about the
            reference share its grid maps.
        mode: how much is computed.
        cache: folder in which each result is kept as soon as it is there, under a key of all that it depends on;
            ``None`` keeps none.
        processes: how many; as many as there are CPUs without.
        limit: seconds for one pose.
        exhaustiveness: of docking.
    """
    check_installed()
    results: list[Energies | Failure] = [Failure("no sound molecule of one piece")] * len(poses)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    waiting: dict[str, list[int]] = {}
    items: dict[str, _Item] = {}
    for i, pose in enumerate(poses):
        receptor = receptors.get(pose.target)
        if receptor is None:
            results[i] = Failure(f"no receptor is known for target {pose.target!r}")
            continue
        if sound(pose) is None or len(Chem.GetMolFrags(pose.mol)) > 1:
            continue
        settings = [mode, exhaustiveness if mode == "dock" else 0, SEED, "vina-1"]
        key = hashlib.sha256(json.dumps([pose.block.split("\n", 3)[3], receptor, settings]).encode()).hexdigest()
        waiting.setdefault(key, []).append(i)
        box = None
        if mode != "dock" and pose.target in references:
            box = _box(references[pose.target], 2 * MARGIN)
        items[key] = _Item(key, pose.block, receptor, box)
    for key, places in list(waiting.items()):
        known = _kept(cache, key)
        if known is not None:
            for i in places:
                results[i] = known
            del waiting[key], items[key]
    with Pool(processes, limit) as pool:
        shared = (mode, exhaustiveness, None if cache is None else str(cache))
        # Those of one receptor come together: a process keeps the maps of its last boxes.
        ordered = sorted(items.values(), key=lambda item: item.receptor)
        found = pool.each(_compute, ordered, shared, label=f"Vina {mode}", unit="poses")
    for item, result in zip(ordered, found, strict=True):
        for i in waiting[item.key]:
            results[i] = result
    return results


def _box(positions: np.ndarray, margin: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = positions.min(0), positions.max(0)
    return tuple(((low + high) / 2).tolist()), tuple((high - low + margin).tolist())


def _kept(cache: Path | None, key: str) -> Energies | None:
    if cache is None:
        return None
    try:
        return Energies(**json.loads((cache / f"{key}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # not there, or cut off by a crash of the machine
        return None


@lru_cache(maxsize=8)
def _receptor(text: str) -> str:
    """The receptor as rigid PDBQT with hydrogens."""
    from openbabel import openbabel

    openbabel.obErrorLog.SetOutputLevel(0)
    conversion = openbabel.OBConversion()
    conversion.SetInAndOutFormats("pdb", "pdbqt")
    conversion.AddOption("r", openbabel.OBConversion.OUTOPTIONS)
    mol = openbabel.OBMol()
    if not conversion.ReadString(mol, text):
        raise ValueError("Open Babel cannot read the receptor")
    mol.AddHydrogens(False, True, 7.4)
    made: str = conversion.WriteString(mol)
    return made


@lru_cache(maxsize=2)
def _vina(receptor: str, box: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[Any, list[bool]]:
    """Vina with a receptor for one box, and whether the box's maps are there: they need a ligand first."""
    from vina import Vina

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "receptor.pdbqt"
        path.write_text(_receptor(receptor), encoding="utf-8")
        vina = Vina(sf_name="vina", seed=SEED, cpu=1, verbosity=0)
        vina.set_receptor(str(path))
    return vina, []


def _compute(shared: tuple[Mode, int, str | None], item: _Item) -> Energies:
    """One pose, in a process; the result is on disk before it is reported."""
    from meeko import MoleculePreparation, PDBQTWriterLegacy

    mode, exhaustiveness, cache = shared
    mol = Chem.MolFromMolBlock(item.block)
    hydrogenated = Chem.AddHs(mol, addCoords=True)
    (setup, *_) = MoleculePreparation().prepare(hydrogenated)
    text, fine, why = PDBQTWriterLegacy.write_string(setup)
    if not fine:
        raise ValueError(f"Meeko cannot prepare it: {why}")
    positions = hydrogenated.GetConformer().GetPositions()
    own = _box(positions, MARGIN)
    box = item.box if item.box is not None and _inside(own, item.box) else own
    vina, ready = _vina(item.receptor, box)
    vina.set_ligand_from_string(text)
    if not ready:
        vina.compute_vina_maps(center=list(box[0]), box_size=list(box[1]))
        ready.append(True)
    energies = Energies(float(vina.score()[0]))
    if mode != "score":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pose.pdbqt"
            energies = energies._replace(minimize=float(vina.optimize()[0]))
            if mode == "dock":
                vina.dock(exhaustiveness=exhaustiveness, n_poses=1)
                energies = energies._replace(dock=float(vina.energies(n_poses=1)[0][0]))
                vina.write_poses(str(path), n_poses=1, overwrite=True)
            else:
                vina.write_pose(str(path), overwrite=True)
            energies = energies._replace(block=_moved(mol, path.read_text(encoding="utf-8")))
    if cache is not None:
        final = Path(cache) / f"{item.key}.json"
        beside = final.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(energies._asdict()), encoding="utf-8")
        beside.rename(final)
    return energies


def _inside(own: tuple[tuple[float, ...], tuple[float, ...]], box: tuple[tuple[float, ...], tuple[float, ...]]) -> bool:
    """Whether the box ``own`` lies within ``box``."""
    return all(abs(a - b) + s / 2 <= t / 2 + 1e-6 for a, b, s, t in zip(own[0], box[0], own[1], box[1], strict=True))


def _moved(mol: Any, pdbqt: str) -> str:
    """The molecule where Vina put it; it keeps its atoms' order and bonds."""
    from meeko import PDBQTMolecule, RDKitMolCreate

    (made, *_) = RDKitMolCreate.from_pdbqt_mol(PDBQTMolecule(pdbqt, skip_typing=True))
    made = Chem.RemoveHs(made)
    match = made.GetSubstructMatch(mol)
    if len(match) != mol.GetNumAtoms():
        raise ValueError("the pose that Vina gives is of another molecule")
    moved = Chem.Mol(mol)
    conformer, given = moved.GetConformer(), made.GetConformer()
    for i, j in enumerate(match):
        conformer.SetAtomPosition(i, given.GetAtomPosition(j))
    Chem.Kekulize(moved, clearAromaticFlags=True)
    return Chem.MolToMolBlock(moved, includeStereo=False, kekulize=False)
