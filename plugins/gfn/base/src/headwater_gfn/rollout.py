"""Trajectories: sampled forward by a policy, or backward from given objects, for a whole batch at once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import torch
from torch import Tensor

from headwater_gfn.environment import Environment
from headwater_gfn.networks import MLPPolicy, Policy
from headwater_gfn.table import TableEnvironment

__all__ = ["Behaviour", "Trajectories", "roll_back", "roll_out"]


@dataclass(frozen=True)
class Behaviour:
    """How the sampling policy differs from the trained one; losses never see it.

    ``epsilon``: the probability of an action drawn uniformly from the allowed ones, at each step by itself.
    ``temperature`` divides the logits. Both hold for the first ``rows`` trajectories of a batch, the others are of
    the policy itself; ``None`` stands for all.
    """

    epsilon: float = 0.0
    temperature: float = 1.0
    rows: int | None = None

    @property
    def differs(self) -> bool:
        """Whether it differs from the policy at all."""
        return self.rows != 0 and (self.epsilon > 0 or self.temperature != 1)

    @property
    def blind(self) -> int:
        """How many of the first rows walk at random alone, and need no network."""
        return self.rows if self.rows is not None and self.epsilon >= 1 else 0


@dataclass(frozen=True)
class Trajectories:
    """A batch of trajectories from the source.

    ``states`` (T + 1, B, \\*state_shape); ``actions`` (T, B); ``length`` (B,), the transitions of each. A state past
    the end repeats the last one; an action past the end means nothing. ``complete`` (B,) says which ones end in a
    terminal state; ``None`` stands for all.
    """

    states: Tensor
    actions: Tensor
    length: Tensor
    complete: Tensor | None = None

    @property
    def last(self) -> Tensor:
        """The last state (B, \\*state_shape) of each: the object x where it is complete."""
        return self.states[self.length, torch.arange(len(self.length), device=self.length.device)]

    def rows(self, n: int) -> "Trajectories":
        """The first ``n`` trajectories."""
        length = self.length[:n]
        longest = int(length.max())
        complete = None if self.complete is None else self.complete[:n]
        return Trajectories(self.states[: longest + 1, :n], self.actions[:longest, :n], length, complete)

    def beside(self, other: "Trajectories") -> "Trajectories":
        """These trajectories and, after them, ``other``; both complete."""
        steps = max(len(self.actions), len(other.actions))

        def fill(x: Tensor, to: int) -> Tensor:
            return torch.cat([x, x[-1:].expand(to - len(x), *x.shape[1:])])

        states = torch.cat([fill(self.states, steps + 1), fill(other.states, steps + 1)], 1)
        actions = torch.cat([fill(self.actions, steps), fill(other.actions, steps)], 1)
        return Trajectories(states, actions, torch.cat([self.length, other.length]))

    def cut(self, length: Tensor) -> "Trajectories":
        """Only the first ``length`` (B,) transitions of each, at least one and at most all."""
        complete = length >= self.length
        if self.complete is not None:
            complete = complete & self.complete
        longest = int(length.max())
        within = torch.arange(longest + 1, device=length.device).unsqueeze(1).minimum(length)
        states = self.states[within, torch.arange(len(length), device=length.device)]
        return Trajectories(states, self.actions[:longest], length, complete)


CHUNK = 16
"""Steps whose randomness is drawn at once."""

MANY = 64
"""Rows from which on it pays to evaluate equal states once."""


WIDE = 256
"""Actions from which on one uniform number a row is cheaper than noise for every action."""


def _noise(steps: int, n: int, n_actions: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Randomness for :func:`_choose`, some steps (steps, n, ...) at a time.

    Standard Gumbel noise (steps, n, n_actions): the argmax of logits plus noise is a sample. With very many actions
    uniform numbers (steps, n, 1) instead, to look up in the distribution function.
    """
    while n_actions > WIDE:
        yield torch.rand(CHUNK, n, 1, device=generator.device, generator=generator)
    chunk = max(1, min(CHUNK, steps, 2**22 // max(n * n_actions, 1)))
    while True:
        drawn = torch.rand(chunk, n, n_actions, device=generator.device, generator=generator)
        yield drawn.log_().neg_().log_().neg_()


def _factors(behaviour: Behaviour, n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Factors (steps, n, 1) of the logits, some steps at a time: 0 where the action is drawn uniformly."""
    rows = n if behaviour.rows is None else behaviour.rows
    others = torch.ones(CHUNK, n - rows, 1, device=generator.device)
    while True:
        kept = torch.rand(CHUNK, rows, 1, device=generator.device, generator=generator) >= behaviour.epsilon
        factor = kept / behaviour.temperature
        yield torch.cat([factor, others], 1) if rows < n else factor


@torch.no_grad()
def roll_out(
    environment: Environment,
    policy: Policy,
    n: int,
    generator: torch.Generator,
    behaviour: Behaviour | None = None,
) -> Trajectories:
    """Sample ``n`` trajectories from the source to terminal states.

    All randomness comes from ``generator``, on whose device the work is done. An action is the argmax of logits plus
    Gumbel noise; trajectories that ended cost nothing more.
    """
    behaviour = behaviour or Behaviour()
    if generator.device.type == "cpu" and environment.n_actions <= WIDE:
        if isinstance(environment, TableEnvironment):
            return _walk_table(environment, policy, n, generator, behaviour)
        if environment.adds_items:
            return _walk_items(environment, policy, n, generator, behaviour)
    return _walk(environment, policy, n, generator, behaviour)


def _choose(logits: Tensor, forbid: Tensor, noise: Tensor, factor: Tensor | None) -> Tensor:
    logits = logits.nan_to_num()  # what a network that gives NaN does must be allowed too: its loss will tell
    if factor is not None:
        logits = logits * factor
    if noise.shape[1] == forbid.shape[1]:
        return (forbid + noise).add_(logits).argmax(1)
    below = (logits + forbid).softmax(1).cumsum(1)
    # Just under 1: what is looked up must lie under the last value, after rounding too.
    return torch.searchsorted(below, noise.clamp_max(1 - 2**-22) * below[:, -1:], right=True).squeeze(1)


def _walk(
    environment: Environment, policy: Policy, n: int, generator: torch.Generator, behaviour: Behaviour
) -> Trajectories:
    device, steps = generator.device, environment.max_len
    s = environment.start(n, device)
    states = [s]
    actions = []
    length = torch.full((n,), steps, device=device)
    noise = chain.from_iterable(_noise(steps, n, environment.n_actions, generator))
    factors = chain.from_iterable(_factors(behaviour, n, generator)) if behaviour.differs else repeat(None)
    logits_of = policy.prepared() if isinstance(policy, MLPPolicy) else policy.forward_logits
    blind = behaviour.blind
    live = None  # the rows that go on; None for all
    for t in range(steps):
        forbid = torch.where(environment.forward_mask(s), 0.0, -math.inf)
        gumbel, factor = next(noise), next(factors)
        if live is not None:
            gumbel, factor = gumbel[live], factor if factor is None else factor[live]
        observed = environment.observe(s)
        if blind and live is None:  # the first rows walk at random: they need no network
            logits = torch.zeros_like(forbid)
            if blind < n:
                logits[blind:] = logits_of(observed[blind:])
        else:
            logits = logits_of(observed)
        a = _choose(logits, forbid, gumbel, factor)
        s = environment.step(s, a)
        if live is None:
            states.append(s)
            actions.append(a)
        else:
            states.append(states[-1].index_copy(0, live, s))
            actions.append(torch.zeros_like(actions[-1]).index_copy(0, live, a))
        if environment.stops:
            over = environment.terminal(s)
            if bool(over.any()):
                rows = torch.arange(n, device=device) if live is None else live
                length[rows[over]] = t + 1
                live, s = rows[~over], s[~over]
                if not len(live):
                    break
    return Trajectories(torch.stack(states), torch.stack(actions), length)


def _walk_table(
    environment: TableEnvironment, policy: Policy, n: int, generator: torch.Generator, behaviour: Behaviour
) -> Trajectories:
    """As :func:`_walk`, on numbered states and a CPU.

    The products are torch's and all else is NumPy's, on the same memory: at a few rows a call of torch costs three
    times as much as one of NumPy, and there is little else to pay for.
    """
    logits_of = policy.prepared() if isinstance(policy, MLPPolicy) else policy.forward_logits
    successor, forbid = environment.successor.numpy(), environment.penalties.numpy()
    inner, n_actions, most = environment.n_inner, environment.n_actions, environment.max_len
    states, actions = np.zeros((most + 1, n), dtype=np.int64), np.zeros((most, n), dtype=np.int64)
    noise = chain.from_iterable(chunk.numpy() for chunk in _noise(most, n, n_actions, generator))
    factors = chain.from_iterable(chunk.numpy() for chunk in _factors(behaviour, n, generator))
    s, live, t = states[0], np.arange(n), 0
    while len(s):
        if len(s) < MANY:
            logits = logits_of(environment.observe(torch.from_numpy(s))).numpy()
        else:
            different, which = np.unique(s, return_inverse=True)
            logits = logits_of(environment.observe(torch.from_numpy(different))).numpy()[which]
        if behaviour.differs:
            logits = logits * next(factors).take(live, 0)
        logits = logits + forbid.take(s, 0)
        logits += next(noise)[: len(s)]
        a = logits.argmax(1)
        s = successor.take(s * n_actions + a)
        states[t + 1, live], actions[t, live] = s, a
        t += 1
        if t == most:
            break
        going = s < inner
        if np.count_nonzero(going) < len(s):
            s, live = s[going], live[going]
    walked = torch.from_numpy(np.maximum.accumulate(states[: t + 1]))  # numbers grow along a trajectory
    length = (walked < inner).sum(0).clamp_max(t)  # more only where the network gave NaN
    return Trajectories(walked, torch.from_numpy(actions[:t]), length)


def _walk_items(
    environment: Environment, policy: Policy, n: int, generator: torch.Generator, behaviour: Behaviour
) -> Trajectories:
    """As :func:`_walk`, on states to which every action adds an item, on a CPU: see :func:`_walk_table`.

    What is forbidden is one array, in which a step changes an entry a row.
    """
    logits_of = policy.prepared() if isinstance(policy, MLPPolicy) else policy.forward_logits
    steps, width, blind = environment.max_len, environment.n_actions, behaviour.blind
    forbid = np.zeros((n, width), dtype=np.float32)
    states, actions = np.zeros((steps + 1, n, width), dtype=np.int64), np.zeros((steps, n), dtype=np.int64)
    noise = chain.from_iterable(chunk.numpy() for chunk in _noise(steps, n, width, generator))
    factors = chain.from_iterable(chunk.numpy() for chunk in _factors(behaviour, n, generator))
    rows, scores = np.arange(n), np.zeros((n, width), dtype=np.float32)
    for t in range(steps):
        if blind < n:
            # A network that gives NaN must be allowed some action too: its loss will tell.
            observed = environment.observe(torch.from_numpy(states[t, blind:]))
            scores[blind:] = logits_of(observed).nan_to_num().numpy()
        chances = forbid + next(noise)
        if behaviour.differs:
            scores[blind:] *= next(factors)[blind:]
        a = np.add(chances, scores, out=chances).argmax(1, out=actions[t])
        states[t + 1] = states[t]
        states[t + 1, rows, a], forbid[rows, a] = 1, -np.inf
    return Trajectories(torch.from_numpy(states), torch.from_numpy(actions), torch.full((n,), steps))


@torch.no_grad()
def roll_back(
    environment: Environment,
    policy: Policy | None,
    x: Tensor,
    generator: torch.Generator,
) -> Trajectories:
    """Sample trajectories that end in the given terminal states ``x``, backward by P_B.

    P_B is that of ``policy``; uniform over the parents where ``policy`` is ``None`` or has no backward logits.
    """
    if policy is None and x.device.type == "cpu" and isinstance(environment, TableEnvironment):
        return _back_table(environment, x, generator)
    n, device = len(x), x.device
    states, actions = [x], []
    s, live = x, torch.arange(n, device=device)
    length = torch.zeros(n, dtype=torch.int64, device=device)
    if environment.stops:
        s = environment.unstop(x)
        states.append(s)
        actions.append(torch.full((n,), environment.n_actions - 1, device=device))
        length += 1
    noise = chain.from_iterable(_noise(environment.max_len, n, environment.n_backward, generator))
    while True:
        mask = environment.backward_mask(s)
        going = mask.any(1)
        if not bool(going.all()):
            live, s, mask = live[going], s[going], mask[going]
        if not len(live):
            break
        forbid = torch.where(mask, 0.0, -math.inf)
        logits = None if policy is None else policy(environment.observe(s))[1]
        b = _choose(torch.zeros_like(forbid) if logits is None else logits, forbid, next(noise)[live], None)
        a = environment.forward_action(s, b)
        s = environment.undo(s, b)
        length[live] += 1
        states.append(states[-1].index_copy(0, live, s))
        actions.append(torch.zeros(n, dtype=torch.int64, device=device).index_copy(0, live, a))
    # Step i of a trajectory of length L is what was found at step L - i going back.
    longest, rows = len(actions), torch.arange(n, device=device)
    step = torch.arange(longest + 1, device=device).unsqueeze(1)
    ordered = torch.stack(states)[(length - step).clamp_min(0), rows]
    taken = torch.stack(actions)[(length - 1 - step[:-1]).clamp_min(0), rows]
    return Trajectories(ordered, taken, length)


def _back_table(environment: TableEnvironment, x: Tensor, generator: torch.Generator) -> Trajectories:
    """As :func:`roll_back` by the uniform P_B, on numbered states and a CPU: see :func:`_walk_table`."""
    n, most = len(x), environment.max_len
    parent, action, count = (t.numpy() for t in environment.ways_back())
    width = environment.n_backward
    states, actions = np.zeros((most + 1, n), dtype=np.int64), np.zeros((most, n), dtype=np.int64)
    s, first = x.numpy(), most
    states[most] = s
    if environment.stops:
        first -= 1
        s = environment.stopped.numpy().take(s)
        states[first], actions[first] = s, environment.n_actions - 1
    uniform = torch.rand(most, n, generator=generator).numpy()
    while first and s.any():  # the source is number 0: it has no parent, and is its own here
        ways = count.take(s)
        way = s * width + np.minimum((uniform[first - 1] * ways).astype(np.int64), np.maximum(ways - 1, 0))
        first -= 1
        actions[first] = action.take(way)
        s = parent.take(way)
        states[first] = s
    # Each starts at the source: shift it so that it does so at step 0.
    length = torch.from_numpy((states != 0).sum(0))
    step = torch.arange(most - first + 1).unsqueeze(1)
    rows, start = torch.arange(n), most - length
    walked, taken = torch.from_numpy(states), torch.from_numpy(actions)
    place = (start + step).clamp_max(most)
    return Trajectories(walked[place, rows], taken[place[:-1].clamp_max(most - 1), rows], length)
