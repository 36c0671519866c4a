"""What a GFlowNet moves through: an environment as pure functions of batched state tensors.

The states form a directed acyclic graph that starts in one source. An action leads to a child; a terminal state is an
object x with a reward R(x). A batch of states is one integer tensor of shape (B, \\*state_shape), on any device; no
function here keeps a state of its own, and none loops over the batch.
"""

import csv
import io
import json
from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from headwater import DataError, Task, UsageError
from torch import Tensor, nn

if TYPE_CHECKING:
    from headwater.reporting import Panel
    from headwater.run import Run

__all__ = ["MASKED", "Environment", "Samples", "log_policy"]

MASKED = -1e9
"""The logit of a forbidden action: finite, because the difference of two infinities has no gradient."""


def log_policy(logits: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities (B, A) of the actions that ``mask`` (B, A) allows; those of the others are about -1e9."""
    return torch.log_softmax(torch.where(mask, logits, MASKED), -1)


@dataclass(frozen=True)
class Samples:
    """Terminal states ``x`` (B, \\*state_shape) and their ``log_reward`` (B,)."""

    x: Tensor
    log_reward: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice) -> "Samples":
        return Samples(self.x[index], self.log_reward[index])


class Environment(Task):
    """An environment with a reward; the base of every task of kind ``gfn.environment``.

    A subclass sets the sizes below (in ``__init__``, from its config), defines the abstract functions, and writes and
    reads terminal states in the domain's own format.

    Trajectories end in one of two ways. With ``stops``, the last forward action, ``n_actions - 1``, is STOP: it is
    allowed in every state that may end and leads to a terminal state of its own, which has that state as its only
    parent. Without it, states of full length are terminal.
    """

    kind: ClassVar[str] = "gfn.environment"
    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".jsonl")

    n_actions: int
    """Forward actions, STOP included."""
    n_backward: int
    """Backward actions, STOP's not included: it has no probability to learn."""
    stops: bool
    """Whether trajectories end by the STOP action or by their length."""
    max_len: int
    """Actions in the longest trajectory, STOP included."""
    state_shape: tuple[int, ...]
    n_features: int
    """The width of :meth:`observe`."""
    adds_items: ClassVar[bool] = False
    """Whether states are rows of 0 and 1 (B, n_actions) that start as 0; action i is allowed where entry i is 0 and
    makes it 1, and ``max_len`` of them make a terminal state."""
    n_states: int | None = None
    """How many states there are, where that is known and small enough to go through them."""

    @abstractmethod
    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """``n`` copies of the source."""

    @abstractmethod
    def step(self, s: Tensor, a: Tensor) -> Tensor:
        """The children (B, \\*state_shape) of ``s`` under the allowed actions ``a`` (B,), STOP included."""

    @abstractmethod
    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        """The parents of the states ``s``, which STOP has not ended, under the backward actions ``b`` (B,)."""

    def unstop(self, s: Tensor) -> Tensor:
        """The states from which STOP led to the terminal states ``s`` (only with ``stops``)."""
        raise UsageError(f"{type(self).__name__} has no STOP action")

    @abstractmethod
    def forward_mask(self, s: Tensor) -> Tensor:
        """Which actions are allowed (B, n_actions) in ``s``: at least one, and anything in a terminal state."""

    @abstractmethod
    def backward_mask(self, s: Tensor) -> Tensor:
        """Which backward actions are allowed (B, n_backward) in ``s``, which STOP has not ended; none at the source."""

    def backward_action(self, s: Tensor, a: Tensor) -> Tensor:
        """The backward actions (B,) that undo the actions ``a`` (no STOP) taken in ``s``; the same numbers here."""
        return a

    def forward_action(self, s: Tensor, b: Tensor) -> Tensor:
        """The actions (B,) that lead back to ``s`` from its parents ``undo(s, b)``; the same numbers here."""
        return b

    def same_child(self, s: Tensor, a: Tensor) -> Tensor | None:
        """Which actions (B, n_actions) lead from ``s`` to the same child as ``a``; ``None`` where only ``a`` does.

        The probability of a transition is the sum over these.
        """
        return None

    def inherits(self, name: str) -> bool:
        """Whether the function ``name`` is the one defined here: then what it says is known without a call."""
        return getattr(type(self), name) is getattr(Environment, name)

    @abstractmethod
    def terminal(self, s: Tensor) -> Tensor:
        """Which of the states ``s`` are terminal (B,)."""

    @abstractmethod
    def observe(self, s: Tensor) -> Tensor:
        """What the network sees of the states ``s``: (B, n_features)."""

    @abstractmethod
    def log_reward(self, x: Tensor) -> Tensor:
        """log R (B,) of the terminal states ``x``, finite."""

    def log_partial_reward(self, s: Tensor) -> Tensor:
        """log R (B,) of any states, partial objects too; of a terminal state it is its :meth:`log_reward`.

        Raises:
            UsageError: the reward means nothing on partial objects, so forward-looking objectives cannot be used.
        """
        raise UsageError(f"{type(self).__name__} has no reward on partial objects, which the objective needs")

    def key(self, s: Tensor) -> Tensor:
        """One int64 (B,) for each state, equal for equal states (a hash: different ones collide about never)."""
        flat = s.reshape(len(s), -1).to(torch.int64)
        mixed = (flat + 1) * _odd_words(flat.shape[1]).to(flat.device)
        mixed = mixed ^ (mixed >> 31)
        return (mixed * -7046029254386353131).sum(1)

    # Facts about the target, where they can be had without going through all states

    def log_partition(self) -> float | None:
        """The exact log Z, where there is a formula for it."""
        return None

    def highest_log_reward(self) -> float | None:
        """The highest log R that there is, where it is known."""
        return None

    def modes(self, x: Tensor) -> Tensor | None:
        """Which mode each terminal state belongs to (B,), -1 for none; ``None`` where the task names no modes."""
        return None

    @property
    def n_modes(self) -> int | None:
        """How many modes there are, where that is known."""
        return None

    # Objects as rows of letters, for methods that aim at given objects

    n_places: int = 0
    """Letters that say which object it is; 0 where the task does not write objects as letters."""
    n_values: int = 0
    """How many different letters there are."""

    def space(self) -> dict[str, Any]:
        """What states and actions depend on, whatever the reward is: a policy fits every environment of equal space."""
        raise UsageError(f"{type(self).__name__} does not say what its space is, which the method needs")

    def letters(self, x: Tensor) -> Tensor:
        """The letters (B, n_places), 0 to ``n_values`` - 1, of the terminal states ``x``."""
        raise UsageError(f"{type(self).__name__} does not write objects as letters, which the method needs")

    def from_letters(self, letters: Tensor) -> Tensor:
        """The terminal states with ``letters`` (B, n_places)."""
        raise UsageError(f"{type(self).__name__} does not write objects as letters, which the method needs")

    def proper(self, letters: Tensor) -> Tensor:
        """Whether rows of ``letters`` (B, n_places) are objects (B,)."""
        return torch.ones(len(letters), dtype=torch.bool, device=letters.device)

    def possible(self, s: Tensor, letters: Tensor) -> Tensor:
        """Which letters an object that the states ``s`` lead to may have: (B, n_places, n_values).

        Entry (i, v) says whether there is such an object with v at place i and ``letters`` (B, n_places) before it.
        """
        raise UsageError(f"{type(self).__name__} does not say which objects a state leads to, which the method needs")

    def reaches(self, s: Tensor, x: Tensor) -> Tensor:
        """Whether the states ``s`` lead to the terminal states ``x``, row by row (B,)."""
        letters = self.letters(x)
        return self.possible(s, letters).gather(2, letters.unsqueeze(2)).squeeze(2).all(1)

    def random_objects(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` terminal states drawn uniformly."""
        self.check_letters()
        shape = (n, self.n_places)
        return self.from_letters(torch.randint(self.n_values, shape, generator=generator, device=generator.device))

    def check_letters(self) -> None:
        """See that objects can be written as letters.

        Raises:
            UsageError: they cannot.
        """
        if not self.n_places:
            raise UsageError(f"{type(self).__name__} does not write objects as letters, which the method needs")

    # Samples

    def make_policy(self, hidden: tuple[int, ...], activation: str) -> nn.Module:
        """An untrained policy network for this environment; see :class:`headwater_gfn.networks.Policy`."""
        from headwater_gfn.networks import MLPPolicy

        return MLPPolicy(self.n_features, self.n_actions, self.n_backward, hidden, activation)

    def metrics(self, samples: Samples) -> dict[str, float]:
        """Mean log-reward, mean reward of the 100 best different objects, share of different ones, modes found."""
        keys = self.key(samples.x)
        _, inverse = torch.unique(keys, return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(keys)).scatter_reduce(
            0, inverse, torch.arange(len(keys)), "amin"
        )
        best = samples.log_reward[first].double()
        found = {
            "mean_log_reward": float(samples.log_reward.double().mean()),
            "top_100_reward": float(best.topk(min(100, len(best))).values.exp().mean()),
            "different": len(first) / len(keys),
        }
        modes = self.modes(samples.x)
        if modes is not None:
            found["modes"] = float(len(torch.unique(modes[modes >= 0])))
        return found

    # Pictures

    def pictures(self, policies: dict[str, Any]) -> "list[Panel]":
        """What can be shown of trained ``policies`` (by name) on this environment, one beside the other."""
        return []

    def panels(self, run: "Run") -> "list[Panel]":
        from headwater.sampling import Model

        sampler: Any = Model(run, device="cpu").sampler()
        return [*self.pictures(sampler.policies()), *sampler.panels()]

    # Files: terminal states in the domain's own words

    @abstractmethod
    def describe(self, x: Tensor) -> list[str]:
        """Terminal states in the words of the domain: a sequence, a SMILES, coordinates."""

    @abstractmethod
    def parse(self, words: list[str]) -> Tensor:
        """The terminal states that :meth:`describe` wrote.

        Raises:
            ValueError: an item is not one of this environment; the text says what would be.
        """

    def write(self, samples: Samples, path: Path, start: int = 0) -> None:
        """Write a table with the columns ``x`` and ``log_reward``, or one JSON object a line."""
        rows = list(zip(self.describe(samples.x), samples.log_reward.tolist(), strict=True))
        if path.name.endswith(".jsonl"):
            text = "".join(json.dumps({"x": x, "log_reward": r}) + "\n" for x, r in rows)
        else:
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerows(([("x", "log_reward")] if start == 0 else []) + rows)
            text = buffer.getvalue()
        path.write_text(text, encoding="utf-8")

    def read(self, path: Path) -> Samples:
        """Read terminal states; the rewards are computed anew, so a table with the column ``x`` alone will do.

        Raises:
            DataError: the file is missing, holds nothing, or an item is not of this environment.
        """
        try:
            with path.open(encoding="utf-8", newline="") as file:
                if path.name.endswith(".jsonl"):
                    words = [str(json.loads(line)["x"]) for line in file]
                else:
                    words = [row["x"] for row in csv.DictReader(file)]
            x = self.parse(words)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        except KeyError as error:
            raise DataError(f"{path} has no column {error}; it needs 'x'") from error
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: {error}") from error
        if not len(x):
            raise DataError(f"{path} holds no object")
        return Samples(x, self.log_reward(x))


@cache
def _odd_words(n: int) -> Tensor:
    """``n`` odd 64-bit words, always the same."""
    return torch.randint(-(2**62), 2**62, (n,), generator=torch.Generator().manual_seed(n)) * 2 + 1
