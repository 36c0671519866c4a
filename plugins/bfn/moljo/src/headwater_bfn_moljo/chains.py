"""From the prior to a molecule: the sampler of the theory, and the one that the published numbers were made with.

Both call the network n + 1 times. They are the same chain where no gradient guides it, the window is the whole chain
and types are taken as probabilities. They differ thus:

===================  ====================================  =========================================================
                     ``sample``                            ``sample_official``
===================  ====================================  =========================================================
gradient             with respect to (mu, y), at t_{i-1}   with respect to (mu, theta); the predictor is told t_i
                                                           (end-back), t_{i-1} (window, vanilla)
shift                of the transition's mean, by its      of the estimate x_hat by 1 - gamma(t_{i-1}) (end-back) or
                     variance times the gradient (G)       1/rho_i, of e_hat by the bare gradient, not renormalised
step 1               guided                                not guided by end-back
window k             starts from the belief i - k          starts from i - k - 1, with the precision of i - k
vanilla (k = 1)      guided                                the guided estimate is stored and never used
last types           argmax of the logits                  argmax of the logits (the released code's clamp turns atoms
                                                           whose logits are all negative into hydrogen)
===================  ====================================  =========================================================
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from headwater_bfn import continuous
from torch import Tensor
from torch.nn.functional import one_hot

from headwater_bfn_moljo.flow import Belief, coordinate_window, flow, guided, type_window

__all__ = [
    "Fixed",
    "Strategy",
    "draw_classes",
    "end_back_step",
    "official_shift",
    "sample",
    "sample_official",
    "vanilla_step",
    "window_step",
]

Network = Callable[[Belief, float], tuple[Tensor, Tensor]]
"""Estimates of the coordinates (N, 3) and logits of the types (N, K), from a belief and the time."""

Gradient = Callable[[Belief, float], tuple[Tensor, Tensor]]
"""Gradients (N, 3) and (N, K) of the objective, from a belief and the time."""

Strategy = Literal["end-back", "vanilla", "window"]

FLOOR = 1e-6
"""The official sampler's least probability of a type."""


@dataclass(frozen=True)
class Fixed:
    """Atoms that are kept: which ones (N,), and the coordinates (N, 3) and types (N, K) that they have."""

    mask: Tensor
    x: Tensor
    e: Tensor

    def believed(self, belief: Belief, t: float, sigma1: float, beta1: float, generator: torch.Generator) -> Belief:
        """``belief`` with a fresh draw of the flow at ``t`` for the kept atoms; free atoms are left as they are."""
        time = belief.mu.new_full((len(belief.mu),), t)
        known = flow(self.x, self.e, time, sigma1, beta1, generator)
        where = self.mask.unsqueeze(-1)
        return Belief(torch.where(where, known.mu, belief.mu), torch.where(where, known.y, belief.y))

    def restored(self, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates with the kept atoms exactly as they were."""
        where = self.mask.unsqueeze(-1)
        known = torch.where(self.e > 0, 0.0, -torch.inf).to(logits.dtype)
        return torch.where(where, self.x, x), torch.where(where, known, logits)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def draw_classes(p: Tensor, uniform: Tensor) -> Tensor:
    """One-hot classes (N, K) with probabilities ``p`` (N, K): the number of cumulative sums below ``uniform`` (N,).

    Example:
        >>> draw_classes(torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([0.6])).tolist()
        [[0.0, 1.0, 0.0]]
    """
    index = (p.cumsum(-1) < uniform.unsqueeze(-1)).sum(-1).clamp_max(p.shape[-1] - 1)
    return one_hot(index, p.shape[-1]).to(p.dtype)


def sample(
    network: Network,
    start: Belief,
    n: int,
    sigma1: float,
    beta1: float,
    generator: torch.Generator,
    window: int | None = None,
    gradient: Gradient | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    types: Literal["pmf", "sample"] = "pmf",
    fixed: Fixed | None = None,
) -> tuple[Tensor, Tensor]:
    """The last estimates of the coordinates (N, 3) and logits of the types (N, K).

    Args:
        network: the trained network.
        start: the belief at t = 0.
        n: how many steps.
        sigma1: of the coordinates' flow.
        beta1: of the types' flow.
        generator: source of all randomness.
        window: k, the belief after step i is drawn from that after step i - k; 1 is the plain chain, n (as without)
            draws every belief from the prior.
        gradient: of the objective, log P, with respect to (mu, y); unguided without.
        weights: s of the coordinates and of the types; 0 leaves one of them unguided.
        types: the estimate that a transition takes: the probabilities, or one class drawn from them.
        fixed: atoms that are kept.
    """
    history: deque[Belief] = deque(maxlen=n if window is None else window)
    belief = start
    for i in range(1, n + 1):
        t = (i - 1) / n
        if fixed is not None:
            belief = fixed.believed(belief, t, sigma1, beta1, generator)
        history.append(belief)
        j = i - len(history)
        x, logits = network(belief, t)
        e = logits.softmax(-1)
        if types == "sample":
            e = draw_classes(e, torch.rand(len(e), dtype=e.dtype, device=e.device, generator=generator))
        mu, var_mu = coordinate_window(history[0].mu, x, j, i, n, sigma1)
        y, var_y = type_window(history[0].y, e, j, i, n, beta1)
        if gradient is not None:
            g_mu, g_y = gradient(belief, t)
            mu, y = guided(mu, var_mu, g_mu, weights[0]), guided(y, var_y, g_y, weights[1])
        y = y + math.sqrt(var_y) * _noise(y, generator)
        mu = mu + math.sqrt(var_mu) * _noise(mu, generator)
        belief = Belief(mu, y)
    if fixed is not None:
        belief = fixed.believed(belief, 1.0, sigma1, beta1, generator)
    x, logits = network(belief, 1.0)
    return (x, logits) if fixed is None else fixed.restored(x, logits)


def official_shift(
    x: Tensor, p: Tensor, gradient: tuple[Tensor, Tensor], weights: tuple[float, float], factor: float, log: bool
) -> tuple[Tensor, Tensor]:
    """The estimates shifted as the released code shifts them.

    Args:
        x: (N, 3), estimated coordinates.
        p: (N, K), estimated probabilities.
        gradient: of the objective with respect to mu and theta.
        weights: s of the coordinates and of the types.
        factor: of the coordinates' gradient: 1 - gamma(t_{i-1}), or 1/rho_i.
        log: shift log p and normalise, or p itself, which may then leave the simplex.
    """
    g_mu, g_theta = gradient
    x = x + weights[0] * factor * g_mu
    if log:
        return x, (p.log() + weights[1] * g_theta).softmax(-1)
    return x, p + weights[1] * g_theta


def end_back_step(
    x: Tensor, e: Tensor, i: int, n: int, sigma1: float, beta1: float, noise_mu: Tensor, noise_y: Tensor
) -> Belief:
    """A belief after step i, drawn from the prior around the estimates: the flow at t_i."""
    zero = Belief(torch.zeros_like(x), torch.zeros_like(e))
    mu, var_mu = coordinate_window(zero.mu, x, 0, i, n, sigma1)
    y, var_y = type_window(zero.y, e, 0, i, n, beta1)
    return Belief(mu + math.sqrt(var_mu) * noise_mu, y + math.sqrt(var_y) * noise_y)


def vanilla_step(
    belief: Belief, x: Tensor, e: Tensor, i: int, n: int, sigma1: float, beta1: float, noise_mu: Tensor, noise_y: Tensor
) -> Belief:
    """The belief after message i, which is sent around the estimates."""
    mu, var_mu = coordinate_window(belief.mu, x, i - 1, i, n, sigma1)
    y, var_y = type_window(belief.y, e, i - 1, i, n, beta1)
    return Belief(mu + math.sqrt(var_mu) * noise_mu, y + math.sqrt(var_y) * noise_y)


def window_step(
    before: Belief, x: Tensor, e: Tensor, i: int, k: int, n: int, sigma1: float, beta1: float, noise_mu: Tensor,
    noise_y: Tensor,
) -> Belief:  # fmt: skip
    """The released code's step i > k: messages i-k+1..i sent to ``before``, the belief after step i - k - 1.

    The mean of ``before`` counts with the precision of the step after it.
    """
    mu, var_mu = coordinate_window(before.mu, x, i - k, i, n, sigma1)
    y, var_y = type_window(before.y, e, i - k, i, n, beta1)
    return Belief(mu + math.sqrt(var_mu) * noise_mu, y + math.sqrt(var_y) * noise_y)


def sample_official(
    network: Network,
    start: Belief,
    n: int,
    sigma1: float,
    beta1: float,
    generator: torch.Generator,
    strategy: Strategy = "end-back",
    window: int = 1,
    gradient: Gradient | None = None,
    weights: tuple[float, float] = (50.0, 50.0),
) -> tuple[Tensor, Tensor]:
    """The last estimates, by the sampler of the released code; arguments as in :func:`sample`.

    ``gradient`` is with respect to (mu, theta). ``window`` is read by the strategy of that name alone.
    """
    history: deque[Belief] = deque(maxlen=window + 1)
    belief = start
    for i in range(1, n + 1):
        t = (i - 1) / n
        history.append(belief)
        x, logits = network(belief, t)
        p = logits.softmax(-1).clamp_min(FLOOR)
        late = strategy == "window" and i > window
        if gradient is not None and strategy != "vanilla" and (strategy == "window" or i > 1):
            found = gradient(belief, t if strategy == "window" else i / n)
            factor = sigma1 ** (2.0 * i / n) if late else float(continuous.remaining(t, sigma1))
            x, p = official_shift(x, p, found, weights, factor, log=late)
        if strategy == "vanilla" or late:
            p = draw_classes(p, torch.rand(len(p), dtype=p.dtype, device=p.device, generator=generator))
        noise_y, noise_mu = _noise(p, generator), _noise(x, generator)
        if strategy == "vanilla":
            belief = vanilla_step(belief, x, p, i, n, sigma1, beta1, noise_mu, noise_y)
        elif late:
            belief = window_step(history[0], x, p, i, window, n, sigma1, beta1, noise_mu, noise_y)
        else:
            belief = end_back_step(x, p, i, n, sigma1, beta1, noise_mu, noise_y)
    return network(belief, 1.0)
