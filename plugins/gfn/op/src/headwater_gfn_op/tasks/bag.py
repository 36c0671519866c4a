"""Bags: multisets of letters, of which a few hidden ones are worth the most (Shen et al., 2023)."""

from itertools import combinations_with_replacement
from math import comb

import torch
from headwater import ConfigError
from headwater_gfn.tasks.objectives import ObjectiveConfig, ObjectiveEnvironment
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

__all__ = ["Bag", "BagConfig", "make_modes"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHARE = 0.25
LOW, MIDDLE, HIGH = 0.01, 10.0, 30.0


class BagConfig(ObjectiveConfig):
    """How large a bag is, and which bags are modes."""

    letters: int = Field(7, ge=2, le=26, description="how many letters there are")
    size: PositiveInt = Field(13, description="letters in a bag")
    repeats: PositiveInt = Field(7, description="a bag with so many of one letter is worth 10, a mode 30, others 0.01")
    mode_seed: NonNegativeInt = Field(0, description="seed of the modes: a quarter of what else such bags may hold")

    @model_validator(mode="after")
    def _fits(self) -> "BagConfig":
        if self.repeats > self.size:
            raise ValueError(f"repeats = {self.repeats} is more than size = {self.size}")
        return self


def make_modes(letters: int, size: int, repeats: int, seed: int) -> Tensor:
    """The modes (M, letters) as counts, each once.

    For each letter a quarter (rounded up) of the multisets of ``size - repeats`` other letters is drawn; a mode is one
    of these and ``repeats`` of the letter.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for letter in range(letters):
        others = [i for i in range(letters) if i != letter]
        fillers = list(combinations_with_replacement(others, size - repeats))
        chosen = torch.randperm(len(fillers), generator=generator)[: -(-len(fillers) // round(1 / SHARE))]
        for i in chosen.tolist():
            counts = torch.bincount(torch.tensor(fillers[i], dtype=torch.int64), minlength=letters)
            counts[letter] += repeats
            found.append(counts)
    return torch.unique(torch.stack(found), dim=0)


class Bag(ObjectiveEnvironment):
    """States (B, letters): how many of each letter are in the bag. Action i adds letter i; a full bag is terminal."""

    stops = False
    config: BagConfig

    def __init__(self, config: BagConfig) -> None:
        super().__init__(config)
        k, n = config.letters, config.size
        self.n_actions = self.n_backward = self.n_features = k
        self.max_len = n
        self.state_shape = (k,)
        self.n_states = comb(n + k, k)
        if comb(n + k - 1, k - 1) > 2_000_000:
            raise ConfigError(f"task: {k} letters and size {n} make {comb(n + k - 1, k - 1):,} bags, too many")
        self.set_objectives(["worth"])
        modes = make_modes(k, n, config.repeats, config.mode_seed)
        self._mode_keys, self._mode_order = self.key(modes).sort()

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(n, self.n_actions, dtype=torch.int64, device=device)

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        return s.scatter_add(1, a.unsqueeze(1), torch.ones_like(a).unsqueeze(1))

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        return s.scatter_add(1, b.unsqueeze(1), -torch.ones_like(b).unsqueeze(1))

    def forward_mask(self, s: Tensor) -> Tensor:
        return torch.ones_like(s, dtype=torch.bool)

    def backward_mask(self, s: Tensor) -> Tensor:
        return s > 0

    def terminal(self, s: Tensor) -> Tensor:
        return s.sum(1) == self.config.size

    def observe(self, s: Tensor) -> Tensor:
        return s.float()

    def modes(self, x: Tensor) -> Tensor:
        keys = self._mode_keys.to(x.device)
        wanted = self.key(x)
        place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        return torch.where(keys[place] == wanted, self._mode_order.to(x.device)[place], -1)

    @property
    def n_modes(self) -> int:
        return len(self._mode_keys)

    def raw_objectives(self, x: Tensor) -> Tensor:
        many = x.amax(1) >= self.config.repeats
        worth = torch.tensor([LOW, MIDDLE, HIGH], dtype=torch.float64, device=x.device)
        kind = torch.where(self.modes(x) >= 0, 2, many.long())
        return worth[kind].unsqueeze(1)

    def describe(self, x: Tensor) -> list[str]:
        return ["".join(letter * n for letter, n in zip(LETTERS, row, strict=False)) for row in x.tolist()]

    def parse(self, words: list[str]) -> Tensor:
        known = LETTERS[: self.config.letters]
        for word in words:
            if len(word) != self.config.size or set(word) - set(known):
                raise ValueError(f"{word!r} is no bag of {self.config.size} letters of {known}")
        rows = [[word.count(letter) for letter in known] for word in words]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.config.letters)
