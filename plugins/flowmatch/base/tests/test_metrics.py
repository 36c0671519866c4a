import pytest
import torch
from headwater_flow.couplings import assign, squared_distance
from headwater_flow.rectify import reflow_pairs

pytest.importorskip("ot", reason="distances between clouds go through POT")
pytest.importorskip("sklearn", reason="kernels come from scikit-learn")

from headwater_flow.metrics import (
    GAMMAS,
    mmd,
    normalised_path_energy,
    path_energy,
    sliced_wasserstein,
    straightness,
    wasserstein,
)


def clouds():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 2, generator=generator), torch.randn(30, 2, generator=generator) + 1


def test_a_shifted_cloud_is_as_far_as_the_shift():
    a, _ = clouds()
    shift = torch.tensor([3.0, -4.0])
    assert wasserstein(a, a + shift) == pytest.approx(5, abs=1e-6)
    assert wasserstein(a, a + shift, 1) == pytest.approx(5, abs=1e-6)
    assert sliced_wasserstein(a, a) == pytest.approx(0, abs=1e-6)


def test_w2_of_equal_clouds_is_that_of_the_assignment():
    a, b = (c.double() for c in clouds())
    cost = squared_distance(a, b)
    mean = cost[torch.arange(30), assign(cost)].mean()
    assert wasserstein(a, b) ** 2 == pytest.approx(float(mean), rel=1e-9)


def test_mmd_equals_a_plain_loop():
    a, b = (c.double()[:7] for c in clouds())

    def mean_kernel(x, y, gamma):
        return sum(float(torch.exp(-gamma * (p - q).square().sum())) for p in x for q in y) / (len(x) * len(y))

    each = [mean_kernel(a, a, g) + mean_kernel(b, b, g) - 2 * mean_kernel(a, b, g) for g in GAMMAS]
    assert mmd(a, b) == pytest.approx(sum(each) / len(each), rel=1e-9)
    assert mmd(a, a) == pytest.approx(0, abs=1e-12)


def test_a_translation_is_optimal_and_straight_and_a_detour_is_not():
    a, _ = clouds()
    shift = torch.tensor([3.0, 4.0])
    energy = path_energy(lambda t, x: shift.expand_as(x), a)
    assert energy == pytest.approx(25, rel=1e-5)
    assert normalised_path_energy(energy, wasserstein(a, a + shift)) == pytest.approx(0, abs=1e-5)

    def detour(t, x):
        return shift.expand_as(x) * 2 * t

    # E of the integral of (2 t)^2 is 4/3 of the straight way; that of (1 - 2 t)^2 is 1/3.
    assert path_energy(detour, a) == pytest.approx(25 * 4 / 3, rel=1e-3)
    assert straightness(detour, a) == pytest.approx(25 / 3, rel=1e-3)


def test_pairs_of_a_flow_are_its_ends():
    a, _ = clouds()
    x0, x1 = reflow_pairs(lambda t, x: -x, a, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x1, x0 * torch.exp(torch.tensor(-1.0)), rtol=1e-4, atol=1e-5)
