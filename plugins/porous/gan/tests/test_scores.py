"""Metrics, pictures and the command line of the tasks."""

import json
import math
import types

import numpy as np
import pytest
from headwater import api, hookimpl, registry
from headwater.errors import DataError, UsageError
from headwater.reporting import write_page
from headwater_porous_gan.tasks import pictures
from headwater_porous_gan.tasks.entries import TASKS
from headwater_porous_gan.tasks.media import Medium, MediumConfig, field
from headwater_porous_gan.tasks.scores import crops, measure, scores
from headwater_porous_gan.tasks.volume import PorousVolume, PorousVolumeConfig
from headwater_porous_gan.volume import Volume

pytest.importorskip("numba")


def small(**settings):
    return PorousVolumeConfig(**{"lags": 12, "permeability_edge": 16, "permeability_crops": 1, **settings})


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("volume") / "field.npy"
    np.save(path, field(32, 3.0, 0.4, seed=1) * 255)
    return path


def test_a_volume_against_itself_has_no_error(stored):
    task = PorousVolume(small(path=stored, voxel_size=1e-6))
    found = task.metrics(task.volume())
    assert found["s2_error"] == found["s2_error_relative"] == found["kappa_error"] == 0
    assert all(v == 0 for k, v in found.items() if k.endswith("_error"))
    for name in ("porosity", "surface", "surface_s2", "faces", "mean_breadth", "euler_6", "euler_26", "chord_pore",
                 "run_grain", "effective_porosity_1", "permeability_0", "permeability_2_darcy"):  # fmt: skip
        assert found[name] == found[f"{name}_real"]
    assert found["permeability_0_darcy"] == pytest.approx(found["permeability_0"] * 1e-12 / 9.869233e-13)
    assert found["porosity"] == pytest.approx(0.4, abs=1e-4)


def test_tiles_and_several_volumes_are_measured(stored):
    task = PorousVolume(small(path=stored, permeability=False))
    phase = task.volume().phase
    tiles = [Volume(phase[i : i + 16], start=(i, 0, 0), whole=phase.shape, step=(16, 32, 32)) for i in (0, 16)]
    whole = task.metrics([task.volume()])
    assert task.metrics(tiles) == whole
    other = field(32, 3.0, 0.3, seed=2)
    both = task.metrics([task.volume(), Volume(other)])
    assert both["porosity"] == pytest.approx((0.4 + 0.3) / 2, abs=1e-4)
    assert both["porosity_error"] == pytest.approx(-0.125, abs=1e-3)
    assert both["s2_error"] > 0


def test_without_a_training_volume_values_stand_alone(stored):
    found = PorousVolume(small()).metrics(PorousVolume(small()).read(stored))
    assert "porosity" in found
    assert not any(name.endswith(("_real", "_error")) for name in found)


@pytest.mark.parametrize("value", [0, 1])
def test_a_volume_of_one_phase_gives_finite_numbers(value, stored):
    task = PorousVolume(small(path=stored))
    found = task.metrics(Volume(np.full((24, 24, 24), value, np.uint8)))
    assert all(math.isfinite(v) for v in found.values())
    assert found["porosity"] == 1 - value
    if value == 1:
        assert found["permeability_0"] == 0
        notes = measure(Volume(np.ones((24, 24, 24), np.uint8)), small()).notes
        assert notes[0] == "no pore of a crop of 16 voxels connects the faces of axis 0: k = 0"


def test_nothing_to_measure_is_refused():
    with pytest.raises(DataError, match="no volume to measure"):
        PorousVolume(small()).metrics([])


def test_crops_are_spread_over_the_volume():
    assert crops((40, 40, 40), 64, 3) == [(slice(0, 40),) * 3]
    assert crops((100, 100, 100), 64, 1) == [(slice(18, 82),) * 3]
    found = crops((128, 130, 200), 64, 3)
    assert len(set(map(str, found))) == 3
    assert found[0] == (slice(0, 64), slice(0, 64), slice(0, 64))
    assert found[-1] == (slice(64, 128), slice(64, 128), slice(128, 192))


def test_the_training_volume_is_measured_once(stored, monkeypatch):
    from headwater_porous_gan.tasks import scores as module

    task = PorousVolume(small(path=stored, permeability=False))
    calls = []
    monkeypatch.setattr(module, "measure", lambda *a, real=module.measure: calls.append(1) or real(*a))
    for _ in range(3):
        task.metrics(task.volume())
    assert len(calls) == 4


def test_thickness_is_measured_on_request(stored):
    pytest.importorskip("porespy")
    found = PorousVolume(small(path=stored, permeability=False, thickness=True)).metrics(Volume(field(32, 3.0, 0.4)))
    assert 1 < found["thickness_pore"] < 16


def test_pictures_of_real_and_generated(stored, tmp_path):
    task = PorousVolume(small(path=stored))
    made = [Volume(field(32, 3.0, 0.4, seed=s)) for s in (2, 3)]
    found = pictures.pictures(task.volume(), task.reference, made, [measure(v, task.config) for v in made])
    titles = [panel.title for panel in found]
    assert titles == [
        "Slices",
        "Surfaces of the grains",
        "Two-point correlation of the pores",
        "Functionals",
        "Permeability",
    ]
    scene = found[1].figure
    assert [trace["scene"] for trace in scene["data"]] == ["scene", "scene2"]
    assert {trace["type"] for trace in scene["data"]} == {"mesh3d"}
    rows = {row[0]: row for row in found[3].rows}
    assert rows["porosity"][1] == pytest.approx(0.4, abs=1e-4)
    assert rows["porosity"][4].endswith("%")
    pytest.importorskip("plotly")
    assert write_page(tmp_path / "page.html", title="t", sections=[("Result", found)]).stat().st_size > 1000


def test_meshes_are_bounded_and_closed():
    phase = field(48, 1.2, 0.5, seed=4)
    vertices, triangles = pictures.mesh(phase, 1, most=20_000)
    assert 0 < len(triangles) <= 20_000
    assert triangles.max() < len(vertices)
    edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all()
    assert len(pictures.mesh(np.zeros((9, 9, 9), np.uint8), 1)[1]) == 0


def test_a_stand_in_is_named_in_the_report():
    task = Medium(MediumConfig(edge=32, lags=8, permeability=False))
    found = pictures.pictures(task.volume(), task.reference, [task.volume()], [task.reference])
    assert "stand-in" in found[-1].text


@pytest.fixture
def registered():
    holder = types.SimpleNamespace(__name__="porous_tasks_only")

    class Hooks:
        @hookimpl
        def headwater_tasks(self):
            return list(TASKS)

    if any(name in registry.tasks() for name in ("bead-pack", "porous-volume")):
        yield
        return
    registry.register(Hooks(), holder.__name__)
    yield
    registry.unregister(holder.__name__)


def test_any_volume_is_evaluated_without_a_run(registered, stored):
    options = {"task": {"lags": 10, "permeability": False}}
    found = api.evaluate(task="porous-volume", samples=stored, overrides=options)
    assert found["porosity"] == pytest.approx(0.4, abs=1e-4)
    against = api.evaluate(
        task="porous-volume", samples=stored, overrides={"task": {**options["task"], "path": str(stored)}}
    )
    assert against["s2_error"] == 0
    json.dumps(against)
    with pytest.raises(DataError, match="does not exist"):
        api.evaluate(task="porous-volume", samples=stored.with_name("absent.tif"))
    stored.with_name("rock.xyz").touch()
    with pytest.raises(UsageError, match=r"cannot read 'rock\.xyz'"):
        api.evaluate(task="porous-volume", samples=stored.with_name("rock.xyz"))


def test_errors_are_relative_to_the_real_value():
    config = small(permeability=False)
    real, made = (measure(Volume(field(32, 3.0, p, seed=5)), config) for p in (0.4, 0.3))
    found = scores([made], real)
    assert found["porosity_error"] == pytest.approx(-0.25, abs=1e-3)
    assert found["euler_6_error"] == pytest.approx(
        (found["euler_6"] - found["euler_6_real"]) / abs(found["euler_6_real"])
    )
    assert found["s2_error_relative"] == pytest.approx(found["s2_error"] / 0.24, rel=1e-3)
