"""Losses in float64 against plain loops."""

import math

import pytest
import torch
from headwater_bfn.schedule import von_mises_schedule
from headwater_bfn_crys import objective

N = 8


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_of_cells():
    cell, estimate, i, sigma1 = random(3, 3, 3), random(3, 3, 3, seed=1), torch.tensor([1, 5, 8]), 0.05
    expected = 0.0
    for b in range(3):
        weight = N * (1 - sigma1 ** (2 / N)) / (2 * sigma1 ** (2 * int(i[b]) / N))
        expected += sum(weight * float(cell[b, p, q] - estimate[b, p, q]) ** 2 for p in range(3) for q in range(3))
    assert float(objective.lattice_loss(cell, estimate, i, N, sigma1)) == pytest.approx(expected / 27)


@pytest.mark.parametrize("distance", ["wrapped-square", "cosine"])
def test_the_loss_of_coordinates(distance):
    x, estimate = 3 * random(4, 3), 3 * random(4, 3, seed=1)
    alpha = von_mises_schedule(N)[0][[0, 3, 7, 7]]
    expected = 0.0
    for v in range(4):
        a = float(alpha[v])
        resultant = float(torch.special.i1e(alpha[v]) / torch.special.i0e(alpha[v]))
        for axis in range(3):
            d = float(x[v, axis] - estimate[v, axis])
            nearest = min((d + 2 * math.pi * k) ** 2 for k in range(-10, 11))
            expected += N * a * resultant * (nearest if distance == "wrapped-square" else 1 - math.cos(d))
    found = objective.coordinate_loss(x, estimate, alpha, N, distance)
    assert float(found) == pytest.approx(expected / 12)


def test_both_distances_agree_near_the_truth_up_to_the_factor_2():
    x, alpha = torch.zeros(1, 1).double(), torch.tensor([5.0]).double()
    square, cosine = (float(objective.coordinate_loss(x, x + 1e-3, alpha, N, d)) for d in ("wrapped-square", "cosine"))
    assert square / cosine == pytest.approx(2, rel=1e-5)


def test_the_mean_weight_is_the_mean_over_all_messages():
    alpha = von_mises_schedule(N)[0]
    x = torch.zeros(1, 1).double()
    each = [float(objective.coordinate_loss(x, x + 1.0, a.view(1), N, "wrapped-square")) for a in alpha]
    assert objective.mean_weight(alpha) == pytest.approx(sum(each) / N)


def test_the_loss_of_types():
    types, logits, i, beta1, k = torch.tensor([2, 0]), random(2, 4), torch.tensor([3, 1]), 0.7, 4
    expected = 0.0
    for v in range(2):
        p = [math.exp(float(logits[v, c])) for c in range(k)]
        p = [value / sum(p) for value in p]
        expected += k * beta1 * (int(i[v]) - 1) / N * sum((float(c == types[v]) - p[c]) ** 2 for c in range(k))
    assert float(objective.type_loss(types, logits, i, N, beta1)) == pytest.approx(expected / 2)


def test_one_type_costs_nothing():
    found = objective.type_loss(torch.zeros(3, dtype=torch.long), torch.randn(3, 1), torch.tensor([1, 4, 8]), N, 0.5)
    assert float(found) == 0


def test_the_interval_weighs_a_small_error_in_radians_as_the_torus_does():
    """The sums over all messages of both weights are those of a total accuracy of about beta1."""
    x, i = torch.zeros(N, 1).double(), torch.arange(1, N + 1)
    found = objective.interval_loss(x, x + 0.01, i, N, 1000.0)
    assert float(found) == pytest.approx(1000.0 * 0.01**2, rel=1e-6)
    assert objective.interval_sigma1(1000.0) ** -2 - 1 == pytest.approx(1000 * math.pi**2)
