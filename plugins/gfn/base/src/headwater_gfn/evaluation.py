"""What a policy says of given trajectories: the terms that objectives are made of."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater_gfn.environment import Environment, log_policy
from headwater_gfn.networks import Policy
from headwater_gfn.rollout import Trajectories
from headwater_gfn.table import TableEnvironment

__all__ = ["Evaluation", "edge_flows", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """What a policy says of given trajectories, in the layout of :mod:`headwater_gfn.objective`.

    ``log_flow`` (T + 1, B) is the network's output; a state made by STOP has that of the state before.
    """

    log_pf: Tensor
    log_pb: Tensor
    log_flow: Tensor


def evaluate(
    environment: Environment, policy: Policy, trajectories: Trajectories, *, learned_backward: bool = True
) -> Evaluation:
    """Evaluate the policy on every state of ``trajectories`` in one pass.

    Args:
        environment: where the trajectories were sampled.
        policy: the trained network.
        trajectories: of any behaviour policy.
        learned_backward: whether P_B is the network's; uniform over the parents without.
    """
    states, actions, length = trajectories.states, trajectories.actions, trajectories.length
    steps = len(actions)
    step = torch.arange(steps + 1, device=length.device).unsqueeze(1)
    inside = step <= length  # the states of each trajectory, its last included
    valid = inside[1:]
    seen = inside
    if environment.stops:  # a state made by STOP is not looked at
        seen = step < (length if trajectories.complete is None else length + ~trajectories.complete)
    if not isinstance(environment, TableEnvironment) and bool(seen.all()):
        rows, place = states.flatten(0, 1), torch.arange(seen.numel(), device=length.device).view(seen.shape)
    else:
        rows, place = states[seen], torch.zeros(seen.shape, dtype=torch.int64, device=length.device)
        if isinstance(environment, TableEnvironment):
            rows, which = rows.unique(return_inverse=True)
            place[seen] = which
        else:
            place[seen] = torch.arange(len(rows), device=length.device)
    if environment.stops:
        place[1:] = torch.where(seen[1:], place[1:], place[:-1])

    forward, backward, flow = policy(environment.observe(rows))
    log_flow = torch.where(inside, flow.index_select(0, place.flatten()).view(place.shape), 0.0)

    before, a = place[:-1][valid], actions[valid]
    log_p = log_policy(forward, environment.forward_mask(rows))
    same = None if environment.inherits("same_child") else environment.same_child(rows[before], a)
    log_pf = _pick(log_p, before, a) if same is None else _log_sum(log_p, before, same)

    back = seen[1:] & valid  # the last transition into a state made by STOP has one parent
    after = place[1:][back]
    mask = environment.backward_mask(rows)
    if learned_backward and backward is not None:
        b = actions[back]
        if not environment.inherits("backward_action"):
            b = environment.backward_action(states[:-1][back], b)
        log_pb = _pick(log_policy(backward, mask), after, b)
    else:
        log_pb = -mask.sum(1).to(flow.dtype).log().index_select(0, after)
    return Evaluation(_spread(valid, log_pf), _spread(back, log_pb), log_flow)


def _pick(table: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The entries (M,) of ``table`` at rows and columns (M,)."""
    return table.flatten().index_select(0, torch.add(column, row, alpha=table.shape[1]))


def _log_sum(table: Tensor, row: Tensor, which: Tensor) -> Tensor:
    """The logarithm (M,) of the sum of exp over the entries ``which`` (M, A), few of many, of the rows (M,)."""
    at, column = which.nonzero(as_tuple=True)
    values = _pick(table, row[at], column)
    most = values.new_full(row.shape, -math.inf).scatter_reduce(0, at, values.detach(), "amax")
    total = torch.zeros_like(most).index_add(0, at, (values - most[at]).exp())
    return most + total.log()


def _spread(where: Tensor, values: Tensor) -> Tensor:
    """Put ``values`` (M,) at the M true places of ``where``, zero elsewhere."""
    return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(where, values)


def edge_flows(environment: Environment, policy: Policy, s: Tensor, log_reward: Tensor) -> tuple[Tensor, Tensor]:
    """log of the flow into and out of states ``s`` (M, \\*state_shape), none of which is the source: two (M,).

    The forward logits are read as log F(s -> s'). The flow out of a terminal state is its reward, which is taken
    from ``log_reward`` (M,).
    """
    terminal = environment.terminal(s)
    stopped = terminal if environment.stops else torch.zeros_like(terminal)
    going = ~terminal
    log_out = log_reward.clone()
    logits = policy.forward_logits(environment.observe(s[going]))
    log_out[going] = torch.where(environment.forward_mask(s[going]), logits, -math.inf).logsumexp(1).to(log_out)

    rows, backward = environment.backward_mask(s[~stopped]).nonzero(as_tuple=True)
    rows = (~stopped).nonzero().squeeze(1)[rows]
    parents, actions = environment.undo(s[rows], backward), environment.forward_action(s[rows], backward)
    if bool(stopped.any()):
        parents = torch.cat([parents, environment.unstop(s[stopped])])
        rows = torch.cat([rows, stopped.nonzero().squeeze(1)])
        stop = torch.full((len(rows) - len(actions),), environment.n_actions - 1, device=s.device)
        actions, backward = torch.cat([actions, stop]), torch.cat([backward, torch.zeros_like(stop)])
    logits = policy.forward_logits(environment.observe(parents))
    same = environment.same_child(parents, actions)
    if same is None:
        edges = logits.gather(1, actions.unsqueeze(1)).squeeze(1)
    else:
        edges = torch.where(same, logits, -math.inf).logsumexp(1)
    table = torch.full((len(s), environment.n_backward), -math.inf, dtype=edges.dtype, device=s.device)
    return table.index_put((rows, backward), edges).logsumexp(1), log_out
