"""Gradients by hand equal those of torch's graph, and finite differences."""

import math

import pytest
import torch
from headwater_gfn import fused
from headwater_gfn.evaluation import _log_sum, evaluate, evaluate_by_graph
from headwater_gfn.networks import MLPPolicy
from headwater_gfn.rollout import Behaviour, roll_out

TERMS = ("log_pf", "log_pb", "log_flow")


def setting(table, generator, activation, dtype=torch.float64, hidden=(12, 10)):
    torch.manual_seed(1)
    policy = MLPPolicy(table.n_features, table.n_actions, table.n_backward, hidden, activation).to(dtype)
    return policy, roll_out(table, policy, 9, generator, Behaviour(epsilon=0.5))


def gradients(policy, terms):
    """Of a sum in which every term has a weight of its own."""
    generator = torch.Generator().manual_seed(3)
    total = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in terms)
    return torch.autograd.grad(total, list(policy.parameters()))


@pytest.mark.parametrize("activation", ["relu", "leaky-relu"])
@pytest.mark.parametrize("incomplete", [False, True])
def test_terms_and_gradients_equal_those_of_the_graph(table, generator, activation, incomplete):
    policy, trajectories = setting(table, generator, activation)
    if incomplete:
        trajectories = trajectories.cut((trajectories.length + 1) // 2)
    assert fused.applies(table, policy, trajectories, True) == table.inherits("same_child")
    ours, graph = (f(table, policy, trajectories) for f in (evaluate, evaluate_by_graph))
    for name in TERMS:
        torch.testing.assert_close(getattr(ours, name), getattr(graph, name), rtol=1e-12, atol=1e-12)
    both = (gradients(policy, [getattr(terms, name) for name in TERMS]) for terms in (ours, graph))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_equal_finite_differences(table, generator):
    if not table.inherits("same_child"):
        pytest.skip("torch's graph is used here")
    policy, trajectories = setting(table, generator, "leaky-relu", hidden=(4, 3))
    layers = policy.layers()

    def terms(*values):
        for layer, weight, bias in zip(layers, values[::2], values[1::2], strict=True):
            del layer.weight, layer.bias
            layer.weight, layer.bias = weight, bias
        found = evaluate(table, policy, trajectories)
        return found.log_pf, found.log_pb, found.log_flow

    values = [p.detach().clone().requires_grad_() for layer in layers for p in (layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(terms, values)


def test_mixed_precision_is_left_to_torch(table, generator):
    policy, trajectories = setting(table, generator, "relu", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not fused.applies(table, policy, trajectories, True)
    assert not fused.applies(table, policy, trajectories, False)


def test_a_subclass_is_left_to_torch(table, generator):
    class Own(MLPPolicy):
        def forward(self, observed):
            a, b, f = super().forward(observed)
            return a * 2, b, f

    _, trajectories = setting(table, generator, "relu")
    own = Own(table.n_features, table.n_actions, table.n_backward, (4,)).double()
    ours, graph = (f(table, own, trajectories) for f in (evaluate, evaluate_by_graph))
    assert torch.equal(ours.log_pf, graph.log_pf)


def test_they_cannot_be_differentiated_twice(table, generator):
    if not table.inherits("same_child"):
        pytest.skip("torch's graph is used here")
    policy, trajectories = setting(table, generator, "relu")
    loss = evaluate(table, policy, trajectories).log_pf.square().sum()
    first = torch.autograd.grad(loss, policy.head.weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_the_sum_over_actions_with_one_child_equals_that_over_all():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(5, 40, generator=generator, dtype=torch.float64).mul(30).requires_grad_()
    row = torch.tensor([4, 0, 0, 2])
    which = torch.rand(4, 40, generator=generator) < 0.2
    both = _log_sum(table, row, which), torch.where(which, table[row], -math.inf).logsumexp(1)
    torch.testing.assert_close(*both, rtol=1e-12, atol=0)
    gradients = (torch.autograd.grad(found.square().sum(), table)[0] for found in both)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
