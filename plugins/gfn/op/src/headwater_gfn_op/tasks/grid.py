"""A grid over two coordinates whose end points have several objectives: test functions, or functions of the user."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from headwater import ConfigError
from headwater.errors import near
from headwater_gfn.tasks.objectives import ObjectiveConfig, ObjectiveEnvironment, user_function
from pydantic import Field
from torch import Tensor

__all__ = ["FUNCTIONS", "ObjectiveGrid", "ObjectiveGridConfig", "beale", "branin", "currin", "shubert"]


class ObjectiveGridConfig(ObjectiveConfig):
    """The grid and its objectives."""

    side: int = Field(32, ge=3, le=256, description="H, the values of each coordinate")
    objectives: tuple[str, ...] = Field(
        ("branin", "currin"),
        min_length=1,
        description="branin, currin, shubert, beale, or functions of points (B, 2) in [-1, 1] as 'module:function'",
    )


def branin(x: Tensor, y: Tensor) -> Tensor:
    """1 - Branin / 308.13 at a = 15 (x/2 + 1/2) - 5, b = 15 (y/2 + 1/2), for x, y in [-1, 1]."""
    a, b = 15 * (x / 2 + 0.5) - 5, 15 * (y / 2 + 0.5)
    bowl = (b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6) ** 2
    return 1 - (bowl + 10 * (1 - 1 / (8 * math.pi)) * a.cos() + 10) / 308.13


def currin(x: Tensor, y: Tensor) -> Tensor:
    """Currin's function over 13.77, at (x + 1) / 2, (y + 1) / 2, for x, y in [-1, 1]."""
    a, b = x / 2 + 0.5, y / 2 + 0.5
    rational = (2300 * a**3 + 1900 * a**2 + 2092 * a + 60) / (100 * a**3 + 500 * a**2 + 4 * a + 20)
    return (1 - torch.exp(-1 / (2 * b + 1e-10))) * rational / 13.77


def shubert(x: Tensor, y: Tensor) -> Tensor:
    """(Shubert + 186.8) / 397 at (-1.5 x, -1.5 y), for x, y in [-1, 1]."""

    def part(p: Tensor) -> Tensor:
        i = torch.arange(1, 6, dtype=p.dtype, device=p.device)
        return (i * torch.cos((i + 1) * p.unsqueeze(-1) + i)).sum(-1)

    return (part(-1.5 * x) * part(-1.5 * y) + 186.8) / 397


def beale(x: Tensor, y: Tensor) -> Tensor:
    """Beale's function over 38.8, for x, y in [-1, 1]; larger counts as better here."""
    terms = ((c - x + x * y**power).square() for c, power in ((1.5, 1), (2.25, 2), (2.625, 3)))
    return sum(terms, torch.zeros_like(x)) / 38.8


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "branin": branin,
    "currin": currin,
    "shubert": shubert,
    "beale": beale,
}


def _objective(name: str) -> Callable[[Tensor], Any]:
    if name in FUNCTIONS:
        function = FUNCTIONS[name]
        return lambda x: function(x[:, 0], x[:, 1]).numpy()
    if ":" not in name:
        raise ConfigError(
            f"task.objectives: there is no function {name!r}{near(name, FUNCTIONS)}; or 'module:function'"
        )
    return user_function(name, "task.objectives")


class ObjectiveGrid(ObjectiveEnvironment):
    """States (B, 3): two coordinates, and 1 at the end once STOP was taken.

    Actions 0 and 1 add 1 to a coordinate, action 2 is STOP. In a state with a coordinate at its end only STOP is left,
    so the far corner cannot be reached: there are H^2 - 1 objects.
    """

    stops = True
    config: ObjectiveGridConfig

    def __init__(self, config: ObjectiveGridConfig) -> None:
        """Look up the objectives.

        Raises:
            ConfigError: an objective is none that there is.
            PluginError: a function cannot be imported.
        """
        super().__init__(config)
        side = config.side
        self.n_actions, self.n_backward, self.max_len = 3, 2, 2 * (side - 2) + 2
        self.state_shape = (3,)
        self.n_features = 2 * side
        self.n_states = 2 * (side**2 - 1)
        self._functions = [_objective(name) for name in config.objectives]
        self.set_objectives([name.rpartition(":")[2] for name in config.objectives])

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(n, 3, dtype=torch.int64, device=device)

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        return s.scatter_add(1, a.unsqueeze(1), torch.ones_like(a).unsqueeze(1))

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        return s.scatter_add(1, b.unsqueeze(1), -torch.ones_like(b).unsqueeze(1))

    def unstop(self, s: Tensor) -> Tensor:
        return torch.cat([s[:, :-1], torch.zeros_like(s[:, -1:])], 1)

    def forward_mask(self, s: Tensor) -> Tensor:
        free = (s[:, :-1] < self.config.side - 1).all(1, keepdim=True).expand(-1, 2)
        return torch.cat([free, torch.ones_like(free[:, :1])], 1)

    def backward_mask(self, s: Tensor) -> Tensor:
        at_end = s[:, :-1] == self.config.side - 1
        # A parent with a coordinate at its end does not exist, for nothing but STOP leaves such a state.
        return (s[:, :-1] > 0) & ~at_end.flip(1)

    def terminal(self, s: Tensor) -> Tensor:
        return s[:, -1] == 1

    def observe(self, s: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(s[:, :-1], self.config.side).flatten(1).float()

    def coordinates(self, s: Tensor) -> Tensor:
        """The coordinates (B, 2) in [-1, 1], float64."""
        return s[:, :-1].double() / (self.config.side - 1) * 2 - 1

    def raw_objectives(self, x: Tensor) -> Tensor:
        points = self.coordinates(x).cpu()
        columns = [torch.from_numpy(np.asarray(f(points), dtype=np.float64)) for f in self._functions]
        return torch.stack(columns, 1).to(x.device)

    def describe(self, x: Tensor) -> list[str]:
        return [" ".join(map(str, row)) for row in x[:, :-1].tolist()]

    def parse(self, words: list[str]) -> Tensor:
        end = self.config.side - 1
        rows = [[int(v) for v in word.split()] for word in words]
        for word, row in zip(words, rows, strict=True):
            if len(row) != 2 or not all(0 <= v <= end for v in row) or row == [end, end]:
                raise ValueError(
                    f"{word!r} is no end point; it needs 2 numbers from 0 to {end}, and the corner {end} {end} cannot "
                    "be reached"
                )
        return torch.tensor([[*row, 1] for row in rows], dtype=torch.int64).reshape(-1, 3)

    def pictures(self, policies: dict[str, Any]) -> Any:
        from headwater_gfn_op.tasks.pictures import grid_maps

        return [*grid_maps(self, policies), *super().pictures(policies)]
