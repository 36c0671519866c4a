"""NAS-Bench-201: cells with six edges and one of five operations on each, with accuracies from the user's table."""

from pathlib import Path

import torch
from headwater import ConfigError, DataError
from headwater_gfn.tasks.objectives import ObjectiveConfig, ObjectiveEnvironment
from headwater_gfn.tasks.score_tables import read_scores
from pydantic import Field
from torch import Tensor

__all__ = ["OPERATIONS", "NASBench201", "NASBench201Config"]

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = 6
FREE = len(OPERATIONS)
CELLS = FREE**EDGES


class NASBench201Config(ObjectiveConfig):
    """The table of accuracies."""

    table: Path | None = Field(
        None, description="CSV (x, accuracy, ...) or NPZ with the accuracies of all 15,625 cells; needed"
    )
    columns: tuple[str, ...] | None = Field(
        None, description="the data sets that count, by their columns (cifar10); several make several objectives"
    )


class NASBench201(ObjectiveEnvironment):
    """States (B, 7): the operation on each edge, 5 where there is none yet, and 1 at the end once STOP was taken.

    The edges are 0->1, 0->2, 1->2, 0->3, 1->3, 2->3. Action ``operation * 6 + edge`` sets an edge, in any order, and
    the backward action of the same number clears it; the last action is STOP, which is taken when all are set. In
    words a cell is its six operations, joined by ``|``.
    """

    stops = True
    config: NASBench201Config

    def __init__(self, config: NASBench201Config) -> None:
        """Read the table.

        Raises:
            ConfigError: none is given.
            DataError: it cannot be used.
        """
        super().__init__(config)
        self.n_actions, self.n_backward, self.max_len = FREE * EDGES + 1, FREE * EDGES, EDGES + 1
        self.state_shape = (EDGES + 1,)
        self.n_features = FREE * EDGES
        self.n_states = (FREE + 1) ** EDGES + CELLS
        self._place = FREE ** torch.arange(EDGES - 1, -1, -1)
        if config.table is None:
            raise ConfigError("nas-bench-201 needs task.table, a CSV or NPZ with the accuracies of all 15,625 cells")
        found = read_scores(config.table, CELLS, self._number, config.columns)
        self._table = found.values
        self.set_objectives(found.names)

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        s = torch.full((n, EDGES + 1), FREE, dtype=torch.int64, device=device)
        s[:, -1] = 0
        return s

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        stop = a == self.n_actions - 1
        place = torch.where(stop, EDGES, a % EDGES).unsqueeze(1)
        return s.scatter(1, place, torch.where(stop, 1, a // EDGES).unsqueeze(1))

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        return s.scatter(1, (b % EDGES).unsqueeze(1), FREE)

    def unstop(self, s: Tensor) -> Tensor:
        return torch.cat([s[:, :-1], torch.zeros_like(s[:, -1:])], 1)

    def forward_mask(self, s: Tensor) -> Tensor:
        free = s[:, :-1] == FREE
        return torch.cat([free.repeat(1, FREE), ~free.any(1, keepdim=True)], 1)

    def backward_mask(self, s: Tensor) -> Tensor:
        operations = torch.arange(FREE, device=s.device).view(1, FREE, 1)
        return (s[:, None, :-1] == operations).flatten(1)

    def terminal(self, s: Tensor) -> Tensor:
        return s[:, -1] == 1

    def observe(self, s: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(s[:, :-1], FREE + 1)[..., :-1].flatten(1).float()

    def raw_objectives(self, x: Tensor) -> Tensor:
        return self._table.to(x.device)[(x[:, :-1] * self._place.to(x.device)).sum(1)]

    def _operations(self, word: str) -> list[int]:
        parts = word.split("|")
        if len(parts) != EDGES or not all(part in OPERATIONS for part in parts):
            raise ValueError(f"{word!r} is no cell; write six of {', '.join(OPERATIONS)}, joined by '|'")
        return [OPERATIONS.index(part) for part in parts]

    def _number(self, word: str) -> int:
        number = 0
        for operation in self._operations(word):
            number = number * FREE + operation
        return number

    def describe(self, x: Tensor) -> list[str]:
        return ["|".join(OPERATIONS[i] for i in row) for row in x[:, :-1].tolist()]

    def parse(self, words: list[str]) -> Tensor:
        rows = [[*self._operations(word), 1] for word in words]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, EDGES + 1)

    @classmethod
    def check(cls, root: Path) -> list[str]:
        """What is wrong with the table of accuracies ``root``."""
        try:
            cls(NASBench201Config.model_validate({"table": root}))
        except DataError as error:
            return [str(error)]
        return []
