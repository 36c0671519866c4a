"""The metrics of sampled crystals against the test and training crystals of a task."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from headwater import ConfigError
from headwater_bfn.pool import Failure, Pool

from headwater_bfn_crys.crystals import Crystals
from headwater_bfn_crys.tasks.coverage import CUT_OFFS, composition_fingerprint, coverage, structure_fingerprint
from headwater_bfn_crys.tasks.matching import STOL, Matching, displacement, first_match
from headwater_bfn_crys.tasks.splits import reduced_composition
from headwater_bfn_crys.tasks.validity import composition_is_valid, structural_validity

if TYPE_CHECKING:
    from headwater_bfn_crys.tasks.task import CrystalTask

__all__ = ["PAPER", "densities", "pairs", "score"]

NEEDS = {"validity": "smact", "coverage": "matminer"}
"""Which package a group of metrics needs beyond those that are always there."""

WASSERSTEIN_SAMPLES = 1000
"""So many valid samples, drawn at random, are compared with the test crystals."""

PAPER = {
    "mp-20": {
        "match_rate": 0.6435, "rmse": 0.0433, "valid_composition": 0.8751, "cov_recall": 0.9909,
    },
    "mpts-52": {"match_rate": 0.2052, "rmse": 0.1038},
    "perov-5": {"match_rate": 0.5469, "rmse": 0.0636},
    "carbon-24": {"cov_precision": 0.991},
}  # fmt: skip
"""What is quoted from the paper for CrysBFN, as fractions of one: match rate and RMSE of csp, the others of gen.

Taken from secondary sources; the RMSEs and the numbers of Perov-5 are unconfirmed.
"""


class _Work:
    """Runs one metric's pieces in processes, and remembers what ran out of time."""

    def __init__(self, config: Any, pool: Pool) -> None:
        self.config, self.pool = config, pool
        self.stuck: list[str] = []

    def __call__(
        self,
        function: Callable[[Any, Any], Any],
        items: Sequence[Any],
        shared: Any,
        label: str,
        names: Sequence[str],
        otherwise: Any = None,
    ) -> list[Any]:
        """The results, ``otherwise`` in place of a failure; ``names`` says whose each item is."""
        results = self.pool.each(function, items, shared, label, unit="crystals")
        failed = [i for i, result in enumerate(results) if isinstance(result, Failure)]
        reason = results[failed[0]].reason if failed else ""
        for i in failed:
            if results[i].stuck:
                self.stuck.append(names[i])
            results[i] = otherwise
        if failed:
            some = ", ".join(names[i] for i in failed[:10]) + (", ..." if len(failed) > 10 else "")
            print(f"{label}: {len(failed)} of {len(items)} gave no result ({reason}): {some}", file=sys.stderr)
        return results


def score(samples: Crystals, task: "CrystalTask", groups: Sequence[str] | None = None) -> dict[str, float]:
    """The metrics of ``samples``, the groups that the settings name or ``groups``.

    A value that is undefined (the RMSE where nothing matches) is left out. ``timed_out`` counts what ran past the time
    limit and was taken for invalid or unmatched.
    """
    wanted = [group for group in (groups or task.config.metrics) if _can(group)]
    if len(samples) == 0:
        return {}
    with Pool(task.config.processes, task.config.time_limit) as pool:
        run = _Work(task.config, pool)
        scores = _scores(samples, task, wanted, run)
    return {**scores, "timed_out": float(len(run.stuck))}


def _scores(samples: Crystals, task: "CrystalTask", wanted: Sequence[str], run: "_Work") -> dict[str, float]:
    test = task.test()
    valid = wholly = structural_validity(samples)
    scores: dict[str, float] = {}
    truth = pairs(samples, test, task.config.pair) if {"match", "metre"} & set(wanted) else None
    if truth is not None:
        scores |= _matched(samples, valid, test, truth, run, wanted)
    if "validity" in wanted:
        sound = _sound(samples, run)
        wholly = valid & sound
        scores |= {
            "valid": float(wholly.mean()), "valid_structure": float(valid.mean()),
            "valid_composition": float(sound.mean()),
        }  # fmt: skip
    if "coverage" in wanted and len(test):
        scores |= _coverage(samples, task, run)
    if "distances" in wanted and len(test):
        scores |= _distances(samples[wholly], test)
    if {"unique", "novel"} & set(wanted):
        scores |= _unique_and_novel(samples, valid, task.train(), run, wanted)
    return scores


def _names(crystals: Crystals) -> Sequence[str]:
    return crystals.ids or [f"sample {i}" for i in range(len(crystals))]


def _can(group: str) -> bool:
    package = NEEDS.get(group)
    if package is None or find_spec(package) is not None:
        return True
    print(f"{group} is left out: it needs {package} (pip install 'headwater-bfn-crys[metrics]')", file=sys.stderr)
    return False


def pairs(samples: Crystals, test: Crystals, by: str) -> np.ndarray | None:
    """The test crystal that each sample predicts (B,), or ``None`` if they are no predictions of it.

    By ids, each sample must have the name of a test crystal of the same atoms; by order, the test crystals are taken
    from the first on, and again from the first when they are through.
    """
    if by == "none" or not len(test) or not len(samples):
        return None
    if by == "order":
        found = np.arange(len(samples)) % len(test)
    else:
        places = {name: i for i, name in enumerate(test.ids)}
        if not samples.ids or any(name not in places for name in samples.ids):
            return None
        found = np.array([places[name] for name in samples.ids])
    mine, theirs = samples.compositions, test.compositions
    other = [i for i, j in enumerate(found) if mine[i] != theirs[j]]
    if not other:
        return found
    if by == "order":
        i = other[0]
        raise ConfigError(
            f"task.pair = 'order', but sample {i} is {samples.formulas[i]} and test crystal {found[i]} "
            f"{test.formulas[found[i]]}; samples must follow the order of the test crystals"
        )
    return None


def _matched(
    samples: Crystals, valid: np.ndarray, test: Crystals, truth: np.ndarray, run: _Work, wanted: Sequence[str]
) -> dict[str, float]:
    """Match rate and RMSE: each test crystal against the valid samples that predict it, the best of them.

    METRe: the share of the predicted test crystals that any valid sample of the same reduced formula matches. cRMSE,
    corrected RMSE, as it is defined here: over the same test crystals the mean of the smallest displacement to such a
    sample, and of the site tolerance :data:`STOL` where none matches. Both are those of arXiv 2509.12178 in spirit; the
    formula of its cRMSE has not been compared, so beside a published value take care. A pair is matched once for both.
    """
    predicted = sorted(set(truth.tolist()))
    own: dict[int, list[int]] = {j: [] for j in predicted}
    for i, j in enumerate(truth.tolist()):
        if valid[i]:
            own[j].append(i)
    kin = own
    if "metre" in wanted:
        formulas: dict[Any, list[int]] = {}
        mine, theirs = samples.compositions, test.compositions
        for i in np.flatnonzero(valid).tolist():
            formulas.setdefault(reduced_composition(mine[i]), []).append(i)
        kin = {j: formulas.get(reduced_composition(theirs[j]), []) for j in predicted}
    items = [(i, j) for j in predicted for i in kin[j]]
    names = [test.ids[j] for _, j in items]
    found = dict(zip(items, run(displacement, items, Matching(samples, test), "match", names), strict=True))

    def best(candidates: dict[int, list[int]]) -> list[float]:
        lowest = ((found[i, j] for i in some if found[i, j] is not None) for j, some in candidates.items())
        return [value for value in (min(some, default=None) for some in lowest) if value is not None]

    scores: dict[str, float] = {}
    if "match" in wanted:
        matched = best(own)
        scores["match_rate"] = len(matched) / len(predicted)
        scores |= {"rmse": float(np.mean(matched))} if matched else {}
    if "metre" in wanted:
        matched = best(kin)
        scores["metre"] = len(matched) / len(predicted)
        scores["crmse"] = (sum(matched) + STOL * (len(predicted) - len(matched))) / len(predicted)
    return scores


def _sound(samples: Crystals, run: _Work) -> np.ndarray:
    """Whether each sample's composition is valid (B,); each reduced formula is tried once."""
    formulas = [reduced_composition(composition) for composition in samples.compositions]
    distinct = list(dict.fromkeys(formulas))
    options = (run.config.oxidation_states, run.config.max_elements)
    shown = dict(zip(formulas, samples.formulas, strict=True))
    found = run(composition_is_valid, distinct, options, "composition", [shown[f] for f in distinct], False)
    verdict = dict(zip(distinct, found, strict=True))
    return np.array([verdict[formula] for formula in formulas], dtype=bool)


def _coverage(samples: Crystals, task: "CrystalTask", run: _Work) -> dict[str, float]:
    references = _kept_fingerprints(task.test(), task, run, "test fingerprints")
    if task.config.comp_scaler is None:
        train = _magpie(task.train(), run, "training compositions")
        means, stds = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    else:
        means, stds = read_scaler(task.config.comp_scaler)
    stds = np.where(stds > 0, stds, 1.0)
    mine = _fingerprints(samples, run, "sample fingerprints")
    return coverage(
        (mine[0], (mine[1] - means) / stds),
        (references[0], (references[1] - means) / stds),
        CUT_OFFS[task.config.published or "mp-20"],
    )


def read_scaler(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations (132,) of Magpie features out of an NPZ file.

    Raises:
        ConfigError: it cannot be read or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            means, stds = stored["means"], stored["stds"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ConfigError(f"task.comp_scaler = {path} cannot be read: {error}") from error
    if means.shape != (132,) or stds.shape != (132,):
        raise ConfigError(f"task.comp_scaler = {path} must hold means and stds of the shape (132,)")
    return means, stds


def _fingerprints(crystals: Crystals, run: _Work, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Structure (B, 61) and composition (B, 132) fingerprints, NaN where there is none."""
    nothing = np.full(61, np.nan)
    rows = run(structure_fingerprint, range(len(crystals)), crystals, label, _names(crystals), nothing)
    return np.stack(rows), _magpie(crystals, run, label)


def _magpie(crystals: Crystals, run: _Work, label: str) -> np.ndarray:
    """Composition fingerprints (B, 132); each composition is featurised once."""
    compositions = crystals.compositions
    first = {composition: i for i, composition in reversed(list(enumerate(compositions)))}
    items = sorted(first.values())
    formulas = crystals.formulas
    rows = run(composition_fingerprint, items, crystals, label, [formulas[i] for i in items], np.full(132, np.nan))
    of = dict(zip((compositions[i] for i in items), rows, strict=True))
    return np.stack([of[composition] for composition in compositions])


def _kept_fingerprints(test: Crystals, task: "CrystalTask", run: _Work, label: str) -> tuple[np.ndarray, np.ndarray]:
    """The fingerprints of the test crystals, kept from one evaluation to the next where the task has a cache."""
    folder = task.test_cache()
    if folder is None:
        return _fingerprints(test, run, label)
    key = hashlib.sha256()
    for array in (test.numbers, test.num_atoms, test.frac.round(8), test.lengths.round(6), test.angles.round(6)):
        key.update(np.ascontiguousarray(array).tobytes())
    stored = folder / f"fingerprints-{key.hexdigest()[:16]}.npz"
    with suppress(OSError, ValueError, KeyError, EOFError), np.load(stored, allow_pickle=False) as kept:
        return kept["structure"], kept["composition"]
    made = _fingerprints(test, run, label)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        beside = stored.with_name(f".{stored.name}")
        with beside.open("wb") as file:
            np.savez_compressed(file, structure=made[0], composition=made[1])
        beside.rename(stored)
    return made


def densities(crystals: Crystals) -> np.ndarray:
    """Mass densities (B,) in grams per cubic centimetre."""
    from ase.data import atomic_masses

    masses = np.bincount(crystals.crystal_of, weights=atomic_masses[crystals.numbers], minlength=len(crystals))
    return masses / np.maximum(crystals.volumes, np.finfo(np.float64).tiny) / 0.602214076


def _distances(valid: Crystals, test: Crystals) -> dict[str, float]:
    """Wasserstein-1 distances of density, number of elements and cell volume."""
    from scipy.stats import wasserstein_distance

    if len(valid) == 0:
        return {}
    if len(valid) > WASSERSTEIN_SAMPLES:
        valid = valid[np.sort(np.random.default_rng(0).choice(len(valid), WASSERSTEIN_SAMPLES, replace=False))]
    properties: dict[str, Callable[[Crystals], np.ndarray]] = {
        "density": densities,
        "elements": lambda crystals: np.array([len(composition) for composition in crystals.compositions]),
        "volume": lambda crystals: crystals.volumes,
    }
    return {f"wdist_{name}": float(wasserstein_distance(of(valid), of(test))) for name, of in properties.items()}


def _unique_and_novel(
    samples: Crystals, valid: np.ndarray, train: Crystals, run: _Work, wanted: Sequence[str]
) -> dict[str, float]:
    """Shares of the structurally valid samples that no earlier one and no training crystal matches."""
    chosen = np.flatnonzero(valid)
    if not len(chosen):
        return {}
    mine = samples[chosen]
    labels = _names(mine)
    formulas = [reduced_composition(composition) for composition in mine.compositions]
    scores: dict[str, float] = {}
    fresh = np.ones(len(mine), dtype=bool)
    if "unique" in wanted:
        before: dict[Any, list[int]] = {}
        earlier = []
        for i, formula in enumerate(formulas):
            earlier.append(tuple(before.setdefault(formula, [])))
            before[formula].append(i)
        unique = _matches_none(mine, mine, earlier, run, "unique", labels)
        scores["unique"] = float(unique.mean())
        fresh &= unique
    if "novel" in wanted:
        known: dict[Any, list[int]] = {}
        for j, composition in enumerate(train.compositions):
            known.setdefault(reduced_composition(composition), []).append(j)
        same = [tuple(known.get(formula, ())) for formula in formulas]
        novel = _matches_none(mine, train, same, run, "novel", labels)
        scores["novel"] = float(novel.mean())
        fresh &= novel
    if {"unique", "novel"} <= set(wanted):
        scores["valid_unique_novel"] = float(fresh.sum() / len(samples))
    return scores


def _matches_none(
    samples: Crystals,
    references: Crystals,
    candidates: Sequence[tuple[int, ...]],
    run: _Work,
    label: str,
    names: Sequence[str],
) -> np.ndarray:
    """Whether each sample matches none of its candidates (B,); one that ran out of time counts as matching."""
    items = [(i, some) for i, some in enumerate(candidates) if some]
    found = run(first_match, items, Matching(samples, references), label, [names[i] for i, _ in items], -1)
    none = np.ones(len(samples), dtype=bool)
    for (i, _), match in zip(items, found, strict=True):
        none[i] = match is None
    return none
