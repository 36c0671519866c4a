"""Distances between clouds of points, and how straight and how short a flow's paths are.

The distances go through POT and scikit-learn (the extra ``ot``). Clouds are (N, D) and (M, D) with uniform weights.
"""

from typing import Any

import numpy as np
from headwater import PluginError
from torch import Tensor

from headwater_flow.solvers import Velocity, uniform_grid

__all__ = ["mmd", "normalised_path_energy", "path_energy", "sliced_wasserstein", "straightness", "wasserstein"]

GAMMAS = (2.0, 1.0, 0.5, 0.1, 0.01, 0.005)


def _needs(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PluginError("distances between clouds need: pip install 'headwater-flow[ot]'") from error


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(x.detach().cpu().double().numpy())


def wasserstein(a: Tensor, b: Tensor, power: int = 2) -> float:
    """W_p for p = 1 or 2 by exact optimal transport (POT): a minute and more beyond 5,000 points.

    Example:
        >>> import torch
        >>> x = torch.randn(20, 3)
        >>> round(wasserstein(x, x + torch.tensor([3.0, 0.0, 4.0])), 4)
        5.0
    """
    ot = _needs("ot")
    cost = ot.dist(_array(a), _array(b), metric="euclidean" if power == 1 else "sqeuclidean")
    found = float(ot.emd2([], [], cost, numItermax=10_000_000))
    return found if power == 1 else float(np.sqrt(max(found, 0.0)))


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 100, seed: int = 0) -> float:
    """The sliced W_2 over random directions (POT): cheap for any number of points."""
    return float(_needs("ot").sliced_wasserstein_distance(_array(a), _array(b), n_projections=projections, seed=seed))


def mmd(a: Tensor, b: Tensor, gammas: tuple[float, ...] = GAMMAS) -> float:
    """The biased squared MMD with kernels exp(-gamma |x - y|^2), mean over gamma (scikit-learn).

    Example:
        >>> import torch
        >>> x = torch.randn(20, 3)
        >>> abs(mmd(x, x)) < 1e-12
        True
    """
    kernel = _needs("sklearn.metrics.pairwise").rbf_kernel
    x, y = _array(a), _array(b)
    each = [kernel(x, x, g).mean() + kernel(y, y, g).mean() - 2 * kernel(x, y, g).mean() for g in gammas]
    return float(np.mean(each))


def _along(velocity: Velocity, x: Tensor, steps: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Midpoint steps from x: the end point, and the velocities in the middle of each step with their step sizes."""
    grid = uniform_grid(steps).to(x)
    middles, sizes = [], []
    for t, h in zip(grid[:-1], grid.diff(), strict=True):
        middle = velocity(t + h / 2, x + h / 2 * velocity(t, x))
        middles.append(middle)
        sizes.append(h)
        x = x + h * middle
    return x, middles, sizes


def path_energy(velocity: Velocity, x: Tensor, steps: int = 100) -> float:
    """E of the integral of |v|^2 dt from the source points ``x`` (B, ...), by midpoint steps."""
    _, middles, sizes = _along(velocity, x, steps)
    return float(sum(h * v.flatten(1).square().sum(1).mean() for v, h in zip(middles, sizes, strict=True)))


def normalised_path_energy(energy: float, w2: float) -> float:
    """|PE - W2^2| / W2^2 (Tong et al., 2024): 0 where the flow is the optimal transport map.

    Example:
        >>> normalised_path_energy(5.0, 2.0)
        0.25
    """
    return abs(energy - w2**2) / w2**2


def straightness(velocity: Velocity, x: Tensor, steps: int = 100) -> float:
    """S = integral of E |(x1 - x0) - v|^2 dt along the flow (Liu et al., 2023): 0 where all paths are straight.

    Example:
        >>> import torch
        >>> straightness(lambda t, x: torch.ones_like(x), torch.zeros(3, 2)) < 1e-10
        True
    """
    end, middles, sizes = _along(velocity, x, steps)
    away = end - x
    return float(sum(h * (away - v).flatten(1).square().sum(1).mean() for v, h in zip(middles, sizes, strict=True)))
