"""Set generation (Pan et al., 2023): sets of K out of A items, with an energy that is a sum over the items."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from headwater import Config, ConfigError, DataError, PluginError
from headwater.reporting import Panel
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from headwater_gfn.environment import Environment
from headwater_gfn.functions import imported

__all__ = [
    "SetGeneration",
    "SetGenerationConfig",
    "log_elementary_symmetric",
    "make_energies",
    "read_energies",
]

SIZES = {"tiny": (12, 6), "small": (30, 20), "medium": (80, 60), "large": (100, 80)}
LEVELS = 10


class SetGenerationConfig(Config):
    """How many items there are, how many a set holds, and where the energies come from."""

    size: Literal["tiny", "small", "medium", "large"] = Field(
        "tiny",
        description="the paper's sizes (30, 20), (80, 60), (100, 80), and (12, 6), which can be enumerated",
    )
    n_items: PositiveInt | None = Field(None, description="A, in the place of that of size; needs set_size")
    set_size: PositiveInt | None = Field(None, description="K, in the place of that of size or file")
    energies: Path | None = Field(
        None,
        description="CSV with the columns item and energy, or JSON (a list, or the sizes of the official code)",
    )
    energy: str | None = Field(
        None,
        description="import string 'module:function' of an energy of any 0/1 matrix (B, A) of sets, partial too",
    )
    energy_seed: NonNegativeInt = Field(0, description="seed of the drawn energies, where no file gives them")


def make_energies(n_items: int, seed: int) -> Tensor:
    """Energies (A,), float64: ten levels drawn from U(-1, 1), dealt to the items at random."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.rand(LEVELS, generator=generator, dtype=torch.float64) * 2 - 1
    return levels[torch.randint(LEVELS, (n_items,), generator=generator)]


def read_energies(path: Path, size: str | None = None) -> tuple[Tensor, int | None]:
    """Read energies (A,) from a CSV (``item,energy``) or JSON file; with them the set size, if the file gives it.

    Raises:
        DataError: the file is missing or empty, a value is no finite number, or an item is given twice or left out.
    """
    set_size = None
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
            if isinstance(content, dict):
                if size not in content:
                    raise DataError(f"{path} has no size {size!r}; it has {', '.join(content)}")
                content, set_size = content[size]["energies"], int(content[size]["set_size"])
            values = [float(v) for v in content]
        else:
            rows = [(int(row["item"]), float(row["energy"])) for row in csv.DictReader(text.splitlines())]
            rows.sort()
            if [i for i, _ in rows] != list(range(len(rows))):
                raise DataError(f"{path}: the items must be 0 to {len(rows) - 1}, each once")
            values = [v for _, v in rows]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise DataError(f"{path} has no column or entry {error}; it needs item and energy") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}") from error
    energies = torch.tensor(values, dtype=torch.float64)
    if not len(energies) or not bool(torch.isfinite(energies).all()):
        raise DataError(f"{path}: needs at least one energy, and finite ones")
    return energies, set_size


def log_elementary_symmetric(log_weights: Tensor, k: int) -> Tensor:
    """log of the elementary symmetric polynomials of order 0..k (k + 1,) of ``exp(log_weights)`` (A,).

    Order k is the sum over all sets of k items of the product of their weights: with weights exp(-e), the exact Z.
    """
    out = torch.full((k + 1,), -torch.inf, dtype=torch.float64)
    out[0] = 0.0
    for w in log_weights.to(torch.float64):
        out[1:] = torch.logaddexp(out[1:], out[:-1] + w)
    return out


class SetGeneration(Environment):
    """States (B, A) of 0 and 1: which items are in the set. Action i adds item i; sets of K items are terminal."""

    stops = False
    adds_items = True

    def __init__(self, config: SetGenerationConfig) -> None:
        super().__init__(config)
        k: int | None = None
        if config.energies is not None:
            energies, k = read_energies(config.energies, config.size)
            if k is None and len(energies) == SIZES[config.size][0]:
                k = SIZES[config.size][1]
        elif config.n_items is not None:
            energies = make_energies(config.n_items, config.energy_seed)
        else:
            n, k = SIZES[config.size]
            energies = make_energies(n, config.energy_seed)
        n, k = len(energies), config.set_size or k
        if config.n_items not in (None, n):
            raise ConfigError(f"task.n_items = {config.n_items}, but {config.energies} has {n} energies")
        if k is None or k > n:
            given = "is not given" if k is None else f"= {k}"
            raise ConfigError(f"task.set_size {given}; with {n} items it must be from 1 to {n}")
        self.energies, self.n_items, self.set_size = energies, n, k
        self.n_actions = self.n_backward = self.n_features = n
        self.max_len = self.set_size
        self.state_shape = (n,)
        self.n_states = 2**n if n <= 20 else None
        self._energy = imported(config.energy, "task.energy") if config.energy else None

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.zeros(n, self.n_items, dtype=torch.int64, device=device)

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        return s.scatter(1, a.unsqueeze(1), 1)

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        return s.scatter(1, b.unsqueeze(1), 0)

    def forward_mask(self, s: Tensor) -> Tensor:
        return s == 0

    def backward_mask(self, s: Tensor) -> Tensor:
        return s == 1

    def terminal(self, s: Tensor) -> Tensor:
        return s.sum(1) == self.set_size

    def observe(self, s: Tensor) -> Tensor:
        return s.float()

    def log_reward(self, x: Tensor) -> Tensor:
        return self.log_partial_reward(x)

    def log_partial_reward(self, s: Tensor) -> Tensor:
        if self._energy is None:
            return -(s.to(torch.float64) @ self.energies.to(s.device)).float()
        energy = torch.as_tensor(self._energy(s)).to(s.device, torch.float32)
        if energy.shape != s.shape[:1]:
            raise PluginError(
                f"{self.config.energy} returned the shape {tuple(energy.shape)} for {len(s)} sets; "
                f"it must return one energy a set, ({len(s)},)"
            )
        bad = ~torch.isfinite(energy)
        if bool(bad.any()):
            value, words = float(energy[bad][0]), self.describe(s[bad][:1])[0]
            raise PluginError(f"{self.config.energy} returned {value} for the set {words!r}; an energy must be finite")
        return -energy

    def log_partition(self) -> float | None:
        if self._energy is not None:
            return None
        return float(log_elementary_symmetric(-self.energies, self.set_size)[-1])

    def highest_log_reward(self) -> float | None:
        if self._energy is not None:
            return None
        return -float(self.energies.sort().values[: self.set_size].sum())

    def describe(self, x: Tensor) -> list[str]:
        return [" ".join(str(i) for i, v in enumerate(row) if v) for row in x.tolist()]

    def parse(self, words: list[str]) -> Tensor:
        x = torch.zeros(len(words), self.n_items, dtype=torch.int64)
        for row, word in zip(x, words, strict=True):
            items = [int(v) for v in word.split()]
            fit = all(0 <= i < self.n_items for i in items) and all(a < b for a, b in pairwise(sorted(items)))
            if len(items) != self.set_size or not fit:
                raise ValueError(
                    f"{word!r} is no set; it needs {self.set_size} different items from 0 to {self.n_items - 1}"
                )
            row[items] = 1
        return x

    def pictures(self, policies: dict[str, Any]) -> list[Panel]:
        from headwater_gfn.reporting import ranking_panels

        return ranking_panels(self, policies)
