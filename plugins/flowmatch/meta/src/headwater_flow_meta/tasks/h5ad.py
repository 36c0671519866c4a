"""Cells of an AnnData file, with scanpy's conventions: what a cell is stands in ``obs``.

A patient (or any other ``population``) has cells before the change and cells after it; after it, each treatment makes a
pair of its own. Where cells before the change bear the name of a treatment, they belong to that one; else, as a control
does, to all treatments of the population.
"""

from pathlib import Path
from typing import Any

import numpy as np
from headwater import DataError
from pydantic import Field

from headwater_flow_meta.tasks.files import checked, column, default_split, numbers, read_h5ad, read_table
from headwater_flow_meta.tasks.pairs import FileConfig, FileTask
from headwater_flow_meta.tasks.populations import SPLITS, Data, Population

__all__ = ["H5AD", "H5ADConfig"]


class H5ADConfig(FileConfig):
    """The file, its columns, and which populations are held back."""

    file: Path = Field(description="the h5ad file")
    use: str = Field("X", description="the values: X, layers:NAME, or obsm:NAME (for example obsm:X_pca)")
    population: str = Field("population", description="column of obs that names the population (patient, donor, well)")
    treatment: str = Field("treatment", description="column of obs that names the treatment; not needed")
    time: str = Field("time", description="column of obs that says before or after")
    cell_type: str = Field("cell_type", description="column of obs that names the cell type; not needed")
    before: str | None = Field(None, description="value of time before the change; the first in order without")
    after: str | None = Field(None, description="value of time after it; the second without")
    split: str | None = Field(None, description="column of obs with train, valid or test")
    valid: tuple[str, ...] = Field((), description="populations of the validation split")
    test: tuple[str, ...] = Field((), description="populations of the test split; a fifth of all without")

    def order(self, values: set[str], path: Path) -> tuple[str, str]:
        """The values of ``time`` before and after the change."""
        if self.before is not None and self.after is not None:
            return self.before, self.after
        if values == {"before", "after"}:
            return "before", "after"
        try:
            ordered = sorted(values, key=float)
        except ValueError:
            ordered = sorted(values)
        numeric = all(v.replace(".", "", 1).replace("-", "", 1).isdigit() for v in values)
        if len(ordered) == 2 and numeric and self.before is None and self.after is None:
            return ordered[0], ordered[1]
        raise DataError(
            f"{path}: the column {self.time!r} of obs has the values {', '.join(ordered[:5])}; "
            "say which is before and which after the change: set task.before and task.after"
        )


class H5AD(FileTask):
    """Pairs of clouds in an AnnData file."""

    config: H5ADConfig

    @classmethod
    def check(cls, root: Path) -> list[str]:
        try:
            cls(H5ADConfig.model_validate({"file": root})).load()
        except DataError as error:
            return [str(error)]
        return []

    def load(self) -> Data:
        config, path = self.config, self.config.file
        found = read_h5ad(path)
        features, values = read_table(found, config.use, path)
        owner = column(found, config.population, path, "task.population")
        times = column(found, config.time, path, "task.time")
        before, after = config.order(set(times), path)
        for value in (before, after):
            if not (times == value).any():
                raise DataError(f"{path}: no cell has {value!r} in the column {config.time!r} of obs")
        treated = column(found, config.treatment, path, "task.treatment") if config.treatment in found.obs else None
        typed = column(found, config.cell_type, path, "task.cell_type") if config.cell_type in found.obs else None
        treatments = tuple(sorted(set(treated[times == after]))) if treated is not None else ()
        cell_types = tuple(sorted(set(typed[times == before]))) if typed is not None else ()
        names = list(map(str, found.obs_names))
        where_split = self._splits(found, owner, path)
        splits: dict[str, list[Population]] = {split: [] for split in SPLITS}
        for name in sorted(set(owner)):
            mine = owner == name
            for number, treatment in enumerate(treatments or ("",)):
                ends = mine & (times == after)
                if treatments and treated is not None:
                    ends &= treated == treatment
                    if not ends.any():
                        continue
                starts = mine & (times == before)
                if treated is not None and (starts & (treated == treatment)).any():
                    starts &= treated == treatment
                where = f"{path}, population {name!r}" + (f", treatment {treatment!r}" if treatments else "")
                source = self._points(values, starts, f"{where}, {before}", features, names)
                target = self._points(values, ends, f"{where}, {after}", features, names)
                labels = None
                if typed is not None:
                    labels = numbers(list(typed[starts]), cell_types, where, "the cell type")
                label = f"{name}/{treatment}" if len(treatments) > 1 else str(name)
                population = Population(label, source, target, labels, number, where=where)
                splits[where_split[name]].append(population)
        return Data(features, splits, treatments, cell_types)

    def _points(self, values: Any, rows: Any, where: str, features: tuple[str, ...], names: list[str]) -> Any:
        chosen = np.flatnonzero(rows)
        return checked(self.transform(values[chosen]), where, features, [names[i] for i in chosen])

    def _splits(self, found: Any, owner: Any, path: Path) -> dict[str, str]:
        """The split of each population: of the column, of the config, or by the rule."""
        config, known = self.config, sorted(set(owner))
        if config.split is not None:
            values = column(found, config.split, path, "task.split")
            chosen = {}
            for name in known:
                own = sorted(set(values[owner == name]))
                if len(own) != 1 or own[0] not in SPLITS:
                    raise DataError(
                        f"{path}: population {name!r} has {', '.join(own)} in the column {config.split!r} of obs; "
                        f"it needs one of {', '.join(SPLITS)}"
                    )
                chosen[name] = own[0]
            return chosen
        for name in (*config.valid, *config.test):
            if name not in known:
                raise DataError(f"{path} has no population {name!r} to hold back; it has {', '.join(known[:8])}")
        if config.valid or config.test:
            return {n: "test" if n in config.test else "valid" if n in config.valid else "train" for n in known}
        return default_split(known)
