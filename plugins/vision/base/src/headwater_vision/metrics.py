"""How near images are to others: PSNR and SSIM, and a Fréchet distance on random features, which needs no download."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["RandomFeatures", "luma", "psnr", "random_feature_distance", "ssim"]


def luma(image: np.ndarray) -> np.ndarray:
    """Y of ITU-R 601 in the range 16 to 235, float64 (H, W), of RGB (H, W, 3) in 0 to 255; not rounded."""
    return image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def psnr(truth: np.ndarray, image: np.ndarray) -> float:
    """10 log10(255^2 / mean squared error) in dB; infinite where they are equal."""
    error = float(np.mean(np.square(truth.astype(np.float64) - image.astype(np.float64))))
    return float("inf") if error == 0 else 10 * np.log10(255.0**2 / error).item()


def ssim(truth: np.ndarray, image: np.ndarray) -> float:
    """Mean structural similarity of (H, W) or (H, W, C) in 0 to 255, as Wang et al. (2004) have it.

    A Gaussian window of 11 pixels with sigma 1.5, biased variances, and only windows that lie inside: both edges must
    have 11 pixels or more. Of colours the mean.
    """
    from skimage.metrics import structural_similarity

    found = structural_similarity(
        truth.astype(np.float64), image.astype(np.float64), data_range=255.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, channel_axis=2 if truth.ndim == 3 else None,
    )  # fmt: skip
    return float(found)


class RandomFeatures(nn.Module):
    """Mean and deviation over the image of what random orthogonal filters give, at three scales.

    Maps uint8 (B, 3, H, W) to float32 (B, 320). The filters are drawn once from a fixed seed and never trained, so a
    distance on these features tells blur, noise and wrong colours, and knows nothing of what a picture shows.
    """

    num_features = 320

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(20220718)
        widths = (3, 16, 32, 64, 64)
        convs = [
            nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1, bias=False, padding_mode="replicate")
            for i, (a, b) in enumerate(pairwise(widths))
        ]
        self.convs = nn.ModuleList(convs)
        for conv in convs:
            nn.init.orthogonal_(conv.weight, gain=2**0.5, generator=generator)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 127.5 - 1
        found = []
        for i, conv in enumerate(self.convs):
            x = torch.relu(conv(x))
            if i > 0:
                found += [x.mean((2, 3)), x.std((2, 3), correction=0)]
        return torch.cat(found, 1)


def random_feature_distance(real: Iterable[Tensor], made: Iterable[Tensor]) -> float:
    """Fréchet distance between the Gaussians fitted to :class:`RandomFeatures` of two sets of images.

    Not the FID: the features are random, so its values compare with nothing published. Each set comes in batches uint8
    (B, C, H, W), C = 1 or 3; at least two images of each are needed, and several hundred for a figure to go by.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(feature=RandomFeatures(), input_img_size=(3, 32, 32))
    for batches, is_real in ((real, True), (made, False)):
        for batch in batches:
            distance.update(batch.expand(-1, 3, -1, -1), real=is_real)
    return float(distance.compute())
