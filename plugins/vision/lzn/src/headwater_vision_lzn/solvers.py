"""The image flow: from noise at t = 0 to an image at t = 1 and back, by Euler steps or adaptive Runge-Kutta.

Both keep the state on its device. Time starts at 1e-3, not at 0, as in training.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["IMAGE_START", "Field", "Method", "images_of", "noise_of", "rk45"]

Field = Callable[[Tensor, Tensor], Tensor]
"""u(x, t): the velocity (B, C, H, W) at x (B, C, H, W) and t (B,)."""

Method = Literal["euler", "rk45"]

IMAGE_START = 1e-3

# Dormand and Prince's pair of orders 5 and 4: nodes, stages, and the weights of the step and of the error.
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
SAFETY, LEAST, MOST = 0.9, 0.2, 10.0


def _norm(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def rk45(
    f: Callable[[float, Tensor], Tensor], x: Tensor, start: float, stop: float, tolerance: float = 1e-5
) -> tuple[Tensor, int]:
    """dx/dt = f(t, x) from ``start`` to ``stop`` by Dormand and Prince's method with one step size for all of ``x``.

    First step, error norm (root mean square over all numbers) and step control are those of SciPy's ``RK45``, with
    relative and absolute tolerance alike.

    Args:
        f: the derivative, of the shape of ``x``.
        x: of any shape, float64 as a rule.
        start: where ``x`` is.
        stop: where to; may be before ``start``.
        tolerance: of the error of one step.

    Returns:
        x at ``stop`` and how often ``f`` was called.

    Example:
        >>> x, calls = rk45(lambda t, x: -x, torch.ones(1, dtype=torch.float64), 0.0, 1.0, 1e-8)
        >>> abs(float(x) - math.exp(-1)) < 1e-8
        True
    """
    direction = math.copysign(1.0, stop - start)
    t, slope = start, f(start, x)
    h = _first_step(f, x, slope, start, stop, direction, tolerance)
    calls, failed = 2, False
    while direction * (stop - t) > 0:
        least = 10 * abs(math.nextafter(t, direction * math.inf) - t)
        h = max(h, least)
        reached = t + direction * h
        if direction * (reached - stop) > 0:
            reached = stop
        step = reached - t
        slopes = [slope]
        for node, stage in zip(NODES[1:], STAGES, strict=True):
            moved = x.clone()
            for weight, k in zip(stage, slopes, strict=True):
                if weight:
                    moved.add_(k, alpha=step * weight)
            slopes.append(f(t + node * step, moved))  # the last of the points reached is the step's end
        calls += 6
        error = sum((k * (step * w) for w, k in zip(ERROR, slopes, strict=True) if w), torch.zeros_like(x))
        ratio = _norm(error / (tolerance + tolerance * torch.maximum(x.abs(), moved.abs())))
        if ratio < 1 or abs(step) <= least:
            t, x, slope = reached, moved, slopes[-1]
            factor = MOST if ratio == 0 else min(MOST, SAFETY * ratio**-0.2)
            h = abs(step) * (min(1.0, factor) if failed else factor)
            failed = False
        else:
            h, failed = abs(step) * max(LEAST, SAFETY * ratio**-0.2), True
    return x, calls


def _first_step(
    f: Callable[[float, Tensor], Tensor], x: Tensor, slope: Tensor, start: float, stop: float, direction: float,
    tolerance: float,
) -> float:  # fmt: skip
    """The first step of Hairer, Norsett and Wanner, II.4."""
    scale = tolerance + tolerance * x.abs()
    d0, d1 = _norm(x / scale), _norm(slope / scale)
    length = abs(stop - start)
    h0 = min(1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1, length)
    after = f(start + direction * h0, x + direction * h0 * slope)
    d2 = _norm((after - slope) / scale) / h0
    h1 = max(1e-6, h0 * 1e-3) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** 0.2
    return min(100 * h0, h1, length)


def _solve(field: Field, x: Tensor, start: float, stop: float, method: Method, steps: int, tolerance: float) -> Tensor:

    def at(t: float, x: Tensor) -> Tensor:
        return field(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device))

    if method == "euler":
        h = (stop - start) / steps
        for k in range(steps):
            x = x + h * at(start + k * h, x)
        return x
    found, _ = rk45(lambda t, y: at(t, y.to(x.dtype)).double(), x.double(), start, stop, tolerance)
    return found.to(x.dtype)


def images_of(
    field: Field, noise: Tensor, method: Method = "euler", steps: int = 100, tolerance: float = 1e-5
) -> Tensor:
    """Images x_1 (B, C, H, W) of initial noise x_0: the flow from t = 1e-3 to 1.

    Args:
        field: u(x, t), latents and labels fixed.
        noise: x_0 (B, C, H, W).
        method: ``euler`` with equal steps, or ``rk45``, whose steps are common to the batch.
        steps: of ``euler``.
        tolerance: relative and absolute, of ``rk45``.
    """
    return _solve(field, noise, IMAGE_START, 1.0, method, steps, tolerance)


def noise_of(
    field: Field, images: Tensor, method: Method = "euler", steps: int = 100, tolerance: float = 1e-5
) -> Tensor:
    """The initial noise x_0 of images x_1: Euler from t = 1 as many steps down as ``images_of`` goes up; RK45 to
    t = 1e-3, and from there x_0 = (x_t - t x_1)/(1-t).
    """
    x = _solve(field, images, 1.0, IMAGE_START, method, steps, tolerance)
    return x if method == "euler" else (x - IMAGE_START * images) / (1 - IMAGE_START)
