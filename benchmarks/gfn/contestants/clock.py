"""What every contestant does alike: the arguments, the clock, and one line of JSON. Standard library only."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["REWARDS", "Clock", "arguments", "grid_arguments", "measure"]

REWARDS = {"standard": (1e-1, 0.5, 2.0), "hard": (1e-3, 0.5, 2.0)}
"""R0, R1, R2 of the HyperGrid reward families."""


def arguments() -> argparse.ArgumentParser:
    """A parser with the options that the runner passes to every contestant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=("train", "sample"), default="train")
    parser.add_argument("--batch", type=int, default=16, help="trajectories a step")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=100, help="steps on the clock")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def grid_arguments() -> argparse.ArgumentParser:
    """As :func:`arguments`, with those of HyperGrid."""
    parser = arguments()
    parser.add_argument("--dimensions", type=int, default=4)
    parser.add_argument("--side", type=int, default=8)
    parser.add_argument("--reward", choices=tuple(REWARDS), default="hard")
    parser.add_argument("--epsilon", type=float, default=0.1, help="probability of a uniform action")
    parser.add_argument("--export", help="NPZ to write: log P_F of all grid points in row-major order")
    return parser


def measure(options: argparse.Namespace, advance: Callable[[int], float], **facts: Any) -> None:
    """Run ``options.warmup`` steps, then ``options.steps`` on the clock, and print what was measured.

    Args:
        options: the parsed arguments.
        advance: runs that many steps to their end and returns the mean trajectory length in them.
        facts: what else belongs into the line: name, versions.
    """
    clock = Clock(options.steps)
    if options.warmup:
        advance(options.warmup)
    clock.start()
    length = advance(options.steps)
    clock.stop(mean_length=length, **facts)


class Clock:
    """Set-up and warm-up until :meth:`start`, then the steps that count until :meth:`stop`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.setup, self.warm = time.process_time(), time.perf_counter()

    def start(self) -> None:
        self.warm = time.perf_counter() - self.warm
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self, **facts: Any) -> None:
        """Print the line."""
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        line = {
            **facts,
            "python": sys.version.split()[0],
            "steps": self.steps,
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "steps_per_cpu_second": self.steps / cpu,
            "steps_per_second": self.steps / wall,
            "setup_cpu_seconds": self.setup,
            "warmup_seconds": self.warm,
        }
        print(json.dumps(line), flush=True)
