"""What `fit` adds to a step: headwater.train beside a loop by hand around the same kind of trainer. Run by run.py.

Both are run for few and for many steps; the difference over the steps between is the cost of a step, without what
happens once in a run (the plan, the manifest, the last checkpoint).
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import headwater
import torch
from headwater import Config, MethodEntry, Paper, Sampler, SamplerEntry, StageEntry, Task, Trainer, registry
from headwater import hookimpl as hook
from pydantic import Field
from torch import Tensor, nn


class Nothing(Config):
    """A task without settings."""


class Points(Task):
    """Points on a line."""

    kind = "benchmark.points"
    suffixes = (".txt",)

    def write(self, samples: Any, path: Path, start: int = 0) -> None:
        path.write_text(str(samples), encoding="utf-8")


class LineConfig(Config):
    """How many points a step sees."""

    batch_size: int = Field(8, description="points in a batch")


class LineTrainer(Trainer):
    """A line through points: the smallest step that still has a batch, a loss and an optimiser."""

    @classmethod
    def build(cls, config: Any, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        return {"line": nn.Linear(1, 1)}

    def setup(self) -> None:
        self.optimisers["sgd"] = torch.optim.SGD(self.modules["line"].parameters(), lr=1e-3)

    def draw(self, k: int, generator: torch.Generator) -> Tensor:
        return torch.rand(self.config.batch_size, 1, generator=generator)

    def step(self, batch: Tensor) -> dict[str, Tensor]:
        loss = (self.modules["line"](batch) - batch).square().mean()
        self.update(loss, weight=len(batch))
        return {"loss": loss.detach()}


class LineSampler(Sampler):
    """Values of the line."""

    def block(self, k: int, generator: torch.Generator, condition: Any) -> Tensor:
        found: Tensor = self.modules["line"](torch.rand(self.block_size, 1, generator=generator))
        return found


class SamplerConfig(Config):
    """How many points a block holds."""

    block_size: int = Field(8, description="points in a block")


class Plugin:
    """What a plugin's module would register."""

    @hook
    def headwater_methods(self) -> list[MethodEntry]:
        here = __name__
        train = StageEntry(name="train", summary="A line.", trainer=f"{here}:LineTrainer", config=f"{here}:LineConfig")
        draw = SamplerEntry(
            name="draw", summary="Points.", sampler=f"{here}:LineSampler", config=f"{here}:SamplerConfig"
        )
        paper = Paper(title="A line", authors=("Nobody",), venue="none", year=2026, url="https://example.org")
        return [
            MethodEntry(
                name="benchmark-line", summary="A line through points.", paper=paper, kinds=(Points.kind,),
                task="benchmark-points", stages=(train,), samplers=(draw,),
            )
        ]  # fmt: skip

    @hook
    def headwater_tasks(self) -> list[headwater.entries.TaskEntry]:
        here = __name__
        return [
            headwater.entries.TaskEntry(
                name="benchmark-points", kind=Points.kind, summary="Points.", task=f"{here}:Points",
                config=f"{here}:Nothing",
            )
        ]  # fmt: skip


def by_fit(steps: int) -> float:
    """CPU seconds of a run of so many steps."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        began = time.process_time()
        fit = {"max_steps": steps, "checkpoint_every": 10**9}
        headwater.train("benchmark-line", Path(folder) / "run", overrides={"fit": fit})
        return time.process_time() - began


def by_hand(steps: int) -> float:
    """CPU seconds of the same steps in a loop by hand, with one random generator for all of them."""
    began = time.process_time()
    config = LineConfig()
    trainer = LineTrainer(config, Points(Nothing()), LineTrainer.build(config, None, {}), {})
    trainer.setup()
    generator = torch.Generator().manual_seed(0)
    for k in range(steps):
        trainer.step(trainer.draw(k, generator))
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--few", type=int, default=500)
    parser.add_argument("--many", type=int, default=5500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    registry.register(Plugin(), "benchmark-line")
    by_fit(10), by_hand(10)
    rounds = []
    for i in range(options.rounds):
        ways = (by_fit, by_hand) if i % 2 == 0 else (by_hand, by_fit)
        cost = {way.__name__: (-way(options.few) + way(options.many)) for way in ways}
        rounds.append({k: v / (options.many - options.few) * 1e6 for k, v in cost.items()})
    print(json.dumps({"microseconds_a_step": rounds, "torch": torch.__version__}))


if __name__ == "__main__":
    sys.exit(main())
