"""Configuration: the parts task, trainer, sampler and fit, pydantic models that refuse unknown fields."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from headwater.errors import ConfigError, near

__all__ = ["PARTS", "Config", "FitConfig", "merge", "parse_assignments", "read_toml", "to_toml", "validate"]

PARTS = ("task", "trainer", "sampler", "fit")


class Config(BaseModel):
    """Base of every config part: unknown fields are refused, values are frozen and checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class FitConfig(Config):
    """How training runs, whatever is trained."""

    max_steps: NonNegativeInt = Field(1000, description="training steps in all")
    seed: NonNegativeInt = Field(0, description="seed of every random draw")
    log_every: PositiveInt = Field(50, description="steps between two lines of metrics.jsonl")
    validate_every: NonNegativeInt = Field(0, description="steps between validations; 0 validates at the end only")
    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints")
    keep: PositiveInt = Field(2, description="how many of the latest checkpoints stay on disk")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the weights' moving average; none without")
    devices: PositiveInt = Field(1, description="processes on each machine, one device each")
    nodes: PositiveInt = Field(1, description="machines")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="gpu where there is one, else cpu")
    precision: Literal["32-true", "bf16-mixed", "64-true"] = Field("32-true", description="floating-point precision")
    compile: bool = Field(False, description="compile the modules with torch.compile")
    threads: PositiveInt | None = Field(
        None, description="CPU threads of each process; as many as torch thinks best without"
    )
    workers: NonNegativeInt = Field(0, description="processes that draw batches ahead (not for on-policy trainers)")
    tensorboard: bool = Field(False, description="write TensorBoard events beside metrics.jsonl")


def validate(model: type[BaseModel], values: Mapping[str, Any], part: str) -> Any:
    """Build ``model`` from ``values``.

    Raises:
        ConfigError: names the field (as ``part.field``), the value, and what would do.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("; ".join(_problem(model, part, e) for e in error.errors()[:3])) from error


def _problem(model: type[BaseModel], part: str, error: Any) -> str:
    where = ".".join([part, *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        holder: Any = model
        for name in error["loc"][:-1]:
            inner = getattr(holder, "model_fields", {}).get(name)
            holder = inner.annotation if inner is not None else None
        fields = getattr(holder, "model_fields", {})
        return f"{where} is no setting{near(str(error['loc'][-1]), fields)}"
    if error["type"] == "missing":
        return f"{where} is needed and not given"
    return f"{where} = {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; later layers win, tables merge key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            below = merged.get(name)
            merged[name] = merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def _value(text: str) -> Any:
    """Read one value as TOML; what is no TOML value is a plain string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        if text in ("null", "None"):  # "none" is the name of many a choice
            return None
        return text


def parse_assignments(assignments: Iterable[str], parts: Iterable[str] = PARTS) -> dict[str, Any]:
    """Turn ``["trainer.lr=1e-3", "task.size=small"]`` into nested tables. Values are read as TOML,
    else as strings.

    Raises:
        ConfigError: an assignment has no ``=`` or names no part of the config.
    """
    known = tuple(parts)
    tables: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names):
            raise ConfigError(
                f"cannot read {assignment!r}; write it as part.field=value, for example fit.max_steps=100"
            )
        if known and (names[0] not in known or len(names) < 2):
            raise ConfigError(f"{path!r} names no setting; start with one of {', '.join(known)}{near(names[0], known)}")
        value = _value(text.strip())
        for name in reversed(names):
            value = {name: value}
        tables = merge(tables, value)
    return tables


def read_toml(path: Path) -> dict[str, Any]:
    """Read a config file with the tables task, trainer, sampler and fit.

    Raises:
        ConfigError: the file is missing, no TOML, or has another table.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid TOML: {error}") from error
    for name, table in tables.items():
        if name not in PARTS or not isinstance(table, dict):
            raise ConfigError(f"{path}: [{name}] is no part of the config; the parts are {', '.join(PARTS)}")
    return tables


def to_toml(parts: Mapping[str, BaseModel]) -> str:
    """Write config parts as TOML. It has no null: a field that is ``None`` is left out."""
    plain = {name: json.loads(model.model_dump_json(exclude_none=True)) for name, model in parts.items()}
    return tomli_w.dumps(plain)
