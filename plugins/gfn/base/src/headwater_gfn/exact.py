"""The exact target and the exact learned distribution of environments small enough to write out.

Everything here goes through all states once, depth by depth; nothing is sampled.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater_gfn.environment import log_policy
from headwater_gfn.networks import Policy
from headwater_gfn.table import TableEnvironment

__all__ = ["Flows", "exact_flows", "jensen_shannon", "l1_distance", "learned_distribution", "log_target"]

CHUNK = 65_536


def log_target(table: TableEnvironment) -> Tensor:
    """log p*(x) = log R(x) - log Z of the terminal states, in their order (X,), float64."""
    return torch.log_softmax(table.log_rewards.double(), 0)


@torch.no_grad()
def forward_policy(table: TableEnvironment, policy: Policy | Tensor) -> Tensor:
    """log P_F of every action in every state that is not terminal (n_inner, n_actions), float64.

    A ``policy`` that is such a table already is given back.
    """
    if isinstance(policy, Tensor):
        return policy
    parts = []
    for first in range(0, table.n_inner, CHUNK):
        s = torch.arange(first, min(first + CHUNK, table.n_inner), device=table.child.device)
        parts.append(log_policy(policy.forward_logits(table.observe(s)).double(), table.forward_mask(s)))
    return torch.cat(parts)


def learned_distribution(table: TableEnvironment, log_pf: Tensor) -> Tensor:
    """P_T(x) of the terminal states (X,), float64: the mass that the policy ``log_pf`` moves into each.

    The mass of a state is the sum over its parents of mass times P_F, layer by layer.
    """
    mass = torch.zeros(len(table.states), dtype=torch.float64, device=log_pf.device)
    mass[0] = 1.0
    probability = torch.where(table.child >= 0, log_pf.exp(), 0.0)
    child = table.child.clamp_min(0)
    for first, last in zip(table.layers, table.layers[1:], strict=False):
        moved = probability[first:last] * mass[first:last].unsqueeze(1)
        mass.index_add_(0, child[first:last].flatten(), moved.flatten())
    return mass[table.n_inner :]


@dataclass(frozen=True)
class Flows:
    """The exact flows under one backward policy: they solve every objective.

    ``log_flow`` (N,) of all states, ``log_pf`` (n_inner, n_actions), ``log_pb`` (N, n_backward), float64.
    """

    log_flow: Tensor
    log_pf: Tensor
    log_pb: Tensor


def exact_flows(table: TableEnvironment, backward_logits: Tensor | None = None) -> Flows:
    """Solve for the flows: F(x) = R(x), and F(s) = sum over children of F(s') P_B(s | s').

    Args:
        table: the environment.
        backward_logits: (N, n_backward) of the backward policy; uniform over the parents without.
    """
    logits = torch.zeros(table.parent.shape) if backward_logits is None else backward_logits
    log_pb = log_policy(logits.double(), table.parent >= 0)
    log_flow = torch.full((len(table.states),), -math.inf, dtype=torch.float64)
    log_flow[table.n_inner :] = table.log_rewards.double()
    log_pf = torch.full(table.child.shape, -math.inf, dtype=torch.float64)
    for first, last in reversed(list(zip(table.layers, table.layers[1:], strict=False))):
        rows, actions = (table.child[first:last] >= 0).nonzero(as_tuple=True)
        s = rows + first
        child = table.child[s, actions]
        stopped = table.stopped[child] >= 0
        b = table.backward_action(s, actions).clamp_max(table.n_backward - 1)
        log_edge = log_flow[child] + torch.where(stopped, 0.0, log_pb[child, b])
        # Actions with the same child share its edge.
        same = table.same_child(s, actions)
        if same is not None:
            log_edge = log_edge - same.sum(1).double().log()
        log_pf[s, actions] = log_edge
        log_flow[first:last] = log_pf[first:last].logsumexp(1)
        log_pf[first:last] -= log_flow[first:last].unsqueeze(1)
    return Flows(log_flow, log_pf, log_pb)


def l1_distance(p: Tensor, q: Tensor) -> float:
    """Sum of |p - q| over all objects: twice the total variation, between 0 and 2."""
    return float((p - q).abs().sum())


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Jensen-Shannon divergence of two distributions (X,), natural logarithm: between 0 and log 2."""
    m = 0.5 * (p + q)
    kl = torch.special.xlogy(p, p / m).nan_to_num(0.0) + torch.special.xlogy(q, q / m).nan_to_num(0.0)
    return float(0.5 * kl.sum())
