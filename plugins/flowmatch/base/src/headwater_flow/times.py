"""Times in [0, 1] for training: a distribution by its quantiles, and uniforms of low variance to put into them."""

from collections.abc import Callable

import numpy as np
import torch
from headwater import UsageError
from torch import Tensor

__all__ = ["beta", "draw_times", "logit_normal", "uniform"]

Quantile = Callable[[Tensor], Tensor]


def uniform(u: Tensor) -> Tensor:
    """The quantiles of U[0, 1]."""
    return u


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Quantile:
    """The quantiles of sigmoid(N(mean, std^2)), which favours the middle (Esser et al., 2024).

    Example:
        >>> float(logit_normal()(torch.tensor(0.5)))
        0.5
    """

    def quantile(u: Tensor) -> Tensor:
        return torch.sigmoid(mean + std * torch.special.ndtri(u))

    return quantile


def beta(a: float) -> Quantile:
    """The quantiles of Beta(a, a): a below 1 favours the ends, above 1 the middle."""
    from scipy.special import betaincinv

    def quantile(u: Tensor) -> Tensor:
        found = np.asarray(betaincinv(a, a, u.double().cpu().numpy()))
        return torch.as_tensor(found, dtype=u.dtype, device=u.device)

    return quantile


def draw_times(
    n: int,
    generator: torch.Generator | None = None,
    *,
    quantile: Quantile = uniform,
    stratified: bool = True,
    antithetic: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """``n`` times (n,).

    Args:
        n: how many.
        generator: source of all randomness; its device must be ``device``.
        quantile: the distribution, by its quantile function.
        stratified: one uniform in each of n equal parts of [0, 1], in random order: any mean over the batch has at
            most the variance of independent draws, as a rule far less.
        antithetic: the second half is one minus the first; needs an even n.

    Example:
        >>> t = draw_times(4, torch.Generator().manual_seed(0))
        >>> (t.sort().values * 4).floor().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    if antithetic and n % 2:
        raise UsageError(f"antithetic times come in pairs; {n} is odd")
    count = n // 2 if antithetic else n
    u = torch.rand(count, generator=generator, dtype=dtype, device=device)
    if stratified:
        order = torch.randperm(count, generator=generator, device=device)
        u = ((order + u) / count).clamp(max=1.0)
    if antithetic:
        u = torch.cat([u, 1 - u])
    return quantile(u)
