"""The task: photographs to train on and sets of photographs to be tested on, embedded or the user's own."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from headwater import Config, Task
from headwater.errors import DataError, HeadwaterError
from headwater_vision.embedded import photograph
from headwater_vision.files import find_images, keep_readable, read_image, write_png
from pydantic import Field

from headwater_vision_rescale.tasks.entries import KIND

if TYPE_CHECKING:
    from headwater.reporting import Panel
    from headwater.run import Run

__all__ = ["Photograph", "Photographs", "PhotographsConfig", "Sample", "TestSet"]

TRAIN = ("coffee", "cat", "motorcycle", "rocket", "china", "flower", "immunohistochemistry")
TEST = ("astronaut", "hubble")
"""Embedded photographs for testing; of the deep field a piece of 512 x 512."""


class PhotographsConfig(Config):
    """Where photographs are; the embedded ones where nothing is given."""

    train: Path | None = Field(None, description="folder of images to train on (with all folders below)")
    train_small: Path | None = Field(
        None, description="folder of small images that guide the network's own, by name; bicubic ones without"
    )
    test: dict[str, Path] = Field({}, description="folders of images to test on, by the name of the set: Set5, B100")
    test_small: dict[str, Path] = Field({}, description="small images to compare with, by the name of the set")
    skip_bad: bool = Field(False, description="leave out images that cannot be used, and list them")


@dataclass(frozen=True)
class Photograph:
    """One image of a test set; its name has the set's before it: ``Set5/img_001``."""

    name: str
    path: Path | None = None
    small: Path | None = None

    def image(self) -> np.ndarray:
        """uint8 (H, W, 3), read anew at each call."""
        if self.path is not None:
            return read_image(self.path)
        image = photograph(self.name.partition("/")[2])
        return image[:512, :512] if self.name.endswith("/hubble") else image


@dataclass(frozen=True)
class TestSet:
    """A named set of photographs."""

    name: str
    photographs: tuple[Photograph, ...]


@dataclass(frozen=True)
class Sample:
    """What became of one test image, as named 8-bit pictures, and how often it was drawn before.

    Of rescaling: ``hr`` (restored) and ``lr``. Of hiding: ``secret`` (revealed) and ``stego``.
    """

    name: str
    pictures: dict[str, np.ndarray]
    draw: int = 0

    @property
    def file(self) -> str:
        """The file in the folder of each kind of picture."""
        return f"{self.name}{f'~{self.draw}' if self.draw else ''}.png"


class Photographs(Task):
    """Photographs of the kind that rescaling learns from; samples are test images there and back."""

    kind: ClassVar[str] = KIND
    suffixes = ("",)

    # Data

    def _kept(self, root: Path, least: int) -> list[Path]:
        def usable(path: Path) -> None:
            image = read_image(path)
            if min(image.shape[:2]) < least:
                raise DataError(f"{path} is {image.shape[1]}x{image.shape[0]}; {least}x{least} is the least")

        return keep_readable(find_images(root), usable, skip_bad=self.config.skip_bad)[0]

    def training_images(self, least: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Every training image with its own small one, where a folder gives those; edges of ``least`` or more."""
        if self.config.train is None:
            return [(photograph(name), None) for name in TRAIN]
        paths = self._kept(self.config.train, least)
        beside = _by_stem(self.config.train_small) if self.config.train_small is not None else None
        return [(read_image(p), None if beside is None else read_image(_match(p, beside))) for p in paths]

    @cached_property
    def test_sets(self) -> tuple[TestSet, ...]:
        """The sets to test on, in the order of the config."""
        if not self.config.test:
            return (TestSet("embedded", tuple(Photograph(f"embedded/{name}") for name in TEST)),)
        unknown = self.config.test_small.keys() - self.config.test.keys()
        if unknown:
            raise DataError(f"task.test_small names {min(unknown)!r}, which task.test does not")
        made = []
        for name, root in self.config.test.items():
            paths = self._kept(root, 2)
            small = self.config.test_small.get(name)
            beside = _by_stem(small) if small is not None else None
            made.append(
                TestSet(
                    name,
                    tuple(
                        Photograph(f"{name}/{p.stem}", p, None if beside is None else _match(p, beside)) for p in paths
                    ),
                )
            )
        return tuple(made)

    @cached_property
    def tested(self) -> tuple[Photograph, ...]:
        """All photographs of all test sets."""
        return tuple(p for found in self.test_sets for p in found.photographs)

    def pair(self, i: int) -> tuple[Photograph, Photograph]:
        """For hiding: test image ``i`` is the cover, the next one the secret."""
        return self.tested[i % len(self.tested)], self.tested[(i + 1) % len(self.tested)]

    @classmethod
    def check(cls, root: Path) -> list[str]:
        problems = []
        for path in find_images(root):
            try:
                read_image(path)
            except HeadwaterError as error:
                problems.append(str(error))
        return problems

    def make(self, out: Path) -> None:
        """Write the embedded photographs as PNG into ``train/`` and ``test/``."""
        for name in TRAIN:
            write_png(out / "train" / f"{name}.png", photograph(name))
        for name in TEST:
            write_png(out / "test" / f"{name}.png", Photograph(f"embedded/{name}").image())

    # Samples

    def write(self, samples: Sequence[Sample], path: Path, start: int = 0) -> None:
        for sample in samples:
            for kind, image in sample.pictures.items():
                write_png(path / kind / sample.file, image)

    def read(self, path: Path) -> list[Sample]:
        """Samples in a folder: ``hr/SET/NAME.png`` and so on; a folder without ``hr`` holds restored images itself."""
        kinds = [k for k in ("hr", "lr", "secret", "stego") if (path / k).is_dir()]
        roots = {k: path / k for k in kinds} if "hr" in kinds or "secret" in kinds else {"hr": path}
        found: dict[str, dict[str, np.ndarray]] = {}
        for kind, root in roots.items():
            for file in find_images(root):
                found.setdefault(str(file.relative_to(root).with_suffix("")), {})[kind] = read_image(file)
        samples = []
        for name, pictures in found.items():
            draw = re.fullmatch(r"(.*)~(\d+)", name)
            samples.append(Sample(draw[1] if draw else name, pictures, int(draw[2]) if draw else 0))
        return samples

    def join(self, parts: Sequence[Path], path: Path) -> None:
        for part in parts:
            shutil.copytree(part, path, dirs_exist_ok=True)

    def metrics(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Means over each test set, in dB: PSNR and SSIM of restored and small images, and bits of the PNG files."""
        from headwater_vision_rescale.tasks.scoring import scores

        return scores(self, samples)

    def panels(self, run: "Run") -> "list[Panel]":
        from headwater_vision_rescale.tasks.pictures import panels

        return panels(self, run)


def _by_stem(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in find_images(root)}


def _match(path: Path, beside: dict[str, Path]) -> Path:
    """The file of the same name; ``img_001x2`` and ``img_001x4`` are small ones of ``img_001``."""
    for stem in (path.stem, *(f"{path.stem}x{s}" for s in (2, 4, 8))):
        if stem in beside:
            return beside[stem]
    raise DataError(f"{path} has no small image of its name beside it")
