"""Many small pieces of work in processes, each with a time limit, so that one that hangs never stalls the rest."""

import multiprocessing
import os
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from headwater.progress import Progress

__all__ = ["Failure", "each"]

START_LIMIT = 120.0
"""Seconds that a process may take for its imports before it counts as hung."""


@dataclass(frozen=True)
class Failure:
    """A piece of work that gave no result; ``stuck`` says that it ran past its time limit."""

    reason: str
    stuck: bool = False


def each(
    function: Callable[[Any, Any], Any],
    items: Sequence[Any],
    shared: Any = None,
    *,
    processes: int | None = None,
    limit: float = 60.0,
    label: str = "",
) -> list[Any]:
    """``function(shared, item)`` for every item, in order; a :class:`Failure` stands where it gave no result.

    Args:
        function: a function at the top of a module; it runs in other processes.
        items: what it is called with, one after another; small, for each is sent to a process.
        shared: what all calls need; sent to each process once.
        processes: how many run beside each other; as many as there are CPUs for this process without.
        limit: seconds that one item may take. Its process is then ended, and another goes on with the next item.
        label: what the progress bar says.
    """
    results: list[Any] = [None] * len(items)
    count = min(processes or _cpus(), len(items))
    waiting = iter(range(len(items)))
    workers: list[_Worker] = []
    done = 0
    with Progress(len(items), label=label, unit="crystals") as bar:
        try:
            workers = [_Worker(function, shared, limit) for _ in range(count)]
            while workers:
                soon = min(worker.deadline for worker in workers) - time.monotonic()
                ready = wait([worker.pipe for worker in workers], timeout=max(soon, 0.0))
                for place, worker in reversed(list(enumerate(workers))):
                    answer = worker.answer(worker.pipe in ready)
                    if answer is None:
                        continue
                    if worker.item is not None:
                        results[worker.item] = answer.value
                        done += 1
                    elif not worker.alive:
                        raise RuntimeError(f"no process for {label or function.__name__}: {answer.value.reason}")
                    item = next(waiting, None)
                    if item is None:
                        worker.end()
                        del workers[place]
                    elif worker.alive:
                        worker.begin(item, items[item])
                    else:
                        workers[place] = _Worker(function, shared, limit, (item, items[item]))
                bar.advance(done)
        finally:
            for worker in workers:
                worker.end()
    return results


@dataclass(frozen=True)
class _Answer:
    """What a process says; its value may well be ``None``."""

    value: Any


class _Worker:
    """One process and the item that it is at; ``item`` is ``None`` while it starts."""

    def __init__(
        self, function: Callable[[Any, Any], Any], shared: Any, limit: float, first: tuple[int, Any] | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(other, function, shared), daemon=True)
        with _hidden_main():
            self.process.start()
        other.close()
        self.item: int | None = None
        self.limit, self.alive = limit, True
        self.deadline = time.monotonic() + START_LIMIT
        self._first = first

    def begin(self, item: int, value: Any) -> None:
        self.item = item
        self.deadline = time.monotonic() + self.limit
        with suppress(OSError):  # it ended after its last result: its closed pipe is noticed next
            self.pipe.send(value)

    def answer(self, ready: bool) -> _Answer | None:
        """The result of the item at hand, a ``Failure`` in its place, or ``None`` while it works on."""
        if ready:
            try:
                value = self.pipe.recv()
            except (EOFError, OSError):
                self.process.join(5.0)
                self.alive = False
                return _Answer(Failure(f"its process ended with exit code {self.process.exitcode}"))
            if self.item is None and self._first is not None:
                self.begin(*self._first)
                return None
            return _Answer(value)
        if time.monotonic() < self.deadline:
            return None
        self.end()
        if self.item is None:
            return _Answer(Failure(f"its process took more than {START_LIMIT:g} s to start", stuck=True))
        return _Answer(Failure(f"took more than {self.limit:g} s", stuck=True))

    def end(self) -> None:
        self.alive = False
        self.pipe.close()
        self.process.terminate()
        self.process.join(2.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Connection, function: Callable[[Any, Any], Any], shared: Any) -> None:
    """What each process does: say that it is there, then answer one item after another until the pipe closes."""
    import warnings

    warnings.filterwarnings("ignore")  # each process would repeat the libraries' warnings for every structure
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    try:
        pipe.send("ready")
        while True:
            item = pipe.recv()
            try:
                result = function(shared, item)
            except Exception as error:
                result = Failure(f"{type(error).__name__}: {error}")
            pipe.send(result)
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep new processes from running the caller's script again: all that they need is in modules."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
