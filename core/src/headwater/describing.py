"""What ``headwater describe`` shows of a method."""

from typing import Any

from headwater import registry
from headwater.config import PARTS, FitConfig

__all__ = ["as_text", "described", "schema"]


def _models(method: str, stage: str | None = None) -> dict[str, Any]:
    entry = registry.find_method(method)
    return {
        "task": registry.resolve(registry.find_task(entry.task).config),
        "trainer": registry.resolve(registry.stage(method, stage).config),
        "sampler": registry.resolve(registry.sampler(method, None).config),
        "fit": FitConfig,
    }


def schema(method: str, stage: str | None = None) -> dict[str, Any]:
    """The JSON schema of the method's config: an object with the four parts."""
    parts = {
        part: model.model_json_schema(ref_template="#/$defs/{model}") for part, model in _models(method, stage).items()
    }
    definitions: dict[str, Any] = {}
    for part in parts.values():
        definitions |= part.pop("$defs", {})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": method,
        "type": "object",
        "additionalProperties": False,
        "properties": {part: parts[part] for part in PARTS},
        "$defs": definitions,
    }


def described(method: str) -> dict[str, Any]:
    """The method's entry and its plugin, as plain data."""
    entry = registry.find_method(method)
    owner = registry.owner("method", method)
    return {
        **entry.model_dump(mode="json"),
        "distribution": owner.distribution,
        "version": owner.version,
        "tasks": [name for name, task in registry.tasks().items() if task.kind in entry.kinds],
    }


def as_text(method: str) -> str:
    """The method for a reader at a terminal."""
    entry = registry.find_method(method)
    found = described(method)
    lines = [
        f"{method}: {entry.summary}",
        f"  {entry.paper}",
        f"  package {found['distribution']} {found['version']}",
        f"  tasks: {', '.join(found['tasks'])} (default {entry.task})",
    ]
    for title, entries in (("stages", entry.stages), ("samplers", entry.samplers), ("operations", entry.operations)):
        lines += [f"  {title}:"] if entries else []
        lines += [f"    {e.name}: {e.summary}" for e in entries]
    if entry.presets:
        lines.append(f"  presets: {', '.join(entry.presets)}")
    for part, model in _models(method).items():
        lines.append(f"  [{part}]")
        for name, field in model.model_fields.items():
            default = "needed" if field.is_required() else repr(field.get_default(call_default_factory=True))
            lines.append(f"    {name} = {default}" + (f"  ({field.description})" if field.description else ""))
    return "\n".join(lines)
