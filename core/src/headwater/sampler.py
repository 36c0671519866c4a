"""The sampler, which turns trained modules into samples block by block, and the operation beside it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from headwater import seeding
from headwater.task import Task, Writer
from headwater.trainer import Place

__all__ = ["Operation", "Sampler"]


class Sampler(ABC):
    """Makes samples in blocks of ``block_size``.

    What block ``k`` holds depends on the seed and ``k`` alone, so neither the number of workers nor an
    interruption changes the result, and the first n of more samples are the same. ``config.block_size`` gives
    the size: it is the network's batch, and never fitted to memory or workers.
    """

    unit: ClassVar[str] = "blocks"
    """What the progress bar counts; :meth:`amount` says how much of it a block makes."""

    seed: int = 0
    """The seed of the job under way, for what several blocks share; a block's own randomness is its generator's."""

    def __init__(
        self,
        config: Any,
        task: Task,
        modules: Mapping[str, nn.Module],
        facts: Mapping[str, Any],
        place: Place | None = None,
    ) -> None:
        self.config = config
        self.task: Any = task
        self.modules = modules
        self.facts = facts
        self.place = place or Place()
        self.setup()

    def setup(self) -> None:  # noqa: B027 - optional
        """Prepare what all blocks share (tables, schedules)."""

    @property
    def block_size(self) -> int:
        """How many samples one block holds."""
        return int(self.config.block_size)

    def blocks(self, n: int) -> int:
        """How many blocks make ``n`` samples."""
        return -(-n // self.block_size)

    @property
    def evaluated(self) -> int:
        """How many samples are scored where nobody says: one block, or (a test set) as many as there are."""
        return self.block_size

    def amount(self, k: int) -> int:
        """How much of ``unit`` block ``k`` makes."""
        return 1

    def room(self, missing: Sequence[int], blocks: int, suffix: str) -> int:
        """Bytes on disk that the ``missing`` ones of a job's ``blocks`` and the file joined from all will take.

        A job is not begun where there is less; 0 where nobody can say.
        """
        return 0

    @property
    def writer(self) -> Writer:
        """Who writes the samples to disk: the task, unless the samples are of another form."""
        return self.task

    @abstractmethod
    def block(self, k: int, generator: torch.Generator, condition: Any) -> Any:
        """Compute block ``k``; all its randomness comes from ``generator``, which is keyed on (seed, k).

        ``condition`` is an instance of the sampler's condition model, or ``None`` where it has none.
        """

    def sample(self, n: int, seed: int = 0, condition: Any = None) -> Iterator[Any]:
        """Yield the blocks that make ``n`` samples; the last is computed whole and cut."""
        self.seed = seed
        for k in range(self.blocks(n)):
            with torch.no_grad():
                samples = self.block(k, seeding.generator(seed, k, device=self.place.device), condition)
            rest = n - k * self.block_size
            yield samples if rest >= self.block_size else self.writer.cut(samples, rest)


class Operation(Sampler):
    """Something else that a trained run does with given items: one output per item, in blocks."""

    input_suffixes: ClassVar[tuple[str, ...]] = ()
    """What ``read`` accepts, for messages and ``describe``."""

    @abstractmethod
    def read(self, path: Path) -> Sequence[Any]:
        """The items in the file or folder ``path``.

        Raises:
            DataError: the path holds nothing that this operation can use.
        """

    @abstractmethod
    def apply(self, items: Sequence[Any], generator: torch.Generator) -> Any:
        """The outputs for ``items``, as many and in the same order."""

    def block(self, k: int, generator: torch.Generator, condition: Any) -> Any:
        """Block ``k`` of the outputs; ``condition`` is the sequence of all items."""
        return self.apply(condition[k * self.block_size : (k + 1) * self.block_size], generator)
