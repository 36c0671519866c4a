import math

import pytest
import torch
from headwater_gfn.archive import Archive
from headwater_gfn.environment import log_policy
from headwater_gfn.exact import learned_distribution
from headwater_gfn.networks import MLPPolicy
from headwater_gfn.replay import Replay
from headwater_gfn.rollout import Behaviour, _walk, _walk_items, roll_back, roll_out
from headwater_gfn.table import TableEnvironment
from headwater_gfn.tasks.sets import SetGeneration, SetGenerationConfig
from oracle import TablePolicy, numbered


@pytest.fixture
def policy(environment):
    torch.manual_seed(1)
    return MLPPolicy(environment.n_features, environment.n_actions, environment.n_backward, (12, 10))


def is_walk(environment, trajectories):
    for t in range(len(trajectories.actions)):
        on = trajectories.length > t
        s, a = trajectories.states[t][on], trajectories.actions[t][on]
        assert environment.forward_mask(s).gather(1, a.unsqueeze(1)).all()
        assert torch.equal(environment.step(s, a), trajectories.states[t + 1][on])
        past = ~on
        assert torch.equal(trajectories.states[t + 1][past], trajectories.states[t][past])
    assert environment.terminal(trajectories.last).all()


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(0.3), Behaviour(1.0), Behaviour(0.2, 2.0, 5)])
def test_rollouts_are_walks_to_terminal_states(environment, policy, generator, behaviour):
    is_walk(environment, roll_out(environment, policy, 50, generator, behaviour))
    table = TableEnvironment(environment)
    is_walk(table, roll_out(table, policy, 50, generator, behaviour))


def test_rollouts_depend_on_the_generator_alone(environment, policy):
    def states(seed):
        return roll_out(environment, policy, 20, torch.Generator().manual_seed(seed)).states

    torch.manual_seed(5)
    first = states(3)
    torch.manual_seed(6)
    assert torch.equal(first, states(3))
    assert first.shape != states(4).shape or not torch.equal(first, states(4))


def chi_squared(counts, expected):
    """p-value of the chi-squared test, cells of fewer than five expected put together."""
    stats = pytest.importorskip("scipy.stats")
    few = expected < 5
    observed = torch.cat([counts[~few], counts[few].sum().reshape(1)])
    wanted = torch.cat([expected[~few], expected[few].sum().reshape(1)])
    if float(wanted[-1]) == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    return stats.chisquare(observed.numpy(), (wanted * observed.sum() / wanted.sum()).numpy()).pvalue


@pytest.mark.parametrize("tabular", [True, False])
def test_samples_follow_the_exact_distribution_of_the_policy(table, generator, tabular):
    logits = torch.randn(table.child.shape, generator=generator, dtype=torch.float64)
    policy = TablePolicy(logits, torch.zeros(table.parent.shape), torch.zeros(len(table.states)))
    expected = learned_distribution(table, log_policy(logits, table.child >= 0))
    environment = numbered(table)
    if not tabular:
        environment = table.of
        environment.observe = table.index
    x = roll_out(environment, policy, 20_000, generator).last
    number = x if tabular else table.index(x)
    counts = torch.bincount(number - table.n_inner, minlength=len(expected)).double()
    assert chi_squared(counts, expected * 20_000) > 1e-3


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_exploration_is_uniform_over_the_allowed_actions(table, generator, epsilon):
    logits = 2 * torch.randn(table.child.shape, generator=generator, dtype=torch.float64)
    policy = TablePolicy(logits, torch.zeros(table.parent.shape), torch.zeros(len(table.states)))
    allowed = (table.child >= 0).double()
    mixed = (1 - epsilon) * log_policy(logits, table.child >= 0).exp() + epsilon * allowed / allowed.sum(
        1, keepdim=True
    )
    expected = learned_distribution(table, mixed.log())
    x = roll_out(numbered(table), policy, 20_000, generator, Behaviour(epsilon)).last
    counts = torch.bincount(x - table.n_inner, minlength=len(expected)).double()
    assert chi_squared(counts, expected * 20_000) > 1e-3


def test_very_many_actions_are_sampled_by_their_distribution_too(table, generator, monkeypatch):
    monkeypatch.setattr("headwater_gfn.rollout.WIDE", 1)
    logits = torch.randn(table.child.shape, generator=generator, dtype=torch.float64)
    policy = TablePolicy(logits, torch.zeros(table.parent.shape), torch.zeros(len(table.states)))
    expected = learned_distribution(table, log_policy(logits, table.child >= 0))
    x = roll_out(numbered(table), policy, 20_000, generator).last
    counts = torch.bincount(x - table.n_inner, minlength=len(expected)).double()
    assert chi_squared(counts, expected * 20_000) > 1e-3
    walks = roll_back(table, None, x[:500], generator)
    assert torch.equal(walks.last, x[:500])
    assert (walks.states[0] == 0).all()


def test_walks_drawn_backward_follow_a_uniform_policy(table, generator):
    x = torch.full((20_000,), len(table.states) - 1)
    walks = roll_back(table, None, x, generator)
    before = walks.states[walks.length - 1 - int(table.stops), torch.arange(len(x))]
    last = table.unstop(x[:1]) if table.stops else x[:1]
    parents = table.parent[last][0]
    parents = parents[parents >= 0]
    counts = torch.stack([(before == p).sum() for p in parents]).double()
    assert counts.sum() == 20_000
    assert (
        len(parents) == 1
        or chi_squared(counts, torch.full((len(parents),), 20_000 / len(parents), dtype=torch.float64)) > 1e-3
    )


def test_a_network_of_nan_does_not_crash_the_rollout(environment, policy, generator):
    with torch.no_grad():
        policy.head.weight.fill_(math.nan)
    for each in (environment, TableEnvironment(environment)):
        each.log_reward(roll_out(each, policy, 5, generator).last)


def test_cut_trajectories_end_where_they_are_cut(environment, policy, generator):
    whole = roll_out(environment, policy, 20, generator)
    length = whole.length.clamp_max(2)
    cut = whole.cut(length)
    assert torch.equal(cut.complete, whole.length <= 2)
    assert torch.equal(cut.states[2], whole.states[:3][length, torch.arange(20)])


def test_replay_is_a_ring_without_twins(generator):
    replay = Replay(4, unique=True)
    replay.add(torch.arange(3), torch.tensor([0.0, 1.0, 2.0]), torch.arange(3))
    replay.add(torch.tensor([2, 3, 3, 4]), torch.tensor([2.0, 3.0, 3.0, 4.0]), torch.tensor([2, 3, 3, 4]))
    assert sorted(replay.x.tolist()) == [1, 2, 3, 4]
    x, log_reward = replay.draw(100, generator)
    assert torch.equal(x.float(), log_reward)
    again = Replay(4)
    again.load_state_dict(replay.state_dict())
    assert torch.equal(again.x, replay.x)


def test_prioritised_replay_draws_half_from_the_best_tenth(generator):
    replay = Replay(1000, prioritised=True)
    x = torch.randperm(1000, generator=generator)
    replay.add(x, x.float(), x)
    drawn, _ = replay.draw(2000, generator)
    assert int((drawn >= 900).sum()) == 1000


def test_the_archive_keeps_the_best_different_objects(generator):
    archive = Archive(3, 4, lambda x: x % 5 - 1)
    for _ in range(200):
        x = torch.randint(100, (64,), generator=generator)
        archive.add(x, x.float() / 50, x)
    assert archive.x.tolist() == [99, 98, 97]
    assert (archive.different, archive.modes) == (100, 4)
    assert archive.log_reward.tolist() == pytest.approx([99 / 50, 98 / 50, 97 / 50])
    again = Archive(3, 4)
    again.load_state_dict(archive.state_dict())
    assert (again.different, again.x.tolist()) == (100, [99, 98, 97])


@pytest.mark.parametrize(
    "behaviour", [Behaviour(), Behaviour(0.3), Behaviour(0.2, 2.0, 5), Behaviour(1.0, rows=20), Behaviour(1.0, rows=30)]
)
def test_items_are_added_as_in_the_general_walk(behaviour):
    environment = SetGeneration(SetGenerationConfig(n_items=30, set_size=20))
    torch.manual_seed(1)
    policy = MLPPolicy(30, 30, 30, (12, 10))
    walks = (_walk_items, _walk)
    fast, general = (f(environment, policy, 30, torch.Generator().manual_seed(2), behaviour) for f in walks)
    for name in ("states", "actions", "length"):
        assert torch.equal(getattr(fast, name), getattr(general, name))
    is_walk(environment, fast)
