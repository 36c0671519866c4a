"""HyperGrid: a walk from the corner of a D-dimensional grid that may end anywhere (Bengio et al., 2021)."""

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from headwater import Config
from headwater.reporting import Panel
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from headwater_gfn.environment import Environment
from headwater_gfn.tasks.objectives import user_function

__all__ = ["HyperGrid", "HyperGridConfig", "clusters_per_axis", "log_reward_of"]

PLATEAUS = {"standard": (1e-1, 0.5, 2.0), "hard": (1e-3, 0.5, 2.0)}
SHAPES = ("corners", "ring", "checkerboard")
BLOCKS = 4
"""Fields along one side of the checkerboard."""


class HyperGridConfig(Config):
    """The grid, and its reward."""

    dimensions: PositiveInt = Field(2, description="D, the number of coordinates")
    side: int = Field(32, ge=2, description="H, the number of values of each coordinate")
    reward: (
        Literal["standard", "hard", "cosine", "waves", "corners", "ring", "checkerboard"]
        | Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    ) = Field(
        "waves",
        description="standard, hard: plateaus near the corners; cosine: ridges; waves: a sum over the coordinates; "
        "corners, ring, checkerboard: high on that shape, low elsewhere; or your function of grid points (B, D), as "
        "'package.module:function'",
    )
    floor: PositiveFloat | None = Field(
        None, description="R0, the lowest reward; without that of the family, 0.001 for your function"
    )


def log_reward_of(reward: str, x: Tensor, side: int, floor: float | None = None) -> Tensor:
    """log R (...) of grid points ``x`` (..., D) with coordinates in 0..side-1, float64.

    ``standard`` and ``hard`` (Bengio et al. 2021): R0 + R1 prod 1[0.25 < a <= 0.5] + R2 prod 1[0.3 < a < 0.4] with
    a = |x / (side - 1) - 0.5|. ``cosine``: R0 + prod (cos(50 a) + 1) N(5 a) with N the standard normal density.
    ``waves``: log R is a sum over the coordinates, 6 sin^2(3 pi x / (side - 1)) - 3 each, so that every step
    changes it by what that step did; every product of the three peaks of an axis is a mode.

    ``corners``, ``ring``, ``checkerboard``: 1 + R0 on the shape, else R0. Corners: a > 0.35 in every coordinate; ring:
    0.25 < |x / (side - 1) - 1/2| < 0.4; checkerboard: the fields of four by four that have the colour of the source.
    """
    u = x.to(torch.float64) / (side - 1)
    a = (u - 0.5).abs()
    if reward == "waves":
        value = (6.0 * torch.sin(3 * math.pi * u).square() - 3.0).sum(-1)
        return value if floor is None else torch.logaddexp(value, value.new_tensor(math.log(floor)))
    if reward in SHAPES:
        if reward == "corners":
            on = (a > 0.35).all(-1)
        elif reward == "ring":
            radius = (u - 0.5).square().sum(-1).sqrt()
            on = (radius > 0.25) & (radius < 0.4)
        else:
            on = (x * BLOCKS // side).sum(-1) % 2 == 0
        return torch.log((1e-2 if floor is None else floor) + on.to(torch.float64))
    if reward == "cosine":
        r0 = 1e-1 if floor is None else floor
        density = torch.exp(-0.5 * (5 * a).square()) / math.sqrt(2 * math.pi)
        return torch.log(r0 + ((torch.cos(50 * a) + 1) * density).prod(-1))
    r0, r1, r2 = PLATEAUS[reward]
    r0 = r0 if floor is None else floor
    outer = ((a > 0.25) & (a <= 0.5)).all(-1)
    inner = ((a > 0.3) & (a < 0.4)).all(-1)
    return torch.log(r0 + r1 * outer + r2 * inner)


def clusters_per_axis(reward: str, side: int) -> Tensor:
    """Which run of high-reward values each coordinate value belongs to (side,), -1 for none.

    A mode of the grid is one such run for each coordinate. High: the inner plateau of ``standard`` and ``hard``, the
    ends of ``corners``, and at least 90 % of the way from the lowest to the highest one-dimensional log-reward for
    ``cosine`` and ``waves``.
    """
    axis = torch.arange(side).unsqueeze(-1)
    u = axis.squeeze(-1).to(torch.float64) / (side - 1)
    if reward in PLATEAUS:
        a = (u - 0.5).abs()
        high = (a > 0.3) & (a < 0.4)
    elif reward == "corners":
        high = (u - 0.5).abs() > 0.35
    else:
        value = log_reward_of(reward, axis, side)
        high = value >= value.max() - 0.1 * (value.max() - value.min())
    number, out = -1, []
    for before, now in pairwise([False, *high.tolist()]):
        number += now and not before
        out.append(number if now else -1)
    return torch.tensor(out)


class HyperGrid(Environment):
    """States (B, D + 1): the coordinates, and 1 at the end once STOP was taken.

    Action d < D adds 1 to coordinate d; action D is STOP, which is always allowed.
    """

    stops = True

    def __init__(self, config: HyperGridConfig) -> None:
        super().__init__(config)
        d, h = config.dimensions, config.side
        self.n_actions, self.n_backward = d + 1, d
        self.max_len = d * (h - 1) + 1
        self.state_shape = (d + 1,)
        self.n_features = d * h
        self.n_places, self.n_values = d, h
        self.n_states = 2 * h**d
        self._function = user_function(config.reward, "task.reward") if ":" in config.reward else None
        # The other rewards have no modes that are products of runs along the axes.
        named = self._function is None and config.reward not in ("ring", "checkerboard")
        self._clusters = clusters_per_axis(config.reward, h) if named else None

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(n, self.n_actions, dtype=torch.int64, device=device)

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        return s.scatter_add(1, a.unsqueeze(1), torch.ones_like(a).unsqueeze(1))

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        return s.scatter_add(1, b.unsqueeze(1), -torch.ones_like(b).unsqueeze(1))

    def unstop(self, s: Tensor) -> Tensor:
        return torch.cat([s[:, :-1], torch.zeros_like(s[:, -1:])], 1)

    def forward_mask(self, s: Tensor) -> Tensor:
        mask = s < self.config.side - 1
        mask[:, -1] = True
        return mask

    def backward_mask(self, s: Tensor) -> Tensor:
        return s[:, :-1] > 0

    def terminal(self, s: Tensor) -> Tensor:
        return s[:, -1] == 1

    def observe(self, s: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(s[:, :-1], self.config.side).flatten(1).float()

    def log_reward(self, x: Tensor) -> Tensor:
        return self.log_partial_reward(x)

    def log_partial_reward(self, s: Tensor) -> Tensor:
        if self._function is not None:
            values = torch.from_numpy(self._function(s[:, :-1].cpu().numpy())).to(s.device)
            return values.clamp_min(1e-3 if self.config.floor is None else self.config.floor).log().float()
        return log_reward_of(self.config.reward, s[:, :-1], self.config.side, self.config.floor).float()

    def modes(self, x: Tensor) -> Tensor | None:
        if self._clusters is None:
            return None
        runs = self._clusters.to(x.device)[x[:, :-1]]
        per_axis = int(self._clusters.max()) + 1
        place = per_axis ** torch.arange(self.config.dimensions, device=x.device)
        return torch.where((runs >= 0).all(1), (runs * place).sum(1), -1)

    @property
    def n_modes(self) -> int | None:
        if self._clusters is None:
            return None
        return (int(self._clusters.max()) + 1) ** int(self.config.dimensions)

    def space(self) -> dict[str, Any]:
        return {"dimensions": self.config.dimensions, "side": self.config.side}

    def letters(self, x: Tensor) -> Tensor:
        return x[:, :-1]

    def from_letters(self, letters: Tensor) -> Tensor:
        return torch.cat([letters, torch.ones_like(letters[:, :1])], 1)

    def possible(self, s: Tensor, letters: Tensor) -> Tensor:
        here, values = s[:, :-1].unsqueeze(2), torch.arange(self.config.side, device=s.device)
        over = self.terminal(s).view(-1, 1, 1)
        return torch.where(over, values == here, values >= here)

    def describe(self, x: Tensor) -> list[str]:
        return [" ".join(map(str, row)) for row in x[:, :-1].tolist()]

    def parse(self, words: list[str]) -> Tensor:
        d, h = self.config.dimensions, self.config.side
        rows = [[int(v) for v in word.split()] for word in words]
        for word, row in zip(words, rows, strict=True):
            if len(row) != d or not all(0 <= v < h for v in row):
                raise ValueError(f"{word!r} is no grid point; it needs {d} numbers from 0 to {h - 1}")
        return torch.tensor([[*row, 1] for row in rows], dtype=torch.int64).reshape(-1, d + 1)

    def landscape(self, values: Tensor) -> list[list[float]]:
        """Sum ``values`` (H^D, over the grid in row-major order) over all but the first two coordinates."""
        h, d = self.config.side, self.config.dimensions
        grid = values.reshape([h] * d)
        plane = grid.sum(tuple(range(2, d))) if d > 2 else grid.reshape(1, h) if d == 1 else grid
        return [[float(v) for v in row] for row in plane.tolist()]

    def pictures(self, policies: dict[str, Any]) -> list[Panel]:
        from headwater_gfn.reporting import landscape_panels

        return landscape_panels(self, policies)
