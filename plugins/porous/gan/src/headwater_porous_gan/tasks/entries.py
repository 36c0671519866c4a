"""The task entries of the plugin; importing this loads nothing heavy."""

from headwater import TaskEntry

__all__ = ["KIND", "TASKS"]

KIND = "porous.volume"

TASKS = (
    TaskEntry(
        name="bead-pack",
        kind=KIND,
        summary="Equal spheres in a periodic box, made in seconds: a stand-in for the scanned bead pack, and named so",
        task="headwater_porous_gan.tasks.media:Medium",
        config="headwater_porous_gan.tasks.media:MediumConfig",
    ),
    TaskEntry(
        name="porous-volume",
        kind=KIND,
        summary="Your own segmented volume: raw, TIFF, HDF5, NetCDF, Zarr, VTI, MetaImage or NumPy",
        task="headwater_porous_gan.tasks.volume:PorousVolume",
        config="headwater_porous_gan.tasks.volume:PorousVolumeConfig",
    ),
)
