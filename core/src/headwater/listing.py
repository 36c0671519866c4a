"""What ``headwater list`` shows: plugins, methods and tasks, as far as importing each ``plugin.py`` tells."""

from typing import Any

from headwater import registry
from headwater.entries import API
from headwater.loading import Plugin, core_version

__all__ = ["as_text", "listing"]


def listing() -> dict[str, Any]:
    """Everything installed, as plain data: ``headwater``, ``api``, ``plugins``, ``methods`` and ``tasks``.

    Neither torch nor numpy nor any class of a plugin is imported.
    """
    return {
        "headwater": core_version(),
        "api": API,
        "plugins": [_plugin(plugin) for plugin in registry.plugins().values()],
        "methods": [
            {
                "name": name,
                "summary": method.summary,
                "kinds": list(method.kinds),
                "task": method.task,
                "stages": list(registry.stages(name)),
                "samplers": list(registry.samplers(name)),
                "operations": [operation.name for operation in method.operations],
                "plugin": registry.owner("method", name).name,
            }
            for name, method in registry.methods().items()
        ],
        "tasks": [
            {"name": name, "summary": task.summary, "kind": task.kind, "plugin": registry.owner("task", name).name}
            for name, task in registry.tasks().items()
        ],
    }


def _plugin(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "api": plugin.api,
        "state": plugin.state,
        "error": plugin.error,
        "remedy": plugin.remedy,
        "methods": list(plugin.methods),
        "tasks": list(plugin.tasks),
        "stages": list(plugin.stages),
        "samplers": list(plugin.samplers),
        "clashes": [clash.text for clash in plugin.clashes],
        "output": plugin.output,
    }


def as_text(found: dict[str, Any]) -> str:
    """The listing for a reader at a terminal."""
    if not found["plugins"]:
        return "no plugin is installed; try: pip install headwater-gfn-fl"
    lines = ["plugins:"]
    for plugin in found["plugins"]:
        where = f"{plugin['distribution'] or 'this script'} {plugin['version'] or ''}".rstrip()
        api = f", API {plugin['api']}" if plugin["api"] is not None else ""
        state = "" if plugin["state"] == "loaded" else f": {plugin['state']}"
        lines.append(f"  {plugin['name']} ({where}{api}){state}")
        lines += [f"    {line}" for line in _remarks(plugin)]
    lines += ["methods:"] if found["methods"] else []
    lines += [f"  {m['name']} ({', '.join(m['kinds'])}): {m['summary']}" for m in found["methods"]]
    lines += ["tasks:"] if found["tasks"] else []
    lines += [f"  {t['name']} ({t['kind']}): {t['summary']}" for t in found["tasks"]]
    return "\n".join(lines)


def _remarks(plugin: dict[str, Any]) -> list[str]:
    remarks = [plugin["error"]] if plugin["error"] else []
    remarks += [f"try: {plugin['remedy']}"] if plugin["remedy"] else []
    remarks += [f"left out: {clash}" for clash in plugin["clashes"]]
    return remarks + [f"says on import: {line}" for line in plugin["output"].splitlines()[:3]]
