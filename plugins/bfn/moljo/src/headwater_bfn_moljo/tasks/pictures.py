"""What the report shows: molecules in their pockets, to turn around, and metrics beside the paper's."""

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from headwater import HeadwaterError
from headwater.reporting import Figure, Panel, Table
from rdkit import Chem

from headwater_bfn_moljo.tasks.poses import Pose, sound

if TYPE_CHECKING:
    from headwater.run import Run

    from headwater_bfn_moljo.tasks.task import ComplexTask

__all__ = ["PAPER", "metrics_table", "molecules", "panels"]

SHOWN = 8
"""So many molecules can be chosen in the viewer."""

NEAR = 6.0
"""Pocket atoms nearer to the molecule than this, in angstrom, are drawn."""

COLOURS = {6: "#555c63", 7: "#2f76b5", 8: "#d1495b", 9: "#2a9d7c", 15: "#d9812a", 16: "#c9b037", 17: "#3f9142"}
"""Of elements, near the usual ones."""

PAPER = {
    "success_rate": 0.513, "vina_score_mean": -7.52, "vina_score_median": -8.02, "vina_minimize_mean": -8.33,
    "vina_minimize_median": -8.34, "vina_dock_mean": -9.05, "vina_dock_median": -9.13, "qed": 0.56, "sa": 0.78,
    "diversity": 0.66,
}  # fmt: skip
"""MolJO on the 100 pockets of CrossDocked2020; success, mean dock and SA are the abstract's, the rest unconfirmed."""


def panels(task: "ComplexTask", run: "Run") -> list[Panel]:
    """The viewer and the table of metrics for a run."""
    samples, told = _samples(task, run)
    made: list[Panel] = [molecules(samples, task, caption=told)] if samples else []
    table = metrics_table(run)
    return [*made, table] if table is not None else made


def _samples(task: "ComplexTask", run: "Run") -> tuple[list[Pose], str]:
    """The run's latest samples that can be read, else one fresh block, and which of them it is."""
    folder = run.path / "samples"
    files = [path for path in folder.glob("*.sdf") if not path.name.startswith(".")] if folder.is_dir() else []
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            samples = task.read(path)
        except HeadwaterError:
            continue
        return samples, f"{len(samples)} molecules of {path.name}."
    from headwater.sampling import Model

    model = Model(run)
    try:
        samples = next(iter(model.sample(model.sampler().block_size)))
    except HeadwaterError as error:  # a run without a backbone, a task without a pocket
        print(f"the report shows no molecules: {error}", file=sys.stderr)
        return [], ""
    return samples, f"{len(samples)} fresh molecules of seed 0."


def molecules(samples: list[Pose], task: "ComplexTask", caption: str = "") -> Figure:
    """The first molecules, whole ones before others, each in its pocket: drag to turn, choose above."""
    whole = [sound(pose) is not None and len(Chem.GetMolFrags(pose.mol)) == 1 for pose in samples]
    order = np.argsort(~np.array(whole), kind="stable")[:SHOWN]
    pockets = {c.name: c.pocket.positions for c in task.targets()}
    data: list[dict[str, Any]] = []
    owner: list[int] = []
    labels = []
    for number, i in enumerate(order):
        pose = samples[i]
        traces = _molecule(pose)
        if pose.target in pockets:
            traces.append(_surroundings(pockets[pose.target], pose.positions))
        for trace in traces:
            trace["visible"] = number == 0
        data += traces
        owner += [number] * len(traces)
        labels.append(f"{number + 1}: {pose.name}" + ("" if whole[i] else " (not one whole molecule)"))
    buttons = [
        {"label": label, "method": "restyle", "args": [{"visible": [o == b for o in owner]}]}
        for b, label in enumerate(labels)
    ]
    hidden = {"visible": False}
    layout = {
        "scene": {"aspectmode": "data", "xaxis": hidden, "yaxis": hidden, "zaxis": hidden},
        "updatemenus": [{"buttons": buttons, "x": 0.01, "y": 0.99, "xanchor": "left", "yanchor": "top"}],
        "showlegend": True,
    }
    words = f"{caption} Grey points are atoms of the pocket within {NEAR:g} Å."
    return Figure("Molecules", {"data": data, "layout": layout}, caption=words.strip())


def _molecule(pose: Pose) -> list[dict[str, Any]]:
    """Bonds as lines, and a trace of atoms for each element."""
    positions = pose.positions.round(3)
    path: list[list[float | None]] = []
    for bond in pose.mol.GetBonds():
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        path += [*(positions[k].tolist() for k in ends), [None] * 3]
    traces: list[dict[str, Any]] = []
    if path:
        x, y, z = zip(*path, strict=True)
        line = {"color": "#858d96", "width": 6}
        traces.append(
            {"type": "scatter3d", "mode": "lines", "x": x, "y": y, "z": z, "hoverinfo": "skip", "showlegend": False,
             "line": line}
        )  # fmt: skip
    numbers = np.array([atom.GetAtomicNum() for atom in pose.mol.GetAtoms()])
    for number in np.unique(numbers):
        points = positions[numbers == number]
        traces.append(
            {
                "type": "scatter3d", "mode": "markers", "name": Chem.GetPeriodicTable().GetElementSymbol(int(number)),
                "x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "z": points[:, 2].tolist(),
                "marker": {"size": 7, "color": COLOURS.get(int(number), "#7c6cc6")},
            }
        )  # fmt: skip
    return traces


def _surroundings(pocket: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
    near = np.sqrt(((pocket[:, None] - positions[None]) ** 2).sum(-1)).min(1) < NEAR
    points = pocket[near].round(2)
    return {
        "type": "scatter3d", "mode": "markers", "name": "pocket", "hoverinfo": "skip",
        "x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "z": points[:, 2].tolist(),
        "marker": {"size": 3, "color": "#b5bcc4"},
    }  # fmt: skip


def metrics_table(run: "Run") -> Table | None:
    """The run's evaluated metrics beside those of the paper, if it was evaluated."""
    try:
        scores: dict[str, float] = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return Table(
        "Metrics beside the paper's",
        ["metric", "this run", "MolJO on CrossDocked2020"],
        [[name, value, PAPER.get(name, "")] for name, value in scores.items()],
        caption="Shares are of one, energies in kcal/mol. Success rate, mean Vina Dock and SA are those of the paper's "
        "abstract; its other numbers could not be confirmed. Receptors are prepared by Open Babel here.",
    )
