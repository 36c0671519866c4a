"""Official checkpoints (lazaratan/meta-flow-matching, Lightning).

The Fourier frequencies B of the field are no part of such a file: they were a plain attribute. Without them the weights
mean nothing, so they come beside the checkpoint (a second file with an array ``B``), or from the seed that the training
was started with, which is a guess, and warned of.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from headwater import DataError
from headwater.unpickling import Stub, load_official
from torch import Tensor, nn

from headwater_flow_meta.networks import ICNN, PopulationEmbedding, VelocityField

__all__ = ["config_of", "from_official", "read_official"]

PREFIXES = ("model.", "module.", "ema_model.")


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a Lightning checkpoint, or a state dict; and a file with ``B``, if one is given beside it.

    Raises:
        DataError: neither holds weights.
    """
    state: dict[str, Tensor] = {}
    frequencies = None
    for path in paths:
        content = load_official(path)
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        if isinstance(content, Tensor):
            content = {"B": content}
        if isinstance(content, Stub | nn.Module) or not isinstance(content, Mapping):
            raise DataError(f"{path} holds a {type(content).__name__}, not a state dict")
        tensors = {str(k).removeprefix("sd/"): v for k, v in content.items() if isinstance(v, Tensor)}
        if "B" in tensors:
            frequencies = tensors.pop("B")
        state |= {_bare(k): v for k, v in tensors.items() if _wanted(_bare(k))}
    if not state:
        raise DataError(f"{', '.join(map(str, paths))} holds no weights of a flow, an embedding or an ICNN")
    return state, {} if frequencies is None else {"frequencies": frequencies}


def _bare(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _wanted(key: str) -> bool:
    return re.match(r"(gcn_convs|decoder|net|f|g)\.", key) is not None


def _linear(layer: Any, weight: Tensor, bias: Tensor | None, name: str) -> None:
    """Put weights into a layer, checked."""
    if weight.shape != layer.weight.shape or (bias is not None and bias.shape != layer.bias.shape):
        raise DataError(f"{name} has the shape {tuple(weight.shape)}, where {tuple(layer.weight.shape)} fits")
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)


class _State:
    """A state dict whose keys are taken one by one, so that none is left unnoticed."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.rest = dict(state)

    def take(self, key: str) -> Tensor:
        if key not in self.rest:
            raise DataError(f"the checkpoint lacks {key}")
        return self.rest.pop(key)

    def count(self, pattern: str) -> int:
        """How many numbers 0, 1, ... the keys of a pattern with one group have."""
        found = {int(m[1]) for key in self.rest if (m := re.fullmatch(pattern, key))}
        return len(found)

    def done(self) -> None:
        if self.rest:
            raise DataError(
                f"the checkpoint has keys that belong to no known network: {', '.join(sorted(self.rest)[:5])}"
            )


def _is_icnn(state: Mapping[str, Tensor]) -> bool:
    return any(re.match(r"[fg]\.[WA]\.", key) for key in state)


def _sizes(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of field and embedding that tensors and hyperparameters tell."""
    root = "decoder" if any(key.startswith("decoder.") for key in state) else "net"
    skips = f"{root}.input_layer.weight" in state
    reading = _State(state)
    if skips:
        hidden_layers = reading.count(rf"{root}\.hidden_layers\.(\d+)\.weight") + 1
        first, last = f"{root}.input_layer", f"{root}.output_layer"
    else:
        numbers = sorted({int(m[1]) for key in state if (m := re.fullmatch(rf"{root}\.(\d+)\.weight", key))})
        if numbers != list(range(0, 2 * len(numbers), 2)) or len(numbers) < 2:
            raise DataError(f"the layers of {root} are numbered {numbers}, where 0, 2, 4, ... is the official layout")
        hidden_layers, first, last = len(numbers) - 1, f"{root}.0", f"{root}.{numbers[-1]}"
    for key in (f"{first}.weight", f"{last}.weight"):
        if key not in state:
            raise DataError(f"the checkpoint lacks {key}")
    hidden, inputs = state[f"{first}.weight"].shape
    dim = state[f"{last}.weight"].shape[0]
    convolutions = reading.count(r"gcn_convs\.(\d+)\.lin\.weight")
    width = state["gcn_convs.0.lin.weight"].shape[0] if convolutions else 0
    labels = state["gcn_convs.0.lin.weight"].shape[1] - dim if convolutions else 0
    frequencies = hyperparameters.get("frequencies")
    space = frequencies.shape[1] if frequencies is not None else int(hyperparameters.get("space_features", 128))
    condition = hyperparameters.get("condition")
    time = hyperparameters.get("time_features")
    rest = inputs - width - 2 * space - dim  # the time's features and the condition's columns
    if time is None:
        time = 128 if condition is None else rest - int(condition)
    condition = rest - int(time) if condition is None else int(condition)
    if condition < 0 or labels < 0 or rest != condition + int(time) or int(time) < 4:
        raise DataError(
            f"{first}.weight has {inputs} inputs, of which {width} are the embedding, {2 * space} the position's "
            f"features and {dim} the position; {rest} are left for time and condition: set official.time_features and "
            "official.space_features"
        )
    return {
        "root": root, "skips": skips, "hidden": hidden, "layers": hidden_layers, "dim": dim, "width": width,
        "convolutions": convolutions, "labels": labels, "condition": condition, "time": int(time), "space": space,
    }  # fmt: skip


def from_official(state: Mapping[str, Tensor], **hyperparameters: Any) -> dict[str, nn.Module]:
    """The modules ``field`` and ``embedding``, or ``f`` and ``g``, with the official weights.

    Args:
        state: with or without the prefix ``model.``.
        hyperparameters: ``frequencies`` (D, F), the matrix B, or ``seed``, by which it is drawn anew; ``neighbours``
            (50) and ``official_linear`` of the embedding; ``time_features``, ``space_features`` or ``condition`` where
            the tensors alone do not tell.

    Raises:
        DataError: a key or shape does not belong to the official layout, or nothing says what B was.
    """
    state = {_bare(key): value for key, value in state.items()}
    if _is_icnn(state):
        return _icnn(state)
    sizes = _sizes(state, hyperparameters)
    reading = _State(state)
    field = VelocityField(
        sizes["dim"], sizes["width"], sizes["condition"], sizes["hidden"], sizes["layers"], sizes["skips"],
        sizes["time"], sizes["space"],
    )  # fmt: skip
    root = sizes["root"]
    if sizes["skips"]:
        names = ["input_layer", *(f"hidden_layers.{i}" for i in range(sizes["layers"] - 1)), "output_layer"]
    else:
        names = [str(2 * i) for i in range(sizes["layers"] + 1)]
    for layer, name in zip((field.first, *field.hidden, field.last), names, strict=True):
        key = f"{root}.{name}"
        _linear(layer, reading.take(f"{key}.weight"), reading.take(f"{key}.bias"), key)
    field.frequencies.copy_(_frequencies(field, hyperparameters))
    modules: dict[str, nn.Module] = {"field": field}
    if sizes["convolutions"]:
        embedding = PopulationEmbedding(
            sizes["dim"], sizes["labels"], sizes["width"], sizes["convolutions"],
            int(hyperparameters.get("neighbours", 50)), bool(hyperparameters.get("official_linear", False)),
        )  # fmt: skip
        for i, layer in enumerate(embedding.layers):
            key = f"gcn_convs.{i}"
            _linear(layer, reading.take(f"{key}.lin.weight"), reading.take(f"{key}.bias"), key)
        modules["embedding"] = embedding
    reading.done()
    return modules


def _frequencies(field: VelocityField, hyperparameters: Mapping[str, Any]) -> Tensor:
    given = hyperparameters.get("frequencies")
    if given is not None:
        if given.shape != field.frequencies.shape:
            raise DataError(f"B has the shape {tuple(given.shape)}, where {tuple(field.frequencies.shape)} fits")
        return torch.as_tensor(given)
    if "seed" not in hyperparameters:
        raise DataError(
            "an official checkpoint does not hold the Fourier matrix B of its field, without which its weights mean "
            "nothing: pass a second file with an array B, or set official.seed to the seed of its training"
        )
    print(
        f"B is drawn from the seed {hyperparameters['seed']}; it is the official one only if that training drew "
        "nothing before it: compare a prediction before you trust it",
        file=sys.stderr,
    )
    generator = torch.Generator().manual_seed(int(hyperparameters["seed"]))
    return 0.01 * torch.randn(field.frequencies.shape, generator=generator)


def _icnn(state: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    reading = _State(state)
    modules: dict[str, nn.Module] = {}
    for name in sorted({key.partition(".")[0] for key in state}):
        layers = reading.count(rf"{name}\.A\.(\d+)\.weight")
        if layers < 2:
            raise DataError(f"the checkpoint lacks {name}.A.0.weight")
        first = [reading.rest.get(f"{name}.A.{i}.weight") for i in range(layers)]
        if any(a is None for a in first):
            raise DataError(f"the layers of {name}.A are not numbered from 0 on")
        widths = [int(a.shape[0]) for a in first if a is not None]
        assert first[0] is not None
        net = ICNN(int(first[0].shape[1]), widths[:-1])
        for i, layer in enumerate(net.A):
            key = f"{name}.A.{i}"
            _linear(layer, reading.take(f"{key}.weight"), reading.take(f"{key}.bias"), key)
        for i, layer in enumerate(net.W):
            _linear(layer, reading.take(f"{name}.W.{i}.weight"), None, f"{name}.W.{i}")
        modules[name] = net
    reading.done()
    if set(modules) != {"f", "g"}:
        raise DataError(f"CellOT has two networks, f and g; the checkpoint holds {', '.join(modules)}")
    return modules


def config_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the weights belong to.

    CellOT's, f and g, are converted with ``--stage icnn``.
    """
    if _is_icnn(state):
        widths = [state[f"f.A.{i}.weight"].shape[0] for i in range(len([k for k in state if re.match(r"f\.W\.", k)]))]
        return {"trainer": {"widths": widths}}
    sizes = _sizes(state, hyperparameters)
    trainer = {
        "hidden": sizes["hidden"], "layers": sizes["layers"], "skips": sizes["skips"],
        "time_features": sizes["time"], "space_features": sizes["space"],
    }  # fmt: skip
    if sizes["convolutions"]:
        trainer |= {
            "model": "mfm", "embedding_width": sizes["width"], "embedding_layers": sizes["convolutions"],
            "neighbours": int(hyperparameters.get("neighbours", 50)),
            "official_linear": bool(hyperparameters.get("official_linear", False)),
        }  # fmt: skip
    else:
        treatments = int(hyperparameters.get("treatments", 0))
        trainer["model"] = "cgfm" if sizes["condition"] > treatments else "fm"
    return {"trainer": trainer}
