import math

import pytest
import torch
from headwater_flow.guidance import guided
from headwater_flow.likelihood import bits_per_dimension, divergence, log_likelihood, rademacher, standard_normal
from torch import nn

MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)


def gaussian_flow(t, x, s):
    """The velocity of x_t = (1 - t) x0 + t x1, x0 from N(0, I), x1 from N(MEAN, s^2 I), in closed form."""
    t = t.reshape(-1, 1) if t.ndim else t
    variance = (1 - t) ** 2 + t**2 * s**2
    return MEAN + (t * s**2 - (1 - t)) / variance * (x - t * MEAN)


@pytest.fixture
def points():
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dopri5", {"rtol": 1e-6, "atol": 1e-6}),
        ("dopri5", {"rtol": 1e-6, "atol": 1e-6, "per_sample": True}),
        ("rk4", {"steps": 60}),
    ],
)
def test_a_gaussian_flow_has_the_gaussians_likelihood(method, settings, points):
    found, latent = log_likelihood(lambda t, x: gaussian_flow(t, x, 0.5), points, method=method, **settings)
    expected = standard_normal((points - MEAN) / 0.5) - 2 * math.log(0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(latent, (points - MEAN) / 0.5, rtol=0, atol=1e-3)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def test_the_exact_divergence_is_the_trace_of_the_jacobian(network):
    x = torch.randn(5, 3, dtype=torch.float64)
    value, found = divergence(lambda t, x: network(x), torch.tensor(0.0), x)
    torch.testing.assert_close(value, network(x))
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(network, x[i])
        assert float(found[i].detach()) == pytest.approx(float(jacobian.trace()), abs=1e-12)


def test_the_divergence_of_states_of_any_shape():
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    _, found = divergence(lambda t, x: x**3, torch.tensor(0.0), x)
    torch.testing.assert_close(found, (3 * x**2).flatten(1).sum(1))


def test_hutchinsons_estimate_is_unbiased(network):
    x = torch.randn(1, 3, dtype=torch.float64)
    # All eight sign vectors: their mean is the expectation.
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3).unsqueeze(1)
    _, estimate = divergence(lambda t, x: network(x), torch.tensor(0.0), x, signs)
    _, exact = divergence(lambda t, x: network(x), torch.tensor(0.0), x)
    torch.testing.assert_close(estimate, exact)
    noise = rademacher(torch.Size((1000, 1, 3)), x, torch.Generator().manual_seed(0))
    assert set(noise.unique().tolist()) == {-1.0, 1.0}


def test_probes_estimate_the_likelihood(network):
    x = torch.randn(4, 3, dtype=torch.float64)
    settings = {"method": "rk4", "steps": 10}
    exact, _ = log_likelihood(lambda t, x: network(x), x, **settings)
    found, _ = log_likelihood(
        lambda t, x: network(x), x, probes=4000, generator=torch.Generator().manual_seed(0), **settings
    )
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("probes", [None, 2])
@pytest.mark.parametrize("settings", [{"method": "rk4", "steps": 6}, {"rtol": 1e-7, "atol": 1e-7}])
def test_gradients_of_the_likelihood_are_right(settings, probes):
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def total(rate):
        found, _ = log_likelihood(
            lambda t, y: torch.tanh(rate * y), x, probes=probes, generator=torch.Generator().manual_seed(1), **settings
        )
        return found.sum()

    rate = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(total(rate), rate)
    with torch.no_grad():
        numeric = (total(rate + 1e-4) - total(rate - 1e-4)) / 2e-4
    assert float(gradient) == pytest.approx(float(numeric), rel=1e-4)


def test_bits_per_dimension():
    assert float(bits_per_dimension(torch.tensor(-math.log(2.0) * 6), 3)) == pytest.approx(2.0)


def test_guidance_mixes_two_velocities_of_one_call():
    calls = []

    def network(t, x, c):
        calls.append(t.shape)
        return x * c

    x, condition = torch.ones(3, 2), torch.tensor([[1.0], [2.0], [3.0]])
    for weight in (0.0, 1.0, 2.5):
        expected = 0.5 + weight * (condition - 0.5)
        found = guided(network, condition, torch.tensor([0.5]), weight)(torch.tensor(0.1), x)
        torch.testing.assert_close(found, expected.expand(3, 2))
    assert calls == [torch.Size([6])] * 3
