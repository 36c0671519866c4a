"""Every quick layer is the layer of torch that it stands for."""

import itertools

import pytest
import torch
from headwater_porous_gan.layers import INPUTS, OUTPUTS, TAPS, Extra, Filtered, Last, Plain, Scratch, first_layer
from headwater_porous_gan.networks import interleave
from torch.nn import functional as F

REAL = torch.float64


def made(*shape, dtype=REAL):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=REAL).to(dtype)


def first_axis_last(x):
    """(d0, d1, d2, c) as torch has it: (1, c, d0, d1, d2)."""
    return x.permute(3, 0, 1, 2).unsqueeze(0)


def upsampled(x, weight, bias):
    """The transposed convolution without what its zero padding touches."""
    return F.conv_transpose3d(first_axis_last(x), weight, bias, stride=2, padding=1)[0, :, 1:-1, 1:-1, 1:-1]


def test_four_products_filter_three_windows():
    """Column by column: with one input and one tap at a time, the three results are those of the plain sums."""
    for i, t in itertools.product(range(4), range(2)):
        d, g = torch.eye(4, dtype=REAL)[i], torch.eye(2, dtype=REAL)[t]
        inputs, taps, outputs = (torch.tensor(m, dtype=REAL) for m in (INPUTS, TAPS, OUTPUTS))
        found = outputs @ ((taps @ g) * (inputs @ d))
        assert torch.equal(found, torch.stack([d[w] * g[0] + d[w + 1] * g[1] for w in range(3)]))


@pytest.mark.parametrize("size", [(4, 7, 10), (2, 3, 5), (14, 6, 9)])
@pytest.mark.parametrize("form", ["filtered", "plain"])
def test_upsampling_is_the_transposed_convolution(form, size):
    x, weight, bias = made(*size, 6), made(6, 3, 4, 4, 4), made(3)
    layer = Plain(weight, bias) if form == "plain" else Filtered(weight, bias, Scratch())
    wanted = upsampled(x, weight, bias).permute(1, 2, 3, 0)
    torch.testing.assert_close(layer(x, rectify=False), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x), wanted.relu(), rtol=0, atol=1e-12)
    ahead = made(2, *wanted.shape[1:])
    torch.testing.assert_close(layer(x, True, ahead), torch.cat((ahead, wanted.relu())), rtol=0, atol=1e-12)


def test_many_blocks_and_shared_memory_change_nothing():
    """A layer that takes several blocks, beside another one that uses the same memory."""
    scratch = Scratch()
    weights = [made(4, 2, 4, 4, 4), made(8, 2, 4, 4, 4)]
    layers = [Filtered(weight, made(2), scratch) for weight in weights]
    inputs = [made(12, 40, 44, 4), made(5, 5, 5, 8)]
    found = [layer(x, rectify=False) for layer, x in zip(layers, inputs, strict=True)]
    for y, x, weight in zip(found, inputs, weights, strict=True):
        torch.testing.assert_close(y, upsampled(x, weight, made(2)).permute(1, 2, 3, 0), rtol=0, atol=1e-12)


def test_minimal_filtering_is_about_as_exact_as_the_convolution_in_float32():
    x, weight, bias = made(10, 10, 10, 128).relu(), made(128, 16, 4, 4, 4), made(16)
    exact = upsampled(x, weight, bias)
    single = [v.float() for v in (x, weight, bias)]
    plain = (upsampled(*single) - exact).std()
    filtered = (Filtered(*single[1:], Scratch())(single[0], rectify=False).permute(3, 0, 1, 2) - exact).std()
    assert 0 < filtered < 4 * plain


def test_the_first_layer_in_any_box():
    z, weight, bias = made(4, 3, 5, 6), made(6, 2, 4, 4, 4), made(2)
    whole = F.pad(F.conv_transpose3d(first_axis_last(z), weight)[0], (9,) * 6).permute(1, 2, 3, 0) + bias
    taps = weight.permute(2, 3, 4, 0, 1)
    for low, high in (((0, 0, 0), (7, 6, 8)), ((-2, 3, 1), (3, 9, 5)), ((4, 1, 2), (5, 2, 3)), ((7, 0, 0), (9, 2, 2))):
        found = first_layer(z, taps, bias, [-a for a in low], [b - a for a, b in zip(low, high, strict=True)])
        where = tuple(slice(a + 9, b + 9) for a, b in zip(low, high, strict=True))
        torch.testing.assert_close(found, whole[where], rtol=0, atol=1e-12)


def test_layers_with_kernel_3_and_the_last():
    x, weight, bias = made(6, 5, 7, 4), made(3, 4, 3, 3, 3), made(3)
    wanted = F.conv3d(first_axis_last(x), weight, bias)[0].permute(1, 2, 3, 0)
    torch.testing.assert_close(Extra(weight, bias)(x, rectify=False), wanted, rtol=0, atol=1e-12)
    weight, bias = made(4, 1, 4, 4, 4), made(1)
    torch.testing.assert_close(interleave(Last(weight, bias)(x))[0], upsampled(x, weight, bias), rtol=0, atol=1e-12)
