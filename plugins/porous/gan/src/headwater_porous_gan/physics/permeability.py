"""Permeability of the pore space by a D3Q19 lattice Boltzmann solver with two relaxation times (Stokes flow).

Populations are kept for fluid cells only, as deviations from rest, 19 float32 values a cell, in two copies, with an
int32 table of where each one comes from: 224 bytes a fluid cell. Walls are half-way bounce-back. The equilibrium is
linear and the magic number 3/16, so the permeability hardly depends on the relaxation time (0.4 %).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from headwater.errors import DataError, NonFinite, RunError, UsageError

from headwater_porous_gan.physics.pores import percolating

__all__ = ["DARCY", "Flow", "Lattice", "lattice", "permeability", "stepper"]

DARCY = 9.869233e-13
"""Square metres of one darcy."""

PAIRS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, -1, 0), (1, 0, 1), (1, 0, -1), (0, 1, 1), (0, 1, -1))
"""One velocity of each pair; population 1 + 2 p moves along ``PAIRS[p]``, population 2 + 2 p against it, 0 rests."""

WEIGHTS = (1 / 3, *(1 / 18,) * 6, *(1 / 36,) * 12)

MOST = (2**31 - 1) // 19
"""Fluid cells that an int32 table can address."""


@dataclass(frozen=True)
class Flow:
    """A converged flow.

    Args:
        permeability: k in voxel^2; times the square of the voxel size in m it is in m^2.
        steps: time steps taken.
        cells: fluid cells, those of the free layers among them.
        change: relative change of the mean velocity over the last 100 steps.
    """

    permeability: float
    steps: int
    cells: int
    change: float


@dataclass(frozen=True)
class Lattice:
    """Fluid cells of a domain that is periodic along its axis 0.

    Args:
        gather: int32 (cells, 18): where population q = 1..18 of a cell comes from, as an index into the flattened
            populations (cells, 19): its upstream neighbour, or its own opposite where that is solid.
        shape: of the domain, flow axis first.
    """

    gather: np.ndarray
    shape: tuple[int, int, int]


def lattice(fluid: np.ndarray, sides: Literal["closed", "periodic"] = "closed") -> Lattice:
    """The table of a bool domain (d0, d1, d2), periodic along axis 0, its four other sides walls or periodic."""
    cells = int(fluid.sum())
    if cells > MOST:
        raise UsageError(f"{cells} fluid cells are more than the {MOST} that the solver can address; take a crop")
    number = np.full(fluid.shape, -1, np.int32)
    number[fluid] = np.arange(cells, dtype=np.int32)
    number = np.pad(number, ((1, 1), (0, 0), (0, 0)), "wrap")
    around = ((0, 0), (1, 1), (1, 1))
    number = np.pad(number, around, "wrap") if sides == "periodic" else np.pad(number, around, constant_values=-1)
    gather = np.empty((cells, 18), np.int32)
    own = np.arange(cells, dtype=np.int32) * 19
    for q in range(1, 19):
        opposite = q + 1 if q % 2 else q - 1
        velocity = np.array(PAIRS[(q - 1) // 2]) * (1 if q % 2 else -1)
        where = tuple(slice(1 - c, 1 - c + n) for c, n in zip(velocity.tolist(), fluid.shape, strict=True))
        upstream = number[where][fluid]
        gather[:, q - 1] = np.where(upstream >= 0, upstream * 19 + q, own + opposite)
    return Lattice(gather, fluid.shape)  # type: ignore[arg-type]


def permeability(
    phase: np.ndarray,
    axis: int,
    *,
    ends: Literal["free", "mirror", "periodic"] = "free",
    layers: int = 4,
    sides: Literal["closed", "periodic"] = "closed",
    tau: float = 0.6,
    tolerance: float = 2e-4,
    max_steps: int = 200_000,
    engine: Literal["auto", "numba", "torch"] = "auto",
    device: str = "cpu",
) -> Flow:
    """Permeability k = nu <u> / G along ``axis``, with <u> the mean velocity over all voxels and G = F the force.

    Only 6-connected pores that touch both end faces take part. With ``ends="free"`` some ``layers`` of free fluid
    join the two ends of the periodic domain, and k is that of the sample: as they hardly resist, the whole drop
    F (L + 2 layers) falls over its length L. With ``"mirror"`` the sample and its mirror image follow one another;
    with ``"periodic"`` the volume is its own continuation.

    Args:
        phase: uint8 (d0, d1, d2), 0 pore and 1 grain; a crop that fits into memory (224 bytes a pore voxel).
        axis: direction of the flow.
        ends: how the two ends meet.
        layers: free voxels at each end.
        sides: the four other faces: walls or periodic.
        tau: relaxation time; 0.6 to 0.65 converges soonest in rock.
        tolerance: the flow has converged when its mean changes by less than this in 100 steps.
        max_steps: give up after so many.
        engine: numba where it is installed, else torch; ``device`` is that of torch.

    Raises:
        DataError: no pore connects the two faces, so there is no flow.
        NonFinite: the flow diverged.
        RunError: it did not converge within ``max_steps``.
    """
    pores = np.moveaxis(percolating(phase, axis), axis, 0)
    if not pores.any():
        raise DataError(f"no pore connects the two faces of axis {axis}: the permeability along it is zero")
    length, area = pores.shape[0], pores.shape[1] * pores.shape[2]
    if ends == "free":
        fluid = np.pad(pores, ((layers, layers), (0, 0), (0, 0)), constant_values=True)
    elif ends == "mirror":
        fluid = np.concatenate([pores, pores[::-1]])
    else:
        fluid = pores
    domain = lattice(np.ascontiguousarray(fluid), sides)
    advance = stepper(domain, tau, engine, device)
    total, steps, before, change = 0.0, 0, 0.0, math.inf
    while steps < max_steps:
        total = advance(100)
        steps += 100
        if not math.isfinite(total):
            raise NonFinite(f"the flow along axis {axis} diverged after {steps} steps (tau {tau}); try a larger tau")
        change = abs(total - before) / abs(total) if total else math.inf
        if change < tolerance:
            break
        before = total
    else:
        raise RunError(
            f"the flow along axis {axis} has not converged after {steps} steps (last change {change:.1e} in 100 steps)"
        )
    viscosity = (tau - 0.5) / 3
    k = viscosity * total / (fluid.shape[0] * area)
    if ends == "free":
        k *= length / fluid.shape[0]
    return Flow(float(k), steps, len(domain.gather), float(change))


def stepper(domain: Lattice, tau: float, engine: str = "auto", device: str = "cpu") -> Callable[[int], float]:
    """A function that takes n time steps under unit force along axis 0 and gives the sum of velocities over all cells.

    One step: populations f_q arrive from upstream; rho = sum f, j = sum c f + F/2; each opposite pair relaxes with
    rates w+ = 1/tau and w- = 1/(3/(16 (tau - 1/2)) + 1/2):

        d+ = w+ (f+ - w rho),   d- = w- (f- - 3 w c.j) - (1 - w-/2) 3 w c.F,   f_a -= d+ + d-,   f_b -= d+ - d-
    """
    if tau <= 0.5:
        raise UsageError(f"tau {tau}: a relaxation time above 0.5 is needed")
    rates = 1 / tau, 1 / (3 / (16 * (tau - 0.5)) + 0.5)
    if engine == "auto":
        engine = "numba" if _kernel() is not None else "torch"
    if engine == "torch":
        return _torch_stepper(domain, *rates, device)
    kernel = _kernel()
    if kernel is None:
        raise UsageError("numba is not installed; try: pip install 'headwater-porous-gan[physics]', or engine torch")
    state = [np.zeros((len(domain.gather), 19), np.float32) for _ in range(2)]
    even, odd = np.float32(rates[0]), np.float32(rates[1])

    def advance(n: int) -> float:
        total = 0.0
        for _ in range(n):
            total = kernel(state[0], state[1], domain.gather, even, odd)
            state.reverse()
        return float(total)

    return advance


@cache
def _kernel() -> Any:
    """The compiled time step; ``None`` where numba is not installed."""
    try:
        import numba
    except ImportError:
        return None

    @numba.njit(inline="always")  # type: ignore[untyped-decorator]
    def relax(a, b, w, rho, cj, cf, even, odd, new, i, q):  # type: ignore[no-untyped-def]
        half = np.float32(0.5)
        three = np.float32(3.0)
        plus = even * (half * (a + b) - w * rho)
        minus = odd * (half * (a - b) - three * w * cj) - (np.float32(1.0) - half * odd) * three * w * cf
        new[i, q] = a - plus - minus
        new[i, q + 1] = b - plus + minus

    @numba.njit(fastmath=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def step(old, new, gather, even, odd):  # type: ignore[no-untyped-def]
        f = old.ravel()
        half = np.float32(0.5)
        one = np.float32(1.0)
        none = np.float32(0.0)
        w0 = np.float32(1 / 3)
        w1 = np.float32(1 / 18)
        w2 = np.float32(1 / 36)
        total = 0.0
        for i in range(gather.shape[0]):
            f0 = old[i, 0]
            a0, b0 = f[gather[i, 0]], f[gather[i, 1]]
            a1, b1 = f[gather[i, 2]], f[gather[i, 3]]
            a2, b2 = f[gather[i, 4]], f[gather[i, 5]]
            a3, b3 = f[gather[i, 6]], f[gather[i, 7]]
            a4, b4 = f[gather[i, 8]], f[gather[i, 9]]
            a5, b5 = f[gather[i, 10]], f[gather[i, 11]]
            a6, b6 = f[gather[i, 12]], f[gather[i, 13]]
            a7, b7 = f[gather[i, 14]], f[gather[i, 15]]
            a8, b8 = f[gather[i, 16]], f[gather[i, 17]]
            rho = f0 + (a0 + b0) + (a1 + b1) + (a2 + b2) + (a3 + b3) + (a4 + b4) + (a5 + b5) + (a6 + b6)
            rho += (a7 + b7) + (a8 + b8)
            j0 = (a0 - b0) + (a3 - b3) + (a4 - b4) + (a5 - b5) + (a6 - b6) + half
            j1 = (a1 - b1) + (a3 - b3) - (a4 - b4) + (a7 - b7) + (a8 - b8)
            j2 = (a2 - b2) + (a5 - b5) - (a6 - b6) + (a7 - b7) - (a8 - b8)
            total += j0
            new[i, 0] = f0 - even * (f0 - w0 * rho)
            relax(a0, b0, w1, rho, j0, one, even, odd, new, i, 1)
            relax(a1, b1, w1, rho, j1, none, even, odd, new, i, 3)
            relax(a2, b2, w1, rho, j2, none, even, odd, new, i, 5)
            relax(a3, b3, w2, rho, j0 + j1, one, even, odd, new, i, 7)
            relax(a4, b4, w2, rho, j0 - j1, one, even, odd, new, i, 9)
            relax(a5, b5, w2, rho, j0 + j2, one, even, odd, new, i, 11)
            relax(a6, b6, w2, rho, j0 - j2, one, even, odd, new, i, 13)
            relax(a7, b7, w2, rho, j1 + j2, none, even, odd, new, i, 15)
            relax(a8, b8, w2, rho, j1 - j2, none, even, odd, new, i, 17)
        return total

    return step


def _torch_stepper(domain: Lattice, even: float, odd: float, device: str) -> Callable[[int], float]:
    """The same time step on tensors, for machines without numba and for GPUs."""
    import torch

    place = torch.device(device)
    velocities = torch.tensor(PAIRS, dtype=torch.float32, device=place)
    weights = torch.tensor(WEIGHTS[1::2], dtype=torch.float32, device=place)
    gather = torch.from_numpy(domain.gather.astype(np.int64)).to(place)
    force = (1 - odd / 2) * 3 * weights * velocities[:, 0]
    state = torch.zeros(len(gather), 19, device=place)
    unit = torch.tensor([0.5, 0.0, 0.0], device=place)

    def advance(n: int) -> float:
        nonlocal state
        total = torch.zeros((), dtype=torch.float64, device=place)
        for _ in range(n):
            f = state.view(-1)[gather].view(-1, 9, 2)
            plus, minus = f.sum(-1) / 2, (f[..., 0] - f[..., 1]) / 2
            rest = state[:, 0]
            rho = rest + 2 * plus.sum(1)
            j = 2 * minus @ velocities + unit
            total = j[:, 0].sum(dtype=torch.float64)
            plus = even * (plus - weights * rho[:, None])
            minus = odd * (minus - 3 * weights * (j @ velocities.T)) - force
            fresh = torch.empty_like(state)
            fresh[:, 0] = rest - even * (rest - rho / 3)
            fresh[:, 1::2] = f[..., 0] - plus - minus
            fresh[:, 2::2] = f[..., 1] - plus + minus
            state = fresh
        return float(total)

    return advance
