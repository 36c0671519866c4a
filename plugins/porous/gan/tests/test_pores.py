"""Porosity, connection, chords and thickness against plain code and the published effective porosity."""

import csv
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from headwater_porous_gan.physics import pores
from headwater_porous_gan.physics.pores import (
    chord_lengths,
    connected_porosity,
    local_thickness,
    mean_chord,
    percolating,
    porosity,
)

DATA = next(
    (p / "shared/data/porous-gan" for p in Path(__file__).resolve().parents if (p / "shared/data/porous-gan").is_dir()),
    Path("shared/data/porous-gan"),
)


def noise(shape, seed=0, share=0.4):
    return (np.random.default_rng(seed).random(shape) > share).astype(np.uint8)


def by_scipy(phase):
    labels, n = scipy.ndimage.label(phase == 0)
    found, every = [], set()
    for axis in range(3):
        ends = np.moveaxis(labels, axis, 0)
        through = (set(ends[0].ravel()) & set(ends[-1].ravel())) - {0}
        every |= through
        found.append(np.isin(labels, list(through)).mean())
    return tuple(found), np.isin(labels, list(every)).mean(), n


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("slab", [40, 200, 1 << 24])
def test_connection_equals_labels_of_the_whole(seed, slab, monkeypatch):
    monkeypatch.setattr(pores, "BLOCK", slab)
    phase = noise((11, 6, 7), seed, 0.36)
    found = connected_porosity(phase)
    axes, either, n = by_scipy(phase)
    assert found.axes == pytest.approx(axes, abs=1e-15)
    assert found.any == pytest.approx(either, abs=1e-15)
    assert found.components == n


def test_a_tunnel_connects_its_own_axis_only():
    phase = np.ones((5, 6, 7), np.uint8)
    phase[2, 3, :] = 0
    found = connected_porosity(phase)
    assert found.axes == (0, 0, pytest.approx(7 / 210))
    assert percolating(phase, 2).sum() == 7
    assert not percolating(phase, 0).any()


def test_all_grain_and_all_pore():
    assert connected_porosity(np.ones((4, 4, 4), np.uint8)) == pores.Connection((0.0, 0.0, 0.0), 0.0, 0)
    assert connected_porosity(np.zeros((4, 4, 4), np.uint8)) == pores.Connection((1.0, 1.0, 1.0), 1.0, 1)


def test_porosity_is_counted_in_slabs(monkeypatch):
    phase = noise((11, 6, 7))
    monkeypatch.setattr(pores, "BLOCK", 50)
    assert porosity(phase) == pytest.approx((phase == 0).mean(), abs=1e-15)


def test_effective_porosity_of_berea_as_published():
    if not (DATA / "berea_full_uint8.tif").exists():
        pytest.skip("the published scan is not here")
    tifffile = pytest.importorskip("tifffile")
    rows = csv.DictReader((DATA / "published_permeability.csv").open())
    known = {int(r["index"]): float(r["eff_porosity"]) for r in rows if (r["rock"], r["kind"]) == ("berea", "original")}
    assert known[0] == pytest.approx(0.205763)
    phase = tifffile.imread(DATA / "berea_full_uint8.tif")
    for index in (0, 1, 2, 5, 13):
        i, j, k = (128 * (index // n % 3) for n in (9, 3, 1))
        found = connected_porosity((phase[i : i + 128, j : j + 128, k : k + 128] > 0).astype(np.uint8))
        assert found.axes[2] == pytest.approx(known[index], abs=1e-6)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("slab", [60, 1 << 24])
def test_chords_equal_a_loop_over_lines(axis, slab, monkeypatch):
    monkeypatch.setattr(pores, "BLOCK", slab)
    phase = noise((8, 9, 10), axis)
    for value in (0, 1):
        counts = np.zeros(phase.shape[axis] - 1, int)
        for line in np.moveaxis(phase, axis, -1).reshape(-1, phase.shape[axis]):
            runs, start = [], 0
            for end in range(1, len(line) + 1):
                if end == len(line) or line[end] != line[start]:
                    runs.append((start, end, line[start]))
                    start = end
            for a, b, v in runs:
                if v == value and a > 0 and b < len(line):
                    counts[b - a] += 1
        assert (chord_lengths(phase, axis, value) == counts).all()


def test_mean_chord():
    assert mean_chord(np.array([0, 2, 0, 2])) == 2.0
    assert np.isnan(mean_chord(np.zeros(4, int)))


def test_local_thickness_of_a_ball_is_its_radius():
    pytest.importorskip("porespy")
    axis = np.arange(-24, 25)
    solid = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2 > 20**2).astype(np.uint8)
    radius = local_thickness(solid)
    assert radius.max() == pytest.approx(20, abs=0.5)
    assert radius[radius > 0].mean() == pytest.approx(20, abs=0.5)
    assert (radius[solid == 1] == 0).all()
