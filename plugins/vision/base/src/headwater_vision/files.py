"""Image files as arrays: 8-bit RGB out of whatever a camera, a scanner or a paint program wrote."""

import io
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from headwater.errors import DataError

__all__ = ["SUFFIXES", "find_images", "image_text", "keep_readable", "natural", "png_bytes", "read_image", "write_png"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
"""What counts as an image in a folder; other files there are left alone."""

_DEEP = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}
_opening = threading.Lock()


def natural(path: Path) -> tuple[Any, ...]:
    """A key that sorts ``img_2`` before ``img_10``.

    Example:
        >>> sorted([Path("a/img_10.png"), Path("a/img_2.png")], key=natural)[0].name
        'img_2.png'
    """
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", str(path)))


def find_images(root: Path) -> list[Path]:
    """The image files in a folder and all folders below, in natural order; a file stands for itself.

    Raises:
        DataError: ``root`` does not exist or holds no image.
    """
    if not root.exists():
        raise DataError(f"{root} does not exist")
    if root.is_file():
        return [root]
    found = [p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != "."]
    if not found:
        raise DataError(f"{root} holds no image ({', '.join(SUFFIXES)})")
    return sorted(found, key=natural)


@contextmanager
def _opened(source: Path | BinaryIO, name: str) -> Iterator[Any]:
    """The file as Pillow has it, whatever its size; what Pillow raises becomes one line that names the file."""
    from PIL import Image, UnidentifiedImageError

    # Pillow takes pictures above a limit for an attack. These are the user's own, and may be scans of any size.
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(source) as image:
                yield image
        except UnidentifiedImageError as error:
            raise DataError(f"{name} is no image that can be read") from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise DataError(f"{name} is damaged or cut short: {error}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def read_image(source: Path | BinaryIO, *, name: str | None = None, strict: bool = False) -> np.ndarray:
    """An image as uint8 (H, W, 3), upright as its EXIF orientation says.

    Grey is repeated three times and a palette looked up. Deeper than 8 bits is rounded to 8, CMYK converted, and what
    is transparent laid on white; ``strict`` refuses these three, because a picture that is to be stored would lose by
    it. Of an animation the first frame counts.

    Args:
        source: a path, or an open binary file with its ``name`` for messages.

    Raises:
        DataError: it is no image, damaged, cut short, or (``strict``) more than 8-bit RGB can hold.
    """
    from PIL import ImageOps

    where = name or str(source)
    with _opened(source, where) as image:
        # Pillow gives colours of 16 bits as 8, and only the decoder's arguments tell.
        deep = any("16" in str(tile.args) for tile in getattr(image, "tile", ()))
        image.load()
        upright = ImageOps.exif_transpose(image)
        _refuse(strict and (deep or upright.mode in _DEEP), where, "has more than 8 bits a value")
        if upright.mode in _DEEP:
            return np.repeat(_to_bytes(np.asarray(upright), where)[:, :, None], 3, 2)
        if upright.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
            _refuse(strict and upright.mode in ("CMYK", "LAB"), where, f"is in {upright.mode} colours")
            return np.asarray(upright.convert("RGB"))
        if upright.has_transparency_data:
            rgba = np.asarray(upright.convert("RGBA"))
            opaque = bool((rgba[:, :, 3] == 255).all())
            _refuse(strict and not opaque, where, "is transparent in places")
            return rgba[:, :, :3].copy() if opaque else _on_white(rgba)
        return np.asarray(upright.convert("RGB"))


def _refuse(yes: bool, where: str, what: str) -> None:
    if yes:
        raise DataError(f"{where} {what}, which 8-bit RGB cannot hold; convert it first, or ask for conversion")


def _to_bytes(values: np.ndarray, where: str) -> np.ndarray:
    """Grey values of more than 8 bits as bytes: floats in [0, 1], integers in the 16 bits that TIFF and PNG have."""
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
        raise DataError(f"{where} has values outside 0 to {top:g}, so their brightness is unknown")
    return np.round(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[:, :, 3:].astype(np.float32) / 255
    return np.round(rgba[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def image_text(path: Path) -> dict[str, str]:
    """The text fields that a PNG carries; of other files an empty dict."""
    with _opened(path, str(path)) as image:
        return {str(k): str(v) for k, v in image.info.items() if isinstance(v, str)}


def keep_readable(
    paths: Iterable[Path], read: Callable[[Path], object], *, skip_bad: bool
) -> tuple[list[Path], list[str]]:
    """The paths that ``read`` takes, and a line for each of the others.

    Raises:
        DataError: ``read`` refuses one and ``skip_bad`` is off, or it refuses all.
    """
    good: list[Path] = []
    problems: list[str] = []
    for path in paths:
        try:
            read(path)
        except DataError as error:
            if not skip_bad:
                raise DataError(f"{error} (--skip-bad leaves such files out)") from error
            problems.append(str(error))
        else:
            good.append(path)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if problems and not good:
        raise DataError(f"none of {len(problems)} images can be used; the first: {problems[0]}")
    return good, problems


def png_bytes(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """A uint8 image (H, W), (H, W, 1) or (H, W, 3) as PNG, with ``text`` fields in it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    out = io.BytesIO()
    plain = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    Image.fromarray(np.ascontiguousarray(plain)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def write_png(path: Path, image: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write a uint8 image as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(image, text))
