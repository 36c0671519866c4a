"""The latent flow: identities, closed forms, and a plain loop over differences in float64."""

import math

import numpy as np
import pytest
import torch
from headwater_vision_lzn.flow import (
    DPM_END,
    EULER_START,
    _Mean,
    dpm_steps,
    euler_steps,
    forward_flow,
    nearest,
    posterior,
    reverse_flow,
    velocity,
    with_bank,
)

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def plain_velocity(s, anchors, t, weights=None):
    """sum_j p_j (n_j - a_j) and p, one sample and one anchor at a time."""
    out, every = torch.zeros_like(s), []
    for i in range(len(s)):
        noises = [(s[i] - (1 - t) * a) / t for a in anchors]
        logs = [-0.5 * float(n @ n) + (0.0 if weights is None else math.log(weights[j])) for j, n in enumerate(noises)]
        top = max(logs)
        p = np.exp(np.array(logs) - top)
        p /= p.sum()
        for j, (n, a) in enumerate(zip(noises, anchors, strict=True)):
            out[i] += p[j] * (n - a)
        every.append(p)
    return out, torch.from_numpy(np.stack(every))


@pytest.mark.parametrize("t", [1e-4, 0.03, 0.4, 0.97, 1.0])
def test_attention_form_is_the_form_of_differences(t):
    anchors, s = normal(7, 5), normal(4, 5, seed=1)
    weights = [0.1, 0.3, 0.05, 0.2, 0.1, 0.2, 0.05]
    wanted, p = plain_velocity(s, anchors, t, weights)
    log_weights = torch.tensor(weights, dtype=F64).log()
    torch.testing.assert_close(velocity(s, anchors, t, log_weights) * t, wanted * t, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(posterior(s, anchors, t, log_weights)[0], p, atol=1e-8, rtol=0)


def plain_forward(anchors, start, prior, n):
    s, h, t = EULER_START * prior + (1 - EULER_START) * start, (1 - EULER_START) / n, EULER_START
    for _ in range(n):
        s = s + h * plain_velocity(s, anchors, t)[0]
        t += h
    return s


def test_forward_euler_is_the_plain_loop():
    anchors, prior = normal(9, 6), normal(4, 6, seed=1)
    found = forward_flow(anchors, anchors[:4], prior, solver="euler", steps=8)
    torch.testing.assert_close(found, plain_forward(anchors, anchors[:4], prior, 8), atol=1e-8, rtol=0)


def test_reverse_euler_is_the_plain_loop():
    anchors, s = normal(9, 6), normal(4, 6, seed=1)
    found = reverse_flow(s, anchors, solver="euler", steps=8, keep=True, targets=torch.tensor([0, 3, 8, 1]))
    for k in range(8):
        t = 1 - k / 8
        v, p = plain_velocity(s, anchors, t)
        torch.testing.assert_close(found.probabilities[k], p, atol=1e-8, rtol=0)
        torch.testing.assert_close(found.log_targets[k], p[range(4), [0, 3, 8, 1]].log(), atol=1e-8, rtol=1e-8)
        s = s - v / 8
    torch.testing.assert_close(found.final, s, atol=1e-8, rtol=0)


def plain_dpm(s, mean, times):
    """Multistep DPM-Solver++ (3) as the differences D1 and D2 have it, not as a sum over means."""
    lam = [math.log(1 / t - 1) for t in times]
    means = []
    for k in range(len(times) - 1):
        means.insert(0, mean(s, times[k]))
        h = lam[k + 1] - lam[k]
        alpha, ratio = 1 - times[k + 1], times[k + 1] / times[k]
        phi1 = math.expm1(-h)
        phi2 = phi1 / h + 1
        phi3 = phi2 / h - 0.5
        s = ratio * s - alpha * phi1 * means[0]
        if k == 1:
            s = s - 0.5 * alpha * phi1 * (means[0] - means[1]) / ((lam[k] - lam[k - 1]) / h)
        elif k > 1:
            r0, r1 = (lam[k] - lam[k - 1]) / h, (lam[k - 1] - lam[k - 2]) / h
            d10, d11 = (means[0] - means[1]) / r0, (means[1] - means[2]) / r1
            d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
            s = s + alpha * phi2 * d1 - alpha * phi3 * d2
    return s


def test_dpm_is_the_published_recursion():
    anchors, prior, n = normal(9, 6), normal(4, 6, seed=1), 11
    times = [DPM_END + (1 - 2 * DPM_END) * k / n for k in range(n + 1)]
    start = DPM_END * prior + (1 - DPM_END) * anchors[:4]
    wanted = plain_dpm(start, lambda s, t: s - t * plain_velocity(s, anchors, t)[0], times)
    found = forward_flow(anchors, anchors[:4], prior, solver="dpm", steps=n)
    torch.testing.assert_close(found, wanted, atol=1e-8, rtol=0)


def test_few_dpm_steps_end_at_lower_order():
    assert [len(s.mix) for s in dpm_steps(6, DPM_END, 1 - DPM_END)] == [1, 2, 3, 3, 2, 1]
    assert [len(s.mix) for s in dpm_steps(12, DPM_END, 1 - DPM_END)] == [1, 2, *[3] * 10]


def test_dpm_error_falls_at_least_with_the_square_of_the_steps():
    anchors, latents = normal(12, 4), normal(16, 4, seed=1)
    errors = []
    # Forward, from the middle of the path on, where the flow is smooth.
    exact = flow_between(anchors, latents, 0.4, 0.95, 1280)
    for n in (40, 160):
        errors.append(float((flow_between(anchors, latents, 0.4, 0.95, n) - exact).abs().max()))
    assert errors[0] / errors[1] > 4**1.9


def flow_between(anchors, s, start, stop, n):
    before = []
    for step in dpm_steps(n, start, stop):
        before = [posterior(s, anchors, step.t)[1], *before[:2]]
        s = step.keep * s + sum(w * m for w, m in zip(step.mix, before, strict=False))
    return s


def test_dpm_with_few_steps_is_nearer_to_fine_euler_than_euler_is():
    anchors, prior = normal(16, 8), normal(16, 8, seed=1)
    fine = forward_flow(anchors, anchors, prior, solver="euler", steps=2000)
    dpm = forward_flow(anchors, anchors, prior, solver="dpm", steps=20)
    euler = forward_flow(anchors, anchors, prior, solver="euler", steps=20)
    assert (dpm - fine).norm() < (euler - fine).norm()


def test_one_anchor_gives_the_prior():
    anchor, prior = normal(1, 5), normal(6, 5, seed=1)
    found = forward_flow(anchor, anchor.expand(6, -1), prior, solver="euler", steps=20)
    torch.testing.assert_close(found, prior, atol=1e-8, rtol=0)


def test_permuted_anchors_permute_the_probabilities():
    anchors, s, order = normal(7, 5), normal(4, 5, seed=1), torch.randperm(7)
    p, m = posterior(s, anchors, 0.3)
    again, same = posterior(s, anchors[order], 0.3)
    torch.testing.assert_close(again, p[:, order], atol=1e-12, rtol=0)
    torch.testing.assert_close(same, m, atol=1e-12, rtol=0)


def test_latents_of_many_draws_are_gaussian():
    anchors = normal(20, 4)
    rows = torch.randint(20, (100_000,), generator=torch.Generator().manual_seed(2))
    latents = forward_flow(anchors, anchors[rows], normal(100_000, 4, seed=3), solver="dpm", steps=20)
    assert float(latents.mean(0).abs().max()) < 0.02
    assert float((latents.std(0) - 1).abs().max()) < 0.02


def test_reverse_of_forward_returns_to_the_own_anchor():
    anchors, prior = normal(48, 16, dtype=torch.float32), normal(48, 16, seed=1, dtype=torch.float32)
    latents = forward_flow(anchors, anchors, prior, solver="dpm", steps=20)
    final = reverse_flow(latents, anchors, solver="dpm", steps=20).final
    assert torch.equal(nearest(final, anchors), torch.arange(48))
    assert float(((final - anchors).norm(dim=1) / anchors.norm(dim=1)).max()) < 0.005
    latents = forward_flow(anchors, anchors, prior, solver="euler", steps=400)
    back = nearest(reverse_flow(latents, anchors, solver="euler", steps=400).final, anchors)
    assert float((back == torch.arange(48)).float().mean()) > 0.95


def test_classes_tile_the_gaussian_by_their_weights():
    points, weights = normal(4, 3), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    final = reverse_flow(normal(40_000, 3, seed=1), points, solver="dpm", steps=30, log_weights=weights.log()).final
    share = torch.bincount(nearest(final, points), minlength=4) / 40_000
    torch.testing.assert_close(share.double(), weights, atol=0.01, rtol=0)


def test_a_class_that_is_absent_leaves_everything_finite():
    points, s = normal(4, 3).requires_grad_(), normal(6, 3, seed=1).requires_grad_()
    log_weights = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=F64).log()
    targets = torch.tensor([0, 2, 3, 0, 2, 3])
    back = reverse_flow(s, points, solver="euler", steps=10, log_weights=log_weights, targets=targets, keep=True)
    (back.log_targets.sum() + back.final.sum()).backward()
    assert torch.isfinite(points.grad).all()
    assert torch.isfinite(s.grad).all()
    assert float(back.probabilities[:, :, 1].max()) == 0
    # At t = 1 the probabilities are the weights.
    torch.testing.assert_close(back.log_targets[0], log_weights[targets], atol=1e-12, rtol=0)


def test_anchors_that_coincide_share_a_zone():
    anchors = torch.cat([normal(5, 4), normal(5, 4)[:1]])
    found = forward_flow(anchors, anchors[[0, 5]], normal(1, 4, seed=1).expand(2, -1), solver="euler", steps=20)
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("t", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("with_targets", [False, True])
def test_own_backward_is_the_derivative(t, with_targets):
    s, anchors = normal(5, 4).requires_grad_(), normal(6, 4, seed=1).requires_grad_()
    targets = torch.tensor([0, 5, 3, 3, 1]) if with_targets else None
    weights = normal(6, seed=2)

    def both(s, anchors):
        bias = anchors.detach().square().sum(1) * (-0.5 * ((1 - t) / t) ** 2) + weights
        m, q = _Mean.apply(s, anchors, bias, t, targets)
        return (m, q) if with_targets else m

    def by_torch(s, anchors):
        logs = weights - (s[:, None] - (1 - t) * anchors).square().sum(2) / (2 * t**2)
        m, q = logs.softmax(1) @ anchors, logs.log_softmax(1)
        return (m, q.gather(1, targets[:, None])[:, 0]) if with_targets else m

    # The bias is handed over without a gradient, so a numerical derivative would miss it: torch's own form has all.
    wanted, found = by_torch(s, anchors), both(s, anchors)
    parts = zip(wanted, found, strict=True) if with_targets else [(wanted, found)]
    for a, b in parts:
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
        g = normal(*a.shape, seed=3)
        for x, y in zip(
            torch.autograd.grad(a, [s, anchors], g, retain_graph=True),
            torch.autograd.grad(b, [s, anchors], g, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(x, y, atol=1e-10, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "dpm"])
def test_gradient_through_the_whole_flow_is_the_numerical_one(solver):
    anchors, prior, second = normal(5, 3) * 0.5, normal(5, 3, seed=1), normal(5, 3, seed=2) * 0.5

    def there_and_back(a, b):
        latents = forward_flow(a, a[:3], prior[:3], solver=solver, steps=5)
        back = reverse_flow(latents, b, solver=solver, steps=5, targets=torch.tensor([1, 0, 2]))
        return back.log_targets[1:], back.final

    inputs = (anchors.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(there_and_back, inputs, eps=1e-7, atol=1e-4, rtol=1e-4)


def test_float32_is_near_float64():
    anchors, prior = normal(64, 32), normal(64, 32, seed=1)
    for solver in ("euler", "dpm"):
        exact = forward_flow(anchors, anchors, prior, solver=solver)
        single = forward_flow(anchors.float(), anchors.float(), prior.float(), solver=solver)
        assert single.dtype == torch.float32
        assert float((single - exact).abs().max()) < 1e-4


def test_gradient_in_float32_is_near_that_in_float64():
    found = {}
    for dtype in (torch.float32, F64):
        a = (0.1 * normal(32, 16)).to(dtype).requires_grad_()
        b = (0.1 * normal(32, 16) + 0.1 * normal(32, 16, seed=5)).to(dtype).requires_grad_()
        latents = forward_flow(a, a, 0.45 * normal(32, 16, seed=1).to(dtype), solver="euler")
        back = reverse_flow(latents, b, solver="euler", targets=torch.arange(32))
        back.log_targets[4:].amax(0).mean().backward()
        found[dtype] = torch.cat([a.grad, b.grad]).double()
    assert float((found[torch.float32] - found[F64]).norm() / found[F64].norm()) < 1e-3


def test_with_a_bank_a_latent_does_not_depend_on_its_batch():
    own, bank, prior = normal(5, 4), normal(9, 4, seed=1), normal(5, 4, seed=2)
    found = with_bank(own, bank, prior, solver="euler", steps=12)
    for i in range(5):
        alone = forward_flow(
            torch.cat([bank, own[i : i + 1]]), own[i : i + 1], prior[i : i + 1], solver="euler", steps=12
        )
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-8, rtol=0)


def test_euler_steps_reach_the_end():
    steps = euler_steps(20, 1.0, 0.0)
    assert steps[0].t == 1
    assert steps[-1].keep == pytest.approx(0, abs=1e-12)
