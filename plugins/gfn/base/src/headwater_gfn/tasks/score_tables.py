"""Scores of a whole space of objects, and rankings, from the user's files."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import DataError
from headwater.errors import near
from torch import Tensor

__all__ = ["MOST_RANKED", "ScoreTable", "read_e_scores", "read_ranking", "read_scores", "read_words"]

MOST_RANKED = 2000
"""Most objects that a ranking names: the order of n objects takes n numbers for each."""

Number = Callable[[str], int]
"""From the word of an object to its number; raises ``ValueError`` where it is none."""


@dataclass(frozen=True)
class ScoreTable:
    """Scores ``values`` (N, D), float64, of all N objects by their numbers, with ``names`` (D).

    ``modes`` holds the numbers of the objects that the file lists as modes, ``None`` where it lists none.
    """

    names: tuple[str, ...]
    values: Tensor
    modes: Tensor | None = None


def read_scores(path: Path, n: int, number: Number, columns: Sequence[str] | None = None) -> ScoreTable:
    """Read a table with one row for each of ``n`` objects.

    CSV: the column ``x`` with the object's word, every other column a score. NPZ: the scores as the only floating-point
    array, (N,) or (N, D), in the order of the objects' numbers or of an array ``x`` of words; the names of D columns in
    ``columns``, and the words of the modes in ``modes``, if there are.

    Args:
        path: the file.
        n: how many objects there are.
        number: from a word to its number.
        columns: the scores that are wanted; all without.

    Raises:
        DataError: the file cannot be read, or an object is missing or given twice, or a score is no finite number.
    """
    try:
        if path.suffix == ".npz":
            found = _read_npz(path, n, number)
        elif path.suffix == ".csv":
            found = _read_csv(path, n, number)
        else:
            raise DataError(f"{path}: a table of scores is a .csv or .npz file")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return _chosen(found, columns, path)


def _chosen(found: ScoreTable, columns: Sequence[str] | None, path: Path) -> ScoreTable:
    """The ``columns`` of a table; all without."""
    if columns is None:
        return found
    for name in columns:
        if name not in found.names:
            raise DataError(f"{path} has no column {name!r}{near(name, found.names)}")
    return ScoreTable(tuple(columns), found.values[:, [found.names.index(c) for c in columns]], found.modes)


def _read_csv(path: Path, n: int, number: Number) -> ScoreTable:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        fields = list(reader.fieldnames or [])
        if "x" not in fields or len(fields) < 2:
            raise DataError(f"{path} needs the column 'x' and at least one column of scores; it has {fields}")
        names = tuple(f for f in fields if f != "x")
        values = np.full((n, len(names)), np.nan)
        line_of: dict[int, int] = {}
        try:
            for line, row in enumerate(reader, 2):
                i = _number(path, f"line {line}", row["x"], number)
                if i in line_of:
                    raise DataError(f"{path}, line {line}: {row['x']!r} is given twice, first in line {line_of[i]}")
                line_of[i] = line
                for column, name in enumerate(names):
                    values[i, column] = _finite(path, line, name, row[name])
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no text in UTF-8") from error
    if len(line_of) < n:
        missing = next(i for i in range(n) if i not in line_of)
        raise DataError(
            f"{path} has {len(line_of):,} of {n:,} objects; every one needs a row, the first that is missing is "
            f"number {missing}"
        )
    return ScoreTable(names, torch.from_numpy(values))


def _finite(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}, line {line}: {name} = {text!r} is no finite number")
    return value


def _number(path: Path, where: str, word: str, number: Number) -> int:
    try:
        return number(word)
    except ValueError as error:
        raise DataError(f"{path}, {where}: {error}") from error


def _read_npz(path: Path, n: int, number: Number) -> ScoreTable:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path} is no NPZ file of plain arrays: {error}") from error
    except Exception as error:  # a broken archive raises errors of zipfile and zlib
        if isinstance(error, OSError):
            raise
        raise DataError(f"{path} cannot be read as NPZ: {type(error).__name__}: {error}") from error
    scores = {name: a for name, a in arrays.items() if a.dtype.kind == "f" and a.ndim in (1, 2)}
    if len(scores) != 1:
        raise DataError(f"{path} needs one floating-point array of scores; it has {sorted(scores) or sorted(arrays)}")
    [(name, array)] = scores.items()
    values = np.asarray(array, dtype=np.float64).reshape(len(array), -1)
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).any(1).argmax())
        raise DataError(f"{path}: {name}[{row}] is no finite number")
    if "x" in arrays:
        words = [str(w) for w in arrays["x"].ravel()]
        if len(words) != len(values):
            raise DataError(f"{path}: x has {len(words):,} words, {name} {len(values):,} rows")
        index = np.array([_number(path, f"x[{i}]", word, number) for i, word in enumerate(words)], dtype=np.int64)
        counts = np.bincount(index, minlength=n)
        if counts.max(initial=0) > 1:
            raise DataError(f"{path}: {words[int((counts[index] > 1).argmax())]!r} is given twice")
        if len(index) < n:
            missing = int((counts == 0).argmax())
            raise DataError(f"{path} has {len(index):,} of {n:,} objects; number {missing} is the first missing")
        values = values[np.argsort(index)]
    if len(values) != n:
        raise DataError(f"{path}: {name} has {len(values):,} rows, but there are {n:,} objects")
    default = [name] if values.shape[1] == 1 else [f"{name}{i + 1}" for i in range(values.shape[1])]
    names = tuple(map(str, arrays["columns"].ravel())) if "columns" in arrays else tuple(default)
    if len(names) != values.shape[1]:
        raise DataError(f"{path}: columns has {len(names)} names for {values.shape[1]} columns")
    modes = None
    if "modes" in arrays:
        words = [str(w) for w in arrays["modes"].ravel()]
        modes = torch.tensor([_number(path, f"modes[{i}]", word, number) for i, word in enumerate(words)])
    return ScoreTable(names, torch.from_numpy(values.copy()), modes)


E_SCORES = ("escore_1e5", "tf")
Scores = np.ndarray[Any, np.dtype[np.float64]]


def read_e_scores(path: Path, number: Number, columns: Sequence[str] | None = None) -> ScoreTable | None:
    """Read E-scores of all DNA strings of eight letters, scaled so that a factor's lowest is 0 and its highest 1.

    NPZ: integers ``escore_1e5`` (factors, 65,536), E-scores times 100,000 in the order of the strings' numbers, and the
    names ``tf`` of the factors. TXT or TSV: one factor, a line for a string and its other strand with the columns
    8-mer, 8-mer, E-score; the factor's name is that of the file, up to ``_8mers``.

    Returns:
        the table; ``None`` where the file is of another form, which :func:`read_scores` reads.

    Raises:
        DataError: the file cannot be read, or a string is missing or has no finite score.
    """
    if path.suffix in (".txt", ".tsv"):
        return _chosen(_scaled(path, (path.stem.removesuffix("_8mers"),), _read_strands(path, number)), columns, path)
    if path.suffix != ".npz":
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if not set(E_SCORES) <= set(file.files):
                return None
            scores, names = file[E_SCORES[0]], tuple(map(str, file[E_SCORES[1]].ravel()))
    except Exception:  # what is wrong with it will be said by who reads it next
        return None
    if scores.shape != (len(names), 4**8):
        raise DataError(
            f"{path}: escore_1e5 has the shape {scores.shape}; {len(names)} factors need {4**8:,} scores each"
        )
    return _chosen(_scaled(path, names, scores.T / 1e5), columns, path)


def _read_strands(path: Path, number: Number) -> Scores:
    values = np.full((4**8, 1), np.nan)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line, row in enumerate(csv.reader(file, delimiter="\t"), 1):
                if line == 1 and row and "mer" in row[0].lower():
                    continue
                if len(row) < 3:
                    raise DataError(f"{path}, line {line}: needs the columns 8-mer, 8-mer, E-score, apart by tabs")
                score = _finite(path, line, "E-score", row[2])
                for word in row[:2]:
                    values[_number(path, f"line {line}", word, number)] = score
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no text in UTF-8 with tabs: {error}") from error
    missing = np.flatnonzero(np.isnan(values[:, 0]))
    if len(missing):
        raise DataError(f"{path} lacks {len(missing):,} of {4**8:,} strings; number {missing[0]} is the first missing")
    return values


def _scaled(path: Path, names: tuple[str, ...], values: "Scores") -> ScoreTable:
    lowest, highest = values.min(0), values.max(0)
    flat = np.flatnonzero(highest <= lowest)
    if len(flat):
        raise DataError(f"{path}: all scores of {names[flat[0]]} are the same")
    return ScoreTable(names, torch.from_numpy((values - lowest) / (highest - lowest)))


def read_words(path: Path, number: Number) -> Tensor:
    """The numbers (M,) of the objects in a text file with one word a line, each once.

    Raises:
        DataError: the file cannot be read, holds no word or one twice, or a word is no object.
    """
    try:
        words = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8") from error
    line_of: dict[int, int] = {}
    for line, word in enumerate(words, 1):
        if not word.strip():
            continue
        i = _number(path, f"line {line}", word.strip(), number)
        if i in line_of:
            raise DataError(f"{path}, line {line}: {word!r} is given twice, first in line {line_of[i]}")
        line_of[i] = line
    if not line_of:
        raise DataError(f"{path} holds no word")
    return torch.tensor(list(line_of))


def read_ranking(path: Path, number: Number) -> tuple[list[int], Tensor]:
    """Read pairs of objects, in each of which one is better: CSV with the columns ``better`` and ``worse``.

    Returns:
        the numbers of the M objects named, and which are at least as good as which, (M, M): row i says what object i
        is above, itself included. So object i is better than j exactly if row i dominates row j.

    Raises:
        DataError: the file cannot be read, names too many objects, or some are better than themselves.
    """
    pairs: list[tuple[int, int]] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not {"better", "worse"} <= set(reader.fieldnames or []):
                raise DataError(f"{path} needs the columns 'better' and 'worse'; it has {reader.fieldnames or []}")
            for line, row in enumerate(reader, 2):
                a, b = (_number(path, f"line {line}", row[c] or "", number) for c in ("better", "worse"))
                if a == b:
                    raise DataError(f"{path}, line {line}: {row['better']!r} is better than itself")
                pairs.append((a, b))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error
    objects = sorted({i for pair in pairs for i in pair})
    if not objects:
        raise DataError(f"{path} holds no pair")
    if len(objects) > MOST_RANKED:
        raise DataError(f"{path} names {len(objects):,} objects; at most {MOST_RANKED:,} can be ranked")
    place = {i: k for k, i in enumerate(objects)}
    above = torch.eye(len(objects), dtype=torch.bool)
    for a, b in pairs:
        above[place[a], place[b]] = True
    for k in range(len(objects)):  # Warshall: a path may go through object k too
        above |= above[:, k : k + 1] & above[k : k + 1]
    circle = (above & above.T).fill_diagonal_(False)
    if bool(circle.any()):
        i, j = circle.nonzero()[0].tolist()
        line = 2 + pairs.index(next(p for p in pairs if circle[place[p[0]], place[p[1]]]))
        raise DataError(
            f"{path}, line {line}: the pairs go in a circle, objects number {objects[i]} and {objects[j]} are each "
            "better than the other"
        )
    return objects, above
