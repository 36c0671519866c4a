"""Sets of images of one size, with or without labels: folders, class folders, NPZ and IDX."""

import gzip
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from headwater.errors import DataError

from headwater_vision.files import SUFFIXES, find_images, keep_readable, read_image

__all__ = ["ImageSet", "fitted", "read_class_folders", "read_idx", "read_image_folder", "read_image_set", "read_npz"]


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, H, W, C), C = 1 or 3; labels int64 (N,) that index ``classes``, or none."""

    images: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> "ImageSet":
        """The images in ``rows``, with their labels."""
        return ImageSet(self.images[rows], None if self.labels is None else self.labels[rows], self.classes)


def fitted(image: np.ndarray, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """An image uint8 (H, W, 3) as (h, w, C): resized (antialiased, bicubic) to cover ``size``, the centre cut out.

    ``channels`` 1 gives the luma of ITU-R 601.
    """
    from PIL import Image

    height, width = size
    scale = max(height / image.shape[0], width / image.shape[1])
    whole = Image.fromarray(np.ascontiguousarray(image))
    if scale != 1:
        to = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
        whole = whole.resize(to, Image.Resampling.BICUBIC)
    left, top = (whole.width - width) // 2, (whole.height - height) // 2
    cut = whole.crop((left, top, left + width, top + height))
    return np.asarray(cut.convert("L"))[:, :, None] if channels == 1 else np.asarray(cut)


def _stack(paths: Sequence[Path], size: tuple[int, int] | None, channels: int) -> np.ndarray:
    first = read_image(paths[0]).shape[:2]
    edge = size or (int(first[0]), int(first[1]))
    out = np.empty((len(paths), *edge, channels), np.uint8)
    for i, path in enumerate(paths):
        image = read_image(path)
        if size is None and image.shape[:2] != first:
            raise DataError(
                f"{path} is {image.shape[1]}x{image.shape[0]} and {paths[0].name} {first[1]}x{first[0]}: give a size"
            )
        out[i] = fitted(image, edge, channels)
    return out


def read_image_folder(
    root: Path, *, size: tuple[int, int] | None = None, channels: int = 3, skip_bad: bool = False
) -> ImageSet:
    """All images in a folder and below, without labels; without ``size`` all must have the size of the first.

    Raises:
        DataError: there is none, or one cannot be read (left out and listed with ``skip_bad``).
    """
    paths, _ = keep_readable(find_images(root), read_image, skip_bad=skip_bad)
    return ImageSet(_stack(paths, size, channels))


def read_class_folders(
    root: Path, *, size: tuple[int, int] | None = None, channels: int = 3, skip_bad: bool = False
) -> ImageSet:
    """A folder with one folder of images for each class, which has the folder's name; classes in alphabetical order.

    Raises:
        DataError: a class has no image, or an image cannot be read (both left out and listed with ``skip_bad``).
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []
    if not folders:
        raise DataError(f"{root} holds no class folders: one folder of images for each class is needed")
    folders, _ = keep_readable(folders, find_images, skip_bad=skip_bad)
    paths: list[Path] = []
    labels: list[int] = []
    classes: list[str] = []
    for folder in folders:
        found, _ = keep_readable(find_images(folder), read_image, skip_bad=skip_bad)
        labels += [len(classes)] * len(found)
        classes.append(folder.name)
        paths += found
    return ImageSet(_stack(paths, size, channels), np.array(labels, np.int64), tuple(classes))


def read_npz(path: Path) -> ImageSet:
    """``images`` uint8 (N, H, W) or (N, H, W, C) and, where there are any, integer ``labels`` (N,).

    Raises:
        DataError: it is no NPZ, or an array is missing or of another form.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "images" not in arrays:
                raise DataError(f"{path} has no array 'images'; it has: {', '.join(arrays) or 'none'}")
            images = arrays["images"]
            labels = arrays.get("labels", None)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise DataError(f"{path} is no NPZ file that can be read: {error}") from error
    return _checked(images, labels, str(path), str(path))


def read_idx(images: Path, labels: Path | None = None) -> ImageSet:
    """IDX files as MNIST has them, plain or compressed (.gz); ``labels`` is found beside ``images`` where it is there.

    Raises:
        DataError: a file is no IDX file of bytes, is cut short, or the two do not match.
    """
    beside = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels is None and beside != images and beside.exists():
        labels = beside
    found = None if labels is None else _idx(labels, 1)
    return _checked(_idx(images, 3), found, str(images), str(labels))


def _idx(path: Path, axes: int) -> np.ndarray:
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    start = 4 + 4 * axes
    if len(raw) < start or raw[:4] != bytes([0, 0, 8, axes]):
        raise DataError(
            f"{path} is no IDX file of bytes with {axes} axes (it begins {raw[:4].hex() or 'with nothing'})"
        )
    shape = struct.unpack(f">{axes}I", raw[4:start])
    if len(raw) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} holds {len(raw) - start} bytes and should hold {'x'.join(map(str, shape))}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _checked(images: np.ndarray, labels: np.ndarray | None, name: str, name_of_labels: str) -> ImageSet:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DataError(f"{name}: images are {images.dtype} {images.shape}; uint8 (N, H, W, 1 or 3) is needed")
    if labels is None:
        return ImageSet(images)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise DataError(
            f"{name_of_labels}: labels are {labels.dtype} {labels.shape}; "
            f"a class from 0 on for each of {len(images)} images is needed"
        )
    return ImageSet(images, labels.astype(np.int64), tuple(map(str, range(int(labels.max()) + 1))))


def read_image_set(
    path: Path, *, size: tuple[int, int] | None = None, channels: int = 3, skip_bad: bool = False
) -> ImageSet:
    """Read whichever form ``path`` has: NPZ, IDX, a folder of class folders, or a folder of images.

    NPZ and IDX come as they are in the file, unless ``size`` is given; ``channels`` is for folders.

    Raises:
        DataError: it has none of these forms, or is faulty.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_dir():
        here = any(p.suffix.lower() in SUFFIXES for p in path.iterdir())
        read = read_image_folder if here else read_class_folders
        return read(path, size=size, channels=channels, skip_bad=skip_bad)
    found = read_npz(path) if path.suffix.lower() == ".npz" else read_idx(path)
    if size is None or found.images.shape[1:3] == size:
        return found
    colours = found.images.shape[3]
    resized = [fitted(np.broadcast_to(image, (*image.shape[:2], 3)), size, colours) for image in found.images]
    return ImageSet(np.stack(resized), found.labels, found.classes)
