"""Headerless files, whose shape the user, the name or a JSON file beside them says."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from headwater.errors import DataError

from headwater_porous_gan.tasks.formats.source import Mapped, Reading, Source, facts_of, text

__all__ = ["open_raw"]


def open_raw(path: Path, reading: Reading) -> Source:
    side = path.with_name(path.name + ".json")
    facts: dict[str, Any] = {}
    if side.exists():
        facts = facts_of(side.read_text(encoding="utf-8"))
    shape, dtype, size = reading.shape, reading.dtype, None
    if shape is not None and reading.order == "F":
        shape = (shape[2], shape[1], shape[0])
    named = re.search(r"(\d+)x(\d+)x(\d+)", path.name)
    if shape is None and facts:
        shape, dtype = tuple(facts["extent"]), dtype or facts["dtype"]
    elif shape is None and named:  # file names give the axis that runs fastest first
        shape = (int(named[3]), int(named[2]), int(named[1]))
    if shape is None:
        raise DataError(f"{path}: a raw file does not say its shape; set task.shape=[d0,d1,d2] (d2 runs fastest)")
    if dtype is None:
        typed = re.search(r"(?<![a-z])(u?int(?:8|16|32))(?![0-9])", path.name.lower())
        dtype = typed[1] if typed else "uint8"
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise DataError(f"{path}: {dtype!r} is no type; set task.dtype to uint8, uint16 or the like") from error
    micron = re.search(r"(\d+(?:\.\d+)?)(?:um|micron)", path.name.lower())
    if micron:
        size = float(micron[1]) * 1e-6
    have, want = path.stat().st_size, math.prod(shape) * kind.itemsize
    if have != want:
        edge = round((have / kind.itemsize) ** (1 / 3))
        cube = f"; a cube of edge {edge} would fit" if edge**3 * kind.itemsize == have else ""
        what = "truncated, or shape or type are wrong" if have < want else "shape or type are wrong"
        raise DataError(f"{path}: {have} bytes where {text(shape)} {kind} needs {want}: {what}{cube}")
    return Source(path, Mapped(path, kind, shape), size, facts)
