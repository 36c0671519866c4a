"""Reading populations of the user: checks that name the file, the place and what would do."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import DataError, UsageError
from headwater.errors import near
from torch import Tensor

from headwater_flow_meta.tasks.populations import Population, anndata

__all__ = ["SUFFIXES", "checked", "default_split", "dense", "read_csv", "read_sources", "read_table"]

SUFFIXES = (".csv", ".npz", ".h5ad")
TOLD = ("population", "treatment", "cell_type")
"""Columns of a CSV file that are no features."""


def checked(points: Any, where: str, features: Sequence[str], names: Sequence[str] | None = None) -> Tensor:
    """Points (n, D) as float32, with at least two of them and every value finite.

    Args:
        points: an array.
        where: file and place, for the error.
        features: names of the columns.
        names: names of the rows; their numbers without.

    Raises:
        DataError: names the first row and feature at fault.
    """
    try:
        array = np.asarray(points, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: the values are no numbers: {error}") from error
    if array.ndim != 2 or array.shape[1] != len(features):
        raise DataError(f"{where} has the shape {array.shape}; it needs points with {len(features)} features each")
    if len(array) < 2:
        raise DataError(f"{where} is a population of {len(array)} cell(s); at least 2 are needed: leave it out")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, column = bad[0]
        name = f"cell {names[row]!r}" if names is not None else f"row {row}"
        more = f" (and {len(bad) - 1} more values)" if len(bad) > 1 else ""
        raise DataError(
            f"{where}: {name}, feature {features[column]!r} is {array[row, column]}{more}; "
            "remove such cells or impute the values"
        )
    return torch.from_numpy(np.ascontiguousarray(array))


def numbers(found: Sequence[str], known: Sequence[str], where: str, what: str) -> Tensor:
    """The numbers (n,) of names among ``known``."""
    index = {name: i for i, name in enumerate(known)}
    for name in found:
        if name not in index:
            raise DataError(f"{where}: {what} {name!r} is not among those trained on{near(name, known)}")
    return torch.tensor([index[name] for name in found])


def default_split(names: Sequence[str]) -> dict[str, str]:
    """The split of each population where the user names none: in order of name, of every five the fourth is for
    validation and the fifth for the test; of fewer than five the last for the test.

    Example:
        >>> default_split(["b", "a"])
        {'a': 'train', 'b': 'test'}
    """
    ordered = sorted(set(names))
    if len(ordered) < 5:
        return {
            name: "test" if len(ordered) > 1 and i == len(ordered) - 1 else "train" for i, name in enumerate(ordered)
        }
    return {name: {3: "valid", 4: "test"}.get(i % 5, "train") for i, name in enumerate(ordered)}


def read_csv(path: Path) -> tuple[tuple[str, ...], Any, dict[str, list[str]]]:
    """Features, points (n, D) and the columns that are none (population, treatment, cell_type) of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as source:
            rows = csv.reader(source)
            header = next(rows, [])
            body = list(rows)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file: {error}") from error
    features = tuple(name for name in header if name not in TOLD)
    if not features or _are_numbers(header):
        raise DataError(f"{path} needs a first line with the names of its columns; it has {', '.join(header[:5])!r}")
    for number, row in enumerate(body, 2):
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} values under {len(header)} columns")
    told = {name: [row[header.index(name)] for row in body] for name in TOLD if name in header}
    places = [i for i, name in enumerate(header) if name not in TOLD]
    points = np.empty((len(body), len(features)), np.float32)
    for number, row in enumerate(body):
        for column, place in enumerate(places):
            try:
                points[number, column] = float(row[place]) if row[place].strip() else np.nan
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number + 2}, column {header[place]!r}: {row[place]!r} is no number"
                ) from error
    return features, points, told


def _are_numbers(header: Sequence[str]) -> bool:
    try:
        [float(name) for name in header]
    except ValueError:
        return False
    return True


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of an NPZ file, none of them pickled."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except Exception as error:  # zipfile and NumPy raise many kinds
        raise DataError(f"{path} is no NPZ file of plain arrays: {error}") from error


def dense(matrix: Any) -> Any:
    """A matrix of AnnData, sparse or not, as an array."""
    return matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)


def read_h5ad(path: Path) -> Any:
    """An AnnData object.

    Raises:
        DataError: the file is missing or is none.
    """
    module = anndata()
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        return module.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many kinds
        raise DataError(f"{path} is no h5ad file: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def read_table(found: Any, use: str, path: Path) -> tuple[tuple[str, ...], Any]:
    """Features and values of an AnnData object: ``X``, ``layers:NAME`` or ``obsm:NAME``.

    Raises:
        DataError: there is none of that name.
    """
    room, _, name = use.partition(":")
    if room == "X":
        return tuple(map(str, found.var_names)), dense(found.X)
    store = {"layers": found.layers, "obsm": found.obsm}.get(room)
    if store is None:
        raise DataError(f"task.use = {use!r}: it is X, layers:NAME or obsm:NAME")
    if name not in store:
        raise DataError(f"{path} has no {room} {name!r}{near(name, list(store))}")
    values = dense(store[name])
    features = (
        tuple(map(str, found.var_names)) if room == "layers" else tuple(f"{name}{i}" for i in range(values.shape[1]))
    )
    return features, values


def column(found: Any, name: str, path: Path, setting: str) -> Any:
    """A column of ``obs`` as text, without missing values.

    Raises:
        DataError: there is none of that name, or a cell has no value in it.
    """
    if name not in found.obs:
        known = ", ".join(map(str, found.obs.columns)) or "none"
        raise DataError(f"{path} has no column {name!r} in obs; it has {known}; set {setting}")
    values = found.obs[name]
    missing = values.isna().to_numpy()
    if missing.any():
        cell = found.obs_names[int(np.flatnonzero(missing)[0])]
        raise DataError(f"{path}: cell {cell!r} has no value in the column {name!r} of obs")
    return values.astype(str).to_numpy()


def read_sources(path: Path, task: Any, facts: Mapping[str, Any]) -> list[Population]:
    """The populations in a file or folder, as they are before the change, for a trained run.

    CSV: a column for each feature, and ``population``, ``treatment``, ``cell_type`` where there are any. NPZ:
    ``before`` (n, D), and ``treatment``, ``cell_type``. h5ad: the columns of the task ``h5ad``; cells of a later time
    are left out. A folder: all such files in it, one population each.

    Raises:
        DataError: names the file, the place and what would do.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.endswith(".after.csv"))
        return [population for file in files for population in read_sources(file, task, facts)]
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: populations are read from {', '.join(SUFFIXES)} or a folder of these")
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    stem = path.name.removesuffix(".before.csv").removesuffix(path.suffix)
    names: Sequence[str] | None = None
    if suffix == ".csv":
        features, points, told = read_csv(path)
    elif suffix == ".npz":
        arrays = read_npz(path)
        if "before" not in arrays or arrays["before"].ndim != 2:
            raise DataError(f"{path} has no array 'before' (points, features); it has {', '.join(arrays) or 'none'}")
        points = arrays["before"]
        features = tuple(map(str, arrays["features"])) if "features" in arrays else tuple(facts["features"])
        told = {
            name: list(map(str, np.broadcast_to(arrays[name], len(points))))
            for name in ("treatment", "cell_type")
            if name in arrays
        }
    else:
        features, points, told, names = _sources_of_h5ad(path, task, facts)
    return _populations(path, stem, features, task.transform(points), told, names, facts)


def _sources_of_h5ad(path: Path, task: Any, facts: Mapping[str, Any]) -> Any:
    from headwater_flow_meta.tasks.h5ad import H5ADConfig

    config = task.config if isinstance(task.config, H5ADConfig) else H5ADConfig.model_validate({"file": path})
    found = read_h5ad(path)
    if config.time in found.obs:
        times = column(found, config.time, path, "task.time")
        before = config.before if config.before is not None else config.order(set(times), path)[0]
        found = found[times == before]
    features, points = read_table(found, config.use, path)
    told = {"population": list(column(found, config.population, path, "task.population"))}
    if facts["treatments"] and config.treatment in found.obs:
        told["treatment"] = list(column(found, config.treatment, path, "task.treatment"))
    if facts["cell_types"]:
        told["cell_type"] = list(column(found, config.cell_type, path, "task.cell_type"))
    return features, points, told, list(map(str, found.obs_names))


def _populations(
    path: Path,
    stem: str,
    features: Sequence[str],
    points: Any,
    told: Mapping[str, list[str]],
    names: Sequence[str] | None,
    facts: Mapping[str, Any],
) -> list[Population]:
    missing = [name for name in facts["features"] if name not in features]
    if missing:
        raise DataError(
            f"{path} lacks the feature {missing[0]!r}{f' (and {len(missing) - 1} more)' if missing[1:] else ''}; "
            f"the run was trained on {len(facts['features'])}"
        )
    places = [list(features).index(name) for name in facts["features"]]
    owner = np.array(told.get("population", [stem] * len(points)), dtype=str)
    found = []
    for name in dict.fromkeys(owner.tolist()):
        rows = np.flatnonzero(owner == name)
        where = f"{path}, population {name!r}"
        own = None if names is None else [names[i] for i in rows.tolist()]
        source = checked(points[rows][:, places], where, facts["features"], own)
        labels = None
        if facts["cell_types"]:
            if "cell_type" not in told:
                raise DataError(f"{path} has no column 'cell_type', and the run was trained with cell types")
            labels = numbers([told["cell_type"][i] for i in rows], facts["cell_types"], where, "the cell type")
        given = sorted({told["treatment"][i] for i in rows}) if "treatment" in told else []
        treatment = _treatment(given, facts["treatments"], where)
        found.append(Population(name, source, labels=labels, treatment=treatment, where=where))
    return found


def _treatment(given: Sequence[str], known: Sequence[str], where: str) -> int | None:
    """The one treatment of a population; ``None`` where the file names none that was trained on, as for a control."""
    if len(given) > 1:
        raise UsageError(f"{where} has {len(given)} treatments, {given[0]!r} and {given[1]!r}; give each its own name")
    return list(known).index(given[0]) if given and given[0] in known else None
