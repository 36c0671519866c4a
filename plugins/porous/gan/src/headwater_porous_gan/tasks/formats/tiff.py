"""TIFF: several pages, BigTIFF, ImageJ stacks, compressed or not."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from headwater.errors import DataError

from headwater_porous_gan.tasks.formats.source import Mapped, Reading, Source, facts_of

__all__ = ["open_tiff"]


def open_tiff(path: Path, reading: Reading) -> Source:
    import tifffile

    with _complaints("tifffile") as complaints, tifffile.TiffFile(path) as tif:
        series = tif.series[0]
        if complaints:  # a file that ends early just has fewer pages for tifffile
            raise DataError(f"{path} is damaged or truncated: {complaints[0]}")
        shape = tuple(n for n in series.shape if n != 1) if len(series.shape) > 3 else tuple(series.shape)
        if len(shape) == 2:
            shape = (1, *shape)
        page = series.keyframe
        if page.samplesperpixel != 1:
            raise DataError(f"{path}: {page.samplesperpixel} channels; a segmented volume has one")
        facts = facts_of(page.description)
        size = _tiff_voxel(tif, page)
        if series.dataoffset is not None:
            need = series.dataoffset + math.prod(shape) * series.dtype.itemsize
            if path.stat().st_size < need:
                raise DataError(f"{path} is truncated: {path.stat().st_size} bytes where {need} are needed")
            dtype = np.dtype(series.dtype).newbyteorder(tif.byteorder)
            array: Any = Mapped(path, dtype, shape, series.dataoffset)
        else:
            array = _Pages(path, shape, np.dtype(series.dtype))
            array[shape[0] - 1 :]  # a truncated file fails here, and not in the middle of the work
    return Source(path, array, size, facts)


class _Pages:
    """The pages of a TIFF series that cannot be memory-mapped (compressed, or in pieces), decoded when asked for."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype) -> None:
        self.path, self.shape, self.dtype = path, tuple(shape), dtype

    def __getitem__(self, where: Any) -> np.ndarray:
        import tifffile

        first, *rest = where if isinstance(where, tuple) else (where,)
        chosen = range(self.shape[0])[first]
        with tifffile.TiffFile(self.path) as tif:
            if isinstance(chosen, int):
                return tif.asarray(key=chosen)[tuple(rest)]
            if len(chosen) == 0:
                return np.empty((0, *self.shape[1:]), self.dtype)
            return tif.asarray(key=list(chosen)).reshape(-1, *self.shape[1:])[(slice(None), *rest)]


@contextmanager
def _complaints(name: str) -> Iterator[list[str]]:
    """The errors that a library only logs, kept from the screen."""
    found: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


def _tiff_voxel(tif: Any, page: Any) -> float | None:
    """Edge of a voxel in metres from the resolution tags, with the unit of ImageJ where that is given."""
    tag = page.tags.get("XResolution")
    if tag is None or not tag.value[0] or not tag.value[1]:
        return None
    per_unit = tag.value[0] / tag.value[1]
    imagej = (tif.imagej_metadata or {}).get("unit")
    units = {"um": 1e-6, "µm": 1e-6, "\\u00B5m": 1e-6, "micron": 1e-6, "nm": 1e-9, "mm": 1e-3, "cm": 1e-2, "m": 1.0}
    if imagej is not None:
        return units[imagej] / per_unit if imagej in units else None
    unit = page.tags.get("ResolutionUnit")
    metres = {2: 0.0254, 3: 0.01}.get(int(unit.value) if unit else 0)
    # 72 or 96 dots an inch and one a unit are what programs write who know nothing.
    if metres is None or (metres == 0.0254 and round(per_unit) in (1, 72, 96, 300)) or per_unit == 1:
        return None
    return metres / per_unit
