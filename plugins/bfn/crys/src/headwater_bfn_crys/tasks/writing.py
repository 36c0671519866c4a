"""Crystals into files: CIF, extended XYZ, POSCAR, CSV and Parquet, the same digits in each."""

import csv
import io
import re
import shutil
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from headwater import DataError, Writer
from headwater.task import join_bytes

from headwater_bfn_crys.crystals import Crystals, wrap_unit
from headwater_bfn_crys.tasks.reading import BLOCK_CODE, POSCAR_NAME, SUFFIXES, pyarrow_module, read_file

__all__ = ["CrystalWriter", "cif_text", "rounded", "write_csv"]

LENGTH_DIGITS, ANGLE_DIGITS, FRAC_DIGITS = 6, 6, 8
"""Decimals of edges in angstrom, of angles in degrees, and of fractional coordinates in every file."""

CARTESIAN_DIGITS = 12
"""Decimals of Cartesian numbers, so that the decimals above come back out of them."""


def rounded(crystals: Crystals, start: int = 0) -> Crystals:
    """What every file holds of ``crystals``: the stated decimals, and a name for each."""
    return Crystals(
        crystals.numbers,
        # Once more: 0.999999999 is rounded to 1. And zero has no sign in a file.
        wrap_unit(np.round(crystals.frac, FRAC_DIGITS)) + 0.0,
        np.round(crystals.lengths, LENGTH_DIGITS) + 0.0,
        np.round(crystals.angles, ANGLE_DIGITS) + 0.0,
        crystals.num_atoms,
        tuple(crystals.ids) or tuple(f"crystal-{start + i:06d}" for i in range(len(crystals))),
    )


class CrystalWriter(Writer):
    """Writes and reads crystals by file suffix; ``""`` is a folder of CIFs, ``.poscar`` a folder of POSCARs."""

    suffixes = (".cif", ".extxyz", ".csv", ".parquet", ".poscar", "")
    readable = tuple(suffix for suffix in SUFFIXES if suffix not in {".cif", ".extxyz", ".csv", ".parquet", ".poscar"})

    def write(self, samples: Crystals, path: Path, start: int = 0) -> None:
        """Write ``samples`` in the format of the suffix, edges and angles to 6 decimals, coordinates to 8."""
        crystals = rounded(samples, start)
        match self.suffix_of(path):
            case ".cif":
                path.write_text("".join(f"{text}\n" for text in _cifs(crystals)), encoding="utf-8")
            case ".extxyz":
                path.write_text("".join(_extxyz(crystals)), encoding="utf-8")
            case ".csv":
                write_csv(crystals, path, header=start == 0)
            case ".parquet":
                _write_parquet(_table(crystals), path)
            case ".poscar":
                _write_folder(_poscars(crystals), path, ".vasp", start)
            case _:
                _write_folder(_cifs(crystals), path, ".cif", start)

    def suffix_of(self, path: Path) -> str:
        """As any writer's; a folder that is there is one of CIFs whatever its name, but for ``.poscar``."""
        if path.is_dir() and not path.name.lower().endswith(".poscar"):
            return ""
        return super().suffix_of(path)

    def read(self, path: Path) -> Crystals:
        """Read crystals in the cells that the file gives; any file that training reads will do.

        Raises:
            DataError: it cannot be read, or one of its crystals cannot.
        """
        parsed = read_file(path, reduce=False, check=False)
        if parsed.bad:
            more = f"; {len(parsed.bad) - 1} more are bad" if len(parsed.bad) > 1 else ""
            raise DataError(f"{parsed.bad[0]}{more}")
        return rounded(parsed.crystals)

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Join part files: texts end to end, tables row by row, folders file by file."""
        match self.suffix_of(path):
            case ".parquet":
                pyarrow = pyarrow_module()
                _write_parquet(pyarrow.concat_tables([pyarrow.parquet.read_table(part) for part in parts]), path)
            case ".poscar" | "":
                path.mkdir(parents=True)
                for part in parts:
                    for file in sorted(part.iterdir()):
                        shutil.copyfile(file, path / file.name)
            case _:
                join_bytes(parts, path)

    def cut(self, samples: Crystals, n: int) -> Crystals:
        return samples[:n]


def _each(crystals: Crystals) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Name, numbers, coordinates, edges and angles of each crystal."""
    for b, (i, j) in enumerate(zip(crystals.offsets[:-1], crystals.offsets[1:], strict=True)):
        yield crystals.ids[b], crystals.numbers[i:j], crystals.frac[i:j], crystals.lengths[b], crystals.angles[b]


def _symbols(numbers: np.ndarray) -> list[str]:
    from ase.data import chemical_symbols

    return [chemical_symbols[z] for z in numbers]


def cif_text(name: str, numbers: np.ndarray, frac: np.ndarray, lengths: np.ndarray, angles: np.ndarray) -> str:
    """One crystal as a P1 CIF block."""
    symbols = _symbols(numbers)
    counts = {symbol: symbols.count(symbol) for symbol in symbols}
    lines = [
        f"data_{re.sub(r'[^!-~]+', '_', name)[:70] or 'crystal'}",
        f"{BLOCK_CODE} {_quoted(name)}",
        "_symmetry_space_group_name_H-M 'P 1'",
        "_symmetry_Int_Tables_number 1",
        *(f"_cell_length_{x} {v:.{LENGTH_DIGITS}f}" for x, v in zip("abc", lengths, strict=True)),
        *(
            f"_cell_angle_{x} {v:.{ANGLE_DIGITS}f}"
            for x, v in zip(("alpha", "beta", "gamma"), angles, strict=True)
        ),
        f"_chemical_formula_sum '{' '.join(f'{symbol}{n}' for symbol, n in counts.items())}'",
        "loop_", "_symmetry_equiv_pos_site_id", "_symmetry_equiv_pos_as_xyz", "1 'x, y, z'",
        "loop_", "_atom_site_type_symbol", "_atom_site_label",
        "_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z", "_atom_site_occupancy",
        *(
            f"{symbol} {symbol}{i} {x:.{FRAC_DIGITS}f} {y:.{FRAC_DIGITS}f} {z:.{FRAC_DIGITS}f} 1"
            for i, (symbol, (x, y, z)) in enumerate(zip(symbols, frac, strict=True), 1)
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    """A name between CIF's quotes, on one line, in ASCII."""
    name = " ".join(name.encode("ascii", "ignore").decode().split())
    return f"'{name}'" if "'" not in name else '"' + name.replace('"', "'") + '"'


def _cifs(crystals: Crystals) -> Iterator[str]:
    for one in _each(crystals):
        yield cif_text(*one)


def _extxyz(crystals: Crystals) -> Iterator[str]:
    digits = CARTESIAN_DIGITS
    for (name, numbers, frac, _, _), matrix in zip(_each(crystals), crystals.matrices, strict=True):
        lattice = " ".join(f"{v + 0.0:.{digits}f}" for v in np.round(matrix, digits).ravel())
        lines = [
            str(len(numbers)),
            f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 name="{_plain(name)}" pbc="T T T"',
            *(
                f"{symbol:<2} {x + 0.0:.{digits}f} {y + 0.0:.{digits}f} {z + 0.0:.{digits}f}"
                for symbol, (x, y, z) in zip(_symbols(numbers), np.round(frac @ matrix, digits), strict=True)
            ),
        ]
        yield "\n".join(lines) + "\n"


def _plain(name: str) -> str:
    """A name that extended XYZ holds between double quotes."""
    return " ".join(name.split()).replace('"', "'").replace("\\", "/")


def _poscars(crystals: Crystals) -> Iterator[str]:
    digits = CARTESIAN_DIGITS
    for (name, numbers, frac, _, _), matrix in zip(_each(crystals), crystals.matrices, strict=True):
        # The order of the atoms is kept: an element that comes again opens another group.
        groups = [(symbol, len(list(group))) for symbol, group in groupby(_symbols(numbers))]
        lines = [
            POSCAR_NAME + " ".join(name.split()),
            "1.0",
            *(" ".join(f"{v + 0.0:.{digits}f}" for v in row) for row in np.round(matrix, digits)),
            " ".join(symbol for symbol, _ in groups),
            " ".join(str(n) for _, n in groups),
            "direct",
            *(" ".join(f"{v:.{FRAC_DIGITS}f}" for v in row) for row in frac),
        ]
        yield "\n".join(lines) + "\n"


def _write_folder(texts: Iterator[str], path: Path, suffix: str, start: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts, start):
        (path / f"{i:06d}{suffix}").write_text(text, encoding="utf-8")


def _columns(crystals: Crystals) -> dict[str, list[Any]]:
    """The columns of a table: those that the field uses first, then numbers to filter by."""
    lengths, angles = crystals.lengths.tolist(), crystals.angles.tolist()
    return {
        "material_id": list(crystals.ids),
        "formula": [formula.replace(" ", "") for formula in crystals.formulas],
        "num_atoms": crystals.num_atoms.tolist(),
        **{name: [row[k] for row in lengths] for k, name in enumerate("abc")},
        **{name: [row[k] for row in angles] for k, name in enumerate(("alpha", "beta", "gamma"))},
        "volume": np.round(crystals.volumes, 6).tolist(),
        "cif": list(_cifs(crystals)),
    }


def write_csv(crystals: Crystals, path: Path, header: bool = True) -> None:
    """Write a table with the columns ``material_id``, ``cif`` and what is worth filtering by."""
    columns = _columns(crystals)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    path.write_text(buffer.getvalue(), encoding="utf-8")


def _table(crystals: Crystals) -> Any:
    pyarrow = pyarrow_module()
    kinds = {"material_id": pyarrow.string(), "formula": pyarrow.string(), "cif": pyarrow.string()}
    kinds["num_atoms"] = pyarrow.int64()
    columns = _columns(crystals)
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in columns])
    return pyarrow.table(columns, schema=schema)


def _write_parquet(table: Any, path: Path) -> None:
    pyarrow_module().parquet.write_table(table.combine_chunks(), path, compression="zstd")
