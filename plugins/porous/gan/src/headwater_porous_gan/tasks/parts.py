"""Writing volumes: tiles as parts, parts joined to files, whole volumes, each with memory of one slab or one chunk.

A part is a folder. For Zarr it is a complete array of one chunk, and that chunk file is hard-linked into the store
(``c/i/j/k``) when the parts are joined, so the volume is not written twice; it is copied where links are not
possible. For all other formats a part holds ``tile.npy`` and ``tile.json``, and joining gathers pages from the
memory-mapped tiles.
"""

import errno
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from headwater.errors import DataError, UsageError

from headwater_porous_gan.tasks import formats
from headwater_porous_gan.volume import Shape, Volume

__all__ = ["assemble", "join", "write_part", "write_volumes"]

PAGES = 16
"""Pages of a chunk of HDF5 and NetCDF files."""


def write_part(tile: Volume, path: Path, suffix: str, labels: tuple[int, int]) -> None:
    """Write one tile as the folder ``path``."""
    note = {**formats.with_facts(tile, labels), "start": list(tile.start), "number": tile.number}
    if suffix == ".zarr":
        array = _zarr_array(path, tile.phase.shape, tile.step, tile, note)
        array[...] = _labelled(tile.phase, labels)
        return
    path.mkdir(parents=True)
    np.save(path / "tile.npy", _labelled(tile.phase, labels))
    (path / "tile.json").write_text(json.dumps(note), encoding="utf-8")


def write_volumes(volumes: Sequence[Volume], path: Path, suffix: str, labels: tuple[int, int]) -> None:
    """Write whole volumes as the file ``path``; several as a folder of that name."""
    if not volumes:
        raise UsageError("there is no volume to write")
    targets = _targets(path, suffix, len(volumes))
    for volume, target in zip(volumes, targets, strict=True):
        phase = volume.phase
        whole = replace(volume, start=(0, 0, 0), whole=phase.shape)
        note = formats.with_facts(whole, labels)
        if suffix == ".zarr":
            array = _zarr_array(target, phase.shape, whole.step, whole, note)
            for corner in _corners(phase.shape, whole.step):
                where = tuple(slice(c, min(c + s, n)) for c, s, n in zip(corner, whole.step, phase.shape, strict=True))
                array[where] = _labelled(np.asarray(phase[where]), labels)
        else:
            pages = (_labelled(slab, labels) for _, slab in formats.slabs(phase, _slab(phase.shape)))
            _write(suffix, target, pages, phase.shape, note)


def join(blocks: Sequence[Path], path: Path, suffix: str) -> None:
    """Join parts into the file ``path``: one volume, or a folder of as many as the parts belong to.

    Raises:
        DataError: tiles are missing.
        OSError: the disk is full; the parts are as they were.
    """
    tiles: dict[int, list[tuple[Path, dict[str, Any]]]] = {}
    for block in blocks:
        note = _note(block, suffix)
        tiles.setdefault(int(note["number"]), []).append((block, note))
    targets = _targets(path, suffix, len(tiles))
    for number, target in zip(sorted(tiles), targets, strict=True):
        own = tiles[number]
        shape, step = tuple(own[0][1]["extent"]), tuple(own[0][1]["step"])
        want = set(_corners(shape, step))
        have = {tuple(note["start"]) for _, note in own}
        if have != want or len(own) != len(want):
            raise DataError(
                f"{path.name}, volume {number}: {len(have & want)} of {len(want)} tiles of {formats.text(step)} are "
                f"there for {formats.text(shape)}"
            )
        note = {name: value for name, value in own[0][1].items() if name not in ("start", "number")}
        if suffix == ".zarr":
            _join_zarr(own, target, shape, step, note)
        else:
            _write(suffix, target, _gather(own, shape, step), shape, note)


def assemble(volumes: Sequence[Volume]) -> list[Volume]:
    """Whole volumes out of tiles, as the sampler yields them; whole ones stay what they are.

    Raises:
        DataError: tiles are missing.
    """
    found: dict[int, list[Volume]] = {}
    whole: list[Volume] = []
    for volume in volumes:
        if volume.whole == tuple(volume.phase.shape):
            whole.append(volume)
        else:
            found.setdefault(volume.number, []).append(volume)
    for number, tiles in sorted(found.items()):
        first = tiles[0]
        if {t.start for t in tiles} != set(_corners(first.whole, first.step)):
            raise DataError(f"volume {number}: only {len(tiles)} of its tiles are there")
        phase = np.empty(first.whole, np.uint8)
        for tile in tiles:
            phase[tuple(slice(a, a + n) for a, n in zip(tile.start, tile.phase.shape, strict=True))] = tile.phase
        whole.append(formats.same_volume(first, phase))
    return whole


def _labelled(phase: np.ndarray, labels: tuple[int, int]) -> np.ndarray:
    return np.array(labels, np.uint8)[np.asarray(phase)]


def _corners(shape: Sequence[int], step: Sequence[int]) -> list[Shape]:
    a, b, c = (range(0, n, s) for n, s in zip(shape, step, strict=True))
    return [(i, j, k) for i in a for j in b for k in c]


def _slab(shape: Sequence[int]) -> int:
    """Voxels of a slab: whole chunks of pages, about 2^24 voxels if the pages are not larger."""
    page = shape[1] * shape[2]
    return page * max(PAGES, formats.SLAB // page // PAGES * PAGES)


def _targets(path: Path, suffix: str, n: int) -> list[Path]:
    """Where volumes go: ``path`` itself, or ``path/0000.tif`` and so on; for Zarr, arrays of a group."""
    if n == 1:
        return [path]
    path.mkdir(parents=True)
    if suffix == ".zarr":
        import zarr

        zarr.create_group(str(path), zarr_format=3)
        return [path / f"{i:04d}" for i in range(n)]
    return [path / f"{i:04d}{suffix}" for i in range(n)]


def _note(block: Path, suffix: str) -> dict[str, Any]:
    note = block / ("zarr.json" if suffix == ".zarr" else "tile.json")
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise DataError(f"{block} is no tile that can be joined: {error}") from error
    return dict(found["attributes"]["headwater"]) if suffix == ".zarr" else dict(found)


def _gather(
    tiles: Sequence[tuple[Path, dict[str, Any]]], shape: Sequence[int], step: Sequence[int]
) -> Iterator[np.ndarray]:
    """Slabs of the whole volume from memory-mapped tiles; one slab is in memory, one row of tiles is open."""
    rows: dict[int, list[tuple[Path, Sequence[int]]]] = {}
    for block, note in tiles:
        rows.setdefault(note["start"][0], []).append((block, note["start"]))
    depth = _slab(shape) // (shape[1] * shape[2])
    open_row, arrays = -1, []
    for z0 in range(0, shape[0], depth):
        slab = np.empty((min(depth, shape[0] - z0), shape[1], shape[2]), np.uint8)
        z = z0
        while z < z0 + len(slab):
            row = z // step[0] * step[0]
            if row != open_row:
                arrays = [(np.load(block / "tile.npy", mmap_mode="r"), start) for block, start in rows[row]]
                open_row = row
            end = min(z0 + len(slab), row + step[0])
            for array, start in arrays:
                d1, d2 = start[1] + array.shape[1], start[2] + array.shape[2]
                slab[z - z0 : end - z0, start[1] : d1, start[2] : d2] = array[z - row : end - row]
            z = end
        yield slab


def _zarr_array(path: Path, shape: Sequence[int], chunk: Sequence[int], volume: Volume, note: dict[str, Any]) -> Any:
    """An empty Zarr v3 array with chunks of one tile, Zstandard level 3."""
    import zarr
    from zarr.codecs import ZstdCodec

    attributes: dict[str, Any] = {"headwater": note}
    if volume.voxel_size is not None:
        attributes["voxel_size"] = volume.voxel_size
    return zarr.create_array(
        str(path), shape=tuple(shape), chunks=tuple(chunk), dtype="uint8", fill_value=0, zarr_format=3,
        compressors=ZstdCodec(level=3), attributes=attributes, overwrite=False,
        dimension_names=("z", "y", "x"), config={"write_empty_chunks": True},
    )  # fmt: skip


def _join_zarr(
    tiles: Sequence[tuple[Path, dict[str, Any]]], path: Path, shape: Sequence[int], step: Sequence[int], note: Any
) -> None:
    size = note["voxel_size"]
    _zarr_array(path, shape, step, Volume(np.empty((1, 1, 1), np.uint8), size), note)
    for block, own in tiles:
        i, j, k = (a // s for a, s in zip(own["start"], step, strict=True))
        target = path / "c" / str(i) / str(j) / str(k)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(block / "c" / "0" / "0" / "0", target)


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(source, target)


# Whole files, from slabs in order


def _write(suffix: str, path: Path, pages: Iterator[np.ndarray], shape: Sequence[int], note: dict[str, Any]) -> None:
    """Write one volume from its slabs along axis 0.

    Raises:
        OSError: the disk is full, which is also noticed beforehand where the file's size is known.
    """
    need = math.prod(shape)
    free = shutil.disk_usage(path.parent).free
    if suffix not in (".h5", ".hdf5", ".nc", ".npz") and free < need:
        raise OSError(errno.ENOSPC, f"{need} bytes are needed and {free} are free", str(path))
    writers = {
        ".tif": _write_tiff, ".tiff": _write_tiff, ".raw": _write_raw, ".h5": _write_hdf5, ".hdf5": _write_hdf5,
        ".nc": _write_netcdf, ".vti": _write_vti, ".mha": _write_meta, ".mhd": _write_meta, ".npy": _write_npy,
        ".npz": _write_npz, "": _write_folder,
    }  # fmt: skip
    writers[suffix](path, pages, (shape[0], shape[1], shape[2]), note)


def _side(note: dict[str, Any]) -> str:
    return json.dumps({"headwater": note}, sort_keys=True)


def _write_side(path: Path, note: dict[str, Any]) -> None:
    for side in formats.companions(path):
        side.write_text(_side(note), encoding="utf-8")


def _write_raw(path: Path, pages: Iterator[np.ndarray], shape: Shape, note: dict[str, Any]) -> None:
    with path.open("wb") as out:
        for slab in pages:
            out.write(slab.data)
    _write_side(path, note)


def _write_npy(path: Path, pages: Iterator[np.ndarray], shape: Shape, note: dict[str, Any]) -> None:
    with path.open("wb") as out:
        _npy_header(out, shape)
        for slab in pages:
            out.write(slab.data)
    _write_side(path, note)


def _npy_header(out: Any, shape: Shape) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)


def _write_npz(path: Path, pages: Iterator[np.ndarray], shape: Shape, note: dict[str, Any]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo("phase.npy")  # with the date 1980-01-01: equal volumes give equal files
        member.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(member, "w", force_zip64=True) as out:
            header = io.BytesIO()
            _npy_header(header, shape)
            out.write(header.getvalue())
            for slab in pages:
                out.write(slab.data)
        archive.writestr(zipfile.ZipInfo("headwater.json"), _side(note))


def _write_tiff(path: Path, pages: Iterator[np.ndarray], shape: Shape, note: dict[str, Any]) -> None:
    """Uncompressed pages, which can be memory-mapped; BigTIFF from 4 GB (with room for the page headers)."""
    import tifffile

    size = note["voxel_size"]
    options: dict[str, Any] = {} if size is None else {"resolution": (0.01 / size,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=math.prod(shape) + 1024 * shape[0] > 2**32 - 2**25) as out:
        out.write(
            (page for slab in pages for page in slab), shape=shape, dtype=np.uint8, photometric="minisblack",
            description=_side(note), software="headwater", metadata=None, **options,
        )  # fmt: skip


def _write_folder(path: Path, pages: Iterator[np.ndarray], shape: Shape, note: dict[str, Any]) -> None:
    import tifffile

    path.mkdir(parents=True)
    size = note["voxel_size"]
    options: dict[str, Any] = {} if size is None else {"resolution": (0.01 / size,) * 2, "resolutionunit": "CENTIMETER"}
    width = max(5, len(str(shape[0])))
    for i, page in enumerate(page for slab in pages for page in slab):
        tifffile.imwrite(
            path / f"slice-{i:0{width}d}.tif", page, photometric="minisblack", software="headwater", metadata=None,
            **options,
        )  # fmt: skip
    (path / "headwater.json").write_text(_side(note), encoding="utf-8")


def _write_hdf5(path: Path, pages: Iterator[np.ndarray], shape: Shape, note: dict[str, Any]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        chunks = (min(PAGES, shape[0]), min(256, shape[1]), min(256, shape[2]))
        data = file.create_dataset("data", shape, np.uint8, chunks=chunks, compression="gzip", compression_opts=1)
        z = 0
        for slab in pages:
            data[z : z + len(slab)] = slab
            z += len(slab)
        data.attrs["headwater"] = _side(note)
        if note["voxel_size"] is not None:
            data.attrs["voxel_size"] = note["voxel_size"]


def _write_netcdf(path: Path, pages: Iterator[np.ndarray], shape: Shape, note: dict[str, Any]) -> None:
    try:
        import netCDF4
    except ImportError as error:
        raise UsageError("NetCDF needs netCDF4; try: pip install 'headwater-porous-gan[physics]'") from error
    try:
        with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
            names = [f"segmented_{axis}dim" for axis in "zyx"]
            for name, n in zip(names, shape, strict=True):
                file.createDimension(name, n)
            chunks = (min(PAGES, shape[0]), min(256, shape[1]), min(256, shape[2]))
            data = file.createVariable("segmented", "u1", names, zlib=True, complevel=1, chunksizes=chunks)
            z = 0
            for slab in pages:
                data[z : z + len(slab)] = slab
                z += len(slab)
            file.setncattr("headwater", _side(note))
            if note["voxel_size"] is not None:
                file.setncattr("voxel_size", note["voxel_size"])
    except RuntimeError as error:  # the library reports a full disk as an HDF error
        raise OSError(errno.EIO, f"NetCDF: {error}", str(path)) from error


def _write_vti(path: Path, pages: Iterator[np.ndarray], shape: Shape, note: dict[str, Any]) -> None:
    """VTK image data: voxels are cells, spacing in metres (1 where unknown), data appended raw and uncompressed."""
    d0, d1, d2 = shape
    step = note["voxel_size"] or 1.0
    stored = " ".join(str(ord(c)) for c in _side(note))
    head = (
        '<?xml version="1.0"?>\n<VTKFile type="ImageData" version="1.0" byte_order="LittleEndian" '
        f'header_type="UInt64">\n<ImageData WholeExtent="0 {d2} 0 {d1} 0 {d0}" Origin="0 0 0" '
        f'Spacing="{step!r} {step!r} {step!r}">\n<FieldData><DataArray type="String" Name="headwater" '
        f'NumberOfTuples="1" format="ascii">{stored} 0</DataArray></FieldData>\n'
        f'<Piece Extent="0 {d2} 0 {d1} 0 {d0}"><CellData Scalars="phase">'
        '<DataArray type="UInt8" Name="phase" format="appended" offset="0"/></CellData></Piece>\n</ImageData>\n'
        '<AppendedData encoding="raw">\n_'
    )
    with path.open("wb") as out:
        out.write(head.encode("ascii"))
        out.write(math.prod(shape).to_bytes(8, "little"))
        for slab in pages:
            out.write(slab.data)
        out.write(b"\n</AppendedData>\n</VTKFile>\n")


def _write_meta(path: Path, pages: Iterator[np.ndarray], shape: Shape, note: dict[str, Any]) -> None:
    """MetaImage: ``.mha`` holds the data, ``.mhd`` names the raw file beside it; spacing in millimetres."""
    step = 1e3 * (note["voxel_size"] or 1e-3)
    beside = formats.companions(path)
    fields = {
        "ObjectType": "Image", "NDims": "3", "Comment": _side(note), "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False", "CompressedData": "False", "Offset": "0 0 0",
        "ElementSpacing": f"{step!r} {step!r} {step!r}", "DimSize": f"{shape[2]} {shape[1]} {shape[0]}",
        "ElementType": "MET_UCHAR", "ElementDataFile": beside[0].name if beside else "LOCAL",
    }  # fmt: skip
    header = "".join(f"{name} = {value}\n" for name, value in fields.items()).encode("utf-8")
    if beside:
        path.write_bytes(header)
    with beside[0].open("wb") if beside else path.open("wb") as out:
        if not beside:
            out.write(header)
        for slab in pages:
            out.write(slab.data)
