"""Against the reference numbers of the official code."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from headwater_vision_lzn.convert import _carry_over, from_official
from headwater_vision_lzn.networks import ResNet50
from headwater_vision_lzn.objective import flow_loss, straight_line
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
    assert float(loss) == pytest.approx(float(a["rf_loss"]), rel=1e-4)
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
