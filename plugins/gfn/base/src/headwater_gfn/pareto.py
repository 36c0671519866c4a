"""How good a set of samples is as an approximation of a Pareto front. More is better in every objective.

Dominance, hypervolume and the inverted generational distances are moocore's (the extra ``moo``); the rest is short.
"""

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
from headwater import UsageError

__all__ = [
    "available",
    "focus",
    "front_metrics",
    "gd_plus",
    "hausdorff_plus",
    "hypercube_faces",
    "hypervolume",
    "igd",
    "igd_plus",
    "non_dominated",
    "pc_entropy",
    "r2",
    "simplex",
]

Points = np.ndarray[Any, np.dtype[np.float64]]


def available() -> bool:
    """Whether moocore is installed."""
    return find_spec("moocore") is not None


def moocore() -> Any:
    """The library.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module("moocore")
    except ImportError as error:
        raise UsageError("the Pareto metrics need moocore: pip install 'headwater-gfn[moo]'") from error


def _points(values: Any) -> Points:
    return np.ascontiguousarray(np.asarray(values, dtype=np.float64))


def non_dominated(values: Any, *, strict: bool = False) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows of ``values`` (N, D) no other row dominates (N,); equal rows count all.

    With ``strict`` a row counts unless another is larger in *every* objective, as in the official grid script.
    """
    points = _points(values)
    if strict:
        out = np.ones(len(points), dtype=bool)
        for first in range(0, len(points), 1024):
            part = points[first : first + 1024]
            larger = np.all(points[None] > part[:, None], axis=-1)
            out[first : first + 1024] = ~np.any(larger, axis=1)
        return out
    if points.shape[1] == 1:
        return np.asarray(points[:, 0] == points[:, 0].max())
    return np.asarray(moocore().is_nondominated(points, maximise=True, keep_weakly=True), dtype=bool)


def hypervolume(values: Any, reference: Sequence[float] | float = 0.0) -> float:
    """The volume that ``values`` (N, D) dominate above the point ``reference``."""
    points = _points(values)
    ref = np.broadcast_to(np.asarray(reference, dtype=np.float64), points.shape[1:])
    points = points[(points > ref).all(1)]
    if not len(points):
        return 0.0
    return float(moocore().hypervolume(np.unique(points, axis=0), ref=ref, maximise=True))


def igd(values: Any, reference: Any) -> float:
    """Mean over the reference points (R, D) of the distance to the nearest sample (N, D)."""
    return float(moocore().igd(_points(values), ref=_points(reference), maximise=True))


def igd_plus(values: Any, reference: Any) -> float:
    """Mean over reference points r of the least ``|max(r - a, 0)|`` over samples a."""
    return float(moocore().igd_plus(_points(values), ref=_points(reference), maximise=True))


def gd_plus(values: Any, reference: Any) -> float:
    """Mean over samples a of the least ``|max(r - a, 0)|`` over reference points r."""
    a, r = _points(values), _points(reference)
    return float(_shortfalls(r, a).min(0).mean())


def hausdorff_plus(values: Any, reference: Any) -> float:
    """The larger of GD+ and IGD+: the averaged Hausdorff distance of Schuetze et al. with the plus distance."""
    return max(gd_plus(values, reference), igd_plus(values, reference))


def _shortfalls(r: Points, a: Points) -> Points:
    """``|max(r - a, 0)|`` of all pairs (R, N)."""
    return np.asarray(np.sqrt(np.square(np.maximum(r[:, None] - a[None], 0.0)).sum(-1)))


def hypercube_faces(dimensions: int, per_axis: int = 10) -> Points:
    """Points on the upper faces of the unit hypercube: a grid with ``per_axis`` values an axis, one of them 1."""
    grid = np.array(list(product(np.linspace(0.0, 1.0, per_axis), repeat=dimensions)))
    return np.asarray(grid[(grid == 1.0).any(1)])


def pc_entropy(values: Any, reference: Any) -> float:
    """Entropy -sum p log(p + 1e-8) of how samples (N, D) are shared among their nearest reference points (R, D).

    Higher: the samples are spread better along the front.
    """
    a, r = _points(values), _points(reference)
    nearest = ((a[:, None] - r[None]) ** 2).sum(-1).argmin(1)
    p = np.bincount(nearest, minlength=len(r)) / len(a)
    p = p[p > 0]
    return float(-(p * np.log(p + 1e-8)).sum())


def r2(values: Any, weights: Any, utopia: float = 1.0) -> float:
    """R2 indicator: the sum over weights v (V, D) of min over samples a of max_j v_j |utopia - a_j|, over |V|_F."""
    a, v = _points(values), _points(weights)
    worst = (v[:, None] * np.abs(utopia - a)[None]).max(-1)
    return float(worst.min(1).sum() / np.linalg.norm(v))


def simplex(dimensions: int, parts: int = 6) -> Points:
    """Evenly spread weights: all vectors of multiples of 1 / ``parts`` that sum to 1."""
    rows = [v for v in product(range(parts + 1), repeat=dimensions) if sum(v) == parts]
    return np.array(rows, dtype=np.float64) / parts


def focus(values: Any, direction: Any, cosine: float = 0.98, coefficient: float = 0.2) -> tuple[Any, Any]:
    """How well samples (N, D) keep to their directions (N, D): a coefficient (N,) and whether each is in focus (N,).

    In focus is whose cosine to its direction is at least l = ``cosine``; its coefficient is cos^(log c / log l), 1 in
    the direction itself and c = ``coefficient`` at the limit. Out of focus the coefficient is 0.
    """
    a, d = _points(values), _points(direction)
    cos = (a * d).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(d, axis=1), 1e-12)
    power = np.log(coefficient) / np.log(cosine)
    inside = cos >= cosine
    return np.where(inside, np.clip(cos, 0.0, 1.0) ** power, 0.0), inside


def front_metrics(values: Any, front: Any | None, reference: Sequence[float] | float = 0.0) -> dict[str, float]:
    """Hypervolume, IGD+, GD+, R2 and PC-entropy of samples (N, D).

    ``front`` (R, D) is the true Pareto front; where it is not known, the upper faces of the unit hypercube stand in.
    """
    points = _points(values)
    best = np.unique(points[non_dominated(points)], axis=0)
    d = points.shape[1]
    to = hypercube_faces(d) if front is None else np.unique(_points(front), axis=0)
    return {
        "hypervolume": hypervolume(best, reference),
        "igd_plus": igd_plus(points, to),
        "gd_plus": gd_plus(points, to),
        "r2": r2(best, simplex(d)),
        "pc_entropy": pc_entropy(points, to),
    }
