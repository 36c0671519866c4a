"""The tasks of kind ``porous.volume``: one segmented volume to learn from, its files, metrics and pictures."""

import sys
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from headwater import Config, Task
from headwater.errors import DataError, HeadwaterError, UsageError
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from headwater_porous_gan.tasks import formats, parts
from headwater_porous_gan.tasks.entries import KIND
from headwater_porous_gan.volume import Volume

if TYPE_CHECKING:
    from headwater.reporting import Panel
    from headwater.run import Run

    from headwater_porous_gan.tasks.scores import Measured

__all__ = ["PorousTask", "PorousVolume", "PorousVolumeConfig", "ScoreConfig", "coarsened"]


class ScoreConfig(Config):
    """What every task of segmented volumes lets one choose: how files are written, and what is measured."""

    labels: tuple[int, int] = Field((0, 255), description="labels of pore and grain in the files that are written")
    isotropic: bool = Field(False, description="the material is isotropic: crops may be flipped and turned")
    lags: PositiveInt = Field(100, description="longest lag of S2, in voxels")
    permeability: bool = Field(True, description="compute the permeability of crops in each direction")
    permeability_edge: int = Field(
        64, ge=8, description="edge of the crops that permeability is computed on, in voxels"
    )
    permeability_crops: PositiveInt = Field(2, description="how many crops of each volume, spread over it")
    thickness: bool = Field(False, description="compute the local thickness of pores in those crops (needs porespy)")

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] == value[1] or not all(0 <= v <= 255 for v in value):
            raise ValueError("two different numbers from 0 to 255 are needed: pore, grain")
        return value


class PorousVolumeConfig(ScoreConfig):
    """Where the volume is, and what the file does not say itself."""

    path: Path | None = Field(None, description="file, or folder of slices")
    dataset: str | None = Field(None, description="data set or variable in HDF5, NetCDF, Zarr or NPZ")
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None, description="shape of a raw file, in the order that `order` says; from names like rock_400x300x200_uint8"
    )
    order: Literal["C", "F"] = Field(
        "C", description="of `shape`: C lists the axis that runs fastest in the file last, F first"
    )
    dtype: str | None = Field(None, description="type of a raw file, for example uint8 or >u2; from its name without")
    pore_value: int | None = Field(None, description="label of the pores; needed unless labels are 0 (pore) and 255")
    several_labels: bool = Field(False, description="every label but pore_value is grain, however many there are")
    confirm_porosity: bool = Field(False, description="a porosity above 0.6 is right")
    voxel_size: PositiveFloat | None = Field(None, description="edge of a voxel in metres; from the file without")
    coarsen: PositiveInt = Field(1, description="join cubes of this many voxels along each axis to one, by majority")

    @property
    def reading(self) -> "formats.Reading":
        """What a reader must be told."""
        return formats.Reading(
            dataset=self.dataset, shape=self.shape, order=self.order, dtype=self.dtype, pore_value=self.pore_value,
            several_labels=self.several_labels, confirm_porosity=self.confirm_porosity, voxel_size=self.voxel_size,
        )  # fmt: skip


def coarsened(phase: np.ndarray, factor: int) -> np.ndarray:
    """Cubes of ``factor``^3 voxels joined to one by majority; half and half is grain. Incomplete cubes are left out."""
    if factor == 1:
        return phase
    d0, d1, d2 = (n // factor for n in phase.shape)
    if 0 in (d0, d1, d2):
        raise DataError(f"a volume of {formats.text(phase.shape)} cannot be coarsened by {factor}")
    out = np.empty((d0, d1, d2), np.uint8)
    for i in range(d0):  # one layer of cubes at a time
        slab = phase[i * factor : (i + 1) * factor, : d1 * factor, : d2 * factor]
        counts = slab.reshape(factor, d1, factor, d2, factor).sum((0, 2, 4), dtype=np.int64)
        out[i] = 2 * counts >= factor**3
    return out


class PorousTask(Task):
    """A segmented volume and everything around it; samples are tiles (:class:`Volume`) or lists of whole volumes.

    One :class:`Volume` is written as a part, and ``join`` makes the file of the parts; a list of volumes is written
    as the file itself. Several volumes become a folder (a group, for Zarr) under the name that was asked for.
    """

    kind: ClassVar[str] = KIND
    suffixes = formats.SUFFIXES

    @abstractmethod
    def volume(self) -> Volume:
        """The volume to learn from; loaded once, memory-mapped where it is large."""

    @property
    def isotropic(self) -> bool:
        """Whether crops may be flipped and turned."""
        return bool(self.config.isotropic)

    @property
    def reading(self) -> "formats.Reading":
        """What is known about files of samples."""
        return formats.Reading()

    def training_volume(self) -> Volume | None:
        """The volume to compare with; ``None`` where the task has none."""
        return self.volume()

    def write(self, samples: Volume | Sequence[Volume], path: Path, start: int = 0) -> None:
        """Write a tile as one part, or a list of whole volumes as the file."""
        if isinstance(samples, Volume):
            parts.write_part(samples, path, self.suffix_of(path), self.config.labels)
        else:
            parts.write_volumes(list(samples), path, self.suffix_of(path), self.config.labels)

    def read(self, path: Path) -> list[Volume]:
        """The volumes in a file or folder."""
        return formats.read_volumes(path, self.reading)

    def join(self, blocks: Sequence[Path], path: Path) -> None:
        """Join tiles: slab by slab, or, for Zarr, by hard links to the chunks that the parts are."""
        parts.join(blocks, path, self.suffix_of(path))

    def companions(self, path: Path) -> tuple[Path, ...]:
        """The files that belong to ``path``: the side JSON of raw and NumPy, the data of ``.mhd``."""
        return formats.companions(path)

    def cut(self, samples: Any, n: int) -> Any:
        """A tile is whole as it is; of a list the first ``n``."""
        return samples if isinstance(samples, Volume) else samples[:n]

    def metrics(self, samples: Volume | Sequence[Volume]) -> dict[str, float]:
        """Morphology and flow of generated volumes: beside those of the training volume, where there is one."""
        from headwater_porous_gan.tasks.scores import measure, scores

        volumes = [samples] if isinstance(samples, Volume) else list(samples)
        if not volumes:
            raise DataError("there is no volume to measure")
        return scores([measure(v, self.config) for v in parts.assemble(volumes)], self.reference)

    @cached_property
    def reference(self) -> "Measured | None":
        """The training volume, measured once; ``None`` where the task has none."""
        from headwater_porous_gan.tasks.scores import measure

        volume = self.training_volume()
        return None if volume is None else measure(volume, self.config)

    def panels(self, run: "Run") -> "list[Panel]":
        """Slices, surfaces, S2 and all functionals of real and generated volumes side by side."""
        from headwater_porous_gan.tasks.pictures import panels

        return panels(self, run)

    def make(self, out: Path) -> None:
        """Write the training volume as ``volume.tif`` into the folder ``out``."""
        out.mkdir(parents=True, exist_ok=True)
        path = out / "volume.tif"
        if path.exists():
            raise UsageError(f"{path} exists; choose another folder")
        self.write([self.volume()], path)


class PorousVolume(PorousTask):
    """The user's own segmented volume."""

    @property
    def reading(self) -> "formats.Reading":
        return self.config.reading

    @cached_property
    def _volume(self) -> Volume:
        if self.config.path is None:
            raise UsageError("task.path is needed: the file or folder with the segmented volume")
        found = formats.read_volumes(self.config.path, self.config.reading, in_memory=True)
        if len(found) != 1:
            raise DataError(f"{self.config.path} holds {len(found)} volumes; name one of them")
        one = found[0]
        if self.config.coarsen > 1:
            size = None if one.voxel_size is None else one.voxel_size * self.config.coarsen
            one = Volume(coarsened(one.phase, self.config.coarsen), size, provenance=one.provenance)
        porosity = formats.porosity_of(one)
        size = f"voxel {one.voxel_size:.4g} m" if one.voxel_size else "voxel size unknown"
        print(f"{self.config.path}: {formats.text(one.phase.shape)}, porosity {porosity:.4f}, {size}", file=sys.stderr)
        return one

    def volume(self) -> Volume:
        return self._volume

    def training_volume(self) -> Volume | None:
        return None if self.config.path is None else self.volume()

    @classmethod
    def check(cls, root: Path) -> list[str]:
        """What keeps the file or folder ``root`` from being read without further settings; one line a problem."""
        try:
            formats.read_volumes(root, formats.Reading())
        except HeadwaterError as error:
            return [str(error)]
        return []
