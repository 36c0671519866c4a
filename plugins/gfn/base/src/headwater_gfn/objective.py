"""The objectives of GFlowNets, as pure functions on whole trajectories.

All take tensors in one layout, with T the longest trajectory of the batch of B:

- ``log_pf``, ``log_pb`` (T, B): log-probability of each transition, forward and backward; zero past the end
- ``log_flow`` (T + 1, B): log F of each state, that of the terminal state included
- ``log_reward`` (B,)
- ``length`` (B,): transitions in each trajectory

A *forward-looking* flow is F(s) = R(s) Ftilde(s) (Pan et al., 2023, with R(s) the reward of a partial object), so
every flow-based objective becomes its forward-looking form when it is given :func:`forward_looking` flows.
"""

import torch
from torch import Tensor

__all__ = [
    "detailed_balance",
    "flow_matching",
    "forward_looking",
    "log_partition_variance",
    "sub_trajectory_balance",
    "terminate",
    "trajectory_balance",
    "valid_transitions",
]


def valid_transitions(length: Tensor, steps: int) -> Tensor:
    """Which entries of a (steps, B) layout are transitions of a trajectory and not padding."""
    return torch.arange(steps, device=length.device).unsqueeze(1) < length


def terminate(log_flow: Tensor, log_terminal: Tensor, length: Tensor, complete: Tensor | None = None) -> Tensor:
    """Put ``log_terminal`` (B,) in the place of the last state's log flow, in trajectories that are ``complete``.

    The terminal flow is the reward: this is where it enters. An incomplete trajectory keeps the network's flow.
    """
    last = torch.arange(len(log_flow), device=length.device).unsqueeze(1) == length
    if complete is not None:
        last = last & complete
    return torch.where(last, log_terminal, log_flow)


def forward_looking(log_flow_tilde: Tensor, log_partial_reward: Tensor) -> Tensor:
    """log F = log Ftilde + log R of the partial object, state by state (Pan et al. 2023, section 4)."""
    return log_flow_tilde + log_partial_reward


def trajectory_balance(log_pf: Tensor, log_pb: Tensor, log_reward: Tensor, log_z: Tensor) -> Tensor:
    """Mean over trajectories of (log Z + sum log P_F - sum log P_B - log R)^2 (Malkin et al. 2022)."""
    return (log_z + (log_pf - log_pb).sum(0) - log_reward).square().mean()


def log_partition_variance(log_pf: Tensor, log_pb: Tensor, log_reward: Tensor) -> Tensor:
    """Trajectory balance with the batch's own mean in the place of log Z (Zhang et al. 2023)."""
    estimate = log_reward + (log_pb - log_pf).sum(0)
    return (estimate - estimate.mean()).square().mean()


def detailed_balance(log_pf: Tensor, log_pb: Tensor, log_flow: Tensor, length: Tensor) -> Tensor:
    """Mean over transitions of (log F(s) + log P_F - log F(s') - log P_B)^2 (Bengio et al. 2023)."""
    valid = valid_transitions(length, len(log_pf))
    residual = torch.where(valid, log_flow[:-1] + log_pf - log_flow[1:] - log_pb, 0.0)
    return residual.square().sum() / length.sum()


def sub_trajectory_balance(
    log_pf: Tensor, log_pb: Tensor, log_flow: Tensor, length: Tensor, lam: float = 0.9
) -> Tensor:
    """SubTB(lambda): over all parts i < j of a trajectory, the lambda^(j-i)-weighted mean of squared residuals.

    The residual of a part is u_i - u_j with u_i = log F(s_i) minus the sum of (log P_F - log P_B) before i, so all
    of them are one table of differences. Mean over trajectories (Madan et al. 2023).
    """
    steps = len(log_pf)
    gone = torch.cat([torch.zeros_like(log_pf[:1]), (log_pf - log_pb).cumsum(0)])
    u = log_flow - gone
    place = torch.arange(steps + 1, device=u.device)
    apart = place - place.unsqueeze(1)
    weight = torch.where(apart > 0, torch.as_tensor(lam, dtype=u.dtype, device=u.device) ** apart.clamp_min(0), 0.0)
    inside = place.unsqueeze(1) <= length
    weights = weight.unsqueeze(-1) * inside.unsqueeze(0)
    squared = (u.unsqueeze(1) - u.unsqueeze(0)).square()
    return ((weights * squared).sum((0, 1)) / weights.sum((0, 1))).mean()


def flow_matching(log_inflow: Tensor, log_outflow: Tensor) -> Tensor:
    """Mean over states (M,) of (log of the flow in - log of the flow out)^2 (Bengio et al. 2021).

    The flow out of a terminal state is its reward.
    """
    return (log_inflow - log_outflow).square().mean()
