"""The order-preserving losses of Chen and Mauch (2024), as pure functions.

The layout is that of :mod:`headwater_gfn.objective`: ``log_pf``, ``log_pb`` (T, B), ``log_flow`` (T + 1, B), ``length``
(B,). The objectives of the objects are ``values`` (B, D), more is better in each; only their order is used. The
learned log-reward log Rhat (B,) of an object is what the policy's own flows say of it.
"""

from collections.abc import Callable

import torch
from headwater_gfn.objective import valid_transitions
from torch import Tensor

__all__ = [
    "OrderLoss",
    "backward_kl",
    "dominates",
    "learned_log_reward",
    "non_dominated",
    "op_detailed_balance",
    "op_flow_matching",
    "op_sub_trajectory_balance",
    "order_loss",
    "pair_loss",
    "pair_target",
    "pairs",
    "pareto",
    "pareto_target",
    "permutations",
    "terminal_log_reward",
]

OrderLoss = Callable[[Tensor, Tensor], Tensor]
"""Learned log-rewards (K, B) and which of them count (K, B), to one order loss a row (K,)."""


# The order of the objects


def dominates(a: Tensor, b: Tensor, slack: float = 0.0) -> Tensor:
    """Whether ``a`` (..., D) is at least ``b`` (..., D) in every objective and more, by over ``slack``, in one."""
    return (a >= b).all(-1) & (a > b + slack).any(-1)


def non_dominated(values: Tensor) -> Tensor:
    """Which rows of ``values`` (B, D) no other row dominates (B,); equal rows do not dominate one another."""
    return ~dominates(values.unsqueeze(1), values.unsqueeze(0)).any(0)


def pareto_target(values: Tensor) -> Tensor:
    """P_y (B,): uniform over the non-dominated objects of the batch, zero elsewhere (section 3.1)."""
    front = non_dominated(values).double()
    return front / front.sum()


def pair_target(values: Tensor, partner: Tensor, slack: float = 0.0) -> Tensor:
    """The probability (...,) that an object is the better of itself and its ``partner`` (...,): 1, 0, or 1/2.

    1/2 stands for ties and for objects of which neither dominates the other. ``values`` (B, D) are those of all
    objects; ``partner`` (..., B) says whom each is compared with. What is worse by at most ``slack`` counts as a tie.
    """
    other = values[partner]
    return 0.5 * (dominates(values, other).double() + (~dominates(other, values, slack)).double())


def permutations(noise: Tensor, valid: Tensor) -> Tensor:
    """For each row a random permutation (K, B) of its ``valid`` (K, B) columns, drawn by ``noise`` (K, B) in [0, 1).

    The partner of column i is entry i; of a column that is not valid the entry means nothing.
    """
    order = torch.where(valid, noise, 2.0).argsort(1)
    return order.gather(1, (valid.cumsum(1) - 1).clamp_min(0))


# The order losses


def order_loss(log_reward: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cross entropy (...,) of ``target`` (..., B) and the softmax of the learned log-rewards (..., B).

    It is KL(P_y || P_Rhat) and a constant (equation 2 of the paper). Entries that are not ``valid`` take no part.
    """
    if valid is not None:
        log_reward = torch.where(valid, log_reward, -torch.inf)
    log_p = torch.log_softmax(log_reward, -1)
    return -torch.where(target > 0, target.to(log_p) * log_p, 0.0).sum(-1)


def pair_loss(log_reward: Tensor, target: Tensor, partner: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over pairs (...,) of the cross entropy of ``target`` (..., B) and the softmax of the pair's log Rhat."""
    difference = log_reward - log_reward.gather(-1, partner)
    each = torch.nn.functional.binary_cross_entropy_with_logits(difference, target.to(difference), reduction="none")
    if valid is None:
        return each.mean(-1)
    return torch.where(valid, each, 0.0).sum(-1) / valid.sum(-1)


def pairs(values: Tensor, noise: Tensor, slack: float = 0.0) -> OrderLoss:
    """The order loss over random pairs of objects with ``values`` (B, D); ``noise`` (K, B) draws the pairs."""

    def loss(log_reward: Tensor, valid: Tensor) -> Tensor:
        partner = permutations(noise[: len(valid)], valid)
        return pair_loss(log_reward, pair_target(values, partner, slack), partner, valid)

    return loss


def pareto(values: Tensor) -> OrderLoss:
    """The order loss over a batch of objects with ``values`` (B, D): the non-dominated share the target."""
    below = dominates(values.unsqueeze(1), values.unsqueeze(0)).double()  # [j, i]: j dominates i

    def loss(log_reward: Tensor, valid: Tensor) -> Tensor:
        front = ((valid.double() @ below) == 0) & valid
        return order_loss(log_reward, front.double() / front.sum(1, keepdim=True), valid)

    return loss


# The learned reward


def learned_log_reward(log_pf: Tensor, log_pb: Tensor) -> Tensor:
    """log Rhat (B,) by trajectories, sum log P_F - sum log P_B; log Z is left out, for it cancels in order losses."""
    return (log_pf - log_pb).sum(0)


def terminal_log_reward(log_pf: Tensor, log_pb: Tensor, log_flow: Tensor, length: Tensor) -> Tensor:
    """log Rhat (B,) by the last transition: log F(s_{n-1}) + log P_F(x | s_{n-1}) - log P_B(s_{n-1} | x)."""
    last, column = length - 1, torch.arange(len(length), device=length.device)
    return (log_flow[:-1] + log_pf - log_pb)[last, column]


# The losses


def op_detailed_balance(
    log_pf: Tensor, log_pb: Tensor, log_flow: Tensor, length: Tensor, order: OrderLoss, weight: float = 0.1
) -> Tensor:
    """OP-DB: balance of the transitions that end in no object, and ``weight`` times the order of the objects.

    The transitions into objects have no residual but count in the mean.
    """
    inner = valid_transitions(length - 1, len(log_pf))
    residual = torch.where(inner, log_flow[:-1] + log_pf - log_flow[1:] - log_pb, 0.0)
    found = terminal_log_reward(log_pf, log_pb, log_flow, length).unsqueeze(0)
    return residual.square().sum() / length.sum() + weight * order(found, torch.ones_like(found, dtype=torch.bool))[0]


def op_sub_trajectory_balance(
    log_pf: Tensor,
    log_pb: Tensor,
    log_flow: Tensor,
    length: Tensor,
    order: OrderLoss,
    weight: float = 0.1,
    lam: float = 0.9,
) -> Tensor:
    """OP-SubTB(lambda): balance of the parts that end in no object, ``weight`` times the order of those that do.

    Parts of length k = 1..T count lambda^k, normalised. For each k the squares are averaged over all parts of that
    length in the batch that end in no object; those that end in one give a log Rhat each, log F(s_{n-k}) + the sum of
    the last k log P_F - log P_B, whose order loss is taken among themselves.
    """
    steps, n = log_pf.shape
    device = log_pf.device
    gone = torch.cat([torch.zeros_like(log_pf[:1]), (log_pf - log_pb).cumsum(0)])
    u = log_flow - gone
    place = torch.arange(steps + 1, device=device)
    apart = place - place.unsqueeze(1)  # [i, j]
    inner = (apart > 0).unsqueeze(-1) & (place.unsqueeze(1) < length).unsqueeze(0)
    squared = torch.where(inner, (u.unsqueeze(1) - u.unsqueeze(0)).square(), 0.0).sum(-1)
    k = torch.arange(1, steps + 1, device=device)
    by_length = squared.new_zeros(steps + 1).index_add(0, apart.clamp_min(0).flatten(), squared.flatten())[1:]
    counts = (length - k.unsqueeze(1)).clamp_min(0).sum(1).clamp_min(1)
    weights = torch.as_tensor(lam, dtype=u.dtype, device=device) ** k
    weights = weights / weights.sum()

    valid = k.unsqueeze(1) <= length
    start = (length - k.unsqueeze(1)).clamp_min(0)
    found = u.gather(0, start) + gone[length, torch.arange(n, device=device)]
    return (weights * (by_length / counts + weight * order(found, valid))).sum()


def op_flow_matching(
    log_inflow: Tensor, log_outflow: Tensor, log_reward: Tensor, order: OrderLoss, weight: float = 0.1
) -> Tensor:
    """OP-FM: flow matching in states (M,) that are no objects, and ``weight`` times the order of the objects.

    ``log_reward`` (B,) is log Rhat, the log of the flow into each object.
    """
    found = log_reward.unsqueeze(0)
    order_of = order(found, torch.ones_like(found, dtype=torch.bool))[0]
    # Where every trajectory stops at once there is no state to match.
    return (log_inflow - log_outflow).square().sum() / max(len(log_inflow), 1) + weight * order_of


def backward_kl(log_pb: Tensor, mask: Tensor, least: float = 1e-7) -> Tensor:
    """Mean over states of KL(uniform over the parents || P_B): ``log_pb``, ``mask`` (M, n_backward).

    Probabilities are kept between ``least`` and 1 - ``least``. It is zero where P_B is uniform, and only there.
    """
    log_uniform = -mask.sum(1, keepdim=True).to(log_pb.dtype).log()
    bounded = log_pb.exp().clamp(least, 1 - least).log()
    each = torch.where(mask, log_uniform.exp() * (log_uniform - bounded), 0.0)
    return each.sum(1).mean()
