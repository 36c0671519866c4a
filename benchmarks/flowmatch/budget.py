"""A budget of processor time for a training run, kept through interruptions.

    budget = Budget(minutes=12)
    registry.register(budget, "benchmark-budget")
    headwater.train(...)        # ends after 12 minutes of this process' CPU time, or at ``until``

Processor time, so that a busy machine does not shorten the training; it is noted at each checkpoint and at the end, in
``fit.state``, and a resumed run goes on counting.
"""

import time
from datetime import datetime
from typing import Any

from headwater import hookimpl

__all__ = ["SPENT", "Budget", "deadline"]

SPENT = "processor time is spent"
"""Why a run ended whose budget is used up."""

LATE = "the given time of day is reached"


def deadline(clock: str | None) -> float:
    """The next ``HH:MM`` of this machine's clock in seconds of the epoch; never without one."""
    if clock is None:
        return float("inf")
    now = datetime.now()
    hour, minute = map(int, clock.split(":"))
    at = now.replace(hour=hour, minute=minute, second=0, microsecond=0).timestamp()
    return at if at > now.timestamp() else at + 86400.0


class Budget:
    """Hooks that stop a run after ``minutes`` of CPU time or at ``until``, in seconds of the epoch."""

    def __init__(self, minutes: float, until: float = float("inf"), every: int = 500) -> None:
        self.seconds, self.until, self.every = 60.0 * minutes, until, every

    @hookimpl
    def headwater_fit_start(self, fit: Any) -> None:
        self.state = fit.state.setdefault("benchmark-budget", {"seconds": 0.0, "at": {}})
        self.before, self.began = float(self.state["seconds"]), time.process_time()

    @hookimpl
    def headwater_step_end(self, fit: Any, step: int) -> None:
        spent = self.before + time.process_time() - self.began
        self.state["seconds"] = spent
        if step % self.every == 0:
            self.state["at"][str(step)] = spent
        if spent >= self.seconds:
            fit.stop(SPENT)
        elif time.time() >= self.until:
            fit.stop(LATE)
