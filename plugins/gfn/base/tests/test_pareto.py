"""Pareto metrics: hand values, plain loops, and the official numbers where they are here."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("moocore")

from headwater_gfn.pareto import (
    focus,
    front_metrics,
    gd_plus,
    hausdorff_plus,
    hypercube_faces,
    hypervolume,
    igd,
    igd_plus,
    non_dominated,
    pc_entropy,
    r2,
    simplex,
)

NAME = "shared/data/gfn-op/parity/metrics.npz"
OFFICIAL = next((p / NAME for p in Path(__file__).resolve().parents if (p / NAME).exists()), None)


@pytest.fixture(params=[2, 3, 4])
def points(request):
    rng = np.random.default_rng(request.param)
    return rng.random((40, request.param)), rng.random((12, request.param))


def test_the_mask_is_that_of_a_loop_over_all_pairs(points):
    values = np.round(points[0] * 4) / 4  # many ties

    def dominated(u, strict):
        return any((v > u).all() if strict else (v >= u).all() and (v > u).any() for v in values)

    for strict in (False, True):
        assert non_dominated(values, strict=strict).tolist() == [not dominated(u, strict) for u in values]
    assert non_dominated([[1.0], [3.0], [3.0]]).tolist() == [False, True, True]


def test_distances_equal_their_definitions(points):
    a, r = points

    def shortfall(x, y):
        return math.sqrt(sum(max(v - u, 0.0) ** 2 for u, v in zip(x, y, strict=True)))

    inverted = sum(min(shortfall(x, y) for x in a) for y in r) / len(r)
    forward = sum(min(shortfall(x, y) for y in r) for x in a) / len(a)
    assert igd_plus(a, r) == pytest.approx(inverted, rel=1e-12)
    assert gd_plus(a, r) == pytest.approx(forward, rel=1e-12)
    assert hausdorff_plus(a, r) == max(gd_plus(a, r), igd_plus(a, r))
    assert igd(a, r) == pytest.approx(sum(min(math.dist(x, y) for x in a) for y in r) / len(r), rel=1e-12)


def test_the_hypervolume_of_known_sets():
    assert hypervolume([[0.5, 1.0], [1.0, 0.5]]) == pytest.approx(0.75)
    assert hypervolume([[0.5, 1.0], [1.0, 0.5], [0.4, 0.4], [0.5, 1.0]]) == pytest.approx(0.75)
    assert hypervolume([[2.0, 2.0]], (1.0, 0.5)) == pytest.approx(1.5)
    assert hypervolume([[-1.0, 2.0]]) == 0.0


def test_the_entropy_is_highest_where_samples_are_spread_evenly():
    front = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    assert pc_entropy(np.repeat(front, 5, 0), front) == pytest.approx(math.log(3), abs=1e-6)
    assert pc_entropy(front[:1], front) == pytest.approx(0, abs=1e-6)


def test_r2_equals_its_definition(points):
    a, _ = points
    v = simplex(a.shape[1], 3)
    assert v.sum(1) == pytest.approx(1)
    expected = sum(min(max(w * abs(1 - x) for w, x in zip(row, u, strict=True)) for u in a) for row in v)
    assert r2(a, v) == pytest.approx(expected / np.linalg.norm(v), rel=1e-12)


def test_the_faces_of_the_cube_have_a_coordinate_of_one():
    faces = hypercube_faces(3)
    assert len(faces) == 10**3 - 9**3
    assert (faces.max(1) == 1).all()


def test_a_set_that_is_the_front_has_no_distance_to_it():
    front = np.array([[0.2, 0.9], [0.6, 0.6], [0.9, 0.1]])
    found = front_metrics(front, front)
    assert found["igd_plus"] == found["gd_plus"] == 0
    assert found["hypervolume"] == pytest.approx(hypervolume(front))


def test_focus_is_one_along_the_direction_and_the_coefficient_at_its_limit():
    angle = math.acos(0.98)
    values = [[1.0, 0.0], [math.cos(angle - 1e-9), math.sin(angle - 1e-9)], [0.0, 1.0]]
    coefficient, inside = focus(values, [[1.0, 0.0]] * 3)
    assert coefficient == pytest.approx([1.0, 0.2, 0.0], abs=1e-6)
    assert inside.tolist() == [True, True, False]


@pytest.mark.skipif(OFFICIAL is None, reason="the official reference numbers are not here")
@pytest.mark.parametrize("d", [2, 3, 4])
def test_every_metric_equals_the_official_one(d):
    with np.load(OFFICIAL, allow_pickle=False) as file:
        data = {k.removeprefix(f"d{d}/"): file[k] for k in file.files if k.startswith(f"d{d}/")}
    a, r = data["samples"], data["reference"]
    assert (non_dominated(a) == data["non_dominated"]).all()
    found = {
        "hv0": hypervolume(a), "igd": igd(a, r), "igd_plus": igd_plus(a, r), "gd_plus": gd_plus(a, r),
        "hausdorff_plus": hausdorff_plus(a, r), "r2": r2(a, data["r2_weights"]) if "r2" in data else None,
    }  # fmt: skip
    for name, value in found.items():
        if name in data:
            assert value == pytest.approx(float(data[name]), rel=1e-9), name
    assert pc_entropy(a, r) == pytest.approx(float(data["pc_entropy"]), abs=1e-6)
    if "pc_entropy_default" in data:
        assert pc_entropy(a, hypercube_faces(d)) == pytest.approx(float(data["pc_entropy_default"]), abs=1e-6)
        assert igd_plus(a, hypercube_faces(d)) == pytest.approx(float(data["igd_plus_default"]), rel=1e-9)
    coefficient, inside = focus(a, data["directions"], 0.95, 0.3)
    assert (inside == data["focus_mask"]).all()
    np.testing.assert_allclose(coefficient, data["focus_coef"], atol=1e-5)
