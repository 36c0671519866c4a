"""The tasks as a user meets them: embedded data, splits, formulas, files made and checked, the report's pictures."""

import json
import re
import types

import headwater
import numpy as np
import pytest
from headwater import UsageError, hookimpl, registry
from headwater.api import evaluate, task_of
from headwater.reporting import write_page
from headwater_bfn_crys.tasks.embedded import aflow_prototypes, perovskite_compositions, perovskites
from headwater_bfn_crys.tasks.entries import TASKS
from headwater_bfn_crys.tasks.formula import parse_formula
from headwater_bfn_crys.tasks.pictures import cells, distributions, metrics_table, panels
from headwater_bfn_crys.tasks.splits import reduced_composition, split


@pytest.fixture(autouse=True)
def registered():
    if "crystals" in registry.tasks():
        yield
        return
    plugin = types.SimpleNamespace(
        __name__="crystal-tasks", headwater_tasks=hookimpl(lambda: list(TASKS), specname=None)
    )
    registry.register(plugin)
    yield
    registry.unregister("crystal-tasks")


def test_the_prototypes_are_real_crystals_of_many_kinds():
    found = aflow_prototypes()
    assert len(found) == 288
    assert (found.num_atoms <= 20).sum() == 250
    assert (found.num_atoms <= 24).sum() == 257
    assert found.num_atoms.max() == 105
    assert len(np.unique(found.numbers)) == 69
    assert len(set(found.ids)) == 288


def test_perovskites_are_packed_ions_and_reproducible():
    known = {
        sites: edge for *sites, edge in ((*k[:3], k[3]) for k in perovskite_compositions()) for sites in [tuple(sites)]
    }
    assert len(known) > 1000
    assert known[38, 22, 8] == pytest.approx(3.905, rel=0.05)  # SrTiO3, measured
    assert known[55, 82, 53] == pytest.approx(6.29, rel=0.1)  # CsPbI3, measured
    a, b = perovskites(50, 0.02, 0), perovskites(60, 0.02, 0)
    np.testing.assert_array_equal(a.numbers, perovskites(50, 0.02, 0).numbers)
    assert len(b) == 60
    assert set(a.num_atoms) == {5}
    still = perovskites(20, 0.0, 3)
    np.testing.assert_allclose(still.lengths, still.lengths[:, :1].repeat(3, 1))
    structure = still.structures()[0]
    distance = structure.get_distance(1, 2)
    assert distance == pytest.approx(still.lengths[0, 0] / 2)  # B to X
    assert (np.diff(a.lengths, axis=1) >= 0).all()
    many = perovskites(len(known) + 5, 0.0, 0)
    assert len(set(many.ids)) == len(many)


def test_a_random_split_takes_every_crystal_once_and_depends_on_its_seed_alone():
    whole = aflow_prototypes()
    a, b, rest = split(whole, (0.1, 0.2), 0, by_composition=False)
    assert [len(part) for part in (a, b, rest)] == [29, 58, 201]
    assert sorted(a.ids + b.ids + rest.ids) == sorted(whole.ids)
    assert split(whole, (0.1, 0.2), 0, by_composition=False)[0].ids == a.ids
    assert split(whole, (0.1, 0.2), 1, by_composition=False)[0].ids != a.ids


def test_a_split_by_composition_keeps_polymorphs_together():
    whole = aflow_prototypes()
    parts = split(whole, (0.2, 0.2), 0, by_composition=True)
    assert sorted(name for part in parts for name in part.ids) == sorted(whole.ids)
    formulas = [{reduced_composition(c) for c in part.compositions} for part in parts]
    assert not formulas[0] & formulas[1]
    assert not formulas[0] & formulas[2]
    assert not formulas[1] & formulas[2]
    assert all(abs(len(part) - 58) < 20 for part in parts[:2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SrTiO3", {8: 3, 22: 1, 38: 1}),
        ("Sr2Ti2O6", {8: 6, 22: 2, 38: 2}),
        ("Ca3(PO4)2", {20: 3, 15: 2, 8: 8}),
        ("C", {6: 1}),
    ],
)
def test_formulas_are_taken_as_they_stand(text, expected):
    numbers = parse_formula(text)
    assert dict(zip(*(v.tolist() for v in np.unique(numbers, return_counts=True)), strict=True)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Qq2", "no chemical formula"),
        ("", "no chemical formula"),
        ("Sr0.5TiO3", "fraction"),
        ("C999999999999", "at most 1000"),
        ("(", "no chemical"),
    ],
)
def test_what_is_no_formula_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        parse_formula(text)


@pytest.mark.parametrize("name", ["aflow-prototypes", "perovskites"])
def test_an_embedded_set_is_made_on_disk_checked_and_read_as_the_users_own(tmp_path, name):
    task = task_of(name, {"task": {"crystals": 60}} if name == "perovskites" else {})
    task.make(tmp_path / "made")
    mine = task_of("crystals", {"task": {"path": str(tmp_path / "made"), "cache": "off"}})
    assert type(mine).check(tmp_path / "made") == []
    for ours, theirs in zip(mine.parts, task.parts, strict=True):
        assert ours.ids == theirs.ids
        assert ours.compositions == theirs.compositions
        np.testing.assert_allclose(ours.volumes, theirs.volumes, rtol=1e-5)
        # A cell of rounded numbers may be reduced to another of nearly equal edges.
        np.testing.assert_allclose(np.sort(ours.lengths, 1), np.sort(theirs.lengths, 1), rtol=1e-3)


def test_parts_that_no_file_gives_are_drawn_from_the_training_crystals(tmp_path):
    whole = aflow_prototypes()[:40]
    task = task_of("aflow-prototypes")
    task.write(whole[:30], tmp_path / "train.csv")
    task.write(whole[30:], tmp_path / "held-out.csv")
    mine = task_of(
        "crystals",
        {"task": {"path": str(tmp_path / "train.csv"), "test_path": str(tmp_path / "held-out.csv"), "cache": "off"}},
    )
    assert mine.test().ids == whole[30:].ids
    assert len(mine.validation()) == 3
    assert sorted(mine.train().ids + mine.validation().ids) == sorted(whole[:30].ids)


def test_samples_in_a_file_are_evaluated_from_the_outside(tmp_path):
    task = task_of("aflow-prototypes")
    task.write(task.test(), tmp_path / "mine.extxyz")
    scores = evaluate(
        task="aflow-prototypes", samples=tmp_path / "mine.extxyz", overrides={"task": {"metrics": ["distances"]}}
    )
    assert scores["wdist_volume"] == pytest.approx(0.0, abs=1e-3)


def test_unknown_settings_and_shares_that_leave_nothing_are_refused():
    with pytest.raises(headwater.ConfigError, match=r"task\.path is needed"):
        task_of("crystals")
    with pytest.raises(headwater.ConfigError, match="no crystal for training"):
        task_of("aflow-prototypes", {"task": {"test_fraction": 0.5, "validation_fraction": 0.5}})


class FinishedRun:
    def __init__(self, path):
        self.path = path


def test_the_report_shows_cells_distributions_and_the_papers_numbers(tmp_path):
    task = task_of("aflow-prototypes", {"task": {"published": "perov-5"}})
    (tmp_path / "samples").mkdir()
    task.write(task.test(), tmp_path / "samples/mine.cif")
    (tmp_path / "evaluation.json").write_text(json.dumps({"match_rate": 0.25, "unique": 1.0}))
    made = panels(task, FinishedRun(tmp_path))
    assert [panel.title for panel in made] == [
        "Crystals", "Density", "Cell volume", "Elements in a crystal", "Atoms in a cell", "Metrics beside the paper's",
    ]  # fmt: skip
    assert "25 samples of mine.cif" in made[0].caption
    assert made[-1].rows == [["match_rate", 0.25, 0.5469], ["unique", 1.0, ""]]
    assert re.search(r"SMACT \d.*smact14", made[-1].caption)
    pytest.importorskip("plotly")
    assert write_page(tmp_path / "r.html", title="t", sections=[("Result", made)]).stat().st_size > 1000
    assert metrics_table(task, FinishedRun(tmp_path / "samples")) is None


def test_the_viewer_draws_the_whole_cell_of_one_crystal_at_a_time():
    figure = cells(aflow_prototypes()[[11, 1]].named(["a", "b"]))
    data, menu = figure.figure["data"], figure.figure["layout"]["updatemenus"][0]["buttons"]
    assert len(menu) == 2
    for b, button in enumerate(menu):
        visible = button["args"][0]["visible"]
        assert len(visible) == len(data)
        assert (visible == [trace["visible"] for trace in data]) == (b == 0)
    lines = data[0]
    assert sum(x is None for x in lines["x"]) == 12  # edges
    corner = cells(perovskites(1, 0.0, 0)).figure["data"]
    # An atom at the corner is drawn on eight corners, one in the middle once, three on faces twice each.
    assert sorted(len(trace["x"]) for trace in corner[1:]) == [1, 6, 8]


def test_distributions_are_shares_that_add_up_to_one_whatever_the_samples():
    train = aflow_prototypes()
    samples = train[:5]
    wild = type(samples)(samples.numbers, samples.frac, samples.lengths * 100, samples.angles, samples.num_atoms)
    for figure in distributions(wild, train):
        for trace in figure.figure["data"]:
            assert sum(trace["y"]) == pytest.approx(1.0, abs=1e-4)
