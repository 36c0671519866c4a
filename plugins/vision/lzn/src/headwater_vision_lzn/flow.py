"""The latent flow between anchors and the Gaussian: forward (anchor to latent) and reverse (latent to anchors).

Time runs from t = 0 (anchors) to t = 1 (Gaussian) along s_t = (1-t) a + t z. For a finite set of anchors a_1..a_N with
weights w_j the flow is known in closed form (paper, section 2; D is the width of the latent):

- logits: l_j(s, t) = (1-t)/t^2 s.a_j - (1-t)^2/(2 t^2) |a_j|^2 + log w_j; the term in |s|^2 cancels in the softmax
- posterior: p(s, t) = softmax_j l_j, the probability that s came from anchor j
- mean anchor: m(s, t) = sum_j p_j a_j
- velocity: v(s, t) = sum_j p_j (n_j - a_j) = (s - m) / t, with the residual noise n_j = (s - (1-t) a_j) / t

So a step is one call of attention: query s, keys and values A. A solver is a table of numbers, for both Euler and
DPM-Solver++ update the state by s <- keep s + sum_i mix_i m_i over the latest posterior means.

The first Euler step starts at t = 1e-4, where scores are multiplied by 1e8 and differences divided by t. All steps
before t = 0.05 are therefore computed in float64, whatever the precision of the rest.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "DPM_END",
    "EULER_START",
    "Reverse",
    "Solver",
    "Step",
    "dpm_steps",
    "euler_steps",
    "forward_flow",
    "nearest",
    "posterior",
    "reverse_flow",
    "velocity",
    "with_bank",
]

Solver = Literal["euler", "dpm"]

EULER_START = 1e-4
DPM_END = 1e-3
EXACT_BEFORE = 0.05

NOTHING = 1e-20
"""Probabilities below count as 0: denormal numbers would make the matrix products several times slower."""


class Step(NamedTuple):
    """One step of a solver: m is evaluated at ``t``, then s <- ``keep`` s + sum_i ``mix[i]`` m_i, m_0 the newest."""

    t: float
    keep: float
    mix: tuple[float, ...]


@cache
def euler_steps(n: int, start: float, stop: float) -> tuple[Step, ...]:
    """``n`` equal Euler steps of ds/dt = (s - m)/t from ``start`` to ``stop``: s <- (1 + h/t) s - (h/t) m.

    Example:
        >>> euler_steps(2, 1.0, 0.0)
        (Step(t=1.0, keep=0.5, mix=(0.5,)), Step(t=0.5, keep=0.0, mix=(1.0,)))
    """
    h = (stop - start) / n
    times = [start + k * h for k in range(n)]
    return tuple(Step(t, 1 + h / t, (-h / t,)) for t in times)


@cache
def dpm_steps(n: int, start: float, stop: float) -> tuple[Step, ...]:
    """``n`` steps of multistep DPM-Solver++ of third order with data prediction m, uniform in t.

    The schedule is alpha_t = 1-t, sigma_t = t, lambda = log(alpha/sigma). The first two steps are of first and second
    order; with fewer than 10 steps the last ones are of lower order again.
    """
    times = [start + (stop - start) * k / n for k in range(n + 1)]
    lambdas = [math.log(1 / t - 1) for t in times]
    steps = []
    for k in range(n):
        order = min(k + 1, 3)
        if n < 10 and k >= 2:
            order = min(order, n - k)
        h = lambdas[k + 1] - lambdas[k]
        alpha = 1 - times[k + 1]
        phi1 = math.expm1(-h)
        mix = [-alpha * phi1]
        if order == 2:
            r0 = (lambdas[k] - lambdas[k - 1]) / h
            d = -0.5 * alpha * phi1 / r0
            mix = [mix[0] + d, -d]
        elif order == 3:
            r0, r1 = (lambdas[k] - lambdas[k - 1]) / h, (lambdas[k - 1] - lambdas[k - 2]) / h
            phi2 = phi1 / h + 1
            phi3 = phi2 / h - 0.5
            # D1 and D2 as sums of D10 = (m0 - m1)/r0 and D11 = (m1 - m2)/r1.
            first = alpha * phi2
            second = -alpha * phi3 / (r0 + r1)
            d10 = (first * (1 + r0 / (r0 + r1)) + second) / r0
            d11 = -(first * r0 / (r0 + r1) + second) / r1
            mix = [mix[0] + d10, d11 - d10, -d11]
        steps.append(Step(times[k], times[k + 1] / times[k], tuple(mix)))
    return tuple(steps)


def _probabilities(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return torch.threshold(p, NOTHING, 0.0) if p.requires_grad else torch.threshold_(p, NOTHING, 0.0)


def _scales(t: float) -> tuple[float, float]:
    """The factors of s.a_j and of |a_j|^2 / 2 in the logits at time ``t``."""
    return (1 - t) / t**2, ((1 - t) / t) ** 2


def _bias(anchors: Tensor, t: float, log_weights: Tensor | None) -> Tensor:
    """What the logits of each anchor (N,) have apart from s: -(1-t)^2/(2 t^2) |a_j|^2 + log w_j."""
    bias = anchors.square().sum(1) * (-0.5 * _scales(t)[1])
    return bias if log_weights is None else bias + log_weights.to(bias.dtype)


def posterior(
    s: Tensor, anchors: Tensor, t: float, log_weights: Tensor | None = None, own: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The posterior over anchors and the mean anchor; differentiated by torch, B x N at a time.

    Args:
        s: states (B, D) at time ``t``.
        anchors: (N, D).
        t: in (0, 1].
        log_weights: log w_j (N,); all equal without. A weight of zero is -inf.
        own: (B, D), an anchor more that each row has for itself alone.

    Returns:
        p (B, N), or (B, N + 1) with the own anchor last; and m (B, D).
    """
    logits = torch.addmm(_bias(anchors, t, log_weights), s, anchors.T, alpha=_scales(t)[0])
    if own is not None:
        c1, c2 = _scales(t)
        mine = c1 * (s * own).sum(1, keepdim=True) - 0.5 * c2 * own.square().sum(1, keepdim=True)
        p = _probabilities(torch.cat([logits, mine], 1))
        return p, torch.addcmul(p[:, :-1] @ anchors, p[:, -1:], own)
    p = _probabilities(logits)
    return p, p @ anchors


def velocity(s: Tensor, anchors: Tensor, t: float, log_weights: Tensor | None = None) -> Tensor:
    """v(s, t) = (s - m)/t (B, D), the derivative of s in t."""
    return (s - posterior(s, anchors, t, log_weights)[1]) / t


class _Mean(torch.autograd.Function):
    """m(s, t) and, with targets, log p of each row's target: what the flow needs of one evaluation.

    The backward pass keeps s of the step and computes p anew, so that n steps take n B x D numbers and not n B x N.
    With g = dL/dm, q = dL/dlog p_target and d = p (g A' - g.m) + q (onehot - p):
    dL/ds = c1 d A and dL/dA = c1 d' s + p' g - c2 colsum(d) A.
    """

    @staticmethod
    def forward(
        ctx: Any, s: Tensor, anchors: Tensor, bias: Tensor, t: float, targets: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        logits = torch.addmm(bias, s, anchors.T, alpha=_scales(t)[0])
        log_q = None
        if targets is not None:
            log_q = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
        p = _probabilities(logits)
        m = p @ anchors
        ctx.save_for_backward(s, anchors, bias, targets)
        ctx.t = t
        return m, log_q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, q: Tensor | None) -> tuple[Tensor | None, ...]:
        s, anchors, bias, targets = ctx.saved_tensors
        c1, c2 = _scales(ctx.t)
        with torch.autocast(s.device.type, enabled=False):  # which may be on around the whole backward pass
            p = _probabilities(torch.addmm(bias, s, anchors.T, alpha=c1))
            # g.m as the sum of what is subtracted from, so that a one-hot p, whose d is multiplied by 1e8, gives 0.
            d = (g @ anchors.T).mul_(p)
            shift = d.sum(1, keepdim=True)
            if targets is not None and q is not None:
                d.scatter_add_(1, targets[:, None], q[:, None])
                shift += q[:, None]
            d.addcmul_(p, shift, value=-1)
            ds = (d @ anchors).mul_(c1) if ctx.needs_input_grad[0] else None
            da = None
            if ctx.needs_input_grad[1]:
                da = torch.addmm(anchors * d.sum(0)[:, None], d.T, s, beta=-c2, alpha=c1).addmm_(p.T, g)
        return ds, da, None, None, None


class _Anchors:
    """Anchors in both precisions, with what does not change from step to step."""

    def __init__(self, anchors: Tensor, log_weights: Tensor | None) -> None:
        self.anchors, self.log_weights = anchors, log_weights
        self.held: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def at(self, t: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The anchors (N, D) in ``dtype``, and the bias (N,) of their logits at ``t``."""
        if dtype not in self.held:
            anchors = self.anchors.to(dtype)
            self.held[dtype] = anchors, anchors.detach().square().sum(1)
        anchors, squares = self.held[dtype]
        bias = squares * (-0.5 * _scales(t)[1])
        return anchors, bias if self.log_weights is None else bias + self.log_weights.to(dtype)


def _solve(table: tuple[Step, ...], s: Tensor, dtype: torch.dtype, mean: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Go through the steps from state ``s``; those before t = 0.05 in float64, the others in ``dtype``."""
    before: list[Tensor] = []
    for step in table:
        wanted = torch.float64 if step.t < EXACT_BEFORE else dtype
        s = s.to(wanted)
        before = [mean(s, step.t), *before[:2]]
        s = step.keep * s
        for factor, m in zip(step.mix, before, strict=False):
            s = torch.add(s, m.to(wanted), alpha=factor)
    return s.to(dtype)


def forward_flow(
    anchors: Tensor,
    start: Tensor,
    prior: Tensor,
    *,
    solver: Solver = "dpm",
    steps: int = 20,
    log_weights: Tensor | None = None,
) -> Tensor:
    """The latent of each anchor in ``start``: the flow from t = 0 to t = 1 (paper: latent computation).

    Args:
        anchors: (N, D), all that share the space; gradients go through every step into them.
        start: (B, D), the anchors to be carried, rows of ``anchors`` as a rule.
        prior: (B, D), draws of the Gaussian.
        solver: ``euler`` begins at t = 1e-4 and ends at 1, ``dpm`` runs from 1e-3 to 1 - 1e-3.
        steps: how many times m is evaluated.
        log_weights: log w_j (N,); all equal without.

    Returns:
        Latents (B, D) in the precision of ``start``.
    """
    held = _Anchors(anchors, log_weights)

    def mean(s: Tensor, t: float) -> Tensor:
        return _Mean.apply(s, *held.at(t, s.dtype), t, None)[0]

    return _forward(start, prior, solver, steps, mean)


def with_bank(own: Tensor, bank: Tensor, prior: Tensor, *, solver: Solver = "dpm", steps: int = 20) -> Tensor:
    """The latent of each anchor in ``own`` among itself and the anchors of ``bank``, whatever else is in the batch.

    Args:
        own: (B, D), one anchor for each row.
        bank: (N, D), the reference.
        prior: (B, D).
        solver: as in :func:`forward_flow`.
        steps: as in :func:`forward_flow`.

    Returns:
        Latents (B, D). Row i is ``forward_flow`` with the N + 1 anchors of bank and row i.
    """

    def mean(s: Tensor, t: float) -> Tensor:
        return posterior(s, bank.to(s.dtype), t, own=own.to(s.dtype))[1]

    return _forward(own, prior, solver, steps, mean)


def _forward(
    start: Tensor, prior: Tensor, solver: Solver, steps: int, mean: Callable[[Tensor, float], Tensor]
) -> Tensor:
    table = euler_steps(steps, EULER_START, 1.0) if solver == "euler" else dpm_steps(steps, DPM_END, 1 - DPM_END)
    t = table[0].t
    return _solve(table, t * prior.double() + (1 - t) * start.double(), start.dtype, mean)


class Reverse(NamedTuple):
    """What the reverse flow found of B latents in n steps."""

    final: Tensor
    """Where the flow ends (B, D)."""
    log_targets: Tensor | None
    """log p of each latent's target before each step (n, B), where targets were given."""
    probabilities: Tensor | None
    """p over all anchors before each step (n, B, N), where they were to be kept; not differentiated."""


def reverse_flow(
    latents: Tensor,
    anchors: Tensor,
    *,
    solver: Solver = "dpm",
    steps: int = 20,
    log_weights: Tensor | None = None,
    targets: Tensor | None = None,
    keep: bool = False,
) -> Reverse:
    """From latents back to the anchors: the flow from t = 1 to t = 0 (paper: latent alignment).

    Args:
        latents: (B, D).
        anchors: (N, D).
        solver: ``euler`` runs from 1 to 0, ``dpm`` from 1 - 1e-3 to 1e-3.
        steps: how many times p is evaluated; always before the step, so never at the end.
        log_weights: log w_j (N,); all equal without.
        targets: (B,), the anchor of each latent whose probability is wanted.
        keep: whether to keep all probabilities, n x B x N numbers.
    """
    table = euler_steps(steps, 1.0, 0.0) if solver == "euler" else dpm_steps(steps, 1 - DPM_END, DPM_END)
    held = _Anchors(anchors, log_weights)
    found: list[Tensor] = []
    kept: list[Tensor] = []

    def mean(s: Tensor, t: float) -> Tensor:
        keys, bias = held.at(t, s.dtype)
        m, log_target = _Mean.apply(s, keys, bias, t, targets)
        if log_target is not None:
            found.append(log_target.to(latents.dtype))
        if keep:
            with torch.no_grad():
                kept.append(posterior(s, keys, t, log_weights)[0].to(latents.dtype))
        return m

    final = _solve(table, latents, latents.dtype, mean)
    return Reverse(final, torch.stack(found) if found else None, torch.stack(kept) if kept else None)


def nearest(points: Tensor, anchors: Tensor) -> Tensor:
    """The index (B,) of the anchor (N, D) nearest to each point (B, D): the zone that it is in."""
    return torch.cdist(points.double(), anchors.double()).argmin(1)
