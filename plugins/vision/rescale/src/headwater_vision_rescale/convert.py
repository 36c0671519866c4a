"""Official checkpoints: IRN (x2, x4), HCFlow (x4 rescaling) and HiNet state dicts to the networks of this package."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from headwater.errors import DataError, UsageError
from headwater.unpickling import load_official
from torch import Tensor, nn

from headwater_vision_rescale.hcflow import HCFlow
from headwater_vision_rescale.networks import HidingNet, RescalingNet

__all__ = ["config_of", "from_official", "read_official", "stage_of", "widened"]

State = Mapping[str, Tensor]


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one state dict; HiNet's file holds it under ``net``.

    Raises:
        DataError: there are several files, or the file holds no state dict of tensors.
    """
    if len(paths) != 1:
        raise DataError(f"one checkpoint file is needed; {len(paths)} were given")
    content = load_official(paths[0])
    if isinstance(content, Mapping) and isinstance(content.get("net"), Mapping):
        content = content["net"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise DataError(f"{paths[0]} holds no state dict of tensors")
    state = {re.sub(r"^(module\.)?(model\.)?", "", k): v for k, v in content.items() if "tmp_var" not in k}
    _family(state)
    return state, {}


def _family(state: State) -> str:
    for prefix, family in (("operations.0.", "irn"), ("flow.layers.0.", "hcflow"), ("inv1.", "hinet")):
        if any(key.startswith(prefix) for key in state):
            return family
    first = next(iter(state), "nothing")
    raise DataError(f"the checkpoint is none of IRN, HCFlow or HiNet: it begins with {first!r}")


def stage_of(state: State, hyperparameters: Mapping[str, Any]) -> str:
    """The stage that trains this kind of network."""
    return {"irn": "dlv", "hcflow": "hcflow", "hinet": "hide"}[_family(state)]


def config_of(state: State, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the stage whose network has these sizes."""
    family = _family(state)
    sizes = {"irn": _irn_sizes, "hcflow": _hcflow_sizes, "hinet": _hinet_sizes}[family](state)
    if family == "irn":
        return {"trainer": {**sizes, "zd_channels": int(hyperparameters.get("zd_channels", 0))}}
    return {"trainer": sizes}


def from_official(state: State, **hyperparameters: Any) -> dict[str, nn.Module]:
    """The network of a state dict; ``zd_channels`` widens an IRN to a DLV-IRN that does the same where z_d = 0.

    Raises:
        DataError: a key is missing, left over, or of another shape.
    """
    known = {"zd_channels"} if _family(state) == "irn" else set()
    unknown = set(hyperparameters) - known
    if unknown:
        raise UsageError(f"official.{min(unknown)} is no setting; known: {', '.join(known) or 'none'}")
    family = _family(state)
    if family == "irn":
        return {"rescaler": _irn(state, int(hyperparameters.get("zd_channels", 0)))}
    if family == "hcflow":
        return {"rescaler": _loaded(HCFlow(**_hcflow_sizes(state)), _hcflow_names(state))}
    names = {"r": "H", "y": "G", "f": "F"}
    renamed = {
        re.sub(r"^inv(\d+)\.([ryf])\.", lambda m: f"operations.{int(m[1]) - 1}.{names[m[2]]}.", k): v
        for k, v in state.items()
    }
    return {"hider": _loaded(HidingNet(**_hinet_sizes(state)), renamed)}


def _shape(state: State, key: str) -> torch.Size:
    if key not in state:
        raise DataError(f"the checkpoint lacks {key}")
    return state[key].shape


def _loaded(module: nn.Module, state: State) -> nn.Module:
    wanted = module.state_dict()
    missing, extra = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    if missing or extra:
        said = [f"{what} {sorted(keys)[0]}" for what, keys in (("lacks", missing), ("has also", extra)) if keys]
        raise DataError(f"the checkpoint {' and '.join(said)} ({len(missing)} missing, {len(extra)} left over)")
    for key, value in state.items():
        if value.shape != wanted[key].shape:
            raise DataError(f"{key} is {tuple(value.shape)}; {tuple(wanted[key].shape)} is needed")
    module.load_state_dict(dict(state))
    return module


def _check_haar(state: State) -> dict[str, Tensor]:
    """Leave out the fixed Haar filters, after a look whether they are the ones computed here."""
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).view(4, 1, 2, 2)
    kept = {}
    for key, value in state.items():
        if not key.endswith(".haar_weights"):
            kept[key] = value
        elif not torch.equal(value.float(), signs.repeat(len(value) // 4, 1, 1, 1)):
            raise DataError(f"{key} holds other filters than Haar's")
    return kept


# IRN


def _irn_sizes(state: State) -> dict[str, Any]:
    numbers = sorted({int(m[1]) for key in state if (m := re.match(r"operations\.(\d+)\.", key))})
    steps = [i for i in numbers if f"operations.{i}.haar_weights" in state]
    if not steps or steps[0] != 0:
        raise DataError("the checkpoint does not begin with a Haar step; only IRN x2, x4 and x8 are converted")
    counts = [b - a - 1 for a, b in zip(steps, [*steps[1:], numbers[-1] + 1], strict=True)]
    growth = _shape(state, "operations.1.F.conv1.weight")[0]
    return {"scale": 2 ** len(steps), "couplings": counts, "growth": growth}


def _irn(state: State, zd_channels: int) -> nn.Module:
    net = _loaded(RescalingNet(**_irn_sizes(state)), _check_haar(state))
    return net if zd_channels == 0 else widened(net, zd_channels)  # type: ignore[arg-type]


def widened(net: RescalingNet, zd_channels: int) -> RescalingNet:
    """An IRN as a DLV-IRN whose weights for the new channels are zero: it does the same where z_d = 0.

    The small image, the latents of the old channels and, for these, the restored image are those of ``net``. Each
    Haar step has the old channels of a band first, then the new ones, so old channel c of b in a band becomes
    channel c of b' > b.
    """
    levels = list(net.couplings())
    growth = len(levels[0][0].F.get_parameter("conv1.bias"))
    made = RescalingNet(net.scale, [len(level) for level in levels], growth=growth, zd_channels=zd_channels)
    old, new = torch.arange(3), 3 + zd_channels
    width = 3
    for level, wide in zip(levels, made.couplings(), strict=True):
        # where the old channels are among the new ones, after this Haar step
        old = torch.cat([old + band * new for band in range(4)])
        width, new = 4 * width, 4 * new
        for a, b in zip(level, wide, strict=True):
            _widen(a.F, b.F, old[3:] - 3, None)
            _widen(a.G, b.G, None, old[3:] - 3)
            _widen(a.H, b.H, None, old[3:] - 3)
    return made


def _widen(narrow: nn.Module, wide: nn.Module, inputs: Tensor | None, outputs: Tensor | None) -> None:
    """Copy a dense block; ``inputs`` and ``outputs`` are the places of the old channels among the new ones."""
    with torch.no_grad():
        for k in range(1, 6):
            a, b = getattr(narrow, f"conv{k}"), getattr(wide, f"conv{k}")
            own = k < 5 or outputs is None
            rows = torch.arange(a.out_channels) if own or outputs is None else outputs
            columns = torch.arange(a.in_channels)
            if inputs is not None:
                gained = b.in_channels - a.in_channels
                columns = torch.cat([inputs, torch.arange(len(inputs), a.in_channels) + gained])
            b.weight.zero_()
            b.bias.zero_()
            b.weight[rows[:, None], columns] = a.weight
            b.bias[rows] = a.bias


# HCFlow


def _layers(state: State) -> tuple[list[int], list[int]]:
    """The numbers of the layers that are steps of the main flow, for the fine and the coarse level."""
    numbers = {int(m[1]) for k in state if (m := re.match(r"flow\.layers\.(\d+)\.actnorm\.bias", k))}
    haars = sorted(int(m[1]) for k in state if (m := re.match(r"flow\.layers\.(\d+)\.haar_weights", k)))
    if len(haars) != 2:
        raise DataError(f"the checkpoint has {len(haars)} levels; HCFlow for rescaling by 4 has two")
    fine, coarse = sorted(n for n in numbers if n < haars[1]), sorted(n for n in numbers if n > haars[1])
    return fine, coarse


def _count(state: State, pattern: str) -> int:
    return len({m[1] for key in state if (m := re.match(pattern, key))})


def _hcflow_sizes(state: State) -> dict[str, Any]:
    fine, coarse = _layers(state)
    conditional = [_count(state, rf"flow\.level{i}_condFlow\.additional_flow_steps\.(\d+)\.") for i in range(2)]
    base = "flow.level1_condFlow."
    return {
        "steps": [len(fine), len(coarse)],
        "conditional_steps": conditional,
        "growth": _shape(state, f"flow.layers.{fine[0]}.affine.f.conv1.weight")[0],
        "width": _shape(state, base + "additional_flow_steps.0.affine.f.conv1.weight")[0],
        "features": _shape(state, base + "conv_first.weight")[0],
        "feature_growth": _shape(state, base + "RRDB_trunk0.0.RDB1.conv1.weight")[0],
        "feature_blocks": [_count(state, rf"flow\.level1_condFlow\.RRDB_trunk{i}\.(\d+)\.") for i in range(2)],
    }


def _hcflow_names(state: State) -> dict[str, Tensor]:
    """Official names to those of :class:`HCFlow`."""
    place = {n: f"main.{level}.{k}" for level, steps in enumerate(_layers(state)) for k, n in enumerate(steps)}
    found = {}
    for key, value in _check_haar(state).items():
        name = re.sub(r"^flow\.layers\.(\d+)\.", lambda m: f"{place.get(int(m[1]), f'layer {m[1]}')}.", key)
        name = re.sub(r"^flow\.level(\d)_condFlow\.", r"conditional.\1.", name)
        name = name.replace("additional_flow_steps.", "steps.").replace(".permute.weight", ".weight")
        name = name.replace(".affine.f.", ".f.").replace("RRDB_trunk", "trunk")
        name = re.sub(r"^(conditional\.\d)\.f\.", r"\1.prior.", name)
        name = re.sub(r"\.RDB(\d)\.", lambda m: f".f.{int(m[1]) - 1}.f.", name)
        found[name] = value
    return found


# HiNet


def _hinet_sizes(state: State) -> dict[str, Any]:
    return {
        "couplings": _count(state, r"inv(\d+)\."),
        "growth": _shape(state, "inv1.f.conv1.weight")[0],
        "zd_channels": _shape(state, "inv1.f.conv1.weight")[1] - 12,
    }
