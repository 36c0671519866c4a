"""What every format shares: what the user says, an opened file, arrays that are stored plainly, names of data sets."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from headwater.errors import DataError

from headwater_porous_gan.volume import Shape

__all__ = [
    "SLAB",
    "SUFFIXES",
    "Mapped",
    "Reading",
    "Source",
    "chosen_name",
    "facts_of",
    "natural",
    "row_of",
    "slabs",
    "text",
]

SUFFIXES = (
    ".zarr", ".tif", ".tiff", ".raw", ".h5", ".hdf5", ".nc", ".vti", ".mha", ".mhd", ".npy", ".npz", "",
)  # fmt: skip
"""What can be read and written; ``""`` is a folder of TIFF slices."""

SLAB = 1 << 24
"""Voxels that are read at a time."""


@dataclass(frozen=True)
class Reading:
    """What the user says about a file; the fields are those of ``PorousVolumeConfig``."""

    dataset: str | None = None
    shape: Shape | None = None
    order: str = "C"
    dtype: str | None = None
    pore_value: int | None = None
    several_labels: bool = False
    confirm_porosity: bool = False
    voxel_size: float | None = None


@dataclass(frozen=True)
class Source:
    """An opened file: ``array[a:b]`` reads pages from it.

    ``facts`` is what headwater wrote into it (labels, voxel size, tile, provenance); empty for other files.
    """

    path: Path
    array: Any
    voxel_size: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    chunk: Shape | None = None


class Mapped:
    """An array stored plainly in a file.

    Pages are read, other slices are mapped and let go at once, so what was read does not count as memory of the
    process.
    """

    def __init__(self, path: Path, dtype: Any, shape: Sequence[int], offset: int = 0) -> None:
        self.path, self.dtype, self.offset = path, np.dtype(dtype), offset
        self.shape = tuple(shape)

    def __getitem__(self, where: Any) -> np.ndarray:
        if isinstance(where, slice) and where.step in (None, 1):
            start, stop, _ = where.indices(self.shape[0])
            page = math.prod(self.shape[1:])
            place = self.offset + start * page * self.dtype.itemsize
            pages = max(stop - start, 0)
            found = np.fromfile(self.path, self.dtype, pages * page, offset=place)
            return found.reshape(pages, *self.shape[1:])
        return np.array(np.memmap(self.path, self.dtype, "r", offset=self.offset, shape=self.shape)[where])


def text(shape: Sequence[int]) -> str:
    """A shape as people write it: ``400x400x400``."""
    return "x".join(map(str, shape))


def natural(path: Path) -> list[Any]:
    """Sort key by which ``slice-9`` comes before ``slice-10``."""
    return [int(piece) if piece.isdigit() else piece.lower() for piece in re.split(r"(\d+)", path.name)]


def slabs(array: Any, voxels: int = SLAB) -> Iterator[tuple[int, np.ndarray]]:
    """Pages of an array-like along axis 0, as many at a time as hold about ``voxels``, with the first one's number."""
    step = max(1, voxels // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], step):
        yield start, np.asarray(array[start : start + step])


def row_of(shape: Sequence[int], chunk: Sequence[int] | None) -> int:
    """Pages in a row of chunks; 1 where there are no chunks, or a row has more than 2^30 voxels."""
    depth = chunk[0] if chunk else 1
    return depth if depth * shape[1] * shape[2] <= 1 << 30 else 1


def facts_of(stored: Any) -> dict[str, Any]:
    """What headwater wrote into a file, from JSON text; nothing where the text is somebody else's."""
    if isinstance(stored, bytes):
        stored = stored.decode("utf-8", "replace")
    if isinstance(stored, str):
        try:
            stored = json.loads(stored)
        except ValueError:
            return {}
    found = stored.get("headwater") if isinstance(stored, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def chosen_name(path: Path, named: Mapping[str, Sequence[int]], dataset: str | None, usual: Sequence[str]) -> str:
    """The name of the data set to read: the one asked for, a usual one, or the only one with three axes."""
    listed = ", ".join(f"{name} ({text(shape)})" for name, shape in sorted(named.items())) or "none"
    if dataset is not None:
        if dataset.strip("/") in named:
            return dataset.strip("/")
        raise DataError(f"{path} has no data set {dataset!r}; it has {listed}; see task.dataset")
    solid = [name for name, shape in named.items() if len(shape) == 3]
    for name in usual:
        if name in solid:
            return name
    if len(solid) == 1:
        return solid[0]
    raise DataError(f"{path}: which data set? it has {listed}; set task.dataset")
