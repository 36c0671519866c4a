"""Ancestral and end-back sampling, and BFN-Solver, on cases with a closed form."""

import math
from itertools import pairwise

import pytest
import torch
from headwater import UsageError
from headwater_bfn import continuous, discrete, solver, vonmises
from headwater_bfn.parts import Categorical, Gaussian, VonMises
from headwater_bfn.sampling import sample
from headwater_bfn.schedule import von_mises_schedule
from headwater_bfn.solver import continuous_step, discrete_step, grid, solve_continuous, solve_discrete
from torch.nn.functional import one_hot

S = 0.05
SPREAD = 0.6
"""Standard deviation of the Gaussian data on which everything is known."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def denoise(x, t):
    """E[data | mean of the belief] for data N(0, SPREAD^2)."""
    a = continuous.gamma(t, S)
    return x * a * SPREAD**2 / (a * a * SPREAD**2 + a * continuous.remaining(t, S))


def deviation(t):
    a = continuous.gamma(t, S)
    return math.sqrt(a * a * SPREAD**2 + a * continuous.remaining(t, S))


class TestLoops:
    def test_ancestral_sampling_is_the_chain_written_out(self):
        n, target = 6, torch.tensor([0.2, -0.7], dtype=torch.float64)

        def estimate(mean):
            return 0.5 * mean + 0.1

        seen = []

        def predict(beliefs, i):
            seen.append((i, beliefs["x"]))
            return {"x": estimate(beliefs["x"])}

        found = sample(predict, {"x": Gaussian(n, S)}, {"x": target}, n, "ancestral", generator(), last_call=True)
        g, mean, precision = generator(), torch.zeros(2, dtype=torch.float64), 1.0
        for i in range(1, n + 1):
            a = continuous.step_alpha(i, n, S)
            mean, precision = continuous.update(mean, precision, continuous.sender(estimate(mean), a, g), a)
        assert [i for i, _ in seen] == list(range(1, n + 2))
        torch.testing.assert_close(found["x"], estimate(mean), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize(("method", "back"), [("end-back", 8), ("ancestral", 0), ("mix", 5)])
    def test_which_steps_go_back_to_the_end(self, method, back):
        calls = []

        class Spy(Gaussian):
            def flow(self, estimate, i, g):
                calls.append("flow")
                return super().flow(estimate, i, g)

            def receive(self, belief, estimate, i, g):
                calls.append("receive")
                return super().receive(belief, estimate, i, g)

        sample(lambda beliefs, i: beliefs, {"x": Spy(9, S)}, {"x": torch.zeros(2)}, 9, method)
        assert calls == ["flow"] * back + ["receive"] * (8 - back)  # 8 updates lie between 9 calls

    def test_both_chains_reach_the_law_of_gaussian_data(self):
        """With the exact estimate of single numbers the ancestral chain's law tends to that of the data."""
        n, draws = 400, 40_000
        predict = lambda beliefs, i: {"x": denoise(beliefs["x"], max((i - 1) / n, 1e-9))}  # noqa: E731
        like = {"x": torch.zeros(draws, dtype=torch.float64)}
        found = sample(predict, {"x": Gaussian(n, S)}, like, n, "ancestral", generator(), last_call=True)["x"]
        assert float(found.std()) == pytest.approx(SPREAD, rel=0.02)

    def test_a_certain_network_gives_what_it_is_certain_of(self):
        angles = vonmises.Angles(von_mises_schedule(10)[0])
        parts = {"x": Gaussian(10, S), "c": Categorical(10, 3.0), "a": VonMises(angles, vonmises.Bank(angles, 64))}
        truth = {"x": torch.tensor([0.3]), "c": one_hot(torch.tensor([1]), 4).float(), "a": torch.tensor([2.0])}
        for method in ("end-back", "ancestral", "mix"):
            beliefs = {}

            def predict(now, i, beliefs=beliefs):
                beliefs.update(now)
                return truth

            sample(predict, parts, truth, 10, method, generator(), last_call=True)
            assert float(beliefs["x"]) == pytest.approx(0.3, abs=5 * S)
            assert float(beliefs["a"].mean) == pytest.approx(2.0, abs=5 / math.sqrt(1000))
            assert int(beliefs["c"].argmax()) == 1

    def test_categories_without_probability_still_have_a_flow(self):
        p = torch.tensor([[1.0, 0.0, 0.0]])
        assert torch.isfinite(Categorical(5, 1.0).flow(p, 3, generator())).all()


class TestContinuousSolver:
    @pytest.mark.parametrize(("method", "order"), [("ode1", 1), ("ode2", 2)])
    def test_the_ode_rules_converge_at_their_order(self, method, order):
        """The exact solution for Gaussian data keeps x in proportion to its standard deviation."""
        eta, start = 0.02, torch.tensor([0.01], dtype=torch.float64)
        exact = float(start) * deviation(1.0) / deviation(eta)
        errors = []
        for n in (100, 200, 400):
            x = solve_continuous(denoise, start, grid(n, eta), S, method, bound=None, last_drop=False, start=start)
            errors.append(abs(float(x) - exact))
        for coarse, fine in pairwise(errors):
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)

    @pytest.mark.parametrize(("method", "order"), [("sde-euler", 1), ("sde1", 1), ("sde2", 2)])
    def test_the_variance_of_the_sde_rules_converges_at_their_order(self, method, order):
        """Every rule is linear here, so variances are followed exactly: x is a row of coefficients of all noises."""
        eta, errors = 0.05, []
        for n in (100, 200, 400):
            times = grid(n, eta)
            x = torch.zeros(n + 1, dtype=torch.float64)
            x[0] = deviation(eta)
            before = None
            for k, (t1, t2) in enumerate(pairwise(times)):
                estimate = denoise(x, t1)
                noise = torch.zeros_like(x)
                noise[k + 1] = 1
                x, before = continuous_step(x, estimate, t1, t2, S, method, before, noise), (estimate, t1)
            errors.append(abs(float(x.square().sum().sqrt()) - deviation(1.0)))
        rates = [math.log2(a / b) for a, b in pairwise(errors)]
        assert min(rates) > order - 0.3, rates

    def test_a_rule_of_order_2_needs_fewer_steps(self):
        start = torch.tensor([0.01], dtype=torch.float64)
        exact = float(start) * deviation(1.0) / deviation(0.02)
        first, second = (
            abs(
                float(solve_continuous(denoise, start, grid(40, 0.02), S, m, bound=None, last_drop=False, start=start))
                - exact
            )
            for m in ("ode1", "ode2")
        )
        assert second < first / 3

    def test_the_last_update_can_be_left_out(self):
        calls = []

        def network(x, t):
            calls.append(t)
            return torch.full_like(x, 3.0)

        found = solve_continuous(network, torch.zeros(2), grid(5), S)
        assert found.tolist() == [1.0, 1.0]  # the clipped estimate itself
        assert len(calls) == 5


class TestDiscreteSolver:
    K = 4
    B = 2.0

    def network(self, z, t):
        """Probabilities that change smoothly with time and with the logits."""
        return (z + torch.linspace(0, t, self.K, dtype=z.dtype)).softmax(-1)

    def test_one_step_with_a_drawn_class_is_the_sampler_of_bayesian_flows(self):
        z, n, i = torch.randn(3, self.K, generator=generator()), 10, 4
        chosen = one_hot(torch.tensor([0, 2, 1]), self.K).float()
        noise = torch.randn(3, self.K, generator=generator(1))
        y = discrete.sender(chosen, discrete.step_alpha(i, n, self.B), generator(1))
        found = discrete_step(z, chosen, (i - 1) / n, i / n, self.B, "sde1", noise=noise)
        torch.testing.assert_close(found, discrete.update(z, y))

    @pytest.mark.parametrize(("method", "order"), [("ode-euler", 1), ("ode1", 1), ("ode2", 2), ("ode2-single", 2)])
    def test_the_ode_rules_converge_at_their_order(self, method, order):
        """Against the same equation z' = z/t + B t (K p - 1), integrated by classical Runge-Kutta in 4000 steps."""
        start = torch.tensor([[0.2, -0.1, 0.05, -0.3]], dtype=torch.float64)
        eta, z, steps = 0.1, start.clone(), 4000
        h = (1 - eta) / steps

        def slope(z, t):
            return z / t + self.B * t * (self.K * self.network(z, t) - 1)

        for k in range(steps):
            t = eta + k * h
            k1 = slope(z, t)
            k2 = slope(z + h / 2 * k1, t + h / 2)
            k3 = slope(z + h / 2 * k2, t + h / 2)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(z + h * k3, t + h))
        errors = []
        for n in (80, 160, 320):
            p = solve_discrete(self.network, start, grid(n, eta), self.B, method, last_drop=False, start=start)
            errors.append(float((p - z.softmax(-1)).abs().max()))
        for coarse, fine in pairwise(errors):
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)

    @pytest.mark.parametrize(("method", "order"), [("sde1", 1), ("sde2", 2)])
    def test_the_drift_of_the_sde_rules_has_their_order(self, method, order):
        """With p a function of time alone the mean of z is the integral of 2 B t (K p - 1)."""
        p = lambda t: torch.tensor([0.7 - 0.4 * t * t, 0.1 + 0.4 * t * t, 0.1, 0.1], dtype=torch.float64)  # noqa: E731
        t = torch.linspace(0.1, 1, 20_001, dtype=torch.float64)
        values = torch.stack([2 * self.B * s * (self.K * p(float(s)) - 1) for s in t])
        exact = torch.trapezoid(values, t.unsqueeze(1), dim=0)
        errors = []
        for n in (20, 40, 80):
            times, z, before = grid(n, 0.1), torch.zeros(self.K, dtype=torch.float64), None
            for t1, t2 in pairwise(times):
                slope = None if before is None else (p(t1) - before[0]) / (t1 - before[1])
                z = discrete_step(z, p(t1), t1, t2, self.B, method, slope, torch.zeros_like(z))
                before = p(t1), t1
            errors.append(float((z - exact).abs().max()))
        for coarse, fine in pairwise(errors):
            assert math.log2(coarse / fine) > order - 0.3

    def test_samples_are_probabilities(self):
        for method in ("ode2", "sde2", "ode2-single"):
            p = solve_discrete(self.network, torch.zeros(6, self.K), grid(8), self.B, method, generator())
            torch.testing.assert_close(p.sum(-1), torch.ones(6))


def test_the_grid_never_holds_0():
    assert solver.grid(10)[0] > 0
    assert solver.grid(10)[-1] == 1.0


def test_a_stochastic_rule_without_noise_is_refused():
    x = torch.zeros(2)
    with pytest.raises(UsageError, match="sde2 is stochastic"):
        continuous_step(x, x, 0.1, 0.2, S, "sde2")
    with pytest.raises(UsageError, match="sde1 is stochastic"):
        discrete_step(x, x, 0.1, 0.2, 1.0, "sde1")
