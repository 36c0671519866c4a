"""The kind ``populations``: clouds of points before a change and after it, and the predictions for them.

Everything here is in the task's own units; trainers scale what they learn from, and predictions are scaled back.
"""

import csv
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from headwater import Config, DataError, PluginError, Run, Task
from headwater.reporting import Panel
from pydantic import Field, PositiveInt
from torch import Tensor

from headwater_flow_meta.evaluation import scores

__all__ = ["SPLITS", "Cloud", "Data", "Population", "PopulationConfig", "PopulationTask"]

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Population:
    """One population: points ``source`` (n, D) before the change and ``target`` (m, D) after it, float32.

    ``labels`` (n,) are the cell types of the source by number, ``treatment`` is one by number, ``None`` where the file
    does not say. ``paired`` says that row i became row i. ``group`` is what metrics are averaged within first (the
    culture). ``where`` names file and place.
    """

    name: str
    source: Tensor
    target: Tensor | None = None
    labels: Tensor | None = None
    treatment: int | None = 0
    paired: bool = False
    group: str = ""
    where: str = ""

    def scaled(self, shift: Tensor, scale: Tensor) -> "Population":
        """The same in the networks' units."""
        target = None if self.target is None else (self.target - shift) / scale
        return replace(self, source=(self.source - shift) / scale, target=target)

    def truth(self, rows: Tensor) -> Tensor | None:
        """What a prediction for ``rows`` of the source is compared with: where just these went, if that is known.

        Else it is the whole target. In a paired population this is the published way, and takes the chance of which
        points were drawn out of the comparison.
        """
        return self.target[rows] if self.paired and self.target is not None else self.target

    def cell_types(self, names: Sequence[str], rows: Tensor) -> tuple[str, ...]:
        """The names of the cell types of ``rows``, empty without labels."""
        if self.labels is None or not names:
            return ()
        return tuple(names[i] for i in self.labels[rows].tolist())


@dataclass(frozen=True)
class Data:
    """What a task has loaded: its populations by split, and the names of features, treatments and cell types."""

    features: tuple[str, ...]
    splits: dict[str, list[Population]]
    treatments: tuple[str, ...] = ()
    cell_types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cloud:
    """A prediction: ``points`` (n, D), and ``rows`` (n,), which of the population's points moved there."""

    name: str
    points: Tensor
    rows: Tensor
    features: tuple[str, ...]
    treatment: str = ""
    cell_types: tuple[str, ...] = field(default=())


class PopulationConfig(Config):
    """What every task of populations has."""

    metric_points: PositiveInt = Field(1000, description="points of each cloud that W1, W2 and MMD are computed on")


class PopulationTask(Task):
    """A set of populations, loaded at first use; a subclass says how in :meth:`load`."""

    kind: ClassVar[str] = "populations"
    suffixes: ClassVar[tuple[str, ...]] = (".npz", ".csv", ".h5ad")
    standardise: bool = False

    @abstractmethod
    def load(self) -> Data:
        """Read or make the data.

        Raises:
            DataError: it is missing or unfit; the text names the file, the place and what would do.
        """

    @cached_property
    def data(self) -> Data:
        """The data, loaded once."""
        return self.load()

    @property
    def features(self) -> tuple[str, ...]:
        return self.data.features

    @property
    def treatments(self) -> tuple[str, ...]:
        return self.data.treatments

    @property
    def cell_types(self) -> tuple[str, ...]:
        return self.data.cell_types

    def populations(self, split: str) -> list[Population]:
        """The populations of a split, in a fixed order."""
        return self.data.splits.get(split, [])

    def transform(self, points: Any) -> Any:
        """From the units of a file to the task's."""
        return points

    # Metrics

    def metrics(self, samples: Sequence[Cloud]) -> dict[str, float]:
        """The paper's distances between each predicted cloud and the population after the change.

        Mean over the clouds of a group (the culture), then over groups.
        """
        known = {p.name: p for split in SPLITS for p in self.populations(split)}
        groups: dict[str, list[dict[str, float]]] = {}
        for cloud in samples:
            population = known.get(cloud.name)
            if population is None or population.target is None:
                what = "is no population of the task" if population is None else "has no points after the change"
                raise DataError(f"{cloud.name!r} {what}, so there is nothing to compare the prediction with")
            truth = population.truth(cloud.rows)
            assert truth is not None
            found = scores(cloud.points, truth, self.config.metric_points, paired=population.paired)
            groups.setdefault(population.group, []).append(found)
        means = [
            {name: float(np.mean([s[name] for s in group if name in s])) for name in group[0]}
            for group in groups.values()
        ]
        return {name: float(np.mean([m[name] for m in means if name in m])) for name in means[0]} if means else {}

    def panels(self, run: Run) -> list[Panel]:
        from headwater_flow_meta.tasks.pictures import panels

        return panels(self, run)

    # Files

    def cut(self, samples: Sequence[Cloud], n: int) -> list[Cloud]:
        return list(samples[:n])

    def join(self, parts: Sequence[Path], path: Path) -> None:
        clouds = [cloud for part in parts for cloud in self.read(part)]
        self.write(clouds, path)

    def write(self, samples: Sequence[Cloud], path: Path, start: int = 0) -> None:
        """Write clouds as NPZ (flat arrays), CSV (a row for each point) or AnnData.

        Columns: the number of the sample, its population and treatment, the row of the point in its population, its
        cell type, and the features.
        """
        if path.name.endswith(".npz"):
            _write_npz(samples, path, start)
        elif path.name.endswith(".csv"):
            _write_csv(samples, path, start)
        else:
            _write_h5ad(samples, path, start)

    def read(self, path: Path) -> list[Cloud]:
        try:
            if path.name.endswith(".npz"):
                table = _read_npz(path)
            elif path.name.endswith(".csv"):
                table = _read_csv(path)
            else:
                table = _read_h5ad(path)
        except (OSError, ValueError, KeyError, IndexError, StopIteration) as error:
            raise DataError(f"{path} holds no predicted clouds: {type(error).__name__}: {error}") from error
        return _clouds(table)


# A table of points: one row each


@dataclass
class _Table:
    features: tuple[str, ...]
    points: Any
    sample: Any
    population: Any
    treatment: Any
    row: Any
    cell_type: Any


def _table(clouds: Sequence[Cloud], start: int) -> _Table:
    sizes = [len(c.points) for c in clouds]
    typed = [c.cell_types or ("",) * n for c, n in zip(clouds, sizes, strict=True)]
    return _Table(
        features=clouds[0].features if clouds else (),
        points=np.concatenate([c.points.numpy() for c in clouds]) if clouds else np.zeros((0, 0), np.float32),
        sample=np.repeat(np.arange(start, start + len(clouds)), sizes),
        population=np.repeat(np.array([c.name for c in clouds], dtype=str), sizes),
        treatment=np.repeat(np.array([c.treatment for c in clouds], dtype=str), sizes),
        row=np.concatenate([c.rows.numpy() for c in clouds]) if clouds else np.zeros(0, np.int64),
        cell_type=np.array([t for types in typed for t in types], dtype=str),
    )


def _clouds(table: _Table) -> list[Cloud]:
    found = []
    edges = np.flatnonzero(np.diff(table.sample, prepend=-1, append=-1)) if len(table.sample) else np.zeros(0, int)
    for a, b in pairwise(edges):
        types = tuple(map(str, table.cell_type[a:b]))
        found.append(
            Cloud(
                name=str(table.population[a]), points=torch.from_numpy(np.ascontiguousarray(table.points[a:b])),
                rows=torch.from_numpy(np.ascontiguousarray(table.row[a:b])), features=table.features,
                treatment=str(table.treatment[a]), cell_types=types if any(types) else (),
            )
        )  # fmt: skip
    return found


def _write_npz(clouds: Sequence[Cloud], path: Path, start: int) -> None:
    t = _table(clouds, start)
    with path.open("wb") as out:
        np.savez(
            out, features=np.array(t.features, dtype=str), points=t.points, sample=t.sample, population=t.population,
            treatment=t.treatment, row=t.row, cell_type=t.cell_type,
        )  # fmt: skip


def _read_npz(path: Path) -> _Table:
    with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in _Table.__dataclass_fields__}
    arrays["features"] = tuple(map(str, arrays["features"]))
    return _Table(**arrays)


COLUMNS = ("sample", "population", "treatment", "row", "cell_type")


def _write_csv(clouds: Sequence[Cloud], path: Path, start: int) -> None:
    t = _table(clouds, start)
    with path.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow([*COLUMNS, *t.features])
        told = zip(t.sample, t.population, t.treatment, t.row, t.cell_type, strict=True)
        # The text of a float32 is the shortest that reads as the same number.
        table.writerows([*known, *values] for known, values in zip(told, t.points.astype(str), strict=True))


def _read_csv(path: Path) -> _Table:
    with path.open(newline="", encoding="utf-8") as source:
        rows = csv.reader(source)
        header = next(rows)
        if tuple(header[: len(COLUMNS)]) != COLUMNS:
            raise ValueError(f"its columns must begin with {', '.join(COLUMNS)}")
        body = list(rows)
    text = np.array(body, dtype=str).reshape(len(body), len(header))
    points = text[:, len(COLUMNS) :].astype(np.float32)
    sample, population, treatment, row, cell_type = text[:, : len(COLUMNS)].T
    return _Table(
        tuple(header[len(COLUMNS) :]), points, sample.astype(np.int64), population, treatment, row.astype(np.int64),
        cell_type,
    )  # fmt: skip


def anndata() -> Any:
    """The module that reads and writes h5ad."""
    try:
        import anndata as module
    except ImportError as error:
        raise PluginError("h5ad files need: pip install 'headwater-flow-meta[h5ad]'") from error
    return module


def _write_h5ad(clouds: Sequence[Cloud], path: Path, start: int) -> None:
    import pandas

    module = anndata()
    t = _table(clouds, start)
    named = {name: getattr(t, name) for name in COLUMNS}
    obs = pandas.DataFrame(named, index=[str(i) for i in range(len(t.sample))])
    module.AnnData(X=t.points, obs=obs, var=pandas.DataFrame(index=list(t.features))).write_h5ad(path)


def _read_h5ad(path: Path) -> _Table:
    found = anndata().read_h5ad(path)
    columns = {name: found.obs[name].to_numpy() for name in COLUMNS}
    for name in ("population", "treatment", "cell_type"):
        columns[name] = columns[name].astype(str)
    return _Table(features=tuple(map(str, found.var_names)), points=np.asarray(found.X, np.float32), **columns)
