"""Replay: the objects found so far, to learn from again."""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["Replay"]


class Replay:
    """A ring of terminal states and their log-rewards; the oldest go first.

    Trajectories are drawn anew by the backward policy when an object is replayed, so only objects are kept.

    Args:
        capacity: most objects kept.
        prioritised: draw half of a batch from the tenth of highest reward and half from the rest; uniform without.
        unique: leave out objects that are in the buffer already (by ``keys``).
    """

    def __init__(self, capacity: int, *, prioritised: bool = False, unique: bool = False) -> None:
        self.capacity, self.prioritised, self.unique = capacity, prioritised, unique
        self.x: Tensor | None = None
        self.log_reward = torch.zeros(0)
        self.keys = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.log_reward)

    def add(self, x: Tensor, log_reward: Tensor, keys: Tensor) -> None:
        """Add objects ``x`` (B, \\*state_shape) with ``log_reward`` (B,) and ``keys`` (B,), equal for equal objects."""
        if self.unique:
            _, first = _first_of_each(keys)
            fresh = first[~torch.isin(keys[first], self.keys)]
            x, log_reward, keys = x[fresh], log_reward[fresh], keys[fresh]
        self.x = (x if self.x is None else torch.cat([self.x, x]))[-self.capacity :]
        self.log_reward = torch.cat([self.log_reward.to(log_reward), log_reward])[-self.capacity :]
        self.keys = torch.cat([self.keys.to(keys), keys])[-self.capacity :]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``n`` objects with their log-rewards, with replacement; the buffer must not be empty."""
        assert self.x is not None
        device = self.log_reward.device
        if self.prioritised:
            order = self.log_reward.argsort(descending=True)
            top = math.ceil(0.1 * len(order))
            high = torch.randint(top, (n - n // 2,), generator=generator, device=device)
            low = torch.randint(top, max(len(order), top + 1), (n // 2,), generator=generator, device=device)
            index = order[torch.cat([high, low.clamp_max(len(order) - 1)])]
        else:
            index = torch.randint(len(self), (n,), generator=generator, device=device)
        return self.x[index], self.log_reward[index]

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x, "log_reward": self.log_reward, "keys": self.keys}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.x, self.log_reward, self.keys = state["x"], state["log_reward"], state["keys"]


def _first_of_each(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The different keys, ascending, and where each stands first."""
    ordered, order = keys.sort(stable=True)
    first = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first], order[first]
