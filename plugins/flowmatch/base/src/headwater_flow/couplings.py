"""Which x0 goes with which x1: couplings of two batches.

A coupling is a value that is called with two batches x0 (B, ...) and x1 (M, ...) and gives two index tensors (i, j):
the pairs are x0[i] and x1[j]. The cost is the squared Euclidean distance; both batches weigh uniformly.

A coupling that looks at the states alone breaks a condition that belongs to x1: it makes the pairing depend on the
condition, and training then learns a biased flow. So with ``conditions`` every coupling but the independent one wants a
``condition_weight``: that times the distance of the conditions is added to the cost (Cheng and Schwing, 2025); 0 says
that the conditions are to be ignored.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from headwater import NonFinite, PluginError, UsageError
from torch import Tensor

__all__ = [
    "Coupling",
    "ExactOT",
    "Independent",
    "PartialOT",
    "Sinkhorn",
    "UnbalancedOT",
    "assign",
    "condition_cost",
    "draw_pairs",
    "exact_plan",
    "sinkhorn_plan",
    "squared_distance",
]

Pairs = tuple[Tensor, Tensor]


class Coupling(Protocol):
    """Pairs two batches; ``conditions`` are those of x0 and of x1."""

    def __call__(
        self, x0: Tensor, x1: Tensor, generator: torch.Generator | None = None, conditions: Pairs | None = None
    ) -> Pairs: ...


# Costs


def squared_distance(x0: Tensor, x1: Tensor) -> Tensor:
    """|x0_i - x1_j|^2, (B, M), by one matrix product, never below zero."""
    a, b = x0.flatten(1), x1.flatten(1)
    centre = b.mean(0)  # the product loses digits where both clouds are far from the origin
    a, b = a - centre, b - centre
    return (a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2 * a @ b.T).clamp(min=0)


def condition_cost(c0: Tensor, c1: Tensor) -> Tensor:
    """The distance (B, M) of conditions: squared for numbers (B, C), 0 or 1 for classes (integers, (B,))."""
    if c0.is_floating_point():
        return squared_distance(c0.reshape(len(c0), -1), c1.reshape(len(c1), -1))
    return (c0[:, None] != c1[None, :]).float()


def _cost(x0: Tensor, x1: Tensor, conditions: Pairs | None, weight: float | None) -> Tensor:
    cost = squared_distance(x0, x1)
    if not bool(torch.isfinite(cost).all()):
        raise NonFinite("a batch to be coupled holds values that are not finite")
    if conditions is None:
        return cost
    if weight is None:
        raise UsageError(
            "optimal transport that ignores the conditions biases conditional training: give condition_weight, "
            "how much a difference of conditions costs (0 to ignore them all the same)"
        )
    return cost + weight * condition_cost(*conditions).to(cost)


# Plans


def assign(cost: Tensor) -> Tensor:
    """The permutation (B,) that minimises sum_i cost[i, p_i]: exact optimal transport of equal batches.

    Example:
        >>> assign(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [1, 0]
    """
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(cost.detach().double().cpu().numpy())
    return torch.as_tensor(columns, device=cost.device)


def exact_plan(cost: Tensor) -> Tensor:
    """The exact optimal plan (B, M) of uniform batches, float64; unequal sizes need POT."""
    rows, columns = cost.shape
    if rows == columns:
        plan = torch.zeros(rows, rows, dtype=torch.float64, device=cost.device)
        plan[torch.arange(rows), assign(cost)] = 1.0 / rows
        return plan
    return _by_pot("emd", cost)


def sinkhorn_plan(
    cost: Tensor,
    reg: float = 0.05,
    *,
    scaled: bool = True,
    reg_marginals: float | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Tensor:
    """The entropic plan (B, M) between uniform marginals a and b, by Sinkhorn's iteration on logarithms, float64.

    Minimises <plan, cost> + reg KL(plan | a b^T) (Cuturi, 2013). On logarithms nothing underflows however small ``reg``
    is beside the cost.

    Args:
        cost: (B, M).
        reg: strength of the entropy; with ``scaled`` in units of the mean cost.
        scaled: whether it, and ``reg_marginals``, are.
        reg_marginals: lets the marginals give way, at the price of this times their KL divergence from uniform (Chizat
            et al., 2018); without, they hold.
        iterations: at most.
        tolerance: the largest relative change of a row's weight at which to stop.

    Example:
        >>> plan = sinkhorn_plan(torch.rand(3, 5), 0.1)
        >>> torch.allclose(plan.sum(1), torch.full((3,), 1 / 3, dtype=torch.float64), rtol=1e-4)
        True
    """
    c = cost.detach().double()
    unit = float(c.mean()) if scaled else 1.0
    uniform = -math.log(c.numel())
    if unit <= 0:  # all costs are zero: every plan is optimal, and this one has the most entropy
        return torch.full_like(c, math.exp(uniform))
    kernel = c / (-reg * unit)
    give = 1.0 if reg_marginals is None else reg_marginals / (reg_marginals + reg)
    f, g = torch.zeros_like(c[:, 0]), torch.zeros_like(c[0])
    log_a, log_b = -math.log(len(c)), -math.log(c.shape[1])
    for k in range(iterations):
        before = f
        f = -give * (torch.logsumexp(kernel + g, 1) + log_b)
        g = -give * (torch.logsumexp(kernel + f[:, None], 0) + log_a)
        if k % 10 == 9 and float((f - before).abs().max()) < tolerance:
            break
    return (kernel + f[:, None] + g + uniform).exp()


def _by_pot(name: str, cost: Tensor, **settings: Any) -> Tensor:
    """A plan by POT, in float64; what it warns of is an error, for the plan is then none."""
    try:
        import ot
    except ImportError as error:
        raise PluginError("this coupling needs POT: pip install 'headwater-flow[ot]'") from error
    function = ot.emd if name == "emd" else ot.partial.entropic_partial_wasserstein
    c = cost.detach().double().cpu().numpy()
    a, b = np.full(len(c), 1.0 / len(c)), np.full(c.shape[1], 1.0 / c.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            plan = torch.as_tensor(np.asarray(function(a, b, c, **settings)), device=cost.device)
        except Warning as error:
            raise NonFinite(f"POT found no plan: {error}; a larger reg may do") from error
    if not bool(torch.isfinite(plan).all()) or float(plan.sum()) <= 0:
        raise NonFinite("POT's plan is empty or not finite; a larger reg may do")
    return plan


def draw_pairs(plan: Tensor, n: int, generator: torch.Generator | None = None) -> Pairs:
    """``n`` pairs drawn from the plan (B, M) with replacement: in proportion to its entries."""
    flat = plan.flatten()
    if len(flat) <= 2**24:
        chosen = torch.multinomial(flat, n, replacement=True, generator=generator)
    else:  # multinomial takes no more entries than that
        u = torch.rand(n, dtype=flat.dtype, device=flat.device, generator=generator)
        total = flat.cumsum(0)
        chosen = torch.searchsorted(total, u * total[-1], right=True).clamp(max=len(flat) - 1)
    return chosen // plan.shape[1], chosen % plan.shape[1]


# Couplings


@dataclass(frozen=True)
class Independent:
    """Pairs in the order in which they come: the product coupling, where both batches were drawn at random."""

    def __call__(
        self, x0: Tensor, x1: Tensor, generator: torch.Generator | None = None, conditions: Pairs | None = None
    ) -> Pairs:
        n = torch.arange(min(len(x0), len(x1)), device=x0.device)
        return n, n


@dataclass(frozen=True)
class ExactOT:
    """Exact optimal transport of the mini-batch.

    Batches of equal size are an assignment problem, so every x0 and every x1 is used once. ``resample`` draws pairs
    from the plan with replacement instead, as torchcfm does: some points then come twice and some never. Unequal
    batches are always resampled. ``block`` solves parts of so many points instead of the whole, which is another,
    still valid mini-batch coupling at a fraction of the cost.

    Example:
        >>> i, j = ExactOT()(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.1], [0.1]]))
        >>> i.tolist(), j.tolist()
        ([0, 1], [1, 0])
    """

    resample: bool = False
    block: int | None = None
    condition_weight: float | None = None

    def __call__(
        self, x0: Tensor, x1: Tensor, generator: torch.Generator | None = None, conditions: Pairs | None = None
    ) -> Pairs:
        if not self.resample and len(x0) == len(x1):
            rows = torch.arange(len(x0), device=x0.device)
            if x0[0].numel() == 1 and conditions is None:
                return _pair_sorted(x0.flatten(), x1.flatten())
            size = self.block or max(len(x0), 1)
            parts = []
            for start in range(0, len(x0), size):
                part = slice(start, start + size)
                own = (conditions[0][part], conditions[1][part]) if conditions is not None else None
                parts.append(start + assign(_cost(x0[part], x1[part], own, self.condition_weight)))
            return rows, torch.cat(parts)
        plan = exact_plan(_cost(x0, x1, conditions, self.condition_weight))
        return draw_pairs(plan, len(x0), generator)


def _pair_sorted(a: Tensor, b: Tensor) -> Pairs:
    """In one dimension the optimal pairing is that of the ranks."""
    if not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
        raise NonFinite("a batch to be coupled holds values that are not finite")
    j = torch.empty(len(a), dtype=torch.long, device=a.device)
    j[a.argsort()] = b.argsort()
    return torch.arange(len(a), device=a.device), j


@dataclass(frozen=True)
class Sinkhorn:
    """Pairs drawn from the entropic plan; ``reg`` is in units of the mean cost unless ``scaled`` is off.

    For a Schroedinger bridge of ``sigma`` take ``Sinkhorn(2 * sigma**2, scaled=False)``.
    """

    reg: float = 0.05
    scaled: bool = True
    condition_weight: float | None = None

    def __call__(
        self, x0: Tensor, x1: Tensor, generator: torch.Generator | None = None, conditions: Pairs | None = None
    ) -> Pairs:
        cost = _cost(x0, x1, conditions, self.condition_weight)
        return draw_pairs(sinkhorn_plan(cost, self.reg, scaled=self.scaled), len(x0), generator)


@dataclass(frozen=True)
class UnbalancedOT:
    """Pairs from an entropic plan whose marginals may give way, at the price ``reg_marginals``: outliers are left out.

    Both strengths are in units of the mean cost.
    """

    reg: float = 0.05
    reg_marginals: float = 1.0
    condition_weight: float | None = None

    def __call__(
        self, x0: Tensor, x1: Tensor, generator: torch.Generator | None = None, conditions: Pairs | None = None
    ) -> Pairs:
        cost = _cost(x0, x1, conditions, self.condition_weight)
        return draw_pairs(sinkhorn_plan(cost, self.reg, reg_marginals=self.reg_marginals), len(x0), generator)


@dataclass(frozen=True)
class PartialOT:
    """Pairs from an entropic plan that moves only the share ``mass`` (POT); ``reg`` is in units of the mean cost."""

    mass: float = 0.9
    reg: float = 0.05
    condition_weight: float | None = None

    def __call__(
        self, x0: Tensor, x1: Tensor, generator: torch.Generator | None = None, conditions: Pairs | None = None
    ) -> Pairs:
        cost = _cost(x0, x1, conditions, self.condition_weight)
        cost = cost / cost.mean().clamp(min=torch.finfo(cost.dtype).tiny)
        return draw_pairs(_by_pot("partial", cost, reg=self.reg, m=self.mass), len(x0), generator)
