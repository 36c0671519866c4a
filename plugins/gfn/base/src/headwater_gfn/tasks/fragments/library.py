"""The library of fragments: building blocks, each a small molecule with the atoms at which it can be joined."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from headwater import DataError, UsageError

__all__ = ["Block", "default_library", "rdkit", "read_library"]


def rdkit(name: str) -> ModuleType:
    """Import a module of RDKit, as ``rdkit("Chem")``.

    Raises:
        UsageError: RDKit is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"rdkit.{name}")
    except ImportError as error:
        raise UsageError("molecules need RDKit: pip install 'headwater-gfn[mol]'") from error


@dataclass(frozen=True)
class Block:
    """A building block.

    ``stems`` are the indices, in the order of the SMILES, of the atoms that can be joined; an atom that can be
    joined twice is listed twice. The first is the one used when the block is added to a molecule.
    """

    name: str
    smiles: str
    stems: tuple[int, ...]


def default_library() -> tuple[Block, ...]:
    """The embedded library: common rings, linkers and substituents of drug-like molecules."""
    return tuple(Block(name, smiles, stems) for name, smiles, stems in _DEFAULT)


def read_library(path: Path) -> tuple[Block, ...]:
    """Read a library in the JSON format of the 105-block library: columns ``block_smi``, ``block_r``, ``block_name``.

    A column is a list, or an object whose keys number the blocks. ``block_r`` lists the stems of each block;
    ``block_name`` may be left out.

    Raises:
        DataError: the file is missing, no JSON or of another form, or a block is no molecule that can be joined at
            its stems.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the fragments {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is truncated or no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no table; it needs the columns block_smi and block_r")
    columns = {name: _column(content, name, path) for name in ("block_smi", "block_r")}
    size = len(columns["block_smi"])
    columns["block_name"] = (
        _column(content, "block_name", path) if "block_name" in content else [f"block {i}" for i in range(size)]
    )
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: the columns have unequal lengths: {lengths}")
    if not size:
        raise DataError(f"{path} holds no block")
    blocks = []
    for name, smiles, stems in zip(columns["block_name"], columns["block_smi"], columns["block_r"], strict=True):
        if not isinstance(smiles, str):
            raise DataError(f"{path}: block {name!r}: block_smi is {smiles!r}, not a SMILES")
        if not isinstance(stems, list) or not all(type(i) is int for i in stems):
            raise DataError(f"{path}: block {name!r}: block_r is {stems!r}, not a list of atom indices")
        blocks.append(Block(str(name), smiles, tuple(stems)))
    for block in blocks:
        problem = problem_of(block)
        if problem:
            raise DataError(f"{path}: block {block.name!r}: {problem}")
    return tuple(blocks)


def _column(content: dict[str, Any], name: str, path: Path) -> list[Any]:
    if name not in content:
        raise DataError(f"{path} has no column {name!r}; it needs block_smi and block_r")
    column = content[name]
    if isinstance(column, dict):
        try:
            return [column[key] for key in sorted(column, key=int)]
        except ValueError as error:
            raise DataError(f"{path}: the keys of {name} are no numbers") from error
    if not isinstance(column, list):
        raise DataError(f"{path}: {name} is neither a list nor an object")
    return column


def problem_of(block: Block) -> str | None:
    """Why ``block`` cannot be used, or ``None``."""
    chem = rdkit("Chem")
    known = {chem.GetPeriodicTable().GetElementSymbol(i) for i in range(1, 119)}
    for symbol in re.findall(r"\[\d*([A-Za-z][a-z]?|\*)", block.smiles):
        if symbol == "*" or not {symbol, symbol.capitalize(), symbol[0].upper()} & known:
            return f"{block.smiles!r} has the unknown element {symbol!r}"
    if "*" in block.smiles:
        return f"{block.smiles!r} has an open atom '*'; the stems are given by block_r"
    with rdkit("rdBase").BlockLogs():
        mol = chem.MolFromSmiles(block.smiles, sanitize=False)
        if mol is None or not mol.GetNumAtoms():
            return f"{block.smiles!r} is no SMILES"
        try:
            chem.SanitizeMol(mol)
        except ValueError as error:
            return f"{block.smiles!r} is no molecule: {error}"
    atoms = mol.GetNumAtoms()
    if not block.stems:
        return "it has no stem"
    outside = [i for i in block.stems if not 0 <= i < atoms]
    if outside:
        return f"stem {outside[0]} is no atom of {block.smiles!r}, whose {atoms} atoms count from 0"
    if len(chem.GetMolFrags(mol)) > 1:
        return f"{block.smiles!r} is more than one molecule"
    from headwater_gfn.tasks.fragments.molecules import join

    carbon = chem.MolFromSmiles("C")
    bonds = [(0, i, k + 1, 0) for k, i in enumerate(block.stems)]
    try:
        with rdkit("rdBase").BlockLogs():
            join([chem.MolFromSmiles(block.smiles), *[carbon] * len(bonds)], bonds)
    except ValueError:
        return f"{block.smiles!r} has no room for a bond at each of its stems {list(block.stems)}"
    return None


_DEFAULT: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("phenyl", "c1ccccc1", (0, 1, 2, 3, 4, 5)),
    ("pyridin-4-yl", "c1ccncc1", (0, 1, 2, 4, 5)),
    ("pyridin-3-yl", "c1ccncc1", (1, 0, 2, 4, 5)),
    ("pyridin-2-yl", "c1ccncc1", (2, 0, 1, 4, 5)),
    ("pyrimidin-5-yl", "c1cncnc1", (0, 3)),
    ("pyrimidin-2-yl", "c1cncnc1", (3, 0)),
    ("thiophen-2-yl", "c1ccsc1", (2, 4)),
    ("furan-2-yl", "c1ccoc1", (2, 4)),
    ("pyrazol-1-yl", "c1cn[nH]c1", (3, 0)),
    ("pyrazol-4-yl", "c1cn[nH]c1", (0, 3)),
    ("indol-3-yl", "c1ccc2[nH]ccc2c1", (6, 0)),
    ("naphthalen-2-yl", "c1ccc2ccccc2c1", (0, 6)),
    ("cyclohexyl", "C1CCCCC1", (0, 3)),
    ("cyclopropyl", "C1CC1", (0,)),
    ("piperidin-1-yl", "C1CCNCC1", (3, 0)),
    ("piperidin-4-yl", "C1CCNCC1", (0, 3)),
    ("pyrrolidin-1-yl", "C1CCNC1", (3,)),
    ("piperazin-1-yl", "C1CNCCN1", (2, 5)),
    ("morpholin-4-yl", "C1COCCN1", (5,)),
    ("amide, by carbon", "NC=O", (1, 0)),
    ("amide, by nitrogen", "NC=O", (0, 1)),
    ("sulfonamide, by sulfur", "N[SH](=O)=O", (1, 0)),
    ("carbonyl", "C=O", (0, 0)),
    ("ether", "O", (0, 0)),
    ("amine", "N", (0, 0)),
    ("methylene", "C", (0, 0)),
    ("methyl", "C", (0,)),
    ("isopropyl", "CCC", (1,)),
    ("methoxy", "CO", (1,)),
    ("carboxyl", "O=CO", (1,)),
    ("fluoro", "F", (0,)),
    ("chloro", "Cl", (0,)),
    ("trifluoromethyl", "FC(F)F", (1,)),
    ("cyano", "C#N", (0,)),
)
