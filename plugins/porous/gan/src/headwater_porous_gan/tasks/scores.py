"""All functionals of a volume, and of generated volumes beside the training volume."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from headwater.errors import DataError, RunError

from headwater_porous_gan.physics import correlation, minkowski, permeability, pores
from headwater_porous_gan.physics.permeability import DARCY
from headwater_porous_gan.volume import Volume

__all__ = ["UNITS", "Measured", "crops", "measure", "scores"]

UNITS = {
    "porosity": "1",
    "effective_porosity": "1, components through any axis",
    "surface": "1/voxel, Crofton, 13 directions",
    "surface_s2": "1/voxel, slope of S2",
    "faces": "voxel faces between the phases per voxel",
    "mean_breadth": "1/voxel^2",
    "euler_6": "1/voxel^3, grains by faces",
    "euler_26": "1/voxel^3, grains by faces, edges, corners",
    "chord_pore": "voxels, slope of S2",
    "chord_grain": "voxels, slope of S2",
    "run_pore": "voxels, mean of whole chords",
    "run_grain": "voxels, mean of whole chords",
    "thickness_pore": "voxels, mean radius",
}
"""What :func:`measure` gives, with units; effective porosity and permeability also for each axis."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one volume.

    Args:
        values: functionals by name, per volume; NaN where a volume has none (chords of an empty phase).
        s2: direction mean of S2 of the pores.
        directional: S2 of the pores along each axis.
        notes: what could not be measured, and why.
    """

    values: dict[str, float]
    s2: np.ndarray
    directional: Sequence[np.ndarray]
    notes: list[str] = field(default_factory=list)


def crops(shape: Sequence[int], edge: int, n: int) -> list[tuple[slice, slice, slice]]:
    """At most ``n`` cubes of ``edge`` out of the grid of whole cubes in a volume, evenly spaced; its middle for one."""
    sizes = [min(edge, d) for d in shape]
    counts = [d // s for d, s in zip(shape, sizes, strict=True)]
    total = math.prod(counts)
    if n == 1 or total == 1:
        starts = [[(d - s) // 2 for d, s in zip(shape, sizes, strict=True)]]
    else:
        chosen = np.unique(np.linspace(0, total - 1, min(n, total)).round().astype(int))
        places = np.stack(np.unravel_index(chosen, counts), 1)
        starts = [[int(p) * s for p, s in zip(place, sizes, strict=True)] for place in places]
    return [tuple(slice(a, a + s) for a, s in zip(start, sizes, strict=True)) for start in starts]  # type: ignore[misc]


def measure(volume: Volume, config: Any) -> Measured:
    """All functionals of one volume; read slab by slab, so memory does not grow with it (``config.lags`` does count).

    Permeability (in voxel^2, and in darcy where the voxel size is known) and local thickness are means over crops.
    """
    phase: Any = volume.phase
    directional = correlation.s2_directional(phase, config.lags)
    s2 = correlation.s2_mean(directional)
    found = minkowski.minkowski(phase)
    connected = pores.connected_porosity(phase)
    cells = max(found.cells, 1)
    runs = [[pores.mean_chord(pores.chord_lengths(phase, a, value)) for a in range(3)] for value in (0, 1)]
    mixed = 0 < s2[0] < 1 and len(s2) > 1
    chords = correlation.chord_means(s2) if mixed else (math.nan, math.nan)
    values = {
        "porosity": pores.porosity(phase),
        "effective_porosity": connected.any,
        **{f"effective_porosity_{a}": connected.axes[a] for a in range(3)},
        "surface": found.surface / cells,
        "surface_s2": correlation.specific_surface(s2) if mixed else 0.0,
        "faces": found.faces / cells,
        "mean_breadth": found.breadth / cells,
        "euler_6": found.euler6 / cells,
        "euler_26": found.euler26 / cells,
        "chord_pore": chords[0],
        "chord_grain": chords[1],
        "run_pore": _mean(runs[0]),
        "run_grain": _mean(runs[1]),
    }
    notes: list[str] = []
    if config.permeability or config.thickness:
        chosen = [
            np.asarray(phase[where])
            for where in crops(phase.shape, config.permeability_edge, config.permeability_crops)
        ]
        if config.permeability:
            values |= _permeabilities(chosen, volume.voxel_size, notes)
        if config.thickness:
            radii = [r[r > 0].mean() for r in map(pores.local_thickness, chosen) if (r > 0).any()]
            values["thickness_pore"] = _mean(radii)
    return Measured(values, s2, directional, notes)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return float(np.mean(known)) if known else math.nan


def _permeabilities(chosen: Sequence[np.ndarray], voxel_size: float | None, notes: list[str]) -> dict[str, float]:
    """Mean over crops of k along each axis; a crop without a pore from face to face counts as 0."""
    values = {}
    for axis in range(3):
        each = []
        for crop in chosen:
            try:
                each.append(permeability.permeability(crop, axis).permeability)
            except DataError:
                notes.append(f"no pore of a crop of {crop.shape[axis]} voxels connects the faces of axis {axis}: k = 0")
                each.append(0.0)
            except RunError as error:
                notes.append(str(error))
        values[f"permeability_{axis}"] = _mean(each)
        if voxel_size is not None:
            values[f"permeability_{axis}_darcy"] = _mean(each) * voxel_size**2 / DARCY
    values["permeability"] = _mean([values[f"permeability_{axis}"] for axis in range(3)])
    return values


def scores(made: Sequence[Measured], real: Measured | None) -> dict[str, float]:
    """Means over the generated volumes; with a training volume its values and the errors beside them.

    ``NAME`` is the mean, ``NAME_real`` that of the training volume and ``NAME_error`` the relative difference.
    ``s2_error`` is the mean absolute difference of the direction means of S2 over the lags that both have,
    ``s2_error_relative`` that over phi - phi^2 of the training volume, ``kappa_error`` that of the normalised curves.
    What is not defined (the mean chord of an empty phase) is left out.
    """
    found: dict[str, float] = {}
    names = dict.fromkeys(name for one in made for name in one.values)
    for name in names:
        value = _mean([one.values.get(name, math.nan) for one in made])
        if not math.isfinite(value):
            continue
        found[name] = value
        truth = math.nan if real is None else real.values.get(name, math.nan)
        if math.isfinite(truth):
            found[f"{name}_real"] = truth
            if truth != 0:
                found[f"{name}_error"] = (value - truth) / abs(truth)
    if real is not None:
        length = min(len(real.s2), *(len(one.s2) for one in made))
        curve = np.mean([one.s2[:length] for one in made], axis=0)
        found["s2_error"] = float(np.abs(curve - real.s2[:length]).mean())
        spread = real.s2[0] - real.s2[0] ** 2
        if spread > 0:
            found["s2_error_relative"] = found["s2_error"] / spread
            if 0 < curve[0] < 1:
                both = correlation.kappa(curve), correlation.kappa(real.s2[:length])
                found["kappa_error"] = float(np.abs(both[0] - both[1]).mean())
    return found
