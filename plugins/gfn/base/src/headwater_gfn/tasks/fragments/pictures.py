"""Molecules as pictures for the report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headwater.reporting import Panel, Svg

from headwater_gfn.environment import Samples
from headwater_gfn.tasks.fragments.library import rdkit

if TYPE_CHECKING:
    from headwater_gfn.tasks.fragments.environment import Fragments

__all__ = ["best_molecules", "draw"]


def draw(
    title: str,
    mols: Sequence[Any],
    labels: Sequence[str] = (),
    *,
    columns: int = 4,
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
    order = list(
        {smiles[i]: i for i in reversed(values.argsort(descending=True, stable=True).tolist())}.values()
    )
    order = sorted(order, key=lambda i: -float(values[i]))[:n]
    mols = [m.mol for m in environment.molecules(samples.x[order])]
    name = environment.config.reward.rpartition(":")[2]
    return draw("Best molecules", mols, [f"{name} {float(values[i]):.3f}" for i in order], caption=caption)


def panels(environment: "Fragments", run: Any) -> list[Panel]:
    """The best molecules of a run's samples; nothing where it has none that can be read."""
    folder = run.path / "samples"
    files = sorted(p for p in folder.glob("*") if p.suffix in environment.suffixes) if folder.is_dir() else []
    if not files:
        return []
    samples = environment.read(files[-1])
    return [
        best_molecules(
            environment, samples, caption=f"The best of {len(samples)} molecules in {files[-1].name}."
        )
    ]
