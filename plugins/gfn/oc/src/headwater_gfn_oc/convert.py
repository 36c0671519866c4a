"""Checkpoints of the published explorer (ling-pan/GAFN): its policy, its curiosity, its log Z.

There is no published checkpoint of the outcome-conditioned network itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater import DataError
from headwater.unpickling import load_official
from headwater_gfn.networks import MLPPolicy
from torch import Tensor, nn

from headwater_gfn_oc.networks import Curiosity

__all__ = ["config_of", "from_official", "read_official"]

POLICY = {f"{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}
CURIOSITY = {f"{net}.{name}" for net in ("random_target_network", "predictor_network") for name in POLICY}
LOG_Z = ("Z", "logZ", "log_Z", "log_z")


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read files written by ``torch.save`` or safetensors: the state dicts of the policy, of the curiosity, and Z.

    They may lie in one file or in several, and under keys of their own.

    Raises:
        DataError: a file holds something else, or two files hold the same key.
    """
    state: dict[str, Tensor] = {}
    for path in paths:
        content = load_official(path)
        if isinstance(content, Tensor):
            content = {"Z": content}
        if not isinstance(content, Mapping):
            raise DataError(f"{path} holds a {type(content).__name__}, not a state dict")
        for name, value in content.items():
            for key, tensor in value.items() if isinstance(value, Mapping) else ((str(name), value),):
                if not isinstance(tensor, Tensor):
                    raise DataError(f"{path}: {key} is a {type(tensor).__name__}, not a tensor")
                if key in state:
                    raise DataError(f"{path}: {key} is given twice")
                state[key] = tensor
    return state, {}


def _sizes(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """D and H of the grid, every key and shape checked."""
    extra = {name for name in state if name in LOG_Z}
    rest = set(state) - POLICY - extra
    missing = POLICY - set(state)
    if missing or rest not in (set(), CURIOSITY):
        odd = sorted(missing or rest ^ CURIOSITY)
        raise DataError(f"this is no explorer of the published layout (0.weight ... 4.bias): {', '.join(odd[:4])}")
    inputs, outputs = state["0.weight"].shape[1], state["4.weight"].shape[0]
    d = (outputs - 2) // 2
    shapes = {"0.bias": state["0.weight"].shape[:1], "2.weight": (state["2.bias"].shape[0], state["0.weight"].shape[0]),
              "4.weight": (2 * d + 2, state["2.weight"].shape[0]), "4.bias": (outputs,)}  # fmt: skip
    for name, shape in shapes.items():
        if tuple(state[name].shape) != tuple(shape):
            raise DataError(f"{name} has the shape {tuple(state[name].shape)}, not {tuple(shape)}")
    if d < 1 or inputs % d:
        raise DataError(
            f"the policy has {inputs} inputs and {outputs} outputs; D coordinates of H values take D H and 2 D + 2"
        )
    return d, inputs // d


def from_official(state: Mapping[str, Tensor], **hyperparameters: Any) -> dict[str, nn.Module]:
    """``explorer``, and ``curiosity`` and ``scalars`` where the state has them; sizes are inferred.

    Raises:
        DataError: a key or shape does not belong to the published layout.
    """
    d, side = _sizes(state)
    hidden = (state["0.weight"].shape[0], state["2.weight"].shape[0])
    explorer = MLPPolicy(d * side, d + 1, d, hidden, "leaky-relu")
    names = {"trunk.0": "0", "trunk.2": "2", "head": "4"}
    explorer.load_state_dict({f"{o}.{p}": state[f"{n}.{p}"] for o, n in names.items() for p in ("weight", "bias")})
    modules: dict[str, nn.Module] = {"explorer": explorer}
    if set(state) >= CURIOSITY:
        first, last = state["predictor_network.0.weight"], state["predictor_network.4.weight"]
        modules["curiosity"] = Curiosity(first.shape[1], first.shape[0], last.shape[0])
        try:
            modules["curiosity"].load_state_dict({name: state[name] for name in CURIOSITY})
        except RuntimeError as error:
            raise DataError(f"the curiosity networks do not fit together: {str(error).splitlines()[-1]}") from error
    log_z = next((state[name] for name in LOG_Z if name in state), None)
    if log_z is not None:
        modules["scalars"] = nn.ParameterDict({"log_z": nn.Parameter(log_z.detach().reshape(()).clone())})
    return modules


def config_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The grid that the explorer walks, and the mode that it belongs to."""
    d, side = _sizes(state)
    return {"task": {"dimensions": d, "side": side}, "trainer": {"mode": "paper", "explorer": "gafn"}}
