"""The maps and networks: inverses, determinants, what the latents do, gradients from recomputed activations."""

import copy
import math

import pytest
import torch
from headwater_vision_rescale.convert import widened
from headwater_vision_rescale.flow import (
    haar,
    haar_inverse,
    haar_log_det,
    orthonormal_haar,
    orthonormal_haar_inverse,
    quantise,
    reflect_to_multiple,
    to_bytes,
)
from headwater_vision_rescale.hcflow import ActNorm, HCFlow
from headwater_vision_rescale.networks import Coupling, HidingNet, RescalingNet, chain
from torch.nn import functional


def shaken(net, seed=0, size=0.3):
    """Weights that are nowhere zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        fan = max(1, parameter[0].numel())
        parameter.data = size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / fan**0.5
    return net


def images(*shape, dtype=torch.float64, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_haar_cells_are_those_of_the_definition():
    x = images(2, 3, 4, 6)
    y = haar(x)
    for n, c, i, j in ((0, 0, 0, 0), (1, 2, 1, 2), (0, 1, 0, 1)):
        a, b, d, e = (x[n, c, 2 * i + k, 2 * j + m] for k in range(2) for m in range(2))
        expected = ((a + b + d + e) / 4, (a - b + d - e) / 4, (a + b - d - e) / 4, (a - b - d + e) / 4)
        assert y[n, c::3, i, j].tolist() == pytest.approx([float(v) for v in expected], abs=1e-15)
    assert torch.allclose(haar_inverse(y), x, atol=1e-15)
    # Parseval: 4 times the energy of all bands is that of the image.
    assert float(4 * y.square().sum()) == pytest.approx(float(x.square().sum()))
    w = orthonormal_haar(x)
    assert float(w.square().sum()) == pytest.approx(float(x.square().sum()))
    assert torch.allclose(orthonormal_haar_inverse(w), x, atol=1e-15)
    jacobian = torch.autograd.functional.jacobian(haar, images(1, 2, 4, 2)).reshape(16, 16)
    assert float(torch.linalg.slogdet(jacobian).logabsdet) == pytest.approx(haar_log_det(2, 4, 2))


def test_the_quantiser_rounds_to_255ths_and_lets_gradients_through():
    u = torch.linspace(-0.5, 1.5, 1001, requires_grad=True)
    q = quantise(u)
    assert torch.equal(quantise(q), q)
    assert torch.equal((q.detach() * 255).round().to(torch.uint8), to_bytes(u.detach()))
    q.sum().backward()
    assert (u.grad == 1).all()


@pytest.mark.parametrize("entry", ["hr", "band"])
@pytest.mark.parametrize("zd", [0, 1, 3])
@pytest.mark.parametrize(("scale", "couplings"), [(2, 1), (2, 3), (4, [2, 1]), (8, 1)])
def test_the_inverse_of_forward_is_the_input(scale, couplings, zd, entry):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        net = shaken(RescalingNet(scale, couplings, growth=4, zd_channels=zd, zd_entry=entry).to(dtype))
        x = images(2, 3, 16, 24, dtype=dtype)
        z_d = images(2, zd, 16, 24, dtype=dtype, seed=2)
        with torch.no_grad():
            y = net(x, z_d)
            assert y.shape == (2, 3 + net.latent_channels, 16 // scale, 24 // scale)
            back, z_back = net.inverse(y)
            assert (back - x).abs().max() <= tolerance
            entered = z_d[:, :, ::2, ::2] if entry == "band" else z_d
            assert zd == 0 or (z_back - entered).abs().max() <= tolerance
            assert (net.restore(y[:, :3], y[:, 3:]) - x).abs().max() <= tolerance


def test_untrained_networks_shrink_by_the_mean_of_boxes():
    x = images(1, 3, 16, 8)
    for scale in (2, 4):
        net = RescalingNet(scale, 2, growth=4, zd_channels=1).double()
        assert torch.allclose(net.reduce(x), functional.avg_pool2d(x, scale), atol=1e-14)
        constant = sum(haar_log_det(4 ** (k + 1), 16 >> k, 8 >> k) for k in range(scale.bit_length() - 1))
        assert net.log_det(x).item() == pytest.approx(constant)
        assert constant == pytest.approx(-math.log(16) * sum(4**k * (16 >> k) * (8 >> k) for k in range(scale // 2)))


@pytest.mark.parametrize("zd", [0, 1])
def test_log_det_is_that_of_the_jacobian(zd):
    net = shaken(RescalingNet(2, 2, growth=3, zd_channels=zd).double(), size=0.5)
    x, z_d = images(1, 3, 4, 4), images(1, zd, 4, 4, seed=3)

    def flat(v):
        v = v.view(1, 3 + zd, 4, 4)
        return net(v[:, :3], v[:, 3:]).flatten()

    with torch.no_grad():
        net.recompute = False
        jacobian = torch.autograd.functional.jacobian(flat, torch.cat([x, z_d], 1).flatten())
        found = float(torch.linalg.slogdet(jacobian).logabsdet)
        assert float(net.log_det(x, z_d)) == pytest.approx(found, rel=1e-10)


def test_coupling_is_that_of_the_definition():
    c = shaken(Coupling(7, 3, growth=2, clamp=2.0).double())
    x = images(1, 7, 4, 5)
    y1 = x[:, :3] + c.F(x[:, 3:])
    y2 = x[:, 3:] * torch.exp(4 * (torch.sigmoid(c.H(y1)) - 0.5)) + c.G(y1)
    assert torch.allclose(c(x), torch.cat([y1, y2], 1), atol=1e-14)


def test_without_the_latent_dlv_is_irn():
    torch.manual_seed(0)
    a = shaken(RescalingNet(4, 2, growth=4))
    b = RescalingNet(4, 2, growth=4, zd_channels=0, zd_entry="band")
    b.load_state_dict(a.state_dict())
    x = images(1, 3, 8, 8, dtype=torch.float32)
    assert torch.equal(a(x), b(x))


@pytest.mark.parametrize("scale", [2, 4])
def test_a_widened_irn_does_the_same_where_the_latent_is_zero(scale):
    narrow = shaken(RescalingNet(scale, 2, growth=4))
    wide = widened(narrow, 2)
    x = images(2, 3, 16, 16, dtype=torch.float32)
    with torch.no_grad():
        a, b = narrow(x), wide(x)
        assert (a[:, :3] - b[:, :3]).abs().max() <= 1e-6
        assert (narrow.restore(a[:, :3]) - wide.restore(b[:, :3])).abs().max() <= 1e-6
        assert (wide.restore(b[:, :3], b[:, 3:]) - x).abs().max() <= 1e-5


def gradients(net, run):
    net.zero_grad()
    loss = run()
    loss.backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("scale", [2, 4])
def test_recomputed_activations_give_the_same_gradients(scale):
    net = shaken(RescalingNet(scale, 3, growth=4, zd_channels=1).double())
    x, weight = images(2, 3, 8, 16), images(2, 3, 8, 16, seed=5)

    def run():
        y = net(x)
        return (net.restore(quantise(y[:, :3])) * weight).sum() + y.square().sum()

    net.recompute = False
    stored = gradients(net, run)
    net.recompute = True
    for a, b in zip(stored, gradients(net, run), strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(a.abs().max()))


def test_the_gradient_of_the_input_and_of_frozen_parts_is_right():
    couplings = list(shaken(torch.nn.ModuleList(Coupling(6, 3, growth=3) for _ in range(3)).double()))
    couplings[1].G.requires_grad_(False)
    for inverse in (False, True):
        found = []
        for recompute in (False, True):
            x = images(1, 6, 5, 4).requires_grad_()
            chain(couplings, x, inverse=inverse, recompute=recompute).sin().sum().backward()
            found.append(x.grad)
            assert couplings[1].G.conv1.weight.grad is None
        assert torch.allclose(*found, atol=1e-12)


def test_memory_for_training_does_not_grow_with_the_number_of_couplings():
    """What autograd keeps until the backward pass, in bytes."""

    def kept(couplings, recompute):
        net = RescalingNet(2, couplings, growth=8)
        net.recompute = recompute
        seen = {}

        def note(t):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        own = {p.untyped_storage().data_ptr() for p in net.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            y = net(images(1, 3, 32, 32, dtype=torch.float32))
            out = net.restore(quantise(y[:, :3])).sum()
        assert out.requires_grad
        return sum(v for k, v in seen.items() if k not in own)

    assert kept(8, True) <= kept(2, True) + 64
    assert kept(8, True) < kept(8, False) / 20


def test_hiding_with_a_latent_is_inverted():
    net = shaken(HidingNet(3, growth=4, zd_channels=2).double())
    cover, secret = images(2, 3, 8, 12), images(2, 3, 8, 12, seed=4)
    with torch.no_grad():
        y = net(cover, secret)
        back = net.inverse(y)
        assert torch.allclose(orthonormal_haar_inverse(back[:, :12]), cover, atol=1e-10)
        assert torch.allclose(net.reveal(net.hide(cover, secret), y[:, 12:]), secret, atol=1e-10)
        assert back[:, 24:].abs().max() < 1e-10


@pytest.mark.parametrize("zd", [0, 1])
def test_hcflow_is_inverted(zd):
    sizes = {"growth": 3, "width": 5, "features": 4, "feature_growth": 2, "feature_blocks": (1, 1), "zd_channels": zd}
    net = shaken(HCFlow((3, 2), (2, 1), **sizes).double())
    for name, parameter in net.named_parameters():
        if parameter.ndim == 2:  # the 1x1 convolutions, which must be invertible
            parameter.data = torch.linalg.qr(torch.randn(parameter.shape).double())[0]
        assert parameter.requires_grad, name
    x = images(1, 3, 16, 24)
    with torch.no_grad():
        y, z = net.eval()(x)
        assert z.shape == (1, net.latent_channels, 4, 6)
        back = net.inverse(y, z)
        assert (back[:, :3] - x).abs().max() < 1e-9
        assert zd == 0 or back[:, 3:].abs().max() < 1e-9
        assert torch.equal(net.restore(y), net.inverse(y, torch.zeros_like(z))[:, :3])


def test_activation_norms_start_from_the_first_batch_and_only_once():
    norm, x = ActNorm(3), 5 + 2 * torch.randn(4, 3, 8, 8)
    x[:, 2] = 0  # a latent of zeros
    assert torch.equal(copy.deepcopy(norm).eval()(x), x)
    y = norm(x)
    assert y[:, :2].mean((0, 2, 3)).abs().max() < 1e-5
    assert (y[:, :2].std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert (y[:, 2] == 0).all()
    assert torch.allclose(norm.inverse(y), x, atol=1e-5)
    norm(100 * x)
    loaded = ActNorm(3)
    loaded.load_state_dict(norm.state_dict())
    assert torch.equal(loaded(x), y)


def test_padding_reflects_and_one_pixel_repeats():
    x = torch.arange(5.0).view(1, 1, 1, 5)
    assert reflect_to_multiple(x, 4)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert reflect_to_multiple(x, 4)[0, 0, :, 0].tolist() == [0] * 4
    assert reflect_to_multiple(x[..., :4], 4, (4, 9)).shape == (1, 1, 4, 12)
    assert reflect_to_multiple(x[..., :2], 1, (1, 7))[0, 0, 0].tolist() == [0, 1, 0, 1, 0, 1, 0]
