"""The metrics of molecules: chemistry, Vina, PoseBusters, and comparisons with each pocket's reference ligand."""

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from headwater import UsageError
from headwater_bfn.pool import Failure, Pool
from rdkit import Chem, DataStructs

from headwater_bfn_moljo.tasks import docking
from headwater_bfn_moljo.tasks.poses import Pose, sound

if TYPE_CHECKING:
    from headwater_bfn_moljo.tasks.task import ComplexTask

__all__ = ["SUCCESS", "chemistry", "diversity", "lipinski", "me_better", "reference_pose", "sa", "score", "success"]

SUCCESS = {"qed": 0.25, "sa": 0.59, "dock": -8.18}
"""A molecule is a success above the first two and below the third."""


@cache
def _sascorer() -> Any:
    """RDKit's synthetic accessibility, which it ships beside its modules."""
    import importlib.util

    from rdkit.Chem import RDConfig

    path = os.path.join(RDConfig.RDContribDir, "SA_Score", "sascorer.py")
    spec = importlib.util.spec_from_file_location("sascorer", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"this RDKit has no SA score at {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sa(mol: Any) -> float:
    """Synthetic accessibility from 0 (hard) to 1 (easy): (10 - SA)/9 to two decimals.

    Example:
        >>> sa(Chem.MolFromSmiles("CCO"))
        0.89
    """
    return round((10 - _sascorer().calculateScore(mol)) / 9, 2)


def lipinski(mol: Any) -> int:
    """How many of five rules hold: mass < 500, donors <= 5, acceptors <= 10, -2 <= logP <= 5, rotors <= 10.

    Example:
        >>> lipinski(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
        5
    """
    from rdkit.Chem import rdMolDescriptors

    return sum(
        (
            rdMolDescriptors.CalcExactMolWt(mol) < 500,
            rdMolDescriptors.CalcNumHBD(mol) <= 5,
            rdMolDescriptors.CalcNumHBA(mol) <= 10,
            -2 <= rdMolDescriptors.CalcCrippenDescriptors(mol)[0] <= 5,
            rdMolDescriptors.CalcNumRotatableBonds(mol) <= 10,
        )
    )


def chemistry(mol: Any) -> dict[str, float]:
    """QED, SA and Lipinski count of a sanitised molecule, as it reads from its SMILES, which has no coordinates."""
    from rdkit.Chem import QED

    plain = Chem.MolFromSmiles(Chem.MolToSmiles(mol))
    if plain is None:
        plain = mol
    return {"qed": float(QED.qed(plain)), "sa": sa(plain), "lipinski": float(lipinski(plain))}


def diversity(mols: Sequence[Any]) -> float | None:
    """Mean of 1 - Tanimoto (RDKit fingerprint) over all pairs; ``None`` for fewer than two molecules."""
    if len(mols) < 2:
        return None
    prints = [Chem.RDKFingerprint(mol) for mol in mols]
    rows = [DataStructs.BulkTanimotoSimilarity(prints[i], prints[:i]) for i in range(1, len(prints))]
    return 1.0 - float(np.mean(np.concatenate(rows)))


def success(values: Mapping[str, float]) -> bool:
    """Whether a molecule is active, drug-like and easy to make at once."""
    return values["qed"] > SUCCESS["qed"] and values["sa"] > SUCCESS["sa"] and values["dock"] < SUCCESS["dock"]


def me_better(values: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, bool]:
    """Whether a molecule beats its reference on each axis that both have."""
    lower = ("score", "minimize", "dock")
    shared = [k for k in (*lower, "qed", "sa") if k in values and k in reference]
    return {k: values[k] < reference[k] if k in lower else values[k] > reference[k] for k in shared}


def reference_pose(target: str, mol: Any) -> Pose:
    """A reference ligand as a pose."""
    kekulised = Chem.Mol(mol)
    Chem.Kekulize(kekulised, clearAromaticFlags=True)
    return Pose(target, kekulised, {"target": target} if target else {})


def score(samples: Sequence[Pose], task: "ComplexTask") -> dict[str, float]:
    """The metrics of ``samples``; molecules of several pieces count in validity alone.

    Vina columns have mean, median, and the share below 0 with the mean of those.
    """
    if not samples:
        return {}
    mols = [sound(pose) for pose in samples]
    whole = [mol if mol is not None and len(Chem.GetMolFrags(mol)) == 1 else None for mol in mols]
    found: dict[str, float] = {
        "valid": float(np.mean([mol is not None for mol in mols])),
        "complete": float(np.mean([mol is not None for mol in whole])),
    }
    kept = [i for i, mol in enumerate(whole) if mol is not None]
    if not kept:
        return found
    values: dict[int, dict[str, float]] = {i: chemistry(whole[i]) for i in kept}
    smiles = [Chem.MolToSmiles(whole[i], isomericSmiles=False) for i in kept]
    found["unique"] = len(set(smiles)) / len(smiles)
    found["atoms"] = float(np.mean([mol.GetNumAtoms() for mol in whole if mol is not None]))
    references = task.references()
    expected = {t: chemistry(mol) for t, mol in references.items() if t in {samples[i].target for i in kept}}
    known = {Chem.MolToSmiles(mol, isomericSmiles=False) for mol in references.values()}
    if known:
        found["novel"] = float(np.mean([s not in known for s in smiles]))
    if task.config.vina != "off" and _can_dock(task):
        _energies([samples[i] for i in kept], kept, values, expected, task)
    if task.config.posebusters:
        found |= _busted([samples[i] for i in kept], task)
    for name in ("qed", "sa", "lipinski"):
        found[name] = float(np.mean([values[i][name] for i in kept]))
    by_target: dict[str, list[int]] = defaultdict(list)
    for i in kept:
        by_target[samples[i].target].append(i)
    spread = [d for group in by_target.values() if (d := diversity([whole[i] for i in group])) is not None]
    if spread:
        found["diversity"] = float(np.mean(spread))
    for name in ("score", "minimize", "dock"):
        column = np.array([values[i][name] for i in kept if name in values[i]])
        if len(column):
            negative = column[column < 0]
            found |= {
                f"vina_{name}_mean": float(column.mean()), f"vina_{name}_median": float(np.median(column)),
                f"vina_{name}_negative": len(negative) / len(column),
            }  # fmt: skip
            if len(negative):
                found[f"vina_{name}_mean_negative"] = float(negative.mean())
    docked = [i for i in kept if "dock" in values[i]]
    if docked:
        found["success_rate"] = float(np.mean([success(values[i]) for i in docked]))
        better = [
            np.mean([values[i]["dock"] < expected[t]["dock"] for i in group if "dock" in values[i]])
            for t, group in by_target.items()
            if "dock" in expected.get(t, {}) and any("dock" in values[i] for i in group)
        ]
        if better:
            found["high_affinity"] = float(np.mean(better))
    compared = [me_better(values[i], expected[samples[i].target]) for i in kept if samples[i].target in expected]
    for name in ("score", "minimize", "dock", "qed", "sa"):
        axis = [one[name] for one in compared if name in one]
        if axis:
            found[f"better_{name}"] = float(np.mean(axis))
    full = [all(one.values()) for one in compared if len(one) == 5]
    if full:
        found["me_better"] = float(np.mean(full))
    return found


def _can_dock(task: "ComplexTask") -> bool:
    if task.receptors():
        docking.check_installed()
        return True
    print("Vina energies are left out: name the protein, --set task.pocket=P.pdb", file=sys.stderr)
    return False


def _energies(
    poses: Sequence[Pose],
    places: Sequence[int],
    values: dict[int, dict[str, float]],
    expected: dict[str, dict[str, float]],
    task: "ComplexTask",
) -> None:
    """Add Vina energies to the molecules' values and, for comparison, to those of the references."""
    c = task.config
    references = task.references()
    wanted = [reference_pose(t, references[t]) for t in expected]
    positions = {t: mol.GetConformer().GetPositions() for t, mol in references.items()}
    results = docking.run(
        [*poses, *wanted], task.receptors(), positions, c.vina, c.cache, c.processes, c.time_limit, c.exhaustiveness
    )
    failed = [r.reason for r in results if isinstance(r, Failure)]
    if failed:
        print(f"Vina: {len(failed)} of {len(results)} gave no result ({failed[0]})", file=sys.stderr)
    rows = [*(values[i] for i in places), *(expected[t] for t in expected)]
    for row, result in zip(rows, results, strict=True):
        if not isinstance(result, Failure):
            named = {"score": result.score, "minimize": result.minimize, "dock": result.dock}
            row |= {k: v for k, v in named.items() if v is not None}


def _busted(poses: Sequence[Pose], task: "ComplexTask") -> dict[str, float]:
    if find_spec("posebusters") is None:
        raise UsageError("task.posebusters needs posebusters: pip install posebusters, or set it to false")
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, (target, text) in enumerate(task.receptors().items()):
            paths[target] = Path(folder) / f"{number}.pdb"
            paths[target].write_text(text, encoding="utf-8")
        items = [(pose.block, str(paths[pose.target]) if pose.target in paths else None) for pose in poses]
        with Pool(task.config.processes, task.config.time_limit) as pool:
            results = pool.each(_bust, items, None, label="PoseBusters", unit="molecules")
    done = [r for r in results if not isinstance(r, Failure)]
    found = {"posebusters": sum(r[0] for r in done) / len(results)}
    strains = [r[1] for r in done if r[1] is not None]
    return found | ({"strain": float(np.median(strains))} if strains else {})


def _bust(shared: None, item: tuple[str, str | None]) -> tuple[bool, float | None]:
    """Whether a molecule passes all tests, and its energy over the mean of an ensemble of conformers."""
    from posebusters import PoseBusters

    block, receptor = item
    mol = Chem.MolFromMolBlock(block)
    config = "mol" if receptor is None else "dock"
    arguments = {} if receptor is None else {"mol_cond": receptor}
    buster = PoseBusters(config=config)
    table = buster.bust([mol], full_report=True, **arguments)
    # The tests are the first columns of a full report; what they were computed from follows.
    tests = sum(len(module.get("chosen_binary_test_output", ())) for module in buster.config["modules"])
    passed = all(value is True or value is np.True_ for value in table.iloc[0, :tests])
    ratio = table["energy_ratio"].iloc[0] if "energy_ratio" in table else None
    return passed, None if ratio is None or not np.isfinite(ratio) else float(ratio)
