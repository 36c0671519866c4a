"""Losses against their formulas, the noise schedules against the loops that were run, the networks' sizes."""

import math

import pytest
import torch
from headwater_porous_gan.networks import Discriminator, Generator, levels, side_of
from headwater_porous_gan.objective import (
    critic_loss,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    noise_level,
)


def test_losses_are_the_cross_entropies_of_the_paper():
    real, fake = torch.randn(5, 1, dtype=torch.float64) * 3, torch.randn(5, 1, dtype=torch.float64) * 3

    def entropy(logits, target):
        p = [1 / (1 + math.exp(-v)) for v in logits.flatten().tolist()]
        return sum(-target * math.log(v) - (1 - target) * math.log(1 - v) for v in p) / len(p)

    on_real, on_fake = discriminator_loss(real, fake, 0.9)
    assert float(on_real) == pytest.approx(entropy(real, 0.9))
    assert float(on_fake) == pytest.approx(entropy(fake, 0.0))
    assert float(generator_loss(fake)) == pytest.approx(entropy(fake, 1.0))
    assert float(critic_loss(real, fake)) == pytest.approx(float(fake.mean() - real.mean()))


def test_the_gradient_penalty_of_a_linear_critic_is_known():
    weight = torch.randn(27, dtype=torch.float64)

    class Linear(torch.nn.Module):
        def forward(self, x):
            return (x.flatten(1) @ weight)[:, None]

    x, y = torch.randn(4, 1, 3, 3, 3, dtype=torch.float64), torch.randn(4, 1, 3, 3, 3, dtype=torch.float64)
    found = gradient_penalty(Linear(), x, y, torch.rand(4, 1, 1, 1, 1, dtype=torch.float64))
    assert float(found) == pytest.approx((float(weight.norm()) - 1) ** 2)


def test_the_gradient_penalty_reaches_the_critics_weights():
    critic = Discriminator(16, 2, norm=False).double()
    x, y = torch.randn(3, 1, 16, 16, 16, dtype=torch.float64), torch.randn(3, 1, 16, 16, 16, dtype=torch.float64)
    mix = torch.rand(3, 1, 1, 1, 1, dtype=torch.float64)
    weight = critic.convs[1].weight
    (slope,) = torch.autograd.grad(gradient_penalty(critic, x, y, mix), weight)
    place, h = (1, 0, 2, 1, 3), 1e-4
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * h
        values.append(float(gradient_penalty(critic, x, y, mix)))
        with torch.no_grad():
            weight[place] -= sign * h
    assert float(slope[place]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4, abs=1e-9)


def test_official_schedules_are_what_the_loops_did():
    for schedule, epochs, fall in (
        ("official64", 300, lambda e: 0.1 * e / 300),
        ("official128", 300, lambda e: 0.1 * (e - 1) / 100),
    ):
        level = 0.1
        for epoch in range(1, 301):
            level = max(level - fall(epoch), 0.0)
            assert noise_level(epoch, 0.1, schedule, epochs) == pytest.approx(level, abs=1e-12)
    assert noise_level(23, 0.1, "official64", 300) > 0 == noise_level(24, 0.1, "official64", 300)
    assert noise_level(14, 0.1, "official128", 300) > 0 == noise_level(15, 0.1, "official128", 300)


def test_the_schedules_beside_them():
    assert noise_level(150, 0.1, "linear", 300) == pytest.approx(0.05)
    assert noise_level(300, 0.1, "linear", 300) == noise_level(900, 0.1, "linear", 300) == 0
    assert noise_level(900, 0.3, "constant", 300) == 0.3


@pytest.mark.parametrize(("side", "nz", "ngf", "count"), [(64, 512, 64, 27_793_280), (64, 512, 32, 11_144_128)])
def test_the_generator_has_the_published_size(side, nz, ngf, count):
    generator = Generator(side, nz, ngf)
    assert sum(p.numel() for p in generator.parameters()) == count
    assert generator.convs[1].in_channels == ngf << 3


def test_the_discriminator_has_the_published_size():
    assert sum(p.numel() for p in Discriminator(64, 16).parameters()) == 697_792


@pytest.mark.parametrize(("side", "n"), [(16, (1, 2, 3)), (32, (2, 1, 1)), (64, (1, 1, 2))])
def test_volumes_have_n_plus_3_cells_along_each_axis(side, n):
    generator = Generator(side, 3, 2).eval()
    with torch.no_grad():
        made = generator(torch.randn(1, 3, *n))
        torch.testing.assert_close(generator.quick(torch.ones(1, 3, *n)), generator(torch.ones(1, 3, *n)))
    assert made.shape[2:] == tuple((k + 3) * side // 4 for k in n)
    assert made.abs().max() <= 1


def test_only_powers_of_two_are_sides():
    assert [levels(side_of(m)) for m in range(1, 8)] == list(range(1, 8))
    for side in (0, 4, 12, 48, 96):
        with pytest.raises(ValueError, match="8, 16, 32"):
            levels(side)


def test_weights_begin_as_published():
    torch.manual_seed(0)
    generator = Generator(32, 64, 16)
    assert float(generator.convs[0].weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(generator.norms[0].weight.mean()) == pytest.approx(1, abs=0.01)
    assert float(generator.norms[0].bias.abs().max()) == 0


def test_dropout_of_channels_drops_whole_ones():
    torch.manual_seed(0)
    for kind, whole in (("channels", True), ("voxels", False)):
        discriminator = Discriminator(16, 8, dropout=0.5, dropout_of=kind)
        dropped = discriminator.dropout(torch.ones(2, 8, 4, 4, 4)) == 0
        share = dropped.double().mean((2, 3, 4))
        assert bool(((share == 0) | (share == 1)).all()) is whole
