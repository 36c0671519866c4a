"""Official checkpoints (yhangchen/OP-GFN) of the objective grid, of NAS-Bench-201 and of strings."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import DataError
from headwater.unpickling import load_official
from headwater_gfn.child_scorer import ChildScorer
from headwater_gfn.networks import MLPPolicy
from torch import Tensor, nn

from headwater_gfn_op.networks import PreferencePolicy
from headwater_gfn_op.tasks.nas import EDGES, FREE

__all__ = ["config_of", "from_official", "read_official", "task_of"]

STRINGS = {32: ("tfbind8", 4, 8), 55: ("qm9-strings", 11, 5), 108: ("seh-strings", 18, 6)}
"""Features of a string, to the task, its letters and its length."""

GRID = ("branin", "currin", "shubert", "beale")
LAYER = re.compile(r"(model|Z)\.(\d+)\.(weight|bias)")
PARTS = {"policy_fwd.0": "forward_encoder", "policy_fwd.1": "forward_scorer"} | {
    "policy_back.0": "backward_encoder",
    "policy_back.1": "backward_scorer",
}
NAS_OUTPUTS = {FREE * EDGES + 1: "pf", FREE * EDGES: "pb", 1: "flow"}


# Reading


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint: one file of the grid or of strings, or one file for each estimator of NAS-Bench-201.

    Names are made uniform: ``model.0.weight``, ``Z.0.weight`` (grid), ``pf.torso.0.weight`` (NAS),
    ``policy_fwd.0.net.0.weight`` (strings).

    Raises:
        DataError: a file holds none of these.
    """
    contents = [load_official(path) for path in paths]
    if all(isinstance(c, Mapping) and "last_layer.weight" in c for c in contents):
        return _read_nas(paths, contents), {}
    if len(paths) != 1:
        raise DataError(f"gfn-op has one file a checkpoint of a grid or of strings, not {len(paths)}")
    [content], [path] = contents, paths
    if isinstance(content, Mapping) and isinstance(content.get("params"), list | tuple):
        return _name_arrays(content["params"], path), {}
    if isinstance(content, Mapping) and "policy_fwd" in content:
        return _read_strings(content, path), {}
    if isinstance(content, Mapping) and any(LAYER.fullmatch(str(k)) for k in content):
        return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}, {}
    raise DataError(
        f"{path} is no checkpoint of OP-GFN: it needs 'params' (grid), 'last_layer.weight' (NAS) or 'policy_fwd' "
        "(strings)"
    )


def _name_arrays(arrays: Sequence[Any], path: Path) -> dict[str, Tensor]:
    """Names for the grid's list of arrays: weights and biases of the policy's layers, then of those of Z."""
    tensors = [v if isinstance(v, Tensor) else torch.from_numpy(np.asarray(v)) for v in arrays]
    if len(tensors) % 2 or any(
        w.ndim != 2 or b.shape != w.shape[:1] for w, b in zip(*[iter(tensors)] * 2, strict=True)
    ):
        raise DataError(f"{path}: 'params' must be weights and biases in turn")
    half = len(tensors) // 2
    if half % 2:
        raise DataError(f"{path}: 'params' must be as many layers of the policy as of Z, not {half} in all")
    state: dict[str, Tensor] = {}
    for part, own in (("model", tensors[:half]), ("Z", tensors[half:])):
        for i, tensor in enumerate(own):
            state[f"{part}.{i - i % 2}.{'bias' if i % 2 else 'weight'}"] = tensor
    return state


def _read_nas(paths: Sequence[Path], contents: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path, content in zip(paths, contents, strict=True):
        name = NAS_OUTPUTS.get(len(content["last_layer.weight"]))
        if name is None or f"{name}.last_layer.weight" in state:
            raise DataError(
                f"{path}: an estimator with {len(content['last_layer.weight'])} outputs; there is one each with 31 "
                "(P_F), 30 (P_B) and 1 (log F)"
            )
        state |= {f"{name}.{k}": v for k, v in content.items() if isinstance(v, Tensor)}
    return state


def _read_strings(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name in ("policy_fwd", "policy_back"):
        pair = content.get(name)
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(p, Mapping) for p in pair):
            raise DataError(f"{path}: {name!r} must hold the state dicts of an encoder and a scorer")
        for i, part in enumerate(pair):
            state |= {f"{name}.{i}.{k}": v for k, v in part.items() if isinstance(v, Tensor)}
    return state


# What it is


def _kind(state: Mapping[str, Tensor]) -> str:
    if "model.0.weight" in state:
        return "grid"
    return "nas" if "pf.last_layer.weight" in state else "strings"


def task_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> str:
    """The task that the weights belong to."""
    kind = _kind(state)
    if kind == "strings":
        return str(_strings(state)[0])
    return "objective-grid" if kind == "grid" else "nas-bench-201"


def _strings(state: Mapping[str, Tensor]) -> tuple[str, int, int]:
    first = state.get("policy_fwd.0.net.0.weight")
    if first is None or first.ndim != 2 or first.shape[1] not in STRINGS:
        found = "nothing" if first is None else f"{first.shape[1]} features"
        raise DataError(f"no string task of OP-GFN: {found}; they have 32 (TFBind8), 55 (QM9) or 108 (sEH)")
    return STRINGS[first.shape[1]]


def _grid_sizes(state: Mapping[str, Tensor]) -> tuple[int, int, list[int], list[int]]:
    """Side, objectives, and the numbers of the linear layers of the policy and of Z; every key accounted for."""
    layers = {
        part: sorted({int(k.split(".")[1]) for k in state if k.startswith(f"{part}.")}) for part in ("model", "Z")
    }
    expected = {f"{p}.{i}.{w}" for p, numbers in layers.items() for i in numbers for w in ("weight", "bias")}
    odd = set(state) ^ expected
    if odd or any(len(n) < 2 or n != list(range(0, 2 * len(n), 2)) for n in layers.values()):
        names = ", ".join(sorted(odd)[:5]) or "a layer is missing"
        raise DataError(f"this is no official grid network (model.0.weight, ..., Z.0.weight, ...): {names}")
    for part, numbers in layers.items():
        for before, after in pairwise(numbers):
            if state[f"{part}.{after}.weight"].shape[1] != state[f"{part}.{before}.weight"].shape[0]:
                raise DataError(f"the shape of {part}.{after}.weight does not fit the layer before")
    d = state["Z.0.weight"].shape[1] - 1
    side, rest = divmod(state["model.0.weight"].shape[1] - d - 1, 2)
    if d < 1 or rest or side < 3 or len(state[f"model.{layers['model'][-1]}.weight"]) != 3:
        raise DataError(f"this is no network of a two-dimensional grid with {d} objectives and 3 actions")
    return side, d, layers["model"], layers["Z"]


# Making modules


def from_official(state: Mapping[str, Tensor], **hyperparameters: Any) -> dict[str, nn.Module]:
    """The policy with the official weights; sizes are inferred.

    Args:
        state: as :func:`read_official` names it.
        hyperparameters: ``condition``, for the grid: ``"ones"`` (the order-preserving runs: the constant input becomes
            part of the first bias) or ``"preference"`` (the preference-conditioned baseline, which keeps it).

    Raises:
        DataError: a key, shape or hyperparameter does not belong to the official layout.
    """
    kind = _kind(state)
    unknown = set(hyperparameters) - ({"condition"} if kind == "grid" else set())
    if unknown or hyperparameters.get("condition", "ones") not in ("ones", "preference"):
        raise DataError(
            "the settings of an official checkpoint are condition = 'ones' or 'preference', for the grid; not "
            f"{dict(hyperparameters)}"
        )
    if kind == "grid":
        return {"policy": _grid_policy(state, hyperparameters.get("condition", "ones"))}
    return {"policy": _nas_policy(state) if kind == "nas" else _string_policy(state)}


def _grid_policy(state: Mapping[str, Tensor], condition: str) -> nn.Module:
    side, d, numbers, z_numbers = _grid_sizes(state)
    hidden = tuple(len(state[f"model.{i}.weight"]) for i in numbers[:-1])
    extra = 3  # backward logits and log flow, which the official network has not: zero, so P_B is uniform
    inner: dict[str, Tensor] = {}
    for i in numbers[:-1]:
        inner |= {f"trunk.{i}.{w}": state[f"model.{i}.{w}"] for w in ("weight", "bias")}
    for w in ("weight", "bias"):
        last = state[f"model.{numbers[-1]}.{w}"]
        inner[f"head.{w}"] = torch.cat([last, last.new_zeros(extra, *last.shape[1:])])
    if condition == "preference":
        z_hidden = tuple(len(state[f"Z.{i}.weight"]) for i in z_numbers[:-1])
        conditioned = PreferencePolicy(2 * side, 3, 2, d, hidden, "leaky-relu", z_hidden)
        conditioned.policy.load_state_dict(inner)
        conditioned.z.load_state_dict({k.removeprefix("Z."): v for k, v in state.items() if k.startswith("Z.")})
        return conditioned
    policy = MLPPolicy(2 * side, 3, 2, hidden, "leaky-relu")
    weight = inner["trunk.0.weight"]
    inner["trunk.0.bias"] = inner["trunk.0.bias"] + weight[:, 2 * side :].sum(1)
    inner["trunk.0.weight"] = weight[:, : 2 * side]
    policy.load_state_dict(inner)
    return policy


def _nas_policy(state: Mapping[str, Tensor]) -> nn.Module:
    estimators = [name for name in NAS_OUTPUTS.values() if f"{name}.last_layer.weight" in state]
    torso = {k.removeprefix("pf."): v for k, v in state.items() if k.startswith("pf.torso.")}
    numbers = sorted({int(k.split(".")[1]) for k in torso})
    expected = {f"torso.{i}.{w}" for i in numbers for w in ("weight", "bias")}
    allowed = {f"{name}.{k}" for name in estimators for k in (*expected, "last_layer.weight", "last_layer.bias")}
    if set(state) != allowed or numbers != list(range(0, 2 * len(numbers), 2)) or not numbers:
        odd = ", ".join(sorted(set(state) ^ allowed)[:5])
        raise DataError(f"this is no official NAS network (torso.0.weight, ..., last_layer.weight): {odd}")
    for name in estimators:
        for key, value in torso.items():
            if not torch.equal(state[f"{name}.{key}"], value):
                raise DataError(f"the estimators have different {key}; they share their torso in the official code")
    hidden = tuple(len(torso[f"torso.{i}.weight"]) for i in numbers)
    if torso["torso.0.weight"].shape[1] != FREE * EDGES:
        raise DataError(f"torso.0.weight has {torso['torso.0.weight'].shape[1]} inputs; cells have {FREE * EDGES}")
    policy = MLPPolicy(FREE * EDGES, FREE * EDGES + 1, FREE * EDGES, hidden, "relu")
    found = {f"trunk.{k.removeprefix('torso.')}": v for k, v in torso.items()}
    for w in ("weight", "bias"):
        own = policy.head.state_dict()[w]
        rows = [
            state[f"{name}.last_layer.{w}"] if name in estimators else own.new_zeros(n, *own.shape[1:])
            for n, name in NAS_OUTPUTS.items()
        ]
        found[f"head.{w}"] = torch.cat(rows)
    _load(policy, found)
    return policy


def _string_policy(state: Mapping[str, Tensor]) -> nn.Module:
    _, letters, length = _strings(state)
    hidden, embedding = len(state["policy_fwd.0.net.0.weight"]), len(state.get("policy_fwd.0.net.2.weight", ()))
    if hidden != embedding:
        raise DataError(f"the encoder has hidden layers of {hidden} and encodings of {embedding}; both must be equal")
    policy = ChildScorer(letters, length, "prepend-append", hidden, "leaky-relu")
    found: dict[str, Tensor] = {k: torch.zeros_like(v) for k, v in policy.flow.state_dict(prefix="flow.").items()}
    for key, value in state.items():
        part = next((p for p in PARTS if key.startswith(f"{p}.net.")), None)
        if part is None:
            raise DataError(f"{key} is no weight of an official string policy")
        found[f"{PARTS[part]}.{key.removeprefix(f'{part}.net.')}"] = value
    _load(policy, found)
    return policy


def _load(module: nn.Module, state: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"the weights do not fit the official layout: {' '.join(str(error).split())[:300]}") from error


def config_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the weights belong to; the tables of NAS-Bench-201 and of strings are the user's to name."""
    kind = _kind(state)
    if kind == "grid":
        side, d, numbers, z_numbers = _grid_sizes(state)
        hidden = [len(state[f"model.{i}.weight"]) for i in numbers[:-1]]
        objective = "pc-tb" if hyperparameters.get("condition") == "preference" else "op-tb"
        task = {"side": side, "objectives": list(GRID[:d])} if 1 < d <= len(GRID) else {"side": side}
        trainer = {"hidden": hidden, "activation": "leaky-relu", "objective": objective}
        trainer["z_hidden"] = [len(state[f"Z.{i}.weight"]) for i in z_numbers[:-1]]
        return {"task": task, "trainer": trainer}
    if kind == "nas":
        widths = [len(v) for k, v in sorted(state.items()) if re.fullmatch(r"pf\.torso\.\d+\.weight", k)]
        return {"trainer": {"hidden": widths, "activation": "relu", "backward": "learned"}}
    hidden = [len(state["policy_fwd.0.net.0.weight"])]
    return {
        "task": {"network": "children"},
        "trainer": {"hidden": hidden, "activation": "leaky-relu", "backward": "learned"},
    }
