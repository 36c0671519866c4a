"""The published protocol: PSNR and SSIM of Y after rounding to 8 bits, a border of ``scale`` pixels left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from headwater.errors import DataError
from headwater_vision.files import png_bytes, read_image
from headwater_vision.metrics import luma, psnr, ssim

from headwater_vision_rescale import resize
from headwater_vision_rescale.inference import as_array, as_tensor

if TYPE_CHECKING:
    from headwater_vision_rescale.tasks.photographs import Photographs, Sample

__all__ = ["COLUMNS", "PUBLISHED", "bicubic_bytes", "cropped", "restored_scores", "scores", "small_scores"]

PUBLISHED = {
    2: {
        "bicubic, bicubic": ("33.66/.9299", "30.24/.8688", "29.56/.8431", "26.88/.8403", "31.01/.9393"),
        "CAR and EDSR": ("38.94/.9658", "35.61/.9404", "33.83/.9262", "35.24/.9572", "38.26/.9599"),
        "IRN": ("43.99/.9871", "40.79/.9778", "41.32/.9876", "39.92/.9865", "44.32/.9908"),
    },
    4: {
        "bicubic, bicubic": ("28.42/.8104", "26.00/.7027", "25.96/.6675", "23.14/.6577", "26.66/.8521"),
        "bicubic, RCAN": ("32.63/.9002", "28.87/.7889", "27.77/.7436", "26.82/.8087", "30.77/.8460"),
        "CAR and EDSR": ("33.88/.9174", "30.31/.8382", "29.15/.8001", "29.28/.8711", "32.82/.8837"),
        "IRN": ("36.19/.9451", "32.67/.9015", "31.64/.8826", "31.41/.9157", "35.07/.9318"),
    },
}
"""PSNR and SSIM of Y on Set5, Set14, B100, Urban100 and the validation images of DIV2K, as IRN's authors give them."""

COLUMNS = ("Set5", "Set14", "B100", "Urban100", "DIV2K")


def cropped(image: np.ndarray, multiple: int) -> np.ndarray:
    """The upper left part whose edges are multiples of ``multiple``."""
    height, width = (n - n % multiple for n in image.shape[:2])
    return image[:height, :width]


def bicubic_bytes(image: np.ndarray, scale: float) -> np.ndarray:
    """A uint8 image (H, W, 3) resized as MATLAB does."""
    return as_array(resize.bicubic_bytes(as_tensor(image), scale))


def restored_scores(truth: np.ndarray, image: np.ndarray, border: int) -> dict[str, float]:
    """PSNR and SSIM of Y and of RGB; ``border`` pixels at each side do not count."""
    inner = (slice(border, -border or None),) * 2
    a, b = truth[inner], image[inner]
    if min(a.shape[:2]) < 11:
        raise DataError(f"SSIM needs 11 pixels within the border; {truth.shape[1]}x{truth.shape[0]} leaves less")
    y, z = luma(a), luma(b)
    return {"psnr_y": psnr(y, z), "ssim_y": ssim(y, z), "psnr_rgb": psnr(a, b), "ssim_rgb": ssim(a, b)}


def small_scores(guide: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """The small image beside the bicubic one, no border left out; SSIM where it has 11 pixels."""
    y, z = luma(guide), luma(image)
    found = {"lr_psnr_y": psnr(y, z)}
    return found | ({"lr_ssim_y": ssim(y, z)} if min(y.shape) >= 11 else {})


def _of_sample(task: "Photographs", sample: "Sample") -> dict[str, float]:
    known = {p.name: i for i, p in enumerate(task.tested)}
    if sample.name not in known:
        raise DataError(f"{sample.name} is no image of the test sets: {', '.join(s.name for s in task.test_sets)}")
    i = known[sample.name]
    if "secret" in sample.pictures:
        return _of_hidden(task, sample, i)
    photograph, restored = task.tested[i], sample.pictures["hr"]
    truth, small = photograph.image(), sample.pictures.get("lr")
    if restored.shape[0] > truth.shape[0] or restored.shape[1] > truth.shape[1]:
        raise DataError(
            f"{sample.name} is {restored.shape[1]}x{restored.shape[0]}, larger than the true one "
            f"({truth.shape[1]}x{truth.shape[0]})"
        )
    truth = truth[: restored.shape[0], : restored.shape[1]]
    # Without the small image the factor is unknown; 4 is then the border, as for most tables.
    scale = 4 if small is None else round(restored.shape[0] / small.shape[0])
    found = restored_scores(truth, restored, scale)
    if small is not None:
        guide = bicubic_bytes(truth, 1 / scale)
        if photograph.small is not None:
            given = read_image(photograph.small)
            guide = given[: small.shape[0], : small.shape[1]]
            if guide.shape != small.shape:
                raise DataError(f"{photograph.small} is smaller than {sample.name} made small by {scale}")
        found |= small_scores(guide, small)
        found["bits"] = len(png_bytes(small)) / len(png_bytes(truth))
    return found


def _of_hidden(task: "Photographs", sample: "Sample", i: int) -> dict[str, float]:
    cover, secret = (p.image() for p in task.pair(i))
    revealed, stego = sample.pictures["secret"], sample.pictures.get("stego")
    inside = (slice(0, revealed.shape[0]), slice(0, revealed.shape[1]))
    found = {f"secret_{k}": v for k, v in restored_scores(secret[inside], revealed, 0).items()}
    if stego is not None:
        found |= {f"stego_{k}": v for k, v in restored_scores(cover[inside], stego, 0).items()}
    return found


def scores(task: "Photographs", samples: Sequence["Sample"]) -> dict[str, float]:
    """The means over the samples of each set, as ``SET/metric``; several draws of an image count as several images."""
    of_set: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        table = of_set.setdefault(sample.name.partition("/")[0], {})
        for name, value in _of_sample(task, sample).items():
            table.setdefault(name, []).append(value)
    order = [s.name for s in task.test_sets if s.name in of_set]
    return {f"{s}/{name}": float(np.mean(v)) for s in order for name, v in of_set[s].items()} | {
        f"{s}/images": float(len(next(iter(of_set[s].values())))) for s in order
    }
