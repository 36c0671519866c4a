"""Pictures side by side in one."""

from collections.abc import Sequence

import numpy as np

__all__ = ["enlarged", "grid"]


def enlarged(image: np.ndarray, times: int) -> np.ndarray:
    """Every pixel of (H, W, C) as a square of ``times`` x ``times``."""
    return image.repeat(times, 0).repeat(times, 1)


def grid(images: Sequence[np.ndarray], columns: int, *, gap: int = 2, background: int = 255) -> np.ndarray:
    """uint8 images (h, w, C), C = 1 or 3, in rows of ``columns`` as one (H, W, 3); each in a cell as large as the
    largest, at its upper left.

    Example:
        >>> grid([np.zeros((4, 4, 1), np.uint8)] * 5, 3, gap=1).shape
        (9, 14, 3)
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    rows = -(-len(images) // columns)
    out = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), background, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        out[top : top + image.shape[0], left : left + image.shape[1]] = image
    return out
