"""The losses of Pan et al. (2024), as pure functions.

The layout is that of :mod:`headwater_gfn.objective`: ``log_pf``, ``log_pb`` (T, B), ``log_flow`` (T + 1, B), ``length``
(B,). All of them are given an outcome y, one for each trajectory. The flow of the terminal state is taken as 1, so that
the reward R(x|y) enters by the transition into it alone: log F(x|y) = 0.
"""

import math

import torch
from headwater_gfn.objective import terminate, valid_transitions
from torch import Tensor

__all__ = [
    "amortised_balance",
    "amortised_residual",
    "augmented_trajectory_balance",
    "conditional_balance",
    "conditional_residual",
    "curiosity_loss",
    "imitation",
    "intrinsic_reward",
    "normalise",
    "outcome_reward",
]

SMALL = 1e-8
"""Added to rewards before their logarithm in the published code of the explorer."""


# Pre-training


def outcome_reward(hit: Tensor, floor: float) -> Tensor:
    """log R(x|y) (B,): 0 where x is y, which ``hit`` (B,) says, log ``floor`` elsewhere in the place of log 0."""
    return torch.where(hit, 0.0, math.log(floor))


def conditional_residual(
    log_pf: Tensor, log_pb: Tensor, log_flow: Tensor, log_reward: Tensor, length: Tensor, teleport: bool
) -> Tensor:
    """log F(s|y) P_F(s'|s,y) - log F(s'|y) P_B(s|s',y) R(x|y) of each transition (T, B), zero past the end.

    R belongs to every transition with outcome teleportation (equation 5 of the paper), else to the last one alone.
    """
    valid = valid_transitions(length, len(log_pf))
    flows = terminate(log_flow, torch.zeros_like(log_reward), length)
    step = torch.arange(len(log_pf), device=length.device).unsqueeze(1)
    rewarded = valid if teleport else step == length - 1
    residual = flows[:-1] + log_pf - flows[1:] - log_pb - torch.where(rewarded, log_reward, 0.0)
    return torch.where(valid, residual, 0.0)


def conditional_balance(
    log_pf: Tensor, log_pb: Tensor, log_flow: Tensor, log_reward: Tensor, length: Tensor, teleport: bool
) -> Tensor:
    """Mean over transitions of the squared :func:`conditional_residual`."""
    residual = conditional_residual(log_pf, log_pb, log_flow, log_reward, length, teleport)
    return residual.square().sum() / length.sum()


def normalise(log_flow: Tensor) -> Tensor:
    """log F(s|y) = g(s, y) - g(s_0, y) (T + 1, B) of outputs g: R(x|y) sums to 1 over x, so F(s_0|y) is 1."""
    return log_flow - log_flow[:1]


def imitation(log_pf: Tensor, length: Tensor) -> Tensor:
    """Mean over transitions of -log P_F(s'|s,y), on trajectories that P_B drew from y.

    Where P_B draws trajectories from y, the transition out of s is distributed as P_F at the exact solution, so this is
    least there: the same optimum as the balance, reached sooner by the actions that must not be taken.
    """
    return -log_pf.sum() / length.sum()


# The explorer: generative augmented flow networks (Pan et al., 2023)


def intrinsic_reward(predicted: Tensor, target: Tensor, scale: float) -> Tensor:
    """``scale`` times the distance (M,) of what the trained network says from what the frozen one does (M, D)."""
    return scale * torch.linalg.vector_norm(predicted - target, dim=-1)


def curiosity_loss(distance: Tensor, length: Tensor) -> Tensor:
    """The distances (T, B) of the states reached, zero past the end: mean over a trajectory, then over the batch."""
    return (distance.sum(0) / length).mean()


def augmented_trajectory_balance(
    log_pf: Tensor,
    log_pb: Tensor,
    log_flow: Tensor,
    intrinsic: Tensor,
    log_z: Tensor,
    length: Tensor,
    reward: Tensor | None = None,
) -> Tensor:
    """Trajectory balance with an intrinsic reward on every transition (T, B), that of the state reached.

    The residual is log Z + sum log P_F - log(R + r_last + 1e-8) - sum log(P_B + r / F(s')), the last sum over all
    transitions but the last, which has its plain log P_B. Without ``reward`` (B,) R is 0.
    """
    valid = valid_transitions(length, len(log_pf))
    step = torch.arange(len(log_pf), device=length.device).unsqueeze(1)
    last = step == length - 1
    r = torch.where(valid, intrinsic, 0.0)
    augmented = torch.logaddexp(log_pb, r.clamp_min(torch.finfo(r.dtype).tiny).log() - log_flow[1:])
    backward = torch.where(last | (r == 0), log_pb, augmented)
    final = torch.where(last, r, 0.0).sum(0)
    if reward is not None:
        final = final + reward
    residual = log_z + log_pf.sum(0) - (final + SMALL).log() - torch.where(valid, backward, 0.0).sum(0)
    return residual.square().mean()


# Fine-tuning


def amortised_residual(log_n: Tensor, log_q: Tensor, log_r: Tensor, log_flow: Tensor, log_pf: Tensor) -> Tensor:
    """log N(s'|s) + log Q(y|s',s) - log r(y) - log F(s|y) - log P_F(s'|s,y), of given transitions and outcomes."""
    return log_n + log_q - log_r - log_flow - log_pf


def amortised_balance(log_n: Tensor, log_q: Tensor, log_r: Tensor, log_flow: Tensor, log_pf: Tensor) -> Tensor:
    """Mean of the squared :func:`amortised_residual` (equation 9 of the paper).

    Where it is zero for all y, N(s'|s) = sum_y r(y) F(s|y) P_F(s'|s,y), and Q are the shares of the summands.
    """
    return amortised_residual(log_n, log_q, log_r, log_flow, log_pf).square().mean()
