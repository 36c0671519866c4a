"""From names and overrides to entries and validated configs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from headwater import registry
from headwater.config import PARTS, FitConfig, merge, read_toml, validate
from headwater.entries import MethodEntry, SamplerEntry, StageEntry, TaskEntry
from headwater.errors import UsageError, near
from headwater.task import Task

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """What is to be done: entries, the four config parts, and the task, which has loaded nothing yet."""

    method: MethodEntry
    stage: StageEntry
    task_entry: TaskEntry
    sampler: SamplerEntry
    config: dict[str, Any]
    task: Task

    @property
    def fit(self) -> FitConfig:
        fit: FitConfig = self.config["fit"]
        return fit


def plan(
    method: str,
    *,
    task: str | None = None,
    stage: str | None = None,
    sampler: str | None = None,
    preset: str | None = None,
    config: Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Look up the names and build the configs: defaults of the stage, then preset, config file, overrides.

    Raises:
        UsageError: a name is unknown (the text says what is near), or the method does not accept the task.
        ConfigError: a value is wrong.
    """
    entry = registry.find_method(method)
    stage_entry = registry.stage(method, stage)
    sampler_entry = registry.sampler(method, sampler)
    task_entry = registry.find_task(task or entry.task)
    if task_entry.kind not in entry.kinds:
        fitting = [name for name, t in registry.tasks().items() if t.kind in entry.kinds]
        raise UsageError(
            f"{method} works on {', '.join(entry.kinds)}; the task {task_entry.name!r} is {task_entry.kind}; "
            f"tasks that fit: {', '.join(fitting) or 'none is installed'}"
        )
    if preset is not None and preset not in entry.presets:
        raise UsageError(f"{method} has no preset {preset!r}{near(preset, entry.presets)}")
    given = read_toml(config) if isinstance(config, Path | str) else (config or {})
    layers = [stage_entry.defaults, entry.presets[preset] if preset else {}, given, overrides or {}]
    tables = merge(*layers)
    if task is not None and task != entry.task and "task" in stage_entry.defaults:
        tables["task"] = merge(*(layer.get("task", {}) for layer in layers[1:]))
    models = {
        "task": registry.resolve(task_entry.config),
        "trainer": registry.resolve(stage_entry.config),
        "sampler": registry.resolve(sampler_entry.config),
        "fit": FitConfig,
    }
    configs: dict[str, BaseModel] = {part: validate(models[part], tables.get(part, {}), part) for part in PARTS}
    made: Task = registry.resolve(task_entry.task)(configs["task"])
    return Plan(entry, stage_entry, task_entry, sampler_entry, configs, made)
