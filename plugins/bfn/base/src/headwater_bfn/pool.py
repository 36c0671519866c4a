"""Many small pieces of work in processes, each with a time limit, so that one that hangs never stalls the rest."""

import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from headwater import HeadwaterError
from headwater.processes import hidden_main
from headwater.progress import Progress

__all__ = ["Failure", "Pool"]

START_LIMIT = 120.0
"""Seconds that a process may take to start before it counts as hung."""

Function = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Failure:
    """A piece of work that gave no result; ``stuck`` says that it ran past its time limit."""

    reason: str
    stuck: bool = False


class Pool:
    """Processes that stay from one job to the next, so that heavy libraries are loaded once in each.

    Args:
        processes: how many; as many as there are CPUs for this process without.
        limit: seconds that one item may take. Its process is then ended, and another goes on with the next item.
    """

    def __init__(self, processes: int | None = None, limit: float = 60.0) -> None:
        self.processes, self.limit = processes or _cpus(), limit
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def each(
        self, function: Function, items: Sequence[Any], shared: Any = None, label: str = "", unit: str = "items"
    ) -> list[Any]:
        """``function(shared, item)`` for every item, in order; a :class:`Failure` stands where it gave no result.

        Args:
            function: a function at the top of a module; it runs in the processes.
            items: what it is called with, one after another; small, for each is sent to a process.
            shared: what all calls need; sent to each process once.
            label: what the progress bar says.
            unit: what it counts.
        """
        results: list[Any] = [None] * len(items)
        count = min(self.processes, len(items))
        self._workers += [_Worker() for _ in range(count - len(self._workers))]
        waiting = iter(range(len(items)))
        busy = self._workers[:count]
        done = 0
        with Progress(len(items), label=label, unit=unit) as bar:
            for worker in busy:
                item = next(waiting)
                worker.begin(item, items[item], self.limit, (function, shared))
            while busy:
                soon = min(worker.deadline for worker in busy) - time.monotonic()
                ready = wait([worker.pipe for worker in busy], timeout=max(soon, 0.0))
                for worker in list(busy):
                    answer = worker.answer(worker.pipe in ready, self.limit)
                    if answer is None:
                        continue
                    results[worker.item] = answer.value
                    done += 1
                    job = None
                    busy.remove(worker)
                    if not worker.alive:
                        self._workers.remove(worker)
                        job = (function, shared)
                    item = next(waiting, -1)
                    if item < 0:
                        continue
                    if not worker.alive:
                        worker = _Worker()
                        self._workers.append(worker)
                    worker.begin(item, items[item], self.limit, job)
                    busy.append(worker)
                bar.advance(done)
        return results


@dataclass(frozen=True)
class _Said:
    """An item on its way to a process, or what the process answers; the value may well be ``None``."""

    value: Any


class _Worker:
    """One process and the item that it is at."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        with hidden_main():
            self.process.start()
        other.close()
        self.item = -1
        self.alive, self._started = True, False
        self.deadline = time.monotonic() + START_LIMIT

    def begin(self, item: int, value: Any, limit: float, job: tuple[Function, Any] | None) -> None:
        """Give it an item, of a new job if ``job`` is given; the clock runs from when the process is there."""
        self.item = item
        if self._started:
            self.deadline = time.monotonic() + limit
        with suppress(OSError):  # it ended after its last result: its closed pipe is noticed next
            if job is not None:
                self.pipe.send(job)
            self.pipe.send(_Said(value))

    def answer(self, ready: bool, limit: float) -> _Said | None:
        """The result of the item at hand, a ``Failure`` in its place, or ``None`` while it works on."""
        if ready:
            try:
                said: _Said = self.pipe.recv()
            except (EOFError, OSError):
                self.end()
                if not self._started:
                    raise HeadwaterError(f"a process could not start (exit code {self.process.exitcode})") from None
                return _Said(Failure(f"its process ended with exit code {self.process.exitcode}"))
            if self._started:
                return said
            self._started = True
            self.deadline = time.monotonic() + limit
            return None
        if time.monotonic() < self.deadline:
            return None
        self.end()
        if not self._started:
            raise HeadwaterError(f"a process took more than {START_LIMIT:g} s to start")
        return _Said(Failure(f"took more than {limit:g} s", stuck=True))

    def end(self) -> None:
        self.alive = False
        self.pipe.close()
        self.process.join(0.1)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(2.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Connection) -> None:
    """What each process does: say that it is there, then answer one item after another until the pipe closes."""
    warnings.filterwarnings("ignore")  # each process would repeat the libraries' warnings for every structure
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    function: Function = _nothing
    shared: Any = None
    with suppress(EOFError, OSError, KeyboardInterrupt):
        pipe.send(_Said(None))
        while True:
            try:
                said = pipe.recv()
            except (EOFError, OSError):
                return
            except Exception as error:  # the job names what cannot be imported here: its items say so, one by one
                function, shared = _nothing, f"{type(error).__name__}: {error}"
                continue
            if not isinstance(said, _Said):
                function, shared = said
                continue
            try:
                result = function(shared, said.value)
            except Exception as error:
                result = Failure(f"{type(error).__name__}: {error}")
            pipe.send(_Said(result))


def _nothing(reason: str, item: Any) -> Failure:
    return Failure(reason)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
