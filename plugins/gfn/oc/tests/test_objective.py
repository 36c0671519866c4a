"""The losses against loops in float64, at the exact solution, and against one another."""

import math

import pytest
import torch
from exact_flows import Exact
from headwater_gfn.evaluation import evaluate
from headwater_gfn.exact import learned_distribution
from headwater_gfn.objective import trajectory_balance
from headwater_gfn.rollout import roll_back
from headwater_gfn.table import TableEnvironment
from headwater_gfn.tasks.hypergrid import HyperGrid, HyperGridConfig
from headwater_gfn_oc.conversion import convert, exact_weights
from headwater_gfn_oc.objective import (
    amortised_balance,
    augmented_trajectory_balance,
    conditional_balance,
    curiosity_loss,
    imitation,
    intrinsic_reward,
    normalise,
    outcome_reward,
)
from headwater_gfn_oc.outcomes import Conditioned
from headwater_gfn_oc.trainer import lift

T, B = 5, 7


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor([1, 2, 3, 4, 5, 5, 3])
    valid = torch.arange(T).unsqueeze(1) < length

    def draw(rows):
        return torch.randn(rows, B, generator=generator, dtype=torch.float64)

    log_pf, log_pb = (torch.where(valid, -draw(T).abs(), 0.0) for _ in range(2))
    log_reward = torch.where(torch.arange(B) % 2 == 0, 0.0, math.log(1e-3)).double()
    return log_pf, log_pb, draw(T + 1), log_reward, length


@pytest.mark.parametrize("teleport", [True, False])
def test_conditional_balance_equals_a_loop(batch, teleport):
    log_pf, log_pb, log_flow, log_reward, length = batch
    total, count = 0.0, 0
    for b in range(B):
        n = int(length[b])
        for t in range(n):
            after = 0.0 if t == n - 1 else float(log_flow[t + 1, b])
            rewarded = teleport or t == n - 1
            residual = float(log_flow[t, b] + log_pf[t, b]) - after - float(log_pb[t, b])
            residual -= float(log_reward[b]) if rewarded else 0.0
            total, count = total + residual**2, count + 1
    assert float(conditional_balance(*batch, teleport)) == pytest.approx(total / count, rel=1e-12)


def test_teleportation_changes_nothing_where_outcomes_are_reached(batch):
    log_pf, log_pb, log_flow, _, length = batch
    hit = torch.zeros(B, dtype=torch.float64)
    on, off = (conditional_balance(log_pf, log_pb, log_flow, hit, length, teleport) for teleport in (True, False))
    assert float(on) == float(off)


def test_the_reward_of_an_outcome_is_one_or_the_floor():
    assert outcome_reward(torch.tensor([True, False]), 1e-4).tolist() == pytest.approx([0.0, math.log(1e-4)])


def test_normalised_flows_do_not_see_what_all_flows_to_an_outcome_share(batch):
    log_pf, log_pb, log_flow, log_reward, length = batch
    log_flow = log_flow.requires_grad_()
    assert torch.equal(normalise(log_flow)[0], torch.zeros(B, dtype=torch.float64))
    loss = conditional_balance(log_pf, log_pb, normalise(log_flow), log_reward, length, teleport=False)
    (gradient,) = torch.autograd.grad(loss, log_flow)
    assert float(gradient.sum(0).abs().max()) < 1e-12  # along log F(s_0|y), with all other flows to y


@pytest.mark.parametrize("normal", [True, False])
@pytest.mark.parametrize("teleport", [True, False])
def test_the_loss_is_zero_at_the_exact_flows_in_every_mode(normal, teleport):
    table = TableEnvironment(HyperGrid(HyperGridConfig(side=5)))
    policy = Exact(table)
    y = torch.arange(table.n_inner, len(table.states))
    walks = roll_back(table, None, y, torch.Generator().manual_seed(1))
    conditioned = Conditioned(table, y)
    terms = evaluate(conditioned, policy, lift(conditioned, walks), learned_backward=False)
    flows = normalise(terms.log_flow) if normal else terms.log_flow
    hit = torch.zeros(len(y), dtype=torch.float64)
    assert float(conditional_balance(terms.log_pf, terms.log_pb, flows, hit, walks.length, teleport)) < 1e-20


def test_imitation_is_least_at_the_exact_policy():
    """By the policy that the backward trajectories have; moving any logit makes it larger."""
    table = TableEnvironment(HyperGrid(HyperGridConfig(side=3)))
    policy = Exact(table)
    y = torch.arange(table.n_inner, len(table.states)).repeat(3000)
    walks = roll_back(table, None, y, torch.Generator().manual_seed(1))
    conditioned = Conditioned(table, y)
    lifted = lift(conditioned, walks)
    policy.log_pf.requires_grad_()
    terms = evaluate(conditioned, policy, lifted, learned_backward=False)
    (gradient,) = torch.autograd.grad(imitation(terms.log_pf, walks.length), policy.log_pf)
    assert float(gradient.abs().max()) < 2e-3


# The explorer


def test_the_explorer_without_curiosity_is_trajectory_balance(batch):
    log_pf, log_pb, log_flow, _, length = batch
    reward = torch.linspace(0.5, 2.0, B, dtype=torch.float64)
    log_z = torch.tensor(0.3, dtype=torch.float64)
    own = augmented_trajectory_balance(log_pf, log_pb, log_flow, torch.zeros(T, B).double(), log_z, length, reward)
    plain = trajectory_balance(log_pf, log_pb, (reward + 1e-8).log(), log_z)
    assert float(own) == pytest.approx(float(plain), rel=1e-12)


def test_the_explorers_balance_equals_a_loop(batch):
    log_pf, log_pb, log_flow, _, length = batch
    r = torch.rand(T, B, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    total = 0.0
    for b in range(B):
        n = int(length[b])
        residual = 0.7 + float(log_pf[:n, b].sum()) - math.log(float(r[n - 1, b]) + 1e-8)
        for t in range(n - 1):
            residual -= math.log(math.exp(log_pb[t, b]) + float(r[t, b]) / math.exp(log_flow[t + 1, b]))
        residual -= float(log_pb[n - 1, b])
        total += residual**2
    own = augmented_trajectory_balance(log_pf, log_pb, log_flow, r, torch.tensor(0.7, dtype=torch.float64), length)
    assert float(own) == pytest.approx(total / B, rel=1e-10)


def test_intrinsic_rewards_are_scaled_distances_and_the_curiosity_loss_is_not_scaled():
    a, b = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    assert float(intrinsic_reward(a, b, 0.01)) == pytest.approx(0.05)
    distance = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert float(curiosity_loss(distance, torch.tensor([2, 1]))) == pytest.approx(2.0)


# Fine-tuning


def test_where_the_amortised_balance_is_zero_n_is_the_sum_and_its_policy_samples_the_reward():
    """On a line of three places, six states: Q are the shares of the summands (proposition 2)."""
    table = TableEnvironment(HyperGrid(HyperGridConfig(dimensions=1, side=3)))
    assert len(table.states) == 6
    policy = Exact(table)
    log_r = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    edges = {}
    for layer, weight in zip(policy.ways.layers, exact_weights(policy.ways), strict=True):
        for s, a, y, w in zip(layer.state.tolist(), layer.action.tolist(), layer.outcome.tolist(), weight, strict=True):
            edges.setdefault((s, a), {})[y] = w
    log_n = {edge: torch.stack([log_r[y] + w for y, w in ys.items()]).logsumexp(0) for edge, ys in edges.items()}
    for edge, ys in edges.items():
        q = torch.stack([log_r[y] + w - log_n[edge] for y, w in ys.items()])
        assert float(q.exp().sum()) == pytest.approx(1.0)
        for (y, _), log_q in zip(ys.items(), q, strict=True):
            flow = policy.log_flow[edge[0], y]
            log_pf = policy.log_pf[edge[0], y, edge[1]]
            assert float(amortised_balance(log_n[edge], log_q, log_r[y], flow, log_pf)) < 1e-20
    table_of_n = torch.full((3, 2), -1e9, dtype=torch.float64)
    for (s, a), value in log_n.items():
        table_of_n[s, a] = value
    found = learned_distribution(table, torch.log_softmax(table_of_n, 1))
    assert torch.allclose(found, torch.softmax(log_r, 0), atol=1e-12)
    expected = torch.log_softmax(table_of_n, 1).where(table_of_n > -1e8, -torch.inf)
    assert torch.allclose(convert(policy.ways, exact_weights(policy.ways), log_r), expected)
