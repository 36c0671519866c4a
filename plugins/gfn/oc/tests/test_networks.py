"""Q is normalised over what a state leads to; the conditioned environment is the environment with y behind."""

import pytest
import torch
from exact_flows import ENVIRONMENTS
from headwater_gfn.environment import Environment
from headwater_gfn.rollout import roll_back, roll_out
from headwater_gfn.table import TableEnvironment
from headwater_gfn_oc.networks import Curiosity, FiLMPolicy, OutcomeSampler, conditional_policy
from headwater_gfn_oc.outcomes import Conditioned
from headwater_gfn_oc.trainer import lift


@pytest.fixture(params=["grid", "both ends", "bits"])
def environment(request):
    return ENVIRONMENTS[request.param]()


def test_the_outcome_sampler_is_a_distribution_over_what_the_child_leads_to(environment):
    torch.manual_seed(0)
    table = TableEnvironment(environment)
    q = OutcomeSampler(environment.n_features, environment.n_places, environment.n_values, (32, 32))
    y = torch.arange(table.n_inner, len(table.states))
    generator = torch.Generator().manual_seed(0)
    walks = roll_back(table, None, table.random_objects(6, generator), generator)
    for t in range(len(walks.actions)):
        for b in range(6):
            if t >= walks.length[b]:
                continue
            s, child = walks.states[t, b].expand(len(y)), walks.states[t + 1, b].expand(len(y))
            leads = table.reaches(child, y)
            log_q = q.log_q(table, s[leads], child[leads], y[leads])
            assert float(log_q.detach().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_draws_of_q_have_its_probabilities_and_can_be_reached():
    torch.manual_seed(0)
    table = TableEnvironment(ENVIRONMENTS["both ends"]())
    q = OutcomeSampler(table.n_features, table.n_places, table.n_values, (16,))
    s = table.step(table.start(1), torch.tensor([1]))
    child = table.step(s, torch.tensor([0]))
    y = q.draw(table, s.expand(6000), child.expand(6000), torch.Generator().manual_seed(1))
    assert table.reaches(child.expand(6000), y).all()
    seen, counts = y.unique(return_counts=True)
    expected = 6000 * q.log_q(table, s.expand(len(seen)), child.expand(len(seen)), seen).exp()
    assert float(((counts - expected) ** 2 / expected).sum()) < 3 * len(seen)
    mixed = q.draw(table, s.expand(50), child.expand(50), torch.Generator().manual_seed(1), 0.5, 1.0)
    assert table.reaches(child.expand(50), mixed).all()


def test_a_letter_of_q_depends_on_the_letters_before_alone():
    torch.manual_seed(0)
    q = OutcomeSampler(3, 4, 5, (24, 24))
    context, letters = torch.randn(1, 6), torch.tensor([[1, 2, 3, 4]])
    for place in range(4):
        changed = letters.clone()
        changed[0, place] = 0
        differs = (q(context, changed) != q(context, letters)).any(2)[0]
        assert not differs[: place + 1].any()
        assert place == 3 or differs[place + 1 :].any()


def test_reaching_agrees_with_the_graph(environment):
    table = TableEnvironment(environment)
    n = len(table.states) - table.n_inner
    leads = torch.zeros(len(table.states), n, dtype=torch.bool)
    leads[table.n_inner :] = torch.eye(n, dtype=torch.bool)
    for first, last in reversed(list(zip(table.layers, table.layers[1:], strict=False))):
        for a in range(table.n_actions):
            child = table.child[first:last, a]
            leads[first:last] |= leads[child.clamp_min(0)] & (child >= 0).unsqueeze(1)
    s = torch.arange(len(table.states)).repeat_interleave(n)
    y = torch.arange(n).repeat(len(table.states)) + table.n_inner
    assert torch.equal(table.reaches(s, y).view(-1, n), leads)


def test_a_conditioned_walk_is_the_walk_with_the_outcome_behind(environment):
    generator = torch.Generator().manual_seed(0)
    for of in (environment, TableEnvironment(environment)):
        y = of.random_objects(9, generator)
        conditioned = Conditioned(of, y)
        walks = lift(conditioned, roll_back(of, None, y, generator))
        assert conditioned.hit(walks.last).all()
        assert torch.equal(conditioned.split(walks.last)[0], y)
        policy = conditional_policy(of, (8,), "relu", "concatenate")
        walks = roll_out(conditioned, policy, 9, generator)
        assert torch.equal(conditioned.split(walks.last)[1], y)
        assert of.terminal(conditioned.split(walks.last)[0]).all()


def test_an_environment_without_letters_says_so():
    class Bare(Environment):
        pass

    Bare.__abstractmethods__ = frozenset()
    with pytest.raises(Exception, match="Bare does not write objects as letters"):
        Bare(None).check_letters()
    with pytest.raises(Exception, match="Bare does not say what its space is"):
        Bare(None).space()


def test_film_sees_the_outcome():
    torch.manual_seed(0)
    policy = FiLMPolicy(4, 3, 2, (8, 8), "relu")
    observed = torch.randn(5, 8)
    forward, backward, flow = policy(observed)
    assert forward.shape == (5, 3)
    assert backward.shape == (5, 2)
    assert flow.shape == (5,)
    other = observed.clone()
    other[:, 4:] += 1.0
    assert (policy.forward_logits(other) != forward).any()


def test_curiosity_trains_one_of_its_two_networks():
    networks = Curiosity(6, 16, 8)
    predicted, target = networks(torch.zeros(3, 6))
    assert predicted.shape == target.shape == (3, 8)
    assert predicted.requires_grad
    assert not target.requires_grad
