import math

import numpy as np
import pytest
import torch
from headwater_vision_lzn.averages import Average, decay_of
from headwater_vision_lzn.config import LznConfig
from headwater_vision_lzn.networks import ConvEncoder, Decoder, Encoder, ResNet50, fir_down, fir_up
from pydantic import ValidationError


def up_down(x, up, down, before, after):
    """Zeros between, zeros around, correlation with the filter, every ``down``-th pixel: one value at a time."""
    line = np.array([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = np.outer(line, line) * up**2
    n = x.shape[0] * up
    wide = np.zeros((n, n))
    wide[::up, ::up] = x
    padded = np.pad(wide, (before, after))
    size = padded.shape[0] - 3
    return np.array([[(padded[i : i + 4, j : j + 4] * kernel).sum() for j in range(size)] for i in range(size)])[
        ::down, ::down
    ]


def test_filters_are_the_plain_ones():
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    for channel in range(2):
        plane = x[0, channel].numpy()
        np.testing.assert_allclose(fir_down(x)[0, channel], up_down(plane, 1, 2, 1, 1), atol=1e-12)
        np.testing.assert_allclose(fir_up(x)[0, channel], up_down(plane, 2, 1, 2, 1), atol=1e-12)


def test_filters_keep_a_constant():
    x = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(fir_down(x)[..., 1:-1, 1:-1], torch.ones(1, 1, 2, 2))
    torch.testing.assert_close(fir_up(x)[..., 2:-2, 2:-2], torch.ones(1, 1, 12, 12))


@pytest.mark.parametrize("style", ["plain", "fir"])
def test_published_sizes_of_maps_and_heads(style):
    encoder = Encoder(8, 3, 10, 4, (1, 2, 2, 2), 4, (4,), style, units=5, narrow=2)
    assert len(encoder.heads) == 21
    x = torch.randn(2, 3, 8, 8)
    assert encoder(x).shape == (2, 10)
    decoder = Decoder(8, 3, 10, 4, 4, (1, 2, 2, 2), 1, (4,), style)
    out = decoder(x, torch.tensor([0.3, 1.0]), torch.randn(2, 10), torch.tensor([0, 3]))
    assert out.shape == x.shape


def test_heads_only_where_asked_keep_their_number():
    encoder = Encoder(16, 1, 6, 4, (1, 2, 2), 1, (4,), readout=(8, 4))
    sides = [side for _, side in encoder.trunk.places()]
    assert [sides[int(k)] for k in encoder.heads] == [s for s in sides if s in (8, 4)]
    assert "0" not in encoder.heads


def test_a_fresh_decoder_says_almost_nothing():
    decoder = Decoder(8, 1, 6, 0, 8, (1, 2), 1, (4,))
    out = decoder(torch.randn(2, 1, 8, 8), torch.rand(2), torch.randn(2, 6))
    assert float(out.detach().abs().max()) < 1e-3


def test_time_is_embedded_by_sine_and_cosine():
    decoder = Decoder(8, 1, 6, 0, 8, (1,), 1, ())
    found = decoder.embed_time(torch.tensor([0.5]))
    factor = math.log(10000) / 3
    wanted = [f(999 * 0.5 * math.exp(-factor * i)) for f in (math.sin, math.cos) for i in range(4)]
    torch.testing.assert_close(found[0], torch.tensor(wanted), atol=1e-4, rtol=0)


def test_fresh_residual_branches_of_resnet_are_shut():
    net = ResNet50(3, 32)
    assert all(float(block.norm2.weight.detach().abs().max()) == 0 for stage in net.stages for block in stage)


def test_small_encoder_has_features_and_anchors():
    net = ConvEncoder(1, 16)
    x = torch.randn(3, 1, 8, 8)
    assert net.features(x).shape == (3, 128)
    torch.testing.assert_close(net(x), net.head(net.features(x)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 30}, "multiple of 4"),
        ({"width": 36, "multipliers": (1, 4)}, "32 groups"),
        ({"size": 30, "multipliers": (1, 2, 2)}, "multiples of 4"),
        ({"encoder": "resnet50", "latent": 40}, "multiple of 32"),
        ({"encoder": "conv", "latent": 8}, "above 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        LznConfig(**settings)


def test_average_rises_to_its_decay():
    assert decay_of(1, 0.999) == pytest.approx(2 / 11)
    assert decay_of(10**6, 0.999) == 0.999
    module = torch.nn.Linear(2, 2)
    average = Average(module)
    for n in range(1, 5):
        before = [p.clone() for p in average.module.parameters()]
        with torch.no_grad():
            for p in module.parameters():
                p.add_(1)
        average.update(module, n, 0.5)
        d = min(0.5, (1 + n) / (10 + n))
        for old, p, new in zip(before, module.parameters(), average.module.parameters(), strict=True):
            torch.testing.assert_close(new, d * old + (1 - d) * p)
    assert int(average.updates) == 4


def test_an_average_drops_nothing_out():
    average = Average(Encoder(8, 1, 6, 8, (1,), 1, (), dropout=0.5)).module
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for p in average.parameters():
            p.add_(0.1)
        assert torch.equal(average(x), average(x))
