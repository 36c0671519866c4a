"""The exact distribution of a forward policy on HyperGrid, and its distance to the target: numpy alone."""

from typing import Any

import numpy as np

__all__ = ["log_target", "score", "terminal_distribution"]


def log_target(dimensions: int, side: int, rewards: tuple[float, float, float]) -> Any:
    """log R of all grid points (H^D,) in row-major order, and their sum log Z."""
    axis = np.abs(np.arange(side) / (side - 1) - 0.5)
    outer, inner = (axis > 0.25) & (axis <= 0.5), (axis > 0.3) & (axis < 0.4)
    grids = [np.stack(np.meshgrid(*[v] * dimensions, indexing="ij")).all(0).ravel() for v in (outer, inner)]
    r0, r1, r2 = rewards
    reward = r0 + r1 * grids[0] + r2 * grids[1]
    return np.log(reward), float(np.log(reward.sum()))


def terminal_distribution(log_pf: Any, dimensions: int, side: int) -> Any:
    """P(x) of all grid points (H^D,): the mass that moves on along each coordinate, and what stops.

    Args:
        log_pf: (H^D, D + 1) in row-major order; the last action stops.
    """
    probability = np.exp(log_pf)
    place = side ** np.arange(dimensions - 1, -1, -1)
    points = np.stack(np.unravel_index(np.arange(side**dimensions), [side] * dimensions), 1)
    mass = np.zeros(side**dimensions)
    mass[0] = 1.0
    depth = points.sum(1)
    for level in range(dimensions * (side - 1)):
        here = np.flatnonzero(depth == level)
        for d in range(dimensions):
            going = here[points[here, d] < side - 1]
            np.add.at(mass, going + place[d], mass[going] * probability[going, d])
    return mass * probability[:, -1]


def score(
    log_pf: Any, log_z: float, dimensions: int, side: int, rewards: tuple[float, float, float]
) -> dict[str, float]:
    """L1, total variation and Jensen-Shannon divergence (natural logarithm) to the target, and the error of log Z."""
    log_reward, exact = log_target(dimensions, side, rewards)
    p, q = terminal_distribution(log_pf, dimensions, side), np.exp(log_reward - exact)
    m = 0.5 * (p + q)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.nan_to_num(p * np.log(p / m)) + np.nan_to_num(q * np.log(q / m))
    l1 = float(np.abs(p - q).sum())
    return {
        "total": float(p.sum()),
        "l1": l1,
        "tv": l1 / 2,
        "jsd": float(kl.sum() / 2),
        "log_z_error": log_z - exact,
    }
