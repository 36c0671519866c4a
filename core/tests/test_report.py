import base64
import json
import math
import re
import struct
import zlib

import headwater
import numpy as np
import pytest
from headwater.api import training_curves
from headwater.errors import HeadwaterError, RunError, UsageError
from headwater.reporting import Figure, Images, Svg, Table, Text, Video, curves, heatmap, write_page
from headwater.run import Run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def page(tmp_path, *panels, **options):
    return write_page(tmp_path / "r.html", title="T", sections=[("S", panels)], **options).read_text()


def png(width=2, height=2):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(3 * width) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    fit = {"max_steps": 6, "log_every": 2, "validate_every": 3, "accelerator": "cpu"}
    return headwater.train("toy", tmp_path_factory.mktemp("run") / "run", overrides={"fit": fit})


def test_a_runs_report_shows_its_curves_settings_paper_and_facts(run):
    text = headwater.report(run).read_text()
    for shown in (
        "toy on toy-numbers",
        "Training",
        "trainer.learning_rate",
        "A. B. T. V 2026",
        "headwater-toy",
    ):
        assert shown in text
    assert [figure.title for figure in training_curves(run)][:2] == ["loss", "loss_scale"]


def test_a_report_needs_nothing_beside_it_and_fetches_nothing(run):
    text = headwater.report(run).read_text()
    outside = re.sub(r"<script nonce=.*?</script>", "", text, flags=re.DOTALL)  # Plotly's code names addresses
    assert not re.search(r"(src|href)=\"(?!data:|#)", outside)
    assert "@import" not in outside
    assert "url(" not in outside
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_a_report_of_a_run_without_a_checkpoint_can_be_written(run, tmp_path):
    headwater.report(run, tmp_path / "a.html")
    bare = Run.create(tmp_path / "bare", run.manifest, {})
    assert headwater.report(bare).exists()


def test_evaluated_metrics_are_in_the_report_and_a_damaged_file_is_named(tmp_path):
    run = headwater.train("toy", tmp_path / "run", overrides={"fit": {"max_steps": 1, "accelerator": "cpu"}})
    scores = headwater.evaluate(run)
    assert "Evaluation" in headwater.report(run).read_text()
    assert json.loads((run.path / "evaluation.json").read_text()) == scores
    (run.path / "evaluation.json").write_text("{")
    with pytest.raises(RunError, match=r"evaluation\.json is damaged"):
        headwater.report(run)


def test_all_that_is_shown_is_escaped(tmp_path):
    panels = [
        Text(EVIL, EVIL, caption=EVIL),
        Table(EVIL, [EVIL], [[EVIL]]),
        Images(EVIL, [png()], [EVIL]),
        curves(EVIL, {EVIL: ([0, 1], [1.0, 2.0])}, x=EVIL, y=EVIL),
        Svg(EVIL, "<svg><script>alert(1)</script></svg>"),
    ]
    text = write_page(
        tmp_path / "r.html",
        title=EVIL,
        subtitle=EVIL,
        sections=[(EVIL, panels)],
        facts=[(EVIL, EVIL)],
        command=EVIL,
    ).read_text()
    assert "<script>alert" not in text
    assert "onerror=alert(2)>" not in text
    assert '"><img' not in text


def test_no_script_runs_but_the_pages_own(tmp_path):
    text = page(tmp_path, curves("c", {"a": ([0, 1], [1, 2])}, x="x", y="y"))
    scripts = re.findall(r"<script[^>]*>", text)
    (nonce,) = set(re.findall(r'<script nonce="(\w+)"', text))
    assert f"script-src 'nonce-{nonce}'" in text
    assert all(f'nonce="{nonce}"' in tag or 'type="application/json"' in tag for tag in scripts)
    other = page(tmp_path, Text("t", "another page"))
    assert f"nonce-{nonce}" not in other


def test_plotly_is_embedded_once_and_only_where_there_is_a_figure(tmp_path):
    assert len(page(tmp_path, Text("t", "words"))) < 60_000
    one = page(tmp_path, curves("c", {"a": ([0, 1], [1, 2])}, x="x", y="y"))
    two = page(tmp_path, *2 * [curves("c", {"a": ([0, 1], [1, 2])}, x="x", y="y")])
    assert len(one) > 1_000_000
    assert len(two) - len(one) < 10_000


def test_pages_of_a_gallery_share_one_script(tmp_path):
    figure = curves("c", {"a": ([0, 1], [1, 2])}, x="x", y="y")
    text = page(tmp_path, figure, script="plotly.min.js")
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000
    assert 'src="plotly.min.js"' in text
    assert len(text) < 100_000


@pytest.mark.parametrize("script", ["https://example.org/p.js", "/p.js", "file:p.js"])
def test_a_script_from_elsewhere_is_refused(tmp_path, script):
    with pytest.raises(UsageError, match="a path relative to the page"):
        page(tmp_path, curves("c", {"a": ([0, 1], [1, 2])}, x="x", y="y"), script=script)


def test_figures_survive_arrays_nan_and_scalars_of_numpy(tmp_path):
    big = np.linspace(0, 1, 2000)
    figure = {
        "data": [{"type": "scatter", "x": big, "y": [math.nan, np.float32(1.5), math.inf]}],
        "layout": {},
    }
    text = page(tmp_path, Figure("f", figure))
    (found,) = re.findall(r'</div><script type="application/json">(.*?)</script>', text)
    trace = json.loads(found)["data"][0]
    assert trace["y"] == [None, 1.5, None]
    packed = trace["x"]
    x = np.array(packed) if isinstance(packed, list) else np.frombuffer(base64.b64decode(packed["bdata"]))
    assert np.array_equal(x, big)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0123456, "0.01235"),
        (123456.0, "123500"),
        (1e-7, "1×10⁻⁷"),
        (-2.5, "−2.5"),
        (None, "–"),
        (True, "yes"),
        (math.nan, "NaN"),
        (-math.inf, "−∞"),
        (7, "7"),
        (np.float64(0.5), "0.5"),
        ("text", "text"),
    ],
)
def test_a_cell_shows_four_significant_digits(tmp_path, value, shown):
    assert re.search(rf"<td[^>]*>{re.escape(shown)}</td>", page(tmp_path, Table("t", ["a"], [[value]])))


def test_panels_that_cannot_be_shown_are_named(tmp_path):
    for panel, error in (
        (Table("Scores", ["a", "b"], [[1]]), "table 'Scores': a row has 1 cells under 2 columns"),
        (Images("Grid", [b"GIF89a"]), "images 'Grid': a picture is neither PNG nor JPEG"),
        (Images("Grid", [], ["x"]), "images 'Grid': 1 labels for 0 pictures"),
        (Video("Clip", b"RIFF"), "video 'Clip': the clip is neither MP4 nor WebM"),
    ):
        with pytest.raises(HeadwaterError) as raised:
            page(tmp_path, panel)
        assert str(raised.value) == error


def test_pictures_and_clips_are_embedded(tmp_path):
    text = page(tmp_path, Images("g", [png(), b"\xff\xd8\xff\xe0"]), Video("v", b"\0\0\0\x18ftypisom"))
    assert text.count("data:image/png;base64,") == 1
    assert text.count("data:image/jpeg;base64,") == 1
    assert "data:video/mp4;base64," in text


def test_a_heat_map_keeps_its_values_and_a_band_its_gaps():
    figure = heatmap("h", {"a": [[1, 2], [3, 4]], "b": [[5, 6], [7, 8]]}, x="i", y="j").figure
    assert [trace["z"] for trace in figure["data"]] == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    banded = curves("c", {"a": ([0, 1, 2], [1, 1, 1])}, x="x", y="y", bands={"a": ([0, math.nan, 0], [2, 2, 2])})
    assert banded.figure["data"][0]["x"] == [0, 0, None, 2, 2]


def test_an_older_page_stays_whole_when_writing_fails(tmp_path, monkeypatch):
    path = write_page(tmp_path / "r.html", title="old", sections=[])
    monkeypatch.setattr(
        "headwater.reporting.page.os.fsync", lambda f: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(HeadwaterError, match=r"cannot write .*r\.html: No space left"):
        write_page(path, title="new", sections=[])
    assert "old" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
