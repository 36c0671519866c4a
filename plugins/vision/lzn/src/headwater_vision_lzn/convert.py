"""Official checkpoints (microsoft/latent-zoning-networks): NCSN++ encoder and decoder, label anchors, ResNet-50.

A file is what ``torch.save`` made of ``encoder``, ``decoder``, ``label_anchor`` and, as lists of tensors in the order
of the parameters, their moving averages. Sizes are read off the shapes; the averages are used, as in the published
evaluation, unless ``official.weights`` is ``last``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from headwater import DataError, UsageError
from headwater.unpickling import load_official
from torch import Tensor, nn

from headwater_vision_lzn.networks import Anchors, Attention, Decoder, Down, Encoder, Residual, ResNet50, Trunk, Up

__all__ = ["config_of", "from_official", "read_official", "stage_of", "task_of", "to_official"]

PARTS = ("encoder", "decoder", "label_anchor")
PREFIX = re.compile(r"(model\.)?(module\.)?")
SIGMAS = "sigmas"
"""A table that the published decoder saves and does not use."""


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one checkpoint; keys come out as ``encoder.KEY``, and ``encoder_ema.KEY`` where there is an average.

    Raises:
        DataError: the file is no such checkpoint, or a list of averages does not fit its network.
    """
    if len(paths) != 1:
        raise UsageError(f"an official checkpoint is one file, not {len(paths)}")
    path = paths[0]
    content = load_official(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("encoder"), Mapping):
        raise DataError(f"{path} has no entry 'encoder' with the weights of a network, as an official checkpoint has")
    state: dict[str, Tensor] = {}
    for part in PARTS:
        weights = content.get(part)
        if weights is None:
            continue
        own: dict[str, Tensor] = {}
        for key, value in weights.items():
            if not isinstance(value, Tensor):
                raise DataError(f"{path}: {part}.{key} is a {type(value).__name__}, not a tensor")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise DataError(f"{path}: {part}.{key} holds values that are not finite")
            own[PREFIX.sub("", str(key), count=1)] = value
        state |= {f"{part}.{key}": value for key, value in own.items()}
        average = content.get(f"{part}_ema")
        if average is not None:
            state |= {f"{part}_ema.{key}": value for key, value in _averages(path, part, own, average).items()}
    return state, {}


def _averages(path: Path, part: str, own: Mapping[str, Tensor], average: Any) -> dict[str, Tensor]:
    """The list of averages under the names of the parameters, in whose order it is."""
    shadows = average.get("shadow_params") if isinstance(average, Mapping) else None
    if not isinstance(shadows, list | tuple):
        raise DataError(f"{path}: {part}_ema has no list 'shadow_params'")
    fixed = {SIGMAS, "all_modules.0.W"}
    names = [key for key in own if key not in fixed]
    if len(names) != len(shadows):
        raise DataError(f"{path}: {part}_ema has {len(shadows)} tensors for the {len(names)} parameters of {part}")
    for name, shadow in zip(names, shadows, strict=True):
        if not isinstance(shadow, Tensor) or shadow.shape != own[name].shape:
            shape = tuple(shadow.shape) if isinstance(shadow, Tensor) else type(shadow).__name__
            raise DataError(
                f"{path}: {part}_ema has {shape} in the place of {part}.{name}, which is {tuple(own[name].shape)}"
            )
    return {key: own[key] for key in own if key in fixed} | dict(zip(names, shadows, strict=True))


# Our modules in the order in which the official code makes them


def _of_trunk(trunk: Trunk) -> Iterator[tuple[str, nn.Module]]:
    yield "trunk.stem", trunk.stem
    for i, level in enumerate(trunk.levels):
        assert isinstance(level, Down)
        name = f"trunk.levels.{i}"
        for j, block in enumerate(level.blocks):
            yield f"{name}.blocks.{j}", block
            if level.attentions is not None:
                yield f"{name}.attentions.{j}", level.attentions[j]
        if level.down is not None:
            yield f"{name}.down", level.down
        if level.image is not None:
            yield f"{name}.image", nn.ModuleDict({"Conv_0": level.image})
    for i, module in enumerate(trunk.middle):
        yield f"trunk.middle.{i}", module


def _of_decoder(decoder: Decoder) -> Iterator[tuple[str, nn.Module | None]]:
    if decoder.style == "fir":
        yield "frequencies", None
    yield "linear0", decoder.linear0
    yield "linear1", decoder.linear1
    yield from _of_trunk(decoder.trunk)
    for i, level in enumerate(decoder.levels):
        assert isinstance(level, Up)
        name = f"levels.{i}"
        for j, block in enumerate(level.blocks):
            yield f"{name}.blocks.{j}", block
        for part in ("attention", "norm", "picture", "up"):
            module = getattr(level, part)
            if module is not None:
                yield f"{name}.{part}", module


INSIDE: dict[type, dict[str, str]] = {
    Residual: {
        "norm0": "GroupNorm_0", "conv0": "Conv_0", "dense": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1",
        "shortcut": "Conv_2",
    },
    Attention: {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"},
}  # fmt: skip


def _names_of(i: int, name: str, module: nn.Module | None) -> Iterator[tuple[str, str]]:
    """Official and own key of every tensor of the official module ``i``."""
    official = f"all_modules.{i}"
    if module is None:
        yield f"{official}.W", name
        return
    if isinstance(module, nn.ModuleDict):  # what joins the image: its one convolution is called Conv_0
        yield from ((f"{official}.Conv_0.{part}", f"{name}.{part}") for part in ("weight", "bias"))
        return
    inside = INSIDE.get(type(module))
    for key in module.state_dict():
        own, _, part = key.rpartition(".")
        if inside is None:
            yield f"{official}.{key}", f"{name}.{key}"
        elif inside[own].startswith("NIN"):
            yield f"{official}.{inside[own]}.{'W' if part == 'weight' else 'b'}", f"{name}.{key}"
        else:
            yield f"{official}.{inside[own]}.{part}", f"{name}.{key}"


def _names(module: nn.Module) -> dict[str, str]:
    """Own key of every official key of ``module``, in the official order."""
    names: dict[str, str] = {}
    if isinstance(module, Anchors):
        return {"anchor": "points"}
    if isinstance(module, ResNet50):
        return dict(_of_resnet(module))
    if isinstance(module, Encoder):
        for k in module.heads:
            names |= {f"spatial_transformations.{k}.0.{p}": f"heads.{k}.conv.{p}" for p in ("weight", "bias")}
        for k in module.heads:
            for i, linear in ((0, "linear0"), (2, "linear1")):
                names |= {f"latent_transformations.{k}.{i}.{p}": f"heads.{k}.{linear}.{p}" for p in ("weight", "bias")}
        order: Iterator[tuple[str, nn.Module | None]] = iter(_of_trunk(module.trunk))
    else:
        assert isinstance(module, Decoder)
        order = _of_decoder(module)
    for i, (name, part) in enumerate(order):
        names |= dict(_names_of(i, name, part))
    return names


def _of_resnet(module: ResNet50) -> Iterator[tuple[str, str]]:
    yield "net.0.0.weight", "conv.weight"
    norm = ("weight", "bias")
    yield from ((f"net.0.1.0.{p}", f"norm.{p}") for p in norm)
    for i, stage in enumerate(module.stages):
        assert isinstance(stage, nn.Sequential)
        for j, block in enumerate(stage):
            official, own = f"net.{i + 1}.blocks.{j}", f"stages.{i}.{j}"
            if block.shortcut is not None:
                yield f"{official}.projection.shortcut.weight", f"{own}.shortcut.weight"
                yield from ((f"{official}.projection.bn.0.{p}", f"{own}.shortcut_norm.{p}") for p in norm)
            for k in range(3):
                yield f"{official}.net.{2 * k}.weight", f"{own}.conv{k}.weight"
                yield from ((f"{official}.net.{2 * k + 1}.0.{p}", f"{own}.norm{k}.{p}") for p in norm)
    for k in range(len(module.head.linears)):
        yield f"head.layers.{3 * k}.weight", f"head.linears.{k}.weight"
        yield from ((f"head.layers.{3 * k + 1}.{p}", f"head.norms.{k}.{p}") for p in norm)


def _turned(official: str, value: Tensor) -> Tensor:
    """A matrix that the official code multiplies from the other side."""
    return value.T if official.endswith(".W") and value.ndim == 2 else value


def to_official(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of one of our networks under the official keys, for those who go back."""
    own = module.state_dict()
    return {official: _turned(official, own[name]) for official, name in _names(module).items()}


def _carry_over(part: str, state: Mapping[str, Tensor], module: nn.Module) -> None:
    """Copy the official weights ``state`` into ``module``.

    Raises:
        DataError: a key is missing, left over, or of another shape.
    """
    names, own = _names(module), module.state_dict()
    left = [key for key in state if key not in names and key != SIGMAS]
    if left:
        raise DataError(f"the {part} has no place for {left[0]}")
    found: dict[str, Tensor] = {}
    for official, name in names.items():
        if official not in state:
            raise DataError(f"the {part} lacks {official}")
        value = _turned(official, state[official])
        if value.shape != own[name].shape:
            wanted = tuple(_turned(official, own[name]).shape)
            raise DataError(f"the {part}'s {official} has the shape {tuple(state[official].shape)}, not {wanted}")
        found[name] = value
    module.load_state_dict(found)


# Sizes


def _part(state: Mapping[str, Tensor], part: str, weights: str) -> dict[str, Tensor]:
    chosen = f"{part}_ema." if weights == "ema" and any(k.startswith(f"{part}_ema.") for k in state) else f"{part}."
    return {key.removeprefix(chosen): value for key, value in state.items() if key.startswith(chosen)}


class _Module(dict[str, Tensor]):
    """The tensors of one official module; one that is missing is named."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __missing__(self, key: str) -> Tensor:
        raise DataError(f"the encoder lacks all_modules.{self.number}.{key}")


def _geometry(encoder: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of an NCSN++ encoder, from which modules it has and how large they are.

    Raises:
        DataError: it is none.
    """
    modules: dict[int, _Module] = {}
    for key, value in encoder.items():
        match = re.fullmatch(r"all_modules\.(\d+)\.(.+)", key)
        if match:
            modules.setdefault(int(match[1]), _Module(int(match[1])))[match[2]] = value
    if 0 not in modules or "weight" not in modules[0] or modules[0]["weight"].ndim != 4:
        raise DataError("the encoder is neither NCSN++ (all_modules.0.weight, ...) nor ResNet-50 (net.0.0.weight, ...)")
    width, channels = map(int, modules[0]["weight"].shape[:2])
    widths: list[int] = []
    blocks, attended, fir = [0], [False], False
    places = [0]
    for i in sorted(modules)[1:-3]:
        here = modules[i]
        if "NIN_0.W" in here:
            attended[-1] = True
        elif "GroupNorm_0.weight" not in here:
            fir = True
        elif "Conv_2.weight" in here and here["Conv_0.weight"].shape[0] == here["Conv_0.weight"].shape[1]:
            blocks.append(0)
            attended.append(False)
            places.append(len(blocks) - 1)
        else:
            blocks[-1] += 1
            places.append(len(blocks) - 1)
            widths = [*widths[: len(blocks) - 1], int(here["Conv_1.weight"].shape[0])]
    places.append(len(blocks) - 1)
    heads = sorted(int(k.split(".")[1]) for k in encoder if re.fullmatch(r"latent_transformations\.\d+\.0\.weight", k))
    if not heads or len(set(blocks)) != 1 or len(widths) != len(blocks) or heads[-1] >= len(places):
        raise DataError("the encoder's modules are not those of NCSN++ with read-out heads")
    lacking = [
        key
        for k in heads
        for key in (f"spatial_transformations.{k}.0.weight", f"latent_transformations.{k}.2.weight")
        if key not in encoder
    ]
    if lacking:
        raise DataError(f"the encoder lacks {lacking[0]}")
    sides = set()
    for k in heads:
        narrow = int(encoder[f"spatial_transformations.{k}.0.weight"].shape[0])
        units, inputs = map(int, encoder[f"latent_transformations.{k}.0.weight"].shape)
        sides.add(round((inputs / narrow) ** 0.5) << places[k])
    if len(sides) != 1:
        raise DataError(f"the encoder's heads are for images of different sizes: {sorted(sides)}")
    side = sides.pop()
    latent = int(encoder[f"latent_transformations.{heads[0]}.2.weight"].shape[0])
    every = len(heads) == len(places)
    return {
        "size": side, "channels": channels, "latent": latent, "width": width,
        "multipliers": [w // width for w in widths], "blocks": blocks[0],
        "attention": [side >> i for i, a in enumerate(attended) if a], "style": "fir" if fir else "plain",
        "narrow": narrow, "units": units,
        "readout": None if every else sorted({side >> places[k] for k in heads}, reverse=True),
    }  # fmt: skip


def _weights(hyperparameters: Mapping[str, Any]) -> str:
    for name, value in hyperparameters.items():
        if name != "weights":
            raise UsageError(f"official.{name} is no setting; known: weights (ema or last)")
        if value not in ("ema", "last"):
            raise UsageError(f"official.weights = {value!r}: ema or last")
    return str(hyperparameters.get("weights", "ema"))


def stage_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> str:
    """The stage whose trainer makes such networks."""
    if "encoder.net.0.0.weight" in state:
        return "represent"
    return "joint" if "label_anchor.anchor" in state else "generate"


def task_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> str:
    """The user's own images, for the published sets are not here; ``task.path`` gives the bank."""
    return "image-set"


def config_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's config that the weights belong to."""
    weights = _weights(hyperparameters)
    encoder = _part(state, "encoder", weights)
    if "net.0.0.weight" in encoder:
        stem = encoder["net.0.0.weight"]
        linears = sorted(int(k.split(".")[2]) for k in encoder if re.fullmatch(r"head\.layers\.\d+\.weight", k))
        if not linears:
            raise DataError("the encoder has no projection head (head.layers.0.weight, ...)")
        return {
            "trainer": {
                "encoder": "resnet50", "channels": int(stem.shape[1]), "resnet_width": int(stem.shape[0]) // 64,
                "head_layers": (linears[-1] + 2) // 3,
                "latent": int(encoder[f"head.layers.{linears[-1]}.weight"].shape[0]),
            }
        }  # fmt: skip
    trainer = {"encoder": "ncsnpp", **_geometry(encoder)}
    anchors = _part(state, "label_anchor", weights)
    if anchors:
        if "anchor" not in anchors:
            raise DataError("the label_anchor lacks anchor")
        trainer["classes"] = int(anchors["anchor"].shape[0])
    return {"trainer": trainer}


def from_official(state: Mapping[str, Tensor], **hyperparameters: Any) -> dict[str, nn.Module]:
    """Our networks with the official weights: ``encoder``, and ``decoder`` and ``labels`` where they are there.

    Raises:
        DataError: a key or a shape does not belong to the official layout.
    """
    weights = _weights(hyperparameters)
    c = config_of(state, hyperparameters)["trainer"]
    modules: dict[str, nn.Module] = {}
    if c.pop("encoder") == "resnet50":
        modules["encoder"] = ResNet50(c["channels"], c["latent"], c["resnet_width"], c["head_layers"])
    else:
        classes = c.pop("classes", 0)
        modules["encoder"] = Encoder(**c)
        decoder = {k: v for k, v in c.items() if k not in ("narrow", "units", "readout")}
        modules["decoder"] = Decoder(classes=classes, **decoder)
        if classes:
            modules["labels"] = Anchors(classes, c["latent"])
    official = {"encoder": "encoder", "decoder": "decoder", "labels": "label_anchor"}
    for name, module in modules.items():
        _carry_over(official[name], _part(state, official[name], weights), module)
    return modules
