"""An environment written out as tables: every state a number, every step a look-up.

This serves two ends: exact diagnostics by dynamic programming, and fast rollouts of environments small enough.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from headwater import UsageError
from torch import Tensor

from headwater_gfn.environment import Environment, Samples

if TYPE_CHECKING:
    from headwater.reporting import Panel

__all__ = ["LIMIT", "TableEnvironment", "tabulate"]

LIMIT = 2_000_000
"""Most states that are written out."""


class TableEnvironment(Environment):
    """``of``, with each state given as its number (B,).

    States are numbered by depth, those that are terminal after all others. ``states`` (N, \\*state_shape) lists them,
    the first ``n_inner`` are not terminal, and the states of depth l are ``layers[l]`` to ``layers[l + 1]``.
    ``child`` (n_inner, n_actions) and ``parent`` (N, n_backward) hold numbers, -1 where the action is not allowed;
    a terminal state that STOP made has its parent in ``stopped`` instead. ``successor`` (N n_actions,) is ``child`` for
    look-ups: a forbidden action and a terminal state stay where they are. ``penalties`` (N, n_actions) are minus
    infinity for forbidden actions, else zero.
    """

    def __init__(self, of: Environment, limit: int = LIMIT) -> None:
        """Write ``of`` out.

        Raises:
            UsageError: it has more states than ``limit``, or a state can be reached in different numbers of steps.
        """
        super().__init__(of.config)
        self.of = of
        self.n_actions, self.n_backward, self.stops = of.n_actions, of.n_backward, of.stops
        self.max_len, self.n_features = of.max_len, of.n_features
        self.n_places, self.n_values = of.n_places, of.n_values
        self.state_shape = ()
        self._enumerate(limit)
        self.n_states = len(self.states)
        self._link()
        self._features: Tensor | None = None
        self._partial: Tensor | None = None
        self._back: tuple[Tensor, Tensor, Tensor] | None = None

    # Making the tables

    def _enumerate(self, limit: int) -> None:
        """Go through the states depth by depth, from the source."""
        layer = self.of.start(1)
        layers, ends = [], []
        total = 0
        while len(layer):
            over = self.of.terminal(layer)
            ends.append(layer[over])
            layer = layer[~over]
            layers.append(layer)
            total += len(layer) + len(ends[-1])
            if total > limit:
                raise UsageError(f"{type(self.of).__name__} has more than {limit:,} states, too many to go through")
            if len(layer):
                rows, actions = self.of.forward_mask(layer).nonzero(as_tuple=True)
                layer = _unique(self.of, self.of.step(layer[rows], actions))
        inner, terminal = [x for x in layers if len(x)], torch.cat(ends)
        if self.of.stops:
            terminal = _unique(self.of, terminal)
        self.n_inner = sum(map(len, inner))
        self.layers = torch.tensor([0, *map(len, inner)]).cumsum(0).tolist()
        self.states = torch.cat([*inner, terminal])
        keys = self.of.key(self.states)
        self._sorted, self._order = keys.sort()
        if bool((self._sorted[1:] == self._sorted[:-1]).any()):
            raise UsageError(f"{type(self.of).__name__} reaches a state in different numbers of steps")
        self.log_rewards = self.of.log_reward(terminal)

    def _link(self) -> None:
        """Fill ``child``, ``parent`` and ``stopped``."""
        inner = self.states[: self.n_inner]
        mask = self.of.forward_mask(inner)
        rows, actions = mask.nonzero(as_tuple=True)
        child = torch.full((self.n_inner, self.n_actions), -1)
        child[rows, actions] = self.index(self.of.step(inner[rows], actions))
        self.child = child
        terminal = torch.ones(len(self.states) - self.n_inner, self.n_actions, dtype=torch.bool)
        self._forward_mask = torch.cat([mask, terminal])
        self.penalties = torch.zeros(len(self.states), self.n_actions)
        self.penalties[: self.n_inner][~mask] = -torch.inf
        self.successor = torch.arange(len(self.states)).unsqueeze(1).repeat(1, self.n_actions)
        self.successor[: self.n_inner][mask] = child[mask]
        self.successor = self.successor.flatten()

        self.stopped = torch.full((len(self.states),), -1)
        made_by_stop = torch.zeros(len(self.states), dtype=torch.bool)
        if self.stops:
            made_by_stop[self.n_inner :] = True
            self.stopped[self.n_inner :] = self.index(self.of.unstop(self.states[self.n_inner :]))
        back = torch.zeros(len(self.states), self.n_backward, dtype=torch.bool)
        back[~made_by_stop] = self.of.backward_mask(self.states[~made_by_stop])
        rows, actions = back.nonzero(as_tuple=True)
        self.parent = torch.full((len(self.states), self.n_backward), -1)
        self.parent[rows, actions] = self.index(self.of.undo(self.states[rows], actions))
        self._backward_mask = back

    def to(self, device: torch.device | str) -> "TableEnvironment":
        """Put the tables onto ``device``."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def index(self, s: Tensor) -> Tensor:
        """The numbers (B,) of states of ``of``.

        Raises:
            ValueError: one is no state that the source leads to.
        """
        keys = self.of.key(s)
        place = torch.searchsorted(self._sorted, keys).clamp_max(len(self._sorted) - 1)
        if not bool((self._sorted[place] == keys).all()):
            raise ValueError(f"a state is none that {type(self.of).__name__} can reach from its source")
        return self._order[place]

    def ways_back(self) -> tuple[Tensor, Tensor, Tensor]:
        """For each state its parents and the actions from them (N n_backward,), and how many there are (N,).

        Those that there are come first. The source is its own only parent, by no action of meaning. States that STOP
        made have none.
        """
        if self._back is None:
            mask = self._backward_mask
            order = (~mask).to(torch.int8).argsort(dim=1, stable=True)
            rows, back = mask.nonzero(as_tuple=True)
            action = torch.zeros_like(self.parent)
            action[rows, back] = self.forward_action(rows, back)
            parent = self.parent.clamp_min(0)
            self._back = parent.gather(1, order).flatten(), action.gather(1, order).flatten(), mask.sum(1)
        return self._back

    # The environment

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(n, dtype=torch.int64, device=device)

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        return self.successor.index_select(0, torch.add(a, s, alpha=self.n_actions))

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        return self.parent.view(-1)[s * self.n_backward + b]

    def unstop(self, s: Tensor) -> Tensor:
        return self.stopped[s]

    def forward_mask(self, s: Tensor) -> Tensor:
        return self._forward_mask.index_select(0, s)

    def backward_mask(self, s: Tensor) -> Tensor:
        return self._backward_mask.index_select(0, s)

    def backward_action(self, s: Tensor, a: Tensor) -> Tensor:
        if self.inherits("backward_action"):
            return a
        return self.of.backward_action(self.states[s], a)

    def forward_action(self, s: Tensor, b: Tensor) -> Tensor:
        return self.of.forward_action(self.states[s], b)

    def same_child(self, s: Tensor, a: Tensor) -> Tensor | None:
        if self.inherits("same_child"):
            return None
        return self.of.same_child(self.states[s], a)

    def inherits(self, name: str) -> bool:
        return self.of.inherits(name)

    def terminal(self, s: Tensor) -> Tensor:
        return s >= self.n_inner

    def observe(self, s: Tensor) -> Tensor:
        if self._features is None:
            self._features = self.of.observe(self.states)
        return self._features.index_select(0, s)

    def log_reward(self, x: Tensor) -> Tensor:
        # A network that gives NaN walks nowhere: its last states are not terminal, and its loss will say so.
        return self.log_rewards[(x - self.n_inner).clamp_min(0)]

    def log_partial_reward(self, s: Tensor) -> Tensor:
        if self._partial is None:
            self._partial = self.of.log_partial_reward(self.states)
        return self._partial[s]

    def key(self, s: Tensor) -> Tensor:
        return s

    def log_partition(self) -> float:
        return float(torch.logsumexp(self.log_rewards.double(), 0))

    def highest_log_reward(self) -> float:
        return float(self.log_rewards.max())

    def modes(self, x: Tensor) -> Tensor | None:
        return self.of.modes(self.states[x])

    @property
    def n_modes(self) -> int | None:
        return self.of.n_modes

    def space(self) -> dict[str, Any]:
        return self.of.space()

    def letters(self, x: Tensor) -> Tensor:
        return self.of.letters(self.states[x])

    def from_letters(self, letters: Tensor) -> Tensor:
        return self.index(self.of.from_letters(letters))

    def proper(self, letters: Tensor) -> Tensor:
        return self.of.proper(letters)

    def possible(self, s: Tensor, letters: Tensor) -> Tensor:
        return self.of.possible(self.states[s], letters)

    def random_objects(self, n: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        return torch.randint(self.n_inner, len(self.states), (n,), generator=generator, device=device)

    def describe(self, x: Tensor) -> list[str]:
        return self.of.describe(self.states[x])

    def parse(self, words: list[str]) -> Tensor:
        return self.index(self.of.parse(words))

    def write(self, samples: Samples, path: Path, start: int = 0) -> None:
        self.of.write(samples, path, start)

    def pictures(self, policies: dict[str, Any]) -> "list[Panel]":
        return self.of.pictures(policies)


def tabulate(environment: Environment, most: int = 400_000, device: torch.device | str = "cpu") -> Environment:
    """``environment`` as tables where it is known to have at most ``most`` states, else as it is."""
    if environment.n_states is None or environment.n_states > most:
        return environment
    return TableEnvironment(environment).to(device)


def _unique(environment: Environment, s: Tensor) -> Tensor:
    keys = environment.key(s)
    keys, order = keys.sort(stable=True)
    first = torch.ones(len(keys), dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    return s[order[first].sort().values]
