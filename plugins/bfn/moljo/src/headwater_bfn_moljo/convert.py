"""Official checkpoints (AlgoMole/MolCRAFT: MolCRAFT and MolJO): a backbone, or one property predictor.

A Lightning checkpoint, whose averaged weights (``ema_state_dict``) are taken where it has them, or a plain state dict.
Sizes are read off the tensors; heads, neighbours and flow come from ``hyper_parameters`` or ``official.`` settings.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from headwater import DataError
from headwater.unpickling import load_official
from torch import Tensor, nn

from headwater_bfn_moljo.networks import CENTRES, Backbone, Predictor

__all__ = ["config_of", "from_official", "read_official"]

PREFIXES = ("dynamics.", "backbone/sd/", "sd/")
OPTIONS = ("heads", "knn", "sigma1", "beta1", "property")
PUBLISHED = {"heads": 16, "knn": 32, "sigma1": 0.03, "beta1": 1.5}
IGNORED = re.compile(r"unio2net\.(distance_expansion\.|base_block\.\d+\.distance_expansion\.|init_h_emb_layer\.)")
"""The centres of the Gaussians, which are constants, and a block that no output depends on."""

NAMES = (
    (re.compile(r"unio2net\.edge_pred_layer\.net\."), "body.gate."),
    (re.compile(r"unio2net\.base_block\.(\d+)\.x2h_layers\.0\.hk_func\.net\."), r"body.layers.\1.x2h.key."),
    (re.compile(r"unio2net\.base_block\.(\d+)\.x2h_layers\.0\.hv_func\.net\."), r"body.layers.\1.x2h.value."),
    (re.compile(r"unio2net\.base_block\.(\d+)\.x2h_layers\.0\.hq_func\.net\."), r"body.layers.\1.x2h.query."),
    (re.compile(r"unio2net\.base_block\.(\d+)\.h2x_layers\.0\.xk_func\.net\."), r"body.layers.\1.h2x.key."),
    (re.compile(r"unio2net\.base_block\.(\d+)\.h2x_layers\.0\.xv_func\.net\."), r"body.layers.\1.h2x.value."),
    (re.compile(r"unio2net\.base_block\.(\d+)\.h2x_layers\.0\.xq_func\.net\."), r"body.layers.\1.h2x.query."),
    (re.compile(r"protein_atom_emb\."), "body.protein_in."),
    (re.compile(r"ligand_atom_emb\."), "body.ligand_in."),
    (re.compile(r"(v_inference|expert_pred)\.0\."), "first."),
    (re.compile(r"(v_inference|expert_pred)\.2\."), "second."),
)  # fmt: skip
"""Official names and ours, at their beginning."""

HYPERPARAMETERS = {
    "n_heads": "heads",
    "knn": "knn",
    "sigma1_coord": "sigma1",
    "beta1": "beta1",
}


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one checkpoint; what its ``hyper_parameters`` say of heads, neighbours and flow comes with it.

    Raises:
        DataError: there is more than one file, or it holds no weights.
    """
    if len(paths) != 1:
        raise DataError(
            f"bfn-moljo has one file a network, not {len(paths)}; convert backbone and predictors one by one"
        )
    (path,) = paths
    content = load_official(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    state = content.get("ema_state_dict") or content.get("state_dict") or content
    if not isinstance(state, Mapping):
        raise DataError(f"{path}: its state_dict is a {type(state).__name__}")
    found = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not found:
        raise DataError(f"{path} holds no weights; keys: {', '.join(map(str, list(state)[:5])) or 'none'}")
    prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in found)), "")
    weights = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    settings: dict[str, Any] = {}
    for name, value in _scalars(content.get("hyper_parameters")):
        if name in HYPERPARAMETERS:
            settings.setdefault(HYPERPARAMETERS[name], value)
    return weights, settings


def _scalars(tree: Any) -> Iterator[tuple[str, Any]]:
    """All numbers of a nested configuration, by their last name."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield str(name), value
            else:
                yield from _scalars(value)
    elif hasattr(tree, "state") and isinstance(tree.state, Mapping):  # a configuration class, read as a stub
        yield from _scalars(tree.state)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names.

    Raises:
        DataError: a key is strange, or the centres of the Gaussians are others.
    """
    found = {}
    for key, value in state.items():
        if key.endswith("distance_expansion.offset") and not torch.allclose(
            value.float(), torch.tensor(CENTRES, dtype=torch.float32)
        ):
            raise DataError(f"{key} holds other centres of Gaussians than those of the published network")
        if IGNORED.match(key):
            continue
        for pattern, ours in NAMES:
            name, changed = pattern.subn(ours, key, count=1)
            if changed and pattern.match(key):
                found[name] = value
                break
        else:
            raise DataError(f"{key} does not belong to a network of MolJO")
    return found


def _network(state: Mapping[str, Tensor], heads: int | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network with the weights of ``state`` (official names), and its sizes."""
    weights = _renamed(state)
    needed = ("body.ligand_in.weight", "body.protein_in.weight", "second.weight", "body.layers.0.h2x.value.3.weight")
    missing = [name for name in needed if name not in weights]
    if missing:
        raise DataError(f"this is no network of MolJO: the weights of {missing[0]} are not in it")
    width = weights["body.ligand_in.weight"].shape[0] + 1
    found_heads = weights["body.layers.0.h2x.value.3.weight"].shape[0]
    if heads is not None and heads != found_heads:
        raise DataError(f"the weights have {found_heads} heads, not {heads}")
    sizes = {
        "types": weights["body.ligand_in.weight"].shape[1] - 1,
        "width": width,
        "layers": 1 + max(int(m[1]) for k in weights if (m := re.match(r"body\.layers\.(\d+)\.", k))),
        "heads": found_heads,
        "features": weights["body.protein_in.weight"].shape[1],
    }
    is_predictor = any(key.startswith("expert_pred.") for key in state)
    network: nn.Module = (Predictor if is_predictor else Backbone)(**sizes)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    odd = sorted(expected.keys() ^ weights.keys())
    if odd:
        raise DataError(f"the weights do not fit: {', '.join(odd[:3])} too many or missing")
    wrong = [k for k, shape in expected.items() if tuple(weights[k].shape) != shape]
    if wrong:
        raise DataError(f"{wrong[0]} has the shape {tuple(weights[wrong[0]].shape)}, expected is {expected[wrong[0]]}")
    network.load_state_dict(weights)
    return network, sizes


def from_official(state: Mapping[str, Tensor], **hyperparameters: Any) -> dict[str, nn.Module]:
    """The backbone, or the predictor of ``property``, with the official weights.

    Raises:
        DataError: a key or shape does not belong to the official layout, or a predictor's property is not said.
    """
    network, _ = _network(state, hyperparameters.get("heads"))
    if isinstance(network, Backbone):
        return {"backbone": network}
    return {f"predictor_{_property(hyperparameters)}": network}


def _property(hyperparameters: Mapping[str, Any]) -> str:
    name = hyperparameters.get("property")
    if not isinstance(name, str) or not name:
        raise DataError(
            "this is a property predictor, and the file does not say of what; give it: --stage predictor "
            "--set official.property=vina (or sa, qed, ...)"
        )
    return name


def config_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the weights belong to; what is not known is as published.

    Raises:
        DataError: an option is unknown.
    """
    strange = [name for name in hyperparameters if name not in OPTIONS]
    if strange:
        raise DataError(f"official.{strange[0]} is no option of bfn-moljo; there are {', '.join(OPTIONS)}")
    network, sizes = _network(state, hyperparameters.get("heads"))
    known = PUBLISHED | {k: v for k, v in hyperparameters.items() if k != "property"}
    trainer: dict[str, Any] = {name: sizes[name] for name in ("width", "layers", "heads")} | {"knn": known["knn"]}
    if isinstance(network, Predictor):
        trainer["properties"] = [_property(hyperparameters)]
    else:
        trainer |= {"sigma1": known["sigma1"], "beta1": known["beta1"]}
    return {"trainer": trainer}
