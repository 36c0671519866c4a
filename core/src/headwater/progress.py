"""The progress bar of long work: rate and time left on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Self

__all__ = ["Progress"]


class Progress:
    """Shows on stderr how far work has come: at most ten times a second, in a log once in ten seconds."""

    def __init__(self, total: int, done: int = 0, *, shown: bool = True, label: str = "", unit: str = "steps") -> None:
        self.total, self.start, self.label, self.unit = total, done, label, unit
        self._next = 0.0 if shown else float("inf")
        self._bar: Any = None
        self._began = time.perf_counter()
        self._shown = shown

    def __enter__(self) -> Self:
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=Console(stderr=True), auto_refresh=False,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.start, rate="", metrics="")
        else:
            self._next += self._began + 1.0
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()

    def advance(self, done: int, metrics: Mapping[str, float] | None = None) -> None:
        """Say that ``done`` of the total are done; cheap enough for every step."""
        now = time.perf_counter()
        if now < self._next and not (self._bar is not None and done == self.total):
            return
        rate = (done - self.start) / max(now - self._began, 1e-9)
        text = "  ".join(f"{name} {value:.4g}" for name, value in list((metrics or {}).items())[:3])
        if self._bar is not None:
            self._next = now + 0.1
            self._bar.update(self._task, completed=done, rate=f"{rate:,.1f} {self.unit}/s", metrics=text, refresh=True)
        else:
            self._next = now + 10.0
            left = (self.total - done) / rate if rate > 0 else float("inf")
            line = f"{self.label}: {done}/{self.total} {self.unit}, {rate:,.1f}/s, {left:,.0f} s left  {text}"
            print(line.rstrip(), file=sys.stderr, flush=True)
