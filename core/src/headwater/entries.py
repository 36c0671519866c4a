"""What a plugin registers: frozen records that name classes by import string and import none of them."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "API",
    "ImportString",
    "MethodEntry",
    "OperationEntry",
    "Paper",
    "SamplerEntry",
    "Slug",
    "StageEntry",
    "TaskEntry",
    "is_slug",
]

API = 1
"""The version of the plugin interface; a plugin's module says which one it was written for."""


def _is_import_string(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value):
        raise ValueError(f"{value!r} is no import string; write 'package.module:Name'")
    return value


def is_slug(value: str) -> bool:
    """Whether ``value`` can name a plugin, method, task, stage, sampler or operation."""
    return re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value) is not None


def _slug(value: str) -> str:
    if not is_slug(value):
        raise ValueError(f"{value!r} is no name; use lower-case letters and digits joined by single hyphens")
    return value


ImportString = Annotated[str, AfterValidator(_is_import_string)]
Slug = Annotated[str, AfterValidator(_slug)]


class Entry(BaseModel):
    """A frozen record; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Paper(Entry):
    """The paper that a method implements."""

    title: str
    authors: tuple[str, ...]
    venue: str
    year: int
    url: str

    def __str__(self) -> str:
        return f"{', '.join(self.authors).rstrip('.')}. {self.title}. {self.venue} {self.year}. {self.url}"


class StageEntry(Entry):
    """One named trainer of a method.

    ``method`` is only given when the stage is added to a method of another plugin (``headwater_trainers``).
    ``after`` names the stages whose runs this one builds on (``--from``). ``defaults`` are config overrides
    in the four parts, for example ``{"fit": {"max_steps": 2000}}``.
    """

    name: Slug
    summary: str
    trainer: ImportString
    config: ImportString
    after: tuple[Slug, ...] = ()
    defaults: dict[str, dict[str, Any]] = {}
    method: Slug | None = None


class SamplerEntry(Entry):
    """One named sampler of a method; ``condition`` is the pydantic model that checks ``--condition``."""

    name: Slug
    summary: str
    sampler: ImportString
    config: ImportString
    condition: ImportString | None = None
    method: Slug | None = None


class OperationEntry(Entry):
    """Something else that a trained run does with given items, one output per item."""

    name: Slug
    summary: str
    operation: ImportString
    config: ImportString


class MethodEntry(Entry):
    """One paper's algorithm under one name.

    ``kinds``: the kinds of task it accepts. ``task``: the embedded default task, which needs no download.
    ``presets``: named config overrides in the four parts ``task``, ``trainer``, ``sampler``, ``fit``.
    ``tiny``: overrides with which the conformance suite trains in about a second.
    ``converter``: a module with ``read_official`` and ``from_official``, as
    ``"package.convert:from_official"``.
    ``demo``: a function ``demo(out: Path) -> None``, run by ``headwater demo METHOD``.
    """

    name: Slug
    summary: str
    paper: Paper
    kinds: tuple[str, ...] = Field(min_length=1)
    task: Slug
    stages: tuple[StageEntry, ...] = Field(min_length=1)
    samplers: tuple[SamplerEntry, ...] = Field(min_length=1)
    operations: tuple[OperationEntry, ...] = ()
    converter: ImportString | None = None
    presets: dict[str, dict[str, dict[str, Any]]] = {}
    tiny: dict[str, dict[str, Any]] = {}
    demo: ImportString | None = None


class TaskEntry(Entry):
    """What methods are applied to: an environment with a reward, or a data set."""

    name: Slug
    kind: str
    summary: str
    task: ImportString
    config: ImportString
