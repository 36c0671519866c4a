"""Reading segmented volumes: raw, TIFF, HDF5, NetCDF, Zarr, VTI, MetaImage, NumPy and folders of slices.

A file is opened without being loaded. Its labels are counted slab by slab, and slices become 0 (pore) and 1 (grain)
when they are read (:class:`Phase`), so the memory needed does not depend on the size of the volume.
"""

import json
import logging
import math
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from headwater.errors import DataError, UsageError

from headwater_porous_gan.volume import Shape, Volume

__all__ = [
    "SUFFIXES",
    "Phase",
    "Reading",
    "Source",
    "companions",
    "natural",
    "open_source",
    "porosity_of",
    "read_volumes",
    "slabs",
    "text",
]

SUFFIXES = (
    ".zarr", ".tif", ".tiff", ".raw", ".h5", ".hdf5", ".nc", ".vti", ".mha", ".mhd", ".npy", ".npz", "",
)  # fmt: skip
"""What can be read and written; ``""`` is a folder of TIFF slices."""

SLAB = 1 << 24
"""Voxels that are read at a time."""

IN_MEMORY = 1 << 31
"""A training volume of more voxels is kept in a memory-mapped temporary file."""

MOST_PORE = 0.6


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
        self._depth = _row(self.shape, chunk)
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


def _row(shape: Sequence[int], chunk: Sequence[int] | None) -> int:
    """Pages in a row of chunks; 1 where there are no chunks, or a row has more than 2^30 voxels."""
    depth = chunk[0] if chunk else 1
    return depth if depth * shape[1] * shape[2] <= 1 << 30 else 1


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


def porosity_of(volume: Volume) -> float:
    """Share of pore voxels, counted slab by slab."""
    grain = sum(int(np.count_nonzero(slab)) for _, slab in slabs(volume.phase))
    return 1 - grain / math.prod(volume.phase.shape)


def companions(path: Path) -> tuple[Path, ...]:
    """The other files that belong to a written file: the side JSON of formats without attributes, data of ``.mhd``."""
    name = path.name.lower()
    if name.endswith(".mhd"):
        return (path.with_suffix(".raw"),)
    if name.endswith((".raw", ".npy")):
        return (path.with_name(path.name + ".json"),)
    return ()


# From labels to phases


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
    for _, slab in slabs(source.array, max(SLAB, _row(source.array.shape, source.chunk) * page)):
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


# Files


def open_source(path: Path, reading: Reading) -> Source:
    """Open a volume; nothing is loaded.

    Raises:
        DataError: it is missing, empty, truncated or not of a known format.
    """
    name = path.name.lower()
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    openers: dict[str, Any] = {
        ".zarr": _zarr, ".tif": _tiff, ".tiff": _tiff, ".raw": _raw, ".h5": _hdf5, ".hdf5": _hdf5, ".nc": _netcdf,
        ".vti": _vti, ".mha": _meta, ".mhd": _meta, ".npy": _npy, ".npz": _npz,
    }  # fmt: skip
    suffix = next((s for s in openers if name.endswith(s)), None)
    if path.is_dir() and suffix != ".zarr":
        source = _zarr(path, reading) if _is_zarr(path) else _folder(path, reading)
    elif suffix is None:
        raise DataError(f"{path}: unknown suffix; volumes are {', '.join(s for s in SUFFIXES if s)} or a folder")
    else:
        try:
            source = openers[suffix](path, reading)
        except (DataError, UsageError):
            raise
        except Exception as error:  # whatever a library raises on a damaged file
            raise DataError(f"{path} cannot be read: {error}") from error
    if len(source.array.shape) != 3 or 0 in source.array.shape:
        raise DataError(f"{path}: a volume has three axes, and this has shape {text(source.array.shape) or 'of none'}")
    return source


def _facts(stored: Any) -> dict[str, Any]:
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


def _raw(path: Path, reading: Reading) -> Source:
    side = path.with_name(path.name + ".json")
    facts: dict[str, Any] = {}
    if side.exists():
        facts = _facts(side.read_text(encoding="utf-8"))
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


def _tiff(path: Path, reading: Reading) -> Source:
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
        facts = _facts(page.description)
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


def _folder(path: Path, reading: Reading) -> Source:
    """A folder of TIFF slices, or of NetCDF blocks, in natural order."""
    files = sorted((p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")), key=natural)
    for opener, suffixes in ((_tiff, (".tif", ".tiff")), (_netcdf, (".nc",))):
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
        facts = _facts(note.read_text(encoding="utf-8")) if note.exists() else {}
        return Source(path, _Files(sources), sources[0].voxel_size, facts)
    raise DataError(f"{path}: no TIFF slices and no NetCDF blocks in this folder")


def _chosen(path: Path, named: Mapping[str, Sequence[int]], dataset: str | None, usual: Sequence[str]) -> str:
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


def _hdf5(path: Path, reading: Reading) -> Source:
    import h5py

    file = h5py.File(path, "r")
    named: dict[str, Any] = {}
    file.visititems(lambda name, item: named.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    name = _chosen(path, {k: v.shape for k, v in named.items()}, reading.dataset, ("data",))
    data = named[name]
    size = data.attrs.get("voxel_size")
    if size is None and "element_size_um" in data.attrs:  # ilastik and Fiji write this one
        size = float(np.ravel(data.attrs["element_size_um"])[-1]) * 1e-6
    size = None if size is None else float(np.ravel(size)[0])
    return Source(path, data, size, _facts(data.attrs.get("headwater")), data.chunks)


def _netcdf(path: Path, reading: Reading) -> Source:
    try:
        import netCDF4
    except ImportError as error:
        raise UsageError("NetCDF needs netCDF4; try: pip install 'headwater-porous-gan[physics]'") from error
    file = netCDF4.Dataset(path, "r")
    file.set_auto_maskandscale(False)
    named = {name: variable.shape for name, variable in file.variables.items()}
    variable = file.variables[_chosen(path, named, reading.dataset, ("segmented", "tomo"))]
    attributes = {name: variable.getncattr(name) for name in variable.ncattrs()}
    attributes |= {name: file.getncattr(name) for name in file.ncattrs()}
    size = attributes.get("voxel_size")
    if size is None and "voxel_size_xyz" in attributes:  # Mango writes this one
        unit = {"um": 1e-6, "micron": 1e-6, "mm": 1e-3, "m": 1.0, "nm": 1e-9}.get(str(attributes.get("voxel_unit")))
        size = None if unit is None else float(np.ravel(attributes["voxel_size_xyz"])[0]) * unit
    return Source(path, variable, None if size is None else float(size), _facts(attributes.get("headwater")))


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


def _zarr(path: Path, reading: Reading) -> Source:
    import zarr

    if not _is_zarr(path):
        raise DataError(f"{path} is no Zarr store")
    node: Any = zarr.open(str(path), mode="r")
    size = None
    if not isinstance(node, zarr.Array):
        ome = dict(node.attrs).get("ome", dict(node.attrs))
        scales = ome.get("multiscales")
        named = dict(node.arrays())
        if scales and reading.dataset is None:  # OME-Zarr: the finest level
            level = scales[0]["datasets"][0]
            size = _ome_voxel(scales[0], level)
            node = node[level["path"]]
        else:
            node = named[_chosen(path, {k: v.shape for k, v in named.items()}, reading.dataset, ("data",))]
    array: Any = node
    if array.ndim > 3:
        array = _Leading(array)
    stated = array.attrs.get("voxel_size") if hasattr(array, "attrs") else None
    if stated is not None:
        size = float(stated)
    chunk = tuple(array.chunks) if hasattr(array, "chunks") else None
    facts = _facts(dict(array.attrs)) if hasattr(array, "attrs") else {}
    return Source(path, array, size, facts, chunk)


class _Leading:
    """An array whose leading axes (time, channel) have length 1."""

    def __init__(self, array: Any) -> None:
        if any(n != 1 for n in array.shape[:-3]):
            raise DataError(
                f"an array of shape {text(array.shape)} holds several volumes or channels; name one of them"
            )
        self.array, self.shape, self.dtype, self.attrs = array, array.shape[-3:], array.dtype, array.attrs

    def __getitem__(self, where: Any) -> np.ndarray:
        inner = where if isinstance(where, tuple) else (where,)
        return np.asarray(self.array[(0,) * (self.array.ndim - 3) + inner])


def _ome_voxel(scale: Mapping[str, Any], level: Mapping[str, Any]) -> float | None:
    units = {"micrometer": 1e-6, "nanometer": 1e-9, "millimeter": 1e-3, "meter": 1.0}
    axes = scale.get("axes") or [{}]
    unit = units.get(axes[-1].get("unit", "") if isinstance(axes[-1], Mapping) else "")
    steps = next((t["scale"] for t in level.get("coordinateTransformations", ()) if t.get("type") == "scale"), None)
    return None if unit is None or steps is None else float(steps[-1]) * unit


def _vti(path: Path, reading: Reading) -> Source:
    """VTK image data with appended raw data, as ParaView writes it uncompressed."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
    mark = head.find(b"<AppendedData")
    begin = head.find(b"_", head.find(b">", mark)) + 1 if mark >= 0 else 0
    if mark < 0 or b'encoding="raw"' not in head[mark:begin] or begin == 0:
        raise DataError(f"{path}: only appended raw data can be read; save it again with appended, raw, uncompressed")
    root = ElementTree.fromstring(head[:mark] + b"</VTKFile>")
    if root.get("compressor"):
        raise DataError(f"{path} is compressed; save it again without a compressor")
    image = root.find("ImageData")
    if image is None:
        raise DataError(f"{path} holds no ImageData")
    extent = [int(v) for v in image.get("WholeExtent", "").split()]
    arrays = {}
    for place, points in (("CellData", 0), ("PointData", 1)):
        for data in image.findall(f"Piece/{place}/DataArray"):
            counts = [extent[2 * i + 1] - extent[2 * i] + points for i in (2, 1, 0)]
            arrays[data.get("Name", "")] = (data, counts)
    data, counts = arrays[_chosen(path, {k: v[1] for k, v in arrays.items()}, reading.dataset, ("phase",))]
    types = {"UInt8": "u1", "Int8": "i1", "UInt16": "u2", "Int16": "i2", "UInt32": "u4", "Int32": "i4", "UInt64": "u8",
             "Int64": "i8", "Float32": "f4", "Float64": "f8"}  # fmt: skip
    order = ">" if root.get("byte_order") == "BigEndian" else "<"
    kind = np.dtype(order + types[data.get("type", "")])
    length = 8 if root.get("header_type") == "UInt64" else 4
    offset = begin + int(data.get("offset", "0")) + length
    need = offset + math.prod(counts) * kind.itemsize
    if path.stat().st_size < need:
        raise DataError(f"{path} is truncated: {path.stat().st_size} bytes where {need} are needed")
    note = image.find("FieldData/DataArray[@Name='headwater']")
    facts = _facts("".join(chr(int(v)) for v in (note.text or "").split()).rstrip("\0")) if note is not None else {}
    return Source(path, Mapped(path, kind, counts, offset), None, facts)


def _meta(path: Path, reading: Reading) -> Source:
    """MetaImage, data in the same file or beside it; its spacing has no unit and is not taken for metres."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while line := file.readline(1 << 20):
            name, equals, value = line.decode("latin-1").partition("=")
            if not equals:
                raise DataError(f"{path}: no MetaImage header: {line[:40]!r} has no '='")
            fields[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile":
                break
        offset = file.tell()
    missing = [name for name in ("DimSize", "ElementType", "ElementDataFile") if name not in fields]
    if missing:
        raise DataError(f"{path}: the header has no {missing[0]}")
    if fields.get("CompressedData", "False").lower() == "true":
        raise DataError(f"{path}: compressed MetaImage cannot be mapped; save it again uncompressed")
    types = {"MET_UCHAR": "u1", "MET_CHAR": "i1", "MET_USHORT": "u2", "MET_SHORT": "i2", "MET_UINT": "u4",
             "MET_INT": "i4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"}  # fmt: skip
    if fields["ElementType"] not in types:
        raise DataError(f"{path}: ElementType {fields['ElementType']}; known: {', '.join(types)}")
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    kind = np.dtype((">" if big else "<") + types[fields["ElementType"]])
    shape = tuple(int(v) for v in reversed(fields["DimSize"].split()))
    where = path
    if fields["ElementDataFile"] != "LOCAL":
        where, offset = path.with_name(fields["ElementDataFile"]), int(fields.get("HeaderSize", "0"))
        if not where.exists():
            raise DataError(f"{path}: its data file {where.name} is not there")
    need = offset + math.prod(shape) * kind.itemsize
    if where.stat().st_size < need:
        raise DataError(f"{where} is truncated: {where.stat().st_size} bytes where {need} are needed")
    return Source(path, Mapped(where, kind, shape, offset), None, _facts(fields.get("Comment")))


def _npy(path: Path, reading: Reading) -> Source:
    side = path.with_name(path.name + ".json")
    facts = _facts(side.read_text(encoding="utf-8")) if side.exists() else {}
    stored: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    if stored.flags.c_contiguous:
        stored = Mapped(path, stored.dtype, stored.shape, stored.offset)
    return Source(path, stored, None, facts)


def _npz(path: Path, reading: Reading) -> Source:
    """One array of an archive; it is loaded, for a compressed member cannot be mapped."""
    with np.load(path, allow_pickle=False) as archive, zipfile.ZipFile(path) as names:
        facts = _facts(names.read("headwater.json")) if "headwater.json" in names.namelist() else {}
        arrays = [name.removesuffix(".npy") for name in names.namelist() if name.endswith(".npy")]
        # Only the header of each member is read here.
        shapes = {name: _npz_shape(names, name) for name in arrays}
        return Source(path, archive[_chosen(path, shapes, reading.dataset, ("phase",))], None, facts)


def _npz_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name + ".npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape: tuple[int, ...] = read(member)[0]
        return shape


def with_facts(volume: Volume, labels: tuple[int, int]) -> dict[str, Any]:
    """What is written into a file about its volume, as plain JSON values; tifffile claims the key "shape"."""
    return {
        "labels": list(labels),
        "voxel_size": volume.voxel_size,
        "extent": list(volume.whole),
        "dtype": "uint8",
        "step": list(volume.step),
        "provenance": dict(volume.provenance),
    }


def same_volume(volume: Volume, phase: Any) -> Volume:
    """The whole volume of which ``volume`` is a tile, with another array."""
    return replace(volume, phase=phase, start=(0, 0, 0), whole=phase.shape)
