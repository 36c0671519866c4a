"""The von Mises flow against scipy, quadrature, enumeration of moments, and a chain of updates."""

import math

import numpy as np
import pytest
import torch
from headwater_bfn import vonmises
from headwater_bfn.schedule import von_mises_schedule
from headwater_bfn.vonmises import Angles, Bank, Belief
from scipy.stats import ks_2samp, kstest
from scipy.stats import vonmises as reference


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_entropy_is_that_of_scipy():
    k = double(0.0, 1e-3, 0.5, 3.0, 40.0, 900.0)
    assert float(vonmises.entropy(k)[0]) == pytest.approx(math.log(2 * math.pi), abs=1e-12)
    expected = [reference.entropy(v) for v in k[1:].tolist()]
    np.testing.assert_allclose(vonmises.entropy(k)[1:].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_entropy_of_a_sharp_belief_is_that_of_a_gaussian():
    k = double(1e6)
    assert float(vonmises.entropy(k)) == pytest.approx(0.5 * math.log(2 * math.pi * math.e / 1e6), rel=1e-6)


def test_density_is_that_of_scipy():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    expected = reference.logpdf(x.numpy(), 12.0, loc=0.4)
    np.testing.assert_allclose(vonmises.log_density(x, double(0.4), double(12.0)).numpy(), expected, rtol=1e-10)


def test_the_mean_resultant_can_be_inverted_up_to_its_limits():
    k = torch.logspace(-4, 8, 60, dtype=torch.float64)
    torch.testing.assert_close(vonmises.inverse_mean_resultant(vonmises.mean_resultant(k)), k, rtol=2e-6, atol=0)
    assert float(vonmises.inverse_mean_resultant(double(0.0))) == 0


def test_divergence_is_that_by_quadrature():
    x = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
    log_p, log_q = vonmises.log_density(x, double(0.3), double(7.0)), vonmises.log_density(x, double(-1.0), double(2.5))
    expected = torch.trapezoid(log_p.exp() * (log_p - log_q), x)
    found = vonmises.kl(double(0.3), double(7.0), double(-1.0), double(2.5))
    assert float(found) == pytest.approx(float(expected), rel=1e-8)


def test_the_loss_is_the_divergence_of_sender_and_receiver():
    a = double(5.0)
    found = vonmises.loss_discrete(double(0.7), double(-0.4), a, 10)
    assert float(found) == pytest.approx(10 * float(vonmises.kl(double(0.7), a, double(-0.4), a)), rel=1e-12)


def test_an_update_is_bayes_rule():
    x = torch.linspace(-math.pi, math.pi, 4001, dtype=torch.float64)
    before, y, a = Belief(double(0.5), double(2.0)), double(-1.3), 3.5
    after = vonmises.update(before, y, a)
    log_posterior = vonmises.log_density(x, *before) + vonmises.log_density(y, x, double(a))
    difference = log_posterior - vonmises.log_density(x, *after)
    assert float(difference.max() - difference.min()) < 1e-12


def test_updates_in_any_order_are_the_sum_of_vectors():
    g = generator()
    y, a = 6 * torch.rand(5, dtype=torch.float64, generator=g) - 3, 9 * torch.rand(5, dtype=torch.float64, generator=g)
    c, s = (a * y.cos()).sum(), (a * y.sin()).sum()
    for order in (range(5), reversed(range(5))):
        belief = Belief(double(0.0), double(0.0))
        for j in order:
            belief = vonmises.update(belief, y[j], a[j])
        assert float(belief.mean) == pytest.approx(float(torch.atan2(s, c)), abs=1e-12)
        assert float(belief.concentration) == pytest.approx(float(torch.hypot(c, s)), abs=1e-12)


def test_moments_of_the_sum_of_messages():
    alpha = von_mises_schedule(10)[0][:6]
    g, draws = generator(), 200_000
    y = Angles(alpha).draw(torch.arange(6).unsqueeze(1).expand(-1, draws), g)
    cosine, sine = ((alpha.unsqueeze(1) * f(y)).sum(0) for f in (torch.cos, torch.sin))
    expected, of_cosine, of_sine = vonmises.moments(alpha)
    assert float(cosine.mean()) == pytest.approx(float(expected), abs=4 * float(of_cosine / draws) ** 0.5)
    assert float(sine.var()) == pytest.approx(float(of_sine), rel=0.01)
    assert float(cosine.var()) == pytest.approx(float(of_cosine), rel=0.02)
    assert float(expected) == float(of_sine)


@pytest.mark.parametrize("k", [1e-9, 0.3, 2.0, 60.0, 2e4, 1e8])
def test_draws_have_the_law(k):
    """Both ways to draw, by the Kolmogorov-Smirnov test, whose p-value would be below 1e-4 in one of 10,000 runs."""
    one = vonmises.sample(torch.zeros(20_000, dtype=torch.float64), double(k).expand(20_000), generator())
    two = Angles(double(k)).draw(torch.zeros(20_000, dtype=torch.long), generator(1))

    def cdf(x):
        if k < 1e-6:
            return (x + math.pi) / (2 * math.pi)
        return reference.cdf(x, k)

    for draws in (one, two):
        assert kstest(draws.numpy(), cdf).pvalue > 1e-4


def test_draws_turn_with_their_centre_and_stay_in_the_circle():
    mean, k = torch.full((1000,), 3.0), torch.full((1000,), 4.0)
    y = vonmises.sample(mean, k, generator())
    assert float(y.abs().max()) <= math.pi + 1e-6
    again = vonmises.sample(torch.zeros(1000), k, generator())
    torch.testing.assert_close(vonmises.wrap(y - 3.0 - again), torch.zeros(1000), atol=1e-5, rtol=0)


def test_chain_exact_flow_and_bank_have_one_law():
    alpha = von_mises_schedule(20)[0]
    angles, bank = Angles(alpha), Bank(Angles(alpha), size=20_000)
    i, draws, x = 9, 10_000, torch.full((10_000,), 2.9, dtype=torch.float64)
    g, chain = generator(3), Belief(torch.zeros(draws, dtype=torch.float64), torch.zeros(draws, dtype=torch.float64))
    for j in range(i):
        y = vonmises.wrap(x + angles.draw(torch.full((draws,), j), g))
        chain = vonmises.update(chain, y, alpha[j])
    steps = torch.full((draws,), i)
    for belief in (vonmises.flow(x, steps, angles, g), bank.flow(x, steps, g)):
        pairs = (
            (vonmises.wrap(belief.mean - x), vonmises.wrap(chain.mean - x)),
            (belief.concentration, chain.concentration),
        )
        for a, b in pairs:
            assert ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-3
        joint = [(b.concentration * (b.mean - x).cos()).mean() for b in (belief, chain)]
        spread = float((chain.concentration * (chain.mean - x).cos()).std())
        assert abs(float(joint[0] - joint[1])) < 4 * spread * (2 / draws) ** 0.5


def test_nothing_is_known_before_the_first_message():
    angles = Angles(von_mises_schedule(5)[0])
    for belief in (
        vonmises.flow(torch.zeros(5000), torch.zeros(5000, dtype=torch.long), angles, generator()),
        Bank(angles, size=64).flow(torch.zeros(5000), torch.zeros(5000, dtype=torch.long), generator()),
    ):
        assert float(belief.concentration.max()) == 0
        assert kstest(belief.mean.numpy(), "uniform", args=(-math.pi, 2 * math.pi)).pvalue > 1e-4


def test_a_bank_depends_on_its_seed_alone():
    angles = Angles(von_mises_schedule(5)[0])
    assert torch.equal(Bank(angles, 32, seed=4).deviation, Bank(angles, 32, seed=4).deviation)
    assert not torch.equal(Bank(angles, 32, seed=4).deviation, Bank(angles, 32, seed=5).deviation)


def test_log_accuracy_goes_from_0_to_1():
    la = vonmises.log_accuracy(double(0.0, 1000.0), 1000.0)
    assert float(la[0]) == 0
    assert float(la[1]) == pytest.approx(1, abs=1e-9)
