"""Folders of numbered slices or blocks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from headwater.errors import DataError

from headwater_porous_gan.tasks.formats.arrays import open_netcdf
from headwater_porous_gan.tasks.formats.source import Reading, Source, facts_of, natural, text
from headwater_porous_gan.tasks.formats.tiff import open_tiff

__all__ = ["open_folder"]


def open_folder(path: Path, reading: Reading) -> Source:
    """A folder of TIFF slices, or of NetCDF blocks, in natural order."""
    files = sorted((p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")), key=natural)
    for opener, suffixes in ((open_tiff, (".tif", ".tiff")), (open_netcdf, (".nc",))):
        chosen = [p for p in files if p.name.lower().endswith(suffixes)]
        if not chosen:
            continue
        sources = []
        for file in chosen:
            if file.stat().st_size == 0:
                raise DataError(f"{file} is empty")
            try:
                sources.append(opener(file, reading))
            except DataError:
                raise
            except Exception as error:
                raise DataError(f"{file} cannot be read: {error}") from error
        shapes = {s.array.shape[1:] for s in sources}
        if len(shapes) > 1:
            odd = next(s for s in sources if s.array.shape[1:] != sources[0].array.shape[1:])
            raise DataError(
                f"{path}: slices differ in size: {chosen[0].name} is {text(sources[0].array.shape[1:])}, "
                f"{odd.path.name} {text(odd.array.shape[1:])}"
            )
        if len({np.dtype(s.array.dtype) for s in sources}) > 1:
            raise DataError(f"{path}: slices differ in type")
        note = path / "headwater.json"
        facts = facts_of(note.read_text(encoding="utf-8")) if note.exists() else {}
        return Source(path, _Files(sources), sources[0].voxel_size, facts)
    raise DataError(f"{path}: no TIFF slices and no NetCDF blocks in this folder")


class _Files:
    """A folder of numbered slices or blocks, put together along axis 0."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.arrays = [s.array for s in sources]
        self.ends = np.cumsum([a.shape[0] for a in self.arrays])
        self.shape = (int(self.ends[-1]), *self.arrays[0].shape[1:])
        self.dtype = np.dtype(self.arrays[0].dtype)

    def __getitem__(self, where: Any) -> np.ndarray:
        first, *rest = where if isinstance(where, tuple) else (where,)
        if not isinstance(first, slice):
            file = int(np.searchsorted(self.ends, first, "right"))
            return np.asarray(self.arrays[file][(first - int(self.ends[file]), *rest)])
        start, stop, step = first.indices(self.shape[0])
        pieces = []
        for array, end in zip(self.arrays, self.ends.tolist(), strict=True):
            a, b = max(start - (end - array.shape[0]), 0), min(stop - (end - array.shape[0]), array.shape[0])
            if a < b:
                pieces.append(np.asarray(array[(slice(a, b), *rest)]))
        return np.concatenate(pieces)[::step] if pieces else np.empty((0, *self.shape[1:]), self.dtype)
