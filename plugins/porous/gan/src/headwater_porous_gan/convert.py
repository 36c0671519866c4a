"""Official checkpoints (LukasMosser/PorousMediaGan): state dicts of the generator and of the discriminator.

Their keys are ``main.N.PART``. The number N grows by three from layer to layer; the batch normalisation of a layer has
the number after it. Sizes and the number of layers are read off the shapes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from headwater import DataError
from headwater.unpickling import load_official
from torch import Tensor, nn

from headwater_porous_gan.networks import Discriminator, Generator, side_of

__all__ = ["config_of", "from_official", "read_official", "to_official"]

KEY = re.compile(r"(?:module\.)?(main\.\d+\.(?:weight|bias|running_mean|running_var|num_batches_tracked))")
BUFFERS = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"
EXTRA, UP = 3, 4
"""Kernel of the layers that keep the resolution, and of those that change it."""


def read_official(paths: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the file of the generator, and that of the discriminator where it is given too, in any order.

    The keys of the generator come out as ``generator.main.N.PART``, those of the discriminator as
    ``discriminator.main.N.PART``; the prefix ``module.`` of training on several GPUs is taken off.

    Raises:
        DataError: a file is no such state dict; the text names the key.
    """
    state: dict[str, Tensor] = {}
    for path in paths:
        content = load_official(path)
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        if not isinstance(content, Mapping) or not content:
            raise DataError(f"{path} holds a {type(content).__name__}, not a state dict")
        named: dict[str, Tensor] = {}
        for key, value in content.items():
            match = KEY.fullmatch(str(key))
            if match is None:
                raise DataError(f"{path}: the key {key!r} is none of an official network (main.N.weight, ...)")
            if not isinstance(value, Tensor):
                raise DataError(f"{path}: {key} is a {type(value).__name__}, not a tensor")
            if match[1] in named:
                raise DataError(f"{path}: {match[1]} is there twice, with and without 'module.'")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise DataError(f"{path}: {key} holds values that are not finite")
            named[match[1]] = value
        first = named.get("main.0.weight")
        if first is None or first.ndim != 5:
            raise DataError(f"{path} has no main.0.weight of five axes, the first layer of an official network")
        name = "discriminator" if first.shape[1] == 1 else "generator"
        if any(key.startswith(f"{name}.") for key in state):
            raise DataError(f"{path} is a second {name}; give one file of each")
        state |= {f"{name}.{key}": value for key, value in named.items()}
    return state, {}


class _Layers:
    """The layers of one official network, checked key by key and shape by shape."""

    def __init__(self, name: str, state: Mapping[str, Tensor]) -> None:
        self.name, self.state = name, {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(name)}
        self.left = set(self.state)
        numbers = sorted({int(key.split(".")[1]) for key in self.state if self._is_convolution(key)})
        if numbers != list(range(0, 3 * len(numbers), 3)) or len(numbers) < 3:
            odd = next(
                (f"main.{n}.weight" for i, n in enumerate(numbers) if n != 3 * i), f"{len(numbers)} convolutions"
            )
            raise DataError(f"the {name}'s convolutions are main.0, main.3, main.6, ...; this one has {odd}")
        self.weights = [self.take(f"main.{n}.weight") for n in numbers]
        self.normed = range(len(numbers) - 1) if name == "generator" else range(1, len(numbers) - 1)

    def _is_convolution(self, key: str) -> bool:
        return key.endswith(".weight") and self.state[key].ndim == 5

    def take(self, key: str) -> Tensor:
        """The tensor of ``key``, which is accounted for from now on."""
        if key not in self.state:
            raise DataError(f"the {self.name} lacks {key}")
        self.left.discard(key)
        return self.state[key]

    def wrong(self, k: int, wanted: Sequence[int]) -> DataError:
        """What to say of a layer whose shape does not fit."""
        have = tuple(self.weights[k].shape)
        return DataError(f"the {self.name}'s main.{3 * k}.weight has the shape {have}; here {tuple(wanted)} would fit")

    def kernels(self) -> list[int]:
        """The kernels of all layers, each a cube of 4 or 3."""
        for k, weight in enumerate(self.weights):
            if tuple(weight.shape[2:]) not in ((UP,) * 3, (EXTRA,) * 3):
                raise self.wrong(k, (*weight.shape[:2], UP, UP, UP))
        return [int(weight.shape[2]) for weight in self.weights]

    def carry_over(self, module: nn.Module) -> None:
        """Copy all weights into ``module``.

        Raises:
            DataError: a tensor is missing, of another shape, or left over.
        """
        own: dict[str, Tensor] = {}
        for k in range(len(self.weights)):
            own[f"convs.{k}.weight"] = self.weights[k]
            if f"main.{3 * k}.bias" in self.state:
                own[f"convs.{k}.bias"] = self.take(f"main.{3 * k}.bias")
        for i, k in enumerate(self.normed):
            for part in BUFFERS:
                own[f"norms.{i}.{part}"] = self.take(f"main.{3 * k + 1}.{part}")
            counter = f"main.{3 * k + 1}.{COUNTER}"  # files of 2017 have none
            own[f"norms.{i}.{COUNTER}"] = self.take(counter).reshape(()) if counter in self.state else torch.tensor(0)
        if self.left:
            raise DataError(f"the {self.name} has no place for {min(self.left)}")
        for key, wanted in module.state_dict().items():
            if key not in own:
                raise DataError(f"the {self.name} lacks {_official(key, self.name)}")
            if own[key].shape != wanted.shape:
                raise DataError(
                    f"the {self.name}'s {_official(key, self.name)} has the shape {tuple(own[key].shape)}, "
                    f"not {tuple(wanted.shape)}"
                )
        module.load_state_dict(own)


def _official(key: str, name: str) -> str:
    """The official name of one of our keys."""
    kind, k, part = key.split(".")
    number = 3 * int(k) if kind == "convs" else 3 * (int(k) + (name == "discriminator")) + 1
    return f"main.{number}.{part}"


def to_official(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of one of our networks under the official keys, for those who go back."""
    name = "generator" if isinstance(module, Generator) else "discriminator"
    return {_official(key, name): value for key, value in module.state_dict().items()}


def _generator(state: Mapping[str, Tensor]) -> Generator:
    layers = _Layers("generator", state)
    kernels, weights = layers.kernels(), layers.weights
    extra = kernels.count(EXTRA)
    m = len(kernels) - 1 - extra
    if kernels != [UP] * m + [EXTRA] * extra + [UP] or m < 1:
        k = next(i for i, kernel in enumerate(kernels) if kernel == EXTRA)
        raise layers.wrong(k, (*weights[k].shape[:2], UP, UP, UP))
    nz, ngf = int(weights[0].shape[0]), int(weights[-1].shape[0])
    for k, weight in enumerate(weights):
        wide = ngf << max(m - k, 0)
        narrow = 1 if k == len(weights) - 1 else ngf << max(m - 1 - k, 0)
        wanted = (nz, narrow) if k == 0 else (wide, narrow)
        if tuple(weight.shape[:2]) != wanted:
            raise layers.wrong(k, (*wanted, *weight.shape[2:]))
    biases = any(f"main.{3 * k}.bias" in layers.state for k in range(len(weights)) if kernels[k] == UP)
    module = Generator(side_of(m), nz, ngf, extra, biases).to(weights[0].dtype)
    layers.carry_over(module)
    return module.float()


def _discriminator(state: Mapping[str, Tensor]) -> Discriminator:
    layers = _Layers("discriminator", state)
    kernels, weights = layers.kernels(), layers.weights
    extra = kernels.count(EXTRA)
    m = len(kernels) - 1 - extra
    if kernels != [UP] + [EXTRA] * extra + [UP] * m or m < 1:
        k = next(i for i, kernel in enumerate(kernels) if kernel == EXTRA)
        raise layers.wrong(k, (*weights[k].shape[:2], UP, UP, UP))
    ndf = int(weights[0].shape[0])
    for k, weight in enumerate(weights):
        wide = 1 if k == 0 else ndf << max(k - 1 - extra, 0)
        narrow = 1 if k == len(weights) - 1 else ndf << max(k - extra, 0)
        if tuple(weight.shape[:2]) != (narrow, wide):
            raise layers.wrong(k, (narrow, wide, *weight.shape[2:]))
    module = Discriminator(side_of(m), ndf, extra).to(weights[0].dtype)
    layers.carry_over(module)
    return module.float()


def from_official(state: Mapping[str, Tensor], **hyperparameters: Any) -> dict[str, nn.Module]:
    """The generator, and the discriminator where it is there, with the official weights.

    Raises:
        DataError: there is no generator, or a key or shape does not belong to the official layout.
    """
    if hyperparameters:
        raise DataError(f"official.{min(hyperparameters)} is no setting: all sizes are read off the weights")
    if not any(key.startswith("generator.") for key in state):
        raise DataError("this is a discriminator; the generator's file is needed, with or without it")
    modules: dict[str, nn.Module] = {"generator": _generator(state)}
    if any(key.startswith("discriminator.") for key in state):
        modules["discriminator"] = _discriminator(state)
        side, other = (_side(modules[name]) for name in ("generator", "discriminator"))
        if side != other:
            raise DataError(f"the generator makes crops of {side}^3, the discriminator judges those of {other}^3")
    return modules


def _side(module: nn.Module) -> int:
    convs: Any = module.convs
    extra = sum(conv.kernel_size[0] == EXTRA for conv in convs)
    return side_of(len(convs) - 1 - extra)


def config_of(state: Mapping[str, Tensor], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's config that the weights belong to; the published order of training, for going on with them."""
    modules = from_official(state, **hyperparameters)
    generator: Any = modules["generator"]
    trainer = {
        "side": _side(generator), "nz": generator.nz, "ngf": generator.convs[-1].in_channels,
        "extra_layers": generator.extra_layers, "biases": generator.convs[0].bias is not None,
        "variant": "smooth", "order": "official",
    }  # fmt: skip
    if "discriminator" in modules:
        convs: Any = modules["discriminator"].convs
        trainer |= {"ndf": convs[0].out_channels, "discriminator_extra_layers": len(convs) - 1 - generator.m}
    return {"trainer": trainer}
