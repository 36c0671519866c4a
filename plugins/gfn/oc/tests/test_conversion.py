"""Exact flows against closed forms, the conversion of them, and what a wrong network does to it."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from exact_flows import ENVIRONMENTS, Exact
from headwater_gfn.exact import l1_distance, learned_distribution, log_target
from headwater_gfn.table import TableEnvironment
from headwater_gfn.tasks.hypergrid import HyperGrid, HyperGridConfig
from headwater_gfn.tasks.strings import Strings, StringsConfig, TFBind8, TFBind8Config
from headwater_gfn_oc.conversion import (
    convert,
    exact_weights,
    learned_weights,
    reach_probability,
    sample_converted,
    ways_of,
)

DATA = next(
    (p / "shared/data/gfn-oc" for p in Path(__file__).resolve().parents if (p / "shared/data/gfn-oc").is_dir()), None
)


@pytest.fixture(params=list(ENVIRONMENTS))
def table(request):
    return TableEnvironment(ENVIRONMENTS[request.param]())


def flows_of(table):
    """log F(s|y) (N, X)."""
    return Exact(table).log_flow


def rewards(n, seed=0):
    return 3 * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_conversion_of_exact_flows_samples_every_reward(table):
    ways = ways_of(table)
    weights = exact_weights(ways)
    for seed in range(3):
        log_r = rewards(ways.n_outcomes, seed)
        p = learned_distribution(table, convert(ways, weights, log_r))
        assert l1_distance(p, torch.softmax(log_r, 0)) < 1e-10


def test_flows_out_of_a_state_sum_to_its_flow_and_start_at_one(table):
    ways = ways_of(table)
    root = torch.zeros(ways.n_outcomes, dtype=torch.float64)
    flow = torch.zeros(ways.n_outcomes, dtype=torch.float64)
    for layer, weight in zip(ways.layers, exact_weights(ways), strict=True):
        back = torch.zeros(len(flow), dtype=torch.float64).index_add(0, layer.child_pair, layer.log_pb.exp())
        if layer is not ways.layers[0] or not table.stops:
            assert torch.allclose(back[layer.child_pair], torch.ones(len(layer.child_pair), dtype=torch.float64))
        flow = torch.zeros(len(layer.pair_state), dtype=torch.float64).index_add(0, layer.pair, weight.exp())
        root[layer.pair_outcome[layer.pair_state == 0]] = flow[layer.pair_state == 0]
    assert torch.allclose(root, torch.ones(ways.n_outcomes, dtype=torch.float64))


def test_flows_on_a_grid_are_sums_over_monotone_paths():
    side = 4
    table = TableEnvironment(HyperGrid(HyperGridConfig(side=side)))
    flows = flows_of(table)
    cells = [tuple(c) for c in table.states[:, :2].tolist()]

    def paths(s, y):  # the probability that going back from y passes through s
        if s == y:
            return 1.0
        parents = [(y[0] - 1, y[1]), (y[0], y[1] - 1)]
        allowed = [p for p in parents if min(p) >= 0]
        return sum(paths(s, p) for p in allowed if p[0] >= s[0] and p[1] >= s[1]) / len(allowed)

    for s in range(table.n_inner):
        for y in range(side * side):
            a, b = cells[s], cells[table.n_inner + y]
            if a[0] <= b[0] and a[1] <= b[1]:
                assert math.exp(flows[s, y]) == pytest.approx(paths(a, b), rel=1e-10)
            else:
                assert float(flows[s, y]) == -30.0  # never touched: no way leads there


def test_flows_of_strings_built_at_both_ends_have_the_closed_form():
    n = 4
    table = TableEnvironment(Strings(StringsConfig(length=n, alphabet="AB")))
    flows = flows_of(table)
    letters = [tuple(v for v in row if v < 2) for row in table.states.tolist()]
    for s in range(table.n_inner):
        for y in range(2**n):
            own, whole = letters[s], letters[table.n_inner + y]
            size = len(own)
            expected = sum(
                math.comb(n - size, i) * 0.5 ** (n - size) for i in range(n - size + 1) if whole[i : i + size] == own
            )
            if expected:
                assert math.exp(flows[s, y]) == pytest.approx(expected, rel=1e-10)


def test_appending_is_trivial_flows_are_prefixes_and_n_is_a_prefix_sum():
    table = TableEnvironment(Strings(StringsConfig(length=3, alphabet="AB", build="append")))
    ways = ways_of(table)
    weights = exact_weights(ways)
    assert all(float(w.abs().max()) == 0.0 for w in weights)
    log_r = rewards(8)
    log_pf = convert(ways, weights, log_r)
    words = ["".join("AB"[v] for v in row if v < 2) for row in table.states.tolist()]
    r = {w: math.exp(v) for w, v in zip(words[table.n_inner :], log_r.tolist(), strict=True)}
    for s, action in product(range(table.n_inner), range(2)):
        share = sum(v for w, v in r.items() if w.startswith(words[s] + "AB"[action]))
        share /= sum(v for w, v in r.items() if w.startswith(words[s]))
        assert math.exp(log_pf[s, action]) == pytest.approx(share, rel=1e-10)


def test_a_network_with_the_exact_flows_has_the_exact_weights_and_reaches_every_outcome(table):
    policy = Exact(table)
    expected = exact_weights(policy.ways)
    for normalised in (True, False):
        for own, other in zip(learned_weights(policy.ways, policy, normalised=normalised), expected, strict=True):
            assert torch.allclose(own, other, atol=1e-9)
    outcomes = torch.arange(policy.ways.n_outcomes)
    assert torch.allclose(reach_probability(table, policy, outcomes), torch.ones(len(outcomes)).double(), atol=1e-9)


def test_what_the_network_says_of_unreachable_outcomes_does_not_matter():
    """The trap: without the mask by transitions garbage flows make the conversion wrong at a success of 1."""
    table = TableEnvironment(HyperGrid(HyperGridConfig(side=4)))
    policy = Exact(table)
    on = torch.zeros_like(policy.log_flow, dtype=torch.bool)
    for layer in policy.ways.layers:
        on[layer.pair_state, layer.pair_outcome] = True
    policy.log_flow[~on] = 5.0
    log_r = rewards(16)
    p = learned_distribution(table, convert(policy.ways, learned_weights(policy.ways, policy, normalised=True), log_r))
    assert l1_distance(p, torch.softmax(log_r, 0)) < 1e-9


def test_too_many_pairs_are_refused():
    assert ways_of(TableEnvironment(HyperGrid(HyperGridConfig(side=8))), most=100) is None


def test_success_counts_every_wrong_action():
    table = TableEnvironment(HyperGrid(HyperGridConfig(side=3)))
    policy = Exact(table)
    policy.log_pf[:] = 0.0  # uniform over what the grid allows
    found = reach_probability(table, policy, torch.arange(9))
    mask = table.forward_mask(torch.arange(table.n_inner))
    p = learned_distribution(table, torch.where(mask, -mask.sum(1, keepdim=True).double().log(), -1e9))
    assert torch.allclose(found, p)


@pytest.mark.parametrize("name", ["grid", "both ends"])
def test_a_conversion_by_sampled_outcomes_draws_them_by_their_rewards(name):
    table = TableEnvironment(ENVIRONMENTS[name]())
    policy = Exact(table)
    y = torch.tensor([1, 5, 11]) + table.n_inner
    log_r = torch.tensor([0.0, 1.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    x = sample_converted(table, policy, y, log_r, 4000, generator, normalised=True)
    counts = torch.stack([(x == o).sum() for o in y]).double()
    assert int(counts.sum()) == 4000
    expected = 4000 * torch.softmax(log_r.double(), 0)
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # chi-squared, 2 degrees of freedom, 0.0003


@pytest.mark.skipif(DATA is None, reason="the E-scores are not here")
def test_the_conversion_is_exact_on_all_strings_of_tfbind8_for_every_factor_tried():
    task = TFBind8(TFBind8Config(table=DATA / "tfbind8_escore.npz", preference=None))
    table = TableEnvironment(task)
    ways = ways_of(table)
    weights = exact_weights(ways)
    scores = task.raw_objectives(table.states[table.n_inner :])
    assert scores.shape == (65536, 41)
    for factor in (0, 14, 40):
        log_r = (3 * scores[:, factor].log()).clamp_min(math.log(1e-3))
        p = learned_distribution(table, convert(ways, weights, log_r))
        assert l1_distance(p, torch.softmax(log_r, 0)) < 1e-9
    assert l1_distance(p, log_target(table).exp()) > 0.1
