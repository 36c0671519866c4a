"""Crystals out of files: CSV, Parquet, CIF, POSCAR, extended XYZ and pymatgen JSON, checked and reduced."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from headwater import DataError
from headwater_bfn.pool import Failure, Pool

from headwater_bfn_crys.crystals import Crystals, cell_matrix, cell_parameters
from headwater_bfn_crys.tasks.validity import SMALLEST_VOLUME

__all__ = [
    "BLOCK_CODE",
    "POSCAR_NAME",
    "SUFFIXES",
    "Bad",
    "Item",
    "cached",
    "items_of",
    "parse",
    "pyarrow_module",
    "read_file",
    "unique_ids",
]

SUFFIXES = (".csv", ".parquet", ".json", ".json.gz", ".cif", ".extxyz", ".xyz", ".vasp", ".poscar")
"""Files that can be read; files named POSCAR or CONTCAR too."""

BLOCK_CODE = "_audit_block_code"
"""The CIF item in which a crystal's name is written."""

POSCAR_NAME = "id: "
"""What stands before a crystal's name on the first line of a POSCAR."""

VERSION = 1
"""Of what ``parse`` makes of a file: another number makes old caches invalid."""

ALONE = 500
"""Up to so many crystals are parsed in this process: starting others takes longer."""


@dataclass(frozen=True)
class Item:
    """One crystal as a file gives it: ``kind`` says what ``content`` is."""

    where: str
    name: str
    kind: str
    content: Any


@dataclass(frozen=True)
class Bad:
    """A crystal that cannot be used: the file and row, and the reason."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Unfit(Exception):
    """Why a crystal cannot be used."""


# Files to items


def items_of(path: Path) -> Iterator[Item | Bad]:
    """The crystals in the file or folder ``path``, not yet parsed.

    Raises:
        DataError: it is missing, of an unknown kind, holds no crystal, or lacks the column ``cif``.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _kind(file) is not None)
        if not files:
            raise DataError(f"{path} holds no crystal; files that can be read: {', '.join(SUFFIXES)}, POSCAR, CONTCAR")
        for file in files:
            yield from items_of(file)
        return
    kind = _kind(path)
    if kind is None:
        raise DataError(f"cannot read {path}; files that can be read: {', '.join(SUFFIXES)}, POSCAR, CONTCAR")
    try:
        yield from READERS[kind](path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error})") from error


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    if name.startswith("."):
        return None
    if re.match(r"(poscar|contcar)\b", name):
        return ".vasp"
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _csv(path: Path) -> Iterator[Item]:
    csv.field_size_limit(1 << 27)  # a CIF of a large cell is longer than the module's usual field
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        _need_cif(path, rows.fieldnames or [])
        i = 0
        try:
            for i, row in enumerate(rows, 1):
                name = row.get("material_id") or ""
                yield Item(_row(path, i, name), name, "cif", row["cif"] or "")
        except csv.Error as error:
            raise DataError(f"{path} row {i + 1} is no CSV: {error}") from error


def _need_cif(path: Path, columns: Sequence[str]) -> None:
    if "cif" not in columns:
        raise DataError(f"{path} has no column 'cif' with the crystals; its columns are {', '.join(columns) or 'none'}")


def _row(path: Path, i: int, name: str) -> str:
    return f"{path} row {i}" + (f" ({name})" if name else "")


def _parquet(path: Path) -> Iterator[Item]:
    pyarrow = pyarrow_module()
    try:
        file = pyarrow.parquet.ParquetFile(path)
        _need_cif(path, file.schema_arrow.names)
        named = "material_id" in file.schema_arrow.names
        i = 0
        for batch in file.iter_batches(columns=["material_id", "cif"] if named else ["cif"]):
            for row in batch.to_pylist():
                i += 1
                name = str(row.get("material_id") or "")
                yield Item(_row(path, i, name), name, "cif", row["cif"] or "")
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no Parquet table: {error}") from error


def pyarrow_module() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise DataError("Parquet tables need pyarrow: pip install 'headwater-bfn-crys[parquet]'") from error
    return pyarrow


def _json(path: Path) -> Iterator[Item]:
    raw = path.read_bytes()
    try:
        content = json.loads(gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if isinstance(content, dict) and "lattice" not in content:
        entries = list(content.items())
    else:
        entries = [("", entry) for entry in (content if isinstance(content, list) else [content])]
    for i, (name, entry) in enumerate(entries, 1):
        # Databases wrap the structure in a record with an id beside it.
        inner = entry.get("structure", entry) if isinstance(entry, dict) else entry
        name = name or str(entry.get("material_id", "") if isinstance(entry, dict) else "")
        yield Item(_row(path, i, name), name, "json", inner)


def _cif(path: Path) -> Iterator[Item | Bad]:
    blocks = _blocks(path.read_text(encoding="utf-8", errors="replace"))
    if not blocks:
        yield Bad(str(path), "no data_ block, so it is no CIF")
    for i, (name, text) in enumerate(blocks, 1):
        if BLOCK_CODE in text:  # the name in full, which a block's head cannot hold
            name = ""
        elif len(blocks) == 1:
            name = path.stem
        yield Item(str(path) if len(blocks) == 1 else f"{path} block {i} ({name})", name, "cif", text)


def _blocks(text: str) -> list[tuple[str, str]]:
    """Name and text of each data block that speaks of atoms; of all, where none does."""
    starts = [match.start() for match in re.finditer(r"^data_", text, flags=re.MULTILINE)]
    found = [text[i:j] for i, j in pairwise([*starts, len(text)])]
    named = [(block.split(maxsplit=1)[0].removeprefix("data_"), block) for block in found]
    return [(name, block) for name, block in named if "_atom_site" in block] or named


def _extxyz(path: Path) -> Iterator[Item | Bad]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    at = i = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        i += 1
        where = f"{path} frame {i}"
        if not lines[at].strip().isdecimal():
            yield Bad(where, f"line {at + 1} must be a number of atoms, and is {lines[at].strip()[:40]!r}")
            return
        count = int(lines[at])
        frame = lines[at : at + count + 2]
        if len(frame) < count + 2:
            yield Bad(where, f"ends before its {count} atoms do")
            return
        yield Item(where, "", "extxyz", "".join(frame))
        at += count + 2


def _poscar(path: Path) -> Iterator[Item]:
    text = path.read_text(encoding="utf-8")
    name = "" if text.startswith(POSCAR_NAME) else path.stem if path.suffix else path.name
    yield Item(str(path), name, "poscar", text)


READERS = {
    ".csv": _csv, ".parquet": _parquet, ".json": _json, ".json.gz": _json, ".cif": _cif,
    ".extxyz": _extxyz, ".xyz": _extxyz, ".vasp": _poscar, ".poscar": _poscar,
}  # fmt: skip


# Items to crystals


def parse(item: Item, *, reduce: bool, check: bool = True) -> Crystals | Bad:
    """The crystal of ``item``, in its Niggli-reduced cell if ``reduce``; its coordinates are wrapped.

    With ``check`` a cell without volume is refused too; samples of a model may have one and are read without.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            numbers, frac, matrix, name = PARSERS[item.kind](item.content)
            _check(numbers, frac, matrix, check)
            if reduce:
                frac, matrix = _niggli(frac, matrix)
        return Crystals.of(numbers, frac, *cell_parameters(matrix), name=item.name or name)
    except Unfit as error:
        return Bad(item.where, str(error))
    except Exception as error:  # the libraries raise all kinds for a damaged file
        return Bad(item.where, f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}")


Raw = tuple[np.ndarray, np.ndarray, np.ndarray, str]
"""Atomic numbers (N,), fractional coordinates (N, 3), lattice rows (3, 3), a name or nothing."""


def _parse_cif(text: str) -> Raw:
    from pymatgen.io.cif import CifBlock, CifParser, str2float

    blocks = _blocks(text)
    if not blocks:
        raise Unfit("no data_ block, so it is no CIF" if text.strip() else "the CIF is empty")
    name, text = blocks[0]
    data = CifBlock.from_str(text).data
    if not _is_p1(data):
        # Symmetry is expanded by pymatgen, which also finds operations that are only named.
        structures = CifParser.from_str(text).parse_structures(primitive=False, on_error="raise")
        return (*_from_structure(structures[0]), "")
    for key in ("_cell_length_a", "_cell_angle_alpha", "_atom_site_fract_x"):
        if key not in data:
            raise Unfit(f"has no {key}")
    lengths = np.array([str2float(data[f"_cell_length_{x}"]) for x in "abc"])
    angles = np.array([str2float(data[f"_cell_angle_{x}"]) for x in ("alpha", "beta", "gamma")])
    frac = np.array([[str2float(v) for v in _column(data, f"_atom_site_fract_{x}")] for x in "xyz"]).T
    label = "_atom_site_type_symbol" not in data
    symbols = _column(data, "_atom_site_label" if label else "_atom_site_type_symbol")
    for i, value in enumerate(_column(data, "_atom_site_occupancy") if "_atom_site_occupancy" in data else []):
        if value not in (".", "?") and abs(str2float(value) - 1.0) > 1e-3:
            raise Unfit(f"is disordered: site {i + 1} ({symbols[i]}) has the occupancy {value}")
    name = str(data.get(BLOCK_CODE, ""))
    return np.array([_number(symbol, label) for symbol in symbols]), frac, cell_matrix(lengths, angles), name


def _column(data: dict[str, Any], key: str) -> list[str]:
    value = data[key]
    return value if isinstance(value, list) else [value]


def _is_p1(data: dict[str, Any]) -> bool:
    for key in ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz"):
        if key in data:
            operations = [re.sub(r"[\s+']", "", one).lower() for one in _column(data, key)]
            return operations == ["x,y,z"]
    names = ("_symmetry_space_group_name_H-M", "_space_group_name_H-M_alt", "_space_group_name_H-M_ref")
    given = [str(data[name]).replace(" ", "").upper() for name in names if name in data]
    given += [str(data[n]) for n in ("_symmetry_Int_Tables_number", "_space_group_IT_number") if n in data]
    return all(name in ("P1", "1", "?", ".") for name in given)


def _number(symbol: str, label: bool) -> int:
    """Atomic number of a type symbol such as ``Fe``, ``Fe3+``, ``FE``, or of a ``label`` such as ``Fe12``, ``Ow``."""
    from ase.data import atomic_numbers

    letters = re.match(r"[A-Za-z]*", symbol.strip())
    word = letters[0].capitalize() if letters else ""
    if word in ("D", "T"):  # isotopes of hydrogen
        return 1
    for one in (word, word[:2], word[:1]) if label else (word,):
        if atomic_numbers.get(one, 0) > 0:
            return int(atomic_numbers[one])
    raise Unfit(f"has an unknown element {symbol!r}")


def _from_structure(structure: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not structure.is_ordered:
        site = next(i for i, site in enumerate(structure) if not site.is_ordered)
        raise Unfit(f"is disordered: site {site + 1} is {structure[site].species_string}")
    numbers = []
    for site in structure:
        number = getattr(site.specie, "Z", 0)
        if not 1 <= number <= 118:
            raise Unfit(f"has an unknown element {site.species_string!r}")
        numbers.append(number)
    return np.array(numbers), structure.frac_coords, structure.lattice.matrix


def _parse_json(content: Any) -> Raw:
    from pymatgen.core import Structure

    if not isinstance(content, dict) or "lattice" not in content or "sites" not in content:
        raise Unfit("is no pymatgen structure: it has no lattice and sites")
    return (*_from_structure(Structure.from_dict(content)), "")


def _parse_poscar(text: str) -> Raw:
    from pymatgen.io.vasp import Poscar

    poscar = Poscar.from_str(text, read_velocities=False)
    if not poscar.true_names:
        raise Unfit("names no elements: put their symbols on the sixth line, as VASP 5 does")
    head = text.partition("\n")[0].strip()  # pymatgen cuts it at a #
    name = head.removeprefix(POSCAR_NAME) if head.startswith(POSCAR_NAME) else ""
    return (*_from_structure(poscar.structure), name)


def _parse_extxyz(text: str) -> Raw:
    from ase.io.extxyz import read_extxyz

    atoms = next(iter(read_extxyz(io.StringIO(text), slice(0, 1))))
    if not atoms.cell.array.any() or not atoms.pbc.all():
        raise Unfit('is not periodic: its comment line needs Lattice="..." (and pbc="T T T", if pbc is given)')
    if (atoms.numbers < 1).any():
        raise Unfit("has an unknown element 'X'")
    frac = np.linalg.solve(atoms.cell.array.T, atoms.positions.T).T
    return atoms.numbers, frac, atoms.cell.array, str(atoms.info.get("name", ""))


PARSERS = {"cif": _parse_cif, "json": _parse_json, "poscar": _parse_poscar, "extxyz": _parse_extxyz}


def _check(numbers: np.ndarray, frac: np.ndarray, matrix: np.ndarray, volume_too: bool) -> None:
    if len(numbers) == 0:
        raise Unfit("has no atoms")
    if frac.shape != (len(numbers), 3):
        raise Unfit(f"has {len(numbers)} atoms and coordinates of the shape {frac.shape}")
    bad = ~np.isfinite(frac).all(1)
    if bad.any():
        raise Unfit(f"the coordinates of atom {int(bad.argmax()) + 1} are not finite")
    if not np.isfinite(matrix).all():
        raise Unfit("its cell is not finite: edges and angles close no cell")
    volume = abs(float(np.linalg.det(matrix)))
    if volume_too and volume < SMALLEST_VOLUME:
        raise Unfit(f"its cell has a volume of {volume:.3g} cubic angstrom; at least {SMALLEST_VOLUME} is needed")


def _niggli(frac: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates and lattice rows of the Niggli-reduced cell, which holds the same crystal."""
    from pymatgen.core import Lattice

    reduced = Lattice(matrix).get_niggli_reduced_lattice()
    if reduced is None:
        raise Unfit("its cell cannot be reduced")
    return reduced.get_fractional_coords(frac @ matrix), np.asarray(reduced.matrix)


# Whole data sets


@dataclass(frozen=True)
class Parsed:
    """A data set: its crystals, where each of them stands, and the bad ones.

    ``settled`` is false if another try may give more: a crystal ran out of time, or its process ended.
    """

    crystals: Crystals
    where: tuple[str, ...]
    bad: list[Bad]
    settled: bool = True


def read_file(
    path: Path, *, reduce: bool = True, check: bool = True, processes: int | None = None, limit: float = 60.0
) -> Parsed:
    """All crystals of a file or folder that can be used, and what is wrong with the others.

    Raises:
        DataError: ``path`` as a whole cannot be read (see :func:`items_of`).
    """
    found = list(items_of(path))
    whole = [one for one in found if isinstance(one, Item)]
    if len(whole) <= ALONE:
        parsed = [parse(one, reduce=reduce, check=check) for one in whole]
    else:
        with Pool(processes, limit) as pool:
            parsed = pool.each(_parse_shared, whole, (reduce, check), label=path.name, unit="crystals")
    outcomes = iter(parsed)
    good: list[Crystals] = []
    where: list[str] = []
    names: list[str] = []
    bad: list[Bad] = []
    for i, one in enumerate(found, 1):
        outcome = one if isinstance(one, Bad) else next(outcomes)
        if isinstance(outcome, Crystals):
            good.append(outcome)
            where.append(one.where)
            names.append(outcome.ids[0] if outcome.ids else str(i))
        else:
            bad.append(outcome if isinstance(outcome, Bad) else Bad(one.where, outcome.reason))
    settled = not any(isinstance(one, Failure) for one in parsed)
    return Parsed(Crystals.concatenate(good).named(names), tuple(where), bad, settled)


def _parse_shared(options: tuple[bool, bool], item: Item) -> Crystals | Bad:
    return parse(item, reduce=options[0], check=options[1])


def unique_ids(ids: Sequence[str]) -> tuple[str, ...]:
    """The same names, the second of a kind followed by ``#2``, and so on."""
    seen: dict[str, int] = {}
    out = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(out)


def cached(path: Path, cache: Path | None, *, reduce: bool, processes: int | None, limit: float) -> Parsed:
    """As :func:`read_file`, out of the folder ``cache`` if the same content was parsed before.

    A cache that is damaged, of another version, or in a folder that cannot be written counts as none. What was not
    settled is not kept.
    """
    if cache is None or not path.exists():
        return read_file(path, reduce=reduce, processes=processes, limit=limit)
    stored = cache / f"{path.name}-{_digest(path, reduce)}.npz"
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return _load(stored, path)
    parsed = read_file(path, reduce=reduce, processes=processes, limit=limit)
    if not parsed.settled:
        return parsed
    beside = stored.with_name(f".{os.getpid()}-{stored.name}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _store(beside, path, parsed)
        beside.rename(stored)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        print(f"parsed crystals are not kept in {cache}: {error.strerror}", file=sys.stderr)
    return parsed


def _digest(path: Path, reduce: bool) -> str:
    """A hash of the content and of how it is parsed; times and the place of the files do not count."""
    found = hashlib.sha256(f"{VERSION} {reduce}".encode())
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            found.update(f"\0{file.name}\0".encode())
        with file.open("rb") as source:
            found.update(hashlib.file_digest(source, "sha256").digest())
    return found.hexdigest()[:16]


def _store(stored: Path, path: Path, parsed: Parsed) -> None:
    crystals = parsed.crystals
    # Places are kept without the path, for the data may move together with their cache.
    where = [place.removeprefix(str(path)) for place in parsed.where]
    bad = [(one.where.removeprefix(str(path)), one.reason) for one in parsed.bad]
    with stored.open("wb") as file:
        np.savez_compressed(
            file, numbers=crystals.numbers.astype(np.uint8), frac=crystals.frac, lengths=crystals.lengths,
            angles=crystals.angles, num_atoms=crystals.num_atoms, ids=np.array(crystals.ids, dtype=np.str_),
            where=np.array(where, dtype=np.str_), bad=np.array(bad, dtype=np.str_).reshape(-1, 2),
        )  # fmt: skip


def _load(stored: Path, path: Path) -> Parsed:
    with np.load(stored, allow_pickle=False) as part:
        crystals = Crystals(
            part["numbers"].astype(np.int64), part["frac"], part["lengths"], part["angles"], part["num_atoms"],
            tuple(part["ids"].tolist()),
        )  # fmt: skip
        where = tuple(f"{path}{place}" for place in part["where"].tolist())
        return Parsed(crystals, where, [Bad(f"{path}{place}", reason) for place, reason in part["bad"].tolist()])
