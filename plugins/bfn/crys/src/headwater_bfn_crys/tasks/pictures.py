"""What the report shows of crystals: cells to turn around, distributions, metrics beside the paper's."""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from headwater import HeadwaterError
from headwater.reporting import Figure, Panel, Table

from headwater_bfn_crys.crystals import Crystals
from headwater_bfn_crys.tasks.scoring import PAPER, densities
from headwater_bfn_crys.tasks.validity import structural_validity

if TYPE_CHECKING:
    from headwater.run import Run
    from numpy.typing import ArrayLike

    from headwater_bfn_crys.tasks.task import CrystalTask

__all__ = ["cells", "distributions", "metrics_table", "panels"]

SHOWN = 12
"""So many crystals can be chosen in the viewer: each is several traces of the page."""

FACE = 1e-3
"""An atom this near to a face of the cell, as a fraction, is drawn on the opposite face too."""


def panels(task: "CrystalTask", run: "Run") -> list[Panel]:
    """The viewer, the distributions and the table of metrics for a run."""
    samples, told = _samples(task, run)
    made: list[Panel] = []
    if len(samples):
        made += [cells(samples, caption=told), *distributions(samples, task.train(), caption=told)]
    table = metrics_table(task, run)
    return [*made, table] if table is not None else made


def _samples(task: "CrystalTask", run: "Run") -> tuple[Crystals, str]:
    """The run's latest samples that can be read, else one fresh block, and which of them it is."""
    folder = run.path / "samples"
    files = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            samples = task.read(path)
        except HeadwaterError:
            continue
        return samples, f"{len(samples)} samples of {path.name}."
    from headwater.sampling import Model

    model = Model(run)
    try:
        samples = next(iter(model.sample(model.sampler().block_size)))
    except HeadwaterError as error:  # a sampler that needs a condition
        print(f"the report shows no crystals: {error}", file=sys.stderr)
        return Crystals.concatenate([]), ""
    return samples, f"{len(samples)} fresh samples of seed 0."


def cells(crystals: Crystals, title: str = "Crystals", caption: str = "") -> Figure:
    """The cells of the first crystals, valid ones before others, one at a time: drag to turn, choose above."""
    valid = structural_validity(crystals)
    order = np.argsort(~valid, kind="stable")[:SHOWN]
    shown = crystals[order]
    data: list[dict[str, Any]] = []
    owner: list[int] = []
    labels = []
    for b, formula in enumerate(shown.formulas):
        traces = _cell(shown[b : b + 1])
        for trace in traces:
            trace["visible"] = b == 0
        data += traces
        owner += [b] * len(traces)
        labels.append(f"{b + 1}: {formula}" + ("" if valid[order[b]] else " (invalid)"))
    buttons = [
        {"label": label, "method": "restyle", "args": [{"visible": [o == b for o in owner]}]}
        for b, label in enumerate(labels)
    ]
    hidden = {"visible": False}
    layout = {
        "scene": {"aspectmode": "data", "xaxis": hidden, "yaxis": hidden, "zaxis": hidden},
        "updatemenus": [{"buttons": buttons, "x": 0.01, "y": 0.99, "xanchor": "left", "yanchor": "top"}],
        "legend": {"orientation": "v", "x": 0.99, "xanchor": "right", "y": 0.99, "yanchor": "top"},
        "showlegend": True,
    }
    words = f"{caption} Atoms of a face, an edge or a corner are drawn on all of them; sizes go with covalent radii."
    return Figure(title, {"data": data, "layout": layout}, caption=words.strip())


def _cell(crystal: Crystals) -> list[dict[str, Any]]:
    """The edges of one cell, and its atoms, a trace for each element."""
    from ase.data import chemical_symbols, covalent_radii
    from ase.data.colors import jmol_colors

    matrix = crystal.matrices[0]
    path: list[list[float | None]] = []
    for corner in product((0, 1), repeat=3):
        for axis in range(3):
            if corner[axis] == 0:
                end = [*corner[:axis], 1, *corner[axis + 1 :]]
                path += [(np.array(corner) @ matrix).tolist(), (np.array(end) @ matrix).tolist(), [None] * 3]
    x, y, z = zip(*path, strict=True)
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter3d", "mode": "lines", "x": x, "y": y, "z": z, "hoverinfo": "skip", "showlegend": False,
            "line": {"color": "#858d96", "width": 3},
        }
    ]  # fmt: skip
    longest = float(np.ptp(np.array([np.array(c) @ matrix for c in product((0, 1), repeat=3)]), axis=0).max())
    for number in np.unique(crystal.numbers):
        frac = np.concatenate([_copies(f) for f in crystal.frac[crystal.numbers == number]])
        points = (frac @ matrix).round(3)
        red, green, blue = (round(255 * float(v)) for v in jmol_colors[min(number, len(jmol_colors) - 1)])
        traces.append(
            {
                "type": "scatter3d", "mode": "markers", "name": chemical_symbols[number],
                "x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "z": points[:, 2].tolist(),
                "text": [f"{chemical_symbols[number]} at {f[0]:.3f} {f[1]:.3f} {f[2]:.3f}" for f in frac],
                "hoverinfo": "text",
                "marker": {
                    # Pixels that give a ball of 40 % of the covalent radius in a scene 320 pixels wide.
                    "size": round(max(4.0, min(40.0, 0.4 * 2 * covalent_radii[number] / longest * 320)), 1),
                    "color": f"rgb({red},{green},{blue})", "line": {"color": "#444", "width": 1}, "opacity": 1.0,
                },
            }
        )  # fmt: skip
    return traces


def _copies(frac: np.ndarray) -> np.ndarray:
    """An atom and its images on the opposite faces of the cell, (copies, 3)."""
    choices = [(v, v + 1) if v < FACE else (v, v - 1) if v > 1 - FACE else (v,) for v in frac]
    return np.array(list(product(*choices)))


def distributions(samples: Crystals, train: Crystals, caption: str = "") -> list[Figure]:
    """Density, cell volume, elements and atoms of samples and of training crystals, in shares of each."""
    counts = [len(composition) for composition in samples.compositions]
    known = [len(composition) for composition in train.compositions]
    return [
        _histogram("Density", "g/cm³", densities(samples), densities(train), caption),
        _histogram("Cell volume", "Å³", samples.volumes, train.volumes, caption),
        _histogram("Elements in a crystal", "elements", counts, known, caption, whole=True),
        _histogram("Atoms in a cell", "atoms", samples.num_atoms, train.num_atoms, caption, whole=True),
    ]


def _histogram(
    title: str, unit: str, mine: "ArrayLike", theirs: "ArrayLike", caption: str, whole: bool = False
) -> Figure:
    """Two histograms over common bins, so that the page holds numbers of bins and not of crystals."""
    values = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    finite = [v[np.isfinite(v)] for v in values]
    # Of the training crystals' range and a little more: one exploded cell would squeeze all others into one bin.
    low, high = np.quantile(finite[1], [0.0, 0.995])
    if whole:
        low, high = min(v.min(initial=low) for v in finite), max(v.max(initial=high) for v in finite)
        edges = np.arange(low - 0.5, high + 1.0)
    else:
        edges = np.linspace(max(low - 0.1 * (high - low), 0.0), max(high + 0.1 * (high - low), low + 1e-9), 41)
    data = []
    for name, v in zip(("samples", "training"), finite, strict=True):
        inside = np.clip(v, edges[0], edges[-1])
        counts, _ = np.histogram(inside, edges)
        data.append(
            {
                "type": "bar", "name": name, "x": ((edges[1:] + edges[:-1]) / 2).round(6).tolist(),
                "y": (counts / max(len(v), 1)).round(6).tolist(), "opacity": 0.75,
            }
        )  # fmt: skip
    layout = {
        "barmode": "group" if whole else "overlay", "bargap": 0.05,
        "xaxis": {"title": {"text": unit}, **({"dtick": 1} if whole and len(edges) < 14 else {})},
        "yaxis": {"title": {"text": "share"}}, "showlegend": True,
    }  # fmt: skip
    outside = "" if whole else " What lies outside is counted in the last bins."
    return Figure(title, {"data": data, "layout": layout}, caption=f"{caption}{outside}".strip())


def metrics_table(task: "CrystalTask", run: "Run") -> Table | None:
    """The run's evaluated metrics beside those of the paper, if it was evaluated."""
    try:
        scores: dict[str, float] = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    data = task.config.published
    paper = PAPER.get(data or "", {})
    try:
        smact = f"SMACT {version('smact')}"
    except PackageNotFoundError:
        smact = "no SMACT"
    return Table(
        "Metrics beside the paper's",
        ["metric", "this run", f"CrysBFN on {data}" if data else "CrysBFN"],
        [[name, value, paper.get(name, "")] for name, value in scores.items()],
        caption=f"Shares are of one. Compositions by {smact} with the oxidation states {task.config.oxidation_states}. "
        + (
            "The paper's column is as others quote it; not every number of it could be confirmed."
            if data
            else "Set task.published to a published data set to see the paper's numbers."
        ),
    )
