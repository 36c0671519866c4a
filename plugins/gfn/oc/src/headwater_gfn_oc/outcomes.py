"""An environment with an outcome: every state carries the object that the trajectory is to end in."""

from typing import Any

import torch
from headwater_gfn.environment import Environment
from torch import Tensor

__all__ = ["Conditioned"]


class Conditioned(Environment):
    """``of``, with states (B, 2 w) that are a state of ``of`` and, behind it, the outcome y, flattened.

    The network sees both, one after the other. Trajectories start with the outcomes ``y`` (B, \\*state_shape), and
    rollouts, backward rollouts and evaluations are those of every environment.
    """

    def __init__(self, of: Environment, y: Tensor) -> None:
        super().__init__(of.config)
        self.of, self.y = of, y
        self.n_actions, self.n_backward, self.stops = of.n_actions, of.n_backward, of.stops
        self.max_len, self.n_features = of.max_len, 2 * of.n_features
        self.width = max(1, len(of.state_shape) and int(torch.tensor(of.state_shape).prod()))
        self.state_shape = (2 * self.width,)

    def paired(self, s: Tensor, y: Tensor) -> Tensor:
        """States of ``of`` (..., \\*state_shape) and outcomes of the same shape, as states of this environment."""
        lead = s.shape[: s.ndim - len(self.of.state_shape)]
        return torch.cat([s.reshape(*lead, self.width), y.reshape(*lead, self.width)], -1)

    def split(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """The state of ``of`` and the outcome in each of the states ``s`` (B, 2 w)."""
        shape = (len(s), *self.of.state_shape)
        return s[:, : self.width].reshape(shape), s[:, self.width :].reshape(shape)

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return self.paired(self.of.start(n, device), self.y[:n])

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        own, y = self.split(s)
        return self.paired(self.of.step(own, a), y)

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        own, y = self.split(s)
        return self.paired(self.of.undo(own, b), y)

    def unstop(self, s: Tensor) -> Tensor:
        own, y = self.split(s)
        return self.paired(self.of.unstop(own), y)

    def forward_mask(self, s: Tensor) -> Tensor:
        return self.of.forward_mask(self.split(s)[0])

    def backward_mask(self, s: Tensor) -> Tensor:
        return self.of.backward_mask(self.split(s)[0])

    def backward_action(self, s: Tensor, a: Tensor) -> Tensor:
        return self.of.backward_action(self.split(s)[0], a)

    def forward_action(self, s: Tensor, b: Tensor) -> Tensor:
        return self.of.forward_action(self.split(s)[0], b)

    def same_child(self, s: Tensor, a: Tensor) -> Tensor | None:
        return self.of.same_child(self.split(s)[0], a)

    def inherits(self, name: str) -> bool:
        return self.of.inherits(name)

    def terminal(self, s: Tensor) -> Tensor:
        return self.of.terminal(self.split(s)[0])

    def hit(self, s: Tensor) -> Tensor:
        """Whether the states ``s`` are the outcomes that they carry (B,)."""
        return (s[:, : self.width] == s[:, self.width :]).all(1)

    def observe(self, s: Tensor) -> Tensor:
        own, y = self.split(s)
        return torch.cat([self.of.observe(own), self.of.observe(y)], 1)

    def log_reward(self, x: Tensor) -> Tensor:
        return torch.where(self.hit(x), 0.0, -torch.inf)

    def describe(self, x: Tensor) -> list[str]:
        return self.of.describe(self.split(x)[0])

    def parse(self, words: list[str]) -> Any:
        return self.of.parse(words)
