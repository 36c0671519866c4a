"""Loading one plugin: find it, import it with its output caught, check its hooks, take what they return.

No exception of a plugin gets out of here: it ends in the plugin's record, with a remedy to paste.
"""

import contextlib
import functools
import io
import operator
import re
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import importlib_metadata
import pluggy
from importlib_metadata import EntryPoint

from headwater import hookspecs
from headwater.entries import API, Entry, MethodEntry, SamplerEntry, StageEntry, TaskEntry
from headwater.errors import near
from headwater.remedies import Broken, Distribution, explain, normal, one_line

__all__ = ["Clash", "Loaded", "Plugin", "Point", "collect", "core_version", "find", "load"]

GROUP = "headwater"
RETURNS: dict[str, type[Entry]] = {
    "headwater_methods": MethodEntry,
    "headwater_trainers": StageEntry,
    "headwater_samplers": SamplerEntry,
    "headwater_tasks": TaskEntry,
}
OF_CORE = re.compile(r"headwater(?![-\w.])")
HOOKS = (*RETURNS, *hookspecs.FIT_HOOKS, *hookspecs.SAMPLE_HOOKS)


class Clash(NamedTuple):
    """What of a plugin is left out, and the line to paste against it."""

    text: str
    remedy: str | None = None


@dataclass(frozen=True)
class Plugin:
    """What is known about one plugin.

    ``distribution``, ``version`` and ``module`` are ``None`` for what a script registered. ``stages`` and
    ``samplers`` are those that it adds to methods of other plugins, as ``"method/name"``. ``methods`` and
    ``tasks`` of a broken plugin are those that it would have, as far as they are known. ``clashes`` says what
    of it is left out, and why. ``output`` is what importing it printed or warned.
    """

    name: str
    distribution: str | None = None
    version: str | None = None
    api: int | None = None
    state: Literal["loaded", "broken", "disabled"] = "loaded"
    error: str | None = None
    remedy: str | None = None
    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    samplers: tuple[str, ...] = ()
    clashes: tuple[Clash, ...] = ()
    output: str = ""
    module: str | None = None

    def __str__(self) -> str:
        where = f"{self.distribution} {self.version or ''}".strip() if self.distribution else "this script"
        return f"{self.name!r} ({where})"


@dataclass
class Point:
    """Where a plugin was found; without an ``entry``, ``error`` says why its entry point cannot be read."""

    name: str
    dist: Distribution
    entry: EntryPoint | None = None
    error: Exception | None = None
    clashes: tuple[Clash, ...] = ()


@dataclass
class Loaded:
    """A plugin's record and what it registers; ``objects`` are classes of a script by their import string."""

    plugin: Plugin
    dist: Distribution | None = None
    api: int | None = None
    entries: dict[str, list[Any]] = field(default_factory=lambda: {hook: [] for hook in RETURNS})
    hooks: dict[str, pluggy.HookImpl] = field(default_factory=dict)
    objects: dict[str, object] = field(default_factory=dict)


def find() -> list[Point]:
    """All plugins installed, in the order of their distributions' names; each plugin name is given once.

    Of two plugins of one name, that of the distribution ``headwater-<name>`` keeps it, else the first in the
    alphabet; the other goes by the name of its distribution.
    """
    points = []
    for source, entry, error in _entries():
        fallback = normal(entry.value.partition(":")[0].partition(".")[0]) if entry else "unknown"
        try:
            dist = Distribution.read(source, fallback)
        except Exception as unreadable:
            dist, entry, error = Distribution(fallback), None, unreadable
        points.append(Point(entry.name if entry else normal(dist.name), dist, entry, error))
    points.sort(key=lambda p: (normal(p.dist.name), p.name))
    taken: dict[str, str] = {}
    for point in sorted(points, key=lambda p: normal(p.dist.name) != f"headwater-{p.name}"):
        while point.name in taken:
            text = f"its name {point.name!r} belongs to {taken[point.name]}"
            point.clashes += (Clash(text, f"pip uninstall {point.dist.name}"),)
            point.name = normal(point.dist.name) if len(point.clashes) == 1 else point.name + "-2"
        taken[point.name] = point.dist.name
    return points


def _entries() -> Iterator[tuple[Any, EntryPoint | None, Exception | None]]:
    try:
        found = [(entry.dist, entry, None) for entry in importlib_metadata.entry_points(group=GROUP)]
    except Exception:
        pass  # one damaged file spoils the whole list: go through the distributions one by one
    else:
        yield from found
        return
    seen = set()
    for dist in importlib_metadata.distributions():
        try:
            key = normal(dist.metadata["Name"])
            for entry in dist.entry_points.select(group=GROUP) if key not in seen else ():
                yield dist, entry, None
            seen.add(key)
        except Exception as error:
            if _is_plugin(dist):
                yield dist, None, error


def _is_plugin(dist: Any) -> bool:
    """Whether a distribution whose entry points cannot be read has, or ought to have, one for headwater."""
    try:
        return f"[{GROUP}]" in (dist.read_text("entry_points.txt") or "")
    except Exception:
        with contextlib.suppress(Exception):
            return normal(dist.metadata["Name"]).startswith("headwater-")
        return False


def load(point: Point) -> Loaded:
    """Import the plugin at ``point`` and take what it registers; a broken one registers nothing."""
    loaded = Loaded(Plugin(point.name), point.dist)
    output: list[str] = []
    reason = remedy = None
    module = point.entry.value.partition(":")[0].strip() if point.entry else ""
    try:
        if point.entry is None:
            raise Broken(f"its metadata cannot be read: {one_line(point.error or Exception())}")
        _check_core(point.dist)
        with _caught(output):
            collect(point.entry.load(), loaded)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        reason, remedy = explain(error, point.dist, module)
    loaded.plugin = Plugin(
        point.name,
        point.dist.name,
        point.dist.version,
        loaded.api,
        "broken" if reason else "loaded",
        reason,
        remedy,
        methods=tuple(entry.name for entry in loaded.entries["headwater_methods"]),
        tasks=tuple(entry.name for entry in loaded.entries["headwater_tasks"]),
        clashes=point.clashes,
        output="".join(output).strip(),
        module=module or None,
    )
    return Loaded(loaded.plugin, point.dist) if reason else loaded


@contextlib.contextmanager
def _caught(output: list[str]) -> Iterator[None]:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, "utf-8", write_through=True)  # plugins may want sys.stdout.buffer
    before = sys.stdout, sys.stderr
    with warnings.catch_warnings(record=True) as warned:
        sys.stdout = sys.stderr = stream
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            if not buffer.closed:
                output.append(buffer.getvalue().decode("utf-8", "replace"))
            output.extend(f"\n{w.category.__name__}: {w.message}" for w in warned)


def _check_core(dist: Distribution) -> None:
    core = core_version()
    for text in dist.requires:
        if core and OF_CORE.match(text) and not _plainly_fits(text, core):
            wanted, fits, too_old = _compare(text, core)
            if not fits:
                remedy = f"pip install '{wanted}'" if too_old else None
                raise Broken(f"it needs {wanted}, but headwater {core} is installed", remedy)


@functools.cache
def core_version() -> str | None:
    """The version of the installed core."""
    try:
        return importlib_metadata.version("headwater")
    except importlib_metadata.PackageNotFoundError:
        return None  # run from a source tree: nothing to compare with


_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def _plainly_fits(text: str, core: str) -> bool:
    """Whether ``core`` keeps within bounds such as ``>=0.1,<0.2``: the usual case, told without ``packaging``, which
    takes longer to import than the rest of the discovery.
    """
    clauses = text.removeprefix("headwater").split(",")
    bounds = [m for c in clauses if (m := re.fullmatch(r"\s*([<>]=?)\s*(\d+(?:\.\d+)*)\s*", c))]
    if len(bounds) < len(clauses) or not re.fullmatch(r"\d+(\.\d+)*", core):
        return False
    return all(_COMPARE[m[1]](_release(core), _release(m[2])) for m in bounds)


def _release(version: str) -> list[int]:
    return [int(number) for number in re.sub(r"(\.0+)+$", "", version).split(".")]


@functools.cache
def _compare(text: str, core: str) -> tuple[str, bool, bool]:
    """The requirement, whether ``core`` meets it, and whether ``core`` is too old for it."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    requirement = Requirement(text)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    fits = not applies or requirement.specifier.contains(core, prereleases=True)
    bounds = [s.version.removesuffix(".*") for s in requirement.specifier if s.operator in (">=", ">", "==", "~=")]
    return f"headwater{requirement.specifier}", fits, any(Version(b) > Version(core) for b in bounds)


def collect(found: Any, loaded: Loaded, api_needed: bool = True) -> None:
    """Check the module or object ``found`` and put what it registers into ``loaded``.

    Raises:
        Broken: a hook has an unknown name or wrong arguments, returns the wrong thing, or there is none.
    """
    module = sys.modules.get(getattr(found, "__module__", ""))
    api = getattr(found, "API", getattr(module, "API", None))
    if api is None and api_needed:
        raise Broken(f"it does not say for which plugin API it was written; this headwater has API = {API}")
    if api is not None and api != API:
        remedy = "pip install --upgrade headwater" if isinstance(api, int) and api > API else None
        raise Broken(f"it was written for plugin API {api!r}; this headwater has API {API}", remedy)
    loaded.api = api
    hooks = _hooks(found, loaded.plugin.name)
    for name, kind in RETURNS.items():
        if name in hooks:
            loaded.entries[name] = _returned(name, kind, hooks.pop(name).function())
    if not hooks and not any(loaded.entries.values()):
        raise Broken("it registers nothing: its hooks return empty lists")
    _check_names(loaded.entries)
    loaded.hooks = hooks


@functools.cache
def _arguments() -> dict[str, tuple[str, ...]]:
    """The arguments of every hook."""
    codes = {name: getattr(hookspecs, name).__code__ for name in HOOKS}
    return {name: code.co_varnames[: code.co_argcount] for name, code in codes.items()}


@functools.cache
def _manager() -> pluggy.PluginManager:
    return pluggy.PluginManager("headwater")


def _hooks(found: Any, name: str) -> dict[str, pluggy.HookImpl]:
    """The marked functions of ``found`` by the name of their hook.

    Registering with pluggy would look at every name in a module, which costs as much as importing it; so its own
    functions alone are looked at.
    """
    if isinstance(found, types.ModuleType):
        names = [n for n, value in vars(found).items() if isinstance(value, types.FunctionType)]
    else:
        names = dir(found)
    hooks: dict[str, pluggy.HookImpl] = {}
    for attribute in names:
        options = _manager().parse_hookimpl_opts(found, attribute)
        if options is None:
            continue
        hook = options.get("specname") or attribute
        if hook in hooks:
            raise Broken(f"it implements {hook} twice")
        if hook not in HOOKS:
            if options["optionalhook"]:
                continue
            raise Broken(f"there is no hook {hook!r}{near(hook, HOOKS)}")
        if options["wrapper"] or options["hookwrapper"]:
            raise Broken(f"{hook} is a hook wrapper, which headwater does not call")
        hooks[hook] = pluggy.HookImpl(found, name, getattr(found, attribute), options)
        strange = [a for a in hooks[hook].argnames if a not in _arguments()[hook]]
        if strange:
            offered = ", ".join(_arguments()[hook]) or "none"
            raise Broken(f"{hook} takes {', '.join(strange)}; the arguments of this hook: {offered}")
    if not hooks:
        unmarked = [n for n in dir(found) if n in HOOKS]
        why = f"{unmarked[0]} lacks the mark @hookimpl" if unmarked else "it has no function marked @hookimpl"
        raise Broken(f"it registers nothing: {why}")
    return hooks


def _returned(hook: str, kind: type[Entry], value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise Broken(f"{hook} returns {type(value).__name__}, not a list of {kind.__name__}")
    strange = [type(item).__name__ for item in value if not isinstance(item, kind)]
    if strange:
        raise Broken(f"{hook} returns a list with {strange[0]} in it, not only {kind.__name__}")
    return list(value)


def _check_names(entries: dict[str, list[Any]]) -> None:
    def once(what: str, names: Iterable[str]) -> None:
        listed = list(names)
        if len(set(listed)) < len(listed):
            raise Broken(f"it registers {what} {max(listed, key=listed.count)!r} twice")

    once("task", (entry.name for entry in entries["headwater_tasks"]))
    once("method", (entry.name for entry in entries["headwater_methods"]))
    for method in entries["headwater_methods"]:
        for what in ("stages", "samplers", "operations"):
            once(f"in the {what} of {method.name!r}", (entry.name for entry in getattr(method, what)))
    for hook in ("headwater_trainers", "headwater_samplers"):
        once(f"by {hook}", (f"{entry.method}/{entry.name}" for entry in entries[hook]))
        for entry in entries[hook]:
            if entry.method is None:
                raise Broken(f"{hook}: {entry.name!r} does not say for which method it is")
