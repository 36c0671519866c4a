"""Bit sequences (Malkin et al., 2022): words written into a string whose reward is its distance to hidden modes."""

from typing import Any

import torch
from headwater import Config
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from headwater_gfn.environment import Environment

__all__ = ["BitSequence", "BitSequenceConfig", "make_modes"]

PATTERNS = ("00000000", "11111111", "11110000", "00001111", "00111100")


class BitSequenceConfig(Config):
    """The string, how it is written, and its modes."""

    bits: PositiveInt = Field(32, description="n, the length of a string; a multiple of 8 and of word")
    word: PositiveInt = Field(4, description="k, the bits that one action writes")
    any_order: bool = Field(True, description="words are written in any order; left to right without")
    n_modes: PositiveInt = Field(60, description="M, the number of modes")
    beta: PositiveFloat = Field(3.0, description="R = exp(beta (1 - distance / bits))")
    found_within: NonNegativeInt | None = Field(
        None, description="Hamming distance below which a mode counts as found; 28 bits in 120 without"
    )
    mode_seed: NonNegativeInt = Field(0, description="seed of the modes")

    @model_validator(mode="after")
    def _divides(self) -> "BitSequenceConfig":
        if self.bits % 8 or self.bits % self.word:
            raise ValueError(f"bits = {self.bits} must be a multiple of 8 and of word = {self.word}")
        if self.word > 16:
            raise ValueError(f"word = {self.word} makes {2**self.word} words; at most 16 bits")
        return self


def make_modes(n_modes: int, bits: int, seed: int) -> Tensor:
    """Modes (n_modes, bits) of 0 and 1, each made of bits/8 random picks from five patterns of 8 bits."""
    patterns = torch.tensor([[int(c) for c in p] for p in PATTERNS])
    generator = torch.Generator().manual_seed(seed)
    return patterns[torch.randint(len(PATTERNS), (n_modes, bits // 8), generator=generator)].flatten(1)


class BitSequence(Environment):
    """States (B, n/k): the word in each slot, 2^k for an empty one. Action ``slot * 2^k + word`` writes a word.

    The reward of a partial string counts the distance to a mode over the written words alone.
    """

    stops = False

    def __init__(self, config: BitSequenceConfig) -> None:
        super().__init__(config)
        self.slots, self.words = config.bits // config.word, 2**config.word
        self.n_actions = self.slots * self.words
        self.n_backward = self.slots
        self.max_len = self.slots
        self.state_shape = (self.slots,)
        self.n_features = self.slots * (self.words + 1)
        self.n_places, self.n_values = self.slots, self.words
        self.n_states = (self.words + 1) ** self.slots if config.any_order else None
        self._modes = make_modes(config.n_modes, config.bits, config.mode_seed)
        shift = torch.arange(config.word - 1, -1, -1)
        letters = (torch.arange(self.words).unsqueeze(1) >> shift) & 1
        # wrong[slot, word, mode]: bits of the word that differ from the mode there; the empty word differs in none.
        per_slot = self._modes.reshape(config.n_modes, self.slots, 1, config.word)
        wrong = (per_slot != letters).sum(-1).permute(1, 2, 0)
        self._wrong = torch.cat([wrong, torch.zeros_like(wrong[:, :1])], 1).to(torch.float32)
        self._letters = letters

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.full((n, self.slots), self.words, dtype=torch.int64, device=device)

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        slot, word = a // self.words, a % self.words
        return s.scatter(1, slot.unsqueeze(1), word.unsqueeze(1))

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        return s.scatter(1, b.unsqueeze(1), self.words)

    def forward_mask(self, s: Tensor) -> Tensor:
        empty = s == self.words
        if not self.config.any_order:
            empty = empty & (empty.cumsum(1) == 1)
        return empty.unsqueeze(2).expand(-1, -1, self.words).reshape(len(s), -1)

    def backward_mask(self, s: Tensor) -> Tensor:
        written = s < self.words
        if not self.config.any_order:
            written = written & (written.flip(1).cumsum(1).flip(1) == 1)
        return written

    def backward_action(self, s: Tensor, a: Tensor) -> Tensor:
        return a // self.words

    def forward_action(self, s: Tensor, b: Tensor) -> Tensor:
        return b * self.words + s.gather(1, b.unsqueeze(1)).squeeze(1)

    def terminal(self, s: Tensor) -> Tensor:
        return (s < self.words).all(1)

    def observe(self, s: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(s, self.words + 1).flatten(1).float()

    def distances(self, s: Tensor) -> Tensor:
        """Hamming distance (B, M) of the written words to each mode."""
        wrong = self._wrong.to(s.device)
        return wrong[torch.arange(self.slots, device=s.device), s].sum(1)

    def log_reward(self, x: Tensor) -> Tensor:
        return self.log_partial_reward(x)

    def log_partial_reward(self, s: Tensor) -> Tensor:
        return self.config.beta * (1.0 - self.distances(s).amin(1) / self.config.bits)

    def modes(self, x: Tensor) -> Tensor:
        found = self.config.found_within
        threshold = 28 * self.config.bits / 120 if found is None else found
        distance, mode = self.distances(x).min(1)
        return torch.where(distance < threshold, mode, -1)

    @property
    def n_modes(self) -> int:
        return int(self.config.n_modes)

    def space(self) -> dict[str, Any]:
        return {"bits": self.config.bits, "word": self.config.word, "any_order": self.config.any_order}

    def letters(self, x: Tensor) -> Tensor:
        return x

    def from_letters(self, letters: Tensor) -> Tensor:
        return letters

    def possible(self, s: Tensor, letters: Tensor) -> Tensor:
        s = s.unsqueeze(2)
        return (s == self.words) | (s == torch.arange(self.words, device=s.device))

    def describe(self, x: Tensor) -> list[str]:
        letters = self._letters.to(x.device)[x].flatten(1)
        return ["".join(map(str, row)) for row in letters.tolist()]

    def parse(self, words: list[str]) -> Tensor:
        n, k = self.config.bits, self.config.word
        for word in words:
            if len(word) != n or set(word) - {"0", "1"}:
                raise ValueError(f"{word!r} is no string of {n} bits")
        rows = [[int(word[i : i + k], 2) for i in range(0, n, k)] for word in words]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.slots)
