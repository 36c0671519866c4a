"""Molecules as pictures for the report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from headwater.reporting import Panel, Svg

from headwater_gfn.environment import Samples
from headwater_gfn.rollout import roll_out
from headwater_gfn.tasks.fragments.library import rdkit

if TYPE_CHECKING:
    from headwater_gfn.tasks.fragments.environment import Fragments

__all__ = ["best_molecules", "draw", "pictures"]


def draw(
    title: str,
    mols: Sequence[Any],
    labels: Sequence[str] = (),
    *,
    columns: int = 3,
    side: int = 220,
    caption: str = "",
) -> Svg:
    """A grid of structural formulae, each with its label under it, on a clear background."""
    chem, drawing = rdkit("Chem"), rdkit("Chem.Draw.rdMolDraw2D")
    columns = max(min(columns, len(mols)), 1)
    rows = max(-(-len(mols) // columns), 1)
    canvas = drawing.MolDraw2DSVG(columns * side, rows * side, side, side)
    options = canvas.drawOptions()
    options.clearBackground = False
    options.legendFontSize = 14
    mols = [chem.Mol(mol) for mol in mols]
    for mol in mols:
        rdkit("Chem.rdDepictor").Compute2DCoords(mol)
    if mols:
        canvas.DrawMolecules(mols, legends=list(labels) or [""] * len(mols))
    canvas.FinishDrawing()
    svg = canvas.GetDrawingText()
    return Svg(title, svg[svg.index("<svg") :].strip(), caption=caption)


def best_molecules(environment: "Fragments", samples: Samples, n: int = 12, caption: str = "") -> Svg:
    """The ``n`` best unique molecules of some samples, with their values."""
    smiles, values = environment.smiles(samples.x), environment.values(samples.x)
    order = list({smiles[i]: i for i in reversed(values.argsort(descending=True, stable=True).tolist())}.values())
    order = sorted(order, key=lambda i: -float(values[i]))[:n]
    mols = [m.mol for m in environment.molecules(samples.x[order])]
    name = environment.config.reward.rpartition(":")[2]
    return draw("Best molecules", mols, [f"{name} {float(values[i]):.3f}" for i in order], caption=caption)


def pictures(environment: "Fragments", policies: dict[str, Any]) -> list[Panel]:
    """The best of 128 molecules that each policy samples."""
    panels: list[Panel] = []
    for name, policy in policies.items():
        x = roll_out(environment, policy, 128, torch.Generator().manual_seed(0)).last
        caption = (
            f"The best of {len(x)} molecules that the policy sampled, by {name}."
            if len(policies) > 1
            else (f"The best of {len(x)} molecules that the policy sampled.")
        )
        panels.append(best_molecules(environment, Samples(x, environment.log_reward(x)), caption=caption))
    return panels
