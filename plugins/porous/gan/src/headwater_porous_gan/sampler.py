"""Volumes of any size, tile by tile: block k is tile k % tiles of realisation k // tiles."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from headwater import DataError, Sampler, UsageError, seeding

from headwater_porous_gan.config import PorousSamplerConfig
from headwater_porous_gan.latents import Latents
from headwater_porous_gan.networks import Generator
from headwater_porous_gan.postprocess import majority, otsu_level, reaches
from headwater_porous_gan.selection import Best, pilot_latents, pilot_level
from headwater_porous_gan.tiling import Folded, running_statistics, statistics
from headwater_porous_gan.volume import Shape, Volume

__all__ = ["PorousSampler"]

PAPER_MARGIN = 40
"""Voxels that the published evaluation cuts off on each side."""

TILE = 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
PACKED = (".zarr", ".h5", ".hdf5", ".nc", ".npz")
"""Formats whose files are compressed; two phases take less than a quarter of a byte a voxel then."""


class PorousSampler(Sampler):
    """Windows of the field that a trained generator makes of latents without end, or whole published volumes."""

    unit = "voxels"
    config: PorousSamplerConfig

    def setup(self) -> None:
        config = self.config
        best: Any = self.modules.get("best")
        self.chosen: Best | None = best if config.weights == "best" and best is not None and best.found else None
        generator: Any = self.chosen.generator if self.chosen is not None else self.modules["generator"]
        self.dtype = DTYPES[config.precision]
        self.generator: Generator = generator.to(torch.float64) if config.precision == "float64" else generator
        self.factor = self.generator.factor
        shape = config.shape
        side = config.tile or TILE
        if config.tile is not None and config.tile % self.factor:
            raise UsageError(
                f"sampler.tile = {config.tile} is no multiple of the {self.factor} voxels of a cell of this generator"
            )
        tile: Any = tuple(min(side, self._whole(n)) for n in shape)
        self.tile: Shape = tile
        self.grid = [-(-n // t) for n, t in zip(shape, self.tile, strict=True)]
        self.tiles = self.grid[0] * self.grid[1] * self.grid[2]
        margin = {"stationary": None, "paper": PAPER_MARGIN, "none": 0}[config.margin]
        self.extent: Shape | None = None
        self.shift: Sequence[int] = config.origin
        if margin is not None:
            if config.origin != (0, 0, 0):
                raise UsageError(
                    f"sampler.origin: with sampler.margin = {config.margin} the volume has an end, and no origin"
                )
            extent: Any = tuple(-(-(n + 2 * margin) // self.factor) - 3 for n in shape)
            self.extent = extent
            self.shift = (margin,) * 3
            if min(extent) < 1:
                raise UsageError(
                    f"sampler.shape = {list(shape)}: one latent makes {4 * self.factor} voxels, {2 * margin} are cut"
                )
        self.period: Shape | None = None
        if config.periodic:
            if margin is not None or any(n % self.factor for n in shape):
                raise UsageError(
                    f"sampler.periodic needs margin = stationary and a shape of whole cells of {self.factor} voxels"
                )
            period: Any = tuple(n // self.factor for n in shape)
            self.period = period
        if config.latent == "torch" and config.origin != (0, 0, 0):
            raise UsageError("sampler.origin: with sampler.latent = torch nothing is known beside the volume")
        self._realisation: tuple[tuple[int, int], Latents, Folded, int | None] | None = None

    def _whole(self, n: int) -> int:
        """The smallest number of voxels that is whole cells and not below ``n``."""
        return -(-n // self.factor) * self.factor

    # What fit's loop over blocks asks for

    def blocks(self, n: int) -> int:
        return n * self.tiles

    def amount(self, k: int) -> int:
        low, high = self._box(k % self.tiles)
        return int(np.prod([b - a for a, b in zip(low, high, strict=True)]))

    def room(self, missing: Sequence[int], blocks: int, suffix: str) -> int:
        parts = sum(map(self.amount, missing))
        whole = int(np.prod(self.config.shape)) * blocks // self.tiles
        if suffix == ".zarr":  # its parts become the file
            return parts // 4
        return parts + (whole // 4 if suffix in PACKED else whole)

    def block(self, k: int, generator: torch.Generator, condition: Any) -> Volume:
        number, index = divmod(k, self.tiles)
        low, high = self._box(index)
        phase = self._taken_over(number, low, high)
        if phase is None:
            phase = self._computed(number, low, high)
        return Volume(
            phase=phase, voxel_size=self.facts.get("voxel_size"), start=low, whole=self.config.shape, step=self.tile,
            number=number, provenance=self._provenance,
        )  # fmt: skip

    def _box(self, index: int) -> tuple[Shape, Shape]:
        """The voxels [low, high) of tile ``index``, the last axis fastest."""
        place = np.unravel_index(index, self.grid)
        low: Any = tuple(int(p) * t for p, t in zip(place, self.tile, strict=True))
        high: Any = tuple(min(a + t, n) for a, t, n in zip(low, self.tile, self.config.shape, strict=True))
        return low, high

    # Computing

    def _computed(self, number: int, low: Shape, high: Shape) -> np.ndarray:
        latents, folded, own = self._field(number)
        factor = self.factor
        a = [s + v for s, v in zip(self.shift, low, strict=True)]
        b = [s + v for s, v in zip(self.shift, high, strict=True)]
        first: Any = tuple(v // factor for v in a)
        # Full tiles at a volume's end too, cut afterwards: the same tile always has the same bits.
        last: Any = tuple(-(-(v + t) // factor) for v, t in zip(a, self.tile, strict=True))
        if self.config.postprocess == "none":
            found = folded.tile(latents, first, last, lambda y: (y > 0).to(torch.uint8))
            halo = 0
        else:
            level = self._level if own is None else own
            found = folded.tile(latents, first, last, lambda y: reaches(y, level))
            halo = 1
        for axis in range(3):
            corner = first[axis] * factor - 1
            places = torch.arange(a[axis] - halo, b[axis] + halo, device=found.device)
            if self.extent is not None:  # the border's voxels stand for what is beyond it, as in the median filter
                places = places.clamp(0, (self.extent[axis] + 3) * factor - 1)
            found = found.index_select(axis, places - corner)
        phase: np.ndarray = (majority(found) if halo else found).cpu().numpy()
        return phase

    def _field(self, number: int) -> tuple[Latents, Folded, int | None]:
        """The latents and the folded generator of a realisation; with ``bn = batch`` its own level as well."""
        key = (self.seed, number)
        if self._realisation is None or self._realisation[0] != key:
            latents = self._latents(number)
            if self.config.bn == "batch":
                low, high = self._cells()
                folded = Folded(self.generator, statistics(self.generator, latents, low, high), self.dtype)
                level = self._own_level(latents, folded) if self.config.postprocess == "paper" else None
                self._realisation = key, latents, folded, level
            else:
                self._realisation = key, latents, self._frozen, None
        return self._realisation[1:]

    def _latents(self, number: int) -> Latents:
        generator, device = self.generator, self.place.device
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        if self.config.latent == "indexed":
            key = seeding.key(self.seed, number)
            return Latents(generator.nz, key, self.extent, self.period, device=device, dtype=dtype)
        reach = generator.halos[0] + 3
        sizes = self.extent or self.period
        offset = 0
        if sizes is None:
            offset = -reach
            sizes = tuple(self._whole(-(-n // t) * t) // self.factor + 2 * reach for n, t in
                          zip(self.config.shape, self.tile, strict=True))  # fmt: skip
        source = torch.Generator().manual_seed(self.seed + number)
        table = torch.randn(1, generator.nz, *sizes, generator=source)[0].to(device)
        return Latents(
            generator.nz, extent=self.extent, period=self.period, table=table, offset=offset, device=device, dtype=dtype
        )

    def _cells(self) -> tuple[Shape, Shape]:
        """The cells of the whole volume, margins included: what the published sampler normalises over."""
        if self.extent is not None:
            a, b, c = (n + 3 for n in self.extent)
            return (0, 0, 0), (a, b, c)
        low: Any = tuple(v // self.factor for v in self.shift)
        high: Any = tuple(-(-(v + n) // self.factor) for v, n in zip(self.shift, self.config.shape, strict=True))
        return low, high

    def _own_level(self, latents: Latents, folded: Folded) -> int:
        """Otsu's level of the volume itself, which is made in one piece for that, as published."""
        low, high = self._cells()
        y = folded.tile(latents, low, high)[1:-1, 1:-1, 1:-1].cpu().numpy()
        corner = [s - a * self.factor for s, a in zip(self.shift, low, strict=True)]
        return otsu_level(y, [slice(c, c + n) for c, n in zip(corner, self.config.shape, strict=True)])

    @cached_property
    def _frozen(self) -> Folded:
        """The generator folded under the statistics of training or of the pilot volume."""
        if self.config.bn == "running":
            found = running_statistics(self.generator)
        elif self.chosen is not None:
            found = self.chosen.statistics
        else:
            latents = pilot_latents(self.generator, self.place.device, next(self.generator.parameters()).dtype)
            found = statistics(self.generator, latents, (0, 0, 0), (self.config.pilot,) * 3)
        return Folded(self.generator, found, self.dtype)

    @cached_property
    def _level(self) -> int:
        """Otsu's level, of the pilot volume: that of the whole would be known only when all tiles are."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        return pilot_level(self._frozen, pilot_latents(self.generator, self.place.device, dtype), self.config.pilot)

    # Going on with a file

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        config = self.config
        digest = hashlib.sha256()
        for name, tensor in sorted(self.generator.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
        for mean, variance in self.chosen.statistics if self.chosen is not None else ():
            digest.update(mean.cpu().numpy().tobytes() + variance.cpu().numpy().tobytes())
        known = {
            "method": "porous-gan", "seed": self.seed, "weights": digest.hexdigest()[:16], "bn": config.bn,
            "pilot": config.pilot, "postprocess": config.postprocess, "margin": config.margin,
            "latent": config.latent, "precision": config.precision, "periodic": config.periodic,
            "origin": list(config.origin), "cell": self.factor,
        }  # fmt: skip
        if config.extend is not None:
            known["extends"] = config.extend.name
        return known

    @cached_property
    def _known(self) -> list[tuple[Volume, Sequence[int]]]:
        """The volumes that are extended, with their place in this one.

        Raises:
            DataError: they are of another field.
        """
        path = self.config.extend
        assert path is not None
        if self.config.margin != "stationary" or self.config.periodic or self.config.bn == "batch":
            raise UsageError(
                "sampler.extend needs a field without end: margin = stationary, not periodic, bn not batch"
            )
        if self.config.latent == "torch":
            raise UsageError("sampler.extend needs sampler.latent = indexed: a new table of numbers is another field")
        if not path.exists():
            raise DataError(f"sampler.extend: {path} does not exist")
        found: list[tuple[Volume, Sequence[int]]] = []
        for volume in self.task.read(path):
            for name, value in self._provenance.items():
                if name not in ("origin", "extends") and volume.provenance.get(name) != value:
                    raise DataError(
                        f"sampler.extend: {path} was made with {name} = {volume.provenance.get(name)!r}, this is "
                        f"{value!r}: another field, which would not fit"
                    )
            place = [int(v) - o for v, o in zip(volume.provenance["origin"], self.config.origin, strict=True)]
            found.append((volume, place))
        return found

    def _taken_over(self, number: int, low: Shape, high: Shape) -> np.ndarray | None:
        """The tile out of the file that is extended, where it is whole in there."""
        if self.config.extend is None:
            return None
        for volume, place in islice(self._known, number, number + 1):
            a = [v - p for v, p in zip(low, place, strict=True)]
            b = [v - p for v, p in zip(high, place, strict=True)]
            if min(a) >= 0 and all(end <= n for end, n in zip(b, volume.phase.shape, strict=True)):
                where = tuple(slice(s, e) for s, e in zip(a, b, strict=True))
                return np.ascontiguousarray(volume.phase[where])
        return None
