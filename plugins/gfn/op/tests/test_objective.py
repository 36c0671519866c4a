"""The order losses: hand values, invariances, plain loops, and what holds at their minimum."""

import math
from itertools import pairwise

import pytest
import torch
from headwater_gfn.objective import valid_transitions
from headwater_gfn_op.objective import (
    backward_kl,
    dominates,
    learned_log_reward,
    non_dominated,
    op_detailed_balance,
    op_flow_matching,
    op_sub_trajectory_balance,
    order_loss,
    pair_loss,
    pair_target,
    pairs,
    pareto,
    pareto_target,
    permutations,
    terminal_log_reward,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def terms(generator):
    """Random terms of trajectories of unequal length, float64, and the objectives of their objects."""
    steps = 6
    length = torch.tensor([6, 1, 3, 4, 2])
    valid = valid_transitions(length, steps)
    states = torch.cat([torch.ones_like(valid[:1]), valid])

    def draw(where):
        return torch.where(where, torch.randn(where.shape, generator=generator, dtype=torch.float64), 0.0)

    values = torch.rand(5, 2, generator=generator, dtype=torch.float64)
    return draw(valid), draw(valid), draw(states), length, values


def test_a_pair_costs_what_it_costs_by_hand():
    log_reward, partner = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([1, 0])
    better = pair_target(torch.tensor([[2.0], [1.0]]), partner)
    assert better.tolist() == [1.0, 0.0]
    assert float(pair_loss(log_reward, better, partner)) == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-12)
    tied = pair_target(torch.tensor([[1.0], [1.0]]), partner)
    assert tied.tolist() == [0.5, 0.5]
    assert float(pair_loss(torch.zeros(2), tied, partner)) == pytest.approx(math.log(2))
    with_itself = torch.tensor([0, 1])
    assert float(pair_loss(log_reward, pair_target(torch.rand(2, 1), with_itself), with_itself)) == pytest.approx(
        math.log(2)
    )


def test_objects_of_a_partial_order_that_neither_dominates_are_halves():
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    targets = pair_target(values.repeat(4, 1), torch.arange(4).repeat_interleave(4)).view(4, 4)
    # [j, i]: whether i is better than j
    assert targets.tolist() == [
        [0.5, 0.5, 1.0, 1.0],
        [0.5, 0.5, 1.0, 1.0],
        [0.0, 0.0, 0.5, 0.5],
        [0.0, 0.0, 0.5, 0.5],
    ]


def test_a_slack_makes_near_ties_of_what_is_worse_by_little():
    values = torch.tensor([[1.0], [1.0 + 5e-7], [1.1]], dtype=torch.float64)
    partner = torch.tensor([1, 0, 0])
    assert pair_target(values, partner).tolist() == [0.0, 1.0, 1.0]
    assert pair_target(values, partner, 1e-6).tolist() == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_the_pareto_mask_is_that_of_a_loop_over_all_pairs(d, generator):
    values = torch.randint(0, 4, (60, d), generator=generator).double()
    expected = [
        not any(all(b >= a for a, b in zip(u, v, strict=True)) and v != u for v in values.tolist())
        for u in values.tolist()
    ]
    assert non_dominated(values).tolist() == expected
    assert torch.equal(pareto_target(values), torch.tensor(expected).double() / sum(expected))


def test_with_one_best_object_the_order_loss_is_its_surprise(generator):
    values = torch.tensor([[0.1, 0.2], [0.9, 0.8], [0.5, 0.3]])
    log_reward = torch.randn(3, generator=generator, dtype=torch.float64)
    expected = -torch.log_softmax(log_reward, 0)[1]
    torch.testing.assert_close(order_loss(log_reward, pareto_target(values)), expected, rtol=1e-12, atol=0)


def test_the_order_loss_is_the_divergence_and_the_entropy_of_the_target(generator):
    values = torch.rand(20, 2, generator=generator)
    log_reward = torch.randn(20, generator=generator, dtype=torch.float64)
    target = pareto_target(values)
    kl = torch.nn.functional.kl_div(torch.log_softmax(log_reward, 0), target, reduction="sum")
    front = float((target > 0).sum())
    torch.testing.assert_close(order_loss(log_reward, target), kl + math.log(front), rtol=1e-12, atol=0)


def losses(values, log_reward, generator):
    noise = torch.rand(1, len(values), generator=generator)
    all_of = torch.ones(1, len(values), dtype=torch.bool)
    return [order(log_reward.unsqueeze(0), all_of)[0] for order in (pairs(values, noise), pareto(values))]


def test_adding_a_constant_changes_no_order_loss(generator):
    values = torch.rand(30, 2, generator=generator)
    log_reward = torch.randn(30, generator=generator, dtype=torch.float64)
    before = losses(values, log_reward, torch.Generator().manual_seed(1))
    after = losses(values, log_reward + 123.4, torch.Generator().manual_seed(1))
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_order_of_the_batch_does_not_matter(generator):
    values = torch.rand(30, 2, generator=generator)
    log_reward = torch.randn(30, generator=generator, dtype=torch.float64)
    mixed = torch.randperm(30, generator=generator)
    torch.testing.assert_close(
        order_loss(log_reward, pareto_target(values)), order_loss(log_reward[mixed], pareto_target(values[mixed]))
    )
    partner = torch.randperm(30, generator=generator)
    inverse = mixed.argsort()
    again = inverse[partner[mixed]]
    torch.testing.assert_close(
        pair_loss(log_reward, pair_target(values, partner), partner),
        pair_loss(log_reward[mixed], pair_target(values[mixed], again), again),
    )


def test_a_monotone_map_of_the_objectives_changes_no_target(generator):
    values = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    mapped = torch.stack([values[:, 0].exp() * 1e-9, values[:, 1] ** 3 - 7], 1)
    partner = torch.randperm(50, generator=generator)
    assert torch.equal(pareto_target(values), pareto_target(mapped))
    assert torch.equal(pair_target(values, partner), pair_target(mapped, partner))


def test_noise_draws_a_permutation_of_the_valid_columns_and_every_one_alike(generator):
    valid = torch.tensor([True, False, True, True, False]).expand(6000, 5)
    found = permutations(torch.rand(6000, 5, generator=generator), valid)[:, [0, 2, 3]]
    assert torch.equal(found.sort(1).values, torch.tensor([0, 2, 3]).expand(6000, 3))
    _, counts = torch.unique(found, dim=0, return_counts=True)
    assert len(counts) == 6
    assert float(((counts - 1000.0).square() / 1000.0).sum()) < 20.5  # chi-squared of 5 degrees, p = 0.001


def test_the_losses_equal_their_definitions_in_a_plain_loop(terms):
    pf, pb, flow, length, values = terms
    n, steps = len(length), len(pf)
    lam, weight = 0.8, 0.3
    noise = torch.rand(steps, n, generator=torch.Generator().manual_seed(3))

    def loop_order(rewards, columns, k):
        target = pareto_target(values[columns])
        log_p = torch.log_softmax(torch.stack(rewards), 0)
        by_front = -sum(float(t) * p for t, p in zip(target, log_p, strict=True) if t > 0)
        order = sorted(range(len(columns)), key=lambda i: float(noise[k, columns[i]]))
        total = 0.0
        for i, j in enumerate(order):
            u, v = values[columns[i]], values[columns[j]]
            t = 1.0 if bool(dominates(u, v)) else 0.0 if bool(dominates(v, u)) else 0.5
            log_q = torch.log_softmax(torch.stack([rewards[i], rewards[j]]), 0)
            total = total - t * log_q[0] - (1 - t) * log_q[1]
        return {"pareto": by_front, "pairs": total / len(columns)}

    gap = pf - pb
    last = [flow[m - 1, i] + gap[m - 1, i] for i, m in enumerate(length.tolist())]
    squares = [
        (flow[t, i] + gap[t, i] - flow[t + 1, i]) ** 2 for i, m in enumerate(length.tolist()) for t in range(m - 1)
    ]
    balance = sum(squares) / int(length.sum())
    total = {"pareto": 0.0, "pairs": 0.0}
    weights = [lam**k for k in range(1, steps + 1)]
    for k in range(1, steps + 1):
        squares, rewards, columns = [], [], []
        for i, m in enumerate(length.tolist()):
            squares += [(flow[s, i] + gap[s : s + k, i].sum() - flow[s + k, i]) ** 2 for s in range(m - k) if s + k < m]
            if k <= m:
                columns.append(i)
                rewards.append(flow[m - k, i] + gap[m - k : m, i].sum())
        order = loop_order(rewards, columns, k - 1)
        for kind in total:
            mean = sum(squares) / len(squares) if squares else 0.0
            total[kind] = total[kind] + weights[k - 1] / sum(weights) * (mean + weight * order[kind])
    for kind, order in (("pareto", pareto(values)), ("pairs", pairs(values, noise))):
        expected = balance + weight * loop_order(last, list(range(n)), 0)[kind]
        found = op_detailed_balance(pf, pb, flow, length, order, weight)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        found = op_sub_trajectory_balance(pf, pb, flow, length, order, weight, lam)
        torch.testing.assert_close(found, total[kind], rtol=1e-12, atol=0)


def test_op_subtb_of_single_steps_is_op_db(terms):
    """With lambda near 0 only single transitions count; OP-DB divides by all of them, OP-SubTB by the inner ones."""
    pf, pb, flow, length, values = terms
    order = pareto(values)
    only = order(terminal_log_reward(pf, pb, flow, length).unsqueeze(0), torch.ones(1, 5, dtype=torch.bool))[0]
    db = op_detailed_balance(pf, pb, flow, length, order, 0.1) - 0.1 * only
    short = op_sub_trajectory_balance(pf, pb, flow, length, order, 0.1, 1e-12) - 0.1 * only
    torch.testing.assert_close(short, db * length.sum() / (length - 1).sum(), rtol=1e-9, atol=0)


def test_op_subtb_of_whole_trajectories_orders_by_op_tb(terms):
    """The part that starts at the source gives log Rhat of OP-TB and the source's log F, which cancels."""
    pf, pb, flow, _, _ = terms
    length = torch.full((5,), 6)
    seen = []

    def spy(log_reward, valid):
        seen.append((log_reward, valid))
        return log_reward.new_zeros(len(log_reward))

    flow = flow.clone()
    flow[0] = 0.7
    op_sub_trajectory_balance(pf, pb, flow, length, spy)
    [(log_reward, valid)] = seen
    assert valid.all()
    torch.testing.assert_close(log_reward[-1] - 0.7, learned_log_reward(pf, pb), rtol=1e-12, atol=1e-12)


def test_op_fm_is_flow_matching_and_the_order(generator):
    into, out = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    values = torch.rand(4, 2, generator=generator)
    log_reward = torch.randn(4, generator=generator, dtype=torch.float64)
    expected = (into - out).square().mean() + 0.4 * order_loss(log_reward, pareto_target(values))
    torch.testing.assert_close(op_flow_matching(into, out, log_reward, pareto(values), 0.4), expected)


def test_the_divergence_of_the_backward_policy_is_zero_only_where_it_is_uniform(generator):
    mask = torch.tensor([[True, True, False], [True, True, True], [False, True, False]])
    uniform = torch.where(mask, -mask.sum(1, keepdim=True).double().log(), -1e9)
    assert float(backward_kl(uniform, mask)) == pytest.approx(0, abs=1e-6)
    logits = torch.where(mask, torch.randn(3, 3, generator=generator, dtype=torch.float64), -1e9)
    log_pb = torch.log_softmax(logits, 1)
    expected = 0.0
    for row, allowed in zip(log_pb, mask, strict=True):
        n = int(allowed.sum())
        expected += sum((-math.log(n) - float(v)) / n for v, a in zip(row, allowed, strict=True) if a)
    assert float(backward_kl(log_pb, mask)) == pytest.approx(expected / 3, abs=1e-6)
    assert expected > 0.1


def test_minimised_pairs_of_a_total_order_sparsify_and_ties_stay_equal():
    """Gradient descent on all pairs: neighbours' rewards part by factors that grow with the steps; ties stay equal."""
    values = torch.tensor([[0.0], [1.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    i, j = (v.flatten() for v in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    log_reward = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    ratios = []
    for step in range(1, 2001):
        better = dominates(values[i], values[j]).double()
        target = 0.5 * (better + (~dominates(values[j], values[i])).double())
        logit = log_reward[i] - log_reward[j]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, target)
        (gradient,) = torch.autograd.grad(loss, log_reward)
        log_reward = (log_reward - 5.0 * gradient).detach().requires_grad_()
        if step in (20, 200, 2000):
            ratios.append(log_reward[[1, 3, 4]] - log_reward[[0, 2, 3]])
    assert torch.equal(log_reward[1], log_reward[2])
    for before, after in pairwise(ratios):
        assert (after > before + 0.5).all()
    assert (ratios[0] > 0).all()
