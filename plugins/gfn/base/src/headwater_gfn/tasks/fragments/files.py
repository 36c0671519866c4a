"""Molecules on disk: SMILES lists, tables and SD files, each with the block tree, from which reading back is exact."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headwater import DataError
from torch import Tensor

from headwater_gfn.environment import Samples
from headwater_gfn.tasks.fragments.library import rdkit
from headwater_gfn.tasks.fragments.tables import Tables

if TYPE_CHECKING:
    from headwater_gfn.tasks.fragments.environment import Fragments

__all__ = ["parse_tree", "read", "write"]

_PART = re.compile(r"(\d+)(?:@(\d+)\.(\d+):(\d+))?")


def write(environment: "Fragments", samples: Samples, path: Path, start: int = 0) -> None:
    """Write samples by the suffix of ``path``.

    ``.smi``: SMILES, the tree, log R; tabs between. ``.csv``: columns x (the tree), log_reward, smiles. ``.sdf``: 2D
    coordinates and the properties log_reward and x. ``.jsonl``: the same names as the table.
    """
    trees, smiles = environment.describe(samples.x), environment.smiles(samples.x)
    rows = list(zip(trees, samples.log_reward.tolist(), smiles, strict=True))
    name = path.name.lower()
    if name.endswith(".smi"):
        text = "".join(f"{s}\t{x}\t{r!r}\n" for x, r, s in rows)
    elif name.endswith(".sdf"):
        text = _sdf(environment, samples, rows, start)
    elif name.endswith(".jsonl"):
        text = "".join(json.dumps({"x": x, "log_reward": r, "smiles": s}) + "\n" for x, r, s in rows)
    else:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows(([("x", "log_reward", "smiles")] if start == 0 else []) + rows)
        text = buffer.getvalue()
    path.write_text(text, encoding="utf-8")


def _sdf(environment: "Fragments", samples: Samples, rows: Sequence[tuple[str, float, str]], start: int) -> str:
    chem, depictor = rdkit("Chem"), rdkit("Chem.rdDepictor")
    buffer = io.StringIO()
    writer = chem.SDWriter(buffer)
    writer.SetProps(["log_reward", "smiles", "x"])
    for i, (molecule, (tree, log_reward, smiles)) in enumerate(
        zip(environment.molecules(samples.x), rows, strict=True)
    ):
        mol = chem.Mol(molecule.mol)
        depictor.Compute2DCoords(mol)
        for name, value in (("_Name", f"molecule-{start + i}"), ("x", tree), ("smiles", smiles)):
            mol.SetProp(name, value)
        mol.SetProp("log_reward", repr(log_reward))
        writer.write(mol)
    writer.close()
    # RDKit numbers the properties of each part from 1; the molecule's name carries the number in the whole job.
    return re.sub(r"^(> {1,2}<\w+>) {1,2}\(\d+\) *$", r"\1", buffer.getvalue(), flags=re.MULTILINE)


def read(environment: "Fragments", path: Path) -> Tensor:
    """Read terminal states from what :func:`write` wrote.

    Raises:
        DataError: the file is missing, empty or damaged, or an item is no tree of the library.
    """
    try:
        words = _words(path)
        x = environment.parse(words)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise DataError(f"{path}: no {error}; it needs 'x', the block tree that headwater writes") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}") from error
    if not len(x):
        raise DataError(f"{path} holds no molecule")
    return x


def _words(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    name = path.name.lower()
    if name.endswith(".smi"):
        rows = [line.split("\t") for line in text.splitlines() if line.strip()]
        short = [row[0] for row in rows if len(row) < 2]
        if short:
            raise ValueError(f"{short[0]!r} has no block tree after its SMILES, so it cannot be read")
        return [row[1] for row in rows]
    if name.endswith(".sdf"):
        found = re.findall(r"^> +<x>.*\n(.*)$", text, flags=re.MULTILINE)
        if len(found) != text.count("$$$$"):
            raise ValueError("a molecule has no property x, the block tree that headwater writes")
        return found
    if name.endswith(".jsonl"):
        return [str(json.loads(line)["x"]) for line in text.splitlines() if line.strip()]
    return [row["x"] for row in csv.DictReader(io.StringIO(text))]


def parse_tree(word: str, size: int, tables: Tables) -> list[int]:
    """One state's row (4 N + 1,), not in canonical form, from the tree in words.

    Raises:
        ValueError: ``word`` is no tree of this library.
    """
    parts = [_PART.fullmatch(part) for part in word.split()]
    if not parts or None in parts:
        raise ValueError(f"{word!r} is no block tree; write a block, then block@parent.stem:own for each further one")
    if len(parts) > size:
        raise ValueError(f"{word!r} has {len(parts)} blocks, and {size} is the most")
    counts = tables.count.tolist()
    row = [-1] * (4 * size) + [1]
    taken: set[tuple[int, int]] = set()
    for i, part in enumerate(p for p in parts if p is not None):
        block = int(part[1])
        if block >= len(counts):
            raise ValueError(f"{word!r} has the block {block}, and the library has {len(counts)}, from 0 on")
        row[i] = int(tables.kind[block])
        if (part[2] is None) != (i == 0):
            raise ValueError(f"{word!r}: the first block has no bond, and each further one has one")
        if part[2] is None:
            continue
        parent, stem, own = (int(part[k]) for k in (2, 3, 4))
        if parent >= i:
            raise ValueError(f"{word!r}: the parent of block {i} does not come before it")
        for slot, position in ((parent, stem), (i, own)):
            if position >= counts[row[slot]]:
                raise ValueError(f"{word!r}: block {row[slot]} has {counts[row[slot]]} stems, and none is {position}")
            if (slot, position) in taken:
                raise ValueError(f"{word!r}: stem {position} of slot {slot} has two bonds")
            taken.add((slot, position))
        row[size + i], row[2 * size + i], row[3 * size + i] = parent, stem, own
    return row
