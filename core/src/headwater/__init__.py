"""headwater: generative samplers as plugins.

Public names load on first use, so that ``import headwater`` costs nothing. The first lines of most scripts::

    import headwater

    run = headwater.train("gfn-fl", "runs/first")
    for block in headwater.load(run).sample(64):
        ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# ruff: noqa: F401 - what type checkers see of the lazy names
if TYPE_CHECKING:
    from headwater import registry
    from headwater.api import apply, evaluate, load, report, sample
    from headwater.config import Config, FitConfig
    from headwater.entries import API, MethodEntry, OperationEntry, Paper, SamplerEntry, StageEntry, TaskEntry
    from headwater.errors import ConfigError, DataError, HeadwaterError, NonFinite, PluginError, RunError, UsageError
    from headwater.hookspecs import hookimpl
    from headwater.run import Run
    from headwater.sampler import Operation, Sampler
    from headwater.task import Task, Writer
    from headwater.trainer import Trainer
    from headwater.training import convert, resume, train

_HOMES = {
    "headwater.api": ("apply", "evaluate", "load", "report", "sample"),
    "headwater.config": ("Config", "FitConfig"),
    "headwater.entries": ("API", "MethodEntry", "OperationEntry", "Paper", "SamplerEntry", "StageEntry", "TaskEntry"),
    "headwater.errors": (
        "ConfigError",
        "DataError",
        "HeadwaterError",
        "NonFinite",
        "PluginError",
        "RunError",
        "UsageError",
    ),
    "headwater.hookspecs": ("hookimpl",),
    "headwater.run": ("Run",),
    "headwater.sampler": ("Operation", "Sampler"),
    "headwater.task": ("Task", "Writer"),
    "headwater.trainer": ("Trainer",),
    "headwater.training": ("convert", "resume", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["registry", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name == "registry":
        return import_module("headwater.registry")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), "registry", *_HOME_OF])
