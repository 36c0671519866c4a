"""Strings of molecular blocks: QM9 blocks with a table of scores, sEH blocks with an ensemble of regression trees."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import ConfigError, DataError
from headwater_gfn.tasks.strings import Strings, StringsConfig
from pydantic import Field, PositiveInt
from torch import Tensor

__all__ = ["QM9Strings", "QM9StringsConfig", "SEHStrings", "SEHStringsConfig", "TreeEnsemble", "read_trees"]


class BlockStringsConfig(StringsConfig):
    """Strings of blocks, which are written as numbers with spaces between them."""

    blocks: PositiveInt = Field(11, description="how many blocks there are")

    @property
    def letters(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.blocks)))


class QM9StringsConfig(BlockStringsConfig):
    """Five of eleven blocks; the table holds the scores of all 161,051 strings."""

    length: PositiveInt = Field(5, description="blocks in a string")


class SEHStringsConfig(BlockStringsConfig):
    """Six of eighteen blocks, scored by the trees in ``trees``."""

    blocks: PositiveInt = Field(18, description="how many blocks there are")
    length: PositiveInt = Field(6, description="blocks in a string")
    trees: Path | None = Field(None, description="NPZ with the ensemble of regression trees; needed")
    mode_score: float | None = Field(None, description="the lowest score of a mode; modes are not counted without")


class QM9Strings(Strings):
    """Strings of QM9 blocks; the table is the user's."""

    config: QM9StringsConfig

    def __init__(self, config: QM9StringsConfig) -> None:
        if config.table is None and config.functions is None and config.ranking is None:
            raise ConfigError("qm9-strings needs task.table, a CSV (x, score) or NPZ with the scores of all strings")
        super().__init__(config)

    @classmethod
    def check(cls, root: Path) -> list[str]:
        """What is wrong with the table of scores ``root``."""
        try:
            cls(QM9StringsConfig.model_validate({"table": root}))
        except DataError as error:
            return [str(error)]
        return []


@dataclass(frozen=True)
class TreeEnsemble:
    """Regression trees, one node after another: (N,) each, and where each tree starts, (M,).

    A node sends x to ``left`` where x[feature] <= threshold, else to ``right``; both are absolute numbers of nodes, and
    a leaf is its own child. The value of x is ``baseline`` plus that of the leaf that it reaches in each tree.
    """

    start: Tensor
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    baseline: float
    depth: int

    def __call__(self, x: Tensor) -> Tensor:
        """The values (B,), float64, of features ``x`` (B, F)."""
        node = self.start.expand(len(x), -1)
        for _ in range(self.depth):
            go_left = x.gather(1, self.feature[node]) <= self.threshold[node]
            node = torch.where(go_left, self.left[node], self.right[node])
        return self.value[node].sum(1) + self.baseline


_FIELDS = ("offsets", "baseline", "value", "feature_idx", "threshold", "left", "right", "is_leaf")


def read_trees(path: Path, n_features: int) -> TreeEnsemble:
    """Read an ensemble from an NPZ file.

    It holds the arrays ``value``, ``feature_idx``, ``threshold``, ``left``, ``right`` and ``is_leaf`` of all nodes,
    ``offsets`` (M + 1,) of the trees, ``baseline``; children are counted from the start of their tree.

    Raises:
        DataError: the file cannot be read, or a node points outside its tree or its features.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _FIELDS if name not in file.files]
            if missing:
                raise DataError(f"{path} lacks the arrays {', '.join(missing)}")
            arrays: dict[str, Any] = {name: file[name] for name in _FIELDS}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path} is no NPZ file of plain arrays: {error}") from error
    n = len(arrays["value"])
    offsets = arrays["offsets"].astype(np.int64)
    for name in _FIELDS[2:]:
        if arrays[name].shape != (n,):
            raise DataError(f"{path}: {name} has the shape {arrays[name].shape}, value has {n} nodes")
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 1).any():
        raise DataError(f"{path}: offsets must rise from 0 to the number of nodes, {n}")
    leaf = arrays["is_leaf"].astype(bool)
    first = np.repeat(offsets[:-1], np.diff(offsets))
    last = np.repeat(offsets[1:], np.diff(offsets))
    own = np.arange(n)
    children = {}
    for name in ("left", "right"):
        to = np.where(leaf, own, first + arrays[name].astype(np.int64))
        # Children come after their parent, so that every way down ends.
        wrong = ~leaf & ((to <= own) | (to >= last))
        if wrong.any():
            raise DataError(f"{path}: {name}[{int(wrong.argmax())}] is no later node of its tree")
        children[name] = to
    feature = np.where(leaf, 0, arrays["feature_idx"].astype(np.int64))
    if feature.min() < 0 or feature.max() >= n_features:
        raise DataError(f"{path}: a node looks at feature {int(feature.max())} of {n_features}")
    if not all(np.isfinite(arrays[name]).all() for name in ("value", "threshold", "baseline")):
        raise DataError(f"{path}: a value, a threshold or the baseline is no finite number")
    depth = np.zeros(n, dtype=np.int64)
    for i in np.flatnonzero(~leaf):
        for name in ("left", "right"):
            depth[children[name][i]] = depth[i] + 1
    return TreeEnsemble(
        torch.from_numpy(offsets[:-1]),
        torch.from_numpy(feature),
        torch.from_numpy(arrays["threshold"].astype(np.float64)),
        torch.from_numpy(children["left"]),
        torch.from_numpy(children["right"]),
        torch.from_numpy(np.where(leaf, arrays["value"], 0.0).astype(np.float64)),
        float(arrays["baseline"]),
        int(depth.max()),
    )


class SEHStrings(Strings):
    """Strings of sEH blocks; too many (34 million) for a table, so the trees score what is met."""

    config: SEHStringsConfig

    def __init__(self, config: SEHStringsConfig) -> None:
        if config.table is not None or config.ranking is not None:
            raise ConfigError("seh-strings takes task.trees or task.objectives, no table and no ranking")
        if (config.trees is None) == (config.functions is None):
            raise ConfigError("seh-strings needs task.trees, an NPZ with the ensemble of regression trees")
        super().__init__(config)

    def _set_scores(self, config: StringsConfig) -> None:
        if self.config.trees is None:
            super()._set_scores(config)
            return
        self._table, self._functions = None, None
        self._trees = read_trees(self.config.trees, self.n_features)
        self.n_states = None
        self.set_objectives(["seh"])

    def raw_objectives(self, x: Tensor) -> Tensor:
        if self.config.trees is None:
            return super().raw_objectives(x)
        return self._trees(self.observe(x).double().cpu()).unsqueeze(1).to(x.device)

    def modes(self, x: Tensor) -> Tensor | None:
        if self.config.mode_score is None:
            return None
        return torch.where(self.raw_objectives(x)[:, 0] >= self.config.mode_score, self._numbers(x), -1)
