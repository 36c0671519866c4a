"""The organoid drug screen (Ramos Zapatero et al., Cell 2023) in the official preprocessed files.

A matrix ``*_normalized.npy`` of all cells, already normalised, and pickled splits: nested dicts treatment ->
concentration -> culture -> cell type -> rows of the matrix; in patient splits with the patient outermost. Pickles are
read through the allow-list, which runs nothing. The highest concentration of each treatment is used; the controls of
the same patient and culture are the population before treatment.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import DataError
from headwater.unpickling import Stub, load_official
from pydantic import Field

from headwater_flow_meta.tasks.files import checked, numbers
from headwater_flow_meta.tasks.populations import SPLITS, Data, Population, PopulationConfig, PopulationTask

__all__ = ["Organoids", "OrganoidsConfig", "concentration"]

CULTURES = ("PDO", "PDOF")
"""By which the level of the cultures is told; the third, F, is a treatment too."""


class OrganoidsConfig(PopulationConfig):
    """The matrix and the splits."""

    data: Path = Field(description="the matrix of cells, .npy (cells, markers)")
    train: Path = Field(description="pickled split to train on")
    valid: Path | None = Field(None, description="pickled split for validation")
    test: Path | None = Field(None, description="pickled split for the test")
    controls: tuple[str, ...] = Field(("DMSO", "AH", "H2O"), description="names of what is no treatment")
    markers: tuple[str, ...] = Field((), description="names of the columns; m0, m1, ... without")


def concentration(text: str) -> float:
    """The number in the name of a concentration.

    Example:
        >>> concentration("10uM"), concentration("3")
        (10.0, 3.0)
    """
    digits = "".join(c if c.isdigit() or c == "." else " " for c in text).split()
    return float(digits[0]) if digits and digits[0] != "." else 0.0


def _rows(content: Any, path: Path, place: str) -> Any:
    """Row numbers as an array."""
    try:
        rows = np.asarray(content)
    except ValueError as error:
        raise DataError(f"{path}, {place}: {error}") from error
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise DataError(f"{path}, {place}: row numbers are needed, not {type(content).__name__} of {rows.dtype}")
    return rows


class Organoids(PopulationTask):
    """Pairs of clouds of the organoid screen."""

    config: OrganoidsConfig

    def load(self) -> Data:
        config = self.config
        try:
            matrix = np.load(config.data, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{config.data} is no .npy matrix of numbers: {error}") from error
        if matrix.ndim != 2:
            raise DataError(f"{config.data} has the shape {matrix.shape}; it needs (cells, markers)")
        features = config.markers or tuple(f"m{i}" for i in range(matrix.shape[1]))
        if len(features) != matrix.shape[1]:
            raise DataError(f"{config.data} has {matrix.shape[1]} columns; task.markers names {len(features)}")
        pieces = {split: list(self._pieces(path)) for split in SPLITS if (path := getattr(config, split)) is not None}
        everything = [piece for found in pieces.values() for piece in found]
        treatments = tuple(sorted({p[1] for p in everything}))
        cell_types = tuple(sorted({t for p in everything for t in p[3]}))
        splits: dict[str, list[Population]] = {split: [] for split in SPLITS}
        for split, found in pieces.items():
            for patient, treatment, culture, before, after, place in found:
                source, labels = self._cells(matrix, before, features, cell_types, f"{place}, control")
                target, _ = self._cells(matrix, after, features, cell_types, place)
                name = "/".join(part for part in (patient, culture, treatment) if part)
                number = treatments.index(treatment)
                splits[split].append(Population(name, source, target, labels, number, group=culture, where=place))
        return Data(features, splits, treatments, cell_types)

    def _cells(
        self, matrix: Any, rows: Mapping[str, Any], features: tuple[str, ...], cell_types: tuple[str, ...], where: str
    ) -> tuple[Any, Any]:
        index = np.concatenate([*rows.values(), np.zeros(0, np.int64)]).astype(np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(matrix)):
            raise DataError(f"{where}: row {int(index.max())} is beyond the {len(matrix)} cells of {self.config.data}")
        names = [name for name, own in rows.items() for _ in range(len(own))]
        labels = numbers(names, cell_types, where, "cell type") if names else torch.zeros(0, dtype=torch.long)
        return checked(matrix[index], where, features, [str(i) for i in index]), labels

    def _pieces(self, path: Path) -> Iterator[tuple[str, str, str, dict[str, Any], dict[str, Any], str]]:
        """(patient, treatment, culture, rows before by cell type, rows after by cell type, place) of a split."""
        content = load_official(path)
        if isinstance(content, Stub) or not isinstance(content, Mapping) or not content:
            raise DataError(f"{path} holds a {type(content).__name__}, not a split (a dict of treatments)")
        patients = content if self._by_patient(content, path) else {"": content}
        for patient, screen in patients.items():
            if not isinstance(screen, Mapping):
                raise DataError(f"{path}, {patient}: a dict of treatments is needed, not {type(screen).__name__}")
            highest = {str(t): self._highest(levels, path, f"{patient} {t}") for t, levels in screen.items()}
            controls = [highest[name] for name in self.config.controls if name in highest]
            for treatment, cultures in highest.items():
                if treatment in self.config.controls:
                    continue
                for culture, types in cultures.items():
                    place = f"{path}, {' '.join(p for p in (str(patient), treatment, str(culture)) if p)}"
                    before: dict[str, Any] = {}
                    for control in controls:
                        for name, rows in control.get(culture, {}).items():
                            found = _rows(rows, path, place)
                            before[str(name)] = np.concatenate([before.get(str(name), found[:0]), found])
                    if not before:
                        names = ", ".join(self.config.controls)
                        raise DataError(f"{place}: there is no control ({names}) of this culture; set task.controls")
                    after = {str(name): _rows(rows, path, place) for name, rows in types.items()}
                    yield str(patient), treatment, str(culture), before, after, place

    def _by_patient(self, content: Mapping[Any, Any], path: Path) -> bool:
        """Whether patients are outermost: cultures then lie one level deeper."""
        inner: Any = content
        for depth in range(4):
            if not isinstance(inner, Mapping) or not inner:
                break
            if depth >= 2 and any(str(key) in CULTURES for key in inner):
                return depth == 3
            inner = next(iter(inner.values()))
        raise DataError(f"{path}: no culture ({', '.join(CULTURES)}) stands where it should, below the concentrations")

    @staticmethod
    def _highest(levels: Any, path: Path, place: str) -> Mapping[Any, Any]:
        if not isinstance(levels, Mapping) or not levels:
            raise DataError(f"{path}, {place}: a dict of concentrations is needed")
        found = levels[max(levels, key=lambda name: concentration(str(name)))]
        if not isinstance(found, Mapping):
            raise DataError(f"{path}, {place}: a dict of cultures is needed under its concentration")
        return found
