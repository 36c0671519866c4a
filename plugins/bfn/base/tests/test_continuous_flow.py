"""Gaussian and discretised flows against closed forms, plain loops and enumeration."""

import math

import numpy as np
import pytest
import torch
from headwater_bfn import continuous, discretised
from scipy.stats import norm

S = 0.03


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [1, 7, 100])
def test_accuracies_add_up_to_beta(n):
    total = 0.0
    for i in range(1, n + 1):
        total += continuous.step_alpha(i, n, S)
        assert total == pytest.approx(continuous.beta(i / n, S), rel=1e-9)


def test_alpha_is_the_derivative_of_beta():
    t = torch.linspace(0, 1, 9, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(continuous.beta(t, S).sum(), t)
    torch.testing.assert_close(slope, continuous.alpha(t, S).detach())


def test_gamma_and_what_is_left_of_it_keep_their_digits():
    t = torch.tensor([1e-6, 0.3, 1.0])
    exact = 1 - 1e-3 ** (2 * t.double())
    torch.testing.assert_close(continuous.gamma(t, 1e-3).double(), exact, rtol=1e-6, atol=0)
    assert float(continuous.remaining(torch.tensor(1.0), 1e-3)) == pytest.approx(1e-6, rel=1e-5)


def test_a_chain_of_updates_is_the_sum_of_weighted_messages_and_has_the_law_of_the_flow():
    n, x = 8, torch.full((200_000,), 0.4, dtype=torch.float64)
    g, mean, precision, weighted = generator(), torch.zeros_like(x), 1.0, torch.zeros_like(x)
    for i in range(1, n + 1):
        a = continuous.step_alpha(i, n, S)
        y = continuous.sender(x, a, g)
        mean, precision = continuous.update(mean, precision, y, a)
        weighted += a * y
        if i == 5:
            t = i / n
            torch.testing.assert_close(mean, weighted / (1 + continuous.beta(t, S)))
            one = continuous.flow(x, t, S, g)
            variance = continuous.gamma(t, S) * continuous.remaining(t, S)
            for draws in (mean, one):  # standard errors of mean and variance of a normal sample
                assert float(draws.mean()) == pytest.approx(
                    0.4 * continuous.gamma(t, S), abs=4 * (variance / 2e5) ** 0.5
                )
                assert float(draws.var()) == pytest.approx(variance, rel=4 * (2 / 2e5) ** 0.5)
    assert precision == pytest.approx(1 + continuous.beta(1.0, S))


def test_noise_and_data_are_inverse():
    mean, t = torch.randn(5, dtype=torch.float64, generator=generator()), torch.linspace(0.1, 1, 5).double()
    x = continuous.data_from_noise(mean, torch.ones(5).double(), t, S, bound=None)
    torch.testing.assert_close(continuous.noise_from_data(mean, x, t, S), torch.ones(5).double())


def test_nothing_is_known_before_t_min_and_estimates_are_clipped():
    assert float(continuous.data_from_noise(torch.tensor(3.0), torch.tensor(1.0), 0.0, S)) == 0.0
    assert float(continuous.data_from_noise(torch.tensor(9.0), torch.tensor(0.0), 0.5, S)) == 1.0


def test_the_discrete_loss_is_the_divergence_of_two_gaussians():
    x, estimate, n, i = torch.tensor(0.3).double(), torch.tensor(-0.1).double(), 6, 4
    a = continuous.step_alpha(i, n, S)
    y = torch.linspace(-3, 3, 200_001, dtype=torch.float64)
    log_p, log_q = (0.5 * math.log(a / (2 * math.pi)) - 0.5 * a * (y - m).square() for m in (x, estimate))
    divergence = torch.trapezoid(log_p.exp() * (log_p - log_q), y)
    assert float(continuous.loss_discrete(x, estimate, i, n, S)) == pytest.approx(n * float(divergence), rel=1e-8)


def test_the_discrete_loss_tends_to_the_continuous_one_as_one_over_n():
    x, estimate = torch.tensor(0.3).double(), torch.tensor(0.1).double()
    errors = []
    for n in (100, 200, 400):
        t = 0.5
        i = t * n + 1  # the message after t
        ratio = continuous.loss_discrete(x, estimate, i, n, S) / continuous.loss_continuous(x, estimate, t, S)
        errors.append(abs(float(ratio) - 1))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


class TestDiscretised:
    k = 16

    def test_probabilities_are_those_of_scipy(self):
        mean, deviation = 0.37, 0.21
        p = discretised.bin_probabilities(
            torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation, dtype=torch.float64), self.k
        )
        edges = np.linspace(-1, 1, self.k + 1)
        cdf = norm.cdf(edges, mean, deviation)
        cdf[0], cdf[-1] = 0, 1
        np.testing.assert_allclose(p.numpy(), np.diff(cdf), atol=1e-12)
        cut = discretised.bin_probabilities(
            torch.tensor(mean, dtype=torch.float64),
            torch.tensor(deviation, dtype=torch.float64),
            self.k,
            renormalise=True,
        )
        inner = np.diff(norm.cdf(edges, mean, deviation))
        np.testing.assert_allclose(cut.numpy(), inner / inner.sum(), atol=1e-12)

    def test_log_probability_is_that_of_the_bin(self):
        mean, deviation = torch.tensor(0.1).double(), torch.tensor(0.4).double()
        p = discretised.bin_probabilities(mean, deviation, self.k)
        x = discretised.centres(self.k, torch.float64)
        found = discretised.log_probability(x, mean.expand(self.k), deviation.expand(self.k), self.k)
        torch.testing.assert_close(found, p.log())

    def test_an_improbable_bin_gets_the_density_at_its_centre(self):
        mean, deviation = torch.tensor(-0.9).double(), torch.tensor(0.01).double()
        found = discretised.log_probability(torch.tensor(0.55).double(), mean, deviation, self.k)
        assert float(found) == pytest.approx(norm.logpdf(0.5625, -0.9, 0.01) + math.log(2 / self.k))

    def test_bins_of_values_at_and_beyond_the_ends(self):
        x = torch.tensor([-2.0, -1.0, -0.8751, 0.0, 0.999, 1.0, 2.0])
        assert discretised.bin_of(x, self.k).tolist() == [0, 0, 0, 8, 15, 15, 15]

    def test_the_loss_is_the_divergence_by_quadrature(self):
        x, n, i = torch.tensor(0.0625).double(), 5, 2
        p = discretised.bin_probabilities(torch.tensor(0.2).double(), torch.tensor(0.3).double(), self.k)
        a = continuous.step_alpha(i, n, 0.3)
        y = torch.linspace(-6, 6, 100_001, dtype=torch.float64)

        def log_normal(m):
            return 0.5 * math.log(a / (2 * math.pi)) - 0.5 * a * (y.unsqueeze(-1) - m).square()

        k = discretised.centres(self.k, torch.float64)
        log_p, log_q = log_normal(x)[:, 0], (p.log() + log_normal(k)).logsumexp(-1)
        exact = n * float(torch.trapezoid(log_p.exp() * (log_p - log_q), y))
        draws = 40_000
        many = discretised.loss_discrete(x.expand(draws), p.expand(draws, -1), i, n, 0.3, generator(), 1)
        assert float(many.mean()) == pytest.approx(exact, abs=4 * float(many.std()) / draws**0.5)

    def test_the_output_before_t_min_is_standard_normal(self):
        mean, deviation = discretised.output_gaussian(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(5.0), 0.0, S)
        assert (float(mean), float(deviation)) == (0.0, 1.0)

    def test_the_reconstruction_of_the_true_value_costs_little(self):
        x = discretised.centres(self.k)
        right = discretised.reconstruction(x, x, 0.03, self.k)
        assert float(right.max()) < 0.05
        assert float(discretised.reconstruction(x, -x, 0.03, self.k).min()) > 1

    def test_losses_in_continuous_time_are_those_of_the_mean(self):
        p = discretised.bin_probabilities(torch.tensor([0.2]), torch.tensor([0.3]), self.k)
        mean = (p * discretised.centres(self.k)).sum(-1)
        x = torch.tensor([0.5])
        expected = -math.log(S) * S ** (-2 * 0.3) * (x - mean) ** 2
        torch.testing.assert_close(discretised.loss_continuous(x, p, 0.3, S), expected)
