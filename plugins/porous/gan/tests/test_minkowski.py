"""Minkowski functionals against solids of known shape, skimage, a count of cells, and the published surface."""

import math
from pathlib import Path

import numpy as np
import pytest
from headwater_porous_gan.physics import minkowski as module
from headwater_porous_gan.physics.minkowski import C1, C2, C3, configurations, functionals, minkowski
from skimage.measure import euler_number

DATA = next(
    (p / "shared/data/porous-gan" for p in Path(__file__).resolve().parents if (p / "shared/data/porous-gan").is_dir()),
    Path("shared/data/porous-gan"),
)


def noise(shape, seed=0, porosity=0.4):
    return (np.random.default_rng(seed).random(shape) > porosity).astype(np.uint8)


def grid(half):
    axis = np.arange(-half, half + 1)
    return np.meshgrid(axis, axis, axis, indexing="ij")


def ball(radius, half=None):
    z, y, x = grid(half or radius + 2)
    return (z * z + y * y + x * x <= radius * radius).astype(np.uint8)


def torus(major, minor):
    z, y, x = grid(major + minor + 2)
    return ((np.sqrt(y * y + x * x) - major) ** 2 + z * z <= minor * minor).astype(np.uint8)


def shell():
    outer = ball(20)
    inner = ball(10, 22)
    return outer - inner


def drilled():
    solid = ball(12)
    solid[:, 13:16, 13:16] = 0
    return solid


def two_balls():
    return np.concatenate([ball(6), ball(6)], axis=1)


@pytest.mark.parametrize(
    ("solid", "euler"), [(ball(10), 1), (torus(12, 4), 0), (shell(), 2), (drilled(), 0), (two_balls(), 2)]
)
def test_euler_number_of_solids(solid, euler):
    found = minkowski(solid)
    assert found.euler6 == euler
    assert found.euler26 == euler


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("porosity", [0.2, 0.5, 0.8])
def test_padded_euler_number_equals_skimage(seed, porosity):
    phase = np.pad(noise((9, 11, 8), seed, porosity), 1)
    found = minkowski(phase)
    assert found.euler6 == euler_number(phase, connectivity=1)
    assert found.euler26 == euler_number(phase, connectivity=3)


def test_euler_number_equals_a_count_of_cells():
    """Grains by all contacts are a union of closed cubes: vertices - edges + faces - cubes."""
    phase = np.pad(noise((6, 7, 5), 9), 1).astype(bool)
    total = 0
    for extra in np.ndindex(2, 2, 2):  # along an axis with 1, cells lie between two voxels
        touched = np.zeros([n - e for n, e in zip(phase.shape, extra, strict=True)], bool)
        for shift in np.ndindex(*[e + 1 for e in extra]):
            touched |= phase[tuple(slice(s, s + n) for s, n in zip(shift, touched.shape, strict=True))]
        total += (-1) ** (3 - sum(extra)) * int(touched.sum())
    assert minkowski(phase.astype(np.uint8)).euler26 == total


def test_a_phase_and_its_complement_share_the_interface():
    phase = noise((8, 8, 8), 1)
    a, b = minkowski(phase), minkowski(1 - phase)
    assert a.surface == pytest.approx(b.surface)
    assert a.faces == b.faces
    assert a.volume + b.volume == a.cells
    assert a.euler26 == b.euler6
    h = configurations(phase)
    assert (configurations(1 - phase) == h[::-1]).all()


@pytest.mark.parametrize(("radius", "error"), [(10, 0.028), (20, 0.009), (40, 0.004)])
def test_ball(radius, error):
    found = minkowski(ball(radius))
    assert found.volume == ball(radius).sum()
    assert found.surface == pytest.approx(4 * math.pi * radius**2, rel=0.006)
    assert found.breadth / (2 * radius) - 1 == pytest.approx(error, abs=5e-4)


def test_shell_has_the_breadth_of_its_outer_less_its_inner_ball():
    assert minkowski(shell()).breadth == pytest.approx(19.8, abs=0.06)


def test_a_plane_has_its_area():
    phase = np.zeros((10, 21, 31), np.uint8)
    phase[5:] = 1
    found = minkowski(phase)
    assert found.faces == 20 * 30
    assert found.surface == pytest.approx(20 * 30 * 2 * (C1 + 4 * C2 / math.sqrt(2) + 4 * C3 / math.sqrt(3)), rel=1e-12)
    assert found.surface == pytest.approx(20 * 30, rel=0.1)
    assert found.euler6 == found.euler26 == 0
    assert abs(found.breadth) < 1e-12


def test_weights_of_the_directions_share_the_sphere():
    total = 3 * C1 + 6 * C2 + 4 * C3
    assert total == pytest.approx(1, abs=1e-8)


def test_faces_are_unlike_neighbours():
    phase = np.pad(noise((6, 7, 8), 5), 1)
    unlike = sum(np.count_nonzero(np.diff(phase.astype(int), axis=a)) for a in range(3))
    assert minkowski(phase).faces == unlike


def test_histograms_of_tiles_with_a_shared_plane_add_up(monkeypatch):
    phase = noise((20, 17, 13))
    whole = configurations(phase)
    assert whole.sum() == 19 * 16 * 12
    assert (configurations(phase[:8]) + configurations(phase[7:]) == whole).all()
    assert (configurations(phase[:, :5]) + configurations(phase[:, 4:]) == whole).all()
    monkeypatch.setattr(module, "BLOCK", 3 * 17 * 13)
    assert (configurations(phase) == whole).all()


def test_published_surface_of_berea():
    corner = DATA / "berea_200_corner.npz"
    if not corner.exists():
        pytest.skip("the published corner is not here")
    found = minkowski(np.load(corner)["grain"])
    assert found.surface == pytest.approx(660561.777, abs=0.01)
    assert (found.euler6, found.euler26) == (-579.0, -583.5)


def test_a_single_page_has_no_configuration():
    assert functionals(configurations(noise((1, 5, 5)))).cells == 0
