"""Official checkpoints (wu-han-lin/CrysBFN and GenSI-THUAIR/CrysBFN).

A Lightning checkpoint, whose weights are those averaged by the EMA callback where it has one, or a plain state dict.
The weights say the sizes; n, the accuracies and the data set are not in them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater import DataError
from headwater.unpickling import Stub, load_official
from torch import Tensor, nn

from headwater_bfn_crys.networks import CSPNet
from headwater_bfn_crys.presets import ELEMENTS, dataset_trainer

__all__ = ["config_of", "from_official", "read_official"]

PREFIXES = ("BFN.net.", "net.", "sd/")
OPTIONS = ("steps", "dataset", "schedule", "beta1_coordinates", "beta1_types", "sigma1_lattice")


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one checkpoint; n is taken from a file or folder name such as ``mp20_csp_s10``, where there is one.

    Raises:
        DataError: there is more than one file, or it holds no weights.
    """
    if len(paths) != 1:
        raise DataError(f"bfn-crys has one file a checkpoint, not {len(paths)}")
    (path,) = paths
    content = load_official(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    state = next(_averages(content.get("callbacks")), None) or content.get("state_dict") or content
    if not isinstance(state, Mapping):
        raise DataError(f"{path}: its state_dict is a {type(state).__name__}")
    found = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not found:
        raise DataError(f"{path} holds no weights; keys: {', '.join(map(str, list(state)[:5])) or 'none'}")
    prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in found)), "")
    named = [re.search(r"(?:^|_)s(\d+)(?:[_.]|$)", part) for part in (path.name, path.parent.name)]
    steps = next((int(match[1]) for match in named if match), None)
    return {k.removeprefix(prefix): v for k, v in found.items()}, {} if steps is None else {"steps": steps}


def _averages(callbacks: Any) -> Iterator[Mapping[str, Tensor]]:
    """The averaged weights among the states of the callbacks, whose keys are names, or stubs of classes."""
    for callback, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        is_stub = isinstance(callback, Stub) or (isinstance(callback, type) and issubclass(callback, Stub))
        name = callback.qualified_name if is_stub else str(callback)
        if "EMA" in name and isinstance(state, Mapping) and isinstance(state.get("ema_state_dict"), Mapping):
            yield state["ema_state_dict"]


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The network's sizes, checked against the shapes of all weights.

    Raises:
        DataError: a key is missing or strange, or shapes do not fit one another.
    """
    needed = ("node_embedding.weight", "atom_latent_emb.weight", "csp_layer_0.edge_mlp.0.weight", "type_out.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        some = ", ".join(list(state)[:3]) or "nothing"
        raise DataError(f"this is no CrysBFN network: {missing[0]} is not in it ({some}, ...)")
    latent, edge, out = (state[name] for name in needed[1:])
    given_types = "node_embedding.bias" not in state
    types, width = out.shape
    layers = 1 + max(int(m[1]) for k in state if (m := re.match(r"csp_layer_(\d+)\.", k)))
    distance = edge.shape[1] - 2 * width - 9
    sizes: dict[str, Any] = {
        "types": types, "width": width, "layers": layers, "frequencies": distance // 6,
        "time_width": latent.shape[1] - width - 3, "given_types": given_types,
    }  # fmt: skip
    if distance <= 0 or distance % 6 or sizes["time_width"] < 4 or sizes["time_width"] % 2:
        raise DataError(
            f"the widths of atom_latent_emb {tuple(latent.shape)} and csp_layer_0.edge_mlp.0 {tuple(edge.shape)} are "
            f"of another variant: expected are width + time width + 3 and 2 width + 9 + 6 frequencies, width {width}"
        )
    expected = {k: tuple(v.shape) for k, v in CSPNet(**sizes).state_dict().items()}
    odd = sorted(expected.keys() ^ state.keys())
    if odd:
        raise DataError(
            f"the weights do not fit: {', '.join(odd[:3])} {'is' if len(odd) == 1 else 'are'} too many or missing"
        )
    wrong = [k for k, shape in expected.items() if tuple(state[k].shape) != shape]
    if wrong:
        raise DataError(f"{wrong[0]} has the shape {tuple(state[wrong[0]].shape)}, expected is {expected[wrong[0]]}")
    return sizes


def from_official(state: Mapping[str, Tensor], **hyperparameters: Any) -> dict[str, nn.Module]:
    """The network with the official weights.

    Args:
        state: weights under the official keys without their prefix.
        hyperparameters: see :func:`config_of`.

    Raises:
        DataError: a key or shape does not belong to the official layout.
    """
    network = CSPNet(**_sizes(state))
    network.load_state_dict(dict(state))
    return {"network": network}


def config_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the weights belong to.

    ``official.steps`` is needed where no file name says n. ``official.dataset`` is ``mp-20``, ``perov-5``,
    ``carbon-24`` or ``mpts-52``; without, it is the first with as many types (for 89, MP-20). ``official.schedule`` is
    the NPZ with the noisy accuracies that the official models were trained with; the exact ones without.
    ``official.beta1_coordinates``, ``beta1_types`` and ``sigma1_lattice`` are the defaults of bfn-crys unless given.

    Raises:
        DataError: n is not known, an option is unknown, or the data set has another number of types.
    """
    sizes = _sizes(state)
    strange = [name for name in hyperparameters if name not in OPTIONS]
    if strange:
        raise DataError(f"official.{strange[0]} is no option of bfn-crys; there are {', '.join(OPTIONS)}")
    if hyperparameters.get("steps") is None:
        raise DataError("the checkpoint does not say its number of steps n; give it: --set official.steps=1000")
    types = sizes["types"]
    name = hyperparameters.get("dataset") or next((k for k, v in ELEMENTS.items() if len(v) == types), None)
    trainer: dict[str, Any] = {
        "target": "csp" if sizes["given_types"] else "gen",
        "standardise": "scalar",
        **{k: sizes[k] for k in ("width", "layers", "frequencies", "time_width")},
        **{k: v for k, v in hyperparameters.items() if k != "dataset"},
    }
    if name is not None:
        if name not in ELEMENTS or len(ELEMENTS[name]) != types:
            known = ", ".join(f"{k} ({len(v)})" for k, v in ELEMENTS.items())
            raise DataError(f"the network has {types} types, which official.dataset={name} has not; known: {known}")
        trainer |= dataset_trainer(name)
    return {"trainer": trainer}
