"""Replay with an archive of the non-dominated objects."""

from typing import Any

import torch
from headwater_gfn.replay import Replay
from torch import Tensor

from headwater_gfn_op.objective import dominates

__all__ = ["ParetoReplay"]


class ParetoReplay(Replay):
    """A ring of objects, and beside it the different objects seen so far that no other one seen dominates.

    The archive holds the objects themselves, so what the ring overwrites does not spoil it.

    Args:
        capacity: most objects in the ring, and most in the archive, of which the latest stay.
        share: the part of a batch that is drawn from the archive, rounded down; the rest is uniform from the ring.
    """

    def __init__(self, capacity: int, share: float = 0.1) -> None:
        super().__init__(capacity)
        self.share = share
        self.front: Tensor | None = None
        self.front_values = torch.zeros(0, 0, dtype=torch.float64)
        self.front_log_reward = torch.zeros(0)
        self.front_keys = torch.zeros(0, dtype=torch.int64)

    def add_to_front(self, x: Tensor, values: Tensor, log_reward: Tensor, keys: Tensor) -> None:
        """Take in objects with objectives ``values`` (B, D)."""
        if self.front is not None:
            x, values = torch.cat([self.front, x]), torch.cat([self.front_values, values])
            log_reward, keys = torch.cat([self.front_log_reward, log_reward]), torch.cat([self.front_keys, keys])
        order = keys.argsort(stable=True)
        first = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
        first[1:] = keys[order][1:] != keys[order][:-1]
        kept = order[first].sort().values
        best = ~dominates(values[kept].unsqueeze(1), values[kept].unsqueeze(0)).any(0)
        kept = kept[best][-self.capacity :]
        self.front, self.front_values = x[kept], values[kept]
        self.front_log_reward, self.front_keys = log_reward[kept], keys[kept]

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.front is None:
            return super().draw(n, generator)
        from_front = int(self.share * n)
        index = torch.randint(len(self.front), (from_front,), generator=generator, device=self.front.device)
        x, log_reward = super().draw(n - from_front, generator)
        return torch.cat([x, self.front[index]]), torch.cat([log_reward, self.front_log_reward[index]])

    def state_dict(self) -> dict[str, Any]:
        own = (self.front, self.front_values, self.front_log_reward, self.front_keys)
        return {**super().state_dict(), "front": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.front, self.front_values, self.front_log_reward, self.front_keys = state["front"]
