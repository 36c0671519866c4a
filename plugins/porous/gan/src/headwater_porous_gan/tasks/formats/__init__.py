"""Reading segmented volumes: raw, TIFF, HDF5, NetCDF, Zarr, VTI, MetaImage, NumPy and folders of slices.

A file is opened without being loaded. Its labels are counted slab by slab, and slices become 0 (pore) and 1 (grain)
when they are read (:class:`Phase`), so the memory needed does not depend on the size of the volume.

``opening`` chooses by the suffix among ``raw``, ``tiff``, ``folder``, ``arrays`` and ``vtk``, each of which makes a
``Source``; ``labels`` makes volumes of two phases of it; ``notes`` is what headwater writes beside the voxels.
"""

from headwater_porous_gan.tasks.formats.labels import Phase, porosity_of, read_volumes
from headwater_porous_gan.tasks.formats.notes import companions, same_volume, with_facts
from headwater_porous_gan.tasks.formats.opening import open_source
from headwater_porous_gan.tasks.formats.source import SLAB, SUFFIXES, Reading, Source, natural, slabs, text

__all__ = [
    "SLAB",
    "SUFFIXES",
    "Phase",
    "Reading",
    "Source",
    "companions",
    "natural",
    "open_source",
    "porosity_of",
    "read_volumes",
    "same_volume",
    "slabs",
    "text",
    "with_facts",
]
