"""The archive: the best objects of a run, and how many different ones it saw."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Archive"]


BATCH = 4096
"""Objects taken in at once."""


class Archive:
    """The ``k`` best different objects seen, and how many different ones and modes there were; saved with a run.

    Of equally good objects the earlier stay. Keys of all objects are kept in one sorted tensor, eight bytes an object.

    Args:
        k: how many of the best objects are kept.
        n_modes: how many modes the task has; they are not counted without.
        modes_of: the mode of each of some objects, -1 for none.
    """

    def __init__(
        self,
        k: int = 1000,
        n_modes: int | None = None,
        modes_of: Callable[[Tensor], Tensor | None] | None = None,
    ) -> None:
        self.k, self._modes_of = k, modes_of
        self._modes = torch.zeros(n_modes or 0, dtype=torch.bool)
        self._best: tuple[Tensor, Tensor, Tensor] | None = None
        self._seen = torch.zeros(0, dtype=torch.int64)
        self._fresh: list[tuple[Tensor, Tensor, Tensor]] = []
        self._fresh_keys: list[Tensor] = []

    def add(self, x: Tensor, log_reward: Tensor, keys: Tensor) -> None:
        """Take in objects ``x`` (B, \\*state_shape) with ``keys`` (B,), equal for equal objects; cheap."""
        self._fresh.append((x, log_reward, keys))
        if len(self._fresh) * len(x) >= BATCH:
            self._take_in()

    def _take_in(self) -> None:
        """Sort what came since the last time into the best objects and the modes."""
        if not self._fresh:
            return
        known = [] if self._best is None else [self._best]
        x, log_reward, keys = (torch.cat(parts) for parts in zip(*known, *self._fresh, strict=True))
        if self._modes_of is not None and len(self._modes):
            modes = self._modes_of(torch.cat([part[0] for part in self._fresh]))
            if modes is not None:
                self._modes = self._modes.to(modes.device)
                self._modes[modes[modes >= 0]] = True
        order = log_reward.argsort(descending=True, stable=True)
        by_key = keys[order].argsort(stable=True)
        ordered = keys[order][by_key]
        first = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
        first[1:] = ordered[1:] != ordered[:-1]
        kept = order[by_key[first].sort().values[: self.k]]
        self._best = x[kept], log_reward[kept], keys[kept]
        self._fresh_keys += [part[2] for part in self._fresh]
        self._fresh = []
        if sum(map(len, self._fresh_keys)) > len(self._seen) // 4:
            self._merge_keys()

    def _merge_keys(self) -> None:
        if self._fresh_keys:
            self._seen = torch.cat([self._seen.to(self._fresh_keys[0]), *self._fresh_keys]).unique()
            self._fresh_keys = []

    @property
    def different(self) -> int:
        """How many different objects were seen."""
        self._take_in()
        self._merge_keys()
        return len(self._seen)

    @property
    def modes(self) -> int:
        """How many different modes were seen."""
        self._take_in()
        return int(self._modes.sum())

    @property
    def x(self) -> Tensor | None:
        """The best objects, the best first; ``None`` before the first."""
        self._take_in()
        return None if self._best is None else self._best[0]

    @property
    def log_reward(self) -> Tensor:
        """log R of the best objects, descending."""
        self._take_in()
        return torch.zeros(0) if self._best is None else self._best[1]

    def state_dict(self) -> dict[str, Any]:
        self._take_in()
        self._merge_keys()
        return {"best": self._best, "seen": self._seen, "modes": self._modes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._seen, self._modes = state["best"], state["seen"], state["modes"]
        self._fresh, self._fresh_keys = [], []
