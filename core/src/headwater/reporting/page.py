"""The report's page: one HTML file that needs nothing beside it and fetches nothing."""

import base64
import hashlib
import html
import importlib.resources
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from string import Template
from typing import Any

import numpy as np

from headwater.errors import HeadwaterError, UsageError
from headwater.reporting.panels import COLOURS, Figure, Images, Panel, Svg, Table, Text, Video

__all__ = ["write_page"]

EMBED = "embed"


def write_page(
    path: Path | str,
    *,
    title: str,
    subtitle: str = "",
    sections: Sequence[tuple[str, Sequence[Panel]]],
    facts: Sequence[tuple[str, str]] = (),
    command: str = "",
    script: str = EMBED,
) -> Path:
    """Write a report as one HTML page and return its path.

    The page is written beside ``path`` and renamed, so an older page stays whole when this fails.

    Args:
        path: the file to write; its directory is made if need be.
        title: what the page is about; ``subtitle`` says it in one line more.
        sections: headings and the panels under each; a section without panels is left out.
        facts: labels and values at the top: method, versions, seed, date.
        command: the command line that makes the page again.
        script: ``"embed"`` puts Plotly's script into the page if it has a figure. Otherwise the path,
            relative to the page, of a file that many pages share; it is written if it is not there.

    Raises:
        HeadwaterError: there is a figure and Plotly is not installed, a panel cannot be shown, or the page
            cannot be written.
        UsageError: ``script`` is an address or an absolute path.

    Example:
        >>> import tempfile
        >>> panel = Table("Metrics", ["metric", "ours", "paper"], [["L1 error", 0.01234, 0.012]])
        >>> folder = tempfile.mkdtemp()
        >>> write_page(f"{folder}/report.html", title="gfn-fl", sections=[("Results", [panel])]).name
        'report.html'
    """
    path = Path(path)
    shown = [(heading, panels) for heading, panels in sections if panels]
    body = "".join(
        f'<section id="section-{i}">\n<h2>{_text(heading)}</h2>\n<div class="panels">\n'
        f"{''.join(_panels(panels))}</div>\n</section>\n"
        for i, (heading, panels) in enumerate(shown, 1)
    )
    links = "".join(f'<a href="#section-{i}">{_text(heading)}</a>' for i, (heading, _) in enumerate(shown, 1))

    # A script runs only with the page's nonce, which is a hash of what the page shows, so that nothing shown
    # can know it: markup that slipped through the escaping would be inert. Fetching is forbidden altogether;
    # Plotly builds functions from text for its WebGL traces, hence 'unsafe-eval'.
    nonce = hashlib.sha256(f"{title}\0{body}".encode()).hexdigest()[:32]
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}' 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; media-src data:; base-uri 'none'; form-action 'none'"
    )
    has_figure = any(isinstance(panel, Figure) for _, panels in shown for panel in panels)
    scripts = [f'<script type="application/json" id="colours">{_json(COLOURS)}</script>\n']
    if has_figure:
        scripts.append(_plotly(path, script, nonce))
    scripts.append(f'<script nonce="{nonce}">\n{_data("page.js")}</script>\n')

    page = Template(_data("page.html")).substitute(
        policy=policy,
        css=_data("page.css"),
        title=_text(title),
        links=links if len(shown) > 1 else "",
        subtitle=f'<p class="subtitle">{_text(subtitle)}</p>\n' if subtitle else "",
        facts=_facts(facts),
        command=_command(command),
        sections=body,
        scripts="".join(scripts),
    )
    _write(path, page)
    return path


def _text(value: object) -> str:
    return html.escape(str(value))


def _data(name: str) -> str:
    return importlib.resources.files("headwater.reporting").joinpath(name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise HeadwaterError(f"cannot write {path}: {error.strerror or error}") from error


def _plotly(path: Path, script: str, nonce: str) -> str:
    """The script element that brings Plotly, embedded or shared."""
    if script != EMBED and (PurePosixPath(script).is_absolute() or Path(script).is_absolute() or ":" in script):
        raise UsageError(f"script={script!r}: give 'embed', or a path relative to the page")
    try:
        source = importlib.resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise HeadwaterError(
            "the report has figures, which need Plotly; install it: pip install 'headwater[report]'"
        ) from error
    if script == EMBED:
        # Neither sequence may stand in a script element; the backslash changes no JavaScript string.
        source = re.sub(r"<(?=/script|!--)", r"<\\", source, flags=re.IGNORECASE)
        return f'<script nonce="{nonce}">{source}</script>\n'
    shared = path.parent / script
    if not shared.exists():
        _write(shared, source)
    return f'<script nonce="{nonce}" src="{_text(script)}"></script>\n'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    if not facts:
        return ""
    pairs = "".join(f"<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd></div>\n" for label, value in facts)
    return f'<dl class="facts">\n{pairs}</dl>\n'


def _command(command: str) -> str:
    if not command:
        return ""
    return (
        f'<div class="command"><pre><code>{_text(command)}</code></pre>'
        '<button type="button" title="Copy the command that makes this page again">Copy</button></div>\n'
    )


def _panels(panels: Sequence[Panel]) -> Iterator[str]:
    """Each panel as HTML; two small ones that follow each other share a row."""
    partner = False
    for panel, after in zip_longest(panels, panels[1:]):
        half = partner or (_small(panel) and after is not None and _small(after))
        partner = half and not partner
        heading = f"<h3>{_text(panel.title)}</h3>\n" if panel.title else ""
        caption = f'<p class="caption">{_text(panel.caption)}</p>\n' if panel.caption else ""
        kind = "panel half" if half else "panel"
        yield f'<article class="{kind}">\n{heading}{_content(panel)}{caption}</article>\n'


def _small(panel: Panel) -> bool:
    match panel:
        case Figure(figure=figure):
            return _tiles(figure).get("tiles", 1) < 2
        case Table(columns=columns):
            return len(columns) <= 4
        case Images(images=images):
            return len(images) <= 3
        case _:
            return isinstance(panel, Svg | Video)


def _content(panel: Panel) -> str:
    match panel:
        case Text(text=text):
            paragraphs = (p for p in re.split(r"\n\s*\n", text.strip()) if p)
            return f'<div class="text">{"".join(f"<p>{_text(p)}</p>" for p in paragraphs)}</div>\n'
        case Table():
            return _table(panel)
        case Figure():
            return _figure(panel)
        case Svg(svg=svg):
            # An image and not inline: a drawing inside <img> runs no script and loads nothing.
            if "http://www.w3.org/2000/svg" not in svg:
                svg = re.sub(r"<svg\b", '<svg xmlns="http://www.w3.org/2000/svg"', svg, count=1)
            alt = _text(panel.title)
            return f'<img class="drawing" alt="{alt}" src="{_address("image/svg+xml", svg.encode())}">\n'
        case Images():
            return _images(panel)
        case Video(data=data):
            source = _address(_video_type(panel), data)
            return f'<video controls loop muted playsinline src="{source}"></video>\n'
    raise HeadwaterError(f"panel {panel.title!r}: a report cannot show a {type(panel).__name__}")


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _table(panel: Table) -> str:
    for row in panel.rows:
        if len(row) != len(panel.columns):
            raise HeadwaterError(
                f"table {panel.title!r}: a row has {len(row)} cells under {len(panel.columns)} columns"
            )
    cells = [[_cell(value) for value in row] for row in panel.rows]
    # A column is set to the right when all that stands in it is numbers; a missing value does not decide.
    right = []
    for j in range(len(panel.columns)):
        column = [row[j] for row in cells if row[j] != MISSING]
        right.append(bool(column) and all(NUMBER.fullmatch(text) for text in column))

    kinds = [' class="number"' if r else "" for r in right]

    def line(tag: str, texts: Sequence[str]) -> str:
        row = "".join(f"<{tag}{kind}>{_text(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True))
        return f"<tr>{row}</tr>\n"

    head = line("th", [str(column) for column in panel.columns])
    rows = "".join(line("td", row) for row in cells)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>\n{rows}</tbody></table></div>\n'


MISSING = "–"
NUMBER = re.compile(r"NaN|[-−+]?(∞|\d[\d.,]*(×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?( ?± ?\d[\d.]*)?( ?%)?)")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _cell(value: object) -> str:
    """A cell's text: floats with four significant digits, written out between 1e-4 and 1e6."""
    if value is None:
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if hasattr(value, "ndim") and value.ndim == 0:
        value = value.item()  # type: ignore[attr-defined]
    if not isinstance(value, float):
        return str(value).replace("-", "−") if isinstance(value, int) else str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    rounded = float(f"{value:.4g}")
    if rounded == 0 or 1e-4 <= abs(rounded) < 1e6:
        text = f"{rounded:.0f}" if abs(rounded) >= 1000 else f"{rounded:.4g}"
    else:
        digits, power = f"{rounded:.3e}".split("e")
        text = f"{digits.rstrip('0').rstrip('.')}×10{str(int(power)).translate(RAISED)}"
    return text.replace("-", "−")


def _tiles(figure: Any) -> dict[str, Any]:
    """How ``heatmap`` says that its parts may be put below one another."""
    meta = (figure.get("layout") or {}).get("meta")
    return meta if isinstance(meta, dict) and "tiles" in meta else {}


def _figure(panel: Figure) -> str:
    layout = panel.figure.get("layout") or {}
    numbers = {**_tiles(panel.figure), "height": layout.get("height"), "scene": _is_scene(panel.figure) or None}
    attributes = "".join(f' data-{k}="{_text(v)}"' for k, v in numbers.items() if v is not None)
    name = _text(re.sub(r"\W+", "-", panel.title.lower()).strip("-") or "figure")
    return (
        f'<div class="plot" data-name="{name}"{attributes}>'
        "<noscript>This figure needs JavaScript.</noscript></div>"
        f'<script type="application/json">{_json(panel.figure)}</script>\n'
    )


def _is_scene(figure: Any) -> bool:
    flat = {"scatter", "bar", "heatmap", "histogram", "contour", "box", "violin"}
    kinds = {trace.get("type", "scatter") for trace in figure.get("data") or ()} - flat
    return any(
        kind.endswith("3d") or kind in {"surface", "isosurface", "volume", "cone", "streamtube"} for kind in kinds
    )


def _json(value: Any) -> str:
    """JSON that may stand in a script element: no markup in it, NaN and infinity as null."""
    try:
        text = json.dumps(value, allow_nan=False, default=_plain, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _plain(value: Any) -> Any:
    """What JSON does not know: arrays, tensors, their scalars, other containers, dates."""
    if isinstance(value, np.ndarray) and value.size >= 1024 and value.dtype.str in PACKED and np.isfinite(value).all():
        # Plotly's own form for large arrays: their bytes, a third of the size of the digits and exact.
        packed = {"dtype": PACKED[value.dtype.str], "bdata": base64.b64encode(value.tobytes()).decode()}
        return packed if value.ndim == 1 else {**packed, "shape": ", ".join(map(str, value.shape))}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, str | bytes):
        return str(value)
    try:
        return dict(value) if hasattr(value, "keys") else list(value)
    except TypeError:
        return str(value)


PACKED = {"<f4": "f4", "<f8": "f8", "<i4": "i4", "<i2": "i2", "|i1": "i1", "|u1": "u1", "<u2": "u2", "<u4": "u4"}


def _finite(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return _finite(_plain(value))


def _images(panel: Images) -> str:
    if len(panel.labels) > len(panel.images):
        raise HeadwaterError(f"images {panel.title!r}: {len(panel.labels)} labels for {len(panel.images)} pictures")
    labels = [*panel.labels, *[""] * (len(panel.images) - len(panel.labels))]
    figures = []
    for i, (data, label) in enumerate(zip(panel.images, labels, strict=True), 1):
        # Few pixels are shown as they are: smoothing would draw what no sampler made.
        few = data.startswith(PNG) and int.from_bytes(data[16:20], "big") < 128
        pixels = ' class="pixels"' if few else ""
        alt = _text(label or f"{panel.title} {i}")
        caption = f"<figcaption>{_text(label)}</figcaption>" if label else ""
        address = _address(_image_type(panel, data), data)
        figures.append(f'<figure><img{pixels} alt="{alt}" src="{address}">{caption}</figure>\n')
    return f'<div class="images">\n{"".join(figures)}</div>\n'


PNG = b"\x89PNG\r\n\x1a\n"


def _image_type(panel: Panel, data: bytes) -> str:
    if data.startswith(PNG):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    raise HeadwaterError(f"images {panel.title!r}: a picture is neither PNG nor JPEG")


def _video_type(panel: Video) -> str:
    if panel.data[4:8] == b"ftyp":
        return "video/mp4"
    if panel.data.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm"
    raise HeadwaterError(f"video {panel.title!r}: the clip is neither MP4 nor WebM")
