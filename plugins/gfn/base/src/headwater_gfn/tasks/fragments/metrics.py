"""Metrics of sampled molecules: best rewards, diversity, modes, validity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headwater_gfn.environment import Samples
from headwater_gfn.tasks.fragments.library import rdkit

if TYPE_CHECKING:
    from headwater_gfn.tasks.fragments.environment import Fragments

__all__ = ["fingerprints", "metrics", "modes", "top_k"]


def fingerprints(mols: Sequence[Any]) -> list[Any]:
    """Morgan fingerprints of radius 2 with 2048 bits."""
    generator = rdkit("Chem.rdFingerprintGenerator").GetMorganGenerator(radius=2, fpSize=2048)
    return list(generator.GetFingerprints(list(mols)))


def top_k(mols: Sequence[Any], values: np.ndarray, k: int = 100) -> tuple[float, float]:
    """Mean value of the ``k`` best molecules, and their mean pairwise Tanimoto distance (nan for less than two)."""
    best = np.argsort(-values, kind="stable")[:k]
    prints = fingerprints([mols[i] for i in best])
    similarity = rdkit("DataStructs").BulkTanimotoSimilarity
    distances = [1.0 - s for i in range(1, len(prints)) for s in similarity(prints[i], prints[:i])]
    return float(values[best].mean()), float(np.mean(distances)) if distances else float("nan")


def modes(mols: Sequence[Any], values: np.ndarray, threshold: float, similarity: float = 0.7) -> np.ndarray:
    """The mode of each molecule (B,), -1 for none.

    Going from the best value down to ``threshold``, a molecule opens a mode unless its Tanimoto similarity to one that
    is open is ``similarity`` or more; it then belongs to the most similar.
    """
    found = np.full(len(mols), -1, dtype=np.int64)
    order = [i for i in np.argsort(-values, kind="stable") if values[i] >= threshold]
    if not order:
        return found
    prints = dict(zip(order, fingerprints([mols[i] for i in order]), strict=True))
    bulk = rdkit("DataStructs").BulkTanimotoSimilarity
    opened: list[Any] = []
    for i in order:
        near = bulk(prints[i], opened)
        if near and max(near) >= similarity:
            found[i] = int(np.argmax(near))
        else:
            found[i] = len(opened)
            opened.append(prints[i])
    return found


def metrics(environment: "Fragments", samples: Samples) -> dict[str, float]:
    """Metrics of samples: over all, and over the unique molecules among them.

    ``valid`` counts those that RDKit can read back from their SMILES.
    """
    smiles, values = environment.smiles(samples.x), environment.values(samples.x).numpy()
    parse = rdkit("Chem").MolFromSmiles
    of = {s: i for i, s in reversed(list(enumerate(smiles)))}
    unique = list(of.values())
    mols = [environment.molecules(samples.x[i : i + 1])[0].mol for i in unique]
    best, distance = top_k(mols, values[unique], 100)
    found = modes(mols, values[unique], environment.mode_threshold, environment.config.mode_similarity)
    size = (samples.x[:, : environment.size] >= 0).sum(1).double()
    return {
        "reward": float(values.mean()),
        "log_reward": float(samples.log_reward.double().mean()),
        "top_100_reward": best,
        "top_100_diversity": distance,
        "modes": float(found.max() + 1),
        "valid": float(np.mean([parse(s) is not None for s in smiles])),
        "unique": len(of) / len(smiles),
        "blocks": float(size.mean()),
    }
