"""Property predictors as one objective, and its gradient with respect to a belief.

The energy is E = -s * sum_c w_c log P_c / sum_c w_c, with predictors P_c in (0, 1): with equal weights the mean of
log P_c. One scalar, one backward pass, for all predictors, both modalities and all molecules at once.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from headwater_bfn_moljo.flow import Belief

__all__ = ["Predict", "by_logits", "by_probabilities", "objective"]

Predict = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""The predictors' values, each (B,), from mu (N, 3) and theta (N, K)."""


def objective(values: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """sum_c w_c log P_c / sum_c w_c of each molecule, (B,).

    Example:
        >>> log_p = objective([torch.tensor([0.5]), torch.tensor([0.25])])
        >>> round(float(log_p.exp()), 4)  # the geometric mean
        0.3536
    """
    chosen = [1.0] * len(values) if weights is None else list(weights)
    total = sum(chosen)
    terms = [w / total * value.log() for w, value in zip(chosen, values, strict=True)]
    return torch.stack(terms).sum(0)


@torch.enable_grad()
def by_logits(predict: Predict, belief: Belief, weights: Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
    """Gradients of the objective with respect to mu and to the logits y of the types."""
    mu, y = belief.mu.detach().requires_grad_(), belief.y.detach().requires_grad_()
    total = objective(predict(mu, y.softmax(-1)), weights).sum()
    g_mu, g_y = torch.autograd.grad(total, (mu, y))
    return g_mu, g_y


@torch.enable_grad()
def by_probabilities(predict: Predict, belief: Belief, weights: Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
    """Gradients of the objective with respect to mu and to the probabilities of the types, as the released code has."""
    mu, theta = belief.mu.detach().requires_grad_(), belief.theta.detach().requires_grad_()
    total = objective(predict(mu, theta), weights).sum()
    g_mu, g_theta = torch.autograd.grad(total, (mu, theta))
    return g_mu, g_theta
