"""At the exact solution every objective is zero, and the policy's distribution is the target."""

import math
from collections import defaultdict

import pytest
import torch
from headwater_gfn.environment import log_policy
from headwater_gfn.evaluation import edge_flows, evaluate
from headwater_gfn.exact import exact_flows, jensen_shannon, l1_distance, learned_distribution, log_target
from headwater_gfn.objective import (
    detailed_balance,
    flow_matching,
    forward_looking,
    log_partition_variance,
    sub_trajectory_balance,
    terminate,
    trajectory_balance,
)
from headwater_gfn.rollout import Behaviour, roll_back, roll_out
from oracle import TablePolicy, numbered


@pytest.fixture(params=["uniform", "learned"])
def solved(request, table, generator):
    """A table, the policy that solves it, and trajectories of another policy."""
    learned = request.param == "learned"
    logits = torch.randn(table.parent.shape, generator=generator) if learned else None
    flows = exact_flows(table, logits)
    policy = TablePolicy(flows.log_pf, flows.log_pb, flows.log_flow)
    table = numbered(table)
    trajectories = roll_out(table, policy, 64, generator, Behaviour(epsilon=0.7))
    terms = evaluate(table, policy, trajectories, learned_backward=learned)
    return table, policy, trajectories, terms, flows


def test_the_exact_policy_samples_the_target(solved):
    table, _, _, _, flows = solved
    learned = learned_distribution(table, flows.log_pf)
    assert float(learned.sum()) == pytest.approx(1.0, abs=1e-6)
    assert l1_distance(learned, log_target(table).exp()) < 1e-10
    assert jensen_shannon(learned, log_target(table).exp()) < 1e-10
    assert float(flows.log_flow[0]) == pytest.approx(table.log_partition(), abs=1e-10)


def test_trajectory_balance_is_zero(solved):
    table, _, trajectories, terms, _ = solved
    log_reward = table.log_reward(trajectories.last).double()
    log_z = torch.tensor(table.log_partition(), dtype=torch.float64)
    assert float(trajectory_balance(terms.log_pf, terms.log_pb, log_reward, log_z)) < 1e-10
    assert float(log_partition_variance(terms.log_pf, terms.log_pb, log_reward)) < 1e-10


@pytest.mark.parametrize("forward_looking_flows", [False, True])
def test_detailed_and_sub_trajectory_balance_are_zero(solved, forward_looking_flows):
    table, _, trajectories, terms, _ = solved
    log_flow = terms.log_flow
    if forward_looking_flows:
        states = trajectories.states
        partial = table.log_partial_reward(states.flatten()).view(states.shape).double()
        log_flow = forward_looking(log_flow - partial, partial)
    flows = terminate(log_flow, table.log_reward(trajectories.last).double(), trajectories.length)
    assert float(detailed_balance(terms.log_pf, terms.log_pb, flows, trajectories.length)) < 1e-10
    for lam in (0.1, 0.9, 1.0):
        assert float(sub_trajectory_balance(terms.log_pf, terms.log_pb, flows, trajectories.length, lam)) < 1e-10


def test_objectives_on_incomplete_trajectories_are_zero(solved, generator):
    table, policy, trajectories, _, _ = solved
    length = 1 + (torch.rand(64, generator=generator) * trajectories.length).long().clamp_max(trajectories.length - 1)
    cut = trajectories.cut(length)
    terms = evaluate(table, policy, cut)
    last = torch.where(cut.complete, table.log_reward(trajectories.last), math.nan).double()
    flows = terminate(terms.log_flow, last, length, cut.complete)
    learned = evaluate(table, policy, cut, learned_backward=True)
    assert not cut.complete.all()
    assert float(detailed_balance(learned.log_pf, learned.log_pb, flows, length)) < 1e-10
    assert float(sub_trajectory_balance(learned.log_pf, learned.log_pb, flows, length)) < 1e-10


def test_flow_matching_is_zero(solved):
    table, _, _, _, flows = solved
    edges = TablePolicy(flows.log_pf + flows.log_flow[: table.n_inner, None], flows.log_pb, flows.log_flow)
    s = torch.arange(1, len(table.states))
    log_reward = torch.zeros(len(s), dtype=torch.float64)
    log_reward[table.n_inner - 1 :] = table.log_rewards.double()
    assert float(flow_matching(*edge_flows(table, edges, s, log_reward))) < 1e-10


def test_the_learned_distribution_equals_a_sum_over_all_trajectories(table, generator):
    logits = torch.randn(table.child.shape, generator=generator, dtype=torch.float64)
    log_pf = log_policy(logits, table.child >= 0)
    mass = defaultdict(float)

    def walk(s, log_p):
        for a, child in enumerate(table.child[s].tolist()):
            if child >= 0:
                p = log_p + float(log_pf[s, a])
                if child >= table.n_inner:
                    mass[child - table.n_inner] += math.exp(p)
                else:
                    walk(child, p)

    walk(0, 0.0)
    found = learned_distribution(table, log_pf)
    expected = torch.tensor([mass[i] for i in range(len(found))], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_divergences_equal_their_definitions(generator):
    p, q = torch.rand(2, 50, generator=generator, dtype=torch.float64)
    p[0] = 0
    p, q = p / p.sum(), q / q.sum()
    scipy = pytest.importorskip("scipy.spatial.distance")
    assert jensen_shannon(p, q) == pytest.approx(scipy.jensenshannon(p, q) ** 2, abs=1e-12)
    assert l1_distance(p, q) == pytest.approx(sum(abs(a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True)))


def test_trajectories_drawn_backward_are_walks_from_the_source(solved, generator):
    table, policy, _, _, _ = solved
    x = torch.randint(table.n_inner, len(table.states), (200,), generator=generator)
    walks = roll_back(table, policy, x, generator)
    assert torch.equal(walks.last, x)
    assert (walks.states[0] == 0).all()
    for t in range(len(walks.actions)):
        on = walks.length > t
        assert torch.equal(table.step(walks.states[t][on], walks.actions[t][on]), walks.states[t + 1][on])
