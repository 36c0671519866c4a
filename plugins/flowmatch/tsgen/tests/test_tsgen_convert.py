"""Official checkpoints of both layouts, without running anything that is in them."""

import argparse

import headwater
import pytest
import torch
from headwater.errors import DataError
from headwater_flow_tsgen.convert import config_of, from_official, read_official
from headwater_flow_tsgen.networks import MolGen, Potential, TSGen

PERCEPTRON = (("first", "mlp.0"), ("last", "mlp.2"))


def put(state, ours, theirs, module):
    for a, b in PERCEPTRON:
        for part in ("weight", "bias"):
            state[f"{theirs}.{b}.{part}"] = getattr(getattr(module, a), part)


def official(network, d, ff):
    """The official state dict of a network, written from the specification of the layout."""
    state = {
        "encoder.embed_atom.weight": network.atom.weight,
        "encoder.embed_atom.bias": network.atom.bias,
        "encoder.embed_time.0.B": network.frequencies,
        "decoder.Oh" if network.scalar else "decoder.Ov": network.out,
        "decoder.Ov" if network.scalar else "decoder.Oh": torch.zeros(d, 0),
    }
    put(state, "time", "encoder.embed_time.1", network.time)
    put(state, "bond", "encoder.embed_bond", network.bond)
    for phi in ("phi_s", "phi_h", "phi_v"):
        put(state, phi, f"encoder.{phi}", getattr(network, phi))
    for k, layer in enumerate(network.layers):
        at = f"processor.convs.{k}"
        for name, part in zip(("W_Q", "W_K", "W_Vh"), range(3), strict=True):
            rows = slice(part * d, (part + 1) * d)
            state[f"{at}.attn.{name}.weight"] = layer.qkv.weight[rows]
            state[f"{at}.attn.{name}.bias"] = layer.qkv.bias[rows]
        state |= {f"{at}.attn.W_Vv": layer.value, f"{at}.attn.W_Oh": layer.out_h, f"{at}.attn.W_Ov": layer.out_v}
        put(state, "bias", f"{at}.attn.edge_bias", layer.bias)
        state |= {f"{at}.feedforward.W1": layer.mix[:, :d], f"{at}.feedforward.W2": layer.mix[:, d:]}
        for which, outer in ((1, layer.outer1), (2, layer.outer2)):
            rows = slice((which - 1) * ff, which * ff)
            for part in ("weight", "bias"):
                state[f"{at}.feedforward.ffn{which}.mlp.0.{part}"] = getattr(layer.inner, part)[rows]
                state[f"{at}.feedforward.ffn{which}.mlp.2.{part}"] = getattr(outer, part)
        for ours, theirs in (("norm", "feedforward.norm"), ("norm1", "norm1"), ("norm2", "norm2")):
            for part in ("weight", "bias"):
                state[f"{at}.{theirs}.{part}"] = getattr(getattr(layer, ours), part)
    for k, end in enumerate("fr"):
        state[f"mask_to_emb_{end}.weight"] = network.given_h[k].weight
        if isinstance(network, TSGen):
            state[f"v_mask_to_emb_{end}.weight"] = network.given_v[k].weight
            for part in ("weight", "bias"):
                state[f"cond_to_emb_{end}.{part}"] = getattr(network.condition_h[k], part)
                state[f"v_cond_to_emb_{end}.{part}"] = getattr(network.condition_v[k], part)
        else:
            state |= {f"cond_to_emb_{end}.weight": torch.zeros(d, 3), f"cond_to_emb_{end}.bias": torch.zeros(d)}
    if isinstance(network, MolGen):
        edge = network.edge
        for ours, theirs in (("cross_s", "phi_s_cross"), ("cross_h", "phi_h_cross"), ("fuse", "phi_fuse")):
            put(state, ours, f"encoder.{theirs}", getattr(network, ours))
        for k in range(4):
            radial = edge.radial[min(k, 2)]
            for a, b in (("first", 0), ("last", 2)):
                for part in ("weight", "bias"):
                    state[f"edge_block.rbf_to_mul.{k}.{b}.{part}"] = getattr(getattr(radial, a), part)
        state |= {
            "edge_block.tp.weight": torch.cat([w.reshape(-1) for w in edge.weights]),
            "edge_block.tp.output_mask": torch.ones(248),
            "edge_block.rbf_centers": torch.zeros(96),
            "edge_block.rbf_gamma": torch.tensor(1.0),
            "edge_block._rbf.means": edge.means,
            "edge_block._rbf.betas": edge.betas,
            "embed_atom.0.weight": edge.embed[0].weight,
            "embed_atom.2.weight": edge.embed[2].weight,
            "embed_atom.2.bias": edge.embed[2].bias,
        }
    return {k: v.detach().clone() for k, v in state.items()}


def made(kind):
    torch.manual_seed(0)
    network = MolGen(5, 12, 2, 3, 10) if kind == "molgen" else TSGen(5, 12, 8, 2, 3, 10)
    return network, official(network, 12, 10)


def same_velocity(a, b):
    torch.manual_seed(1)
    species = torch.randint(0, 4, (2, 5))
    x, r, p = 2 * torch.randn(3, 2, 5, 3)
    t = torch.rand(2)
    with torch.no_grad():
        return torch.equal(a(x, t, a.prepare(species, r, p)), b(x, t, b.prepare(species, r, p)))


def lightning(path, state, **args):
    torch.save(
        {
            "state_dict": {f"model.{k}" if not k.startswith("potential") else k: v for k, v in state.items()},
            "hyper_parameters": {"args": argparse.Namespace(**args)},
            "epoch": 3,
            "pytorch-lightning_version": "2.0",
        },
        path,
    )
    return path


@pytest.mark.parametrize("kind", ["molgen", "tsgen"])
def test_a_lightning_file_becomes_a_run_with_the_same_velocities(tmp_path, kind):
    network, state = made(kind)
    path = lightning(tmp_path / "m.ckpt", state, path_type="GVP", x0std=0.5, lr=1e-4, odd=object())
    found, settings = read_official([path])
    assert settings == {"path_type": "GVP", "x0std": 0.5}
    assert same_velocity(from_official(found, **settings)["network"], network)
    run = headwater.convert("flow-tsgen", [path], tmp_path / "run")
    trainer = run.config()["trainer"]
    assert (trainer["network"], trainer["width"], trainer["path"], trainer["prior_scale"]) == (kind, 12, "cosine", 0.5)
    model = headwater.load(run, device="cpu")
    assert same_velocity(model.modules["network"], network)
    assert model.sample_to(tmp_path / "ts.xyz", 1, overrides={"sampler": {"trials": 1, "block_size": 1}}).exists()


def test_a_potential_model_comes_along(tmp_path):
    _, state = made("tsgen")
    torch.manual_seed(2)
    potential = Potential(5, 12, 8, 2, 3, 10)
    both = state | {f"potential_model.{k}": v for k, v in official(potential, 12, 10).items()}
    found, settings = read_official([lightning(tmp_path / "m.ckpt", both)])
    modules = from_official(found, **settings)
    assert set(modules) == {"network", "potential"}
    assert same_velocity(modules["potential"], potential)
    assert config_of(found, settings)["trainer"]["potential"]


@pytest.mark.parametrize("kind", ["molgen", "tsgen"])
def test_every_key_is_accounted_for(kind):
    _, state = made(kind)
    for key in state:
        if key.startswith(("cond_to_emb", "edge_block.rbf_")) and kind == "molgen":
            continue  # the published network never uses these
        if key in ("decoder.Oh", "edge_block.tp.output_mask"):
            continue
        with pytest.raises(DataError):
            from_official({k: v for k, v in state.items() if k != key})
    with pytest.raises(DataError, match=r"has no place for: encoder\.extra"):
        from_official(state | {"encoder.extra": torch.zeros(1)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"decoder.Oh": torch.zeros(12, 1)}), "either scalars or vectors"),
        (lambda s: s.update({"encoder.phi_s.mlp.0.bias": torch.zeros(7)}), "should be .* and is"),
        (lambda s: s.clear(), "processor.convs.0"),
    ],
)
def test_a_network_of_another_kind_is_refused(change, message):
    _, state = made("tsgen")
    change(state)
    with pytest.raises(DataError, match=message):
        from_official(state)


def test_bad_files_are_refused(tmp_path):
    (tmp_path / "no.ckpt").write_bytes(b"nothing at all")
    with pytest.raises(DataError, match=r"no\.ckpt"):
        read_official([tmp_path / "no.ckpt"])
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match=r"list\.pt holds a list"):
        read_official([tmp_path / "list.pt"])
    with pytest.raises(DataError, match="one file a checkpoint, not 2"):
        read_official([tmp_path / "list.pt"] * 2)
