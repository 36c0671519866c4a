import math

import pytest
import torch
from headwater_vision_lzn.flow import forward_flow, reverse_flow
from headwater_vision_lzn.objective import alignment_losses, class_log_weights, flow_loss, late, straight_line


def test_losses_are_those_of_a_plain_loop():
    log_p = torch.randn(12, 5, dtype=torch.float64).abs().neg()
    best = [max(float(log_p[k, i]) for k in range(2, 12)) for i in range(5)]
    ce, probability = alignment_losses(log_p, 0.2)
    assert float(ce) == pytest.approx(-sum(best) / 5)
    assert float(probability) == pytest.approx(-sum(map(math.exp, best)) / 5)


@pytest.mark.parametrize(("n", "c", "first"), [(20, 0.2, 4), (12, 0.2, 2), (100, 0.29, 29), (5, 0.0, 0), (40, 0.2, 8)])
def test_the_first_steps_are_dropped(n, c, first):
    log_p = -torch.arange(n, dtype=torch.float64)[:, None]
    assert float(late(log_p, c)) == -first


def test_far_anchors_have_a_finite_loss():
    anchors = torch.tensor([[0.0, 0.0], [400.0, 0.0]])
    back = reverse_flow(torch.zeros(1, 2), anchors, solver="euler", steps=20, targets=torch.tensor([1]))
    ce, _ = alignment_losses(back.log_targets, 0.2)
    assert float(back.log_targets[-1].exp()) == 0
    assert torch.isfinite(ce)


def test_losses_do_not_change_when_anchors_and_prior_are_turned_together():
    g = torch.Generator().manual_seed(0)
    a, b, z = (torch.randn(8, 5, generator=g, dtype=torch.float64) for _ in range(3))
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64)).Q
    found = []
    for r in (torch.eye(5, dtype=torch.float64), turn):
        latents = forward_flow(a @ r, a @ r, 0.45 * z @ r, solver="euler", steps=20)
        back = reverse_flow(latents, b @ r, solver="euler", steps=20, targets=torch.arange(8))
        found.append(torch.stack(alignment_losses(back.log_targets, 0.2)))
    torch.testing.assert_close(found[0], found[1], atol=1e-8, rtol=0)


def test_class_weights_are_shares():
    found = class_log_weights(torch.tensor([0, 3, 3, 1]), 5)
    torch.testing.assert_close(found.exp(), torch.tensor([0.25, 0.25, 0.0, 0.5, 0.0]))


def test_regression_of_the_exact_velocity_is_zero():
    x, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0.0, 0.5, 1.0])
    path = straight_line(x, noise, t)
    torch.testing.assert_close(path[0], noise[0])
    torch.testing.assert_close(path[1], (x[1] + noise[1]) / 2)
    torch.testing.assert_close(path[2], x[2])
    assert float(flow_loss(x - noise, x, noise)) == 0
    assert float(flow_loss(x - noise + 2, x, noise)) == pytest.approx(4)
