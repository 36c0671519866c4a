"""The run directory: manifest, config, metrics, checkpoints, samples and report of one training run."""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from headwater.config import read_toml, to_toml
from headwater.errors import RunError, UsageError
from headwater.state import fsync, load_state, remove, save_state, verify_checksums, write_checksums, write_text

__all__ = ["SCHEMA", "Manifest", "Run", "Source", "hold", "safe_name"]

SCHEMA = 1


class Source(BaseModel):
    """Which stage built some of the run's modules, and with which config; needed to build them again."""

    model_config = ConfigDict(extra="forbid")
    stage: str
    trainer: dict[str, Any]
    modules: list[str]


class Manifest(BaseModel):
    """What a run is. Written once, when the run is made."""

    model_config = ConfigDict(extra="forbid")
    schema_version: int = SCHEMA
    id: str
    method: str
    stage: str
    task: str
    sampler: str
    plugin: str | None
    plugin_version: str | None
    core_version: str
    seed: int
    processes: int = 1
    sources: list[Source] = []
    lineage: list[dict[str, Any]] = []
    converted_from: list[dict[str, str]] = []
    command: list[str] = []
    created: str = ""
    python: str = ""
    platform: str = ""
    torch: str = ""
    git: dict[str, Any] | None = None
    frozen: dict[str, dict[str, str]] = {}


def safe_name(name: str) -> str:
    """``name`` if it can be one plain file name.

    Raises:
        UsageError: it holds a path separator, a leading dot, or other characters than letters, digits,
            ``._-``.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) or len(name) > 120:
        raise UsageError(f"{name!r} cannot be a file name here; use letters, digits, '.', '_' and '-'")
    return name


def _git_state() -> dict[str, Any] | None:
    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def circumstances() -> dict[str, Any]:
    """What a manifest records of the machine and the moment."""
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = ""
    return {
        "id": uuid.uuid4().hex,
        "core_version": version("headwater"),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch_version,
        "git": _git_state(),
        "command": ["headwater", *sys.argv[1:]] if Path(sys.argv[0]).name in ("headwater", "__main__.py") else sys.argv,
    }


def hold(file: Path, what: Path) -> IO[bytes]:
    """Lock ``file`` for this process until it is closed.

    Raises:
        RunError: another process holds it and with it ``what``, or it cannot be written.
    """
    lock: IO[bytes] | None = None
    try:
        lock = file.open("a+b")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if lock is not None:
            lock.close()
        if isinstance(error, BlockingIOError):
            raise RunError(f"{what} is in use by another process; wait for it to end") from error
        raise RunError(f"cannot write in {file.parent}: {error.strerror}") from error
    return lock


class Run:
    """A run directory on disk. Opening one reads its manifest and nothing else."""

    def __init__(self, path: Path) -> None:
        """Open the run at ``path``.

        Raises:
            RunError: it is missing, damaged, or was written by a newer headwater.
        """
        self.path = Path(path)
        self.reason = ""
        """Why training ended, when this process trained it."""
        self._lock: IO[bytes] | None = None
        file = self.path / "manifest.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            schema = content.get("schema_version")
        except FileNotFoundError as error:
            raise RunError(
                f"{self.path} is no run: it has no manifest.json; "
                f"make one with: headwater train METHOD --out {self.path}"
            ) from error
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"cannot read {file}: {type(error).__name__}: {error}") from error
        if isinstance(schema, int) and schema > SCHEMA:
            raise RunError(
                f"{self.path} was written by a newer headwater (run schema {schema}, this one reads "
                f"{SCHEMA}); upgrade with: pip install -U headwater"
            )
        try:
            self.manifest = Manifest.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise RunError(f"{file} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error

    @classmethod
    def create(cls, path: Path, manifest: Manifest, config: Mapping[str, BaseModel], *, force: bool = False) -> "Run":
        """Make a new run directory: whole, or not at all.

        Raises:
            RunError: ``path`` exists and ``force`` is not given, or cannot be written.
        """
        path = Path(path)
        cls.check_free(path, force)
        beside = path.with_name(f".{path.name}.{os.getpid()}.new")
        replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
        in_place = False
        try:
            beside.mkdir(parents=True)
            for room in ("checkpoints", "samples"):
                (beside / room).mkdir()
            write_text(beside / "config.toml", to_toml(config))
            write_text(beside / "manifest.json", manifest.model_dump_json(indent=1))
            if path.exists():
                path.rename(replaced)
            beside.rename(path)
            in_place = True
            fsync(path.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(path if in_place else beside, ignore_errors=True)
            if replaced.exists():
                replaced.rename(path)
            raise RunError(f"cannot make the run {path}: {error.strerror}") from error
        return cls(path)

    @staticmethod
    def check_free(path: Path, force: bool) -> None:
        """Say that a run can be made at ``path``.

        Raises:
            RunError: ``path`` exists and ``force`` is not given; it is no run; another process holds it.
        """
        if not path.exists():
            return
        if not force:
            raise RunError(f"{path} exists; choose another --out, continue it with 'headwater resume', or pass --force")
        if not path.is_dir() or ((not (path / "manifest.json").exists()) and any(path.iterdir())):
            raise RunError(f"{path} is no run, so --force will not replace it; choose another --out")
        if (path / ".lock").exists():
            hold(path / ".lock", path).close()

    def lock(self) -> None:
        """Hold the run for this process until it ends.

        Raises:
            RunError: another process holds it.
        """
        self._lock = hold(self.path / ".lock", self.path)

    def unlock(self) -> None:
        """Let other processes have the run again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def config(self) -> dict[str, Any]:
        """The four parts of the run's config, as plain tables."""
        return read_toml(self.path / "config.toml")

    def write_config(self, config: Mapping[str, BaseModel]) -> None:
        """Replace the config (a resumed run may get more steps)."""
        self.write("config.toml", to_toml(config))

    def write(self, name: str, text: str) -> None:
        """Put a text file in place in the run.

        Raises:
            RunError: it cannot be written.
        """
        try:
            write_text(self.path / name, text)
        except OSError as error:
            raise RunError(f"cannot write {self.path / name}: {error.strerror}") from error

    # Metrics

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of ``metrics.jsonl``; one cut short by a crash, or of another form, is left out."""
        lines = []
        with suppress(FileNotFoundError), self.metrics_path.open(encoding="utf-8", errors="replace") as source:
            for text in source:
                with suppress(ValueError):
                    line = json.loads(text)
                    if isinstance(line, dict) and isinstance(line.get("step"), int):
                        lines.append(line)
        return lines

    def go_back(self, step: int) -> None:
        """Leave the run as it was at ``step``: later metrics and checkpoints, which will be made again, and what a
        killed process left half-written, go. The run must be locked.
        """
        unfinished = [*self.path.glob(".*.tmp"), *(self.path / "checkpoints").glob(".step-*")]
        later = [self.checkpoint_path(s) for s in self.checkpoints() if s > step]  # damaged
        for path in unfinished + later:
            with suppress(OSError):
                remove(path)
        if self.metrics_path.exists():
            kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
            self.write(self.metrics_path.name, "".join(kept))

    # Checkpoints

    def checkpoints(self) -> list[int]:
        """The steps of the checkpoints on disk, ascending. Unfinished ones do not count."""
        folder = self.path / "checkpoints"
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(m[1]) for name in names if (m := re.fullmatch(r"step-(\d+)", name)))

    def checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step}"

    def unfinished_path(self, step: int) -> Path:
        """The folder into which the parts of a checkpoint are written before it is published."""
        return self.path / "checkpoints" / f".step-{step}.new"

    def begin_checkpoint(self, step: int) -> Path:
        """Make the folder for the parts of a checkpoint, empty."""
        folder = self.unfinished_path(step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def publish_checkpoint(self, step: int, keep: int) -> None:
        """Sync a written checkpoint and rename it into place, then drop all but the ``keep`` latest."""
        folder, final = self.unfinished_path(step), self.checkpoint_path(step)
        write_checksums(folder, [p.name for p in folder.iterdir()])
        if self.metrics_path.exists():  # it holds what led to this checkpoint
            fsync(self.metrics_path)
        folder.rename(final)
        fsync(final.parent)
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(self.checkpoint_path(old), ignore_errors=True)

    def latest(self) -> int | None:
        """The step of the latest checkpoint whose checksums hold; ``None`` when there is none.

        Raises:
            RunError: there are checkpoints and all of them are damaged; names the damage of the latest.
        """
        first_error: RunError | None = None
        for step in reversed(self.checkpoints()):
            try:
                verify_checksums(self.checkpoint_path(step))
                return step
            except RunError as error:
                first_error = first_error or error
        if first_error is not None:
            raise RunError(f"{first_error}; no checkpoint is whole: start again with --force") from first_error
        return None

    def load(self, step: int, name: str) -> Any:
        """One state (``model``, ``training``, ``rank-0``) of the checkpoint of ``step``."""
        return load_state(self.checkpoint_path(step), name)

    def save_model(self, state: Any, step: int = 0) -> None:
        """Publish a checkpoint that holds a model only (a converted one)."""
        folder = self.begin_checkpoint(step)
        save_state(folder, "model", state)
        self.publish_checkpoint(step, keep=1)
