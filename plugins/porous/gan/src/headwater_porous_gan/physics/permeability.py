"""Permeability of the pore space by a D3Q19 lattice Boltzmann solver with two relaxation times (Stokes flow).

Populations are kept for fluid cells only, as deviations from rest: 19 float32 values a cell in one copy, and a uint32
table of neighbours, 148 bytes a fluid cell. Walls are half-way bounce-back. The equilibrium is linear and the magic
number 3/16, so the permeability hardly depends on the relaxation time (0.4 %).
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

MOST = (2**32 - 1) // 19 - 512
"""Fluid cells whose populations a uint32 table can address."""

BLOCK = 512
"""Cells that collide together: their 19 populations (39 KB) stay in the first-level cache."""


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
        upstream: int32 (18, cells): the cell from which population q = 1..18 arrives, -1 where there is a wall.
        shape: of the domain, flow axis first.
    """

    upstream: np.ndarray
    shape: tuple[int, int, int]


def lattice(fluid: np.ndarray, sides: Literal["closed", "periodic"] = "closed") -> Lattice:
    """Neighbours in a bool domain (d0, d1, d2), periodic along axis 0, its four other sides walls or periodic."""
    cells = int(fluid.sum())
    if cells > MOST:
        raise UsageError(f"{cells} fluid cells are more than the {MOST} that the solver can address; take a crop")
    number = np.full(fluid.shape, -1, np.int32)
    number[fluid] = np.arange(cells, dtype=np.int32)
    number = np.pad(number, ((1, 1), (0, 0), (0, 0)), "wrap")
    around = ((0, 0), (1, 1), (1, 1))
    number = np.pad(number, around, "wrap") if sides == "periodic" else np.pad(number, around, constant_values=-1)
    upstream = np.empty((18, cells), np.int32)
    for q in range(1, 19):
        velocity = [c if q % 2 else -c for c in PAIRS[(q - 1) // 2]]
        where = tuple(slice(1 - c, 1 - c + n) for c, n in zip(velocity, fluid.shape, strict=True))
        upstream[q - 1] = number[where][fluid]
    return Lattice(upstream, fluid.shape)


def opposite(q: int) -> int:
    """The population that moves against population ``q`` > 0."""
    return q + 1 if q % 2 else q - 1


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
        phase: uint8 (d0, d1, d2), 0 pore and 1 grain; a crop that fits into memory (220 bytes a pore voxel).
        axis: direction of the flow.
        ends: how the two ends meet.
        layers: free voxels at each end.
        sides: the four other faces: walls or periodic.
        tau: relaxation time; 0.6 to 0.65 converges soonest in rock.
        tolerance: the flow has converged when its mean changes by less than this in 100 steps, twice in a row (the
            mean may overshoot, and stands still for a moment where it turns).
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
    advance = stepper(lattice(np.ascontiguousarray(fluid), sides), tau, engine, device)
    total, steps, before, change, calm = 0.0, 0, 0.0, math.inf, 0
    while steps < max_steps:
        total = advance(100)
        steps += 100
        if not math.isfinite(total):
            raise NonFinite(f"the flow along axis {axis} diverged after {steps} steps (tau {tau}); try a larger tau")
        change = abs(total - before) / abs(total) if total else math.inf
        calm = calm + 1 if change < tolerance else 0
        if calm == 2:
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
    return Flow(float(k), steps, int(fluid.sum()), float(change))


def stepper(domain: Lattice, tau: float, engine: str = "auto", device: str = "cpu") -> Callable[[int], float]:
    """A function that takes n time steps (even) under unit force along axis 0 and sums the velocities of all cells.

    One step: populations f_q arrive from upstream; rho = sum f, j = sum c f + F/2; each opposite pair relaxes with
    rates w+ = 1/tau and w- = 1/(3/(16 (tau - 1/2)) + 1/2):

        d+ = w+ (f+ - w rho),   d- = w- (f- - 3 w c.j) - (1 - w-/2) 3 w c.F,   f_a -= d+ + d-,   f_b -= d+ - d-
    """
    if tau <= 0.5:
        raise UsageError(f"tau {tau}: a relaxation time above 0.5 is needed")
    even, odd = 1 / tau, 1 / (3 / (16 * (tau - 0.5)) + 0.5)
    kernels = None if engine == "torch" else _kernels()
    if kernels is None:
        if engine == "numba":
            raise UsageError(
                "numba is not installed; try: pip install 'headwater-porous-gan[physics]', or engine torch"
            )
        return _torch_stepper(domain, even, odd, device)
    local, across = kernels
    cells = domain.upstream.shape[1]
    table = _table(domain)
    populations = np.zeros(table.size // 18 * 19, np.float32)

    def advance(n: int) -> float:
        total = 0.0
        for _ in range(n // 2):
            local(populations, np.float32(even), np.float32(odd))
            total = across(populations, table, cells, np.float32(even), np.float32(odd))
        return float(total)

    return advance


def _table(domain: Lattice) -> np.ndarray:
    """Where population q of each cell is found when it has left its cell of origin, uint32, blocks of (18, BLOCK).

    Steps are taken in pairs on one copy. The first step works inside each cell and leaves population q in the place of
    its opposite. In the second, what arrives as q is therefore in place opposite(q) of the upstream cell, or in its
    own place q where a wall threw it back, and what leaves against q belongs in that same place: one table serves
    both, and no other cell touches it. Blocks are filled up with cells that keep to themselves.
    """
    cells = domain.upstream.shape[1]
    blocks = -(-cells // BLOCK)
    every = np.arange(blocks * BLOCK)
    table = np.empty((blocks, 18, BLOCK), np.uint32)
    for q in range(1, 19):
        source, place = every.copy(), np.full(len(every), q)
        free = domain.upstream[q - 1] >= 0
        source[:cells][free] = domain.upstream[q - 1][free]
        place[:cells][free] = opposite(q)
        table[:, q - 1] = ((source // BLOCK * 19 + place) * BLOCK + source % BLOCK).reshape(blocks, BLOCK)
    return table.ravel()


@cache
def _kernels() -> Any:
    """The two compiled time steps, inside cells and across; ``None`` where numba is not installed."""
    try:
        import numba
    except ImportError:
        return None
    B = BLOCK
    f32 = np.float32

    @numba.njit(fastmath=True, error_model="numpy", inline="always")
    def relax(f, i, a, b, w, rho, cj, push, even, odd):  # type: ignore[no-untyped-def]
        # From here the pair moves on: what was at a is stored at b, and the other way round.
        fa, fb = f[i + a * B], f[i + b * B]
        plus = even * (f32(0.5) * (fa + fb) - w * rho)
        minus = odd * (f32(0.5) * (fa - fb) - f32(3) * w * cj) - push
        f[i + b * B] = fa - plus - minus
        f[i + a * B] = fb - plus + minus

    @numba.njit(fastmath=True, error_model="numpy")
    def collide(f, cells, even, odd):  # type: ignore[no-untyped-def]
        w1, w2 = f32(1 / 18), f32(1 / 36)
        push1 = (f32(1) - f32(0.5) * odd) * f32(3) * w1
        push2 = (f32(1) - f32(0.5) * odd) * f32(3) * w2
        none = f32(0)
        total = f32(0)
        for i in range(cells):
            f0 = f[i]
            s0, d0 = f[i + B] + f[i + 2 * B], f[i + B] - f[i + 2 * B]
            s1, d1 = f[i + 3 * B] + f[i + 4 * B], f[i + 3 * B] - f[i + 4 * B]
            s2, d2 = f[i + 5 * B] + f[i + 6 * B], f[i + 5 * B] - f[i + 6 * B]
            s3, d3 = f[i + 7 * B] + f[i + 8 * B], f[i + 7 * B] - f[i + 8 * B]
            s4, d4 = f[i + 9 * B] + f[i + 10 * B], f[i + 9 * B] - f[i + 10 * B]
            s5, d5 = f[i + 11 * B] + f[i + 12 * B], f[i + 11 * B] - f[i + 12 * B]
            s6, d6 = f[i + 13 * B] + f[i + 14 * B], f[i + 13 * B] - f[i + 14 * B]
            s7, d7 = f[i + 15 * B] + f[i + 16 * B], f[i + 15 * B] - f[i + 16 * B]
            s8, d8 = f[i + 17 * B] + f[i + 18 * B], f[i + 17 * B] - f[i + 18 * B]
            rho = f0 + s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8
            j0 = d0 + d3 + d4 + d5 + d6 + f32(0.5)
            j1 = d1 + d3 - d4 + d7 + d8
            j2 = d2 + d5 - d6 + d7 - d8
            total += j0
            f[i] = f0 - even * (f0 - f32(1 / 3) * rho)
            relax(f, i, 1, 2, w1, rho, j0, push1, even, odd)
            relax(f, i, 3, 4, w1, rho, j1, none, even, odd)
            relax(f, i, 5, 6, w1, rho, j2, none, even, odd)
            relax(f, i, 7, 8, w2, rho, j0 + j1, push2, even, odd)
            relax(f, i, 9, 10, w2, rho, j0 - j1, push2, even, odd)
            relax(f, i, 11, 12, w2, rho, j0 + j2, push2, even, odd)
            relax(f, i, 13, 14, w2, rho, j0 - j2, push2, even, odd)
            relax(f, i, 15, 16, w2, rho, j1 + j2, none, even, odd)
            relax(f, i, 17, 18, w2, rho, j1 - j2, none, even, odd)
        return total

    @numba.njit(fastmath=True, error_model="numpy", nogil=True)
    def local(f, even, odd):  # type: ignore[no-untyped-def]
        for base in range(0, f.size, 19 * B):
            collide(f[base : base + 19 * B], B, even, odd)

    @numba.njit(fastmath=True, error_model="numpy", nogil=True)
    def across(f, table, cells, even, odd):  # type: ignore[no-untyped-def]
        own = np.empty(19 * B, np.float32)
        total = 0.0
        for block in range(f.size // (19 * B)):
            rest = 19 * B * block
            places = table[18 * B * block : 18 * B * (block + 1)]
            for k in range(B):
                own[k] = f[rest + k]
            for k in range(18 * B):
                own[B + k] = f[places[k]]
            total += collide(own, min(B, cells - B * block), even, odd)
            for k in range(B):
                f[rest + k] = own[k]
            for k in range(18 * B):
                f[places[k]] = own[B + k]
        return total

    return local, across


def _torch_stepper(domain: Lattice, even: float, odd: float, device: str) -> Callable[[int], float]:
    """The same time step on tensors, for machines without numba and for GPUs."""
    import torch

    place = torch.device(device)
    velocities = torch.tensor(PAIRS, dtype=torch.float32, device=place)
    weights = torch.tensor(WEIGHTS[1::2], dtype=torch.float32, device=place)
    upstream = torch.from_numpy(domain.upstream.T.astype(np.int64)).to(place)
    q = torch.arange(1, 19, device=place)
    back = torch.tensor([opposite(i) for i in range(1, 19)], device=place)
    own = torch.arange(len(upstream), device=place)[:, None] * 19
    gather = torch.where(upstream >= 0, upstream * 19 + q, own + back)
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
