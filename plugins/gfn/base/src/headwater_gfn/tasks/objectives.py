"""Environments whose objects have objectives: one or several numbers each, of which more is better."""

import csv
import io
import json
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from headwater import Config, ConfigError, PluginError
from headwater.errors import near
from headwater.reporting import Panel
from pydantic import Field, PositiveFloat
from torch import Tensor

from headwater_gfn import pareto
from headwater_gfn.environment import Environment, Samples
from headwater_gfn.functions import imported
from headwater_gfn.table import TableEnvironment

if TYPE_CHECKING:
    from headwater.run import Run

__all__ = ["ObjectiveConfig", "ObjectiveEnvironment", "Remembered", "checked", "objectives_of", "user_function"]

Score = Callable[[Any], Any]


class ObjectiveConfig(Config):
    """What the objectives mean."""

    minimise: tuple[str, ...] = Field((), description="names of the objectives of which less is better")
    preference: tuple[float, ...] | None = Field(
        None, description="weights of the objectives in the scalar reward; equal ones without"
    )
    floor: PositiveFloat = Field(1e-3, description="log R = log(max(weighted sum of the objectives, floor))")
    hypervolume_reference: tuple[float, ...] | None = Field(
        None,
        description="the point above which the hypervolume is measured, of objectives turned so that more is better; "
        "without: 0, or the lowest value of an objective that there is where that is less",
    )


class ObjectiveEnvironment(Environment):
    """An environment whose terminal states have ``objectives`` (B, D); the base of single- and multi-objective tasks.

    A subclass sets :attr:`names` before it calls :meth:`set_objectives`, and defines :meth:`raw_objectives`. The
    scalar reward is max(w u, floor), with the preference w; order-preserving methods do not look at it.
    """

    names: tuple[str, ...]
    """The objectives' names."""

    def set_objectives(self, names: Sequence[str]) -> None:
        """Take over the names, and check the settings that speak of them.

        Raises:
            ConfigError: ``minimise``, ``preference`` or ``hypervolume_reference`` does not fit the objectives.
        """
        self.names = tuple(names)
        config, d = self.config, len(self.names)
        for name in config.minimise:
            if name not in self.names:
                raise ConfigError(f"task.minimise: there is no objective {name!r}{near(name, self.names)}")
        for setting in ("preference", "hypervolume_reference"):
            given = getattr(config, setting)
            if given is not None and len(given) != d:
                raise ConfigError(
                    f"task.{setting} has {len(given)} numbers, but there are {d} objectives: {', '.join(self.names)}"
                )
        if config.preference is not None and not (min(config.preference) >= 0 and sum(config.preference) > 0):
            raise ConfigError(f"task.preference = {config.preference} must be weights of at least 0, not all 0")
        self._signs = torch.tensor([-1.0 if n in config.minimise else 1.0 for n in self.names], dtype=torch.float64)
        weights = torch.tensor(config.preference or [1.0] * d, dtype=torch.float64)
        self._weights = weights / weights.sum()

    @abstractmethod
    def raw_objectives(self, x: Tensor) -> Tensor:
        """The objectives (B, D), float64, of the terminal states ``x``, as the user knows them."""

    def objectives(self, x: Tensor) -> Tensor:
        """The objectives (B, D), float64, turned so that more is better."""
        return self.raw_objectives(x) * self._signs.to(x.device)

    def log_reward(self, x: Tensor) -> Tensor:
        values = (self.objectives(x) * self._weights.to(x.device)).sum(1)
        return values.clamp_min(self.config.floor).log().float()

    @property
    def measurable(self) -> bool:
        """Whether Pareto metrics mean anything here."""
        return len(self.names) > 1

    @cached_property
    def _everything(self) -> Tensor | None:
        """The objectives (X, D) of all objects; ``None`` where they cannot all be gone through."""
        if self.n_states is None:
            return None
        table = TableEnvironment(self)
        return self.objectives(table.states[table.n_inner :])

    @cached_property
    def front(self) -> Tensor | None:
        """The true Pareto front (R, D), different points; ``None`` where the objects cannot all be gone through."""
        values = self._everything
        if values is None or not pareto.available():
            return None
        best = values[torch.from_numpy(pareto.non_dominated(values.cpu().numpy()))]
        return torch.unique(best, dim=0)

    @property
    def hypervolume_reference(self) -> tuple[float, ...]:
        """The point above which the hypervolume is measured (D)."""
        given: tuple[float, ...] | None = self.config.hypervolume_reference
        if given is not None:
            return given
        values = self._everything
        return (0.0,) * len(self.names) if values is None else tuple(values.amin(0).clamp_max(0.0).tolist())

    def metrics(self, samples: Samples) -> dict[str, float]:
        """As of every environment; the mean of each objective; with several of them the Pareto metrics."""
        found = super().metrics(samples)
        if not self.measurable and len(self.names) > 1:
            return found
        raw = self.raw_objectives(samples.x)
        found |= {f"mean_{name}": float(v) for name, v in zip(self.names, raw.mean(0), strict=True)}
        if self.measurable and pareto.available():
            front = None if self.front is None else self.front.cpu().numpy()
            values = self.objectives(samples.x).cpu().numpy()
            found |= pareto.front_metrics(values, front, self.hypervolume_reference)
        return found

    # Files

    def write(self, samples: Samples, path: Path, start: int = 0) -> None:
        """Write the columns ``x``, one for each objective, and ``log_reward``; or one JSON object a line."""
        columns = ["x", *(self.names if self.measurable or len(self.names) == 1 else ()), "log_reward"]
        values = self.raw_objectives(samples.x).tolist() if len(columns) > 2 else [[]] * len(samples)
        words, rewards = self.describe(samples.x), samples.log_reward.tolist()
        rows = [[word, *v, r] for word, v, r in zip(words, values, rewards, strict=True)]
        if path.name.endswith(".jsonl"):
            text = "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        else:
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator="\n").writerows(([columns] if start == 0 else []) + rows)
            text = buffer.getvalue()
        path.write_text(text, encoding="utf-8")

    # Pictures

    def pictures(self, policies: dict[str, Any]) -> list[Panel]:
        from headwater_gfn.objective_pictures import objective_panels

        return objective_panels(self, policies)

    def panels(self, run: "Run") -> list[Panel]:
        from headwater_gfn.objective_pictures import training_panels

        return [*super().panels(run), *training_panels(self, run)]


def objectives_of(environment: Environment) -> Callable[[Tensor], Tensor]:
    """The function from terminal states to objectives (B, D), float64, more is better.

    Of a table it is a look-up. An environment that names no objectives has one: log R.
    """
    if isinstance(environment, TableEnvironment):
        first = environment.n_inner
        known = objectives_of(environment.of)(environment.states[first:])
        # The last states of a network that gives NaN are not terminal, and its loss will say so.
        return lambda x: known.index_select(0, (x - first).clamp_min(0))
    if isinstance(environment, ObjectiveEnvironment):
        return environment.objectives
    return lambda x: environment.log_reward(x).double().unsqueeze(1)


# Functions of the user


def user_function(string: str, setting: str) -> Score:
    """The objective that ``setting`` names as ``'package.module:function'``; its values are checked.

    It takes a batch of objects and gives one number for each.

    Raises:
        PluginError: it cannot be imported.
    """
    function = imported(string, setting)
    return lambda batch: checked(string, batch, function)


def checked(name: str, batch: Any, function: Score) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The values (B,) of ``function`` on ``batch``.

    Raises:
        PluginError: it fails, gives other than one number for each object, or one that is not finite.
    """
    try:
        found = function(batch)
        if isinstance(found, Tensor):
            found = found.detach().cpu()
        values = np.asarray(found, dtype=np.float64)
    except Exception as error:  # the user's function may raise anything
        raise PluginError(
            f"the objective {name!r} failed on {len(batch)} objects, the first {_word(batch[0])}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if values.shape != (len(batch),):
        raise PluginError(
            f"the objective {name!r} gave an array of shape {values.shape} for {len(batch)} objects, the first "
            f"{_word(batch[0])}; it must give one number for each"
        )
    bad = ~np.isfinite(values)
    if bad.any():
        i = int(bad.argmax())
        raise PluginError(f"the objective {name!r} gave {values[i]} for {_word(batch[i])}; it must be finite")
    return values


def _word(item: Any) -> str:
    return repr(item.tolist() if isinstance(item, Tensor) else item)


class Remembered:
    """The objectives of objects scored one batch at a time by functions of the user: each object is scored once.

    Args:
        functions: from a list of objects to values (B,), one for each objective.
        most: how many objects are remembered.
    """

    def __init__(self, functions: Sequence[Score], most: int = 200_000) -> None:
        self.functions, self.most = functions, most
        self._known: OrderedDict[Hashable, list[float]] = OrderedDict()

    def __call__(self, words: Sequence[Hashable]) -> Tensor:
        """The values (B, D), float64, of objects, given by words or by rows of their state."""
        here = {word: self._known[word] for word in set(words) if word in self._known}
        new = [word for word in dict.fromkeys(words) if word not in here]
        if new:
            columns = [function(new) for function in self.functions]
            here.update(zip(new, np.stack(columns, 1).tolist(), strict=True))
        for word in dict.fromkeys(words):
            self._known[word] = here[word]
            self._known.move_to_end(word)
        while len(self._known) > self.most:
            self._known.popitem(last=False)
        return torch.tensor([here[word] for word in words], dtype=torch.float64)
