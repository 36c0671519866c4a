"""Coverage of a test set by samples, in the space of CrystalNN and Magpie fingerprints."""

from functools import cache
from typing import Any

import numpy as np

from headwater_bfn_crys.crystals import Crystals

__all__ = ["CUT_OFFS", "composition_fingerprint", "coverage", "structure_fingerprint"]

CUT_OFFS = {"mp-20": (0.4, 10.0), "mpts-52": (0.4, 10.0), "perov-5": (0.2, 4.0), "carbon-24": (0.2, 4.0)}
"""Structure and composition distances up to which a crystal counts as covered, by data set."""

AT_ONCE = 1 << 22
"""So many distances are held in memory together."""


@cache
def _site_fingerprint() -> Any:
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

    return CrystalNNFingerprint.from_preset("ops")


@cache
def _magpie() -> Any:
    from matminer.featurizers.composition.composite import ElementProperty

    return ElementProperty.from_preset("magpie")


def structure_fingerprint(crystals: Crystals, i: int) -> np.ndarray:
    """The mean over the sites of crystal ``i`` of CrystalNN's order parameters, (61,).

    Sites that symmetry maps on one another (to 0.0001 angstrom) have the same surroundings, so one of them is computed.
    """
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    structure = crystals[i : i + 1].structures()[0]
    try:
        groups = SpacegroupAnalyzer(structure, symprec=1e-4).get_symmetrized_structure().equivalent_indices
    except ValueError:  # no symmetry can be found where atoms all but coincide
        groups = [[k] for k in range(len(structure))]
    rows = [_site_fingerprint().featurize(structure, group[0]) for group in groups]
    return np.average(rows, axis=0, weights=[len(group) for group in groups])


def composition_fingerprint(crystals: Crystals, i: int) -> np.ndarray:
    """The Magpie features of crystal ``i``, (132,)."""
    from pymatgen.core import Composition

    return np.asarray(_magpie().featurize(Composition(crystals[i : i + 1].formulas[0])), dtype=np.float64)


def coverage(
    samples: tuple[np.ndarray, np.ndarray],
    references: tuple[np.ndarray, np.ndarray],
    cut_offs: tuple[float, float],
) -> dict[str, float]:
    """Recall and precision of coverage, and the mean distances to the nearest structure and composition.

    Recall is the share of references within both cut-offs of some sample; the nearest in structure and the nearest in
    composition may be two samples. Precision is the same from the samples' side. A sample without fingerprint (a row
    with NaN) covers nothing and is not covered, and counts in the precision.

    Args:
        samples: structure (S, 61) and standardised composition (S, 132) fingerprints.
        references: those of the references.
        cut_offs: largest distance in structure and in composition.
    """
    kept = np.isfinite(samples[0]).all(1) & np.isfinite(samples[1]).all(1)
    known = np.isfinite(references[0]).all(1) & np.isfinite(references[1]).all(1)
    if not kept.any() or not known.any():
        return {"cov_recall": 0.0, "cov_precision": 0.0}
    (to_sample, to_reference), (comp_to_sample, comp_to_reference) = (
        _nearest(reference[known], sample[kept]) for reference, sample in zip(references, samples, strict=True)
    )
    recalled = (to_sample <= cut_offs[0]) & (comp_to_sample <= cut_offs[1])
    precise = (to_reference <= cut_offs[0]) & (comp_to_reference <= cut_offs[1])
    return {
        "cov_recall": float(recalled.mean()),
        "cov_precision": float(precise.sum() / len(kept)),
        "amsd_recall": float(to_sample.mean()),
        "amsd_precision": float(to_reference.mean()),
        "amcd_recall": float(comp_to_sample.mean()),
        "amcd_precision": float(comp_to_reference.mean()),
    }


def _nearest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each row of ``a`` to its nearest of ``b``, and the other way round."""
    from scipy.spatial.distance import cdist

    to_b, to_a = np.full(len(a), np.inf), np.full(len(b), np.inf)
    step = max(1, AT_ONCE // len(b))
    for k in range(0, len(a), step):
        distances = cdist(a[k : k + step], b)
        to_b[k : k + step] = distances.min(1)
        to_a = np.minimum(to_a, distances.min(0))
    return to_b, to_a
