"""Each objective equals a plain loop over its definition, values and gradients."""

import math

import pytest
import torch
from headwater_gfn.environment import log_policy
from headwater_gfn.evaluation import _log_sum, edge_flows, evaluate
from headwater_gfn.networks import MLPPolicy
from headwater_gfn.objective import (
    detailed_balance,
    flow_matching,
    sub_trajectory_balance,
    terminate,
    trajectory_balance,
    valid_transitions,
)
from headwater_gfn.rollout import Behaviour, roll_out


@pytest.fixture
def policy(environment):
    torch.manual_seed(1)
    return MLPPolicy(environment.n_features, environment.n_actions, environment.n_backward, (12, 10)).double()


class Double:
    """An environment whose observations and rewards are float64."""

    def __init__(self, of):
        self.of = of

    def __getattr__(self, name):
        return getattr(self.of, name)

    def observe(self, s):
        return self.of.observe(s).double()

    def log_reward(self, x):
        return self.of.log_reward(x).double()


@pytest.fixture
def setting(environment, policy, generator):
    environment = Double(environment)
    trajectories = roll_out(environment, policy, 7, generator, Behaviour(epsilon=0.5))
    return environment, policy, trajectories


def one_by_one(environment, policy, trajectories):
    """For each trajectory its lists of log P_F, log P_B and log F, state by state."""
    for i, n in enumerate(trajectories.length.tolist()):
        pf, pb, flow = [], [], []
        for t in range(n + 1):
            s = trajectories.states[t, i : i + 1]
            stopped = environment.stops and bool(environment.terminal(s))
            if not stopped:
                _, backward, f = policy(environment.observe(s))
                flow.append(f[0])
            if t > 0:
                a = trajectories.actions[t - 1, i : i + 1]
                before = trajectories.states[t - 1, i : i + 1]
                forward = policy(environment.observe(before))[0]
                pf.append(log_policy(forward, environment.forward_mask(before))[0, a[0]])
                if stopped:
                    pb.append(torch.zeros((), dtype=torch.float64))
                    flow.append(flow[-1])
                else:
                    b = environment.backward_action(before, a)
                    pb.append(log_policy(backward, environment.backward_mask(s))[0, b[0]])
        yield i, pf, pb, flow


def compare(policy, fast, plain):
    assert float(fast.detach()) == pytest.approx(float(plain.detach()), rel=1e-10, abs=1e-12)
    a = torch.autograd.grad(fast, policy.parameters(), allow_unused=True)
    b = torch.autograd.grad(plain, policy.parameters(), allow_unused=True)
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-12)


def test_trajectory_balance(setting):
    environment, policy, trajectories = setting
    log_reward, log_z = environment.log_reward(trajectories.last), torch.tensor(0.3, dtype=torch.float64)
    terms = evaluate(environment, policy, trajectories)
    plain = [
        (log_z + sum(pf) - sum(pb) - log_reward[i]) ** 2
        for i, pf, pb, _ in one_by_one(environment, policy, trajectories)
    ]
    compare(policy, trajectory_balance(terms.log_pf, terms.log_pb, log_reward, log_z), torch.stack(plain).mean())


def flows_of(environment, trajectories, terms):
    return terminate(terms.log_flow, environment.log_reward(trajectories.last), trajectories.length)


def test_detailed_balance(setting):
    environment, policy, trajectories = setting
    log_reward = environment.log_reward(trajectories.last)
    terms = evaluate(environment, policy, trajectories)
    plain = []
    for i, pf, pb, flow in one_by_one(environment, policy, trajectories):
        flow[-1] = log_reward[i]
        plain += [(flow[t] + pf[t] - flow[t + 1] - pb[t]) ** 2 for t in range(len(pf))]
    flows = flows_of(environment, trajectories, terms)
    fast = detailed_balance(terms.log_pf, terms.log_pb, flows, trajectories.length)
    compare(policy, fast, torch.stack(plain).mean())


@pytest.mark.parametrize("lam", [0.5, 0.9, 1.0])
def test_sub_trajectory_balance_equals_the_double_loop(setting, lam):
    environment, policy, trajectories = setting
    log_reward = environment.log_reward(trajectories.last)
    terms = evaluate(environment, policy, trajectories)
    plain = []
    for i, pf, pb, flow in one_by_one(environment, policy, trajectories):
        flow[-1] = log_reward[i]
        total, weights = 0.0, 0.0
        for a in range(len(flow)):
            for b in range(a + 1, len(flow)):
                residual = flow[a] + sum(pf[a:b]) - sum(pb[a:b]) - flow[b]
                total = total + lam ** (b - a) * residual**2
                weights += lam ** (b - a)
        plain.append(total / weights)
    flows = flows_of(environment, trajectories, terms)
    fast = sub_trajectory_balance(terms.log_pf, terms.log_pb, flows, trajectories.length, lam)
    compare(policy, fast, torch.stack(plain).mean())


def test_the_closed_form_of_sub_trajectory_balance_at_lambda_one():
    u = torch.randn(6, 1, dtype=torch.float64)
    zero = torch.zeros(5, 1, dtype=torch.float64)
    expected = (6 * u.square().sum() - u.sum() ** 2) / 15
    found = sub_trajectory_balance(zero, zero, u, torch.tensor([5]), 1.0)
    torch.testing.assert_close(found, expected)


def test_short_parts_give_detailed_balance_and_whole_ones_trajectory_balance(setting):
    environment, policy, trajectories = setting
    terms = evaluate(environment, policy, trajectories)
    flows = flows_of(environment, trajectories, terms).detach()
    pf, pb = terms.log_pf.detach(), terms.log_pb.detach()
    each = []
    for i, n in enumerate(trajectories.length.tolist()):
        rows = (
            pf[:n, i : i + 1],
            pb[:n, i : i + 1],
            flows[: n + 1, i : i + 1],
            trajectories.length[i : i + 1],
        )
        short = sub_trajectory_balance(*rows, 1e-12)
        torch.testing.assert_close(short, detailed_balance(*rows), rtol=1e-6, atol=1e-9)
        each.append(sub_trajectory_balance(*rows, 1e14))
        whole = trajectory_balance(rows[0], rows[1], flows[n, i : i + 1], flows[0, i])
        torch.testing.assert_close(each[-1], whole, rtol=1e-6, atol=1e-9)


def test_flow_matching(setting):
    environment, policy, trajectories = setting
    seen = valid_transitions(trajectories.length, len(trajectories.actions))
    s = trajectories.states[1:][seen]
    log_reward = environment.log_reward(trajectories.last)[seen.nonzero()[:, 1]]
    plain = []
    for x, r in zip(s, log_reward, strict=True):
        x = x.unsqueeze(0)
        terminal = bool(environment.terminal(x))
        inflow = []
        if terminal and environment.stops:
            parent = environment.unstop(x)
            inflow.append(policy.forward_logits(environment.observe(parent))[0, -1])
        else:
            for b in environment.backward_mask(x)[0].nonzero().flatten():
                b = b.unsqueeze(0)
                parent, a = environment.undo(x, b), environment.forward_action(x, b)
                inflow.append(policy.forward_logits(environment.observe(parent))[0, a[0]])
        outflow = r
        if not terminal:
            mask = environment.forward_mask(x)[0]
            outflow = policy.forward_logits(environment.observe(x))[0][mask].logsumexp(0)
        plain.append((torch.stack(inflow).logsumexp(0) - outflow) ** 2)
    compare(policy, flow_matching(*edge_flows(environment, policy, s, log_reward)), torch.stack(plain).mean())


def test_a_uniform_backward_policy_counts_the_parents(setting):
    environment, policy, trajectories = setting
    terms = evaluate(environment, policy, trajectories, learned_backward=False)
    for i, n in enumerate(trajectories.length.tolist()):
        for t in range(n):
            s = trajectories.states[t + 1, i : i + 1]
            stopped = environment.stops and bool(environment.terminal(s))
            parents = 1 if stopped else int(environment.backward_mask(s).sum())
            assert float(terms.log_pb[t, i].exp()) == pytest.approx(1 / parents)


def test_the_sum_over_actions_with_one_child_equals_that_over_all():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5, 40, generator=generator, dtype=torch.float64).mul(30).requires_grad_()
    row = torch.tensor([4, 0, 0, 2])
    which = torch.rand(4, 40, generator=generator) < 0.2
    both = _log_sum(table, row, which), torch.where(which, table[row], -math.inf).logsumexp(1)
    torch.testing.assert_close(*both, rtol=1e-12, atol=0)
    gradients = (torch.autograd.grad(found.square().sum(), table)[0] for found in both)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
