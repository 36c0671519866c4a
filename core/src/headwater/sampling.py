"""Sampling and operations on a run: blocks to disk, by one process or many, resumed at the first missing."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from headwater import registry, seeding
from headwater.config import merge, validate
from headwater.errors import DataError, HeadwaterError, RunError, UsageError, near
from headwater.hookspecs import SAMPLE_HOOKS
from headwater.processes import hidden_main
from headwater.progress import Progress
from headwater.ranks import joined, together
from headwater.resolve import Plan
from headwater.run import Run, hold
from headwater.sampler import Operation, Sampler
from headwater.state import fsync, remove, sync, write_text
from headwater.trainer import Place
from headwater.training import load_model, plan_of

__all__ = ["Model", "SampleJob"]


@dataclass
class SampleJob:
    """One sampling job; hooks see it. ``items`` is the number of samples or outputs asked for."""

    run: str
    run_id: str
    step: int
    what: str
    items: int
    seed: int
    config: dict[str, Any]
    condition: dict[str, Any] | None = None
    input: str | None = None
    input_state: str | None = None
    state: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What must agree for an interrupted job to go on."""
        known = asdict(self)
        for volatile in ("run", "state"):
            del known[volatile]
        return json.loads(json.dumps(known))


class Model:
    """A trained run, ready to sample, apply operations, evaluate and report."""

    def __init__(self, run: str | Path | Run, *, device: str | None = None) -> None:
        """Open a run.

        Args:
            run: the run directory.
            device: where to compute; the first GPU, if there is one, without.

        Raises:
            RunError: the run is damaged or has no checkpoint.
            PluginError: the plugin of its method is not installed.
        """
        self.run = run if isinstance(run, Run) else Run(Path(run))
        self.plan: Plan = plan_of(self.run)
        chosen = device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
        self.place = Place(torch.device(chosen))
        self.modules, self.facts, self.step = load_model(self.run, self.plan, self.place)

    @property
    def task(self) -> Any:
        """The run's task."""
        return self.plan.task

    def sampler(self, name: str | None = None, overrides: Mapping[str, Any] | None = None) -> Sampler:
        """The run's sampler, or another one of its method, under config ``overrides``."""
        return self._sampler(name, overrides)[0]

    def _sampler(self, name: str | None, overrides: Mapping[str, Any] | None) -> tuple[Sampler, SampleJob, Any]:
        entry = registry.sampler(self.plan.method.name, name or self.run.manifest.sampler)
        tables = self.run.config()
        base = tables.get("sampler", {}) if entry.name == self.run.manifest.sampler else {}
        task = self.task
        extra = dict(overrides or {})
        if extra.get("task"):
            config = validate(type(task.config), merge(tables.get("task", {}), extra["task"]), "task")
            task = type(task)(config)
        config = validate(registry.resolve(entry.config), merge(base, extra.get("sampler", {})), "sampler")
        made: Sampler = registry.resolve(entry.sampler)(config, task, self.modules, self.facts, self.place)
        job = SampleJob(
            run=str(self.run.path), run_id=self.run.manifest.id, step=self.step,
            what=f"sampler:{entry.name}", items=0, seed=0,
            config={"sampler": config.model_dump(mode="json"), "task": extra.get("task", {})},
        )  # fmt: skip
        return made, job, entry

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        condition: Mapping[str, Any] | None = None,
        sampler: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Iterator[Any]:
        """Yield blocks of samples, ``n`` in all, in the form of the method's family.

        Raises:
            UsageError: ``n`` is not positive, or the condition does not fit the sampler.
        """
        made, job, entry = self._sampler(sampler, overrides)
        checked = _condition(entry, condition)
        job.items, job.seed, job.condition = _count(n), seed, dict(condition) if condition else None
        hooks = _SampleHooks(job)
        hooks.call("headwater_sample_start")
        with one_thread(self.place):
            for k, samples in enumerate(made.sample(n, seed, checked)):
                yield hooks.block(k, samples)
        hooks.call("headwater_sample_end", path=None)

    def sample_to(
        self,
        path: str | Path,
        n: int,
        *,
        seed: int = 0,
        condition: Mapping[str, Any] | None = None,
        sampler: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        workers: int = 1,
        force: bool = False,
    ) -> Path:
        """Write ``n`` samples to ``path`` in the format that its suffix names, block by block.

        A job that was stopped goes on at the first missing block. The file does not depend on ``workers``.

        Raises:
            RunError: ``path`` exists (and ``force`` is not given), or holds the parts of another job.
        """
        made, job, entry = self._sampler(sampler, overrides)
        _condition(entry, condition)
        job.items, job.seed, job.condition = _count(n), seed, dict(condition) if condition else None
        return _stream(self, made, job, Path(path), workers, force)

    def operation(self, name: str, overrides: Mapping[str, Any] | None = None) -> Operation:
        """One of the method's operations."""
        entries = {entry.name: entry for entry in self.plan.method.operations}
        if name not in entries:
            raise UsageError(f"{self.plan.method.name} has no operation {name!r}{near(name, entries)}")
        values = (overrides or {}).get("operation", {})
        config = validate(registry.resolve(entries[name].config), values, "operation")
        made: Operation = registry.resolve(entries[name].operation)(
            config, self.task, self.modules, self.facts, self.place
        )
        return made

    def apply(
        self,
        operation: str,
        source: str | Path,
        out: str | Path,
        *,
        overrides: Mapping[str, Any] | None = None,
        seed: int = 0,
        workers: int = 1,
        force: bool = False,
    ) -> Path:
        """Apply an operation to the items in ``source`` and write one output per item to ``out``.

        Raises:
            DataError: ``source`` is missing or holds no item.
        """
        made = self.operation(operation, overrides)
        items = _items(made, Path(source))
        job = SampleJob(
            run=str(self.run.path), run_id=self.run.manifest.id, step=self.step,
            what=f"operation:{operation}", items=len(items), seed=seed,
            config={"operation": made.config.model_dump(mode="json")},
            input=str(Path(source).resolve()), input_state=_state_of(Path(source)),
        )  # fmt: skip
        return _stream(self, made, job, Path(out), workers, force, items=items)

    def evaluate(
        self, n: int | None = None, *, seed: int = 0, overrides: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """The task's metrics of ``n`` fresh samples (as many as the sampler wants scored, without)."""
        made = self.sampler(overrides=overrides)
        blocks = list(self.sample(n or made.evaluated, seed=seed, overrides=overrides))
        with _together(made, blocks) as samples:
            scores: dict[str, float] = made.task.metrics(samples)
        return scores


@contextmanager
def _together(sampler: Sampler, blocks: list[Any]) -> Iterator[Any]:
    """The samples of all blocks as one; those of an unknown form are written and read back.

    What a reader leaves in its file until it is used (a memory map) stays there within the context.
    """
    if len(blocks) == 1:
        yield blocks[0]
        return
    if all(isinstance(block, torch.Tensor) for block in blocks):
        yield torch.cat(blocks)
        return
    if all(isinstance(block, list) for block in blocks):
        yield [sample for block in blocks for sample in block]
        return
    writer, suffix = sampler.writer, sampler.writer.suffixes[0]
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{k:07d}{suffix}" for k in range(len(blocks))]
        for k, block in enumerate(blocks):
            writer.write(block, parts[k], k * sampler.block_size)
        whole = Path(folder) / f"whole{suffix}"
        writer.join(parts, whole)
        writer.finish(whole)
        yield writer.read(whole)


def _items(operation: Operation, source: Path) -> Any:
    if not source.exists():
        raise DataError(f"{source} does not exist")
    items = operation.read(source)
    if len(items) == 0:
        raise DataError(f"{source} holds nothing to work on ({', '.join(operation.input_suffixes) or 'empty'})")
    return items


def _state_of(source: Path) -> str:
    """A short text that changes when a file, or one of a folder's files, does; large volumes are not read."""
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    seen = [(str(file.relative_to(source)), (s := file.stat()).st_size, s.st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def _count(n: int) -> int:
    if n <= 0:
        raise UsageError(f"cannot make {n} samples; ask for at least 1")
    return n


def _condition(entry: Any, given: Mapping[str, Any] | None) -> Any:
    if entry.condition is None:
        if given:
            raise UsageError(f"the sampler {entry.name!r} takes no condition, so {', '.join(given)} cannot be set")
        return None
    return validate(registry.resolve(entry.condition), given or {}, "condition")


@contextmanager
def one_thread(place: Place) -> Iterator[None]:
    """Compute with one CPU thread, so that sums do not depend on how many workers share the machine."""
    before = torch.get_num_threads()
    if place.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _SampleHooks:
    """The sampling hooks of all plugins, for one job in one process."""

    def __init__(self, job: SampleJob) -> None:
        self.job = job
        self.hooks = {name: registry.implementations(name) for name in SAMPLE_HOOKS}

    def call(self, name: str, **arguments: Any) -> None:
        for plugin, implementation in list(self.hooks[name]):
            try:
                implementation(job=self.job, **arguments)
            except (Exception, SystemExit) as error:
                if registry.strict():
                    raise HeadwaterError(f"{name} of the plugin {plugin} failed: {error!r}") from error
                print(f"{name} of the plugin {plugin} failed and is off for this job: {error!r}", file=sys.stderr)
                for implementations in self.hooks.values():
                    implementations[:] = [i for i in implementations if i[0] != plugin]

    def block(self, k: int, samples: Any) -> Any:
        for plugin, implementation in self.hooks["headwater_sample_block"]:
            try:
                changed = implementation(job=self.job, k=k, samples=samples)
            except (Exception, SystemExit) as error:
                raise HeadwaterError(f"headwater_sample_block of the plugin {plugin} failed: {error!r}") from error
            samples = samples if changed is None else changed
        return samples


# Jobs on disk


def _part(parts: Path, k: int, suffix: str) -> Path:
    return parts / f"block-{k:07d}{suffix}"


def _write_block(sampler: Sampler, hooks: _SampleHooks, k: int, condition: Any, parts: Path, suffix: str) -> None:
    job = hooks.job
    sampler.seed = job.seed
    with torch.no_grad(), one_thread(sampler.place):
        samples = sampler.block(k, seeding.generator(job.seed, k, device=sampler.place.device), condition)
    rest = job.items - k * sampler.block_size
    if rest < sampler.block_size:
        samples = sampler.writer.cut(samples, rest)
    samples = hooks.block(k, samples)
    final = _part(parts, k, suffix)
    beside = final.with_name(f".{os.getpid()}-{final.name}")
    try:
        sampler.writer.write(samples, beside, k * sampler.block_size)
        sync(beside)
        beside.rename(final)
    except OSError as error:
        with suppress(OSError):
            remove(beside)
        raise RunError(
            f"cannot write {final}: {error.strerror}; the blocks before are whole: make room and give the same command"
        ) from error


def _stream(
    model: Model, sampler: Sampler, job: SampleJob, path: Path, workers: int, force: bool, items: Any = None
) -> Path:
    """Compute the missing blocks of a job into parts, then join them into ``path``."""
    if workers < 1:
        raise UsageError(f"--workers {workers}: at least one process is needed")
    suffix = sampler.writer.suffix_of(path)
    parts = path.with_name(f"{path.name}.parts")
    ranks = joined()  # under torchrun each computes a share of the blocks, and the first does the rest
    with ExitStack() as held:
        with together(ranks):
            if ranks.global_rank == 0:
                _check_free(sampler, path, force)
                held.enter_context(_holding(parts, path))
                _check_free(sampler, path, force)  # again: another process may have finished it meanwhile
                try:
                    _open_parts(parts, job, force)
                except OSError as error:
                    raise RunError(f"cannot write in {parts}: {error.strerror}") from error
        hooks = _SampleHooks(job)
        total = sampler.blocks(job.items)
        with together(ranks):  # all look before anyone writes
            missing = [k for k in range(total) if not _part(parts, k, suffix).exists()]
            if ranks.global_rank == 0:
                _check_room(sampler, missing, total, suffix, path)
            hooks.call("headwater_sample_start")
        made = sum(map(sampler.amount, range(total))) - sum(map(sampler.amount, missing))
        missing = missing[ranks.global_rank :: ranks.world_size]
        whole = made + sum(map(sampler.amount, missing))  # of several bars the first one's share is shown
        label, first = job.what.partition(":")[2], ranks.global_rank == 0
        progress = Progress(whole, made, shown=first, label=label, unit=sampler.unit)
        with together(ranks), progress as bar:
            if workers == 1 or len(missing) < 2:
                condition = items if items is not None else _job_condition(model, job)
                for k in missing:
                    _write_block(sampler, hooks, k, condition, parts, suffix)
                    made += sampler.amount(k)
                    bar.advance(made)
            else:
                _in_workers(model, sampler, job, parts, suffix, missing, min(workers, len(missing)), total, bar)
        with together(ranks):
            if ranks.global_rank == 0:
                _join(sampler, [_part(parts, k, suffix) for k in range(total)], parts / path.name, path)
                shutil.rmtree(parts, ignore_errors=True)
    hooks.call("headwater_sample_end", path=path)
    return path


def _check_room(sampler: Sampler, missing: list[int], total: int, suffix: str, path: Path) -> None:
    need, free = sampler.room(missing, total, suffix), shutil.disk_usage(path.parent).free
    if need > free:
        raise RunError(
            f"{path} takes up to {need / 1e9:,.2f} GB more while it is made, and {free / 1e9:,.2f} GB are free in "
            f"{path.parent}: make room, or choose another -o"
        )


def _check_free(sampler: Sampler, path: Path, force: bool) -> None:
    taken = next((p for p in (path, *sampler.writer.companions(path)) if p.exists()), None)
    if taken is not None and not force:
        raise RunError(f"{taken} exists; choose another -o or pass --force")


def _join(sampler: Sampler, blocks: list[Path], beside: Path, path: Path) -> None:
    """Join the blocks beside, and put the whole in place, after the files that belong to it."""
    writer = sampler.writer
    try:
        for old in (beside, *writer.companions(beside)):
            remove(old)
        writer.join(blocks, beside)
        writer.finish(beside)
        sync(beside)
        for made, final in zip(writer.companions(beside), writer.companions(path), strict=True):
            remove(final)
            if made.exists():
                sync(made)
                made.rename(final)
        remove(path)
        beside.rename(path)
        fsync(path.parent)
    except OSError as error:
        with suppress(OSError):
            for left in (beside, *writer.companions(beside)):
                remove(left)
        raise RunError(
            f"cannot write {path}: {error.strerror}; the blocks in {path.name}.parts are whole: "
            "make room and give the same command"
        ) from error


@contextmanager
def _holding(parts: Path, path: Path) -> Iterator[None]:
    """Keep other processes from working on the same output."""
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write in {path.parent}: {error.strerror}") from error
    lock = hold(parts / ".lock", path)
    try:
        yield
    finally:
        lock.close()


def _open_parts(parts: Path, job: SampleJob, force: bool) -> None:
    """Say in the folder of parts which job they are of; parts of another are refused, or removed by ``force``."""
    note = parts / "job.json"
    identity = job.identity()
    if note.exists():
        try:
            same = json.loads(note.read_text(encoding="utf-8")) == identity
        except ValueError:
            same = False
        if same:
            return
        if not force:
            raise RunError(f"{parts} holds the parts of another job; remove it or pass --force")
        note.unlink()
    for block in [*parts.glob("block-*"), *parts.glob(".*-block-*")]:  # without a note, nobody knows of which job
        remove(block)
    write_text(note, json.dumps(identity, indent=1))


def _job_condition(model: Model, job: SampleJob) -> Any:
    entry = registry.sampler(model.plan.method.name, job.what.partition(":")[2])
    return _condition(entry, job.condition)


_worker: dict[str, Any] = {}


def _start_worker(run: str, device: str, job: SampleJob) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    model = Model(run, device=device)
    kind, _, name = job.what.partition(":")
    if kind == "sampler":
        sampler = model.sampler(name, job.config)
        condition = _job_condition(model, job)
    else:
        sampler = model.operation(name, job.config)
        condition = _items(sampler, Path(job.input or ""))
    _worker.update(sampler=sampler, hooks=_SampleHooks(job), condition=condition)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next block for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(k: int, parts: str, suffix: str) -> int:
    _write_block(_worker["sampler"], _worker["hooks"], k, _worker["condition"], Path(parts), suffix)
    return k


def _in_workers(
    model: Model,
    sampler: Sampler,
    job: SampleJob,
    parts: Path,
    suffix: str,
    missing: list[int],
    workers: int,
    total: int,
    bar: Progress,
) -> None:
    _check_workers_know(model, job)
    context = multiprocessing.get_context("spawn")
    arguments = (str(model.run.path.resolve()), str(model.place.device), job)
    done, made = total - len(missing), bar.start
    with hidden_main(), ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
        with _without_interrupts():
            waiting: set[Future[int]] = {pool.submit(_work, k, str(parts), suffix) for k in missing}
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    made += sampler.amount(future.result())
                    done += 1
                bar.advance(made)
        except BrokenProcessPool as error:
            raise RunError(
                f"a worker process ended (out of memory?); {done} of {total} blocks are whole: "
                "give the same command, with fewer --workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that a Ctrl-C does not reach: their parent has them finish the block at hand."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_workers_know(model: Model, job: SampleJob) -> None:
    """Refuse workers where they would lack what a script registered: a filter among the hooks, for one."""
    method, (kind, _, name) = model.plan.method.name, job.what.partition(":")
    owners = [registry.owner("method", method), registry.owner("task", model.plan.task_entry.name)]
    owners += [registry.owner("sampler", f"{method}/{name}")] if kind == "sampler" else []
    known = registry.plugins()
    owners += [known[plugin] for hook in SAMPLE_HOOKS for plugin, _ in registry.implementations(hook)]
    for owner in owners:
        if owner.distribution is None:
            raise UsageError(f"worker processes do not know plugin {owner}: use one worker, or install it as a package")
