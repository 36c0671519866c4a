"""S2 against plain loops, closed forms and the published tables."""

import math
from pathlib import Path

import numpy as np
import pytest
from headwater_porous_gan.physics import correlation
from headwater_porous_gan.physics.correlation import (
    chord_means,
    complement,
    interface_slope,
    kappa,
    s2_directional,
    s2_mean,
    s2_radial,
    specific_surface,
)

DATA = next(
    (p / "shared/data/porous-gan" for p in Path(__file__).resolve().parents if (p / "shared/data/porous-gan").is_dir()),
    Path("shared/data/porous-gan"),
)
SHAPES = [(5, 6, 7), (9, 4, 70), (3, 130, 2), (1, 5, 5)]


def noise(shape, seed=0, porosity=0.4):
    return (np.random.default_rng(seed).random(shape) > porosity).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_directional_s2_equals_a_loop_over_all_pairs(shape):
    phase = noise(shape)
    for axis, found in enumerate(s2_directional(phase)):
        pores = np.moveaxis(phase == 0, axis, 0).astype(float)
        n = shape[axis]
        assert len(found) == n
        for lag in range(n):
            assert found[lag] == pytest.approx((pores[lag:] * pores[: n - lag]).mean(), abs=1e-15)


def test_the_longest_lag_can_be_chosen():
    phase = noise((9, 12, 5))
    whole, part = s2_directional(phase), s2_directional(phase, 6)
    assert [len(c) for c in part] == [7, 7, 5]
    assert all((p == w[: len(p)]).all() for p, w in zip(part, whole, strict=True))


def test_blocks_of_lines_give_the_same_sums(monkeypatch):
    phase = noise((20, 30, 25))
    whole = s2_directional(phase)
    monkeypatch.setattr(correlation, "BLOCK", 400)
    monkeypatch.setattr(correlation, "CACHE", 32)
    monkeypatch.setattr(correlation, "BITS", 700)
    assert all((a == b).all() for a, b in zip(whole, s2_directional(phase), strict=True))


def radial_by_loop(pores, lags):
    places = [np.arange(n) for n in pores.shape]
    grid = np.stack(np.meshgrid(*places, indexing="ij"), -1).reshape(-1, 3)
    value = pores.reshape(-1).astype(float)
    distance = np.rint(np.sqrt(((grid[:, None] - grid[None]) ** 2).sum(-1))).astype(int)
    product = value[:, None] * value[None]
    return np.array([product[distance == r].mean() for r in range(lags + 1)])


def test_radial_s2_equals_a_loop_over_all_pairs():
    phase = noise((6, 5, 7), 1)
    np.testing.assert_allclose(s2_radial(phase, 5), radial_by_loop(phase == 0, 5), atol=1e-14)


def test_radial_s2_of_cubes_adds_their_pairs():
    phase = noise((8, 4, 4), 2)
    halves = [phase[:4], phase[4:]]
    loops = np.mean([radial_by_loop(h == 0, 3) for h in halves], axis=0)  # equal cubes have equally many pairs
    np.testing.assert_allclose(s2_radial(phase, 3, block=4), loops, atol=1e-14)


def test_layers_have_a_triangle_wave():
    phase = np.zeros((64, 3, 3), np.uint8)
    phase[np.arange(64) // 4 % 2 == 1] = 1
    along, across, _ = s2_directional(phase, 8)
    # Layers of 4: at lag r < 4 a pair stays in the pore 4 - r times a layer of pores; 8 layers of those, none cut.
    expected = [8 * (4 - r) / (64 - r) for r in range(4)]
    np.testing.assert_allclose(along[:4], expected)
    assert along[4] == 0
    np.testing.assert_allclose(across, 0.5)


def test_overlapping_spheres_have_the_s2_of_the_boolean_model():
    rng = np.random.default_rng(3)
    edge, radius = 96, 7.0
    rate = 0.5 / (4 / 3 * math.pi * radius**3)
    grid = np.arange(edge) + 0.5
    grain = np.zeros((edge,) * 3, bool)
    reach = edge + 2 * radius
    for centre in rng.uniform(-radius, edge + radius, (rng.poisson(rate * reach**3), 3)):
        d = [(grid - c) ** 2 for c in centre]
        grain |= d[0][:, None, None] + d[1][None, :, None] + d[2][None, None, :] <= radius**2
    s2 = s2_mean(s2_directional(grain.astype(np.uint8), 20))
    r = np.arange(21.0)
    shared = np.where(r < 2 * radius, 1 - 3 * r / (4 * radius) + r**3 / (16 * radius**3), 0.0)
    exact = np.exp(-0.5 * (2 - shared))
    # One realisation of 96^3 scatters by about 0.02 in porosity; the normalised curve by less.
    np.testing.assert_allclose(kappa(s2), (exact - exact[-1]) / (exact[0] - exact[-1]), atol=0.06)


@pytest.mark.parametrize(("rock", "lags"), [("berea", 400), ("ketton", 256)])
def test_full_scans_reproduce_the_published_tables(rock, lags):
    tifffile = pytest.importorskip("tifffile")
    if not (DATA / f"{rock}_full_uint8.tif").exists():
        pytest.skip("the published scans are not here")
    phase = (tifffile.imread(DATA / f"{rock}_full_uint8.tif") > 0).astype(np.uint8)
    published = np.load(DATA / f"published_s2_{rock}.npz")["orig_pore"]
    assert published.shape == (3, lags)
    found = s2_directional(phase)
    for row, axis in enumerate((0, 2, 1)):  # the rows are named x, y, z
        assert np.abs(found[axis] - published[row]).max() < 1e-6
    mean = s2_mean(found)
    surface, pore, grain = {"berea": (0.0774, 10.15, 41.5), "ketton": (0.0548, 9.26, 63.8)}[rock]
    assert specific_surface(mean) == pytest.approx(surface, rel=2e-3)
    assert chord_means(mean) == pytest.approx((pore, grain), rel=2e-3)


def test_s2_of_the_grains_follows_from_that_of_the_pores():
    tile = noise((16, 16, 16), 4)
    # Mirrored and repeated, the ends of lines are like their middles, and cut off nothing.
    phase = np.tile(np.concatenate([tile, tile[::-1]]), (8, 1, 1))
    pores, grains = s2_directional(phase, 3)[0], s2_directional(1 - phase, 3)[0]
    np.testing.assert_allclose(grains, complement(pores), atol=5e-3)
    assert grains[0] == pytest.approx(complement(pores)[0], abs=1e-15)


def test_slope_surface_and_chords_of_a_straight_line():
    s2 = 0.3 - 0.02 * np.arange(5)
    assert interface_slope(s2) == pytest.approx(-0.02)
    assert specific_surface(s2) == pytest.approx(0.08)
    assert chord_means(s2) == pytest.approx((15.0, 35.0))
    assert kappa(s2)[0] == 1


def test_a_phase_without_interface_has_endless_chords():
    assert chord_means(np.full(5, 1.0)) == (math.inf, math.inf)
