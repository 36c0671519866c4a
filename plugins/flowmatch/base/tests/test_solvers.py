import math

import pytest
import torch
from headwater.errors import NonFinite, UsageError
from headwater_flow.solvers import (
    DOPRI5,
    TABLEAUX,
    Controller,
    Counted,
    _dense,
    _stages,
    cosine_grid,
    edm_grid,
    solve,
    solve_adaptive,
    solve_stochastic,
    uniform_grid,
)

A = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def field(t, x):
    t = t.reshape(-1, 1) if t.ndim else t
    return torch.tanh(x @ A.to(x.dtype)) + t


@pytest.fixture(scope="module")
def exact():
    return solve(field, X, "rk4-classic", steps=4000)


@pytest.mark.parametrize(
    ("method", "order"),
    [("euler", 1), ("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4), ("rk4-classic", 4)],
)
def test_the_error_falls_with_the_order_of_the_method(method, order, exact):
    errors = [float((solve(field, X, method, steps=n) - exact).abs().max()) for n in (20, 40)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)
    assert TABLEAUX[method].order == order


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_fixed_steps_equal_torchdiffeq(method):
    peer = pytest.importorskip("torchdiffeq", reason="torchdiffeq is the oracle of the solvers")
    grid = cosine_grid(7)
    expected = peer.odeint(field, X, grid, method=method)
    torch.testing.assert_close(solve(field, X, method, grid=grid), expected[-1], rtol=0, atol=1e-6)
    torch.testing.assert_close(solve(field, X, method, grid=grid, times=grid), expected, rtol=0, atol=1e-6)


def test_the_two_rules_of_order_four_differ():
    gap = (solve(field, X, "rk4", steps=5) - solve(field, X, "rk4-classic", steps=5)).abs().max()
    assert 1e-8 < float(gap) < 1e-3


def test_adaptive_steps_equal_torchdiffeq():
    peer = pytest.importorskip("torchdiffeq", reason="torchdiffeq is the oracle of the solvers")
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    expected = peer.odeint(field, X, times, method="dopri5", rtol=1e-9, atol=1e-9)
    settings = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(solve(field, X, "dopri5", **settings), expected[-1], rtol=0, atol=1e-6)
    found = solve(field, X, "dopri5", times=times, **settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_the_adaptive_error_is_of_the_size_of_the_tolerance(tolerance, per_sample, exact):
    found = solve(field, X, "dopri5", rtol=tolerance, atol=tolerance, per_sample=per_sample)
    assert float((found - exact).abs().max()) < 10 * tolerance


@pytest.mark.parametrize("per_sample", [False, True])
def test_what_lies_between_steps_is_as_good_and_costs_nothing(per_sample):
    times = torch.linspace(0, 1, 41, dtype=torch.float64)
    settings = {"rtol": 1e-6, "atol": 1e-6, "per_sample": per_sample}
    ends, all_times = Counted(field), Counted(field)
    end = solve(ends, X, "dopri5", **settings)
    states = solve(all_times, X, "dopri5", times=times, **settings)
    assert ends.evaluations == all_times.evaluations
    assert (ends.evaluations - 2) % 6 == 0  # two for the first step size, then six a step
    torch.testing.assert_close(states[-1], end, rtol=0, atol=1e-14)
    torch.testing.assert_close(states[0], X, rtol=0, atol=0)
    reference = solve(field, X, "rk4-classic", grid=uniform_grid(4000), times=times)
    assert float((states - reference).abs().max()) < 20 * 1e-6


def test_dense_output_is_of_order_four():
    def error(h):
        stages = _stages(
            field, DOPRI5, torch.tensor(0.0).double(), torch.tensor(h).double(), X, field(torch.zeros(()), X)
        )
        arrived = X + h * sum(b * k for b, k in zip(DOPRI5.b, stages, strict=True))
        inside = _dense(X, arrived, torch.tensor(h).double(), stages, torch.tensor(0.3).double())
        return float((inside - solve(field, X, "rk4-classic", steps=200, t1=0.3 * h)).abs().max())

    assert math.log2(error(0.2) / error(0.1)) == pytest.approx(5, abs=0.4)  # of one step: one more than the order


def test_a_trajectory_of_fixed_steps_is_cubic_between_grid_points():
    counted = Counted(field)
    times = torch.linspace(0, 1, 31, dtype=torch.float64)
    states = solve(counted, X, "rk4-classic", steps=10, times=times)
    assert counted.evaluations == 41  # four a step, and the velocity at the end
    reference = solve(field, X, "rk4-classic", steps=300, times=times)
    finer = solve(field, X, "rk4-classic", steps=20, times=times)
    errors = [float((found - reference).abs().max()) for found in (states, finer)]
    assert errors[0] < 1e-4
    assert math.log2(errors[0] / errors[1]) > 3.5


@pytest.mark.parametrize("method", ["heun3", "dopri5"])
def test_backward_undoes_forward(method):
    settings = {"steps": 300} if method == "heun3" else {"rtol": 1e-9, "atol": 1e-9}
    end = solve(field, X, method, **settings)
    torch.testing.assert_close(solve(field, end, method, t0=1.0, t1=0.0, **settings), X, rtol=0, atol=1e-6)


def test_under_per_sample_control_no_sample_knows_of_the_others():
    stiff = X.clone()
    stiff[2] *= 40  # another size of error than the rest
    settings = {"rtol": 1e-5, "atol": 1e-5, "per_sample": True}
    whole = solve(field, stiff, "dopri5", **settings)
    order = torch.tensor([3, 2, 5, 0, 1, 4])
    torch.testing.assert_close(solve(field, stiff[order], "dopri5", **settings), whole[order], rtol=0, atol=1e-13)
    for i in range(6):
        alone = solve(field, stiff[i : i + 1], "dopri5", **settings)
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-13)
    shared = {"rtol": 1e-5, "atol": 1e-5}
    with_others = solve(field, stiff, "dopri5", **shared)[:2]
    assert not torch.equal(with_others, solve(field, stiff[:2], "dopri5", **shared))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "heun3", "steps": 20},
        {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6},
        {"method": "dopri5", "rtol": 1e-6, "atol": 1e-6, "per_sample": True},
    ],
)
def test_gradients_go_through_the_solution(settings):
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    end = solve(lambda t, y: rate * y, x, times=times, **settings)[-1]
    by_rate, by_x = torch.autograd.grad(end.sum(), [rate, x])
    assert float(by_rate) == pytest.approx(2 * math.exp(0.7), rel=2e-3)
    assert by_x.ravel().tolist() == pytest.approx([math.exp(0.7)] * 2, rel=2e-3)


def test_a_plain_controller_is_the_pi_controller_without_memory():
    error, before = torch.tensor(0.5), torch.tensor(1e-2)
    assert float(Controller(beta=0.0).factor(error, before)) == pytest.approx(0.9 * 0.5**-0.2)
    assert float(Controller().factor(torch.tensor(2.0), before)) < 1


def test_grids_run_from_zero_to_one():
    for grid in (uniform_grid(9), cosine_grid(9), edm_grid(9)):
        assert len(grid) == 10
        assert (float(grid[0]), float(grid[-1])) == (0.0, 1.0)
        assert bool((grid.diff() > 0).all())
    assert float(cosine_grid(2)[1]) == pytest.approx(1 - math.cos(math.pi / 4))
    assert float(edm_grid(9)[-2]) == pytest.approx(1 / 1.002)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rk5", "steps": 3}, "midpoint"),
        ({"method": "euler"}, "either steps or grid"),
        ({"method": "euler", "steps": 3, "grid": uniform_grid(3)}, "not both"),
        ({"method": "euler", "steps": 0}, "at least one"),
        ({"method": "euler", "steps": 3, "per_sample": True}, "dopri5"),
        ({"method": "dopri5", "steps": 3}, "its own steps"),
        ({"method": "euler", "grid": torch.tensor([0.0, 1.0, 0.5])}, "all rise"),
        ({"method": "dopri5", "times": torch.tensor([0.5, 0.2])}, "direction"),
        ({"method": "dopri5", "times": torch.tensor([0.5, 1.5])}, "from 0.0 to 1.0"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        solve(field, X, **settings)


def test_a_step_below_the_precision_is_refused():
    with pytest.raises(UsageError, match=r"near|0\.5.* in float32: raise rtol"):
        solve(lambda t, x: x**2, torch.full((1, 1), 2.0), "dopri5")  # reaches infinity at t = 0.5


def test_a_velocity_that_is_not_finite_is_refused():
    with pytest.raises(NonFinite, match="not finite"):
        solve(lambda t, x: x / (t - t), X, "dopri5")


def test_too_many_steps_are_refused():
    with pytest.raises(UsageError, match="3 steps"):
        solve_adaptive(field, X, rtol=1e-9, atol=1e-9, max_steps=3)


# The stochastic equation


def gaussian_flow(t, x, s=2.0):
    """Velocity and score of x_t = (1 - t) x0 + t x1 with x0 from N(0, 1) and x1 from N(1, s^2), independent."""
    variance = (1 - t) ** 2 + t**2 * s**2
    return 1 + (t * s**2 - (1 - t)) / variance * (x - t), -(x - t) / variance


def test_the_stochastic_equation_has_the_marginals_of_the_flow():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator)
    end = solve_stochastic(
        lambda t, x: gaussian_flow(t, x)[0], lambda t, x: gaussian_flow(t, x)[1], x, uniform_grid(200),
        lambda t: 1.0 + t, generator,
    )  # fmt: skip
    assert float(end.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(end.std()) == pytest.approx(2.0, abs=0.05)


def test_the_last_step_adds_no_noise():
    x = torch.ones(3, 1)
    one_step = solve_stochastic(lambda t, x: x, lambda t, x: -x, x, uniform_grid(1), 0.5)
    torch.testing.assert_close(one_step, torch.full((3, 1), 2.0 - 0.125))
