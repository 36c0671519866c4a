"""Permeability against ducts, tubes, sphere packings and the published ranking of Berea."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from headwater.errors import DataError, NonFinite, RunError, UsageError
from headwater_porous_gan.physics import permeability as module
from headwater_porous_gan.physics.permeability import lattice, permeability, stepper

numba = pytest.importorskip("numba")

DATA = next(
    (p / "shared/data/porous-gan" for p in Path(__file__).resolve().parents if (p / "shared/data/porous-gan").is_dir()),
    Path("shared/data/porous-gan"),
)


def noise(shape, seed=0, share=0.6):
    return (np.random.default_rng(seed).random(shape) > share).astype(np.uint8)


def duct(width, axis=0):
    phase = np.ones((4, width + 2, width + 2), np.uint8)
    phase[:, 1:-1, 1:-1] = 0
    return np.moveaxis(phase, 0, axis)


@pytest.mark.parametrize(("width", "error"), [(8, 0.014), (16, 0.0037), (32, 0.0009)])
def test_square_duct(width, error):
    """k A / W^4 = 0.0351443; half-way walls make it too wide by an error that falls with the square of W."""
    k = permeability(duct(width), 0, ends="periodic", tolerance=1e-6).permeability
    found = k * (width + 2) ** 2 / (0.0351443 * width**4) - 1
    assert found == pytest.approx(error, abs=2e-4)
    if width == 32:
        assert abs(found) < 0.002


@pytest.mark.parametrize("axis", [1, 2])
def test_axes_are_treated_alike(axis):
    along = permeability(duct(8), 0, ends="periodic", tolerance=1e-5).permeability
    assert permeability(duct(8, axis), axis, ends="periodic", tolerance=1e-5).permeability == pytest.approx(along, 1e-5)


def test_round_tube():
    radius = 16
    axis = np.arange(2 * radius + 3) - radius - 1
    section = (axis[:, None] ** 2 + axis[None, :] ** 2 >= radius**2).astype(np.uint8)
    phase = np.repeat(section[None], 4, axis=0)
    effective = math.sqrt((section == 0).sum() / math.pi)
    k = permeability(phase, 0, ends="periodic", tau=1.0, tolerance=1e-6).permeability
    assert k * section.size / (math.pi * effective**4 / 8) - 1 == pytest.approx(-0.013, abs=0.003)


def test_touching_spheres_in_a_simple_cubic_lattice():
    d = 48
    g = (np.arange(d) + 0.5 - d / 2) ** 2
    phase = (g[:, None, None] + g[None, :, None] + g[None, None, :] <= d * d / 4).astype(np.uint8)
    k = permeability(phase, 0, ends="periodic", sides="periodic", tau=1.0, tolerance=1e-5).permeability
    assert k / d**2 == pytest.approx(0.002519, rel=0.03)


def test_relaxation_time_hardly_matters():
    values = [permeability(duct(16), 0, ends="periodic", tau=tau, tolerance=1e-6).permeability for tau in (0.6, 1.0)]
    assert values[0] == pytest.approx(values[1], rel=0.004)


@pytest.mark.parametrize("sides", ["closed", "periodic"])
def test_numba_and_torch_take_the_same_steps(sides):
    fluid = noise((9, 10, 11)) == 0
    domain = lattice(fluid, sides)
    a, b = stepper(domain, 0.7, "numba"), stepper(domain, 0.7, "torch")
    for _ in range(5):
        assert a(20) == pytest.approx(b(20), rel=1e-5)


def test_a_step_equals_a_plain_loop_in_float64():
    """Streaming, walls and the collision written out cell by cell, population by population."""
    fluid = noise((4, 5, 3), 2) == 0
    tau = 0.8
    even, odd = 1 / tau, 1 / (3 / (16 * (tau - 0.5)) + 0.5)
    c = [(0, 0, 0)]
    for e in module.PAIRS:
        c += [e, tuple(-v for v in e)]
    other = [0, *(module.opposite(q) for q in range(1, 19))]
    w = module.WEIGHTS
    cells = [tuple(x) for x in np.argwhere(fluid)]
    f = {x: np.zeros(19) for x in cells}
    for _ in range(6):
        fresh, total = {}, 0.0
        for x in cells:
            arrived = np.zeros(19)
            for q in range(19):
                y = [x[a] - c[q][a] for a in range(3)]
                y[0] %= fluid.shape[0]
                inside = all(0 <= y[a] < fluid.shape[a] for a in range(3))
                arrived[q] = f[tuple(y)][q] if inside and fluid[tuple(y)] else f[x][other[q]]
            rho = arrived.sum()
            j = [sum(c[q][a] * arrived[q] for q in range(19)) + (0.5 if a == 0 else 0.0) for a in range(3)]
            total += j[0]
            after = np.zeros(19)
            for q in range(19):
                plus = (arrived[q] + arrived[other[q]]) / 2
                minus = (arrived[q] - arrived[other[q]]) / 2
                cj = sum(c[q][a] * j[a] for a in range(3))
                after[q] = (
                    arrived[q]
                    - even * (plus - w[q] * rho)
                    - odd * (minus - 3 * w[q] * cj)
                    + (1 - odd / 2) * 3 * w[q] * c[q][0]
                )
            fresh[x] = after
        f = fresh
    assert stepper(lattice(fluid), tau, "numba")(6) == pytest.approx(total, rel=1e-5)


def test_free_layers_and_mirroring_agree_on_a_straight_channel():
    phase = duct(12)
    phase = np.repeat(phase[:1], 24, axis=0)
    periodic = permeability(phase, 0, ends="periodic", tolerance=1e-5).permeability
    mirror = permeability(phase, 0, ends="mirror", tolerance=1e-5).permeability
    free = permeability(phase, 0, ends="free", tolerance=1e-5).permeability
    assert mirror == pytest.approx(periodic, rel=1e-4)
    assert free == pytest.approx(periodic, rel=0.25)  # flow must turn into the channel and out of it
    assert free < periodic


def test_dead_ends_do_not_count():
    phase = np.pad(duct(8), ((0, 0), (0, 4), (0, 0)), constant_values=1)
    alone = permeability(phase, 0, ends="periodic", tolerance=1e-5)
    phase[1:3, -2, 2:6] = 0
    assert permeability(phase, 0, ends="periodic", tolerance=1e-5) == alone


def test_no_way_through_is_one_clear_error():
    phase = np.ones((8, 8, 8), np.uint8)
    phase[2:6, 2:6, 2:6] = 0
    with pytest.raises(DataError, match=r"no pore connects the two faces of axis 1"):
        permeability(phase, 1)


def test_a_flow_that_diverges_is_refused(monkeypatch):
    monkeypatch.setattr(module, "stepper", lambda *a: lambda n: math.nan)
    with pytest.raises(NonFinite, match="diverged after 100 steps"):
        permeability(duct(4), 0)


def test_a_flow_that_does_not_settle_is_refused():
    with pytest.raises(RunError, match="has not converged after 200 steps"):
        permeability(duct(32), 0, max_steps=200, tolerance=1e-9)


def test_an_impossible_relaxation_time_is_refused():
    with pytest.raises(UsageError, match=r"above 0\.5"):
        permeability(duct(4), 0, tau=0.5)


def test_without_numba_torch_computes(monkeypatch):
    expected = permeability(duct(6), 0, tolerance=1e-4).permeability
    monkeypatch.setattr(module, "_kernels", lambda: None)
    assert permeability(duct(6), 0, tolerance=1e-4).permeability == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UsageError, match=r"headwater-porous-gan\[physics\]"):
        permeability(duct(6), 0, engine="numba")


@pytest.mark.skipif("HEADWATER_SLOW" not in os.environ, reason="half a minute; set HEADWATER_SLOW=1")
def test_ranking_of_the_directions_of_berea_is_the_published_one():
    """Sample 0 of 128^3: published 0.0490 < 0.0553 < 0.0677 voxel^2 along axes 0, 1, 2; a loose criterion suffices."""
    if not (DATA / "berea_full_uint8.tif").exists():
        pytest.skip("the published scan is not here")
    tifffile = pytest.importorskip("tifffile")
    phase = (tifffile.imread(DATA / "berea_full_uint8.tif", key=range(128))[:, :128, :128] > 0).astype(np.uint8)
    k = [permeability(phase, axis, tau=0.65, tolerance=0.02).permeability for axis in (0, 2)]
    published = [0.0490, 0.0677]
    assert k[0] < k[1]
    for ours, theirs in zip(k, published, strict=True):
        assert 1.0 < ours / theirs < 1.35  # another solver with other ends
