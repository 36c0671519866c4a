"""A folder with a pair of clouds for each population.

``NAME.npz`` with ``before`` (n, D) and ``after`` (m, D), and where there are any ``features`` (D,), ``treatment``,
``cell_type`` (n,) and ``paired`` (row i became row i); or ``NAME.before.csv`` and ``NAME.after.csv`` with a column for
each feature, and ``cell_type`` and ``treatment`` in the first. Subfolders train, valid and test are the splits; or a
table ``populations.csv`` with the columns population, split, treatment says so.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from headwater import Config, DataError
from headwater.errors import near
from pydantic import Field, PositiveFloat

from headwater_flow_meta.tasks.files import checked, default_split, numbers, read_csv, read_npz
from headwater_flow_meta.tasks.populations import SPLITS, Data, Population, PopulationConfig, PopulationTask

__all__ = ["FileConfig", "FileTask", "PopulationPairs", "PopulationPairsConfig"]


class FileConfig(PopulationConfig):
    """What the tasks that read the user's files have in common."""

    standardise: bool = Field(
        True,
        description="train on values less the training mean of each feature, over one scale for all; predictions are "
        "in the file's units",
    )
    arcsinh: PositiveFloat | None = Field(
        None, description="take arcsinh(x / this) of all values first; 5 is usual for mass cytometry"
    )


class FileTask(PopulationTask):
    """A task that reads the user's files."""

    config: Any

    @property
    def standardise(self) -> bool:  # type: ignore[override]
        return bool(self.config.standardise)

    def transform(self, points: Any) -> Any:
        return points if self.config.arcsinh is None else np.arcsinh(np.asarray(points) / self.config.arcsinh)


class PopulationPairsConfig(FileConfig):
    """Where the folder is."""

    root: Path = Field(description="the folder")


class Row(Config):
    """What ``populations.csv`` says of a population."""

    split: str | None = None
    treatment: str | None = None


class PopulationPairs(FileTask):
    """Pairs of clouds in a folder."""

    config: PopulationPairsConfig

    @classmethod
    def check(cls, root: Path) -> list[str]:
        try:
            cls(PopulationPairsConfig.model_validate({"root": root})).load()
        except DataError as error:
            return [str(error)]
        return []

    def load(self) -> Data:
        root = self.config.root
        if not root.is_dir():
            raise DataError(f"{root} is no folder")
        folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
        files = [(split, *found) for split, folder in folders.items() for found in _pairs(folder)]
        table: dict[str, Row] = {}
        if not folders:
            table = _table(root / "populations.csv")
            pairs = _pairs(root)
            rule = default_split([name for name, _, _ in pairs])
            absent = [name for name in table if name not in rule]
            if absent:
                raise DataError(
                    f"{root / 'populations.csv'} names {absent[0]!r}, of which there is no pair{near(absent[0], rule)}"
                )
            files = [((table[n].split if n in table else None) or rule[n], n, a, b) for n, a, b in pairs]
        if not files:
            raise DataError(
                f"{root} holds no population; it needs NAME.npz, or NAME.before.csv and NAME.after.csv, "
                "or folders train, valid, test of these"
            )
        raw = [(split, name, before, _read(before, after)) for split, name, before, after in files]
        return self._data(raw, table)

    def _data(self, raw: list[tuple[str, str, Path, dict[str, Any]]], table: dict[str, Row]) -> Data:
        features = raw[0][3]["features"]
        chosen = {}
        for _, name, path, found in raw:
            if found["features"] != features:
                raise DataError(
                    f"{path} has other features than {raw[0][2]}: {_difference(found['features'], features)}"
                )
            row = table.get(name, Row())
            chosen[path] = row.treatment if row.treatment is not None else found.get("treatment")
        treatments = tuple(sorted({t for t in chosen.values() if t is not None}))
        without = [path for path, t in chosen.items() if treatments and t is None]
        if without:
            raise DataError(f"{without[0]} has no treatment, and others have; give it one, of the control if need be")
        cell_types = tuple(sorted({t for *_, found in raw for t in found.get("cell_type", ())}))
        splits: dict[str, list[Population]] = {split: [] for split in SPLITS}
        for split, name, path, found in raw:
            source = checked(self.transform(found["before"]), f"{path}, before", features)
            target = checked(self.transform(found["after"]), f"{path}, after", features)
            if found["paired"] and len(source) != len(target):
                raise DataError(f"{path} is paired, but has {len(source)} points before and {len(target)} after")
            labels = None
            if cell_types:
                if len(found.get("cell_type", ())) != len(source):
                    raise DataError(
                        f"{path} needs a cell_type for each of its {len(source)} points before, as others have"
                    )
                labels = numbers(found["cell_type"], cell_types, str(path), "cell type")
            treatment = treatments.index(chosen[path]) if treatments else 0
            splits[split].append(Population(name, source, target, labels, treatment, found["paired"], where=str(path)))
        return Data(features, splits, treatments, cell_types)


def _difference(a: tuple[str, ...], b: tuple[str, ...]) -> str:
    odd = [name for name in (*a, *b) if name not in a or name not in b]
    return f"{odd[0]!r} is not in both" if odd else "in another order"


def _pairs(folder: Path) -> list[tuple[str, Path, Path | None]]:
    """Name, file and second file (CSV) of each pair in a folder."""
    found: list[tuple[str, Path, Path | None]] = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".npz":
            found.append((path.stem, path, None))
        elif path.name.endswith(".before.csv"):
            name = path.name.removesuffix(".before.csv")
            after = path.with_name(f"{name}.after.csv")
            if not after.is_file():
                raise DataError(f"{path} has no {after.name} beside it")
            found.append((name, path, after))
    return found


def _table(path: Path) -> dict[str, Row]:
    """What ``populations.csv`` says, if it is there."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as source:
            rows = list(csv.DictReader(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file: {error}") from error
    if rows and "population" not in rows[0]:
        raise DataError(f"{path} has no column 'population'; it has {', '.join(rows[0])}")
    found = {}
    for number, row in enumerate(rows, 2):
        split = row.get("split") or None
        if split not in (None, *SPLITS):
            raise DataError(f"{path}, line {number}: the split {split!r} is none of {', '.join(SPLITS)}")
        if row["population"] in found:
            raise DataError(f"{path}, line {number}: {row['population']!r} is there twice")
        found[row["population"]] = Row(split=split, treatment=row.get("treatment") or None)
    return found


def _read(before: Path, after: Path | None) -> dict[str, Any]:
    """The pair as arrays: before, after, features, paired, and treatment and cell_type where there are any."""
    if after is not None:
        features, x0, told = read_csv(before)
        again, x1, _ = read_csv(after)
        if again != features:
            raise DataError(f"{after} has other features than {before.name}: {_difference(again, features)}")
        found: dict[str, Any] = {"before": x0, "after": x1, "features": features, "paired": False}
        treatments = sorted(set(told.get("treatment", ())))
        if len(treatments) > 1:
            raise DataError(f"{before} has more than one treatment: {', '.join(treatments[:3])}; make a pair of each")
        if treatments:
            found["treatment"] = treatments[0]
        if "cell_type" in told:
            found["cell_type"] = told["cell_type"]
        return found
    arrays = read_npz(before)
    for name in ("before", "after"):
        if name not in arrays or arrays[name].ndim != 2:
            raise DataError(f"{before} has no array {name!r} (points, features); it has {', '.join(arrays) or 'none'}")
    width = arrays["before"].shape[1]
    features = tuple(map(str, arrays["features"])) if "features" in arrays else tuple(f"x{i}" for i in range(width))
    found = {"before": arrays["before"], "after": arrays["after"], "features": features}
    found["paired"] = bool(arrays.get("paired", False))
    if "treatment" in arrays:
        found["treatment"] = str(arrays["treatment"])
    if "cell_type" in arrays:
        found["cell_type"] = list(map(str, arrays["cell_type"]))
    return found
