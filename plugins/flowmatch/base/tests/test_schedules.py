import pytest
import torch
from headwater_flow import schedules
from headwater_flow.schedules import VP, CondOT, Cosine, LinearVP, Polynomial
from headwater_flow.shapes import like_state

ALL = [CondOT(), Cosine(), Polynomial(3), VP(), LinearVP()]


@pytest.fixture
def times():
    return torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.9 + 0.05


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_slopes_are_the_derivatives(schedule, times):
    t = times.requires_grad_()
    alpha, sigma, d_alpha, d_sigma = schedule(t)
    for value, slope in ((alpha, d_alpha), (sigma, d_sigma)):
        (expected,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_noise_is_at_the_start_and_data_at_the_end(schedule):
    ends = schedules.clamp(torch.tensor([0.0, 1.0], dtype=torch.float64), 1e-9)
    alpha, sigma, _, _ = schedule(ends)
    assert float(alpha[0]) < 1e-2  # the diffusion's alpha ends at exp(-5.025)
    assert float(sigma[0]) > 0.999
    assert float(alpha[1]) == pytest.approx(1, abs=1e-6)
    assert float(sigma[1]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_predictions_convert_into_one_another(schedule, times):
    generator = torch.Generator().manual_seed(1)
    x0, x1 = torch.randn(2, 16, 3, generator=generator, dtype=torch.float64)
    alpha, sigma, d_alpha, d_sigma = (like_state(v, x1) for v in schedule(times))
    x, u = alpha * x1 + sigma * x0, d_alpha * x1 + d_sigma * x0
    for name, value in (("data", x1), ("noise", x0)):
        to_velocity = getattr(schedules, f"{name}_to_velocity")
        from_velocity = getattr(schedules, f"velocity_to_{name}")
        torch.testing.assert_close(to_velocity(schedule, times, x, value), u, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(from_velocity(schedule, times, x, u), value, rtol=1e-9, atol=1e-9)
    score = schedules.velocity_to_score(schedule, times, x, u)
    torch.testing.assert_close(score, -x0 / sigma, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedules.score_to_velocity(schedule, times, x, score), u, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_the_score_of_a_gaussian_comes_out_of_its_velocity(schedule, times):
    # Data N(m, s^2): x_t is N(alpha m, v) with v = alpha^2 s^2 + sigma^2, and u = alpha' m + v'/(2 v) (x - alpha m).
    m, s = 1.5, 0.7
    x = torch.randn(16, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alpha, sigma, d_alpha, d_sigma = (v.unsqueeze(1) for v in schedule(times))
    variance = alpha**2 * s**2 + sigma**2
    slope = alpha * d_alpha * s**2 + sigma * d_sigma
    u = d_alpha * m + slope / variance * (x - alpha * m)
    expected = -(x - alpha * m) / variance
    torch.testing.assert_close(schedules.velocity_to_score(schedule, times, x, u), expected, rtol=1e-8, atol=1e-9)
