import numpy as np
import pytest
import torch
from headwater.errors import NonFinite, UsageError
from headwater_flow.couplings import (
    ExactOT,
    Independent,
    PartialOT,
    Sinkhorn,
    UnbalancedOT,
    assign,
    condition_cost,
    draw_pairs,
    exact_plan,
    sinkhorn_plan,
    squared_distance,
)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 3, generator=generator), torch.randn(24, 3, generator=generator) + 0.5


def test_the_cost_equals_a_plain_loop_far_from_the_origin():
    a, b = torch.randn(4, 2) + 1000, torch.randn(5, 2) + 1000
    expected = [[float(((x.double() - y.double()) ** 2).sum()) for y in b] for x in a]
    torch.testing.assert_close(squared_distance(a, b), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_the_assignment_costs_what_pots_plan_costs(batches):
    ot = pytest.importorskip("ot", reason="POT is the oracle of transport plans")
    cost = squared_distance(*(b.double() for b in batches))
    permutation = assign(cost)
    assert sorted(permutation.tolist()) == list(range(24))
    total = float(cost[torch.arange(24), permutation].sum())
    assert total == pytest.approx(24 * ot.emd2([], [], cost.numpy()), rel=1e-6)


def test_every_point_is_used_once(batches):
    i, j = ExactOT()(*batches)
    assert sorted(j.tolist()) == sorted(i.tolist()) == list(range(24))


def test_blocks_are_each_solved_exactly(batches):
    x0, x1 = batches
    _, j = ExactOT(block=10)(x0, x1)
    for start in (0, 10, 20):
        part = slice(start, start + 10)
        assert torch.equal(j[part], start + assign(squared_distance(x0[part], x1[part])))


def test_one_dimension_by_sorting_equals_the_assignment():
    a, b = torch.randn(30, 1), torch.randn(30, 1)
    _, j = ExactOT()(a, b)
    assert torch.equal(j, assign(squared_distance(a, b)))


def test_unequal_batches_have_pots_plan():
    ot = pytest.importorskip("ot", reason="POT is the oracle of transport plans")
    cost = torch.rand(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = exact_plan(cost)
    torch.testing.assert_close(plan.sum(1), torch.full((5,), 0.2, dtype=torch.float64))
    assert float((plan * cost).sum()) == pytest.approx(ot.emd2([], [], cost.numpy()), rel=1e-9)
    i, j = ExactOT()(torch.rand(5, 2), torch.rand(8, 2), torch.Generator().manual_seed(0))
    assert len(i) == len(j) == 5


def test_pairs_are_drawn_in_proportion_to_the_plan():
    plan = torch.tensor([[0.5, 0.0], [0.2, 0.3]], dtype=torch.float64)
    i, j = draw_pairs(plan, 20_000, torch.Generator().manual_seed(0))
    share = torch.zeros(2, 2).index_put((i, j), torch.ones(len(i)), accumulate=True) / len(i)
    torch.testing.assert_close(share.double(), plan, rtol=0, atol=0.015)


def test_log_domain_sinkhorn_equals_pots(batches):
    ot = pytest.importorskip("ot", reason="POT is the oracle of transport plans")
    cost = squared_distance(*(b.double() for b in batches))
    plan = sinkhorn_plan(cost, 1.0, scaled=False, tolerance=1e-12)
    uniform = np.full(24, 1 / 24)
    theirs = ot.sinkhorn(uniform, uniform, cost.numpy(), 1.0, method="sinkhorn_log", stopThr=1e-13, numItermax=1000)
    np.testing.assert_allclose(plan.numpy(), theirs, rtol=0, atol=1e-6)


def test_little_entropy_gives_the_exact_plan():
    cost = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = sinkhorn_plan(cost, 5e-3, iterations=10_000)
    torch.testing.assert_close(plan, exact_plan(cost), rtol=0, atol=1e-4)


def test_many_dimensions_do_not_underflow_into_the_uniform_plan():
    generator = torch.Generator().manual_seed(0)
    cost = squared_distance(torch.randn(64, 50, generator=generator), torch.randn(64, 50, generator=generator))
    plan = sinkhorn_plan(cost, 0.05, scaled=False, iterations=2000)
    assert bool(torch.isfinite(plan).all())
    assert float(plan.max()) > 10 / 64**2  # the uniform plan has 1/64^2 everywhere
    torch.testing.assert_close(plan.sum(0), torch.full((64,), 1 / 64, dtype=torch.float64))


@pytest.mark.parametrize(
    ("method", "plan"),
    [
        ("exact", exact_plan),
        ("sinkhorn", lambda c: sinkhorn_plan(c, 1.0, scaled=False, iterations=10_000, tolerance=1e-12)),
    ],
)
def test_plans_equal_those_of_torchcfm(method, plan, batches):
    theirs = pytest.importorskip("torchcfm.optimal_transport", reason="torchcfm is the oracle of mini-batch plans")
    x0, x1 = (b.double() for b in batches)
    expected = theirs.OTPlanSampler(method, reg=1.0).get_map(x0, x1)
    np.testing.assert_allclose(plan(squared_distance(x0, x1)).numpy(), expected, rtol=0, atol=1e-6)


def test_resampling_draws_what_torchcfm_draws(batches):
    theirs = pytest.importorskip("torchcfm.optimal_transport", reason="torchcfm is the oracle of mini-batch plans")
    x0, x1 = (b.double() for b in batches)
    sampler = theirs.OTPlanSampler("exact")
    allowed = set(zip(*np.nonzero(sampler.get_map(x0, x1)), strict=True))
    i, j = ExactOT(resample=True)(x0, x1, torch.Generator().manual_seed(0))
    assert set(zip(i.tolist(), j.tolist(), strict=True)) <= allowed
    assert len(set(i.tolist())) < 24  # with replacement, some come twice


@pytest.mark.parametrize("name", ["unbalanced", "partial"])
def test_relaxed_plans_equal_pots(name, batches):
    ot = pytest.importorskip("ot", reason="POT is the oracle of transport plans")
    from headwater_flow.couplings import _by_pot

    x0, x1 = (b.double() for b in batches)
    cost = squared_distance(x0, x1)
    cost = cost / cost.mean()
    uniform = np.full(24, 1 / 24)
    if name == "unbalanced":
        found = sinkhorn_plan(cost, 0.1, reg_marginals=1.0, tolerance=1e-10)
        expected = ot.unbalanced.sinkhorn_unbalanced(uniform, uniform, cost.numpy(), 0.1, 1.0, stopThr=1e-12)
    else:
        found = _by_pot("partial", cost, reg=0.05, m=0.9)
        expected = ot.partial.entropic_partial_wasserstein(uniform, uniform, cost.numpy(), reg=0.05, m=0.9)
        assert float(found.sum()) == pytest.approx(0.9, rel=1e-3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("coupling", [ExactOT(), Sinkhorn(), UnbalancedOT(), PartialOT()])
def test_transport_shortens_the_way(coupling, batches):
    if isinstance(coupling, PartialOT):
        pytest.importorskip("ot", reason="partial plans are POT's")
    x0, x1 = batches
    i, j = coupling(x0, x1, torch.Generator().manual_seed(0))
    assert float((x0[i] - x1[j]).square().sum(1).mean()) < 0.7 * float(squared_distance(x0, x1).mean())


def test_an_outlier_is_left_out_where_the_marginals_give_way():
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(40, 2, generator=generator) * 0.1, torch.randn(40, 2, generator=generator) * 0.1
    x1[0] = 50.0
    _, j = UnbalancedOT()(x0, x1, generator)
    assert 0 not in j.tolist()
    assert 0 in ExactOT()(x0, x1)[1].tolist()


def test_no_plan_of_pot_is_an_error():
    pytest.importorskip("ot", reason="partial plans are POT's")
    with pytest.raises(NonFinite, match="larger reg"):
        PartialOT(reg=1e-6)(torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [300.0]]))


def test_conditional_transport_keeps_classes_together(batches):
    x0, x1 = batches
    classes = torch.arange(24) % 3
    shuffled = classes[torch.randperm(24, generator=torch.Generator().manual_seed(1))]
    i, j = ExactOT(condition_weight=1e4)(x0, x1, conditions=(classes, shuffled))
    assert torch.equal(classes[i], shuffled[j])
    free = ExactOT(condition_weight=0.0)(x0, x1, conditions=(classes, shuffled))[1]
    assert torch.equal(free, ExactOT()(x0, x1)[1])


def test_condition_costs():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [2.0]])
    assert condition_cost(a, b).tolist() == [[1.0, 4.0], [1.0, 0.0]]
    assert condition_cost(torch.tensor([0, 1]), torch.tensor([1, 1])).tolist() == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("coupling", [ExactOT(), Sinkhorn(), UnbalancedOT(), PartialOT()])
def test_transport_that_ignores_conditions_is_refused(coupling, batches):
    classes = torch.zeros(24, dtype=torch.long)
    with pytest.raises(UsageError, match="condition_weight"):
        coupling(*batches, conditions=(classes, classes))


def test_independent_pairs_take_conditions_as_they_are(batches):
    i, j = Independent()(*batches, conditions=(torch.zeros(24), torch.zeros(24)))
    assert torch.equal(i, j)


@pytest.mark.parametrize("coupling", [ExactOT(), Sinkhorn()])
def test_values_that_are_not_finite_are_refused(coupling, batches):
    x0, x1 = batches
    x0[3, 1] = float("nan")
    with pytest.raises(NonFinite, match="not finite"):
        coupling(x0, x1)
