"""How far a predicted cloud is from the true one: the paper's distances, for one population."""

from collections.abc import Sequence

import torch
from headwater_flow.metrics import mmd, wasserstein
from torch import Tensor

__all__ = ["METRICS", "correlation_of_correlations", "feature_errors", "scores", "subsample"]

METRICS = ("w1", "w2", "mmd", "mean_mse", "mean_l2", "mean_l1", "median_mse", "median_l2", "median_l1", "r2")


def correlation_of_correlations(a: Tensor, b: Tensor) -> float:
    """The paper's r2: Pearson's correlation (not squared) of the feature-feature correlations of A and of B.

    Over the entries above the diagonal of the two correlation matrices of (N, D) and (M, D); needs D >= 3, and features
    that vary in both clouds: others are left out.
    """
    a, b = a.double(), b.double()
    varies = (a.std(0) > 0) & (b.std(0) > 0)
    a, b = a[:, varies], b[:, varies]
    if a.shape[1] < 3:
        return float("nan")
    rows, columns = torch.triu_indices(a.shape[1], a.shape[1], 1)
    pair = torch.stack([torch.corrcoef(c.T)[rows, columns] for c in (a, b)])
    return float(torch.corrcoef(pair)[0, 1])


def feature_errors(a: Tensor, b: Tensor) -> dict[str, float]:
    """Differences of the means and of the medians of each feature, averaged over features: MSE, L2 = sqrt(MSE), L1.

    The median of an even number of points is the lower of the middle two, as in the published code.
    """
    found = {}
    for name, gap in (("mean", a.mean(0) - b.mean(0)), ("median", a.median(0).values - b.median(0).values)):
        found[f"{name}_mse"] = float(gap.square().mean())
        found[f"{name}_l2"] = float(gap.square().mean().sqrt())
        found[f"{name}_l1"] = float(gap.abs().mean())
    return found


def subsample(x: Tensor, points: int, seed: int = 0) -> Tensor:
    """At most ``points`` rows of ``x`` (N, D), drawn by ``seed`` without replacement."""
    if len(x) <= points:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:points]]


def scores(
    a: Tensor, b: Tensor, points: int, which: Sequence[str] = METRICS, *, paired: bool = False
) -> dict[str, float]:
    """Distances of a prediction ``a`` (N, D) from the truth ``b`` (M, D).

    Transport and kernels, whose cost grows with the square of the points and worse, are of at most ``points`` of each
    cloud, the same rows of both where these are ``paired``; all else is of all points. ``r2`` is left out where it has
    no value.
    """
    a, b = a.double(), b.double()
    few_a, few_b = subsample(a, points, 0), subsample(b, points, 0 if paired else 1)
    found: dict[str, float] = {}
    if "w1" in which:
        found["w1"] = wasserstein(few_a, few_b, 1)
    if "w2" in which:
        found["w2"] = wasserstein(few_a, few_b, 2)
    if "mmd" in which:
        found["mmd"] = mmd(few_a, few_b)
    found |= {name: value for name, value in feature_errors(a, b).items() if name in which}
    if "r2" in which:
        value = correlation_of_correlations(a, b)
        found |= {"r2": value} if value == value else {}
    return found
