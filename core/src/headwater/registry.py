"""The registry: which plugins there are, and which methods and tasks they bring.

Plugins are found on first use. One that fails is set aside with its error and a remedy, and all others work.
Of two claims to the name of a method or task, that of the distribution ``headwater-<name>`` wins, else that
of the first distribution in the alphabet; the loser keeps its other entries and its record says what it lost.

``HEADWATER_DISABLE=a,b`` leaves plugins out by name; under ``HEADWATER_STRICT=1`` a broken plugin is an
error.

A script registers without packaging::

    from headwater import registry

    registry.register(module_or_object)


    @registry.task("corridor", summary="A corridor with a reward at its end.")
    class Corridor(Environment): ...
"""

import difflib
import functools
import importlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from headwater.entries import MethodEntry, SamplerEntry, StageEntry, TaskEntry
from headwater.errors import PluginError, UsageError, near
from headwater.loading import HOOKS, Clash, Loaded, Plugin, Point, collect, find, load
from headwater.remedies import Broken, explain, normal, one_line
from headwater.task import Task

__all__ = ["Import", "NoConfig", "Plugin", "Registry", "default"]

METHODS = (
    *("gfn-fl", "gfn-op", "gfn-oc", "gfn-vlm", "bfn-crys", "bfn-moljo", "flow-tsgen", "flow-meta"),
    *("vision-tryon", "vision-rescale", "vision-lzn", "vision-vin", "porous-gan"),
)
"""The methods of this project; the distribution of each is ``headwater-<method>``."""

AnyTask = TypeVar("AnyTask", bound=type[Task])


class NoConfig(BaseModel):
    """The config of a task that has nothing to set."""

    model_config = ConfigDict(extra="forbid")


class Import(NamedTuple):
    """One import string of a plugin: ``role`` says what it must be, ``what`` where it stands."""

    plugin: Plugin
    role: str
    what: str
    string: str


class _Claim(NamedTuple):
    plugin: str
    entry: Any


@dataclass
class _Settled:
    """What is registered under which name, once all claims are settled."""

    plugins: dict[str, Plugin] = field(default_factory=dict)
    claims: dict[str, dict[str, _Claim]] = field(
        default_factory=lambda: {"method": {}, "task": {}, "stage": {}, "sampler": {}}
    )
    objects: dict[str, object] = field(default_factory=dict)


class Registry:
    """Plugins, methods and tasks; the command line and the functions here use :data:`default`."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loaded: list[Loaded] | None = None
        self._settled = _Settled()
        self._discovering = False

    # What there is

    def plugins(self) -> dict[str, Plugin]:
        """The record of every plugin, broken and disabled ones too, by name."""
        return dict(self._ready().plugins)

    def methods(self) -> dict[str, MethodEntry]:
        """Every method by name."""
        return {name: claim.entry for name, claim in sorted(self._ready().claims["method"].items())}

    def tasks(self) -> dict[str, TaskEntry]:
        """Every task by name."""
        return {name: claim.entry for name, claim in sorted(self._ready().claims["task"].items())}

    def stages(self, method: str) -> dict[str, StageEntry]:
        """The stages of ``method`` by name: its own in their order, then those of other plugins."""
        return self._parts("stage", method)

    def samplers(self, method: str) -> dict[str, SamplerEntry]:
        """The samplers of ``method`` by name: its own in their order, then those of other plugins."""
        return self._parts("sampler", method)

    def find_method(self, name: str) -> MethodEntry:
        """The method ``name``.

        Raises:
            UsageError: there is none; the text says what is near and what to install.
        """
        entry: MethodEntry = self._claim("method", name).entry
        return entry

    def find_task(self, name: str) -> TaskEntry:
        """The task ``name``; raises as :meth:`find_method` does."""
        entry: TaskEntry = self._claim("task", name).entry
        return entry

    def stage(self, method: str, name: str | None = None) -> StageEntry:
        """The stage ``name`` of ``method``, or its first."""
        return self._part("stage", method, name)

    def sampler(self, method: str, name: str | None = None) -> SamplerEntry:
        """The sampler ``name`` of ``method``, or its first."""
        return self._part("sampler", method, name)

    def owner(self, kind: str, name: str) -> Plugin:
        """The plugin that registered a ``"method"``, ``"task"`` or ``"stage"`` (``"method/stage"``)."""
        return self._ready().plugins[self._claim(kind, name).plugin]

    def implementations(self, hook: str) -> list[tuple[str, Callable[..., Any]]]:
        """The plugins that implement a fit or sample hook, with a function to call by keyword.

        They come in the order of registration, those marked ``tryfirst`` before and ``trylast`` after the
        others.
        """
        if hook not in HOOKS:
            raise UsageError(f"there is no hook {hook!r}{near(hook, HOOKS)}")
        self._ready()
        found = [(one.plugin.name, one.hooks[hook]) for one in self._loaded or () if hook in one.hooks]
        found.sort(key=lambda pair: pair[1].trylast - pair[1].tryfirst)
        return [(name, functools.partial(_call, impl.function, impl.argnames)) for name, impl in found]

    def imports(self) -> Iterator[Import]:
        """Every import string, the plugin that claims it and what it must be."""
        settled = self._ready()
        for kind, claims in settled.claims.items():
            for name, claim in claims.items():
                plugin = settled.plugins[claim.plugin]
                yield from _imports(plugin, kind, f"{kind} {name!r}", claim.entry)

    def resolve(self, string: str) -> Any:
        """The object that an import string names.

        Raises:
            PluginError: it cannot be had; the text names the entry, its plugin and a remedy.
        """
        objects = self._ready().objects
        if string in objects:
            return objects[string]
        module, _, name = string.partition(":")
        try:
            holder = objects[module] if module in objects else importlib.import_module(module)
            return functools.reduce(getattr, name.split("."), holder)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin's module may raise anything, SystemExit included
            claim = next((claim for claim in self.imports() if claim.string == string), None)
            one = next((o for o in self._loaded or () if claim and o.plugin.name == claim.plugin.name), None)
            reason, remedy = explain(error, one.dist if one else None, module)
            where = f"{claim.role} of {claim.what}, plugin {claim.plugin}: " if claim else ""
            raise Broken(f"cannot import {string!r}: {reason}", remedy, where) from error

    # Registration by a script

    def register(self, found: Any, name: str | None = None) -> None:
        """Register the hooks of a module or object, as if it were an installed plugin.

        Its entries may name classes of ``__main__``. Under a name that a script used before, it replaces what
        was registered then (a notebook cell is run again).

        Raises:
            PluginError: something in it is wrong, or a name is taken.
        """
        plugin = Plugin(name or getattr(found, "__name__", None) or type(found).__name__)
        loaded = Loaded(plugin, objects={found.__name__: found} if hasattr(found, "__name__") else {})
        try:
            collect(found, loaded, api_needed=False)
        except Exception as error:
            raise PluginError(f"cannot register {plugin}: {explain(error, None)[0]}") from error
        self._add(loaded)

    def unregister(self, name: str) -> None:
        """Take back what a script registered under ``name``."""
        with self._lock:
            self._ready()
            self._loaded = [one for one in self._loaded or () if one.plugin.name != name]
            self._settled = _settle(self._loaded)

    def task(
        self, name: str, *, summary: str | None = None, kind: str | None = None, config: type[BaseModel] = NoConfig
    ) -> Callable[[AnyTask], AnyTask]:
        """Register the decorated :class:`~headwater.task.Task` of a script or notebook under ``name``.

        Args:
            name: what ``--task`` calls it.
            summary: one line; by default the first line of the class's docstring.
            kind: by default the class's own ``kind``, which is set to this if there is none.
            config: its config model.
        """

        def decorate(cls: AnyTask) -> AnyTask:
            if not isinstance(cls, type) or not issubclass(cls, Task):
                raise UsageError(f"task {name!r}: {cls!r} is no subclass of headwater.Task")
            own = getattr(cls, "kind", None) or kind
            if own is None or kind not in (None, own):
                raise UsageError(f"task {name!r}: {cls.__name__} is of kind {own!r}, not {kind!r}; name one kind")
            cls.kind = own
            text = summary or (cls.__doc__ or cls.__name__).strip().splitlines()[0]
            strings = {f"{_place(one)}_{name.replace('-', '_')}": one for one in (cls, config)}
            task, model = strings
            try:
                entry = TaskEntry(name=name, kind=own, summary=text, task=task, config=model)
            except ValidationError as error:
                raise UsageError(one_line(error)) from error
            loaded = Loaded(Plugin(name), objects=dict(strings))
            loaded.entries["headwater_tasks"] = [entry]
            self._add(loaded)
            return cls

        return decorate

    def _add(self, loaded: Loaded) -> None:
        with self._lock:
            name = loaded.plugin.name
            present = self._ready().plugins.get(name)
            if present is not None and present.distribution is not None:
                raise PluginError(f"cannot register {loaded.plugin}: {present} is installed; take another name")
            others = [one for one in self._loaded or () if one.plugin.name != name]
            settled = _settle([*others, loaded])
            clashes = settled.plugins[name].clashes
            if clashes:
                raise PluginError(f"cannot register {loaded.plugin}: {clashes[0].text}")
            self._loaded, self._settled = [*others, loaded], settled

    # Discovery and look-up

    def _ready(self) -> _Settled:
        with self._lock:
            if self._loaded is None:
                if self._discovering:
                    raise Broken("it uses the registry while it is imported; use hooks, and import later")
                self._discovering = True
                try:
                    loaded = self._discover()
                    self._loaded, self._settled = loaded, _settle(loaded)
                finally:
                    self._discovering = False
            return self._settled

    def _discover(self) -> list[Loaded]:
        disabled = {name.strip() for name in os.environ.get("HEADWATER_DISABLE", "").split(",")} - {""}
        loaded = []
        for point in find():
            if point.name in disabled:
                name, version, _ = point.dist
                why = "it is left out by HEADWATER_DISABLE"
                record = Plugin(point.name, name, version, None, "disabled", why, "unset HEADWATER_DISABLE")
                loaded.append(Loaded(record, point.dist))
                continue
            loaded.append(self._load(point))
            plugin = loaded[-1].plugin
            if strict() and plugin.state == "broken":
                raise Broken(f"plugin {plugin}: {plugin.error}", plugin.remedy)
        return loaded

    def _load(self, point: Point) -> Loaded:
        return load(point)

    def _parts(self, kind: str, method: str) -> dict[str, Any]:
        self.find_method(method)
        claims = self._ready().claims[kind]
        return {c.entry.name: c.entry for key, c in claims.items() if key.startswith(method + "/")}

    def _part(self, kind: str, method: str, name: str | None) -> Any:
        parts = self._parts(kind, method)
        if name is None:
            return next(iter(parts.values()))
        if name not in parts:
            raise UsageError(f"method {method!r} has no {kind} {name!r}{near(name, parts)}")
        return parts[name]

    def _claim(self, kind: str, name: str) -> _Claim:
        settled = self._ready()
        known = settled.claims[kind]
        if name in known:
            return known[name]
        idle = [plugin for plugin in settled.plugins.values() if plugin.state != "loaded"]
        for plugin in idle:
            names = (
                plugin.name,
                (plugin.distribution or "").removeprefix("headwater-"),
                *plugin.methods,
                *plugin.tasks,
            )
            if name in names:
                raise UsageError(
                    f"{kind} {name!r}: plugin {plugin} is {plugin.state}: {plugin.error}; try: {plugin.remedy}"
                )
        others = METHODS if kind == "method" else ()
        nearest = difflib.get_close_matches(name, {*known, *others}, n=1, cutoff=0.5)
        if name in others:
            hint = f" is not installed; try: pip install headwater-{name}"
        elif nearest and nearest[0] not in known:
            hint = f" is unknown; did you mean {nearest[0]!r}? try: pip install headwater-{nearest[0]}"
        else:
            hint = f" is unknown{near(name, known)}"
        broken = [plugin.name for plugin in idle if plugin.state == "broken"]
        more = f" (broken plugins: {', '.join(broken)}; see headwater doctor)" if broken else ""
        raise UsageError(f"{kind} {name!r}{hint}{more}")


def strict() -> bool:
    """Whether HEADWATER_STRICT asks that a broken plugin be an error."""
    return os.environ.get("HEADWATER_STRICT", "") not in ("", "0")


def _call(function: Callable[..., Any], names: tuple[str, ...], **given: Any) -> Any:
    return function(*(given[name] for name in names))


def _place(cls: type) -> str:
    """An import string for a class that need not be importable: one local to a function or a notebook."""
    module = re.sub(r"[^\w.]|\.(?=\d)|^(?=\d)", "_", cls.__module__)
    return f"{module}:{cls.__qualname__.replace('<locals>.', '')}"


def _imports(plugin: Plugin, kind: str, what: str, entry: Any) -> Iterator[Import]:
    roles = {
        "method": ("converter", "demo"),
        "task": ("task", "config"),
        "stage": ("trainer", "config"),
        "sampler": ("sampler", "config", "condition"),
        "operation": ("operation", "config"),
    }
    for role in roles[kind]:
        if getattr(entry, role) is not None:
            yield Import(plugin, role, what, getattr(entry, role))
    for operation in entry.operations if kind == "method" else ():
        yield from _imports(plugin, "operation", f"operation '{entry.name}/{operation.name}'", operation)


def _settle(loaded: list[Loaded]) -> _Settled:
    """Give each name to one plugin; the record of any other says what it lost."""
    settled = _Settled()
    lost: dict[str, list[Clash]] = {one.plugin.name: list(one.plugin.clashes) for one in loaded}
    shown = {one.plugin.name: str(one.plugin) for one in loaded}
    source = {one.plugin.name: one.plugin.distribution for one in loaded}
    dist = {name: normal(distribution or "") for name, distribution in source.items()}

    def claim(kind: str, name: str, plugin: str, entry: Any) -> None:
        claims = settled.claims[kind]
        winner = claims[name].plugin if name in claims else plugin
        if winner != plugin and dist[plugin] == f"headwater-{name}" != dist[winner]:
            winner, plugin = plugin, winner
        if winner != plugin:
            remedy = f"pip uninstall {source[plugin]}" if source[plugin] else None
            lost[plugin].append(Clash(f"{kind} {name!r} belongs to plugin {shown[winner]}", remedy))
        if name not in claims or claims[name].plugin != winner:
            claims[name] = _Claim(winner, entry)

    for one in loaded:
        for entry in one.entries["headwater_methods"]:
            claim("method", entry.name, one.plugin.name, entry)
        for entry in one.entries["headwater_tasks"]:
            claim("task", entry.name, one.plugin.name, entry)
        settled.objects.update(one.objects)
    for name, (plugin, method) in settled.claims["method"].items():
        for stage in method.stages:
            claim("stage", f"{name}/{stage.name}", plugin, stage)
        for sampler in method.samplers:
            claim("sampler", f"{name}/{sampler.name}", plugin, sampler)
    for one in loaded:
        for kind, hook in (("stage", "headwater_trainers"), ("sampler", "headwater_samplers")):
            for entry in one.entries[hook]:
                if entry.method in settled.claims["method"]:
                    claim(kind, f"{entry.method}/{entry.name}", one.plugin.name, entry)
                else:
                    text = f"{kind} {entry.name!r} is for {entry.method!r}, which is no method here"
                    lost[one.plugin.name].append(Clash(text, f"pip install headwater-{entry.method}"))
    _record(loaded, lost, settled)
    return settled


def _record(loaded: list[Loaded], lost: dict[str, list[Clash]], settled: _Settled) -> None:
    owned: dict[str, dict[str, list[str]]] = {one.plugin.name: {} for one in loaded}
    for kind, claims in settled.claims.items():
        for name, (plugin, entry) in claims.items():
            if kind in ("method", "task") or entry.method is not None:
                owned[plugin].setdefault(f"{kind}s", []).append(name)
    for one in loaded:
        name = one.plugin.name
        if one.plugin.state == "loaded":
            names = {kind: tuple(names) for kind, names in owned[name].items()}
            blank = dict.fromkeys(("methods", "tasks", "stages", "samplers"), ())
            settled.plugins[name] = replace(one.plugin, clashes=tuple(lost[name]), **(blank | names))  # type: ignore[arg-type]
        else:
            settled.plugins[name] = one.plugin


default = Registry()
register = default.register
unregister = default.unregister
task = default.task
plugins = default.plugins
methods = default.methods
tasks = default.tasks
stages = default.stages
samplers = default.samplers
find_method = default.find_method
find_task = default.find_task
stage = default.stage
sampler = default.sampler
owner = default.owner
implementations = default.implementations
imports = default.imports
resolve = default.resolve
