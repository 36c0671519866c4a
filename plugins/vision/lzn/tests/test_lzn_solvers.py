import math

import numpy as np
import pytest
import torch
from headwater_vision_lzn.solvers import IMAGE_START, images_of, noise_of, rk45
from scipy.integrate import solve_ivp


@pytest.mark.parametrize(("start", "stop", "tolerance"), [(0.0, 3.0, 1e-5), (1.0, 0.001, 1e-7), (0.0, 1.0, 1e-3)])
def test_runge_kutta_is_scipys(start, stop, tolerance):
    x0 = np.random.default_rng(0).standard_normal(7)
    calls = [0]

    def slope(t, x, sin):
        calls[0] += 1
        return sin(3 * t * x) - x + t

    wanted = solve_ivp(lambda t, x: slope(t, x, np.sin), (start, stop), x0, rtol=tolerance, atol=tolerance)
    theirs, calls[0] = calls[0], 0
    found, counted = rk45(lambda t, x: slope(t, x, torch.sin), torch.from_numpy(x0), start, stop, tolerance)
    np.testing.assert_allclose(found, wanted.y[:, -1], atol=1e-10)
    assert counted == calls[0] == theirs == wanted.nfev


def test_runge_kutta_keeps_its_tolerance():
    found, _ = rk45(lambda t, x: -x, torch.ones(1, dtype=torch.float64), 0.0, 2.0, 1e-9)
    assert float(found) == pytest.approx(math.exp(-2), abs=1e-8)


def field(x, t):
    return -x + t[:, None, None, None]


def test_euler_is_the_plain_loop():
    x0 = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    x, h = x0, (1 - IMAGE_START) / 9
    for k in range(9):
        x = x + h * (-x + (IMAGE_START + k * h))
    torch.testing.assert_close(images_of(field, x0, steps=9), x)


@pytest.mark.parametrize(("method", "tolerance"), [("euler", 0.05), ("rk45", 1e-3)])
def test_noise_comes_back(method, tolerance):
    x0 = torch.randn(2, 1, 3, 3)
    image = images_of(field, x0, method, steps=60)
    again = images_of(field, noise_of(field, image, method, steps=60), method, steps=60)
    torch.testing.assert_close(again, image, atol=tolerance, rtol=0)


def test_straight_paths_are_exact_for_any_steps():
    x0, x1 = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    # The state begins at t = 1e-3 as if it were the noise itself, as in the published sampler.
    found = images_of(lambda x, t: x1 - x0, x0, steps=1)
    torch.testing.assert_close(found, x0 + (1 - IMAGE_START) * (x1 - x0))
