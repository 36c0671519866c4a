"""What a policy says of given trajectories: the terms that objectives are made of."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater_gfn.environment import Environment, log_policy
from headwater_gfn.networks import Policy
from headwater_gfn.objective import valid_transitions
from headwater_gfn.rollout import Trajectories

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
    steps, n = actions.shape
    valid = valid_transitions(length, steps)
    inside = torch.cat(
        [torch.ones_like(valid[:1]), valid]
    )  # the states of each trajectory, its last included
    seen = inside
    if environment.stops:
        ended = torch.zeros_like(inside)
        ended[length, torch.arange(n, device=length.device)] = True
        if trajectories.complete is not None:
            ended = ended & trajectories.complete
        seen = inside & ~ended
    forward, backward, flow = policy(environment.observe(states[seen]))

    place = torch.zeros(steps + 1, n, dtype=torch.int64, device=length.device)
    place[seen] = torch.arange(len(flow), device=length.device)
    if environment.stops:
        place[1:] = torch.where(ended[1:], place[:-1], place[1:])
    log_flow = torch.where(inside, flow[place], 0.0)

    s, a, child = states[:-1][valid], actions[valid], states[1:][valid]
    log_pf = _log_forward(environment, forward[place[:-1][valid]], s, a)

    # The last transition into a state made by STOP has one parent.
    back = seen[1:] & valid
    child = states[1:][back]
    mask = environment.backward_mask(child)
    if learned_backward and backward is not None:
        b = environment.backward_action(states[:-1][back], actions[back])
        found = log_policy(backward[place[1:][back]], mask).gather(1, b.unsqueeze(1)).squeeze(1)
    else:
        found = -mask.sum(1).to(flow.dtype).log()
    return Evaluation(_spread(valid, log_pf), _spread(back, found), log_flow)


def _log_forward(environment: Environment, logits: Tensor, s: Tensor, a: Tensor) -> Tensor:
    log_p = log_policy(logits, environment.forward_mask(s))
    same = environment.same_child(s, a)
    if same is None:
        return log_p.gather(1, a.unsqueeze(1)).squeeze(1)
    return torch.where(same, log_p, -math.inf).logsumexp(1)


def _spread(where: Tensor, values: Tensor) -> Tensor:
    """Put ``values`` (M,) at the M true places of ``where``, zero elsewhere."""
    return torch.zeros(where.shape, dtype=values.dtype, device=values.device).masked_scatter(where, values)


def edge_flows(
    environment: Environment, policy: Policy, s: Tensor, log_reward: Tensor
) -> tuple[Tensor, Tensor]:
    """log of the flow into and out of states ``s`` (M, \\*state_shape), none of which is the source: two (M,).

    The forward logits are read as log F(s -> s'). The flow out of a terminal state is its reward, which is taken
    from ``log_reward`` (M,).
    """
    terminal = environment.terminal(s)
    stopped = terminal if environment.stops else torch.zeros_like(terminal)
    going = ~terminal
    log_out = log_reward.clone()
    logits = policy.forward_logits(environment.observe(s[going]))
    log_out[going] = (
        torch.where(environment.forward_mask(s[going]), logits, -math.inf).logsumexp(1).to(log_out)
    )

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
