"""Equal to the official codes: their state dicts on stored numbers, in both directions, with losses and gradients."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from headwater_vision.metrics import luma, psnr, ssim
from headwater_vision_rescale.convert import from_official
from headwater_vision_rescale.flow import haar, haar_inverse, orthonormal_haar, quantise
from headwater_vision_rescale.objective import charbonnier, hcflow_loss, latent_energy, summed_squares
from headwater_vision_rescale.resize import bicubic


def folder():
    for parent in Path(__file__).resolve().parents:
        found = parent / "shared" / "data" / "vision-rescale" / "parity"
        if found.is_dir():
            return found
    pytest.skip("the shared reference numbers are not here")


def numbers(name):
    with np.load(folder() / f"{name}.npz", allow_pickle=False) as file:
        return {k: torch.from_numpy(np.asarray(file[k])) for k in file.files if file[k].dtype.kind != "U"}


def names(name):
    with np.load(folder() / f"{name}.npz", allow_pickle=False) as file:
        return [str(n) for n in file["grad_names"]]


def state_of(found):
    return {k.removeprefix("sd/"): v for k, v in found.items() if k.startswith("sd/")}


def described(name):
    return json.loads((folder() / f"{name}.json").read_text())


def drawn(shapes, seed, gain, bias):
    """Weights by the recipe of the reference numbers' README."""
    state = {}
    for key, shape in shapes.items():
        draw = np.random.RandomState((zlib.crc32(key.encode()) ^ seed) & 0x7FFFFFFF)
        a = draw.standard_normal(shape).astype(np.float32)
        state[key] = torch.from_numpy(a * bias if len(shape) == 1 else a * gain / np.sqrt(np.prod(shape[1:])))
        state[key] = state[key].float()
    return state


def close(a, b, tolerance=1e-5):
    b = b.to(a.dtype)
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def check_irn(net, found):
    with torch.no_grad():
        y = net(found["x"])
        assert close(y, found["forward"])
        assert (quantise(y[:, :3]) - found["lr_quant"]).abs().max() <= 1 / 255 + 1e-6
        assert close(net.inverse(torch.cat([found["lr_quant"], found["z_noise"]], 1))[0], found["upscaled"])
        assert close(net.inverse(y)[0], found["x"])
        # The published count adds each Haar step for one sample and divides the couplings' sum by the batch.
        assert float(net.log_det(found["x"]).mean()) == pytest.approx(float(found["jacobian"]), rel=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["irn_x2", "irn_x4"])
def test_irn(name, recompute):
    found = numbers(name)
    net = from_official(state_of(found))["rescaler"]
    check_irn(net, found)
    net.recompute = recompute
    y = net(found["x"])
    fit = described("irn")[name]["lambda_fit"] * summed_squares(y[:, :3], found["lr_ref"])
    energy = latent_energy(y[:, 3:])
    restored = net.restore(quantise(y[:, :3]), found["z_noise"])
    rec = charbonnier(found["x"], restored)
    for own, key in ((fit, "loss_fit"), (energy, "loss_ce"), (rec, "loss_rec")):
        assert own.item() == pytest.approx(float(found[key]), rel=1e-5)
    (fit + energy + rec).backward()
    own = dict(net.named_parameters())
    for key, norm in zip(names(name), found["grad_norms"].tolist(), strict=True):
        assert float(own[key].grad.norm()) == pytest.approx(norm, rel=2e-4)
        if f"grad/{key}" in found:
            assert float((own[key].grad - found[f"grad/{key}"]).norm()) <= 2e-4 * norm


@pytest.mark.parametrize("scale", [2, 4])
def test_irn_of_the_published_size(scale):
    about = described("irn")[f"irn_full_x{scale}"]
    found = numbers(f"irn_full_x{scale}")
    from headwater_vision_rescale.networks import RescalingNet

    net = RescalingNet(scale, 8)
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    if scale == 2:
        listed = {k: tuple(v) for k, v in about["keys"].items() if "haar" not in k}
        assert shapes == listed
    state = drawn(shapes, about["seed"], about["gain"], about["bias_std"])
    state["operations.0.haar_weights"] = filters(3)
    if scale == 4:
        state["operations.9.haar_weights"] = filters(12)
    net = from_official(state)["rescaler"]
    # The published count includes the fixed Haar filters, 16 for each channel.
    fixed = 48 if scale == 2 else 48 + 192
    assert sum(p.numel() for p in net.parameters()) + fixed == {2: 1_668_000, 4: 4_355_376}[scale]
    check_irn(net, found)


def filters(channels):
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).view(4, 1, 2, 2)
    return signs.repeat(channels, 1, 1, 1)


def test_haar_and_quantiser():
    found = numbers("irn_parts")
    assert torch.allclose(haar(found["haar/x"]), found["haar/y"], atol=1e-6)
    assert torch.allclose(haar_inverse(found["haar/y"]), found["haar/inv"], atol=1e-6)
    u = found["quant/x"].requires_grad_()
    q = quantise(u)
    assert torch.allclose(q, found["quant/y"], atol=1e-7)
    (q * torch.arange(1.0, 10)).sum().backward()
    assert torch.equal(u.grad, found["quant/grad"])


def test_bicubic_and_metrics():
    found = numbers("irn_parts")
    image, other = (found[f"metrics/{k}"] for k in ("img_bgr", "img2_bgr"))
    for key, scale in (("half", 0.5), ("third", 1 / 3), ("quarter", 0.25), ("up2", 2.0)):
        own = bicubic(image.permute(2, 0, 1).double(), scale).permute(1, 2, 0)
        assert own.shape == found[f"metrics/{key}"].shape
        assert (own - found[f"metrics/{key}"]).abs().max() < 1e-6
    a, b = ((255 * t).round().numpy()[:, :, ::-1] for t in (image, other))
    assert np.abs(luma(a) / 255 - found["metrics/y1"].numpy()).max() < 1e-6
    assert psnr(a, b) == pytest.approx(float(found["metrics/psnr_rgb"]), abs=1e-6)
    assert ssim(a, b) == pytest.approx(float(found["metrics/ssim_rgb"]), abs=1e-6)
    assert psnr(luma(a), luma(b)) == pytest.approx(float(found["metrics/psnr_y"]), abs=1e-6)
    assert ssim(luma(a), luma(b)) == pytest.approx(float(found["metrics/ssim_y"]), abs=1e-6)


def test_hcflow():
    found = numbers("hcflow")
    net = from_official(state_of(found))["rescaler"].eval()
    latents = {k: torch.cat([torch.nn.functional.pixel_unshuffle(found[f"{k}1"], 2), found[f"{k}2"]], 1)
               for k in ("z", "eps")}  # fmt: skip
    with torch.no_grad():
        y, z = net(found["x"])
        assert close(y, found["lr_unclamped"])
        assert close(y.clamp(0, 1), found["lr"])
        assert close(z, latents["z"])
        assert close(net.reduce(found["x"]), y)
        assert close(net.restore(y, z), found["x"])
        assert close(net.restore(found["lr"]), found["hr_heat0_unclamped"])
        assert close(net.restore(found["lr"], 0.8 * latents["eps"]), found["hr_heat08_unclamped"])
        restored = net.restore(found["lr_quant"], latents["eps"])
        assert close(restored, found["hr_from_quant_heat1_unclamped"])
        losses = hcflow_loss(y.clamp(0, 1), found["lr_ref"], z, restored.clamp(0, 1), found["x"])
    for own, key in (("loss_fit", "loss_lr"), ("loss_z", "loss_z"), ("loss_rec", "loss_hr")):
        assert losses[own].item() == pytest.approx(float(found[key]), rel=1e-5)


def check_hiding(net, found):
    with torch.no_grad():
        y = net(found["cover"], found["secret"])
        assert close(y, found["forward"])
        assert close(net.hide(found["cover"], found["secret"]), found["steg_image"])
        assert close(net.inverse(torch.cat([y[:, :12], found["z_noise"]], 1)), found["reverse"])
        assert close(net.reveal(found["steg_image"], found["z_noise"]), found["secret_rev"])
        assert close(net.inverse(y), found["exact_inverse"])


@pytest.mark.parametrize("recompute", [False, True])
def test_hinet(recompute):
    found = numbers("hinet")
    net = from_official(state_of(found))["hider"]
    assert close(orthonormal_haar(found["cover"]), found["dwt_cover"])
    check_hiding(net, found)
    net.recompute = recompute
    stego = net.hide(found["cover"], found["secret"])
    revealed = net.reveal(stego, found["z_noise"])
    n = len(stego)
    guide, rec = n * summed_squares(stego, found["cover"]), n * summed_squares(revealed, found["secret"])
    low = n * summed_squares(orthonormal_haar(stego)[:, :3], orthonormal_haar(found["cover"])[:, :3])
    total = 5 * rec + guide + low
    for own, key in ((guide, "loss_guide"), (rec, "loss_rec"), (low, "loss_low"), (total, "loss_total")):
        assert own.item() == pytest.approx(float(found[key]), rel=1e-5)
    total.backward()
    own = dict(net.named_parameters())
    letters = {"r": "H", "y": "G", "f": "F"}
    for key, norm in zip(names("hinet"), found["grad_norms"].tolist(), strict=True):
        block, letter, rest = key.removeprefix("inv").split(".", 2)
        gradient = own[f"operations.{int(block) - 1}.{letters[letter]}.{rest}"].grad
        assert float(gradient.norm()) == pytest.approx(norm, rel=2e-4)
        if f"grad/{key}" in found:
            assert float((gradient - found[f"grad/{key}"]).norm()) <= 2e-4 * norm


def test_hinet_of_the_published_size():
    about, found = described("hinet")["hinet_full"], numbers("hinet_full")
    one = {k.removeprefix("inv1."): tuple(v) for k, v in about["keys_of_one_block"].items()}
    shapes = {f"inv{i}.{k}": v for i in range(1, 17) for k, v in one.items()}
    state = drawn(shapes, about["seed"], about["gain"], about["bias_std"])
    check_hiding(from_official(state)["hider"], found)
