"""What headwater's contestants share: the trainer of a plan, its steps, the versions."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import headwater
import torch
from headwater import seeding

__all__ = ["make_trainer", "training", "versions"]


def make_trainer(made: Any) -> Any:
    """The trainer of a plan, as a run makes it."""
    seeding.seed_all(seeding.key(made.fit.seed))
    kind = headwater.registry.resolve(made.stage.trainer)
    config = made.config["trainer"]
    facts = kind.facts(config, made.task)
    trainer = kind(config, made.task, kind.build(config, made.task, facts), facts)
    trainer.setup()
    return trainer


def training(trainer: Any, seed: int) -> Callable[[int], float]:
    """What draws and steps ``trainer`` so many times more, and returns the mean length of the trajectories."""
    done = 0

    def advance(steps: int) -> float:
        nonlocal done
        lengths = []
        for k in range(done, done + steps):
            batch = trainer.draw(k, seeding.generator(seed, k, 0))
            lengths.append(trainer.step(batch)["length"])
        done += steps
        return float(torch.stack(lengths).mean())

    return advance


def versions(*more: str) -> dict[str, str]:
    """The versions of our packages and of torch, and of ``more``."""
    return {name: version(name) for name in ("headwater", "headwater-gfn", "headwater-gfn-fl", "torch", *more)}
