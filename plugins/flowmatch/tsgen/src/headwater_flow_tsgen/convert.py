"""Official checkpoints of both generations (tuoping/TS-GEN and tuoping/MolGEN).

A Lightning file holds ``state_dict`` with keys under ``model.`` (and ``potential_model.``), and the command line of its
training as an ``argparse.Namespace`` under ``hyper_parameters.args``. Which generation it is, the keys tell.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from headwater import DataError
from headwater.unpickling import Stub, load_official
from torch import Tensor, nn

from headwater_flow_tsgen.networks import CHANNELS, MolGen, Potential, TSGen

__all__ = ["config_of", "from_official", "read_official"]

# Parts of the published v3 network that it never uses.
UNUSED = (
    r"cond_to_emb_[fr]\.(weight|bias)",
    r"edge_block\.(rbf_centers|rbf_gamma)",
    r"edge_block\.rbf_to_mul\.3\.\d\.(weight|bias)",
    r"edge_block\.tp\.output_mask",
)


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one Lightning checkpoint, state dict, safetensors or NPZ file.

    Returns:
        The tensors without ``model.`` in front, and the settings of the training command that came along.

    Raises:
        DataError: there is more than one file, or it holds no state dict.
    """
    if len(paths) != 1:
        raise DataError(f"flow-tsgen has one file a checkpoint, not {len(paths)}")
    content = load_official(paths[0])
    if not isinstance(content, Mapping):
        raise DataError(f"{paths[0]} holds a {type(content).__name__}, not a state dict")
    settings = _settings(content.get("hyper_parameters"))
    inner = content.get("state_dict", content)
    if not isinstance(inner, Mapping):
        raise DataError(f"{paths[0]}: state_dict is a {type(inner).__name__}, not a mapping of tensors")
    tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
    state = {}
    for key, value in tensors.items():
        if key.startswith("sd/"):
            state[key.removeprefix("sd/")] = value
        elif not any(k.startswith("sd/") for k in tensors):
            state[key.removeprefix("model.")] = value
    return state, settings


def _settings(found: Any) -> dict[str, Any]:
    """The scalars of ``hyper_parameters.args``, a Namespace that was read as a stub; nothing of it is run."""
    args = found.get("args") if isinstance(found, Mapping) else None
    if isinstance(args, Stub):
        args = getattr(args, "state", None)
    if not isinstance(args, Mapping):
        return {}
    names = ("path_type", "x0std", "weight_loss_var_x0", "ratio_conditonal")
    return {k: args[k] for k in names if isinstance(args.get(k), int | float | str)}


def from_official(state: Mapping[str, Tensor], **hyperparameters: Any) -> dict[str, nn.Module]:
    """The modules with the official weights: ``network``, and ``potential`` where the file has a potential model.

    Args:
        state: tensors by their official keys, without ``model.``; sizes are inferred from them.
        hyperparameters: the settings of the training command; ``num_heads`` where it cannot be inferred.

    Raises:
        DataError: a key is missing, left over, or of a shape that does not fit.
    """
    potential = {k.removeprefix("potential_model."): v for k, v in state.items() if k.startswith("potential_model.")}
    own = {k: v for k, v in state.items() if not k.startswith("potential_model.")}
    modules: dict[str, nn.Module] = {"network": _network(own)}
    if potential:
        modules["potential"] = _network(potential, scalar=True)
    return modules


def _is_molgen(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("edge_block.") for key in state)


class _Keys:
    """The official tensors; remembers which were asked for."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state, self.asked = state, set[str]()

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.state:
            raise DataError(f"this is no official network of TS-GEN or MolGEN: {key} is missing")
        self.asked.add(key)
        return self.state[key].detach()

    def left(self) -> list[str]:
        """What nobody asked for and has a use."""
        return sorted(k for k in self.state if k not in self.asked and not any(re.fullmatch(u, k) for u in UNUSED))


def _sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    keys = _Keys(state)
    layers = {int(k.split(".")[2]) for k in state if re.match(r"processor\.convs\.\d+\.", k)}
    if layers != set(range(len(layers))) or not layers:
        raise DataError("this is no official network of TS-GEN or MolGEN: processor.convs.0, 1, ... are not complete")
    return {
        "n_species": keys["encoder.embed_atom.weight"].shape[1],
        "d": keys["encoder.embed_atom.weight"].shape[0],
        "e": keys["encoder.embed_bond.mlp.2.weight"].shape[0],
        "layers": len(layers),
        "heads": keys["processor.convs.0.attn.edge_bias.mlp.2.weight"].shape[0],
        "ff": keys["processor.convs.0.feedforward.ffn1.mlp.0.weight"].shape[0],
    }


def _perceptron(target: str, source: str) -> list[tuple[str, str]]:
    return [
        (f"{target}.{ours}.{part}", f"{source}.{theirs}.{part}")
        for ours, theirs in (("first", "0"), ("last", "2"))
        for part in ("weight", "bias")
    ]


def _network(state: Mapping[str, Tensor], *, scalar: bool = False) -> nn.Module:
    sizes: dict[str, Any] = _sizes(state)
    keys = _Keys(state)
    dtype = keys["encoder.embed_atom.weight"].dtype
    molgen = _is_molgen(state)
    if molgen:
        if scalar or sizes.pop("e") != sizes["d"]:
            raise DataError("this is no official MolGEN network: its pair features are as wide as its atoms")
        network: Any = MolGen(**sizes)
    else:
        network = Potential(**sizes) if scalar else TSGen(**sizes)
    names = [
        *((f"atom.{part}", f"encoder.embed_atom.{part}") for part in ("weight", "bias")),
        ("frequencies", "encoder.embed_time.0.B"),
        *_perceptron("time", "encoder.embed_time.1.mlp"),
        *_perceptron("bond", "encoder.embed_bond.mlp"),
    ]
    for phi in ("phi_s", "phi_h", "phi_v"):
        names += _perceptron(phi, f"encoder.{phi}.mlp")
    for k, end in enumerate("fr"):
        names.append((f"given_h.{k}.weight", f"mask_to_emb_{end}.weight"))
        if not molgen:
            names.append((f"given_v.{k}.weight", f"v_mask_to_emb_{end}.weight"))
            for part in ("weight", "bias"):
                names.append((f"condition_h.{k}.{part}", f"cond_to_emb_{end}.{part}"))
                names.append((f"condition_v.{k}.{part}", f"v_cond_to_emb_{end}.{part}"))
    if molgen:
        for ours, theirs in (("cross_s", "phi_s_cross"), ("cross_h", "phi_h_cross"), ("fuse", "phi_fuse")):
            names += _perceptron(ours, f"encoder.{theirs}.mlp")
        for degree in range(len(CHANNELS)):
            names += _perceptron(f"edge.radial.{degree}", f"edge_block.rbf_to_mul.{degree}")
        names += [("edge.embed.0.weight", "embed_atom.0.weight")]
        names += [(f"edge.embed.2.{part}", f"embed_atom.2.{part}") for part in ("weight", "bias")]
        names += [(f"edge.{name}", f"edge_block._rbf.{name}") for name in ("means", "betas")]
    made = {ours: keys[theirs] for ours, theirs in names}
    used, unused = ("decoder.Oh", "decoder.Ov") if scalar else ("decoder.Ov", "decoder.Oh")
    made["out"] = keys[used]
    if unused in state and keys[unused].numel():
        raise DataError(
            f"{unused} has {keys[unused].numel()} numbers; a network has either scalars or vectors at its end"
        )
    for k in range(sizes["layers"]):
        made |= _layer(keys, f"layers.{k}", f"processor.convs.{k}")
    if molgen:
        made |= _tensor_product(keys)
    if left := keys.left():
        raise DataError(f"the checkpoint has keys that this network has no place for: {', '.join(left[:5])}")
    own = network.state_dict()
    for name, value in made.items():
        if own[name].shape != value.shape:
            raise DataError(f"{name} should be {tuple(own[name].shape)} and is {tuple(value.shape)} in the checkpoint")
    network.to(dtype).load_state_dict({name: value.clone() for name, value in made.items()})
    converted: nn.Module = network
    return converted


def _layer(keys: _Keys, ours: str, theirs: str) -> dict[str, Tensor]:
    """One layer; what is one product here is several matrices there."""
    attention, feed = f"{theirs}.attn", f"{theirs}.feedforward"
    names = [*_perceptron(f"{ours}.bias", f"{attention}.edge_bias.mlp")]
    for part in ("weight", "bias"):
        names += [(f"{ours}.{norm}.{part}", f"{theirs}.{norm}.{part}") for norm in ("norm1", "norm2")]
        names.append((f"{ours}.norm.{part}", f"{feed}.norm.{part}"))
        names += [(f"{ours}.outer{k}.{part}", f"{feed}.ffn{k}.mlp.2.{part}") for k in (1, 2)]
    made = {name: keys[key] for name, key in names}
    for part in ("weight", "bias"):
        made[f"{ours}.qkv.{part}"] = torch.cat([keys[f"{attention}.{w}.{part}"] for w in ("W_Q", "W_K", "W_Vh")])
        made[f"{ours}.inner.{part}"] = torch.cat([keys[f"{feed}.ffn{k}.mlp.0.{part}"] for k in (1, 2)])
    made[f"{ours}.value"] = keys[f"{attention}.W_Vv"]
    made[f"{ours}.out_h"], made[f"{ours}.out_v"] = keys[f"{attention}.W_Oh"], keys[f"{attention}.W_Ov"]
    made[f"{ours}.mix"] = torch.cat([keys[f"{feed}.W1"], keys[f"{feed}.W2"]], 1)
    return made


def _tensor_product(keys: _Keys) -> dict[str, Tensor]:
    """The weights of the published tensor product, one block a degree."""
    flat = keys["edge_block.tp.weight"].reshape(-1)
    sizes = [128 * 4 * c for c in CHANNELS]
    if len(flat) != sum(sizes):
        raise DataError(f"edge_block.tp.weight has {len(flat)} numbers, not {sum(sizes)}")
    blocks = flat.split(sizes)
    return {f"edge.weights.{k}": b.reshape(128, 4, c) for k, (b, c) in enumerate(zip(blocks, CHANNELS, strict=True))}


def config_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the weights belong to: sizes from the tensors, the rest as published."""
    own = {k: v for k, v in state.items() if not k.startswith("potential_model.")}
    sizes, molgen = _sizes(own), _is_molgen(own)
    path = str(hyperparameters.get("path_type", "Linear")).lower()
    trainer: dict[str, Any] = {
        "network": "molgen" if molgen else "tsgen",
        "width": sizes["d"],
        "layers": sizes["layers"],
        "heads": sizes["heads"],
        "feed_forward": sizes["ff"],
        "path": {"gvp": "cosine", "vp": "vp"}.get(path, "linear"),
        "prior": "noise",
        "prior_scale": float(hyperparameters.get("x0std", 1.0)),
        "centred": False,
        "ot": "none",
        "potential": any(k.startswith("potential_model.") for k in state),
    }
    if not molgen:
        trainer["pair_width"] = sizes["e"]
    return {"trainer": trainer, "sampler": {"solver": "dopri5"}}
