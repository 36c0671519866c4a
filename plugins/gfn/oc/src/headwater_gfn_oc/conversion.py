"""From the flows to all outcomes to the policy of one reward, without training.

P_F^r(s'|s) = sum_y r(y) F(s|y) P_F(s'|s,y) / sum_y r(y) F(s|y). A network knows nothing of outcomes that a state does
not lead to, so the sums go over the transitions into states that lead to y, and over no others.
"""

from dataclasses import dataclass
from typing import Any

import torch
from headwater_gfn.environment import Environment, log_policy
from headwater_gfn.exact import CHUNK
from headwater_gfn.table import TableEnvironment
from torch import Tensor

from headwater_gfn_oc.outcomes import Conditioned

__all__ = [
    "MOST_PAIRS",
    "Layer",
    "Ways",
    "convert",
    "exact_weights",
    "learned_weights",
    "reach_probability",
    "sample_converted",
    "ways_of",
]

MOST_PAIRS = 5_000_000
"""Most pairs of a state and an outcome that all are gone through."""


PAIRS_AT_ONCE = 16_384
"""Pairs of a state and an outcome that a network is asked for at once where outcomes are sampled."""


@dataclass(frozen=True)
class Layer:
    """Transitions ``state`` to ``child`` by ``action`` on the way to ``outcome`` (E,), all equally far from it.

    ``log_pb`` is that of the uniform backward policy. ``child_pair`` numbers the pairs (child, outcome) of this layer,
    ``pair`` the pairs (state, outcome), which are the children's pairs of the next; ``pair_state`` and ``pair_outcome``
    (P,) list the latter.
    """

    state: Tensor
    action: Tensor
    child: Tensor
    outcome: Tensor
    log_pb: Tensor
    child_pair: Tensor
    pair: Tensor
    pair_state: Tensor
    pair_outcome: Tensor


@dataclass(frozen=True)
class Ways:
    """Every transition of ``table`` on the way to every outcome, from the outcomes back to the source."""

    table: TableEnvironment
    layers: tuple[Layer, ...]

    @property
    def n_outcomes(self) -> int:
        return len(self.table.states) - self.table.n_inner


def ways_of(table: TableEnvironment, most: int = MOST_PAIRS) -> Ways | None:
    """Go back from every outcome; ``None`` where there are more than ``most`` pairs of a state and an outcome."""
    n = len(table.states) - table.n_inner
    child, outcome = torch.arange(table.n_inner, len(table.states)), torch.arange(n)
    total = 0
    layers: list[Layer] = []
    stopping = table.stops
    while True:
        if stopping:
            rows, state = torch.arange(n), table.stopped[child]
            action = torch.full((n,), table.n_actions - 1)
            log_pb, stopping = torch.zeros(n, dtype=torch.float64), False
        else:
            mask = table.parent[child] >= 0
            rows, back = mask.nonzero(as_tuple=True)
            if not len(rows):
                return Ways(table, tuple(layers))
            state = table.parent[child[rows], back]
            action = table.forward_action(child[rows], back)
            log_pb = -mask.sum(1)[rows].double().log()
        keys, pair = (state * n + outcome[rows]).unique(return_inverse=True)
        total += len(keys)
        if total > most:
            return None
        layers.append(Layer(state, action, child[rows], outcome[rows], log_pb, rows, pair, keys // n, keys % n))
        child, outcome = keys // n, keys % n


def _log_sum(values: Tensor, where: Tensor, n: int) -> Tensor:
    """log of the sums (n,) of exp(``values``) (E,) over equal ``where`` (E,); minus infinity where there is none."""
    most = values.new_full((n,), -torch.inf).scatter_reduce(0, where, values, "amax")
    shift = most.where(most > -torch.inf, 0.0)
    return values.new_zeros(n).index_add(0, where, (values - shift[where]).exp()).log() + shift


def exact_weights(ways: Ways) -> list[Tensor]:
    """log F(s|y) P_F(s'|s,y) of every transition, layer by layer: the exact solution under the uniform P_B.

    F(y|y) = 1, F(s|y) = sum over the children of F(s'|y) P_B(s|s'), and F(s|y) P_F(s'|s,y) = F(s'|y) P_B(s|s').
    """
    log_flow = torch.zeros(ways.n_outcomes, dtype=torch.float64)
    found = []
    for layer in ways.layers:
        weight = log_flow[layer.child_pair] + layer.log_pb
        found.append(weight)
        log_flow = _log_sum(weight, layer.pair, len(layer.pair_state))
    return found


@torch.no_grad()
def learned_weights(ways: Ways, policy: Any, *, normalised: bool) -> list[Tensor]:
    """log F(s|y) P_F(s'|s,y) of every transition, layer by layer, as the network ``policy`` has them.

    Args:
        ways: the transitions.
        policy: of states and outcomes.
        normalised: whether F(s_0|y) is 1 by construction.
    """
    table = ways.table
    found, flows = [], []
    for layer in ways.layers:
        log_flow, log_pf = _look(table, policy, layer.pair_state, layer.pair_outcome)
        flows.append(log_flow)
        log_p = log_pf[layer.pair]
        same = table.same_child(layer.state, layer.action)
        if same is None:
            chosen = log_p.gather(1, layer.action.unsqueeze(1)).squeeze(1)
        else:
            chosen = torch.where(same, log_p, -torch.inf).logsumexp(1)
        found.append(log_flow[layer.pair] + chosen)
    if normalised:
        root = torch.zeros(ways.n_outcomes, dtype=torch.float64)
        for layer, log_flow in zip(ways.layers, flows, strict=True):
            at_source = layer.pair_state == 0  # some outcomes are nearer to it than others
            root[layer.pair_outcome[at_source]] = log_flow[at_source]
        found = [weight - root[layer.outcome] for weight, layer in zip(found, ways.layers, strict=True)]
    return found


def _look(table: TableEnvironment, policy: Any, state: Tensor, outcome: Tensor) -> tuple[Tensor, Tensor]:
    """log F(s|y) (P,) and log P_F (P, n_actions) of pairs, float64."""
    flows, forward = [], []
    for s, y in zip(state.split(CHUNK), outcome.split(CHUNK), strict=True):
        observed = torch.cat([table.observe(s), table.observe(y + table.n_inner)], 1)
        logits, _, log_flow = policy(observed)
        flows.append(log_flow.double())
        forward.append(log_policy(logits.double(), table.forward_mask(s)))
    return torch.cat(flows), torch.cat(forward)


def convert(ways: Ways, weights: list[Tensor], log_r: Tensor) -> Tensor:
    """log P_F^r (n_inner, n_actions) for the reward log r (X,) of the objects, float64.

    Where several actions lead to one child, one of them has all its probability. States that lead to no outcome with a
    reward choose uniformly.
    """
    table = ways.table
    state = torch.cat([layer.state for layer in ways.layers])
    action = torch.cat([layer.action for layer in ways.layers])
    outcome = torch.cat([layer.outcome for layer in ways.layers])
    summand = torch.cat(weights) + log_r.double()[outcome]
    total = _log_sum(summand, state * table.n_actions + action, table.n_inner * table.n_actions)
    total = total.view(table.n_inner, table.n_actions)
    lost = (total == -torch.inf).all(1, keepdim=True)
    mask = table.forward_mask(torch.arange(table.n_inner))
    return torch.log_softmax(torch.where(lost & mask, 0.0, total), 1)


@torch.no_grad()
def reach_probability(table: TableEnvironment, policy: Any, outcomes: Tensor) -> Tensor:
    """P_T(y|y) (Y,): the exact probability that the policy conditioned on ``outcomes`` (Y,) ends in them.

    No action is ruled out but those that the environment forbids.
    """
    inner = torch.arange(table.n_inner)
    found = []
    for part in outcomes.split(max(1, CHUNK // table.n_inner)):
        n = len(part)
        _, log_pf = _look(table, policy, inner.repeat(n), part.repeat_interleave(table.n_inner))
        p = torch.where(table.child >= 0, log_pf.view(n, table.n_inner, -1).exp(), 0.0)
        mass = torch.zeros(len(table.states), n, dtype=torch.float64)
        mass[0] = 1.0
        child = table.child.clamp_min(0)
        for first, last in zip(table.layers, table.layers[1:], strict=False):
            moved = (p[:, first:last] * mass[first:last].T.unsqueeze(2)).permute(1, 2, 0)
            mass.index_add_(0, child[first:last].flatten(), moved.flatten(0, 1))
        found.append(mass[part + table.n_inner, torch.arange(n)])
    return torch.cat(found)


@torch.no_grad()
def sample_converted(
    environment: Environment,
    policy: Any,
    y: Tensor,
    log_r: Tensor,
    n: int,
    generator: torch.Generator,
    *,
    normalised: bool,
) -> Tensor:
    """``n`` terminal states by the policy for the reward log r (M,) of the outcomes ``y`` (M, ...) alone.

    The sum over all outcomes is replaced by the one over these, drawn from a larger space: a Monte Carlo estimate.
    """
    conditioned = Conditioned(environment, y)
    device, m = generator.device, len(y)
    log_share = log_r.clone()
    if normalised:
        log_share -= policy(conditioned.observe(conditioned.start(m, device)))[2]
    s = environment.start(n, device)
    for _ in range(environment.max_len):
        going = ~environment.terminal(s)
        if not bool(going.any()):
            break
        own = s[going]
        parts = own.split(max(1, PAIRS_AT_ONCE // m))
        total = torch.cat([_mixture(conditioned, policy, part, log_share) for part in parts])
        chosen = torch.multinomial(torch.softmax(total, 1), 1, generator=generator).squeeze(1)
        s = s.clone()
        s[going] = environment.step(own, chosen)
    return s


def _mixture(conditioned: Conditioned, policy: Any, s: Tensor, log_share: Tensor) -> Tensor:
    """log of sum_y r(y) F(s|y) P_F(s'|s,y) (B, n_actions) over the outcomes y of ``conditioned``."""
    environment, y = conditioned.of, conditioned.y
    b, m, a = len(s), len(y), environment.n_actions
    every = y.repeat(b, *[1] * (y.ndim - 1))
    logits, _, log_flow = policy(conditioned.observe(conditioned.paired(s.repeat_interleave(m, 0), every)))
    mask = environment.forward_mask(s)
    log_p = log_policy(logits, mask.repeat_interleave(m, 0)).view(b, m, a)
    summand = log_p + (log_flow.view(b, m) + log_share).unsqueeze(2)
    rows, actions = mask.nonzero(as_tuple=True)
    children = environment.step(s[rows], actions).repeat_interleave(m, 0)
    leads = environment.reaches(children, y.repeat(len(rows), *[1] * (y.ndim - 1)))
    kept = torch.zeros(b, a, m, dtype=torch.bool, device=s.device)
    kept[rows, actions] = leads.view(len(rows), m)
    return torch.where(kept.transpose(1, 2), summand, -torch.inf).logsumexp(1)
