import doctest
import importlib

import pytest
import torch
from headwater_flow_meta.evaluation import correlation_of_correlations, feature_errors, scores
from headwater_flow_meta.flow import f_loss, flow_loss, g_loss, ideal_shift, interpolate, mean_shift, time_features


@pytest.mark.parametrize("name", ["flow", "networks", "tasks.files", "tasks.organoids"])
def test_the_examples_in_the_documentation_hold(name):
    assert doctest.testmod(importlib.import_module(f"headwater_flow_meta.{name}")).failed == 0


def test_time_features_at_the_start_are_zeros_and_ones():
    assert time_features(torch.zeros(()), 8).tolist() == [0.0] * 4 + [1.0] * 4


def test_the_published_loss_differs_by_the_constant_only():
    generator = torch.Generator().manual_seed(0)
    b, x0, x1 = torch.randn(3, 2, 5, 4, generator=generator, dtype=torch.float64)
    b.requires_grad_()
    published = (b.square().sum(2) - 2 * (b * (x1 - x0)).sum(2)).mean()
    ours = flow_loss(b, x0, x1)
    torch.testing.assert_close(ours, published + (x1 - x0).square().sum(2).mean())
    torch.testing.assert_close(*(torch.autograd.grad(v, b)[0] for v in (ours, published)))


def test_padding_has_no_part_in_the_loss():
    x0, x1 = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    v = torch.zeros(2, 3, 2)
    v[1, 1:] = 1e6
    assert float(flow_loss(v, x0, x1, mask)) == pytest.approx(2.0)


def test_every_point_has_its_own_time():
    t = torch.tensor([[0.0, 0.5, 1.0]])
    assert interpolate(t, torch.zeros(1, 3, 1), torch.ones(1, 3, 1)).ravel().tolist() == [0.0, 0.5, 1.0]


def test_losses_of_cellot_equal_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    fm, ft = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    x0, moved = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    g = sum(float(fm[i]) - sum(float(x0[i, d] * moved[i, d]) for d in range(3)) for i in range(6)) / 6
    assert float(g_loss(fm, x0, moved, torch.tensor(0.5))) == pytest.approx(g + 0.5)
    assert float(f_loss(fm, ft)) == pytest.approx(sum(float(ft[i] - fm[i]) for i in range(6)) / 6)


def test_shifts_move_the_mean_and_nothing_else():
    x, target, training = torch.randn(9, 2), torch.randn(7, 2) + 3, torch.randn(50, 2) - 2
    torch.testing.assert_close(ideal_shift(x, target).mean(0), target.mean(0))
    torch.testing.assert_close(mean_shift(x, training).mean(0), training.mean(0))
    torch.testing.assert_close(ideal_shift(x, target) - x, (target.mean(0) - x.mean(0)).expand(9, 2))


def test_a_cloud_is_at_no_distance_from_itself():
    x = torch.randn(30, 4)
    found = scores(x, x[torch.randperm(30)], 100)
    assert found.pop("r2") == pytest.approx(1.0)
    assert all(abs(v) < 1e-6 for v in found.values())


def test_the_median_is_the_lower_of_the_middle_two():
    a, b = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.zeros(3, 1)
    assert feature_errors(a, b)["median_l1"] == 1.0


def test_r2_is_left_out_where_it_has_no_value():
    flat = torch.randn(20, 3)
    flat[:, 1] = 0.0
    assert correlation_of_correlations(flat, flat) != correlation_of_correlations(flat, flat)  # NaN
    assert "r2" not in scores(torch.randn(9, 2), torch.randn(9, 2), 10)
