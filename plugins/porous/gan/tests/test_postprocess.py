"""The post-processing against scipy and scikit-image, tile by tile against the whole."""

import numpy as np
import torch
from headwater_porous_gan.postprocess import majority, otsu_level, paper, quantised, reaches
from scipy.ndimage import gaussian_filter, median_filter
from skimage.filters import threshold_otsu


def values(shape, seed=0):
    rough = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1)
    return np.tanh(6 * rough + 0.4).astype(np.float32)


def test_the_paper_stores_by_truncation():
    assert list(quantised(np.array([-1, -0.999, 0, 0.999, 1], np.float32))) == [0, 0, 127, 254, 255]


def test_paper_is_median_and_otsu():
    y = values((20, 17, 23))
    filtered = median_filter(quantised(y), 3)
    wanted = filtered / 255 >= threshold_otsu(filtered / 255)
    assert np.array_equal(paper(y), wanted)
    assert 0.05 < wanted.mean() < 0.95


def test_a_majority_of_27_is_the_median_under_a_threshold():
    y = values((20, 17, 23), 1)
    level = otsu_level(y)
    padded = np.pad(y, 1, mode="symmetric")
    found = majority(reaches(torch.from_numpy(padded), level)).numpy()
    assert np.array_equal(found, paper(y))
    for other in (1, 60, 200, 255):
        wanted = median_filter(quantised(y), 3) >= other
        assert np.array_equal(majority(reaches(torch.from_numpy(padded), other)).numpy(), wanted)


def test_a_volume_of_one_phase_stays_one_phase():
    for value in (-1.0, 1.0):
        made = paper(np.full((5, 5, 5), value, np.float32))
        assert made.min() == made.max() == (value > 0)
