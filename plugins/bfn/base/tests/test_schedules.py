"""Schedules of linear entropy: reference values, the equations that define them, and time."""

import time

import numpy as np
import pytest
import torch
from headwater_bfn import vonmises
from headwater_bfn.schedule import accuracies_of_linear_entropy, draw_steps, von_mises_schedule
from scipy.integrate import quad
from scipy.special import i0e

BETA = (1.478033, 2.702499, 4.995999, 10.113934, 21.307108, 45.620087, 98.379943, 212.849622, 461.198072, 1000.0)
ALPHA = (1.478033, 1.587010, 2.628131, 5.384110, 11.437746, 24.549623, 52.993109, 114.701416, 248.579498, 539.032661)


def test_reference_values():
    alpha, beta = von_mises_schedule(10, 1000.0)
    np.testing.assert_allclose(beta.numpy(), BETA, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(alpha.numpy(), ALPHA, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("n", "beta1"), [(7, 1000.0), (50, 100.0), (100, 10000.0)])
def test_the_equations_hold(n, beta1):
    """Entropy is linear in i; the mean length of the next sum of vectors is beta_i, by adaptive quadrature."""
    alpha, beta = von_mises_schedule(n, beta1)
    entropy = vonmises.entropy(torch.cat([torch.zeros(1, dtype=torch.float64), beta]))
    torch.testing.assert_close(entropy.diff(), entropy.diff().mean().expand(n), rtol=1e-8, atol=1e-8)
    for i in (1, n // 2, n - 1):
        a, before = float(alpha[i]), float(beta[i - 1])

        def length(y, a=a, before=before):
            density = np.exp(a * (np.cos(y) - 1)) / (2 * np.pi * i0e(a))
            return density * np.sqrt(a * a + before * before + 2 * a * before * np.cos(y))

        mean, _ = quad(length, -np.pi, np.pi, points=[0.0], limit=500, epsabs=1e-12, epsrel=1e-12)
        assert mean == pytest.approx(float(beta[i]), rel=1e-8)


def test_one_message_carries_all():
    alpha, beta = von_mises_schedule(1, 1000.0)
    assert alpha.tolist() == beta.tolist() == [1000.0]


def test_a_thousand_accuracies_take_well_below_a_second():
    began = time.process_time()
    von_mises_schedule.__wrapped__(1000, 999.0)
    assert time.process_time() - began < 1.0  # about 0.1 on a quiet core; a loop over i takes 9


def test_the_general_search_finds_the_closed_form_of_the_gaussian():
    sigma1, n = 0.02, 50
    beta = accuracies_of_linear_entropy(lambda b: 0.5 * np.log(2 * np.pi * np.e / (1 + b)), n, sigma1**-2 - 1)
    np.testing.assert_allclose(beta, sigma1 ** (-2 * np.arange(1, n + 1) / n) - 1, rtol=1e-10)


@pytest.mark.parametrize("n", [1, 3, 10])
def test_steps_are_uniform_and_spread(n):
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_steps(8, n, g) for _ in range(4000)])
    counts = torch.bincount(drawn.flatten(), minlength=n + 1)[1:]
    assert int(drawn.min()) == 1
    assert int(drawn.max()) == n
    assert float((counts / counts.sum() * n - 1).abs().max()) < 0.05
    first = torch.bincount(drawn[:, 0], minlength=n + 1)[1:]
    assert float((first / first.sum() * n - 1).abs().max()) < 0.2
    per_batch = torch.stack([(drawn == i).sum(1) for i in range(1, n + 1)])
    assert int(per_batch.max() - per_batch.min()) <= 2
