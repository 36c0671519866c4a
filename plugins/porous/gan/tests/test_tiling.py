"""The union of tiles is the volume that the plain network makes, whatever the tiles, their order and the layers."""

import itertools

import numpy as np
import pytest
import torch
from headwater_porous_gan import tiling
from headwater_porous_gan.latents import Latents, philox
from headwater_porous_gan.networks import Generator, halos, phases, to_volume
from headwater_porous_gan.tiling import Folded, boxes, running_statistics, statistics
from torch.nn import functional as F


def made_generator(side, extra=0, nz=6, ngf=3, dtype=torch.float64, scale=8):
    torch.manual_seed(3)
    generator = Generator(side, nz, ngf, extra, biases=True).to(dtype).eval()
    for norm in generator.norms:
        norm.running_mean.normal_(0, 0.05)
        norm.running_var.uniform_(0.5, 1.5)
    for conv in generator.convs:
        conv.weight.data.mul_(scale)
    return generator


def plain(generator, z):
    """The published network, layer by layer with the layers of torch."""
    for k, conv in enumerate(generator.convs):
        z = conv(z)
        if k < len(generator.norms):
            z = torch.relu(generator.norms[k](z))
    return torch.tanh(z)


def union(folded, latents, cells, step, order=iter):
    f = folded.factor
    out = torch.full([n * f for n in cells], torch.nan, dtype=torch.float64)
    for low, high in order(list(boxes((0, 0, 0), cells, step))):
        where = tuple(slice(a * f, b * f) for a, b in zip(low, high, strict=True))
        out[where] = folded.tile(latents, low, high)[1:-1, 1:-1, 1:-1].double()
    return out


@pytest.mark.parametrize(("side", "extra"), [(8, 0), (16, 0), (32, 0), (64, 0), (8, 2), (16, 1), (32, 2)])
@pytest.mark.parametrize(("step", "widest"), [((3, 4, 2), 256), ((20, 20, 20), 256), ((20, 5, 20), 0)])
def test_tiles_equal_the_plain_network_in_float64(side, extra, step, widest, monkeypatch):
    monkeypatch.setattr(tiling, "SLAB", 300)  # several slabs in a tile
    monkeypatch.setattr(tiling, "WIDEST", widest)  # with and without minimal filtering
    generator, extent = made_generator(side, extra), (4, 3, 2)
    latents = Latents(6, 7, extent, dtype=torch.float64)
    with torch.no_grad():
        whole = plain(generator, latents.window((0, 0, 0), extent))
        torch.testing.assert_close(generator(latents.window((0, 0, 0), extent)), whole, rtol=0, atol=1e-12)
        folded = Folded(generator, running_statistics(generator), torch.float64)
        found = union(folded, latents, [n + 3 for n in extent], step, reversed)
    torch.testing.assert_close(found, whole[0, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("side", "extra"), [(8, 0), (16, 0), (32, 0), (32, 2)])
def test_the_interior_is_what_of_a_volume_sees_all_its_latents(side, extra):
    generator = made_generator(side, extra)
    z = torch.randn(1, 6, *(generator.rim + n for n in (3, 1, 2)), dtype=torch.float64)
    with torch.no_grad():
        found, whole = generator.interior(z), plain(generator, z)
    assert found.shape[2:] == tuple(n * generator.factor for n in (3, 1, 2))
    for axis, n in enumerate(found.shape[2:], start=2):
        whole = whole.narrow(axis, (whole.shape[axis] - n) // 2, n)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)


def test_tiles_equal_the_plain_network_in_float32_and_no_voxel_changes_phase():
    generator = made_generator(32, nz=16, ngf=8, dtype=torch.float32, scale=2)
    latents = Latents(16, 7, (5, 5, 5))
    with torch.no_grad():
        whole = plain(generator, latents.window((0, 0, 0), (5, 5, 5)))[0, 0].double()
        found = union(Folded(generator, running_statistics(generator)), latents, (8, 8, 8), (3, 4, 5))
    assert 0.05 < (whole > 0).double().mean() < 0.95
    assert (found - whole).abs().max() < 2e-6
    clear = whole.abs() > 1e-5
    assert torch.equal(found[clear] > 0, whole[clear] > 0)


def test_the_same_tile_has_the_same_bits_wherever_the_volume_begins():
    generator = made_generator(16, dtype=torch.float32)
    folded = Folded(generator, running_statistics(generator))
    field = Latents(6, 1)
    one = folded.tile(field, (-4, 2, 9), (0, 6, 13))
    torch.testing.assert_close(one, folded.tile(field, (-4, 2, 9), (0, 6, 13)), rtol=0, atol=0)
    wider = folded.tile(field, (-6, 1, 9), (2, 7, 14))
    f = folded.factor
    inside = wider[2 * f : 2 * f + one.shape[0], f : f + one.shape[1], : one.shape[2]]
    torch.testing.assert_close(inside, one, rtol=0, atol=2e-6)


def test_statistics_of_the_volume_give_the_train_mode_of_the_network():
    generator, extent = made_generator(32), (4, 6, 5)
    latents = Latents(6, 7, extent, dtype=torch.float64)
    cells = tuple(n + 3 for n in extent)
    with torch.no_grad():
        found = statistics(generator, latents, (0, 0, 0), cells, step=3)
        whole = generator.train()(latents.window((0, 0, 0), extent))[0, 0]
        tiles = union(Folded(generator, found, torch.float64), latents, cells, (4, 4, 4))
    torch.testing.assert_close(tiles, whole, rtol=0, atol=1e-11)


def test_a_period_repeats_and_a_roll_of_the_latents_rolls_the_volume():
    generator = made_generator(16)
    folded = Folded(generator, running_statistics(generator), torch.float64)
    table = torch.randn(6, 3, 4, 5, dtype=torch.float64)

    def volume(values):
        field = Latents(6, period=(3, 4, 5), table=values, dtype=torch.float64)
        return union(folded, field, (3, 4, 5), (2, 2, 2)), folded.tile(field, (0, 0, 0), (6, 4, 5))

    (one, twice), (rolled, _) = volume(table), volume(table.roll(1, 2))
    torch.testing.assert_close(twice[1 : 1 + one.shape[0], 1:-1, 1:-1], one, rtol=0, atol=1e-12)
    torch.testing.assert_close(twice[1 + one.shape[0] : -1, 1:-1, 1:-1], one, rtol=0, atol=1e-12)
    torch.testing.assert_close(rolled, one.roll(folded.factor, 1), rtol=0, atol=1e-12)


def test_a_window_of_the_endless_field_is_the_interior_of_a_published_volume():
    """Voxels from 4 F - 1 to the same distance from the end see all their latents."""
    generator = made_generator(16)
    latents = Latents(6, 5, (9, 9, 9), dtype=torch.float64)
    with torch.no_grad():
        whole = plain(generator, latents.window((0, 0, 0), (9, 9, 9)))[0, 0]
    folded = Folded(generator, running_statistics(generator), torch.float64)
    field = folded.tile(Latents(6, 5, dtype=torch.float64), (0, 0, 0), (12, 12, 12))[1:-1, 1:-1, 1:-1]
    margin = 4 * folded.factor - 1
    inner = slice(margin, -margin)
    torch.testing.assert_close(field[inner, inner, inner], whole[inner, inner, inner], rtol=0, atol=1e-12)
    wider = slice(margin - 1, -margin)
    assert (field[wider, inner, inner] - whole[wider, inner, inner]).abs().max() > 1e-9


def test_halos_by_brute_force():
    """One latent cell changes exactly the voxels that the halos say."""
    for side, extra in itertools.product((8, 16, 32), (0, 1, 2)):
        generator = made_generator(side, extra, nz=1, ngf=2)
        table = torch.zeros(1, 15, 15, 15, dtype=torch.float64)
        folded = Folded(generator, running_statistics(generator), torch.float64)
        field = Latents(1, table=table, dtype=torch.float64)
        touched = Latents(1, table=table.clone(), dtype=torch.float64)
        touched.table[0, 7, 7, 7] = 3.0
        assert folded.halos == halos(generator.m, extra)
        low, high = (6, 6, 6), (11, 11, 11)
        before, after = folded.tile(field, low, high), folded.tile(touched, low, high)
        assert (before - after).abs().max() > 0


def test_phases_are_the_transposed_convolution():
    x, weight = torch.randn(2, 5, 3, 4, 5, dtype=torch.float64), torch.randn(5, 2, 4, 4, 4, dtype=torch.float64)
    plain_result = F.conv_transpose3d(x, weight, stride=2, padding=1)
    eight = torch.stack([F.conv3d(x, w, padding=1) for w in phases(weight)])
    for b0, b1, b2 in itertools.product((0, 1), repeat=3):
        for p, q, r in itertools.product(range(3), range(4), range(5)):
            voxel = [2 * v - 1 + b for v, b in zip((p, q, r), (b0, b1, b2), strict=True)]
            if min(voxel) >= 0:
                torch.testing.assert_close(eight[4 * b0 + 2 * b1 + b2, :, :, p, q, r], plain_result[:, :, *voxel])
    torch.testing.assert_close(to_volume(x, weight[:, :1], None), plain_result[:, :1])


# Latents


def test_philox_gives_the_known_answers():
    """The three vectors that are published with Random123."""
    known = (
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (1 << 64) - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0xA4093822 | 0x299F31D0 << 32,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    )
    for counter, key, answer in known:
        found = philox(tuple(torch.tensor([c]) for c in counter), key)
        assert tuple(int(word) for word in found) == answer


def test_latents_depend_on_the_place_alone():
    field = Latents(10, 99)
    whole = field.window((-3, -2, 5), (4, 6, 9))
    for low, high in boxes((-3, -2, 5), (4, 6, 9), (2, 3, 1)):
        where = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, (-3, -2, 5), strict=True))
        assert torch.equal(field.window(low, high), whole[(slice(None), slice(None), *where)])
    assert torch.equal(Latents(6, 99).window((0, 0, 0), (2, 2, 2)), field.window((0, 0, 0), (2, 2, 2))[:, :6])
    assert not torch.equal(Latents(10, 98).window((-3, -2, 5), (4, 6, 9)), whole)


def test_latents_are_normal_and_independent():
    found = Latents(32, 4).window((0, 0, 0), (20, 20, 20))[0].double().numpy()
    assert abs(found.mean()) < 0.01
    assert found.std() == pytest.approx(1, abs=0.01)
    assert (found**4).mean() == pytest.approx(3, abs=0.06)
    flat = found.reshape(32, -1)
    between = np.corrcoef(flat) - np.eye(32)
    assert np.abs(between).max() < 0.06
    for axis in (1, 2, 3):
        assert abs((found * np.roll(found, 1, axis)).mean()) < 0.01
