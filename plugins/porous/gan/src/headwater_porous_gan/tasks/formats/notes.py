"""What a written file says of itself, in its attributes or in a file beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from headwater_porous_gan.volume import Volume

__all__ = ["companions", "same_volume", "with_facts"]


def companions(path: Path) -> tuple[Path, ...]:
    """The other files that belong to a written file: the side JSON of formats without attributes, data of ``.mhd``."""
    name = path.name.lower()
    if name.endswith(".mhd"):
        return (path.with_suffix(".raw"),)
    if name.endswith((".raw", ".npy")):
        return (path.with_name(path.name + ".json"),)
    return ()


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
