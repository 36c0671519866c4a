"""The exact likelihood of a flow: log p1(x) = log p0(x(0)) - integral of div v (the instantaneous change of variables).

Every function is differentiable in the parameters of the velocity and in x.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headwater_flow.shapes import as_time
from headwater_flow.solvers import Velocity, solve

__all__ = ["bits_per_dimension", "divergence", "log_likelihood", "rademacher", "standard_normal"]


def rademacher(shape: torch.Size, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Random signs with the dtype and device of ``like``: the noise of least variance for Hutchinson's estimate."""
    bits = torch.randint(2, shape, generator=generator, device=like.device)
    return (2 * bits - 1).to(like.dtype)


def divergence(velocity: Velocity, t: Tensor, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The velocity (B, ...) and its divergence (B,) at ``x`` (B, ...).

    Exact in as many backward passes as a sample has entries, vectorised; with ``noise`` (K, B, ...) Hutchinson's
    estimate, the mean over K of noise . J noise. Samples must not act on one another in ``velocity``.

    Example:
        >>> v, div = divergence(lambda t, x: 3 * x, torch.tensor(0.0), torch.randn(5, 2))
        >>> div.tolist()
        [6.0, 6.0, 6.0, 6.0, 6.0]
    """
    value: Tensor
    value, pull = torch.func.vjp(lambda y: velocity(t, y), x)  # type: ignore[misc]
    if noise is None:
        size = x[0].numel()
        basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)
        rows = torch.func.vmap(lambda e: (pull(e)[0] * e).flatten(1).sum(1))(basis)
        return value, rows.sum(0)
    estimates = torch.func.vmap(lambda e: (pull(e)[0] * e).flatten(1).sum(1))(noise)
    return value, estimates.mean(0)


def standard_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I), (B,), of ``x`` (B, ...).

    Example:
        >>> round(float(standard_normal(torch.zeros(1, 2))), 4)
        -1.8379
    """
    flat = x.flatten(1)
    return -0.5 * flat.square().sum(1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)


def log_likelihood(
    velocity: Velocity,
    x: Tensor,
    log_p0: Callable[[Tensor], Tensor] = standard_normal,
    method: str = "dopri5",
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """log p1 (B,) of data ``x`` (B, ...) and the latent state x(0), by solving from t = 1 back to 0.

    Args:
        velocity: v(t, x) from noise at t = 0 to data at t = 1.
        x: data.
        log_p0: log-density of the source, (B, ...) to (B,).
        method: as :func:`headwater_flow.solvers.solve`.
        probes: Hutchinson's estimate with so many random signs, drawn once; the exact divergence without.
        generator: source of the signs.
        settings: further settings of ``solve``: steps, rtol, atol, per_sample.

    Example:
        >>> x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)  # v = x takes N(0, 1) to N(0, e^2)
        >>> value, _ = log_likelihood(lambda t, x: x, x, rtol=1e-8, atol=1e-8)
        >>> expected = standard_normal(x / math.e) - 2
        >>> bool((value - expected).abs() < 1e-6)
        True
    """
    noise = None
    if probes is not None:
        noise = rademacher(torch.Size((probes, *x.shape)), x, generator)

    def augmented(t: Tensor, state: Tensor) -> Tensor:
        # A solver without gradients stays without them; vjp works either way.
        position = state[:, :-1].reshape(x.shape)
        v, div = divergence(velocity, as_time(t, x), position, noise)
        return torch.cat([v.flatten(1), div.unsqueeze(1)], 1)

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
    end = solve(augmented, start, method, t0=1.0, t1=0.0, **settings)
    latent = end[:, :-1].reshape(x.shape)
    return log_p0(latent) + end[:, -1], latent


def bits_per_dimension(log_p: Tensor, dimensions: int) -> Tensor:
    """-log2 p per entry of a sample."""
    return -log_p / (dimensions * math.log(2))
