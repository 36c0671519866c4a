"""The flow from a start to a transition state: noise, pairing, the path in training and the solve in sampling.

x_t = alpha(t) x1 + sigma(t) x0, time 0 at the start x0 and 1 at the transition state x1, velocity
u = alpha' x1 + sigma' x0. The paper's x0 is N(0, s^2) alone; around a midpoint of reactant and product it is that plus
noise.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from headwater_flow.couplings import assign
from headwater_flow.paths import AffinePath
from headwater_flow.schedules import VP, CondOT, Cosine, Schedule, clamp
from headwater_flow.solvers import solve
from headwater_flow.times import beta, draw_times, uniform
from torch import Tensor

from headwater_flow_tsgen.batch import Frames
from headwater_flow_tsgen.geometry import align, centre, mirror_aligned, rmsd

__all__ = ["PATHS", "central", "generate", "noise", "pair", "path_of", "times"]

PATHS: dict[str, Schedule] = {"linear": CondOT(), "cosine": Cosine(), "vp": VP()}
"""Linear, GVP and VP of the paper."""


def path_of(name: str) -> AffinePath:
    """The path of a schedule."""
    return AffinePath(PATHS[name])


def times(n: int, kind: str, path: str, generator: torch.Generator) -> Tensor:
    """Training times (n,): U[0, 1] (v1) or Beta(0.8, 0.8) kept within [1e-6, 1 - 1e-6] (v3); 0 for ``start``.

    Stratified, which leaves the distribution of each time as it is. VP keeps 1e-5 from t = 1, where its velocity has a
    pole.
    """
    if kind == "start":
        return torch.zeros(n)
    t = draw_times(n, generator, quantile=beta(0.8) if kind == "beta" else uniform)
    return clamp(t, 1e-5) if path == "vp" else clamp(t, 1e-6)


def noise(
    shape: Sequence[int], scale: float, generator: torch.Generator, *, centred: bool = True, mask: Tensor | None = None
) -> Tensor:
    """Normal noise of ``shape`` (B, N, 3) and standard deviation ``scale`` at atoms, 0 at padding.

    Centred noise has its mean over the atoms taken off. A network that sees distances alone cannot know where the mean
    of plain noise was, so it cannot learn to undo it; the published code leaves it in.
    """
    drawn = scale * torch.randn(*shape, generator=generator)
    if centred:
        return centre(drawn, mask)
    return drawn if mask is None else drawn * mask.unsqueeze(-1)


def pair(x0: Tensor, x1: Tensor, mask: Tensor | None, how: str) -> tuple[Tensor, Tensor]:
    """Pair start and TS within each molecule so that the way between them is short.

    ``rotation``: x1 is turned onto x0 by the best proper rotation (for a network that turns along). ``atoms``: the
    points of x0, which are exchangeable noise, are permuted among all atoms so that the sum of squared distances is
    least (an exact assignment; the published dynOT takes the largest entry of each row of a Sinkhorn plan, which may
    use a point twice). Returns x0 and x1.
    """
    if how == "rotation":
        return x0, align(x1, x0, mask)
    if how == "atoms":
        cost = torch.cdist(x1, x0).square()
        order = torch.arange(x0.shape[1]).repeat(len(x0), 1)
        for i in range(len(x0)):  # scipy solves one assignment at a time
            n = x0.shape[1] if mask is None else int(mask[i].sum())
            order[i, :n] = assign(cost[i, :n, :n])
        return x0.gather(1, order.unsqueeze(-1).expand_as(x0)), x1
    return x0, x1


def generate(
    network: Any,
    frames: Frames,
    x0: Tensor,
    *,
    method: str = "midpoint",
    steps: int = 5,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    push: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Transition states (B * S, N, 3) from starts ``x0`` (B * S, N, 3), S for each of B reactions, one after another.

    Args:
        network: one of the two, with ``prepare``.
        frames: the placed reactions.
        x0: where the flow starts.
        method: solver.
        steps: its steps; not for ``dopri5``.
        rtol: relative tolerance of ``dopri5``.
        atol: absolute tolerance of ``dopri5``.
        push: what is added to the velocity, push(x, t).
    """
    context = network.prepare(frames.species, frames.reactant, frames.product, frames.mask, frames.fragment)
    if len(x0) != len(frames.species):
        context = context.repeat(len(x0) // len(frames.species))

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        v: Tensor = network(x, t, context)
        return v if push is None else v + push(x, t)

    if method == "dopri5":
        return solve(velocity, x0, method, rtol=rtol, atol=atol, per_sample=True)
    return solve(velocity, x0, method, steps=steps)


def right_handed(x: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Align to ``target``; take the mirror image where it fits better.

    A network that sees distances alone, started from noise, makes either hand of a transition state with equal
    probability. The one nearer to the midpoint of reactant and product is that of the reaction.
    """
    return mirror_aligned(x, target, mask)[0]


def central(x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The most central of S guesses (B, S, N, 3) and how far the others are from it.

    Returns:
        The guess with the least mean RMSD to the others (B, N, 3); the root mean square displacement of each atom over
        the aligned guesses (B, N); the mean RMSD to the others (B,). Both are 0 where S = 1.
    """
    b, s, n = x.shape[:3]
    if s == 1:
        return x[:, 0], x.new_zeros(b, n), x.new_zeros(b)
    wide = None if mask is None else mask.unsqueeze(1).expand(b, s, n).reshape(b * s, n)
    rows = []
    for k in range(s):
        target = x[:, k : k + 1].expand_as(x).reshape(b * s, n, 3)
        rows.append(rmsd(x.reshape(b * s, n, 3), target, wide).view(b, s))
    apart = torch.stack(rows, 1).sum(2) / (s - 1)
    best = apart.argmin(1)
    rows_of = torch.arange(b, device=x.device)
    chosen = x[rows_of, best]
    aligned = align(x.reshape(b * s, n, 3), chosen.unsqueeze(1).expand_as(x).reshape(b * s, n, 3), wide)
    moved = aligned.view(b, s, n, 3) - centre(chosen, mask).unsqueeze(1)
    spread = (moved.square().sum(-1).sum(1) / (s - 1)).sqrt()
    return chosen, spread, apart[rows_of, best]


def starts(frames: Frames, drawn: Sequence[Tensor], trials: int) -> Tensor:
    """Starts (B * S, N, 3) out of the noises of each reaction, (S, n, 3) with its own number of atoms n."""
    b, n = frames.species.shape
    x0 = frames.start.repeat_interleave(trials, 0)
    for i, each in enumerate(drawn):
        x0[i * trials : (i + 1) * trials, : each.shape[1]] += each.to(x0)
    return x0.view(b * trials, n, 3)
