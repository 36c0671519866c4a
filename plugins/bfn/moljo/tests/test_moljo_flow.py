"""The joint flow, its windows, losses and guided kernels against closed forms and plain loops."""

import math

import pytest
import torch
from headwater_bfn import continuous
from headwater_bfn_moljo import chains, flow, guidance
from headwater_bfn_moljo.flow import Belief

SIGMA1, BETA1, K = 0.03, 1.5, 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


@pytest.mark.parametrize(("i", "n"), [(1, 7), (4, 7), (7, 7), (130, 200)])
def test_a_window_from_the_prior_is_the_flow(i, n):
    x, e = normal(6, 3), normal(6, K, seed=1).softmax(-1)
    mean, variance = flow.coordinate_window(torch.zeros_like(x), x, 0, i, n, SIGMA1)
    gamma = continuous.gamma(i / n, SIGMA1)
    torch.testing.assert_close(mean, gamma * x, rtol=1e-10, atol=1e-10)
    assert variance == pytest.approx(gamma * continuous.remaining(i / n, SIGMA1), rel=1e-10)
    mean, variance = flow.type_window(torch.zeros_like(e), e, 0, i, n, BETA1)
    beta = BETA1 * (i / n) ** 2
    torch.testing.assert_close(mean, beta * (K * e - 1), rtol=1e-10, atol=1e-12)
    assert variance == pytest.approx(beta * K, rel=1e-12)


def test_single_updates_add_up_to_a_window():
    """Mean and variance of k plain updates with constant estimates, followed one by one."""
    x, e, n, j, i = normal(4, 3), normal(4, K, seed=1).softmax(-1), 20, 6, 13
    mu, y = normal(4, 3, seed=2), normal(4, K, seed=3)
    mean_mu, mean_y, var_mu, var_y = mu, y, 0.0, 0.0
    for step in range(j + 1, i + 1):
        shrink = (SIGMA1 ** (-2 * (step - 1) / n)) / (SIGMA1 ** (-2 * step / n))
        mean_mu, added = flow.coordinate_window(mean_mu, x, step - 1, step, n, SIGMA1)
        var_mu = shrink**2 * var_mu + added
        mean_y, added = flow.type_window(mean_y, e, step - 1, step, n, BETA1)
        var_y += added
    expected_mu, expected_var_mu = flow.coordinate_window(mu, x, j, i, n, SIGMA1)
    expected_y, expected_var_y = flow.type_window(y, e, j, i, n, BETA1)
    torch.testing.assert_close(mean_mu, expected_mu, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mean_y, expected_y, rtol=1e-10, atol=1e-10)
    assert var_mu == pytest.approx(expected_var_mu, rel=1e-9)
    assert var_y == pytest.approx(expected_var_y, rel=1e-9)


def test_a_plain_update_is_a_message_of_the_base():
    x, mu, noise, n, i = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2), 9, 4
    accuracy = continuous.step_alpha(i, n, SIGMA1)
    message = x + noise / accuracy**0.5
    expected, _ = continuous.update(mu, 1 + continuous.beta((i - 1) / n, SIGMA1), message, accuracy)
    mean, variance = flow.coordinate_window(mu, x, i - 1, i, n, SIGMA1)
    torch.testing.assert_close(mean + math.sqrt(variance) * noise, expected, rtol=1e-10, atol=1e-12)


def test_the_guided_gaussian_is_the_product_with_a_linear_energy():
    """N(m, v) exp(w g x), normalised by quadrature, has the mean that the formula says and the same variance."""
    m, v, g, w = 0.3, 0.7, -1.4, 2.5
    x = torch.linspace(-30, 30, 200001, dtype=torch.float64)
    log = -((x - m) ** 2) / (2 * v) + w * g * x
    p = log.softmax(0)
    mean = float((p * x).sum())
    shifted = flow.guided(torch.tensor(m, dtype=torch.float64), v, torch.tensor(g, dtype=torch.float64), w)
    assert mean == pytest.approx(float(shifted), abs=1e-8)
    assert float((p * (x - mean) ** 2).sum()) == pytest.approx(v, abs=1e-8)


def test_discrete_losses_tend_to_the_continuous_ones():
    x, estimate, t = normal(8, 3), normal(8, 3, seed=1), torch.linspace(0.05, 0.9, 8, dtype=torch.float64)
    fine = flow.coordinate_loss(x, estimate, t, SIGMA1, 10**6)
    torch.testing.assert_close(fine, flow.coordinate_loss(x, estimate, t, SIGMA1, None), rtol=1e-4, atol=0)


def test_the_published_weight_of_the_coordinates():
    x, estimate, t, n = normal(1, 3), normal(1, 3, seed=1), torch.tensor([0.4217], dtype=torch.float64), 1000
    i = math.floor(n * 0.4217) + 1
    weight = n * (1 - SIGMA1 ** (2 / n)) / (2 * SIGMA1 ** (2 * i / n))
    expected = weight * float((x - estimate).square().sum())
    assert float(flow.coordinate_loss(x, estimate, t, SIGMA1, n)) == pytest.approx(expected, rel=1e-9)


def test_the_short_type_loss_is_the_long_mixture(monkeypatch):
    """log N(u; sender) - log sum_k p_k N(u; receiver k), with K by K tables and the same draws."""
    from headwater_bfn import discrete

    draws, n, t = 50, 1000, torch.tensor([0.3456, 0.8123], dtype=torch.float64)
    e = torch.eye(K, dtype=torch.float64)[[1, 3]]
    logits = normal(2, K, seed=4)
    accuracy = BETA1 * (2 * (torch.floor(n * t) + 1) - 1) / n**2
    noise = normal(draws, 2, K, seed=5)
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: noise)
    u = discrete.sender(e.expand(draws, 2, K), accuracy)
    centres = accuracy[:, None, None] * (K * torch.eye(K, dtype=torch.float64) - 1)
    spread = (accuracy[:, None, None] * K).sqrt()
    log = torch.distributions.Normal(centres, spread).log_prob(u[:, :, None, :]).sum(-1)
    long = (log * e).sum(-1) - (log + logits.log_softmax(-1)).logsumexp(-1)
    found = flow.type_loss(e, logits, t, BETA1, n, None, draws)
    torch.testing.assert_close(found, n * long.mean(0), rtol=1e-6, atol=1e-9)


class Toy:
    """A network and an objective in closed form, in double precision."""

    def network(self, belief, t):
        return 0.5 * belief.mu + 1.0 - t, 2.0 * belief.y + torch.arange(K, dtype=torch.float64)

    def predict(self, mu, theta):
        first = (mu.square().sum(-1) * (theta[:, 0] + 0.5)).mean().neg().exp()
        second = torch.sigmoid(mu.sum(-1).mean() + theta[:, 1].mean())
        return [first.reshape(1), second.reshape(1)]


def run(sampler, **options):
    toy = Toy()
    start = Belief(torch.zeros(6, 3, dtype=torch.float64), torch.zeros(6, K, dtype=torch.float64))
    return sampler(toy.network, start, 12, SIGMA1, BETA1, seeded(3), **options)


def test_gradients_are_those_of_the_objective():
    """By logits and by probabilities, against central differences of sum_c w_c log P_c / sum w_c."""
    toy, belief, weights = Toy(), Belief(normal(6, 3), normal(6, K, seed=1)), [2.0, 1.0]

    def value(mu, theta):
        logs = [p.log().sum() for p in toy.predict(mu, theta)]
        return float((2.0 * logs[0] + logs[1]) / 3.0)

    step = 1e-6
    for found, at, of_theta in (
        (guidance.by_logits(toy.predict, belief, weights), belief.y, lambda y: y.softmax(-1)),
        (guidance.by_probabilities(toy.predict, belief, weights), belief.theta, lambda theta: theta),
    ):
        for row, column in ((0, 0), (2, 1), (5, 4)):
            shift = torch.zeros_like(at)
            shift[row, column] = step
            slope = (value(belief.mu, of_theta(at + shift)) - value(belief.mu, of_theta(at - shift))) / (2 * step)
            assert float(found[1][row, column]) == pytest.approx(slope, abs=1e-7)
        shift = torch.zeros_like(belief.mu)
        shift[1, 2] = step
        slope = (value(belief.mu + shift, belief.theta) - value(belief.mu - shift, belief.theta)) / (2 * step)
        assert float(found[0][1, 2]) == pytest.approx(slope, abs=1e-7)


def test_theory_and_official_agree_where_they_must():
    """Unguided with the whole chain as the window: the same draws give the same molecule."""
    x, logits = run(chains.sample)
    other, other_logits = run(chains.sample_official, strategy="end-back")
    torch.testing.assert_close(x, other, rtol=0, atol=1e-4)  # the official floor of the probabilities moves types
    torch.testing.assert_close(logits, other_logits, rtol=0, atol=1e-4)


def test_the_official_plain_chain_is_the_window_of_one_with_drawn_types():
    x, logits = run(chains.sample, window=1, types="sample")
    other, other_logits = run(chains.sample_official, strategy="vanilla")
    torch.testing.assert_close(x, other, rtol=0, atol=1e-9)
    torch.testing.assert_close(logits, other_logits, rtol=0, atol=1e-9)


def test_a_window_as_long_as_the_chain_is_none():
    assert torch.equal(run(chains.sample)[0], run(chains.sample, window=12)[0])
    assert not torch.equal(run(chains.sample)[0], run(chains.sample, window=3)[0])


def test_guidance_moves_both_modalities_uphill_and_a_scale_of_zero_changes_nothing():
    def gradient(belief, t):
        uphill = torch.zeros_like(belief.y)
        uphill[:, 1] = 1.0
        return torch.ones_like(belief.mu), uphill

    free, zero = run(chains.sample, window=4), run(chains.sample, window=4, gradient=gradient, weights=(0.0, 0.0))
    assert torch.equal(free[0], zero[0])
    assert torch.equal(free[1], zero[1])
    only_x = run(chains.sample, window=4, gradient=gradient, weights=(2.0, 0.0))
    assert bool((only_x[0] > free[0]).all())
    assert torch.equal(only_x[1], free[1])
    only_y = run(chains.sample, window=4, gradient=gradient, weights=(0.0, 0.5))
    assert torch.equal(only_y[0], free[0])
    assert bool((only_y[1].softmax(-1)[:, 1] > free[1].softmax(-1)[:, 1]).all())


def test_the_official_plain_chain_is_not_guided():
    options = {"gradient": lambda belief, t: (belief.mu + 1.0, belief.y + 1.0), "strategy": "vanilla"}
    assert torch.equal(run(chains.sample_official, **options)[0], run(chains.sample_official, strategy="vanilla")[0])


def test_kept_atoms_come_back_exactly_and_free_ones_are_left_alone():
    mask = torch.tensor([True, True, False, False, True, False])
    x, e = normal(6, 3, seed=7), torch.eye(K, dtype=torch.float64)[[0, 1, 2, 3, 4, 0]]
    found, logits = run(chains.sample, fixed=chains.Fixed(mask, x, e), window=3)
    assert torch.equal(found[mask], x[mask])
    assert torch.equal(logits.argmax(-1)[mask], e.argmax(-1)[mask])
    assert torch.isfinite(found).all()
    belief = Belief(normal(6, 3), normal(6, K))
    known = chains.Fixed(mask, x, e).believed(belief, 0.4, SIGMA1, BETA1, seeded())
    assert torch.equal(known.mu[~mask], belief.mu[~mask])
    assert torch.equal(known.y[~mask], belief.y[~mask])
    nobody = chains.Fixed(torch.zeros(6, dtype=torch.bool), x, e).believed(belief, 0.4, SIGMA1, BETA1, seeded())
    assert torch.equal(nobody.mu, belief.mu)


def test_classes_are_drawn_by_their_probabilities():
    p = torch.tensor([0.1, 0.6, 0.3]).expand(200_000, 3)
    drawn = chains.draw_classes(p, torch.rand(200_000, generator=seeded()))
    torch.testing.assert_close(drawn.mean(0), p[0], rtol=0, atol=5e-3)
