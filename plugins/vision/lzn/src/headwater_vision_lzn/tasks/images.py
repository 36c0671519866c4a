"""Tasks of kind ``vision.images``: a training and a test set of square images of one size, with labels or without."""

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from headwater import Config, DataError, Task, UsageError
from headwater.reporting import Panel
from headwater_vision.datasets import ImageSet, read_image_set, read_npz
from headwater_vision.embedded import digits, mnist
from headwater_vision.files import find_images, image_text, keep_readable, png_bytes, read_image
from headwater_vision.metrics import random_feature_distance
from pydantic import Field, PositiveInt

from headwater_vision_lzn.tasks.entries import KIND

__all__ = ["Digits", "EmbeddedConfig", "ImageSetConfig", "ImageSetTask", "ImagesTask", "Mnist"]

COMPARED = 2048
"""Real images that samples are compared with, at most."""


class ImagesTask(Task):
    """Square images as :class:`ImageSet`; samples have the same form and are written as PNG files or NPZ."""

    kind = KIND
    suffixes = ("", ".npz")
    flip = False
    """Whether an image and its mirror image are alike."""

    def training(self) -> ImageSet | None:
        """The images to train on; ``None`` where the task was given none."""
        raise NotImplementedError

    def testing(self) -> ImageSet | None:
        """Images that training never sees; ``None`` where there are none."""
        raise NotImplementedError

    # Samples

    def write(self, samples: ImageSet, path: Path, start: int = 0) -> None:
        names = None if samples.labels is None else [samples.classes[k] for k in samples.labels]
        if path.name.endswith(".npz"):
            arrays: dict[str, np.ndarray] = {"images": samples.images}
            if samples.labels is not None:
                arrays |= {"labels": samples.labels, "classes": np.array(samples.classes)}
            with path.open("wb") as out:
                np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
            return
        path.mkdir(parents=True)
        for i, image in enumerate(samples.images):
            text = None if names is None else {"label": names[i]}
            (path / f"{start + i:06d}.png").write_bytes(png_bytes(image, text))

    def read(self, path: Path) -> ImageSet:
        if path.is_file():
            found = read_npz(path)
            with np.load(path, allow_pickle=False) as arrays:
                named = arrays["classes"].tolist() if "classes" in arrays else found.classes
            return ImageSet(found.images, found.labels, tuple(named))
        files = find_images(path)
        images = [read_image(file) for file in files]
        for file, image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                raise DataError(f"{file} is {image.shape[1]}x{image.shape[0]}, not of the size of {files[0].name}")
        names = [image_text(file).get("label") for file in files]
        grey = all((image == image[:, :, :1]).all() for image in images)
        stack = np.stack(images)[..., : 1 if grey else 3]
        if None in names:
            return ImageSet(stack)
        classes = tuple(sorted({str(name) for name in names}))
        return ImageSet(stack, np.array([classes.index(str(name)) for name in names], np.int64), classes)

    def join(self, parts: Sequence[Path], path: Path) -> None:
        if path.name.endswith(".npz"):
            read = [self.read(part) for part in parts]
            labels = (
                None if read[0].labels is None else np.concatenate([r.labels for r in read if r.labels is not None])
            )
            self.write(ImageSet(np.concatenate([r.images for r in read]), labels, read[0].classes), path)
            return
        path.mkdir(parents=True)
        for part in parts:
            for file in sorted(part.iterdir()):
                shutil.copy2(file, path / file.name)

    def cut(self, samples: ImageSet, n: int) -> ImageSet:
        return samples.take(np.arange(n))

    def metrics(self, samples: ImageSet) -> dict[str, float]:
        """The random-feature Fréchet distance to test (else training) images; it is not the FID."""
        real = self.testing() or self.training()
        if real is None or len(samples) < 2:
            return {}
        known, made = (torch.from_numpy(s).permute(0, 3, 1, 2) for s in (real.images[:COMPARED], samples.images))
        return {"random_feature_distance": random_feature_distance(known.split(256), made.split(256))}

    def panels(self, run: Any) -> list[Panel]:
        from headwater_vision_lzn.tasks.pictures import panels

        return panels(self, run) if run.manifest.method == "vision-lzn" else []

    def make(self, out: Path) -> None:
        """Write ``train.npz`` and ``test.npz``, as the task image-set reads them."""
        out.mkdir(parents=True, exist_ok=True)
        for name, images in (("train", self.training()), ("test", self.testing())):
            if images is not None:
                self.write(images, out / f"{name}.npz")


class EmbeddedConfig(Config):
    """Nothing to set: the images come with a library."""


class Embedded(ImagesTask):
    """Digits that come with a library; every pair of training and test set is the same."""

    held_out: ClassVar[int]

    def images(self) -> ImageSet:
        """All of them."""
        raise NotImplementedError

    @cached_property
    def _split(self) -> tuple[ImageSet, ImageSet]:
        whole = self.images()
        rows = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0)).numpy()
        return whole.take(rows[: -self.held_out]), whole.take(rows[-self.held_out :])

    def training(self) -> ImageSet:
        return self._split[0]

    def testing(self) -> ImageSet:
        return self._split[1]

    @cached_property
    def _classifier(self) -> Any:
        from sklearn.linear_model import LogisticRegression

        train = self.training()
        return LogisticRegression(max_iter=1000).fit(train.images.reshape(len(train), -1) / 255, train.labels)

    def metrics(self, samples: ImageSet) -> dict[str, float]:
        """Also, for samples with labels, how many a logistic regression on the pixels of real digits reads so."""
        found = super().metrics(samples)
        train = self.training()
        if samples.labels is not None and samples.images.shape[1:] == train.images.shape[1:]:
            known = [train.classes.index(samples.classes[k]) for k in samples.labels]
            found["read_as_their_label"] = float(
                self._classifier.score(samples.images.reshape(len(samples), -1) / 255, known)
            )
        return found


class Digits(Embedded):
    """8x8 pixels; 1,347 for training and 450 for testing."""

    held_out = 450

    def images(self) -> ImageSet:
        return digits()


class Mnist(Embedded):
    """28x28 pixels; 4,000 for training and 1,000 for testing."""

    held_out = 1000

    def images(self) -> ImageSet:
        return mnist()


class ImageSetConfig(Config):
    """Where the images are and what is made of them."""

    path: Path | None = Field(
        None, description="a folder of images or of class folders, NPZ (images, labels), or IDX images (.gz or not)"
    )
    test_path: Path | None = Field(None, description="images for testing, of the same form")
    size: PositiveInt | None = Field(None, description="edge in pixels: resized, the centre cut out; as it is without")
    channels: Literal[1, 3] = Field(3, description="1 for grey (folders)")
    flip: bool = Field(True, description="whether mirror images are as good")
    skip_bad: bool = Field(False, description="leave out files that cannot be used, and list them")


class ImageSetTask(ImagesTask):
    """The user's images."""

    config: ImageSetConfig

    @property
    def flip(self) -> bool:  # type: ignore[override]
        return self.config.flip

    def training(self) -> ImageSet | None:
        return self._training

    def testing(self) -> ImageSet | None:
        return self._testing

    @cached_property
    def _training(self) -> ImageSet | None:
        return None if self.config.path is None else self._read(self.config.path)

    @cached_property
    def _testing(self) -> ImageSet | None:
        if self.config.test_path is None:
            return None
        test, train = self._read(self.config.test_path), self._training
        if train is not None:
            if test.images.shape[1:] != train.images.shape[1:]:
                raise DataError(
                    f"{self.config.test_path} has images of {test.images.shape[1:]}, {self.config.path} of "
                    f"{train.images.shape[1:]}: give task.size"
                )
            strange = sorted(set(test.classes) - set(train.classes))
            if train.labels is not None and strange:
                raise DataError(f"{self.config.test_path} has the class {strange[0]!r}, which {self.config.path} lacks")
            if test.labels is not None and test.classes != train.classes:
                order = np.array([train.classes.index(name) for name in test.classes])
                test = ImageSet(test.images, order[test.labels], train.classes)
        return test

    def _read(self, path: Path) -> ImageSet:
        config = self.config
        size = None if config.size is None else (config.size, config.size)
        found = read_image_set(path, size=size, channels=config.channels, skip_bad=config.skip_bad)
        height, width = found.images.shape[1:3]
        if height != width:
            raise UsageError(f"{path} has images of {width}x{height} pixels; give task.size, for squares are needed")
        return found

    @classmethod
    def check(cls, root: Path) -> list[str]:
        if not root.exists():
            return [f"{root} does not exist"]
        if root.is_file():
            try:
                read_image_set(root)
            except DataError as error:
                return [str(error)]
            return []
        problems: list[str] = []
        for folder in sorted(p for p in root.iterdir() if p.is_dir()) or [root]:
            try:
                problems += keep_readable(find_images(folder), read_image, skip_bad=True)[1]
            except DataError as error:
                problems.append(str(error))
        return problems
