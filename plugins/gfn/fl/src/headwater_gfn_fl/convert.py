"""Official checkpoints (ling-pan/FL-GFN).

Of the set task: a perceptron whose output is [P_F | P_B | log flow]. Of the molecule task: a gzipped pickle of the
parameters of the block-graph network.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater import DataError
from headwater.unpickling import load_official
from headwater_gfn.networks import MLPPolicy
from headwater_gfn.tasks.fragments import convert as molecules
from torch import Tensor, nn

__all__ = ["config_of", "from_official", "read_official", "task_of"]

SIZES = {30: "small", 80: "medium", 100: "large"}
LOG_Z = ("Z", "logZ", "log_Z", "log_z")


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one file written by ``torch.save``, safetensors, NPZ, or a (gzipped) pickle of a list of arrays.

    A state dict may lie under a key of its own.

    Raises:
        DataError: there is more than one file, or it holds neither of the two.
    """
    if len(paths) != 1:
        raise DataError(f"gfn-fl has one file a checkpoint, not {len(paths)}")
    content = load_official(paths[0])
    if isinstance(content, list | tuple):
        return molecules.name_arrays(content, paths[0])
    for name in ("state_dict", "model", "sd"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if isinstance(content, nn.Module) or not isinstance(content, Mapping):
        raise DataError(f"{paths[0]} holds a {type(content).__name__}, not a state dict")
    state = {str(k).removeprefix("sd/"): v for k, v in content.items() if isinstance(v, Tensor)}
    return {k: v for k, v in state.items() if re.fullmatch(r"\d+\.(weight|bias)", k) or k in LOG_Z}, {}


def _is_molecular(state: Mapping[str, Tensor]) -> bool:
    return "blockemb.weight" in state


def task_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> str:
    """The task that the weights belong to."""
    return "fragments" if _is_molecular(state) else "sets"


def _layers(state: Mapping[str, Tensor]) -> list[int]:
    """The numbers of the linear layers, checked: every key accounted for, every shape fitting the one before."""
    numbers = sorted({int(k.split(".")[0]) for k in state if k not in LOG_Z and k[0].isdigit()})
    expected = {f"{i}.{part}" for i in numbers for part in ("weight", "bias")}
    found = set(state) - set(LOG_Z)
    if found != expected or numbers != list(range(0, 2 * len(numbers), 2)) or len(numbers) < 2:
        odd = ", ".join(sorted(found ^ expected)[:5]) or ", ".join(sorted(found)[:5]) or "nothing"
        raise DataError(f"this is no official set network (0.weight, 0.bias, 2.weight, ...): {odd}")
    width = state["0.weight"].shape[1]
    for i in numbers:
        weight, bias = state[f"{i}.weight"], state[f"{i}.bias"]
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise DataError(f"the shape of {i}.weight or {i}.bias does not fit the layer before")
        width = weight.shape[0]
    if width != 2 * state["0.weight"].shape[1] + 1:
        raise DataError(
            f"the last layer has {width} outputs; with {state['0.weight'].shape[1]} items it needs two each and one"
        )
    return numbers


def from_official(state: Mapping[str, Tensor], **hyperparameters: Any) -> dict[str, nn.Module]:
    """The policy network (and log Z, for trajectory balance) with the official weights; sizes are inferred.

    Args:
        state: ``0.weight``, ``0.bias``, ``2.weight``, ...; a scalar ``Z`` where trajectory balance was trained. For
            molecules the 23 arrays by name.
        hyperparameters: for sets none is needed; ``set_size`` may be given for :func:`config_of`. For molecules those
            of :func:`headwater_gfn.tasks.fragments.convert.from_official`: ``blocks``, the path of the library.

    Raises:
        DataError: a key or shape does not belong to the official layout.
    """
    if _is_molecular(state):
        return dict(molecules.from_official(state, **hyperparameters))
    numbers = _layers(state)
    n_items = state["0.weight"].shape[1]
    hidden = tuple(state[f"{i}.weight"].shape[0] for i in numbers[:-1])
    policy = MLPPolicy(n_items, n_items, n_items, hidden, "leaky-relu").to(state["0.weight"].dtype)
    last = numbers[-1]
    policy.load_state_dict(
        {
            (f"head.{part}" if i == last else f"trunk.{i}.{part}"): state[f"{i}.{part}"]
            for i in numbers
            for part in ("weight", "bias")
        }
    )
    modules: dict[str, nn.Module] = {"policy": policy}
    log_z = next((state[name] for name in LOG_Z if name in state), None)
    if log_z is not None:
        modules["scalars"] = nn.ParameterDict({"log_z": nn.Parameter(log_z.detach().reshape(()).clone())})
    return modules


def config_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the weights belong to; the set size is that of the paper's task of as many items."""
    if _is_molecular(state):
        network = "official" if hyperparameters.get("root", "linear") == "linear" else "official-pyg1"
        task = {"network": network, "convolutions": hyperparameters.get("steps", 10)}
        task |= {name: hyperparameters[name] for name in ("blocks", "max_blocks") if name in hyperparameters}
        trainer = {"hidden": [len(state["bias"])], "terminal_flow": "free", "backward": "uniform"}
        return {"task": task, "trainer": trainer}
            "task": task,
            "trainer": {"hidden": [len(state["bias"])], "terminal_flow": "free", "backward": "uniform"},
        }
    numbers = _layers(state)
    n_items = state["0.weight"].shape[1]
    task = {"n_items": n_items}
    if "set_size" in hyperparameters:
        task["set_size"] = hyperparameters["set_size"]
    elif n_items in SIZES:
        task = {"size": SIZES[n_items]}
    hidden = [state[f"{i}.weight"].shape[0] for i in numbers[:-1]]
    objective = "tb" if any(name in state for name in LOG_Z) else "fl-db"
    terminal_flow = "zero" if objective == "tb" else "free"
    trainer = {
        "hidden": hidden,
        "activation": "leaky-relu",
        "objective": objective,
        "terminal_flow": terminal_flow,
    }
    return {"task": task, "trainer": trainer}
