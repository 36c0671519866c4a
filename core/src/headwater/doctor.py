"""``headwater doctor``: resolve all that every plugin names, in a child process, and say what is wrong.

The child imports everything and reports what it is about to do, then how it went, one JSON line each. If it
dies or hangs, what it was about is to blame; another child goes on without that. So a crash, an endless
import or a ``sys.exit`` of a plugin costs one finding and nothing more.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from headwater.errors import HeadwaterError, near
from headwater.loading import Loaded, Plugin, Point, load
from headwater.registry import Import, Registry
from headwater.remedies import Broken, one_line

__all__ = ["Finding", "as_json", "as_text", "examine"]

HEAVY = ("torch", "numpy")
PATIENCE = 600.0
"""Seconds that the child may take to start and to import torch, which are not charged to any plugin."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a plugin; ``remedy`` is a line to paste. A warning hinders no work."""

    plugin: str
    distribution: str | None
    version: str | None
    what: str
    remedy: str | None = None
    level: Literal["error", "warning"] = "error"


def examine(timeout: float = 120.0) -> list[Finding]:
    """Import every plugin and all that it names, in a child process; return what is wrong, plugin by plugin.

    Args:
        timeout: seconds that one import may take.

    Raises:
        HeadwaterError: no child process can be started.
    """
    blamed: dict[str, str] = {}
    while True:
        findings, culprit, why = _watch(_Child(blamed), timeout)
        if culprit is None:
            return findings
        if culprit in blamed:  # no plugin's fault, or it would have been left out
            raise HeadwaterError(f"{culprit} {why}; try: pip install --upgrade --force-reinstall headwater")
        blamed[culprit] = why


def as_text(findings: Sequence[Finding]) -> str:
    """The findings for a reader at a terminal."""
    if not findings:
        return "no problem found"
    lines = []
    for finding in findings:
        where = f"{finding.distribution or finding.plugin} {finding.version or ''}".rstrip()
        lines.append(f"{finding.level}: {where}: {finding.what}")
        lines += [f"  try: {finding.remedy}"] if finding.remedy else []
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as plain data."""
    return [asdict(finding) for finding in findings]


# The parent


class _Child:
    """The process that does the importing, and the pipe on which it reports."""

    def __init__(self, blamed: Mapping[str, str]) -> None:
        self.pipe, far_end = os.pipe()
        order = {"pipe": far_end, "path": sys.path, "blamed": blamed}
        try:
            self.process = subprocess.Popen(
                # -P: the folder at hand is on the path only if it is so here.
                [sys.executable, "-P", "-m", "headwater.doctor"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(far_end,),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HEADWATER_STRICT": ""},
                start_new_session=True,
            )
            assert self.process.stdin is not None
            with suppress(BrokenPipeError), self.process.stdin as stdin:
                stdin.write(json.dumps(order).encode())
        except OSError as error:
            os.close(self.pipe)
            raise HeadwaterError(f"cannot start a child process: {error.strerror}") from error
        finally:
            os.close(far_end)

    def lines(self, timeout: float) -> Iterator[dict[str, Any]]:
        """What the child reports until it ends; ``TimeoutError`` if it is silent for ``timeout`` seconds."""
        rest, limit = b"", PATIENCE
        while True:
            if not select.select([self.pipe], [], [], limit)[0]:
                raise TimeoutError
            received = os.read(self.pipe, 1 << 16)
            if not received:
                return
            *whole, rest = (rest + received).split(b"\n")
            for line in map(json.loads, whole):
                limit = line.get("limit", timeout)
                yield line

    def end(self) -> int:
        """Wait a moment for the child, then end it and all that it started; return its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        os.close(self.pipe)
        return self.process.wait()


def _watch(child: _Child, timeout: float) -> tuple[list[Finding], str | None, str]:
    """Read the child's report: the findings, and what it was about when it died or hung, if it did."""
    findings: list[Finding] = []
    about: str | None = None
    finished = False
    hung = False
    try:
        for line in child.lines(timeout):
            about = line.get("about", about)
            finished = "finished" in line
            findings += [Finding(**found) for found in line.get("findings", ())]
            if finished:
                break
    except TimeoutError:
        hung = True
    code = child.end()
    if finished:
        return findings, None, ""
    if about is None:
        raise HeadwaterError(f"the examination did not start (exit code {code}); try: headwater --debug list")
    if hung:
        return findings, about, f"does not end within {timeout:g} seconds"
    if code < 0:
        return findings, about, f"crashes the process with {signal.Signals(-code).name}"
    return findings, about, f"ends the process with exit code {code}"


# The child


class _Blamed(Broken):
    """An earlier child did not outlive this."""


class _Reporter:
    def __init__(self, pipe: int, blamed: Mapping[str, str]) -> None:
        self.pipe, self.blamed = pipe, blamed
        os.set_inheritable(pipe, False)

    def say(self, **line: Any) -> None:
        text = json.dumps(line).encode() + b"\n"
        while text:
            text = text[os.write(self.pipe, text) :]

    @contextmanager
    def about(self, key: str) -> Iterator[None]:
        """Say what comes next; if this process does not outlive it, ``key`` is to blame.

        Raises:
            _Blamed: an earlier child did not outlive it.
        """
        self.say(about=key)
        if key in self.blamed:
            raise _Blamed(self.blamed[key])
        yield


class _Watched(Registry):
    """A registry that reports each plugin before it imports it, and what importing it brought in."""

    def __init__(self, reporter: _Reporter) -> None:
        super().__init__()
        self.reporter = reporter
        self.heavy: dict[str, list[str]] = {}

    def _load(self, point: Point) -> Loaded:
        before = {name for name in HEAVY if name in sys.modules}
        try:
            with self.reporter.about(f"plugin {point.name}"):
                loaded = load(point)
        except _Blamed as error:
            dist = point.dist
            reason, remedy = f"importing it {error.reason}", f"pip install --upgrade {dist.name}"
            return Loaded(Plugin(point.name, dist.name, dist.version, None, "broken", reason, remedy), dist)
        self.heavy[point.name] = [name for name in HEAVY if name in sys.modules and name not in before]
        return loaded


def _examine_here(reporter: _Reporter) -> None:
    registry = _Watched(reporter)
    for plugin in registry.plugins().values():
        for found in _of_plugin(plugin, registry.heavy.get(plugin.name, [])):
            reporter.say(findings=[asdict(found)])
    reporter.say(about="importing headwater.sampling", limit=PATIENCE)
    import headwater.sampling  # noqa: F401 - and torch with it

    for one in registry.imports():
        reason, remedy = _fault(registry, one, reporter)
        if reason:
            remedy = remedy or _upgrade(one.plugin)
            reporter.say(findings=[asdict(_finding(one.plugin, f"{one.role} of {one.what}: {reason}", remedy))])
    for found in _of_methods(registry):
        reporter.say(findings=[asdict(found)])
    reporter.say(finished=True)


def _finding(plugin: Plugin, what: str, remedy: str | None, level: Literal["error", "warning"] = "error") -> Finding:
    return Finding(plugin.name, plugin.distribution, plugin.version, what, remedy, level)


def _upgrade(plugin: Plugin) -> str | None:
    return f"pip install --upgrade {plugin.distribution}" if plugin.distribution else None


def _of_plugin(plugin: Plugin, heavy: list[str]) -> Iterator[Finding]:
    if plugin.state == "broken":
        yield _finding(plugin, plugin.error or "it cannot be used", plugin.remedy or _upgrade(plugin))
    for clash in plugin.clashes:
        yield _finding(plugin, clash.text, clash.remedy)
    if plugin.output:
        first = plugin.output.splitlines()[0]
        yield _finding(plugin, f"importing it prints or warns: {first}", _upgrade(plugin), "warning")
    if heavy:
        what = f"importing its plugin module loads {' and '.join(heavy)}, for which every command waits"
        yield _finding(plugin, what, _upgrade(plugin), "warning")


def _of_methods(registry: Registry) -> Iterator[Finding]:
    """Names that an entry gives of other entries, and that lead nowhere."""
    tasks = registry.tasks()
    for name, method in registry.methods().items():
        plugin = registry.owner("method", name)
        if method.task not in tasks:
            what = f"the default task {method.task!r} of {name!r} is not registered{near(method.task, tasks)}"
            yield _finding(plugin, what, _upgrade(plugin))
        elif tasks[method.task].kind not in method.kinds:
            kind = tasks[method.task].kind
            what = f"the default task {method.task!r} is {kind}, which {name!r} does not accept"
            yield _finding(plugin, what, _upgrade(plugin))
        stages = registry.stages(name)
        for stage in stages.values():
            for before in stage.after:
                if before not in stages:
                    what = f"stage '{name}/{stage.name}' builds on {before!r}{near(before, stages)}"
                    owner = registry.owner("stage", f"{name}/{stage.name}")
                    yield _finding(owner, what, _upgrade(owner))


def _fault(registry: Registry, one: Import, reporter: _Reporter) -> tuple[str | None, str | None]:
    """What is wrong with one import string, and the remedy."""
    try:
        with reporter.about(f"module {one.string.partition(':')[0]}"):  # one hang a module is enough
            return _wrong(registry, one, registry.resolve(one.string)), None
    except _Blamed as error:
        return f"importing {one.string!r} {error.reason}", None
    except Broken as error:
        return error.reason, error.remedy


def _wrong(registry: Registry, one: Import, found: Any) -> str | None:
    from pydantic import BaseModel

    from headwater.sampler import Operation, Sampler
    from headwater.task import Task
    from headwater.trainer import Trainer

    kinds: dict[str, type] = {
        "trainer": Trainer, "sampler": Sampler, "operation": Operation, "task": Task,
        "config": BaseModel, "condition": BaseModel,
    }  # fmt: skip
    kind = kinds.get(one.role)
    if kind is None:
        return None if callable(found) else f"{one.string!r} cannot be called"
    if not isinstance(found, type) or not issubclass(found, kind):
        home = "pydantic" if kind is BaseModel else "headwater"
        return f"{one.string!r} is no subclass of {home}.{kind.__name__}"
    if issubclass(found, BaseModel):
        return _attempt(found.model_json_schema, "its JSON schema cannot be built")
    abstract = sorted(getattr(found, "__abstractmethods__", ()))
    if abstract:
        return f"{one.string!r} lacks {', '.join(abstract)}"
    if one.role == "task":
        named = {task.task: task.kind for task in registry.tasks().values()}.get(one.string)
        own = getattr(found, "kind", None)
        return None if own == named else f"its entry says kind {named!r}, the class {own!r}"
    return None


def _attempt(work: Callable[[], object], otherwise: str) -> str | None:
    try:
        work()
    except Exception as error:
        return f"{otherwise}: {one_line(error)}"
    return None


def _main() -> None:
    order = json.loads(sys.stdin.buffer.read())
    sys.path[:] = order["path"]
    _examine_here(_Reporter(order["pipe"], order["blamed"]))
    os._exit(0)  # threads and exit handlers of plugins are of no concern


if __name__ == "__main__":
    _main()
