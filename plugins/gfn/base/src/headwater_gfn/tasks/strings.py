"""Strings of one length over an alphabet, with scores from a table, from functions of the user, or from a ranking."""

from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from headwater import ConfigError, DataError
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from headwater_gfn.tasks.objectives import ObjectiveConfig, ObjectiveEnvironment, Remembered, user_function
from headwater_gfn.tasks.score_tables import ScoreTable, read_e_scores, read_ranking, read_scores, read_words

__all__ = ["Strings", "StringsConfig", "TFBind8", "TFBind8Config", "make_landscape"]

MOST = 2**24
"""Most strings whose scores are held in a table."""


class StringsConfig(ObjectiveConfig):
    """The strings, how they are written, and their scores."""

    alphabet: str = Field("ACGT", min_length=2, description="the letters, each one character")
    length: PositiveInt = Field(6, description="letters in a whole string")
    build: Literal["prepend-append", "append"] = Field(
        "prepend-append", description="where a letter may be added: at both ends, or at the end alone"
    )
    table: Path | None = Field(
        None, description="CSV (x, score, ...) or NPZ with the scores of all strings; a drawn landscape without"
    )
    columns: tuple[str, ...] | None = Field(None, description="the columns of table that count; all without")
    objectives: tuple[str, ...] | None = Field(
        None, description="functions of a list of strings as 'package.module:function', in the place of a table"
    )
    reward: str | None = Field(
        None,
        description="the one score that is the reward: the name of a column of table, or a function of a list of "
        "strings as 'package.module:function'; in the place of columns and objectives",
    )
    ranking: Path | None = Field(
        None, description="CSV (better, worse) of pairs of strings, in the place of scores; others are below these"
    )
    mode_list: Path | None = Field(
        None, description="text file with one string a line: the modes; those that the table lists without"
    )
    mode_share: float = Field(
        0.005, gt=0, lt=1, description="share of the best strings that are modes, where the table lists none"
    )
    network: Literal["direct", "children"] = Field(
        "direct",
        description="direct: a perceptron gives all logits; children: a scorer of each child (the official code)",
    )
    landscape_seed: NonNegativeInt = Field(0, description="seed of the drawn landscape")

    @model_validator(mode="after")
    def _one_source(self) -> "StringsConfig":
        given = [name for name in ("table", "objectives", "ranking") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; the scores have one source")
        if self.columns is not None and self.table is None:
            raise ValueError("columns are those of table, which is not given")
        self._check_reward()
        if self.objectives is not None and not self.objectives:
            raise ValueError("objectives needs at least one function")
        if len(set(self.letters)) < len(self.letters):
            raise ValueError(f"alphabet = {self.alphabet!r} has a letter twice")
        return self

    def _check_reward(self) -> None:
        """See that ``reward`` fits the other settings; ``ValueError`` where it does not."""
        if self.reward is None:
            return
        taken = [name for name in ("columns", "objectives", "ranking") if getattr(self, name) is not None]
        if taken:
            raise ValueError(f"reward and {taken[0]} are given; the scores have one source")
        if ":" in self.reward and self.table is not None:
            raise ValueError("reward is a function and table is given; the scores have one source")
        if ":" not in self.reward and self.table is None:
            raise ValueError(f"reward = {self.reward!r} is the column of a table, which is not given")

    @property
    def functions(self) -> tuple[str, ...] | None:
        """The functions of the user that score strings, as import strings."""
        return (self.reward,) if self.reward is not None and ":" in self.reward else self.objectives

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters; strings are written with spaces between them where one is longer than a character."""
        return tuple(self.alphabet)


class TFBind8Config(StringsConfig):
    """DNA of eight letters with measured binding, from the user's table.

    Beside the forms of every table: an NPZ with the E-scores of many factors, or the text file of one factor.
    """

    length: PositiveInt = Field(8, description="letters in a whole string")


def make_landscape(letters: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """A drawn landscape: fields (length, K) and couplings (length, K, length, K) of standard normal numbers.

    Couplings join each position to every other; (i, a, j, b) is zero for i >= j.
    """
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randn(length, letters, generator=generator, dtype=torch.float64)
    couplings = torch.zeros(length, letters, length, letters, dtype=torch.float64)
    for i, j in combinations(range(length), 2):
        couplings[i, :, j] = torch.randn(letters, letters, generator=generator, dtype=torch.float64)
    return fields, couplings


class Strings(ObjectiveEnvironment):
    """States (B, L): the letters from the left, K for an empty place. A string of L letters is terminal.

    Action c < K appends letter c; K + c puts it before the string. Backward action 0 takes away the last letter, 1 the
    first. A string of one letter repeated has one parent; the two actions that lead to it count as one.
    """

    stops = False
    config: StringsConfig

    def __init__(self, config: StringsConfig) -> None:
        """Read the scores.

        Raises:
            ConfigError: there are too many strings for a table.
            DataError: the table or the ranking cannot be used.
            PluginError: a function cannot be imported.
        """
        super().__init__(config)
        self.alphabet = config.letters
        self.n_letters, self.length = len(self.alphabet), config.length
        self._both = config.build == "prepend-append"
        self.n_actions = self.n_letters * (2 if self._both else 1)
        self.n_backward = 2 if self._both else 1
        self.max_len = self.length
        self.state_shape = (self.length,)
        self.n_features = self.length * self.n_letters
        self.n_places, self.n_values = self.length, self.n_letters
        self._separator = "" if all(len(letter) == 1 for letter in self.alphabet) else " "
        self._code = {letter: i for i, letter in enumerate(self.alphabet)}
        k, n = self.n_letters, self.length
        # What only functions of the user know is scored as it is met, not string by string through the whole space.
        self.n_states = None if config.functions else (k ** (n + 1) - 1) // (k - 1)
        self._place = k ** torch.arange(n - 1, -1, -1) if k**n < 2**62 else None
        self._mode_list: Tensor | None = None
        self._set_scores(config)

    def _set_scores(self, config: StringsConfig) -> None:
        n = self.n_letters**self.length
        self._table: Tensor | None = None
        self._functions: Remembered | None = None
        if config.functions is not None:
            setting = "task.objectives" if config.reward is None else "task.reward"
            self._functions = Remembered([user_function(name, setting) for name in config.functions])
            self.set_objectives([name.rpartition(":")[2] for name in config.functions])
            return
        if n > MOST:
            raise ConfigError(
                f"{self.n_letters} letters and length {self.length} make {n:,} strings, more than a table of "
                f"{MOST:,} holds; give the scores as functions (task.objectives)"
            )
        if config.ranking is not None:
            objects, above = read_ranking(config.ranking, self._number)
            self._table = torch.zeros(n, len(objects), dtype=torch.float32)
            self._table[objects] = above.float()
            self.set_objectives([f"above {self._word(i)}" for i in objects])
            return
        if config.table is not None:
            found = self._read(config.table, config.columns if config.reward is None else (config.reward,))
            self._table, self._mode_list = found.values, found.modes
            self.set_objectives(found.names)
        else:
            fields, couplings = make_landscape(self.n_letters, self.length, config.landscape_seed)
            self._table = self._of_landscape(fields, couplings)
            self.set_objectives(["score"])
        if config.mode_list is not None:
            self._mode_list = read_words(config.mode_list, self._number)
        if self._mode_list is None and len(self.names) == 1:
            score = self._table[:, 0] * self._signs[0]
            count = max(1, round(config.mode_share * n))
            self._mode_list = score.topk(count).indices
        if self._mode_list is not None:
            self._mode_of = torch.full((n,), -1).scatter(0, self._mode_list, torch.arange(len(self._mode_list)))

    def _read(self, path: Path, columns: tuple[str, ...] | None) -> ScoreTable:
        """The scores of all strings from the user's table; of DNA of eight letters E-scores as published, too."""
        if self.alphabet == tuple("ACGT") and self.length == 8:
            found = read_e_scores(path, self._number, columns)
            if found is not None:
                return found
        return read_scores(path, self.n_letters**self.length, self._number, columns)

    def _of_landscape(self, fields: Tensor, couplings: Tensor) -> Tensor:
        """The scores (K^L, 1) of a landscape on the way from the lowest to the highest that its terms allow."""
        k, n = self.n_letters, self.length
        strings = torch.arange(k**n).unsqueeze(1) // k ** torch.arange(n - 1, -1, -1) % k
        place = torch.arange(n)
        energy = fields[place, strings].sum(1)
        lowest, highest = fields.amin(1).sum(), fields.amax(1).sum()
        for i, j in combinations(range(n), 2):
            pair = couplings[i, :, j]
            energy = energy + pair[strings[:, i], strings[:, j]]
            lowest, highest = lowest + pair.min(), highest + pair.max()
        return ((energy - lowest) / (highest - lowest)).unsqueeze(1)

    @property
    def measurable(self) -> bool:
        return super().measurable and self.config.ranking is None

    # The environment

    def _size(self, s: Tensor) -> Tensor:
        return (s < self.n_letters).sum(1, keepdim=True)

    def _constant(self, s: Tensor) -> Tensor:
        """Whether all letters of ``s`` are the same (B,); true of the empty string."""
        return ((s == s[:, :1]) | (s == self.n_letters)).all(1)

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.full((n, self.length), self.n_letters, dtype=torch.int64, device=device)

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        letter = (a % self.n_letters).unsqueeze(1)
        appended = s.scatter(1, self._size(s).clamp_max(self.length - 1), letter)
        if not self._both:
            return appended
        before = torch.cat([letter, s[:, :-1]], 1)
        return torch.where((a >= self.n_letters).unsqueeze(1), before, appended)

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        empty = torch.full_like(s[:, :1], self.n_letters)
        shorter = s.scatter(1, (self._size(s) - 1).clamp_min(0), self.n_letters)
        if not self._both:
            return shorter
        return torch.where((b == 1).unsqueeze(1), torch.cat([s[:, 1:], empty], 1), shorter)

    def forward_mask(self, s: Tensor) -> Tensor:
        return torch.ones(len(s), self.n_actions, dtype=torch.bool, device=s.device)

    def backward_mask(self, s: Tensor) -> Tensor:
        some = s[:, :1] < self.n_letters
        if not self._both:
            return some
        return torch.cat([some, some & ~self._constant(s).unsqueeze(1)], 1)

    def _repeats(self, s: Tensor, a: Tensor) -> Tensor:
        """Whether the action makes a string of one letter (B,), which both ends lead to."""
        letter = a % self.n_letters
        return self._constant(s) & ((s[:, 0] == letter) | (s[:, 0] == self.n_letters))

    def backward_action(self, s: Tensor, a: Tensor) -> Tensor:
        return ((a >= self.n_letters) & ~self._repeats(s, a)).to(a.dtype)

    def forward_action(self, s: Tensor, b: Tensor) -> Tensor:
        last = s.gather(1, (self._size(s) - 1).clamp_min(0)).squeeze(1)
        return torch.where(b == 1, self.n_letters + s[:, 0], last)

    def same_child(self, s: Tensor, a: Tensor) -> Tensor | None:
        if not self._both:
            return None
        every = torch.arange(self.n_actions, device=s.device)
        a = a.unsqueeze(1)
        twins = (every % self.n_letters == a % self.n_letters) & self._repeats(s, a.squeeze(1)).unsqueeze(1)
        return (every == a) | twins

    def terminal(self, s: Tensor) -> Tensor:
        return s[:, -1] < self.n_letters

    def observe(self, s: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(s, self.n_letters + 1)[..., :-1].flatten(1).float()

    # Scores

    def raw_objectives(self, x: Tensor) -> Tensor:
        if self._functions is not None:
            return self._functions(self.describe(x)).to(x.device)
        assert self._table is not None
        return self._table.to(x.device)[self._numbers(x)].double()

    def _numbers(self, x: Tensor) -> Tensor:
        assert self._place is not None
        return (x * self._place.to(x.device)).sum(1)

    def modes(self, x: Tensor) -> Tensor | None:
        return None if self._mode_list is None else self._mode_of.to(x.device)[self._numbers(x)]

    @property
    def n_modes(self) -> int | None:
        return None if self._mode_list is None else len(self._mode_list)

    def make_policy(self, hidden: tuple[int, ...], activation: str) -> nn.Module:
        if self.config.network == "direct":
            return super().make_policy(hidden, activation)
        from headwater_gfn.child_scorer import ChildScorer

        return ChildScorer(self.n_letters, self.length, self.config.build, hidden[0], activation)

    # Letters

    def space(self) -> dict[str, Any]:
        return {"letters": list(self.alphabet), "length": self.length, "build": self.config.build}

    def letters(self, x: Tensor) -> Tensor:
        return x

    def from_letters(self, letters: Tensor) -> Tensor:
        return letters

    def possible(self, s: Tensor, letters: Tensor) -> Tensor:
        k, n = self.n_letters, self.length
        # demanded[b, o, j]: the letter that place j must have where s stands at offset o, k where there is none.
        offsets = torch.arange(n if self._both else 1, device=s.device).unsqueeze(1)
        place = torch.arange(n, device=s.device) - offsets
        demanded = torch.where(place >= 0, s[:, place.clamp_min(0)], k)
        size = self._size(s).unsqueeze(1)
        fits = offsets <= n - size
        met = (demanded == k) | (demanded == letters.unsqueeze(1))
        before = torch.cat([torch.ones_like(met[..., :1]), met[..., :-1].cummin(2).values], 2) & fits
        allowed = (demanded.unsqueeze(3) == k) | (demanded.unsqueeze(3) == torch.arange(k, device=s.device))
        return (before.unsqueeze(3) & allowed).any(1)

    # Words

    def _word(self, number: int) -> str:
        k = self.n_letters
        return self._separator.join(self.alphabet[number // k**i % k] for i in range(self.length - 1, -1, -1))

    def _letters_of(self, word: str) -> list[int]:
        parts = word.split() if self._separator else list(word)
        if len(parts) == self.length and all(part in self._code for part in parts):
            return [self._code[part] for part in parts]
        # Tables of DNA often write their letters as the digits 0 to 3.
        if len(word) == self.length and word.isdecimal() and not any(letter.isdecimal() for letter in self.alphabet):
            digits = [int(c) for c in word]
            if max(digits) < self.n_letters:
                return digits
        example = self._separator.join(self.alphabet[:3])
        raise ValueError(f"{word!r} is no string of {self.length} letters of {len(self.alphabet)} ({example}...)")

    def _number(self, word: str) -> int:
        number = 0
        for letter in self._letters_of(word):
            number = number * self.n_letters + letter
        return number

    def describe(self, x: Tensor) -> list[str]:
        return [self._separator.join(self.alphabet[i] for i in row) for row in x.tolist()]

    def parse(self, words: list[str]) -> Tensor:
        rows = [self._letters_of(word) for word in words]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.length)


class TFBind8(Strings):
    """Strings of DNA with eight letters; the table is the user's."""

    config: TFBind8Config

    def __init__(self, config: TFBind8Config) -> None:
        if config.table is None and config.functions is None and config.ranking is None:
            raise ConfigError(
                "tfbind8 needs task.table, a CSV (x, score) or NPZ with the scores of all 65,536 strings; the task "
                "'strings' needs none"
            )
        super().__init__(config)

    @classmethod
    def check(cls, root: Path) -> list[str]:
        """What is wrong with the table of scores ``root``."""
        try:
            cls(TFBind8Config.model_validate({"table": root}))
        except DataError as error:
            return [str(error)]
        return []
