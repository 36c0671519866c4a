"""The report's pictures: slices, surfaces in 3D, S2 with bands, functionals, permeability by direction."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
from headwater.reporting import Figure, Panel, Table, Text, curves, heatmap
from headwater.reporting.panels import COLOURS

from headwater_porous_gan.tasks import parts
from headwater_porous_gan.tasks.scores import UNITS, Measured, crops, measure
from headwater_porous_gan.volume import Volume

if TYPE_CHECKING:
    from headwater.run import Run

__all__ = ["mesh", "panels", "pictures", "surfaces"]

EDGE = 96
"""Edge of what is drawn, in voxels."""

TRIANGLES = 40_000
"""Most triangles of one surface."""

SOLID = 0.3
"""Below this porosity the pores are drawn: grains would fill the picture."""


def panels(task: Any, run: "Run") -> list[Panel]:
    """Panels for a run: its training volume beside as many fresh volumes as one block of samples."""
    from headwater.sampling import Model

    model = Model(run, device="cpu")
    made = parts.assemble(list(model.sample(1, seed=0)))
    return pictures(task.training_volume(), task.reference, made, [measure(v, task.config) for v in made])


def pictures(
    real: Volume | None, reference: Measured | None, made: Sequence[Volume], measured: Sequence[Measured]
) -> list[Panel]:
    """All panels for generated volumes, beside the training volume where there is one."""
    shown = {name: v for name, v in (("real", real), ("generated", made[0])) if v is not None}
    found: list[Panel] = [_slices(shown), surfaces(shown), _correlation(reference, measured)]
    found.append(_functionals(reference, measured))
    if "permeability_0" in measured[0].values:
        found.append(_flow(reference, measured))
    notes = [note for one in (*([reference] if reference else []), *measured) for note in one.notes]
    if notes:
        found.append(Text("Notes on the measurements", "\n\n".join(dict.fromkeys(notes))))
    what = real.provenance.get("what") if real is not None else None
    if what:
        found.append(Text("The training volume", f"The real volume here is a {what}."))
    return found


def _middle(volume: Volume, edge: int = EDGE) -> np.ndarray:
    return np.asarray(volume.phase[crops(volume.phase.shape, edge, 1)[0]])


def _slices(shown: Mapping[str, Volume]) -> Panel:
    planes = {}
    for name, volume in shown.items():
        block = _middle(volume, 2 * EDGE)
        planes[name] = block[len(block) // 2].astype(int).tolist()
    return heatmap("Slices", planes, x="axis 2", y="axis 1", caption="The middle page; 0 is pore, 1 is grain.")


def mesh(phase: np.ndarray, value: int, most: int = TRIANGLES) -> tuple[np.ndarray, np.ndarray]:
    """Surface of the phase ``value`` by marching cubes, closed at the faces of the block, ``most`` triangles.

    Steps of the voxels are smoothed by a Gaussian of 0.7 voxels; the grid is coarsened until the bound holds.

    Returns:
        Vertices float64 (V, 3) in voxels and triangles int (T, 3); empty where there is no surface.
    """
    from skimage.measure import marching_cubes

    solid = np.pad((phase == value).astype(np.float32), 2)
    smooth = scipy.ndimage.gaussian_filter(solid, 0.7)
    if smooth.max() <= 0.5:
        return np.empty((0, 3)), np.empty((0, 3), int)
    for step in range(1, max(smooth.shape)):
        try:
            vertices, triangles, _, _ = marching_cubes(smooth, 0.5, step_size=step)
        except (RuntimeError, ValueError):  # so coarse that no vertex of the grid is inside
            break
        if len(triangles) <= most:
            return vertices - 2, triangles
    return np.empty((0, 3)), np.empty((0, 3), int)


def surfaces(shown: Mapping[str, Volume]) -> Figure:
    """Interactive surfaces of the middles of volumes, side by side: grains, or pores where they are few."""
    first = _middle(next(iter(shown.values())))
    value = 1 if 1 - first.mean() > SOLID else 0
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": []}
    for i, (name, volume) in enumerate(shown.items()):
        block = _middle(volume)
        vertices, triangles = mesh(block, value)
        scene = "scene" if i == 0 else f"scene{i + 1}"
        z, y, x = np.round(vertices, 1).T.tolist() if len(vertices) else ([], [], [])
        a, b, c = triangles.T.tolist() if len(triangles) else ([], [], [])
        data.append(
            {
                "type": "mesh3d", "name": name, "scene": scene, "x": x, "y": y, "z": z, "i": a, "j": b, "k": c,
                "color": COLOURS[i], "flatshading": False, "hoverinfo": "skip",
                "lighting": {"ambient": 0.45, "diffuse": 0.8, "specular": 0.2, "roughness": 0.6},
            }
        )  # fmt: skip
        hidden = {"visible": False}
        place = [i / len(shown), (i + 1) / len(shown)]
        layout[scene] = {
            "domain": {"x": place, "y": [0, 0.94]}, "aspectmode": "data", "xaxis": hidden, "yaxis": hidden,
            "zaxis": hidden, "dragmode": "turntable",
        }  # fmt: skip
        layout["annotations"].append(
            {
                "text": name, "x": sum(place) / 2, "y": 1.0, "xref": "paper", "yref": "paper", "showarrow": False,
                "xanchor": "center", "yanchor": "top",
            }
        )  # fmt: skip
    what = "grains" if value else "pores"
    return Figure(
        f"Surfaces of the {what}", {"data": data, "layout": layout},
        caption=f"The middle of each volume, at most {EDGE} voxels along an edge; drag to turn.",
    )  # fmt: skip


def _correlation(reference: Measured | None, measured: Sequence[Measured]) -> Panel:
    """S2 of the pores; bands reach over the axes (one volume) or over the volumes."""
    series, bands = {}, {}
    named = {**({"real": [reference]} if reference else {}), "generated": list(measured)}
    for name, ones in named.items():
        stack = [one.s2 for one in ones] if len(ones) > 1 else list(ones[0].directional)
        length = min(map(len, stack))
        rows = np.stack([curve[:length] for curve in stack])
        r = list(range(length))
        series[name] = (r, np.mean([one.s2[:length] for one in ones], axis=0).tolist())
        bands[name] = (rows.min(0).tolist(), rows.max(0).tolist())
    over = "the volumes" if len(measured) > 1 else "the three axes"
    return curves(
        "Two-point correlation of the pores", series, x="lag (voxels)", y="S2", bands=bands,
        caption=f"Mean over the axes; the bands reach from the lowest to the highest of {over}.",
    )  # fmt: skip


def _functionals(reference: Measured | None, measured: Sequence[Measured]) -> Panel:
    rows = []
    for name, unit in UNITS.items():
        values = [one.values[name] for one in measured if np.isfinite(one.values.get(name, np.nan))]
        if not values:
            continue
        mean, spread = float(np.mean(values)), float(np.std(values))
        truth = None if reference is None else reference.values.get(name)
        error = f"{100 * (mean - truth) / abs(truth):+.1f} %" if truth and np.isfinite(truth) else ""
        rows.append([name, truth if truth is not None else "", mean, spread if len(values) > 1 else "", error, unit])
    return Table(
        "Functionals", ["functional", "real", "generated", "std", "error", "unit"], rows,
        caption="Densities of the interface inside the window; both columns by the same definitions.",
    )  # fmt: skip


def _flow(reference: Measured | None, measured: Sequence[Measured]) -> Panel:
    rows = []
    for axis in range(3):
        for name, unit in ((f"permeability_{axis}", "voxel^2"), (f"permeability_{axis}_darcy", "darcy")):
            values = [one.values[name] for one in measured if name in one.values]
            truth = None if reference is None else reference.values.get(name)
            if not values and truth is None:
                continue
            mean = float(np.mean(values)) if values else None
            ratio = mean / truth if mean is not None and truth else ""
            rows.append([axis, truth if truth is not None else "", mean if mean is not None else "", ratio, unit])
    return Table(
        "Permeability", ["axis", "real", "generated", "generated / real", "unit"], rows,
        caption="Mean over crops, one solver for both; small crops scatter widely.",
    )  # fmt: skip
