"""Losses, pairing and geometry against loops and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from headwater_flow_tsgen.batch import buckets, collate, fragments_of, place
from headwater_flow_tsgen.flow import PATHS, central, noise, pair, path_of, times
from headwater_flow_tsgen.geometry import align, bonds, centre, components, distance_mae, midpoint, mirror, rmsd
from headwater_flow_tsgen.objective import flow_loss, mean_over_atoms, variance_loss
from headwater_flow_tsgen.tasks.reaction import Reaction
from scipy.spatial.transform import Rotation

RNG = np.random.default_rng(0)


def velocities():
    generator = torch.Generator().manual_seed(0)
    v, u = torch.randn(2, 3, 5, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [3], [2]])
    return v, u, t, mask


def loss_of_one_atom(kind, v, u, t):
    """The definitions, component by component."""
    p = [math.exp(-((t * b) ** 2) / 2) for b in u]
    q = [math.exp(-((t * a) ** 2) / 2) for a in v]
    l1 = sum(abs(a - b) for a, b in zip(v, u, strict=True)) / 3
    if kind == "l1":
        return l1
    if kind == "l2":
        return sum(0.5 * a * a - a * b for a, b in zip(v, u, strict=True)) / 3
    if kind == "symm":
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        return 0.5 * sum(a * math.log(a / c) + b * math.log(b / c) for a, b, c in zip(p, q, m, strict=True))
    if kind == "alpha":
        mixed = sum(a**0.3 * b**0.7 for a, b in zip(p, q, strict=True))
        return 0.1 * (1 - mixed) / (0.3 * (0.3 - 1)) + l1
    if kind == "reverse":
        return 0.3 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)) / 3 + l1
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3 + l1


@pytest.mark.parametrize("kind", ["l1", "l2", "symm", "alpha", "reverse", "forward"])
def test_losses_equal_their_definitions(kind):
    v, u, t, mask = velocities()
    found = flow_loss(v, u, t, kind, mask)
    for b, n in enumerate((5, 3, 2)):
        each = [loss_of_one_atom(kind, v[b, i].tolist(), u[b, i].tolist(), float(t[b])) for i in range(n)]
        assert float(found[b]) == pytest.approx(sum(each) / n, rel=1e-12)


def test_the_first_generations_loss_is_half_the_squared_error_less_a_constant():
    v, u, t, _ = velocities()
    expected = 0.5 * mean_over_atoms((v - u).square()) - 0.5 * mean_over_atoms(u.square())
    torch.testing.assert_close(flow_loss(v, u, t, "l2"), expected)
    assert float(flow_loss(u, u, t, "l2").max()) < 0


def test_the_variance_loss_goes_over_all_pairs():
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(5, 3, 4, 3, generator=generator, dtype=torch.float64)
    pairs = [1 - torch.cosine_similarity(v[i], v[j], dim=-1) for i, j in itertools.combinations(range(5), 2)]
    torch.testing.assert_close(variance_loss(v), torch.stack(pairs).mean(0).mean(-1))
    assert float(variance_loss(v[:1].expand(5, -1, -1, -1)).abs().max()) < 1e-12


@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_is_the_slope_of_the_path(name):
    path = path_of(name)
    x0, x1 = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64)
    _, slope = torch.func.jvp(lambda s: path.mean(s, x0, x1), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(path.velocity(t, x0, x0, x1), slope, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.mean(torch.ones(4), x0, x1), x1, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "spread"), [("uniform", 1 / 12), ("beta", 1 / (4 * (2 * 0.8 + 1)))])
def test_times_have_the_variance_of_their_distribution(kind, spread):
    t = times(4000, kind, "linear", torch.Generator().manual_seed(0))
    assert float(t.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(t.var()) == pytest.approx(spread, rel=0.01)
    assert 0 < float(t.min()) < float(t.max()) < 1


def test_alignment_equals_scipy_and_is_proper():
    for _ in range(20):
        a, b = RNG.normal(size=(2, 6, 3))
        a, b = a - a.mean(0), b - b.mean(0)
        rotation, distance = Rotation.align_vectors(b, a)
        found = align(torch.from_numpy(a + 3.0), torch.from_numpy(b - 1.0)).numpy()
        np.testing.assert_allclose(found, rotation.apply(a), atol=1e-6)
        value = float(rmsd(torch.from_numpy(a), torch.from_numpy(b)))
        assert value == pytest.approx(distance / math.sqrt(6), abs=1e-6)
        matrix = np.linalg.lstsq(a, found, rcond=None)[0]
        assert np.linalg.det(matrix) == pytest.approx(1.0, abs=1e-6)


def test_a_mirror_image_is_only_free_where_it_is_asked_for():
    x = torch.from_numpy(RNG.normal(size=(1, 7, 3)))
    turned = mirror(x) @ torch.from_numpy(Rotation.random(rng=3).as_matrix())
    assert float(rmsd(turned, x, reflect=True)) < 1e-7
    assert float(rmsd(turned, x)) > 0.1


def test_masked_geometry_is_that_of_the_molecule_alone():
    a, b = torch.from_numpy(RNG.normal(size=(2, 2, 6, 3)))
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    for measure in (rmsd, distance_mae):
        found = measure(a, b, mask)
        assert float(found[1]) == pytest.approx(float(measure(a[1:, :4], b[1:, :4])), rel=1e-12)
    torch.testing.assert_close(midpoint(a, b, mask)[1:, :4], midpoint(a[1:, :4], b[1:, :4]))
    assert (centre(a, mask)[1, 4:] == 0).all()


def test_distance_mae_goes_over_pairs():
    a, b = torch.from_numpy(RNG.normal(size=(2, 4, 3)))
    pairs = [abs((a[i] - a[j]).norm() - (b[i] - b[j]).norm()) for i, j in itertools.combinations(range(4), 2)]
    assert float(distance_mae(a, b)) == pytest.approx(float(sum(pairs)) / 6, rel=1e-12)


def test_pairing_shortens_the_way_and_keeps_the_points():
    generator = torch.Generator().manual_seed(3)
    x0, x1 = torch.randn(2, 3, 6, 3, generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [6], [4]])
    x0, x1 = x0 * mask.unsqueeze(-1), x1 * mask.unsqueeze(-1)
    a, b = pair(x0, x1, mask, "atoms")
    assert torch.equal(b, x1)
    for i, n in enumerate((6, 6, 4)):
        assert sorted(a[i, :n].tolist()) == sorted(x0[i, :n].tolist())
        best = min(
            float((x0[i, list(p)] - x1[i, :n]).square().sum()) for p in itertools.permutations(range(n))
        )  # fmt: skip
        assert float((a[i, :n] - x1[i, :n]).square().sum()) == pytest.approx(best, rel=1e-5)
    a, b = pair(x0, centre(x1, mask), mask, "rotation")
    assert torch.equal(a, x0)
    assert ((a - b).square().sum((1, 2)) <= (x0 - centre(x1, mask)).square().sum((1, 2)) + 1e-5).all()
    torch.testing.assert_close(torch.cdist(b, b), torch.cdist(centre(x1, mask), centre(x1, mask)), atol=1e-3, rtol=0)


def test_the_central_guess_is_the_one_nearest_to_the_others():
    x = torch.from_numpy(RNG.normal(size=(1, 1, 5, 3))).repeat(1, 4, 1, 1)
    x = x + 0.1 * torch.from_numpy(RNG.normal(size=x.shape))
    x[0, 2] += 3 * torch.from_numpy(RNG.normal(size=(5, 3)))
    apart = torch.stack([torch.stack([rmsd(a, b) for b in x[0]]) for a in x[0]])
    chosen, spread, mean = central(x)
    best = int(apart.sum(1).argmin())
    torch.testing.assert_close(chosen[0], x[0, best])
    assert float(mean) == pytest.approx(float(apart[best].sum()) / 3, rel=1e-9)
    others = [align(y, x[0, best]) - centre(x[0, best]) for y in x[0]]
    expected = (torch.stack(others).square().sum(-1).sum(0) / 3).sqrt()
    torch.testing.assert_close(spread[0], expected)
    one = central(x[:, :1])
    assert float(one[1].abs().max()) == float(one[2]) == 0.0


def molecule(n, shift=0.0):
    """A chain of carbons 1.5 A apart, with a gap of ``shift`` more before the last two."""
    x = np.zeros((n, 3))
    x[:, 0] = 1.5 * np.arange(n)
    x[-2:, 0] += shift
    x[:, 1] = 0.1 * np.arange(n) ** 2
    return x


def test_fragments_are_of_both_ends_or_of_the_ts():
    z = np.full(5, 6)
    whole, broken = molecule(5), molecule(5, shift=3.0)
    assert components(bonds(z, broken)).tolist() == [0, 0, 0, 1, 1]
    reaction = Reaction(z, broken, broken, whole)
    assert fragments_of(reaction, "rp").tolist() == [0, 0, 0, 1, 1]
    assert fragments_of(reaction, "official").tolist() == [0] * 5
    assert fragments_of(Reaction(z, broken, whole, broken), "rp").tolist() == [0] * 5


def test_noise_is_centred_where_asked_and_absent_at_padding():
    reactions = [Reaction(np.full(n, 6), molecule(n), molecule(n) + 1, molecule(n)) for n in (5, 3)]
    frames = place(collate(reactions, [1, 6, 7, 8]), "midpoint")
    a = noise(frames.start.shape, 0.5, torch.Generator().manual_seed(0), mask=frames.mask)
    assert float(a.sum(1).abs().max()) < 1e-5
    assert (a[1, 3:] == 0).all()
    b = noise(frames.start.shape, 0.5, torch.Generator().manual_seed(0), centred=False, mask=frames.mask)
    assert float(b.sum(1).abs().max()) > 1e-2
    assert (b[1, 3:] == 0).all()


def test_places_of_the_two_priors():
    x = RNG.normal(size=(5, 3)) * 2
    turn = Rotation.random(rng=1).as_matrix()
    reaction = Reaction(np.full(5, 6), x + 5, (x + 0.1) @ turn + 2, x @ turn.T - 3)
    for prior in ("midpoint", "noise"):
        frames = place(collate([reaction], [1, 6, 7, 8]), prior)
        for placed in (frames.reactant, frames.product, frames.ts):
            assert float(placed.mean(1).abs().max()) < 1e-5
            torch.testing.assert_close(placed, frames.reactant, atol=1e-4, rtol=0)
        expected = frames.reactant if prior == "midpoint" else torch.zeros_like(frames.ts)
        torch.testing.assert_close(frames.start, expected, atol=1e-4, rtol=0)


def test_buckets_hold_everything_once_and_waste_little():
    sizes = RNG.integers(4, 24, 300).tolist()
    groups = buckets(sizes, slack=1.2)
    assert sorted(i for group in groups for i in group) == list(range(300))
    for group in groups:
        own = [sizes[i] for i in group]
        assert len(own) * max(own) ** 2 <= 1.2 * sum(n * n for n in own)
    assert all(len(group) >= 40 for group in buckets(sizes, at_least=40))
