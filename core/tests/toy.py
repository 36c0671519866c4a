"""A small method with everything that can be saved; ``toy_plugin`` registers it."""

import json

import torch
from headwater import (
    Config,
    DataError,
    Operation,
    Sampler,
    Task,
    Trainer,
)
from headwater.unpickling import load_official
from pydantic import Field, PositiveInt
from torch import nn


class TrainerConfig(Config):
    learning_rate: float = Field(0.05, gt=0)
    batch_size: PositiveInt = 4
    nan_at: int = -1
    width: PositiveInt = 5


class SamplerConfig(Config):
    block_size: PositiveInt = 3


class Condition(Config):
    scale: float = 1.0


class NumbersConfig(Config):
    offset: float = 0.5


class OperationConfig(Config):
    block_size: PositiveInt = 2


class Numbers(Task):
    kind = "toy.numbers"
    suffixes = (".jsonl", "")

    def write(self, samples, path, start=0):
        if path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(round(float(v), 6)) + "\n" for v in samples))
        else:
            path.mkdir(parents=True, exist_ok=True)
            for i, v in enumerate(samples):
                (path / f"{start + i:05d}.txt").write_text(f"{float(v):.6f}")

    def join(self, parts, path):
        if path.suffix == ".jsonl" or ".jsonl" in path.name:
            super().join(parts, path)
        else:
            path.mkdir()
            for part in parts:
                for file in part.iterdir():
                    (path / file.name).write_bytes(file.read_bytes())

    def read(self, path):
        try:
            if path.is_dir():
                return torch.tensor([float(p.read_text()) for p in sorted(path.iterdir())])
            return torch.tensor([float(json.loads(line)) for line in path.read_text().splitlines()])
        except ValueError as error:
            raise DataError(f"{path} holds no numbers: {error}") from error

    def metrics(self, samples):
        return {"mean": float(samples.mean())}


class Replay:
    def __init__(self):
        self.values = torch.zeros(0)

    def state_dict(self):
        return {"values": self.values}

    def load_state_dict(self, state):
        self.values = state["values"]


def make_net(width):
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))


class ToyTrainer(Trainer):
    """All that can be saved: modules, optimisers, a scheduler, dropout, a bare parameter, a replay."""

    on_policy = True

    @classmethod
    def facts(cls, config, task):
        return {"offset": task.config.offset}

    @classmethod
    def build(cls, config, task, facts):
        net = make_net(config.width)
        return {"net": net, "scale": nn.ParameterDict({"log_z": nn.Parameter(torch.zeros(()))})}

    def setup(self):
        lr = self.config.learning_rate
        self.optimisers = {
            "net": torch.optim.Adam(self.modules["net"].parameters(), lr),
            "scale": torch.optim.SGD(self.modules["scale"].parameters(), lr, momentum=0.9),
        }
        self.schedulers = {"net": torch.optim.lr_scheduler.CosineAnnealingLR(self.optimisers["net"], 50)}
        self.replay = self.stateful["replay"] = Replay()

    def draw(self, k, generator):
        fresh = torch.randn(self.config.batch_size, 2, generator=generator)
        self.replay.values = torch.cat([self.replay.values, fresh.mean(1)])[-16:]
        return k, fresh

    def step(self, batch):
        k, x = batch
        target = x.sum(1) + self.replay.values.mean() + torch.rand(())
        loss = (self.modules["net"](x).squeeze(1) - target).square().mean()
        if k == self.config.nan_at:
            loss = loss * float("nan")
        self.update(loss, "net", weight=len(x))
        other = (self.modules["scale"]["log_z"] - target.detach().mean()).square()
        self.update(other, "scale", weight=len(x))
        return {"loss": loss.detach(), "loss_scale": other.detach()}

    def validate(self):
        return {"log_z": float(self.modules["scale"]["log_z"])}


class PolishTrainer(Trainer):
    """A second stage: it trains a shift, carries the modules of the first along and uses its facts."""

    @classmethod
    def facts(cls, config, task):
        return {"level": 2.0}

    @classmethod
    def build(cls, config, task, facts):
        return {"shift": nn.ParameterDict({"by": nn.Parameter(torch.rand(()) + facts["offset"])})}

    def setup(self):
        self.given["net"].eval()
        self.optimisers["shift"] = torch.optim.Adam(self.modules["shift"].parameters(), self.config.learning_rate)

    def draw(self, k, generator):
        return torch.randn(self.config.batch_size, 2, generator=generator)

    def step(self, batch):
        with torch.no_grad():
            target = self.given["net"](batch).mean() + self.facts_found["level"]
        loss = (self.modules["shift"]["by"] - target).square()
        self.update(loss, weight=len(batch))
        return {"loss": loss.detach()}


class ToySampler(Sampler):
    def block(self, k, generator, condition):
        x = torch.randn(self.block_size, 2, generator=generator)
        shift = self.modules["shift"]["by"] if "shift" in self.modules else self.facts["offset"]
        return self.modules["net"](x).squeeze(1) * condition.scale + shift


class Double(Operation):
    input_suffixes = (".jsonl",)

    def read(self, path):
        return self.task.read(path)

    def apply(self, items, generator):
        return 2 * items


def read_official(paths):
    return load_official(paths[0]), {}


def from_official(state, width=None):
    """The modules of an official checkpoint, whose keys are those of ``net`` and ``log_z``."""
    state = dict(state)
    log_z = state.pop("log_z", torch.zeros(()))
    net = make_net(width or len(state["0.bias"]))
    net.load_state_dict(state)
    return {"net": net, "scale": nn.ParameterDict({"log_z": nn.Parameter(log_z)})}


def config_of(state, hyperparameters):
    return {"trainer": {"width": len(state["0.bias"])}}
