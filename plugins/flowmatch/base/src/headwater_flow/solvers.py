"""Solvers of dx/dt = v(t, x): fixed steps, adaptive steps with dense output, and the stochastic equation.

A velocity is a function of (t, x) with t () or (B,) and x (B, ...). Only the end point is computed and kept unless
``times`` asks for more; what lies between steps is interpolated and costs no evaluation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from headwater import NonFinite, UsageError
from torch import Tensor

from headwater_flow.shapes import like_state

__all__ = [
    "METHODS",
    "TABLEAUX",
    "Controller",
    "Counted",
    "Tableau",
    "Velocity",
    "cosine_grid",
    "edm_grid",
    "solve",
    "solve_adaptive",
    "solve_fixed",
    "solve_stochastic",
    "uniform_grid",
]

Velocity = Callable[[Tensor, Tensor], Tensor]


class Counted:
    """A velocity that counts its evaluations.

    Example:
        >>> v = Counted(lambda t, x: -x)
        >>> _ = solve(v, torch.ones(1, 1), "midpoint", steps=10)
        >>> v.evaluations
        20
    """

    def __init__(self, velocity: Velocity) -> None:
        self.velocity, self.evaluations = velocity, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.evaluations += 1
        return self.velocity(t, x)


# Grids


def uniform_grid(steps: int) -> Tensor:
    """Times (steps + 1,) of equal distance from 0 to 1, float64."""
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def cosine_grid(steps: int) -> Tensor:
    """t_i = 1 - cos(pi i / (2 steps)): short steps at the start, long ones at the end."""
    grid = 1 - torch.cos(0.5 * math.pi * uniform_grid(steps))
    grid[-1] = 1.0
    return grid


def edm_grid(steps: int, rho: float = 7.0, smallest: float = 0.002, largest: float = 80.0) -> Tensor:
    """The noise levels of Karras et al. (2022), eq. 5, as times of the schedule alpha = t, sigma = 1 - t.

    There sigma/alpha is the noise level, so t = 1/(1 + level). The first time is put to 0 and the last to 1, where
    the levels are infinite and zero.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    level = (largest ** (1 / rho) + ramp * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho
    grid = torch.cat([1 / (1 + level), torch.ones(1, dtype=torch.float64)])
    grid[0] = 0.0
    return grid


# Explicit Runge-Kutta steps


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta rule: stage i is taken at time c_i from the stages before with weights a_i."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int


TABLEAUX: dict[str, Tableau] = {
    "euler": Tableau(((),), (1.0,), (0.0,), 1),
    "midpoint": Tableau(((), (0.5,)), (0.0, 1.0), (0.0, 0.5), 2),
    "heun2": Tableau(((), (1.0,)), (0.5, 0.5), (0.0, 1.0), 2),
    "heun3": Tableau(((), (1 / 3,), (0.0, 2 / 3)), (0.25, 0.0, 0.75), (0.0, 1 / 3, 2 / 3), 3),
    "rk4": Tableau(
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (0.125, 0.375, 0.375, 0.125), (0.0, 1 / 3, 2 / 3, 1.0), 4
    ),
    "rk4-classic": Tableau(
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0), 4
    ),
}
"""The fixed-step rules. ``rk4`` is Kutta's 3/8 rule, as in torchdiffeq; the better known rule is ``rk4-classic``."""

DOPRI5 = Tableau(
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    order=5,
)
"""Dormand and Prince (1980); the last stage is the first of the next step (FSAL)."""

ERROR = (
    35 / 384 - 5179 / 57600,
    0.0,
    500 / 1113 - 7571 / 16695,
    125 / 192 - 393 / 640,
    -2187 / 6784 + 92097 / 339200,
    11 / 84 - 187 / 2100,
    -1 / 40,
)
"""The solution of order 5 less the embedded one of order 4, Dormand and Prince (1980)."""

DENSE = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)
"""Weights of the continuous extension of order 4 (Hairer, Norsett and Wanner, *Solving ODEs I*, II.6)."""

METHODS = (*TABLEAUX, "dopri5")


def _combine(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """The weighted sum of the stages, leaving out those of weight zero."""
    terms = [(w, k) for w, k in zip(weights, stages, strict=False) if w != 0.0]
    total = terms[0][1] * terms[0][0]
    for w, k in terms[1:]:
        total = torch.add(total, k, alpha=w)
    return total


def _stages(velocity: Velocity, tableau: Tableau, t: Tensor, h: Tensor, x: Tensor, first: Tensor) -> list[Tensor]:
    """All stages of a step; t and h are () or (B,), ``first`` is the velocity at (t, x)."""
    stages, h_state = [first], like_state(h, x)
    for a, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
        stages.append(velocity((t + c * h).to(x.dtype), x + h_state * _combine(a, stages)))
    return stages


# Front door


def solve(
    velocity: Velocity,
    x: Tensor,
    method: str = "midpoint",
    *,
    steps: int | None = None,
    grid: Tensor | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    per_sample: bool = False,
    times: Tensor | None = None,
) -> Tensor:
    """The solution at ``t1`` (B, ...), or at all ``times`` (T, B, ...).

    Args:
        velocity: v(t, x).
        x: (B, ...), the state at ``t0``.
        method: one of :data:`METHODS`.
        steps: number of equal steps of a fixed-step method.
        grid: the times of its steps instead, first to last in either direction; then t0 and t1 are the grid's ends.
        t0: start.
        t1: end; may lie before the start.
        rtol: relative tolerance of ``dopri5``.
        atol: absolute tolerance of ``dopri5``.
        per_sample: every sample has its own step size and error norm, so that its result depends on no other.
        times: where the solution is wanted, in the direction of the integration.

    Raises:
        UsageError: the method is unknown, or its settings are missing or contradict one another.

    Example:
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> abs(float(solve(lambda t, x: -x, x, "dopri5", rtol=1e-8, atol=1e-8)) - math.exp(-1)) < 1e-7
        True
    """
    if method == "dopri5":
        if steps is not None or grid is not None:
            raise UsageError("dopri5 chooses its own steps; leave steps and grid out, or take a fixed-step method")
        return solve_adaptive(velocity, x, t0, t1, rtol=rtol, atol=atol, per_sample=per_sample, times=times)
    if method not in TABLEAUX:
        raise UsageError(f"there is no solver {method!r}; there are {', '.join(METHODS)}")
    if (steps is None) == (grid is None):
        raise UsageError(f"{method} takes fixed steps: give either steps or grid, and not both")
    if per_sample:
        raise UsageError(f"{method} takes the same steps for all samples; per_sample belongs to dopri5")
    if grid is None:
        if steps is None or steps < 1:
            raise UsageError(f"steps = {steps}: at least one is needed")
        grid = t0 + (t1 - t0) * uniform_grid(steps)
    return solve_fixed(velocity, x, grid, TABLEAUX[method], times=times)


def _check_times(times: Tensor, t0: float, t1: float) -> list[float]:
    """Times as numbers, checked to lie between the ends and in the direction of the integration."""
    listed = [float(t) for t in times]
    low, high = min(t0, t1), max(t0, t1)
    ordered = all((b - a) * (t1 - t0) >= 0 for a, b in pairwise(listed))
    if not listed or not ordered or min(listed) < low or max(listed) > high:
        raise UsageError(f"times must run from {t0} to {t1} in that direction; got {listed[:4]}")
    return listed


def solve_fixed(
    velocity: Velocity, x: Tensor, grid: Tensor, tableau: Tableau, *, times: Tensor | None = None
) -> Tensor:
    """One step of ``tableau`` between every two neighbours of ``grid`` (N + 1,).

    The solution at ``times`` between grid points is the cubic through both ends and their velocities. That takes no
    further evaluation but one at the end of the grid, where a time lies inside its last interval.
    """
    points = [float(t) for t in grid]
    steps = [b - a for a, b in pairwise(points)]
    if not steps or any(h * steps[0] <= 0 for h in steps):
        raise UsageError("a grid needs two times or more that all rise or all fall")
    wanted = _check_times(times, points[0], points[-1]) if times is not None else []
    found: list[Tensor] = []
    clock = torch.as_tensor(points, dtype=_clock_dtype(x), device=x.device)
    before: tuple[float, float, Tensor, Tensor] | None = None
    for i, h in enumerate(steps):
        first = velocity(clock[i].to(x.dtype), x)
        if before is not None and wanted:
            _interpolate_cubic(found, wanted, *before, x, first)
        stages = _stages(velocity, tableau, clock[i], clock[i + 1] - clock[i], x, first)
        before = (points[i], h, x, first)
        x = x + (clock[i + 1] - clock[i]).to(x.dtype) * _combine(tableau.b, stages)
    if times is None:
        return x
    assert before is not None
    inside = len(found) < len(wanted) and wanted[len(found)] != points[-1]
    last = velocity(clock[-1].to(x.dtype), x) if inside else before[3]
    _interpolate_cubic(found, wanted, *before, x, last)
    return torch.stack(found)


def _interpolate_cubic(
    found: list[Tensor], wanted: list[float], t: float, h: float, x: Tensor, v: Tensor, x_next: Tensor, v_next: Tensor
) -> None:
    """Add the solution at those wanted times that lie in the interval from t to t + h."""
    while len(found) < len(wanted) and (s := (wanted[len(found)] - t) / h) <= 1 + 1e-12:
        if s >= 1 - 1e-12:
            found.append(x_next)
        else:
            away, slopes = x_next - x, (1 - s) * (h * v - (x_next - x)) - s * (h * v_next - (x_next - x))
            found.append(x + s * away + s * (1 - s) * slopes)


# Adaptive steps


@dataclass(frozen=True)
class Controller:
    """How the error of a step decides on the size of the next: a PI controller (Hairer and Wanner, II, IV.2).

    factor = safety err^-(1/5 - 3/4 beta) err_before^beta, within [shrink, grow]; beta = 0 is the plain rule.
    """

    beta: float = 0.04
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0

    def factor(self, error: Tensor, before: Tensor) -> Tensor:
        """The factor on the step size, of the shape of ``error``; a rejected step never grows."""
        error = error.clamp(min=1e-10)
        factor = self.safety * error ** -(0.2 - 0.75 * self.beta) * before**self.beta
        return torch.where(error > 1, factor.clamp(max=1.0), factor).clamp(self.shrink, self.grow)


def _clock_dtype(x: Tensor) -> torch.dtype:
    """Times are added up in double precision where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def solve_adaptive(
    velocity: Velocity,
    x: Tensor,
    t0: float = 0.0,
    t1: float = 1.0,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    per_sample: bool = False,
    times: Tensor | None = None,
    controller: Controller | None = None,
    max_steps: int = 100_000,
) -> Tensor:
    """Dormand and Prince's method of order 5 with an embedded error estimate (``dopri5``).

    The first step size takes two evaluations (Hairer, Norsett and Wanner, II.4), every further step six; the last step
    ends on ``t1``, so that nothing is evaluated beyond. Step sizes are constants to automatic differentiation.

    With ``per_sample`` each sample of (B, ...) keeps a time and step size of its own: the velocity gets t (B,), and
    samples that have arrived stay where they are. Without, one error norm over the batch sets one step for all, so a
    sample's last digits depend on which others are in the batch.

    In float32 a tolerance much below 1e-5 asks for steps that the precision cannot take.

    Raises:
        UsageError: the step size fell below what the precision resolves, or ``max_steps`` were not enough.
        NonFinite: the velocity is NaN or infinite somewhere on the way.
    """
    wanted = _check_times(times, t0, t1) if times is not None else []
    control = controller or Controller()
    dtype, shape = _clock_dtype(x), (len(x),) if per_sample else ()

    def norm(values: Tensor) -> Tensor:
        squares = values.detach().to(dtype).square()
        return (squares.flatten(1).mean(1) if per_sample else squares.mean()).sqrt()

    direction = 1.0 if t1 >= t0 else -1.0
    clock = torch.full(shape, t0, dtype=dtype, device=x.device)
    end = torch.full_like(clock, t1)
    found: list[Tensor] = [torch.zeros_like(x) for _ in wanted]
    for i, time in enumerate(wanted):
        if time == t0:
            found[i] = x
    first = velocity(clock.to(x.dtype), x)
    h = _first_step(velocity, clock, x, first, direction, rtol, atol, norm)
    before = torch.full_like(clock, 1e-4)
    floor = 4 * torch.finfo(x.dtype).eps * max(abs(t0), abs(t1), 1e-3)
    for _ in range(max_steps):
        left = (end - clock).abs()
        active = left > 0
        if not bool(active.any()):
            return torch.stack(found) if wanted else x
        last = h >= left
        size = torch.where(last, left, h)
        step = torch.where(active, direction * size, 0.0)
        stages = _stages(velocity, DOPRI5, clock, step, x, first)
        h_state = like_state(step, x)
        arrived = x + h_state * _combine(DOPRI5.b, stages)
        scale = atol + rtol * torch.maximum(x.detach().abs(), arrived.detach().abs())
        error = torch.where(active, norm(h_state * _combine(ERROR, stages) / scale), 0.0)
        taken = active & (error <= 1)
        _check_step(error, active, active & ~last & (size <= floor), clock, x.dtype, rtol)
        landed = torch.where(taken & last, end, torch.where(taken, clock + step, clock))
        for i, time in enumerate(wanted):
            crossed = taken & ((time - clock) * direction > 0) & ((time - landed) * direction <= 0)
            if bool(crossed.any()):
                share = torch.where(crossed, time - clock, 0.0) / torch.where(crossed, step, 1.0)
                inside = _dense(x, arrived, h_state, stages, like_state(share, x))
                found[i] = torch.where(like_state(crossed, x) > 0, inside, found[i])
        keep = like_state(taken, x) > 0
        x, first = torch.where(keep, arrived, x), torch.where(keep, stages[-1], first)
        h = torch.where(active, size * control.factor(error, before), h)
        before = torch.where(taken, error.clamp(min=1e-4), before)
        clock = landed
    raise UsageError(f"dopri5 took {max_steps} steps and is at t = {float(clock.min()):.4g}; raise rtol and atol")


def _check_step(error: Tensor, active: Tensor, stuck: Tensor, clock: Tensor, dtype: torch.dtype, rtol: float) -> None:
    """Refuse to go on where the error is no number, or steps are as small as the precision allows."""
    odd = active & ~torch.isfinite(error)
    if not bool((odd | stuck).any()):
        return
    if bool(odd.any()):
        raise NonFinite(f"the velocity is not finite near t = {float(clock[odd].reshape(-1)[0]):.6g}")
    where = float(clock[stuck].reshape(-1)[0])
    raise UsageError(
        f"dopri5 cannot keep rtol = {rtol:g} at t = {where:.6g} in {str(dtype).removeprefix('torch.')}: raise rtol "
        "and atol (1e-5 and more in float32), use float64, or stop short of where the velocity is singular"
    )


def _first_step(
    velocity: Velocity,
    t: Tensor,
    x: Tensor,
    first: Tensor,
    direction: float,
    rtol: float,
    atol: float,
    norm: Callable[[Tensor], Tensor],
) -> Tensor:
    """A first step size, () or (B,), from the sizes of the state and of its first two derivatives."""
    scale = atol + rtol * x.detach().abs()
    d0, d1 = norm(x / scale), norm(first / scale)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1)
    with torch.no_grad():
        moved = velocity((t + direction * h0).to(x.dtype), x + like_state(direction * h0, x) * first)
    d2 = norm((moved - first) / scale) / h0
    largest = torch.maximum(d1, d2)
    h1 = torch.where(largest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / largest) ** 0.2)
    return torch.minimum(100 * h0, h1)


def _dense(x: Tensor, arrived: Tensor, h: Tensor, stages: list[Tensor], s: Tensor) -> Tensor:
    """The continuous extension of order 4 at the fraction ``s`` of the step."""
    away = arrived - x
    start = h * stages[0] - away
    bend = away - h * stages[-1] - start
    return x + s * (away + (1 - s) * (start + s * (bend + (1 - s) * h * _combine(DENSE, stages))))


# The stochastic equation


def solve_stochastic(
    velocity: Velocity,
    score: Velocity,
    x: Tensor,
    grid: Tensor,
    diffusion: float | Callable[[Tensor], Tensor],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Euler-Maruyama for dx = (v + g^2/2 s) dt + g dW, whose marginals are those of dx = v dt; the end point.

    Args:
        velocity: v(t, x).
        score: s(t, x) = grad log p_t(x).
        x: (B, ...), the state at the first time of the grid.
        grid: rising times (N + 1,).
        diffusion: g, a number or a function of the time.
        generator: source of the noise; its device must be that of ``x``.

    The last step adds no noise: that would stay in the sample.

    Example:
        >>> x = solve_stochastic(lambda t, x: 0 * x, lambda t, x: -x, torch.zeros(4, 1), uniform_grid(2), 0.0)
        >>> x.ravel().tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    clock = grid.to(x.device, x.dtype)
    if len(clock) < 2 or bool((clock.diff() <= 0).any()):
        raise UsageError("a grid for the stochastic equation needs two times or more that rise")
    for i, (t, h) in enumerate(zip(clock[:-1], clock.diff(), strict=True)):
        g = torch.as_tensor(diffusion(t) if callable(diffusion) else diffusion, dtype=x.dtype, device=x.device)
        x = x + h * (velocity(t, x) + 0.5 * g**2 * score(t, x))
        if i < len(clock) - 2:
            noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            x = x + g * h.sqrt() * noise
    return x
