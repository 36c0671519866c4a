"""Embeddings, fields, losses, gradients, distances and ICNN equal the official code's (skipped without its numbers)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from headwater_flow.solvers import TABLEAUX, solve_fixed, uniform_grid
from headwater_flow_meta.convert import config_of, from_official, read_official
from headwater_flow_meta.evaluation import scores
from headwater_flow_meta.flow import flow_loss, interpolate, time_features
from headwater_flow_meta.networks import ICNN, neighbours

DATA = next(
    (p / "shared/data/flow-meta" for p in Path(__file__).resolve().parents if (p / "shared/data/flow-meta").is_dir()),
    Path("shared/data/flow-meta"),
)
FOLDER = DATA / "parity"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the official reference numbers are not here")


def load(name):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as found:
        return {key: torch.from_numpy(found[key]) for key in found}


def sizes(name):
    return json.loads((FOLDER / "config.json").read_text())[name]


def convert(arrays, prefix="sd/", **hyperparameters):
    state = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return from_official(state, **hyperparameters)


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# Letters


@pytest.fixture(scope="module")
def letters():
    return load("letters")


@pytest.fixture
def networks(letters):
    time = sizes("letters")["t_embedding_dim"]
    modules = convert(letters, frequencies=letters["B"], neighbours=7, time_features=time)
    return modules["field"], modules["embedding"]


def test_neighbours_are_the_official_ones(letters):
    index, real = neighbours(letters["x0"], 7)
    assert bool(real.all())
    for own, edges in zip(index, letters["knn_edges"], strict=True):
        ours = {(int(j), i) for i, row in enumerate(own) for j in row}
        assert ours == set(map(tuple, edges.T.tolist()))


def test_embeddings_equal_together_and_one_by_one(letters, networks):
    _, embedding = networks
    with torch.no_grad():
        close(embedding(letters["x0"]), letters["embed_batched"], 1e-5)
        for i in range(4):
            close(embedding(letters["x0"][i : i + 1])[0], letters["embed_single"][i], 1e-5)


def test_time_features_equal(letters):
    close(time_features(letters["t"], 14), letters["t_embed"], 1e-6)


def test_the_field_equals(letters, networks):
    field, _ = networks
    t, context = letters["t"].view(4, 37), letters["embed_batched"]
    with torch.no_grad():
        close(field(t, letters["y"].view(4, 37, 2), context).flatten(0, 1), letters["flow"], 2e-5)
        close(interpolate(t, letters["x0"], letters["x1"]).flatten(0, 1), letters["yt"], 1e-6)
        close(field(t, letters["yt"].view(4, 37, 2), context).flatten(0, 1), letters["flow_yt"], 2e-5)
        one = field(torch.tensor(0.3), letters["x0"][2:3], context[2:3])[0]
        close(one, letters["scalar_t_flow"], 2e-5)


def test_loss_and_gradients_equal(letters, networks):
    field, embedding = networks
    t, x0, x1 = letters["t"].view(4, 37), letters["x0"], letters["x1"]
    velocity = field(t, interpolate(t, x0, x1), embedding(x0))
    loss = flow_loss(velocity, x0, x1)
    assert float(loss.detach()) / 2 == pytest.approx(float(letters["loss_mse"]), rel=1e-5)
    official = loss - (x1 - x0).square().sum(2).mean()
    assert float(official.detach()) == pytest.approx(float(letters["loss"]), rel=1e-5)
    loss.backward()
    ours = {f"gcn_convs.{i}.{n}": p for i, layer in enumerate(embedding.layers) for n, p in layer.named_parameters()}
    layers = {"input_layer": field.first, "output_layer": field.last}
    layers |= {f"hidden_layers.{i}": layer for i, layer in enumerate(field.hidden)}
    ours |= {f"decoder.{k}.{n}": p for k, layer in layers.items() for n, p in layer.named_parameters()}
    norms = {k.removeprefix("gradnorm/"): float(v) for k, v in letters.items() if k.startswith("gradnorm/")}
    assert len(ours) == len(norms)
    for key, norm in norms.items():
        parameter = ours[key.replace("lin.weight", "weight")]
        assert float(parameter.grad.norm()) == pytest.approx(norm, rel=1e-4), key


def test_a_rollout_equals(letters, networks):
    field, _ = networks
    context = letters["embed_single"][2:3]
    with torch.no_grad():
        states = solve_fixed(
            lambda t, y: field(t, y, context), letters["x0"][2:3], uniform_grid(8), TABLEAUX["euler"],
            times=uniform_grid(8),
        )  # fmt: skip
    close(states.squeeze(1), letters["rollout"], 2e-5)


# With cell types and treatments


def test_conditioned_embeddings_and_fields_equal():
    arrays = load("conditioned")
    given = {"frequencies": arrays["B"], "neighbours": 6, "condition": 4}
    plain = convert(arrays, **given)
    linear = convert(arrays, official_linear=True, **given)["embedding"]
    with torch.no_grad():
        close(linear(arrays["x"].unsqueeze(0), arrays["cell_cond"].unsqueeze(0)), arrays["embed_2d"], 1e-5)
        together = plain["embedding"](arrays["x_batch"], arrays["cell_cond_batch"])
        close(together, arrays["embed_3d"], 1e-5)
        one = plain["embedding"](arrays["x"].unsqueeze(0), arrays["cell_cond"].unsqueeze(0))
        close(one, arrays["embed_3d_one"], 1e-5)
        t, x = arrays["t"].unsqueeze(1), arrays["x"].unsqueeze(1)
        for name, context in (("flow", arrays["embed_2d"]), ("flow_3d", arrays["embed_3d"][1:])):
            found = plain["field"](t, x, context.expand(64, -1), arrays["treat_cond"]).squeeze(1)
            close(found, arrays[name], 2e-5)


# Baselines


@pytest.mark.parametrize(("case", "treatments", "time"), [("cond_skip", 4, 10), ("cond_plain", 4, 10), ("free", 0, 16)])
def test_fields_without_an_embedding_equal(case, treatments, time):
    arrays = load("flow_nets")
    assert sizes(f"flow_{case}")["t_embedding_dim"] == time
    field = convert(arrays, f"{case}/sd/", frequencies=arrays[f"{case}/B"], time_features=time)["field"]
    assert field.condition == treatments
    condition = arrays["treat_cond"] if treatments else None
    with torch.no_grad():
        out = field(arrays["t"].unsqueeze(1), arrays["x"].unsqueeze(1), None, condition)
    close(out.squeeze(1), arrays[f"{case}/out"], 2e-5)


def test_the_input_convex_network_equals():
    arrays = load("icnn")
    state = {k.removeprefix("sd/"): v for k, v in arrays.items() if k.startswith("sd/")}
    modules = from_official({f"{name}.{k}": v for name in "fg" for k, v in state.items()})
    net = modules["g"]
    assert isinstance(net, ICNN)
    torch.testing.assert_close(net(arrays["x"]).detach(), arrays["f"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.transport(arrays["x"]).detach(), arrays["transport"], rtol=1e-5, atol=1e-5)
    assert 0.7 * float(net.penalty().detach()) == pytest.approx(float(arrays["penalty"]), rel=1e-5)


# Distances


def test_the_ten_distances_equal():
    arrays = load("distances")
    found = scores(arrays["pred"], arrays["true"], 1000)
    names = {
        "w1": "1-Wasserstein", "w2": "2-Wasserstein", "mmd": "RBF_MMD", "mean_mse": "Mean_MSE", "mean_l2": "Mean_L2",
        "mean_l1": "Mean_L1", "median_mse": "Median_MSE", "median_l2": "Median_L2", "median_l1": "Median_L1",
        "r2": "r2_pwf_corr",
    }  # fmt: skip
    for ours, theirs in names.items():
        tolerance = 1e-6 if ours in ("w1", "w2") else 1e-5
        assert found[ours] == pytest.approx(float(arrays[f"value/{theirs}"]), rel=tolerance), theirs


# The converter, on the official state dicts as a file


def test_a_lightning_checkpoint_is_read_with_b_beside_it(letters, tmp_path):
    state = {f"model.{k.removeprefix('sd/')}": v for k, v in letters.items() if k.startswith("sd/")}
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 1e-4}}, tmp_path / "last.ckpt")
    np.savez(tmp_path / "b.npz", B=letters["B"].numpy())
    found, hyperparameters = read_official([tmp_path / "last.ckpt", tmp_path / "b.npz"])
    hyperparameters |= {"neighbours": 7, "time_features": 14}
    modules = from_official(found, **hyperparameters)
    with torch.no_grad():
        close(modules["embedding"](letters["x0"]), letters["embed_batched"], 1e-5)
    trainer = config_of(found, hyperparameters)["trainer"]
    assert (trainer["hidden"], trainer["layers"], trainer["skips"], trainer["embedding_layers"]) == (40, 5, True, 4)
