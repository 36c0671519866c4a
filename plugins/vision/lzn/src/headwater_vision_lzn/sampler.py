"""Sampling, and what a trained run does with given images and latents."""

import csv
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import DataError, Operation, Sampler, UsageError, seeding
from headwater.task import Writer
from headwater_vision.datasets import ImageSet, fitted, read_npz
from headwater_vision.files import SUFFIXES, find_images, keep_readable, read_image
from torch import Tensor

from headwater_vision_lzn.solvers import images_of, noise_of
from headwater_vision_lzn.space import Space, to_bytes

__all__ = ["Arrays", "Classify", "Decode", "Embed", "Encode", "ImageSampler", "Reconstruct", "Rows"]


EVALUATED = 256
"""Samples that a distance between sets of images is measured on, at least."""


class Arrays(Writer):
    """Arrays with one row for each item, as NPZ."""

    suffixes = (".npz",)

    def write(self, samples: dict[str, np.ndarray], path: Path, start: int = 0) -> None:
        with path.open("wb") as out:
            np.savez(out, **samples)  # type: ignore[arg-type]

    def read(self, path: Path) -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def join(self, parts: Sequence[Path], path: Path) -> None:
        read = [self.read(part) for part in parts]
        self.write({name: np.concatenate([part[name] for part in read]) for name in read[0]}, path)

    def cut(self, samples: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
        return {name: values[:n] for name, values in samples.items()}


class Rows(Writer):
    """A row for each item, as CSV with a header or as JSON lines."""

    suffixes = (".csv", ".jsonl")

    def write(self, samples: list[dict[str, Any]], path: Path, start: int = 0) -> None:
        with path.open("w", encoding="utf-8", newline="") as out:
            if path.name.endswith(".jsonl"):
                out.writelines(json.dumps(row) + "\n" for row in samples)
                return
            table = csv.DictWriter(out, list(samples[0]))
            table.writeheader()
            table.writerows(samples)

    def read(self, path: Path) -> list[dict[str, Any]]:
        with path.open(encoding="utf-8", newline="") as source:
            if path.name.endswith(".jsonl"):
                return [json.loads(line) for line in source]
            return list(csv.DictReader(source))

    def join(self, parts: Sequence[Path], path: Path) -> None:
        self.write([row for part in parts for row in self.read(part)], path)


@dataclass(frozen=True)
class Item:
    """One image of an operation: its name, and where it is read from or what it is."""

    name: str
    source: Path | np.ndarray

    def load(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        if isinstance(self.source, Path):
            return read_image(self.source)
        return np.broadcast_to(self.source, (*self.source.shape[:2], 3))


def read_items(path: Path, skip_bad: bool) -> list[Item]:
    """The images of a file, a folder, or an NPZ with an array ``images``.

    Raises:
        DataError: there is none, or one cannot be read (left out and listed with ``skip_bad``).
    """
    if path.suffix.lower() == ".npz":
        return [Item(str(i), image) for i, image in enumerate(read_npz(path).images)]
    good, _ = keep_readable(find_images(path), read_image, skip_bad=skip_bad)
    return [Item(str(p.relative_to(path)) if path.is_dir() else p.name, p) for p in good]


def stacked(items: Sequence[Item], size: int, channels: int) -> Tensor:
    """Items as uint8 (B, C, size, size): resized to cover the square, the centre cut out."""
    images = np.stack([fitted(item.load(), (size, size), channels) for item in items])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def as_set(x: Tensor, labels: Tensor | None = None, classes: Sequence[str] = ()) -> ImageSet:
    """Images in [-1, 1] as the task writes them."""
    images = to_bytes(x).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return ImageSet(images, None if labels is None else labels.cpu().numpy(), tuple(classes))


class ImageSampler(Sampler):
    """Images of latents from N(0, I), or from the zone of a label."""

    def setup(self) -> None:
        self.space = Space(self.modules, self.facts, self.place.device)

    @property
    def evaluated(self) -> int:
        return max(self.block_size, EVALUATED)

    def block(self, k: int, generator: torch.Generator, condition: Any) -> ImageSet:
        space, n, asked = self.space, self.block_size, condition.label if condition is not None else None
        latent, labels = space.draws(n, generator), None
        number = None if asked is None else space.class_of(asked)
        if space.points is not None:
            drawn = torch.randint(len(space.points), (n,), generator=generator, device=generator.device)
            labels = drawn.to(self.place.device) if number is None else torch.full_like(drawn, number)
            latent = space.latents_of_labels(labels, latent)
        size, channels = space.shape
        noise = torch.randn(n, channels, size, size, generator=generator, device=generator.device)
        x = images_of(
            space.field(latent, labels), noise.to(self.place.device, space.dtype), self.config.method,
            self.config.steps, self.config.tolerance,
        )  # fmt: skip
        return as_set(x, labels, space.classes if labels is not None else ())


class ImageOperation(Operation):
    """An operation whose items are images."""

    input_suffixes = (*SUFFIXES, ".npz")

    def setup(self) -> None:
        self.space = Space(self.modules, self.facts, self.place.device)

    def read(self, path: Path) -> Sequence[Item]:
        return read_items(path, self.config.skip_bad)

    def images(self, items: Sequence[Item]) -> Tensor:
        """The items as the networks want them, uint8."""
        return stacked(items, *self.space.shape)


class LatentOperation(ImageOperation):
    """An operation that needs the latents of images, and so a bank."""

    def setup(self) -> None:
        super().setup()
        path: Path | None = self.config.reference
        if path is not None:
            if not path.exists():
                raise DataError(f"operation.reference: {path} does not exist")
            self.space.reference = stacked(read_items(path, self.config.skip_bad), *self.space.shape)
        self.space.images  # noqa: B018 - refuses a run without a bank before anything is written

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors and latents (B, D).

        The Gaussian draw of an image is keyed on the seed and on its pixels, so its latent depends on nothing else.
        """
        keys = [zlib.crc32(image.numpy().tobytes()) for image in images]
        draws = [torch.randn(self.space.width, generator=seeding.generator(self.seed, key)) for key in keys]
        prior = self.config.prior * torch.stack(draws).to(self.place.device, self.space.dtype)
        anchors = self.space.anchors(images)
        return anchors, self.space.latents(anchors, prior)


class Encode(LatentOperation):
    """The anchor and the latent of each image."""

    @cached_property
    def writer(self) -> Writer:
        return Arrays()

    def apply(self, items: Sequence[Item], generator: torch.Generator) -> dict[str, np.ndarray]:
        anchors, latents = self.latents(self.images(items))
        return {
            "latents": latents.cpu().numpy(), "anchors": anchors.cpu().numpy(),
            "files": np.array([item.name for item in items]),
        }  # fmt: skip


class Embed(ImageOperation):
    """The features of each image, for other models."""

    @cached_property
    def writer(self) -> Writer:
        return Arrays()

    def apply(self, items: Sequence[Item], generator: torch.Generator) -> dict[str, np.ndarray]:
        features = self.space.encoder.features(self.space.pixels(self.images(items)))
        return {"features": features.cpu().numpy(), "files": np.array([item.name for item in items])}


class Classify(LatentOperation):
    """The class of each image: the label anchor to which its latent flows back."""

    def setup(self) -> None:
        super().setup()
        if self.space.points is None:
            raise UsageError("this run knows no classes; the stage joint makes one that does")

    @cached_property
    def writer(self) -> Writer:
        return Rows()

    def apply(self, items: Sequence[Item], generator: torch.Generator) -> list[dict[str, Any]]:
        labels, probabilities = self.space.labels_of(self.latents(self.images(items))[1], self.config.weights)
        rows = zip(items, labels.tolist(), probabilities.tolist(), strict=True)
        return [{"file": i.name, "label": self.space.classes[k], "probability": round(p, 6)} for i, k, p in rows]


class Reconstruct(LatentOperation):
    """Each image from its latent and its initial noise."""

    def setup(self) -> None:
        super().setup()
        self.label = None if self.config.label is None else self.space.class_of(self.config.label)

    def apply(self, items: Sequence[Item], generator: torch.Generator) -> ImageSet:
        images = self.images(items)
        field, labels = labelled(self.space, self.latents(images)[1], self.label)
        how = (self.config.method, self.config.steps, self.config.tolerance)
        x = images_of(field, noise_of(field, self.space.pixels(images), *how), *how)
        return as_set(x, labels, self.space.classes if labels is not None else ())


def labelled(space: Space, latents: Tensor, label: int | None) -> tuple[Any, Tensor | None]:
    """The field under latents, and the labels that it needs: the one given, or those of the latents' zones."""
    if space.points is None:
        return space.field(latents), None
    labels = space.labels_of(latents)[0]
    if label is not None:
        labels = torch.full_like(labels, label)
    return space.field(latents, labels), labels


class Decode(Operation):
    """An image of each latent, from fresh noise."""

    input_suffixes = (".npz", ".npy")

    def setup(self) -> None:
        self.space = Space(self.modules, self.facts, self.place.device)
        self.label = None if self.config.label is None else self.space.class_of(self.config.label)

    def read(self, path: Path) -> Sequence[np.ndarray]:
        try:
            found = np.load(path, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                with found:
                    if "latents" not in found:
                        raise DataError(f"{path} has no array 'latents'; it has: {', '.join(found) or 'none'}")
                    found = found["latents"]
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} holds no latents that can be read: {error}") from error
        if found.ndim != 2 or found.shape[1] != self.space.width or found.dtype.kind != "f":
            raise DataError(
                f"{path}: latents are {found.dtype} {found.shape}; floats (N, {self.space.width}) are needed"
            )
        if not np.isfinite(found).all():
            raise DataError(f"{path}: the latent of row {int(np.argmin(np.isfinite(found).all(1)))} is not finite")
        return list(found)

    def apply(self, items: Sequence[np.ndarray], generator: torch.Generator) -> ImageSet:
        size, channels = self.space.shape
        latents = torch.from_numpy(np.stack(items)).to(self.place.device, self.space.dtype)
        field, labels = labelled(self.space, latents, self.label)
        noise = torch.randn(len(items), channels, size, size, generator=generator, device=generator.device)
        x = images_of(
            field, noise.to(self.place.device, self.space.dtype), self.config.method, self.config.steps,
            self.config.tolerance,
        )  # fmt: skip
        return as_set(x, labels, self.space.classes if labels is not None else ())
