"""Reading and writing reactions: extended XYZ, folders, Transition1x HDF5, RDB7 tables, mapped reaction SMILES."""

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import iread
from ase.io import write as ase_write
from headwater import DataError, UsageError

from headwater_flow_tsgen.tasks.reaction import Reaction, check, symbols

__all__ = [
    "READABLE",
    "Faults",
    "frames_of",
    "join_ends",
    "read",
    "read_folder",
    "read_frames",
    "read_rdb7",
    "read_transition1x",
    "read_xyz",
    "write_xyz",
]

READABLE = (".xyz", ".extxyz", ".h5", ".hdf5", ".npz", ".smi", ".smiles")
"""Suffixes of the files that :func:`read` knows; a folder is read too."""

ROLES = {"r": "R", "reactant": "R", "ts": "TS", "transition_state": "TS", "p": "P", "product": "P", "ref": "REF"}
EV_KCAL = 23.060547830619026
# The splits of Transition1x, and of the RDB7 table by number.
SPLITS = ("train", "val", "test")


Faults = list[str] | None
"""Where the faults of single reactions are collected; ``None`` has the first one raised."""


@contextmanager
def collecting(faults: Faults) -> Iterator[None]:
    """Skip what raises a DataError and remember its text, where ``faults`` is a list."""
    try:
        yield
    except DataError as error:
        if faults is None:
            raise
        faults.append(str(error))


def read_frames(path: Path) -> list[Atoms]:
    """All structures of one file that ASE can read.

    Raises:
        DataError: the file is missing, empty or damaged.
    """
    try:
        frames = list(iread(str(path), index=":", format="extxyz" if path.suffix in (".xyz", ".extxyz", "") else None))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise DataError(f"{path} is no readable structure file: {type(error).__name__}: {error}") from error
    if not frames:
        raise DataError(f"{path} holds no structure")
    return frames


def join_ends(
    reactant: Atoms, product: Atoms, ts: Atoms | None = None, *, where: str, name: str = "", **fields: Any
) -> Reaction:
    """One reaction out of its structures.

    Raises:
        DataError: atoms differ in number, kind or order; they overlap or are not finite; the charge is not 0.
    """
    numbers = reactant.get_atomic_numbers()
    for role, other in (("product", product), ("transition state", ts)):
        if other is None:
            continue
        z = other.get_atomic_numbers()
        if len(z) != len(numbers):
            raise DataError(f"{where}: the reactant has {len(numbers)} atoms and the {role} {len(z)}")
        differ = np.flatnonzero(z != numbers)
        if len(differ):
            i = int(differ[0])
            here, there = symbols(numbers[[i]])[0], symbols(z[[i]])[0]
            same = sorted(z) == sorted(numbers)
            remedy = "the atoms are the same in another order: sort one file like the other" if same else (
                "they are not the same atoms: is it another reaction?"
            )  # fmt: skip
            raise DataError(f"{where}: atom {i + 1} is {here} in the reactant and {there} in the {role}; {remedy}")
    for role, frame in (("reactant", reactant), ("product", product)):
        charge = frame.info.get("charge", 0)
        if charge != 0:
            raise DataError(
                f"{where}, {role}: its charge is {charge}; the model knows neutral closed-shell molecules only"
            )
    made = Reaction(
        numbers=numbers, reactant=reactant.positions.copy(), product=product.positions.copy(),
        ts=None if ts is None else ts.positions.copy(), name=name, **fields,
    )  # fmt: skip
    return check(made, where)


def frames_of(path: Path, needed: Sequence[str] = ("R", "P")) -> Iterator[tuple[str, dict[str, Atoms]]]:
    """The frames of an extended XYZ file by reaction: its name, and a structure for each role R, TS, P (REF).

    Frames that say ``role`` belong together as long as ``rxn`` stays the same; frames without roles are taken by
    threes, in the order R, TS, P.

    Raises:
        DataError: a role is unknown or comes twice, one of ``needed`` is missing, or there are frames without roles and
            not a multiple of 3 of them.
    """
    frames = read_frames(path)
    if all("role" not in frame.info for frame in frames):
        if len(frames) % 3:
            raise DataError(
                f"{path} has {len(frames)} frames without role=; they should come by threes: R, TS, P of each reaction"
            )
        for k in range(0, len(frames), 3):
            yield f"{path.stem}-{k // 3}", dict(zip(("R", "TS", "P"), frames[k : k + 3], strict=True))
        return
    groups: dict[str, dict[str, Atoms]] = {}
    for number, frame in enumerate(frames, 1):
        said = str(frame.info.get("role", ""))
        role = ROLES.get(said.lower())
        if role is None:
            raise DataError(f"{path}, frame {number}: role={said or 'missing'}; it should be R, TS or P")
        # Without a name, a new reaction begins with each R.
        rxn = frame.info.get("rxn", len(groups) if role == "R" else len(groups) - 1)
        members = groups.setdefault(str(rxn), {})
        if role in members:
            raise DataError(f"{path}, frame {number}: a second role={role} in reaction {frame.info.get('rxn', '')}")
        members[role] = frame
    for name, members in groups.items():
        for role in needed:
            if role not in members:
                raise DataError(f"{path}, reaction {name}: no frame with role={role}")
        yield name, members


KNOWN = ("rxn", "role", "name", "group", "barrier_kcal")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def read_xyz(path: Path, faults: Faults = None) -> list[Reaction]:
    """Reactions of one extended XYZ file (see :func:`frames_of`); keys ``name``, ``group`` and ``barrier_kcal``."""
    found: list[Reaction] = []
    for rxn, members in frames_of(path):
        info = {k: _plain(v) for k, v in members["R"].info.items()}
        barrier = info.get("barrier_kcal")
        if barrier is None and "TS" in members and all("energy_eV" in members[r].info for r in ("R", "TS")):
            barrier = (members["TS"].info["energy_eV"] - members["R"].info["energy_eV"]) * EV_KCAL
        with collecting(faults):
            reaction = join_ends(
                members["R"], members["P"], members.get("TS"), where=f"{path}, reaction {rxn}",
                name=str(info.get("name", rxn)),
                group=str(info.get("group", str(info.get("reaction", rxn)).split(">>")[0])),
                barrier=None if barrier is None else float(barrier),
                info={k: v for k, v in info.items() if k not in KNOWN},
            )  # fmt: skip
            found.append(reaction)
    return found


def structure(numbers: np.ndarray, x: np.ndarray, info: dict[str, Any], **columns: np.ndarray) -> Atoms:
    """One frame with its keys and further columns, ready to be written; empty texts have no form in extended XYZ."""
    atoms = Atoms(numbers, x)
    atoms.info.update({name: value for name, value in info.items() if value != ""})
    for name, values in columns.items():
        atoms.arrays[name] = values
    return atoms


def write_frames(frames: Sequence[Atoms], path: Path) -> None:
    """Write structures as extended XYZ."""
    with path.open("w", encoding="utf-8") as out:
        for frame in frames:
            ase_write(out, frame, format="extxyz")


def write_xyz(reactions: Iterable[Reaction], path: Path) -> None:
    """Write reactions as extended XYZ: frames R, TS (where there is one) and P of each, with ``rxn`` and ``role``."""
    frames = []
    for number, reaction in enumerate(reactions):
        keys: dict[str, Any] = {"rxn": number, "name": reaction.name, "group": reaction.group}
        if reaction.barrier is not None:
            keys["barrier_kcal"] = round(reaction.barrier, 4)
        for role, x in (("R", reaction.reactant), ("TS", reaction.ts), ("P", reaction.product)):
            if x is not None:
                frames.append(structure(reaction.numbers, x, {**keys, "role": role, **reaction.info}))
    write_frames(frames, path)


def read_folder(path: Path, faults: Faults = None) -> list[Reaction]:
    """Reactions of a folder: its own ``r.xyz`` and ``p.xyz`` (and ``ts.xyz``), those of its subfolders, or XYZ files.

    Raises:
        DataError: the folder has none of them, or one of a pair is missing.
    """
    folders = [folder for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())) if _has_ends(folder)]
    found: list[Reaction] = []
    for folder in folders:
        with collecting(faults):
            found.append(_one_folder(folder))
    if folders:
        return found
    files = [path / "reactions.xyz"] if (path / "reactions.xyz").exists() else sorted(path.glob("*.xyz"))
    if not files:
        raise DataError(f"{path} has neither r.xyz and p.xyz, nor folders with them, nor XYZ files of reactions")
    return [reaction for file in files for reaction in read_xyz(file, faults)]


def _one_folder(folder: Path) -> Reaction:
    for name in ("r.xyz", "p.xyz"):
        if not (folder / name).exists():
            raise DataError(f"{folder} has no {name}; a reaction needs r.xyz and p.xyz")
    ts = read_frames(folder / "ts.xyz")[-1] if (folder / "ts.xyz").exists() else None
    reactant, product = (read_frames(folder / name)[-1] for name in ("r.xyz", "p.xyz"))
    return join_ends(reactant, product, ts, where=str(folder), name=folder.name, group=folder.name)


def _has_ends(folder: Path) -> bool:
    return (folder / "r.xyz").exists() or (folder / "p.xyz").exists()


def read_transition1x(path: Path, faults: Faults = None) -> list[Reaction]:
    """Reactions of Transition1x HDF5: groups split/formula/rxn, in each reactant, transition_state and product.

    Where the file has the groups train, val and test those are read, and are the reactions' parts; else ``data``.

    Raises:
        DataError: the file is no HDF5 of this layout.
        UsageError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UsageError("reading HDF5 needs h5py: pip install 'headwater-flow-tsgen[hdf5]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"cannot read {path} as HDF5: {error}") from error
    found: list[Reaction] = []
    with file:
        splits = [split for split in SPLITS if split in file] or (["data"] if "data" in file else [])
        if not splits:
            raise DataError(f"{path} has none of the groups train, val, test, data, as Transition1x has")
        for split in splits:
            for formula, group in file[split].items():
                for name, rxn in group.items():
                    with collecting(faults):
                        where = f"{path}: {split}/{formula}/{name}"
                        part = "" if split == "data" else split
                        found.append(_transition1x_reaction(rxn, where, f"{formula}/{name}", formula, part))
    return found


def _transition1x_reaction(rxn: Any, where: str, name: str, formula: str, part: str) -> Reaction:
    numbers = np.asarray(rxn["atomic_numbers"]) if "atomic_numbers" in rxn else None
    ends, energy = {}, {}
    for end in ("reactant", "transition_state", "product"):
        if end not in rxn:
            raise DataError(f"{where} has no group {end}")
        group = rxn[end]
        if "positions" not in group:
            raise DataError(f"{where}/{end} has no positions")
        z = np.asarray(group["atomic_numbers"]) if "atomic_numbers" in group else numbers
        if z is None:
            raise DataError(f"{where} has no atomic_numbers")
        ends[end] = Atoms(z, np.asarray(group["positions"], dtype=np.float64).reshape(-1, len(z), 3)[-1])
        for key in ("wB97x_6-31G(d).energy", "wB97x_6-31G(d)"):
            if key in group:
                energy[end] = float(np.asarray(group[key]).ravel()[-1])
                break
    barrier = None
    if "reactant" in energy and "transition_state" in energy:
        barrier = (energy["transition_state"] - energy["reactant"]) * EV_KCAL
    return join_ends(
        ends["reactant"], ends["product"], ends["transition_state"], where=where, name=name,
        group=formula, part=part, barrier=barrier,
    )  # fmt: skip


def read_rdb7(path: Path, faults: Faults = None, split: str = "grouped") -> list[Reaction]:
    """Reactions of an RDB7 table (NPZ: natoms, z, pos [R, TS, P], barrier_kcal, smiles).

    Their parts come from its column ``split_<split>`` (0 train, 1 val, 2 test), if it has that one.

    Raises:
        DataError: an array is missing or does not fit the others.
    """
    try:
        with np.load(path, allow_pickle=False) as table:
            arrays = {name: table[name] for name in table.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read {path} as NPZ: {error}") from error
    missing = [name for name in ("natoms", "z", "pos") if name not in arrays]
    if missing:
        raise DataError(f"{path} has no array {', '.join(missing)}; a table of reactions has natoms, z and pos")
    counts = arrays["natoms"].astype(np.int64)
    ends = counts.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    if arrays["z"].shape != (total,) or arrays["pos"].shape != (total, 3, 3):
        raise DataError(
            f"{path}: natoms adds up to {total}, but z is {arrays['z'].shape} and pos {arrays['pos'].shape}; "
            f"they should be ({total},) and ({total}, 3, 3)"
        )
    n = len(counts)
    for name in ("index", "barrier_kcal", "smiles", *(k for k in arrays if k.startswith("split_"))):
        if name in arrays and len(arrays[name]) != n:
            raise DataError(f"{path}: {name} has {len(arrays[name])} entries for {n} reactions")
    names = arrays.get("index", np.arange(n))
    smiles = arrays.get("smiles")
    barriers, parts = arrays.get("barrier_kcal"), arrays.get(f"split_{split}")
    if parts is None and any(name.startswith("split_") for name in arrays):
        known = ", ".join(sorted(name.removeprefix("split_") for name in arrays if name.startswith("split_")))
        raise DataError(f"{path} has no split {split!r}; it has {known}")
    if parts is not None and not np.isin(parts, range(len(SPLITS))).all():
        wrong = int(np.flatnonzero(~np.isin(parts, range(len(SPLITS))))[0])
        raise DataError(
            f"{path}, reaction {names[wrong]}: split_{split} is {parts[wrong]}; 0 is train, 1 is val, 2 is test"
        )
    z, pos = arrays["z"].astype(np.int64), arrays["pos"].astype(np.float64)
    found: list[Reaction] = []
    for k in range(n):
        rows = slice(int(ends[k] - counts[k]), int(ends[k]))
        reaction = Reaction(
            numbers=z[rows], reactant=pos[rows, 0], ts=pos[rows, 1], product=pos[rows, 2], name=str(names[k]),
            group="" if smiles is None else str(smiles[k]).split(">>")[0],
            barrier=None if barriers is None else float(barriers[k]),
            part="" if parts is None else SPLITS[int(parts[k])],
            info={} if smiles is None else {"smiles": str(smiles[k])},
        )  # fmt: skip
        with collecting(faults):
            found.append(check(reaction, f"{path}, reaction {names[k]}"))
    return found


def read(path: Path, faults: Faults = None, split: str = "grouped") -> list[Reaction]:
    """Reactions of a file or folder, whatever its format.

    With a list for ``faults``, reactions that cannot be used are left out and said there.

    Raises:
        DataError: the path is missing, of no known format, or holds something that cannot be used.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_dir():
        return read_folder(path, faults)
    suffix = path.suffix.lower()
    if suffix in (".xyz", ".extxyz"):
        return read_xyz(path, faults)
    if suffix in (".h5", ".hdf5"):
        return read_transition1x(path, faults)
    if suffix == ".npz":
        return read_rdb7(path, faults, split)
    if suffix in (".smi", ".smiles"):
        from headwater_flow_tsgen.tasks.smiles import read_smiles

        return read_smiles(path, faults)
    raise DataError(f"{path} is of no known format; reactions are read from {', '.join(READABLE)} or a folder")
