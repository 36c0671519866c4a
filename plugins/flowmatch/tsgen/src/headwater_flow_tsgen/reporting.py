"""Pictures of reactions: molecules in three dimensions, errors beside the baselines, published numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from headwater.reporting import Figure, Panel, Table
from headwater.reporting.panels import COLOURS

from headwater_flow_tsgen.evaluation import idpp_middle, middle, rmsds
from headwater_flow_tsgen.geometry import bonds
from headwater_flow_tsgen.tasks.guess import Guess
from headwater_flow_tsgen.tasks.reaction import symbols

__all__ = ["histogram", "molecules", "panels_of", "published"]


def _hex(z: int) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[z])


def _traces(numbers: np.ndarray, x: np.ndarray, scene: str, widths: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Atoms and bonds of one structure; the text of an atom tells its uncertainty, where there is one."""
    pairs = np.argwhere(np.triu(bonds(numbers, x)))
    lines: list[list[float | None]] = [[], [], []]
    for i, j in pairs:
        for axis in range(3):
            lines[axis] += [float(x[i, axis]), float(x[j, axis]), None]
    names = [f"{s}{k + 1}" for k, s in enumerate(symbols(numbers))]
    texts = names if widths is None else [f"{n} &#177; {w:.2f} &#8491;" for n, w in zip(names, widths, strict=True)]
    return [
        {
            "type": "scatter3d",
            "mode": "lines",
            "x": lines[0],
            "y": lines[1],
            "z": lines[2],
            "line": {"color": "#8a8f98", "width": 6},
            "hoverinfo": "skip",
            "scene": scene,
            "showlegend": False,
        },
        {
            "type": "scatter3d",
            "mode": "markers",
            "x": x[:, 0].tolist(),
            "y": x[:, 1].tolist(),
            "z": x[:, 2].tolist(),
            "text": texts,
            "hoverinfo": "text",
            "marker": {
                "size": [round(14 * float(covalent_radii[z]) + 4, 1) for z in numbers],
                "color": [_hex(int(z)) for z in numbers],
                "line": {"color": "#444", "width": 1},
                "opacity": 1.0,
            },
            "scene": scene,
            "showlegend": False,
        },
    ]


def molecules(guess: Guess) -> Figure:
    """Reactant, generated TS (the known one beside it) and product of one reaction, to be turned with the mouse."""
    reaction = guess.reaction
    shown = [("reactant", reaction.reactant, None), ("generated TS", guess.ts, guess.uncertainty)]
    if reaction.ts is not None:
        shown.append(("known TS", reaction.ts, None))
    shown.append(("product", reaction.product, None))
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": []}
    for k, (name, x, widths) in enumerate(shown):
        scene = "scene" if k == 0 else f"scene{k + 1}"
        data += _traces(reaction.numbers, x, scene, widths if widths is not None and widths.any() else None)
        # Two by two: four in a row would be so narrow that molecules are cut off.
        left, top = (k % 2) / 2, 1 - (k // 2) / 2
        axis = {"visible": False}
        layout[scene] = {
            "domain": {"x": [left, left + 0.5], "y": [top - 0.5, top - 0.06]},
            "xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "data",
            "camera": {"eye": {"x": 1.6, "y": 1.6, "z": 1.6}},
        }  # fmt: skip
        layout["annotations"].append(
            {"text": name, "x": left + 0.25, "y": top, "xref": "paper", "yref": "paper", "showarrow": False}
        )
    caption = "Turn with the mouse; all are aligned to the reactant."
    if guess.spread:
        caption += f" Mean RMSD of other seeds to this guess: {guess.spread:.3f} Angstrom."
    return Figure(f"Reaction {reaction.name}", {"data": data, "layout": layout}, caption=caption)


def histogram(guesses: Sequence[Guess]) -> Figure | None:
    """RMSD to the known transition state, beside the midpoint and the middle of the IDPP path."""
    known = [guess for guess in guesses if guess.reaction.ts is not None]
    if not known:
        return None
    series = {
        "generated": [guess.ts for guess in known],
        "midpoint": [middle(guess.reaction) for guess in known],
        "IDPP": [idpp_middle(guess.reaction) for guess in known],
    }
    data = []
    for k, (name, structures) in enumerate(series.items()):
        values = rmsds([(x, np.asarray(g.reaction.ts)) for x, g in zip(structures, known, strict=True)])
        data.append(
            {
                "type": "histogram",
                "name": f"{name}, mean {values.mean():.3f}",
                "x": values.tolist(),
                "xbins": {"start": 0, "size": 0.05},
                "opacity": 0.6,
                "marker": {"color": COLOURS[k]},
            }
        )
    layout = {
        "barmode": "overlay",
        "xaxis": {"title": {"text": "RMSD to the known transition state / Angstrom"}},
        "yaxis": {"title": {"text": "reactions"}},
    }
    caption = f"{len(known)} held-out reactions; proper rotations, no permutations."
    return Figure("Distance to the transition state", {"data": data, "layout": layout}, caption=caption)


def published(scores: dict[str, float]) -> Table:
    """Our numbers beside published ones, each on its own data: they cannot be compared line by line."""
    rows: list[list[Any]] = []
    if "rmsd_mirror" in scores:
        mine = [scores["rmsd_mirror"], scores["rmsd_mirror_median"], scores["d_mae"]]
        rows.append(["this run", "its held-out reactions", *mine])
        base = [scores[f"midpoint_{name}"] for name in ("rmsd_mirror", "rmsd_mirror_median", "d_mae")]
        rows.append(["midpoint", "its held-out reactions", *base])
    rows += [
        ["midpoint", "RDB7, grouped test", 0.514, 0.490, ""],
        ["React-OT (its README)", "Transition1x, 1,073 test", 0.103, "", ""],
        ["MolGEN (names of its checkpoints)", "Transition1x, validation", "0.129 to 0.161", "", ""],
        ["TS-GEN v1 (abstract, not reproduced)", "Transition1x", 0.004, "", ""],
        ["GoFlow, 25 samples (its logs; from 2D graphs)", "RDB7, random split", "", "", 0.107],
    ]
    return Table(
        "Beside published numbers", ["method", "data", "mean RMSD / A", "median RMSD / A", "D-MAE / A"], rows,
        caption="RMSD with mirror images tried. The published ones of React-OT and MolGEN also search permutations and "
        "cap every value at 1, on other data and with far longer training.",
    )  # fmt: skip


def panels_of(guesses: Sequence[Guess], scores: dict[str, float], most: int = 3) -> list[Panel]:
    """What the report shows of a run's guesses."""
    bars = histogram(guesses)
    return [*([] if bars is None else [bars]), *(molecules(guess) for guess in guesses[:most]), published(scores)]
