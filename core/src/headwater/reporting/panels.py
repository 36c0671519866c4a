"""What a report is made of. Panels are plain data: making one needs no drawing library."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["COLOURS", "Figure", "Images", "Panel", "Svg", "Table", "Text", "Video", "curves", "heatmap"]

COLOURS = ("#2f76b5", "#d9812a", "#2a9d7c", "#c4527f", "#7c6cc6", "#8f7d34", "#42a5c6", "#858d96")
"""The colour way of every report: told apart by most colour-blind readers, legible on light and on dark."""


@dataclass(frozen=True)
class Panel:
    """One titled part of a report; ``caption`` says what is to be seen and how it was made."""

    title: str
    caption: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Text(Panel):
    """Paragraphs of plain text, separated by blank lines."""

    text: str


@dataclass(frozen=True)
class Table(Panel):
    """Rows under named columns; floats are shown with four significant digits."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Figure(Panel):
    """A Plotly figure as its JSON: ``{"data": [...], "layout": {...}}``; 3D scenes and isosurfaces too."""

    figure: Mapping[str, Any]


@dataclass(frozen=True)
class Svg(Panel):
    """A drawing as SVG text."""

    svg: str


@dataclass(frozen=True)
class Images(Panel):
    """A grid of pictures: encoded PNG or JPEG bytes, with a label under each."""

    images: Sequence[bytes]
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Video(Panel):
    """An encoded MP4 or WebM clip."""

    data: bytes


def curves(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    log_y: bool = False,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    caption: str = "",
) -> Figure:
    """Lines over a common axis: ``series`` maps a name to its x and y values.

    ``bands`` maps the name of a series to the lower and upper edge of its uncertainty (over seeds, say), one
    value of each for every x; it is drawn in the colour of the line. Where an edge is not finite, or not
    above zero on a logarithmic axis, the band has a gap.

    Example:
        >>> steps = [0, 100, 200]
        >>> panel = curves(
        ...     "Loss", {"FL": (steps, [3.0, 1.0, 0.4])}, x="step", y="loss",
        ...     bands={"FL": ([2.5, 0.8, 0.3], [3.5, 1.2, 0.5])},
        ... )
        >>> [trace["name"] for trace in panel.figure["data"]]
        ['FL', 'FL']
    """
    lines: list[dict[str, Any]] = []
    fills: list[dict[str, Any]] = []
    for i, (name, (xs, ys)) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        # A few points are shown as points: a single one has no line at all.
        mode = "lines+markers" if len(xs) <= 24 else "lines"
        lines.append(
            {
                "type": "scatter",
                "mode": mode,
                "name": name,
                "x": list(xs),
                "y": list(ys),
                "line": {"color": colour},
                "legendgroup": name,
            }
        )
        if bands and name in bands:
            edge_x, edge_y = _outline(xs, *bands[name], above=0.0 if log_y else -math.inf)
            fills.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": name,
                    "x": edge_x,
                    "y": edge_y,
                    "line": {"color": colour, "width": 0},
                    "fill": "toself",
                    "fillcolor": colour + "33",
                    "legendgroup": name,
                    "showlegend": False,
                    "hoverinfo": "skip",
                }
            )
    layout = {
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}, **(_log_axis(series) if log_y else {"type": "linear"})},
        "hovermode": "x unified",
        "showlegend": len(series) > 1,
    }
    return Figure(title, {"data": fills + lines, "layout": layout}, caption=caption)


def _log_axis(series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """A logarithmic axis with a tick at each power of ten, and at 2 and 5 where there are few of those."""
    shown = [float(v) for _, ys in series.values() for v in ys if v > 0 and math.isfinite(v)]
    decades = math.log10(max(shown) / min(shown)) if shown else 0.0
    if decades > 6:
        return {"type": "log"}
    return {"type": "log", "dtick": 1} if decades > 2 else {"type": "log", "dtick": "D2", "tickformat": "~g"}


def _outline(
    xs: Sequence[float], lower: Sequence[float], upper: Sequence[float], above: float
) -> tuple[list[float | None], list[float | None]]:
    """Go round each unbroken piece of a band, along the upper edge and back along the lower; None between."""
    edge_x: list[float | None] = []
    edge_y: list[float | None] = []
    piece: list[tuple[float, float, float]] = []

    def close() -> None:
        if piece:
            edge_x.extend([p[0] for p in piece] + [p[0] for p in reversed(piece)] + [None])
            edge_y.extend([p[2] for p in piece] + [p[1] for p in reversed(piece)] + [None])
            piece.clear()

    for point in zip(xs, lower, upper, strict=True):
        x, low, high = map(float, point)
        if math.isfinite(low) and math.isfinite(high) and low > above:
            piece.append((x, low, high))
        else:
            close()
    close()
    return edge_x[:-1], edge_y[:-1]


def heatmap(
    title: str, panels: Mapping[str, Sequence[Sequence[float]]], *, x: str, y: str, caption: str = ""
) -> Figure:
    """Heat maps with square cells on one colour scale: ``panels`` maps a name to rows of values.

    They stand side by side; the page puts them below one another where it is too narrow for that.
    """
    data: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    aspect = 0.0
    for i, (name, rows) in enumerate(panels.items()):
        axis = "" if i == 0 else str(i + 1)
        values = [list(map(float, row)) for row in rows]
        if values and values[0]:
            aspect = max(aspect, len(values) / len(values[0]))
        data.append(
            {
                "type": "heatmap",
                "name": name,
                "z": values,
                "xaxis": f"x{axis}",
                "yaxis": f"y{axis}",
                "coloraxis": "coloraxis",
            }
        )
        axes[f"xaxis{axis}"] = {"title": {"text": x}, "constrain": "domain", "showgrid": False}
        axes[f"yaxis{axis}"] = {
            "title": {"text": y},
            "scaleanchor": f"x{axis}",
            "constrain": "domain",
            "showgrid": False,
        }
        # Tied to the axes and not to the paper: the name stays above its map wherever that is put.
        annotations.append(
            {
                "text": name,
                "showarrow": False,
                "xref": f"x{axis} domain",
                "yref": f"y{axis} domain",
                "x": 0.5,
                "y": 1,
                "xanchor": "center",
                "yanchor": "bottom",
            }
        )
    layout = {
        "grid": {"rows": 1, "columns": max(len(panels), 1), "pattern": "independent"},
        "coloraxis": {"colorscale": "Viridis"},
        "annotations": annotations,
        "meta": {"tiles": len(panels), "aspect": aspect or 1.0},
        **axes,
    }
    return Figure(title, {"data": data, "layout": layout}, caption=caption)
