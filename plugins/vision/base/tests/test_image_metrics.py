"""PSNR, SSIM and the random-feature distance on cases whose answer is known; what is imported."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import headwater_vision
import numpy as np
import pytest
import torch
from headwater_vision.embedded import photograph
from headwater_vision.grids import enlarged, grid
from headwater_vision.metrics import RandomFeatures, luma, psnr, random_feature_distance, ssim
from scipy.ndimage import gaussian_filter


def test_psnr_follows_from_the_error():
    a = np.full((4, 4, 3), 100, np.uint8)
    assert psnr(a, a) == float("inf")
    assert psnr(a, a + np.uint8(5)) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(a + np.uint8(200), a) == pytest.approx(10 * np.log10(255**2 / 56**2))  # bytes do not wrap round


def test_luma_of_white_black_and_primaries():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luma(colours)[0].tolist() == pytest.approx([16, 235, 81.481, 144.553, 40.966])


def test_ssim_is_that_of_the_definition():
    """A double loop over windows."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 255, (2, 14, 15))
    line = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 2.55**2, 7.65**2
    found = []
    for i in range(4):
        for j in range(5):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(a, b) == pytest.approx(np.mean(found), abs=1e-9)
    assert ssim(a, a) == 1.0
    colour = np.stack([a, b, a], 2), np.stack([b, b, b], 2)
    assert ssim(*colour) == pytest.approx((2 * ssim(a, b) + 1) / 3)


@pytest.fixture(scope="module")
def crops():
    image = photograph("coffee")
    return np.stack([image[i : i + 32, j : j + 32] for i in range(0, 384, 32) for j in range(0, 576, 32)])


def distance(a, b):
    tensors = [torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2) for x in (a, b)]
    return random_feature_distance([tensors[0][:50], tensors[0][50:]], [tensors[1]])


def test_the_distance_grows_with_blur_noise_and_brightness(crops):
    assert abs(distance(crops, crops)) < 1e-3
    noise = np.random.default_rng(0).normal(0, 1, crops.shape)
    for change in (
        lambda s: gaussian_filter(crops, (0, 0.4 * s, 0.4 * s, 0)),
        lambda s: np.clip(crops + 8 * s * noise, 0, 255).astype(np.uint8),
        lambda s: np.clip(crops.astype(int) + 12 * s, 0, 255).astype(np.uint8),
    ):
        found = [distance(crops, change(s)) for s in (1, 2, 4)]
        assert 0.001 < found[0] < found[1] < found[2]


def test_features_are_the_same_everywhere(crops):
    x = torch.from_numpy(crops[:2]).permute(0, 3, 1, 2)
    found = RandomFeatures()(x)
    assert found.shape == (2, RandomFeatures.num_features)
    torch.rand(7)
    assert torch.equal(found, RandomFeatures()(x))
    assert RandomFeatures()(x[:, :, :1, :1]).isfinite().all()


def test_grids_hold_every_picture():
    images = [np.full((2, 3, 1), i, np.uint8) for i in range(4)] + [np.full((4, 2, 3), 9, np.uint8)]
    whole = grid(images, 2, gap=1)
    assert whole.shape == (14, 7, 3)
    assert whole[5, 4].tolist() == [3, 3, 3]
    assert whole[11:14, :2].tolist() == [[[9] * 3] * 2] * 3
    assert enlarged(images[0], 3).shape == (6, 9, 1)


def test_nothing_needs_torchvision():
    names = [f"headwater_vision.{m.name}" for m in pkgutil.iter_modules(headwater_vision.__path__)]
    assert len(names) >= 5
    code = f"""
import sys
class Block:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("torchvision", "diffusers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import importlib, torch
for name in {names!r}: importlib.import_module(name)
from headwater_vision.metrics import random_feature_distance
x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
random_feature_distance([x], [x])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(headwater_vision.__path__)])
def test_the_examples_in_the_documentation_hold(module):
    assert doctest.testmod(importlib.import_module(f"headwater_vision.{module}")).failed == 0
