"""Against the reference numbers of the official code."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from headwater_vision_lzn.averages import Average
from headwater_vision_lzn.convert import _carry_over, config_of, from_official, to_official
from headwater_vision_lzn.flow import forward_flow, nearest, reverse_flow
from headwater_vision_lzn.networks import ResNet50
from headwater_vision_lzn.objective import alignment_losses, flow_loss, straight_line
from headwater_vision_lzn.solvers import images_of, noise_of

FOLDER = next(
    (
        folder
        for parent in Path(__file__).resolve().parents
        if (folder := parent / "shared" / "data" / "vision-lzn" / "parity").is_dir()
    ),
    None,
)
pytestmark = pytest.mark.skipif(FOLDER is None, reason="the reference numbers are not here")


def load(name):
    return {k: torch.from_numpy(np.atleast_1d(v)) for k, v in np.load(FOLDER / name, allow_pickle=False).items()}


def networks(name):
    arrays = load(f"ncsnpp_{name}.npz")
    state = {k.replace("/sd/", "."): v for k, v in arrays.items() if "/sd/" in k}
    if "label" in arrays:
        state["label_anchor.anchor"] = torch.zeros(5, 10)
    return arrays, {k: m.eval() for k, m in from_official(state).items()}


@pytest.mark.parametrize("name", ["cifar", "afhq"])
@torch.no_grad()
def test_networks_give_the_official_outputs(name):
    a, modules = networks(name)
    torch.testing.assert_close(modules["encoder"](a["x"]), a["enc_out"], atol=1e-4, rtol=0)
    labels = a["label"].argmax(1) if "label" in a else None
    torch.testing.assert_close(modules["decoder"](a["x"], a["t"], a["latent"], labels), a["dec_out"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["cifar", "afhq"])
def test_regression_gives_the_official_loss_and_gradient(name):
    a, modules = networks(name)
    decoder = modules["decoder"]
    x_t = straight_line(a["x1"], a["x"], a["t"])
    torch.testing.assert_close(x_t, a["rf_xt"], atol=1e-6, rtol=0)
    predicted = decoder(x_t, a["t"], a["latent"], a["label"].argmax(1) if "label" in a else None)
    torch.testing.assert_close(predicted, a["rf_pred"], atol=1e-4, rtol=0)
    loss = flow_loss(predicted, a["x1"], a["x"])
    loss.backward()
    norm = torch.stack([p.grad.double().norm() for p in decoder.parameters()]).norm()
    assert float(loss.detach()) == pytest.approx(float(a["rf_loss"]), rel=1e-4)
    assert float(norm) == pytest.approx(float(a["rf_grad_norm"]), rel=1e-4)


@torch.no_grad()
def test_resnet_gives_the_official_features():
    about = json.loads((FOLDER / "resnet50.json").read_text())
    state = {}
    for key, shape in about["keys"].items():
        a = np.random.RandomState((zlib.crc32(key.encode()) ^ about["seed"]) & 0x7FFFFFFF).standard_normal(shape)
        a = torch.from_numpy(a.astype(np.float32))
        if len(shape) > 1:
            state[key] = a * about["gain"] / np.sqrt(np.prod(shape[1:]))
        else:
            state[key] = 1 + 0.1 * a if key.endswith("weight") else 0.05 * a
    module = ResNet50(3, 160, layers=3)
    _carry_over("encoder", state, module)
    a = load("resnet50.npz")
    features = module.features(a["x"])
    for found, wanted in ((features, a["feat"]), (module.head(features), a["head"])):
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["cifar", "afhq"])
@torch.no_grad()
def test_image_flow_gives_the_official_points(name):
    a, modules = networks(name)
    labels = a["label"].argmax(1) if "label" in a else None

    def field(x, t):
        return modules["decoder"](x, t, a["latent"], labels)

    up, down = images_of(field, a["x"], steps=7), noise_of(field, a["x1"], steps=7)
    torch.testing.assert_close(up - a["x"], a["sample_euler7"] - a["x"], atol=1e-4, rtol=0)
    torch.testing.assert_close(down - a["x1"], a["inverse_euler7"] - a["x1"], atol=1e-4, rtol=0)
    if "sample_rk45" in a:
        torch.testing.assert_close(images_of(field, a["x"], "rk45"), a["sample_rk45"], atol=1e-3, rtol=0)
        torch.testing.assert_close(noise_of(field, a["x1"], "rk45"), a["inverse_rk45"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "dpm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latent_flow_gives_the_official_points(solver, dtype):
    a = load("latent_flow.npz")
    anchors, prior = a["anchors"].to(dtype), a["prior"].to(dtype)
    suffix = "_f64" if dtype == torch.float64 else ""
    tolerance = 5e-4 if dtype == torch.float64 else 5e-3
    latents = forward_flow(anchors, anchors, prior, solver=solver, steps=12)
    torch.testing.assert_close(latents, a[f"{solver}_latent{suffix}"], atol=tolerance, rtol=0)
    back = reverse_flow(a[f"{solver}_latent{suffix}"], anchors, solver=solver, steps=12, keep=True)
    torch.testing.assert_close(back.final, a[f"{solver}_rev_final{suffix}"], atol=1e-3, rtol=0)
    if dtype == torch.float64:
        torch.testing.assert_close(back.probabilities[-1], a[f"{solver}_rev_prob_last_f64"], atol=5e-3, rtol=0)
    else:
        torch.testing.assert_close(back.probabilities, a[f"{solver}_rev_prob"], atol=5e-3, rtol=0)


def test_one_zone_gives_the_official_points():
    a = load("latent_flow.npz")
    start = a["anchors"][:1].expand(30, -1)
    found = forward_flow(a["anchors"], start, a["prior"], solver="euler", steps=12)
    torch.testing.assert_close(found, a["euler_latent_one_anchor"], atol=5e-3, rtol=0)


def test_label_flow_gives_the_official_classes_and_loss():
    a = load("latent_flow.npz")
    back = reverse_flow(
        a["euler_latent"], a["label_anchor"], solver="euler", steps=40, log_weights=a["class_weight"].log(),
        targets=a["label"], keep=True,
    )  # fmt: skip
    torch.testing.assert_close(back.final, a["label_rev_final"], atol=1e-3, rtol=0)
    torch.testing.assert_close(back.probabilities, a["label_rev_prob"], atol=5e-3, rtol=0)
    assert torch.equal(nearest(back.final, a["label_anchor"]), a["label_pred"])
    assert float(alignment_losses(back.log_targets, 0.2)[1]) == pytest.approx(float(a["label_loss"]), rel=1e-3)


def test_alignment_gives_the_official_losses_and_gradients():
    a = load("latent_flow.npz")
    views = [a[name].double().requires_grad_() for name in ("anchors", "anchors_view2")]
    latents = forward_flow(views[0], views[0], 0.6 * a["prior"].double(), solver="euler", steps=12)
    torch.testing.assert_close(latents.detach().float(), a["align_latent"], atol=5e-3, rtol=0)
    back = reverse_flow(latents, views[1], solver="euler", steps=12, targets=torch.arange(30))
    torch.testing.assert_close(back.log_targets.detach().exp().float(), a["align_diag_prob"], atol=5e-3, rtol=0)
    ce, probability = alignment_losses(back.log_targets, 0.2)
    assert float(ce.detach()) == pytest.approx(float(a["align_ce"]), rel=1e-3)
    assert float(probability.detach()) == pytest.approx(float(a["align_prob_loss"]), rel=1e-3)
    for found, name in zip(torch.autograd.grad(ce, views), ("align_grad_view1", "align_grad_view2"), strict=True):
        assert float((found - a[name]).norm() / a[name].norm()) < 0.02


def test_average_gives_the_official_values():
    a = load("ema.npz")
    for given in (0.999999, 0.6):
        module = torch.nn.Module()
        module.p = torch.nn.Parameter(a["initial"].clone())
        average = Average(module)
        for n, (value, wanted) in enumerate(zip(a["values"], a[f"shadow_{given}"], strict=True), 1):
            module.p.data.copy_(value)
            average.update(module, n, given)
            torch.testing.assert_close(average.module.p, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["cifar", "afhq"])
def test_weights_go_back_to_the_official_names(name):
    arrays, modules = networks(name)
    for part in ("encoder", "decoder"):
        official = to_official(modules[part])
        given = {k.removeprefix(f"{part}/sd/"): v for k, v in arrays.items() if k.startswith(f"{part}/sd/")}
        given.pop("sigmas", None)
        assert list(official) == list(given)
        assert all(torch.equal(official[k], given[k]) for k in given)


@pytest.mark.parametrize("name", ["cifar", "afhq"])
def test_sizes_are_read_off_the_weights(name):
    arrays, _ = networks(name)
    about = json.loads((FOLDER / "ncsnpp.json").read_text())[name]
    state = {k.replace("/sd/", "."): v for k, v in arrays.items() if "/sd/" in k}
    found, model = config_of(state, {})["trainer"], about["config"]["model"]
    assert found["size"] == about["config"]["data"]["image_size"]
    assert found["width"] == model["nf"]
    assert tuple(found["multipliers"]) == tuple(model["ch_mult"])
    assert found["blocks"] == model["num_res_blocks"]
    assert found["attention"] == model["attn_resolutions"]
    assert found["style"] == ("fir" if model["fir"] else "plain")
    assert found["readout"] == about["encoder"]["latent_transformation_resolutions"]
    assert (found["latent"], found["narrow"], found["units"]) == (10, 3, 14)
