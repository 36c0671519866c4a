"""The README's first command, from wheels in a new environment: the demo runs and leaves its report."""

import json

import pytest
from conftest import call


@pytest.fixture(scope="module")
def bin(new_environment, build):
    core, base, fl = build("core", "plugins/gfn/base", "plugins/gfn/fl")
    return new_environment(f"{core}[report]", f"{base}[mol]", f"{fl}[mol]")


@pytest.fixture(scope="module")
def shown(bin, tmp_path_factory):
    """The folder in which the demo ran, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = call(bin / "headwater", "demo", cwd=folder)
    assert done.returncode == 0, done.both
    return folder, done


def test_the_demo_prints_its_table_and_local_credit_is_nearer_to_the_target(shown):
    _, done = shown
    rows = {row.split()[1]: row for row in done.stdout.splitlines() if "FL-DB" in row or "DB (base" in row}
    distance = {name: float(row.split("│")[2]) for name, row in rows.items() if "│" in row}
    assert set(distance) == {"FL-DB", "DB"}
    assert distance["FL-DB"] < 0.15
    assert distance["FL-DB"] < distance["DB"]
    assert "steps" in done.stderr, "no sign of progress"


def test_the_report_of_the_demo_has_landscapes_curves_and_molecules(shown):
    folder, _ = shown
    page = (folder / "headwater-demo" / "report.html").read_text(encoding="utf-8")
    for heading in (
        "What was learned",
        "How fast",
        "Molecules",
        "Best molecules",
        "Probability of each cell",
    ):
        assert heading in page
    assert page.count('class="plot"') == 6
    assert "data:image/svg+xml;base64," in page
    assert "default-src 'none'" in page, "the page may fetch something"


def test_a_demo_can_be_run_again_and_does_not_touch_a_folder_that_is_not_its_own(bin, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    done = call(bin / "headwater", "demo", "--out", "mine", cwd=tmp_path)
    assert done.returncode == 1
    assert "holds 'thesis.txt', which is not of a demo" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_run_goes_from_training_to_molecules_in_the_domains_own_format(bin, tmp_path):
    words = (
        "--task",
        "fragments",
        "--set",
        "task.max_blocks=3",
        "--set",
        "trainer.hidden=[16]",
        "--max-steps",
        3,
    )
    done = call(bin / "headwater", "train", "gfn-fl", *words, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.both
    assert "report: run/report.html" in done.stdout
    done = call(bin / "headwater", "sample", "run", "-n", 5, "-o", "m.sdf", cwd=tmp_path)
    assert done.returncode == 0, done.both
    assert (tmp_path / "m.sdf").read_text().count("$$$$") == 5
    done = call(bin / "headwater", "evaluate", "--task", "fragments", "--samples", "m.sdf", "--json",
                "--set", "task.max_blocks=3", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.both
    assert json.loads(done.stdout)["valid"] == 1.0
    done = call(bin / "headwater", "doctor", cwd=tmp_path)
    assert (done.returncode, done.both) == (0, "no problem found\n")
