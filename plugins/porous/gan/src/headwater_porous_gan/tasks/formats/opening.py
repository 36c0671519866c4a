"""The one door: a file's suffix says who opens it."""

from pathlib import Path
from typing import Any

from headwater.errors import DataError, UsageError

from headwater_porous_gan.tasks.formats.arrays import is_zarr, open_hdf5, open_netcdf, open_npy, open_npz, open_zarr
from headwater_porous_gan.tasks.formats.folder import open_folder
from headwater_porous_gan.tasks.formats.raw import open_raw
from headwater_porous_gan.tasks.formats.source import SUFFIXES, Reading, Source, text
from headwater_porous_gan.tasks.formats.tiff import open_tiff
from headwater_porous_gan.tasks.formats.vtk import open_meta, open_vti

__all__ = ["open_source"]


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
        ".zarr": open_zarr, ".tif": open_tiff, ".tiff": open_tiff, ".raw": open_raw, ".h5": open_hdf5,
        ".hdf5": open_hdf5, ".nc": open_netcdf, ".vti": open_vti, ".mha": open_meta, ".mhd": open_meta,
        ".npy": open_npy, ".npz": open_npz,
    }  # fmt: skip
    suffix = next((s for s in openers if name.endswith(s)), None)
    if path.is_dir() and suffix != ".zarr":
        source = open_zarr(path, reading) if is_zarr(path) else open_folder(path, reading)
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
