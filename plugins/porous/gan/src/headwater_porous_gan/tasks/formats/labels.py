"""From labels to phases: which label is the pore, and volumes of 0 (pore) and 1 (grain)."""

import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from headwater.errors import DataError

from headwater_porous_gan.tasks.formats.opening import open_source
from headwater_porous_gan.tasks.formats.source import SLAB, SUFFIXES, Reading, Source, natural, row_of, slabs
from headwater_porous_gan.volume import Shape, Volume

__all__ = ["IN_MEMORY", "MOST_PORE", "Phase", "porosity_of", "read_volumes"]

IN_MEMORY = 1 << 31
"""A training volume of more voxels is kept in a memory-mapped temporary file."""

MOST_PORE = 0.6


class Phase:
    """A file's labels as 0 (pore) and 1 (grain), converted slice by slice; it is read like an array.

    Pages out of a file with chunks are cut from the last row of chunks, which is kept (up to 2^30 voxels): reading
    page by page decodes each chunk once, and not once for every page.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, array: Any, pore: int, chunk: Shape | None = None) -> None:
        self._array, self._pore = array, pore
        self.shape: Shape = tuple(map(int, array.shape))  # type: ignore[assignment]
        self.size = math.prod(self.shape)
        self.nbytes = self.size
        self._depth = row_of(self.shape, chunk)
        self._kept: tuple[int, np.ndarray] | None = None

    def __getitem__(self, where: Any) -> np.ndarray:
        first, *rest = where if isinstance(where, tuple) else (where,)
        if self._depth > 1 and len(rest) < 2 and isinstance(first, slice) and first.step in (None, 1):
            start, stop, _ = first.indices(self.shape[0])
            return self._pages(start, stop)[(slice(None), *rest)]
        return self._converted(where)

    def _converted(self, where: Any) -> np.ndarray:
        return np.asarray(np.asarray(self._array[where]) != self._pore).view(np.uint8)

    def _pages(self, start: int, stop: int) -> np.ndarray:
        pieces = [np.empty((0, *self.shape[1:]), np.uint8)]
        while start < stop:
            low = start // self._depth * self._depth
            if self._kept is None or self._kept[0] != low:
                self._kept = None  # let go before the next row is read
                self._kept = low, self._converted(slice(low, low + self._depth))
            end = min(stop, low + self._depth)
            pieces.append(self._kept[1][start - low : end - low])
            start = end
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)


def porosity_of(volume: Volume) -> float:
    """Share of pore voxels, counted slab by slab."""
    grain = sum(int(np.count_nonzero(slab)) for _, slab in slabs(volume.phase))
    return 1 - grain / math.prod(volume.phase.shape)


def read_volumes(path: Path, reading: Reading, *, in_memory: bool = False) -> list[Volume]:
    """The volumes at ``path``: one of a file, one of a folder of slices, several of a folder of volumes.

    Args:
        path: file or folder.
        reading: what the user says about it.
        in_memory: whether ``phase`` must be a NumPy array (memory-mapped above 2^31 voxels).

    Raises:
        DataError: the file is damaged, is no segmented volume, or does not say which label is the pore.
    """
    found = []
    for number, member in enumerate(_members(path)):
        source = open_source(member, reading)
        pore = _pore_value(source, reading)
        phase: Any = Phase(source.array, pore, source.chunk)
        if in_memory or phase.size <= SLAB:
            phase = _loaded(phase)
        facts = source.facts
        step = facts.get("step") or source.chunk or phase.shape
        size = reading.voxel_size or facts.get("voxel_size") or source.voxel_size
        found.append(Volume(phase, size, step=tuple(step), number=number, provenance=dict(facts.get("provenance", {}))))
    return found


def _members(path: Path) -> list[Path]:
    """The volumes under a name: itself, or the numbered ones in the folder that holds several realisations."""
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_dir():
        return [path]
    inner = sorted((p for p in path.iterdir() if re.fullmatch(r"\d{4,}(\.\w+)?", p.name)), key=natural)
    suffix = path.suffix.lower()
    if suffix == ".zarr":
        return [p for p in inner if (p / "zarr.json").exists()] or [path]
    if suffix in SUFFIXES and suffix:
        return [p for p in inner if p.name.lower().endswith(suffix)]
    return [p for p in inner if p.is_dir()] or [path]


def _loaded(phase: Phase) -> np.ndarray:
    if phase.size <= IN_MEMORY:
        out = np.empty(phase.shape, np.uint8)
    else:
        with tempfile.TemporaryFile() as scratch:  # it goes with the last reference to the map
            out = np.memmap(scratch, np.uint8, "w+", shape=phase.shape)
    for start, slab in slabs(phase):
        out[start : start + len(slab)] = slab
    return out


def _census(source: Source) -> dict[int, int]:
    """How many voxels have each label, counted slab by slab; at most 70,000 labels are kept.

    Raises:
        DataError: values are no integers.
    """
    dtype = np.dtype(source.array.dtype)
    if dtype.kind not in "uib":
        detail = ""
        if dtype.kind == "f":
            bad = sum(int(np.count_nonzero(~np.isfinite(slab))) for _, slab in slabs(source.array))
            detail = f", {bad} of them NaN or infinite" if bad else ""
        raise DataError(f"{source.path}: values are {dtype}{detail}; segment the volume and store integer labels")
    found: dict[int, int] = {}
    page = math.prod(source.array.shape[1:])
    for _, slab in slabs(source.array, max(SLAB, row_of(source.array.shape, source.chunk) * page)):
        rest = slab.size
        for label in list(found)[:2]:  # mostly two labels: counting them is far cheaper than sorting values
            n = int(np.count_nonzero(slab == label))
            found[label] += n
            rest -= n
        if rest:
            values, counts = np.unique(slab, return_counts=True)
            known = set(list(found)[:2])
            for value, n in zip(values.tolist(), counts.tolist(), strict=True):
                if int(value) not in known:
                    found[int(value)] = found.get(int(value), 0) + n
        if len(found) > 70_000:
            break
    return found


def _pore_value(source: Source, reading: Reading) -> int:
    """The label of the pores: said by the user, by the file, or 0 where the other label is 255."""
    labels = _census(source)
    known = ", ".join(map(str, sorted(labels)[:8])) + (", ..." if len(labels) > 8 else "")
    path, stated = source.path, source.facts.get("labels")
    if len(labels) > 2 and not reading.several_labels:
        raise DataError(
            f"{path}: grey-level volume or several phases: {len(labels)} distinct values ({known}); segment it into "
            "pore and grain, or set task.several_labels=true and task.pore_value where all other labels are grain"
        )
    if reading.pore_value is not None:
        pore = reading.pore_value
    elif stated is not None:
        pore = int(stated[0])
    elif len(labels) == 2 and set(labels) == {0, 255}:
        pore = 0
    else:
        raise DataError(f"{path}: labels are {known}; say which is the pore: task.pore_value={min(labels)}")
    if pore not in labels and stated is None:
        raise DataError(f"{path}: no voxel has the label {pore} of the pores; labels are {known}; see task.pore_value")
    porosity = labels.get(pore, 0) / math.prod(source.array.shape)
    if porosity > MOST_PORE and stated is None and not reading.confirm_porosity:
        raise DataError(
            f"{path}: porosity {porosity:.4f} with {pore} as pore (labels {known}); if the labels are inverted, set "
            "task.pore_value to the other one; if it is right, set task.confirm_porosity=true"
        )
    return pore
