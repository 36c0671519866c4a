"""Files of named arrays: HDF5, NetCDF, Zarr, NumPy."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from headwater.errors import DataError, UsageError

from headwater_porous_gan.tasks.formats.source import Mapped, Reading, Source, chosen_name, facts_of, text

__all__ = ["is_zarr", "open_hdf5", "open_netcdf", "open_npy", "open_npz", "open_zarr"]


def open_hdf5(path: Path, reading: Reading) -> Source:
    import h5py

    file = h5py.File(path, "r")
    named: dict[str, Any] = {}
    file.visititems(lambda name, item: named.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    name = chosen_name(path, {k: v.shape for k, v in named.items()}, reading.dataset, ("data",))
    data = named[name]
    size = data.attrs.get("voxel_size")
    if size is None and "element_size_um" in data.attrs:  # ilastik and Fiji write this one
        size = float(np.ravel(data.attrs["element_size_um"])[-1]) * 1e-6
    size = None if size is None else float(np.ravel(size)[0])
    return Source(path, data, size, facts_of(data.attrs.get("headwater")), data.chunks)


def open_netcdf(path: Path, reading: Reading) -> Source:
    try:
        import netCDF4
    except ImportError as error:
        raise UsageError("NetCDF needs netCDF4; try: pip install 'headwater-porous-gan[physics]'") from error
    file = netCDF4.Dataset(path, "r")
    file.set_auto_maskandscale(False)
    named = {name: variable.shape for name, variable in file.variables.items()}
    variable = file.variables[chosen_name(path, named, reading.dataset, ("segmented", "tomo"))]
    attributes = {name: variable.getncattr(name) for name in variable.ncattrs()}
    attributes |= {name: file.getncattr(name) for name in file.ncattrs()}
    size = attributes.get("voxel_size")
    if size is None and "voxel_size_xyz" in attributes:  # Mango writes this one
        unit = {"um": 1e-6, "micron": 1e-6, "mm": 1e-3, "m": 1.0, "nm": 1e-9}.get(str(attributes.get("voxel_unit")))
        size = None if unit is None else float(np.ravel(attributes["voxel_size_xyz"])[0]) * unit
    return Source(path, variable, None if size is None else float(size), facts_of(attributes.get("headwater")))


def open_zarr(path: Path, reading: Reading) -> Source:
    import zarr

    if not is_zarr(path):
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
            node = named[chosen_name(path, {k: v.shape for k, v in named.items()}, reading.dataset, ("data",))]
    array: Any = node
    if array.ndim > 3:
        array = _Leading(array)
    stated = array.attrs.get("voxel_size") if hasattr(array, "attrs") else None
    if stated is not None:
        size = float(stated)
    chunk = tuple(array.chunks) if hasattr(array, "chunks") else None
    facts = facts_of(dict(array.attrs)) if hasattr(array, "attrs") else {}
    return Source(path, array, size, facts, chunk)


def is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


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


def open_npy(path: Path, reading: Reading) -> Source:
    side = path.with_name(path.name + ".json")
    facts = facts_of(side.read_text(encoding="utf-8")) if side.exists() else {}
    stored: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    if stored.flags.c_contiguous:
        stored = Mapped(path, stored.dtype, stored.shape, stored.offset)
    return Source(path, stored, None, facts)


def open_npz(path: Path, reading: Reading) -> Source:
    """One array of an archive; it is loaded, for a compressed member cannot be mapped."""
    with np.load(path, allow_pickle=False) as archive, zipfile.ZipFile(path) as names:
        facts = facts_of(names.read("headwater.json")) if "headwater.json" in names.namelist() else {}
        arrays = [name.removesuffix(".npy") for name in names.namelist() if name.endswith(".npy")]
        # Only the header of each member is read here.
        shapes = {name: _npz_shape(names, name) for name in arrays}
        return Source(path, archive[chosen_name(path, shapes, reading.dataset, ("phase",))], None, facts)


def _npz_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name + ".npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape: tuple[int, ...] = read(member)[0]
        return shape
