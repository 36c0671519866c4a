"""The archive: the best objects of a run, and how many different ones it saw."""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["Archive"]


class Archive:
    """The ``k`` best different objects seen, and how many different ones and modes there were; saved with a run.

    Keys of all objects are kept in one sorted tensor, eight bytes an object.
    """

    def __init__(self, k: int = 100, n_modes: int | None = None) -> None:
        self.k = k
        self.modes_seen = torch.zeros(n_modes or 0, dtype=torch.bool)
        self.x: Tensor | None = None
        self.log_reward = torch.zeros(0)
        self.seen = torch.zeros(0, dtype=torch.int64)
        self._new: list[Tensor] = []
        self._new_rows = 0

    def add(self, x: Tensor, log_reward: Tensor, keys: Tensor, modes: Tensor | None = None) -> None:
        """Take in objects ``x`` (B, \\*state_shape).

        ``keys`` (B,) are equal for equal objects; ``modes`` (B,) says which mode each belongs to, -1 for none.
        """
        if modes is not None:
            self.modes_seen = self.modes_seen.to(modes.device)
            self.modes_seen[modes[modes >= 0]] = True
        self._new.append(keys)
        self._new_rows += len(keys)
        if self._new_rows > max(4096, len(self.seen) // 4):
            self._merge()
        floor = self.log_reward[-1] if len(self.log_reward) == self.k else torch.tensor(-math.inf)
        better = log_reward > floor.to(log_reward)
        if self.x is None:
            self.x, self.log_reward, self._keys = x[:0], log_reward[:0], keys[:0]
        if not bool(better.any()):
            return
        x = torch.cat([self.x, x[better]])
        log_reward = torch.cat([self.log_reward, log_reward[better]])
        keys = torch.cat([self._keys, keys[better]])
        order = log_reward.argsort(descending=True, stable=True)
        ordered = keys[order]
        by_key = ordered.argsort(stable=True)
        first = torch.ones(len(ordered), dtype=torch.bool, device=keys.device)
        first[1:] = ordered[by_key][1:] != ordered[by_key][:-1]
        kept = order[by_key[first].sort().values[: self.k]]
        self.x, self.log_reward, self._keys = x[kept], log_reward[kept], keys[kept]

    def _merge(self) -> None:
        self.seen = torch.unique(
            torch.cat([self.seen.to(self._new[0]) if self._new else self.seen, *self._new])
        )
        self._new, self._new_rows = [], 0

    @property
    def different(self) -> int:
        """How many different objects were seen."""
        if self._new:
            self._merge()
        return len(self.seen)

    @property
    def modes(self) -> int:
        """How many different modes were seen."""
        return int(self.modes_seen.sum())

    def mean_reward(self) -> float:
        """Mean R of the objects kept, 0 where there are none."""
        return float(self.log_reward.double().exp().mean()) if len(self.log_reward) else 0.0

    def state_dict(self) -> dict[str, Any]:
        if self._new:
            self._merge()
        keys = self._keys if self.x is not None else None
        return {
            "x": self.x,
            "log_reward": self.log_reward,
            "keys": keys,
            "seen": self.seen,
            "modes": self.modes_seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.x, self.log_reward = state["x"], state["log_reward"]
        self.seen, self.modes_seen = state["seen"], state["modes"]
        if self.x is not None:
            self._keys = state["keys"]
