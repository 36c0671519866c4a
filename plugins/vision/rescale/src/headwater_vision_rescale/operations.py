"""What a trained run does with image files: downscale, upscale, hide and reveal, with 8-bit PNG between the two."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from headwater import Operation, Writer
from headwater.errors import DataError, UsageError
from headwater_vision.files import SUFFIXES, find_images, image_text, keep_readable, read_image, write_png

from headwater_vision_rescale.inference import Runner
from headwater_vision_rescale.networks import HidingNet, Rescaler
from headwater_vision_rescale.sampler import network_of

__all__ = ["Downscale", "Hide", "Picture", "PictureWriter", "Reveal", "Upscale"]

FIELD = "headwater-vision-rescale"
"""The text field of a PNG that says what was made small or hidden: scale, height and width of the original."""


@dataclass(frozen=True)
class Item:
    """An image file and the name of what is made of it, without suffix, relative to the folder that was given."""

    path: Path
    name: str


@dataclass(frozen=True)
class Picture:
    """A result: its name, uint8 (H, W, 3), and the text fields of its PNG."""

    name: str
    image: np.ndarray
    text: dict[str, str] = field(default_factory=dict)


class PictureWriter(Writer):
    """Pictures as PNG: one in a file, any number in a folder under the names of what they were made of."""

    suffixes: ClassVar[tuple[str, ...]] = ("", ".png")

    def write(self, samples: Sequence[Picture], path: Path, start: int = 0) -> None:
        if path.suffix:
            if start + len(samples) > 1:
                raise UsageError(f"{path.name} is one file and there are several images: name a folder with -o")
            write_png(path, samples[0].image, samples[0].text)
            return
        path.mkdir(parents=True, exist_ok=True)
        for picture in samples:
            write_png(path / f"{picture.name}.png", picture.image, picture.text)

    def read(self, path: Path) -> list[Picture]:
        return [
            Picture(
                path.stem if path.is_file() else str(p.relative_to(path).with_suffix("")), read_image(p), image_text(p)
            )
            for p in find_images(path)
        ]

    def join(self, parts: Sequence[Path], path: Path) -> None:
        if path.suffix:
            super().join(parts, path)
            return
        for part in parts:
            shutil.copytree(part, path, dirs_exist_ok=True)


def note_of(path: Path) -> dict[str, Any]:
    """What :data:`FIELD` of a PNG says; empty where another program wrote the file or dropped the field."""
    text = image_text(path).get(FIELD)
    if text is None:
        return {}
    try:
        note = json.loads(text)
        return {k: int(note[k]) for k in ("scale", "height", "width") if k in note}
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: its text field {FIELD} is damaged: {text[:60]!r}") from error


class OfImages(Operation):
    """An operation on image files; ``network`` is the kind of network that it needs."""

    input_suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    unit = "images"
    network: ClassVar[type] = Rescaler

    def setup(self) -> None:
        found = network_of(self.modules)
        if not isinstance(found, self.network):
            fit = "hide and reveal" if isinstance(found, HidingNet) else "downscale and upscale"
            raise UsageError(f"this run was trained to {fit}; another stage is needed for this operation")
        self.runner = Runner(found, self.config, self.place.device)

    @property
    def writer(self) -> Writer:
        return PictureWriter()

    def _image(self, path: Path) -> np.ndarray:
        return read_image(path, strict=not self.config.convert)

    def usable(self, path: Path) -> None:
        """Raise what is wrong with a file."""
        self._image(path)

    def read(self, path: Path) -> list[Item]:
        found, _ = keep_readable(find_images(path), self.usable, skip_bad=self.config.skip_bad)
        names = [p.stem if path.is_file() else str(p.relative_to(path).with_suffix("")) for p in found]
        twice = {n for n in names if names.count(n) > 1} if len(set(names)) < len(names) else set()
        if twice:
            raise DataError(f"{path} has several images named {min(twice)!r} with other suffixes: rename them")
        return [Item(p, n) for p, n in zip(found, names, strict=True)]

    def one(self, item: Item, generator: torch.Generator) -> Picture:
        """What is made of one file."""
        raise NotImplementedError

    def apply(self, items: Sequence[Item], generator: torch.Generator) -> list[Picture]:
        return [self.one(item, generator) for item in items]

    def _noted(self, image: np.ndarray, scale: int) -> dict[str, str]:
        return {FIELD: json.dumps({"scale": scale, "height": image.shape[0], "width": image.shape[1]})}

    def _size(self, item: Item, scale: int) -> tuple[int, int] | None:
        """Height and width that the file says its original had."""
        note = note_of(item.path)
        return (note["height"], note["width"]) if {"height", "width"} <= note.keys() else None


class Downscale(OfImages):
    """Small images that this run can restore; each says in its PNG how large it was."""

    def one(self, item: Item, generator: torch.Generator) -> Picture:
        image = self._image(item.path)
        return Picture(item.name, self.runner.downscale(image, generator), self._noted(image, self._scale))

    @property
    def _scale(self) -> int:
        return int(self.runner.network.scale)


class Upscale(OfImages):
    """Images restored from small ones that ``downscale`` of the same run made."""

    def usable(self, path: Path) -> None:
        scale, own, image = note_of(path).get("scale"), self.runner.network.scale, self._image(path)
        if scale is not None and scale != own:
            raise DataError(f"{path} was made small by {scale}, and this run was trained for {own}")
        note = note_of(path)
        for edge, pixels in (("height", image.shape[0]), ("width", image.shape[1])):
            if edge in note and -(-note[edge] // own) != pixels:
                raise DataError(f"{path} has been resized or cut: its {edge} is {pixels}, not {-(-note[edge] // own)}")

    def one(self, item: Item, generator: torch.Generator) -> Picture:
        size = self._size(item, self.runner.network.scale)
        return Picture(item.name, self.runner.upscale(self._image(item.path), size, generator))


class Hide(OfImages):
    """Covers with the secret in them; each says in its PNG how large the secret is."""

    network = HidingNet

    def setup(self) -> None:
        super().setup()
        secret = self.config.secret
        self.by_name = {p.stem: p for p in find_images(secret)} if secret.is_dir() else None

    def _secret(self, cover: Path) -> Path:
        if self.by_name is None:
            return Path(self.config.secret)
        if cover.stem not in self.by_name:
            raise DataError(f"{self.config.secret} has no secret named {cover.stem!r} for {cover}")
        return self.by_name[cover.stem]

    def usable(self, path: Path) -> None:
        cover, secret = self._image(path), self._image(self._secret(path))
        if secret.shape[0] > cover.shape[0] or secret.shape[1] > cover.shape[1]:
            raise DataError(
                f"{self._secret(path)} is {secret.shape[1]}x{secret.shape[0]} and does not fit into {path} "
                f"({cover.shape[1]}x{cover.shape[0]})"
            )

    def one(self, item: Item, generator: torch.Generator) -> Picture:
        secret = self._image(self._secret(item.path))
        return Picture(item.name, self.runner.hide(self._image(item.path), secret), self._noted(secret, 1))


class Reveal(OfImages):
    """The secrets in images that ``hide`` of the same run made."""

    network = HidingNet

    def usable(self, path: Path) -> None:
        height, width = self._image(path).shape[:2]
        if height % 2 or width % 2:
            raise DataError(f"{path} is {width}x{height}: images with a secret have even edges, this one was cut")

    def one(self, item: Item, generator: torch.Generator) -> Picture:
        return Picture(item.name, self.runner.reveal(self._image(item.path), self._size(item, 1), generator))
