"""The look-up of all states agrees with the rollout and the evaluation of the network."""

import pytest
import torch
from headwater_gfn.all_states import AllStates
from headwater_gfn.evaluation import evaluate
from headwater_gfn.exact import forward_policy, learned_distribution
from headwater_gfn.networks import MLPPolicy
from headwater_gfn.rollout import Behaviour, roll_out
from headwater_gfn.tasks.strings import Strings, StringsConfig


@pytest.fixture
def policy(table):
    torch.manual_seed(0)
    return MLPPolicy(table.n_features, table.n_actions, table.n_backward, (16,))


@pytest.mark.parametrize("learned", [True, False])
def test_terms_and_gradients_are_those_of_the_evaluation(table, policy, generator, learned):
    trajectories = roll_out(table, policy, 40, generator)
    found = AllStates.of(table, policy, learned_backward=learned).evaluate(trajectories)
    expected = evaluate(table, policy, trajectories, learned_backward=learned)
    gradients = []
    for terms in (found, expected):
        total = sum(
            (getattr(terms, name) * (i + 1)).square().sum() for i, name in enumerate(("log_pf", "log_pb", "log_flow"))
        )
        gradients.append(torch.autograd.grad(total, list(policy.parameters()), allow_unused=True))
    for name in ("log_pf", "log_pb", "log_flow"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_trajectories_are_paths_from_the_source_to_an_object(table, policy, generator):
    found = AllStates.of(table, policy).roll_out(50, generator, Behaviour(0.3))
    assert (found.states[0] == 0).all()
    assert table.terminal(found.last).all()
    for t in range(len(found.actions)):
        live = t < found.length
        assert (table.child[found.states[t][live], found.actions[t][live]] == found.states[t + 1][live]).all()
        assert torch.equal(found.states[t + 1][~live], found.states[t][~live])


@pytest.mark.parametrize("rows", [None, 0])
@pytest.mark.parametrize(("epsilon", "temperature"), [(0.0, 1.0), (0.2, 1.0), (0.1, 2.0)])
def test_objects_follow_the_exact_distribution_of_the_behaviour(table, policy, generator, epsilon, temperature, rows):
    n = 20_000
    x = AllStates.of(table, policy).roll_out(n, generator, Behaviour(epsilon, temperature, rows)).last
    log_pf = forward_policy(table, policy)
    if rows is None:
        mask = table.child >= 0
        p = torch.where(mask, (log_pf / temperature).softmax(1), 0.0)
        log_pf = ((1 - epsilon) * p + epsilon * mask / mask.sum(1, keepdim=True)).clamp_min(1e-300).log()
    expected = n * learned_distribution(table, log_pf)
    seen = torch.bincount(x - table.n_inner, minlength=len(expected)).double()
    often = expected > 5
    seen, expected = (
        torch.cat([seen[often], seen[~often].sum()[None]]),
        torch.cat([expected[often], expected[~often].sum()[None]]),
    )
    kept = expected > 0
    chi2 = float(((seen - expected)[kept].square() / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    assert chi2 < freedom + 3.5 * (2 * freedom) ** 0.5 + 6


def test_it_is_used_on_small_tables_whose_actions_have_different_children(table):
    cpu = torch.device("cpu")
    assert AllStates.fits(table, cpu)
    assert not AllStates.fits(table.of, cpu)
    from headwater_gfn.table import TableEnvironment

    strings = TableEnvironment(Strings(StringsConfig(alphabet="AB", length=3)))
    assert not AllStates.fits(strings, cpu)
