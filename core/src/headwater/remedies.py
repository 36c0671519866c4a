"""What went wrong in a plugin, in one line, and the one line to paste against it."""

import contextlib
import functools
import re
from typing import Any, NamedTuple

import importlib_metadata
from pydantic import ValidationError

from headwater.errors import PluginError

__all__ = ["Broken", "Distribution", "explain", "normal", "one_line"]


class Broken(PluginError):
    """Why a plugin cannot be used; ``remedy`` is the line that would help, if it is known by now.

    ``where`` stands before the reason in the text, for a reader who does not know what it is about.
    """

    def __init__(self, reason: str, remedy: str | None = None, where: str = "") -> None:
        super().__init__(f"{where}{reason}" + (f"; try: {remedy}" if remedy else ""))
        self.reason = reason
        self.remedy = remedy


class Distribution(NamedTuple):
    """Name, version and requirements of an installed distribution."""

    name: str
    version: str | None = None
    requires: tuple[str, ...] = ()

    @classmethod
    def read(cls, dist: Any, fallback: str) -> "Distribution":
        """Read the head of the metadata file; the standard library's e-mail parser is six times as slow."""
        fields: dict[str, list[str]] = {}
        text = dist.read_text("METADATA") or dist.read_text("PKG-INFO") or ""
        for line in text.partition("\n\n")[0].splitlines():
            key, _, value = line.partition(": ")
            fields.setdefault(key, []).append(value.strip())
        name, version = fields.get("Name", [fallback])[0], fields.get("Version", [None])[0]
        return cls(name, version, tuple(fields.get("Requires-Dist", ())))


_BETWEEN = re.compile(r"[-_.]+")


@functools.cache
def normal(name: str) -> str:
    """The form in which names of distributions are compared."""
    return _BETWEEN.sub("-", name).lower()


def explain(error: BaseException, dist: Distribution | None, wanted: str = "") -> tuple[str, str | None]:
    """Say what went wrong, and what to do about it.

    Args:
        error: what the plugin raised.
        dist: where the plugin comes from; ``None`` for a script.
        wanted: the module that was to be imported: if that itself is missing, the installation is at fault.
    """
    upgrade = f"pip install --upgrade {dist.name}" if dist else None
    if isinstance(error, Broken):
        return error.reason, error.remedy or upgrade
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r}) when it is imported", upgrade
    if isinstance(error, ModuleNotFoundError) and error.name and dist:
        if (wanted == error.name and "." not in wanted) or wanted.startswith(error.name + "."):
            gone = f"its module {error.name!r} is gone, as after the removal of an editable install's source"
            return gone, f"pip uninstall {dist.name}"
        if wanted == error.name:
            return f"it has no module {error.name!r}", upgrade
        remedy = _provider(error.name, dist)
        undeclared = "" if remedy else f", and {dist.name} does not say which distribution has it"
        return f"module {error.name!r} is missing{undeclared}", remedy or upgrade
    return one_line(error), upgrade


def one_line(error: BaseException) -> str:
    """The error's type, text and place in one line."""
    if isinstance(error, ValidationError):
        faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return f"{error.title}: {'; '.join(faults)}"
    text = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0].rstrip(": ")
    trace = error.__traceback__
    if trace is None or isinstance(error, SyntaxError):  # whose text names the line
        return text
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = re.split(r"[/\\]", trace.tb_frame.f_code.co_filename)[-1]
    return f"{text} ({file}, line {trace.tb_lineno})"


def _provider(module: str, dist: Distribution) -> str | None:
    """The command that installs ``module``, if the requirements of ``dist`` tell."""
    from packaging.requirements import InvalidRequirement, Requirement

    requirements = []
    for text in dist.requires:
        with contextlib.suppress(InvalidRequirement):
            requirements.append(Requirement(text))
    fits = [r for r in requirements if normal(r.name) == normal(module.partition(".")[0])]
    if not fits:  # a module may be named otherwise than its distribution: a single absent one must be it
        fits = [r for r in requirements if not any(importlib_metadata.distributions(name=r.name))]
        if len(fits) != 1:
            return None
    extra = re.search(r"extra\s*==\s*[\"']([^\"']+)", str(fits[0].marker or ""))
    return f"pip install '{f'{dist.name}[{extra[1]}]' if extra else f'{fits[0].name}{fits[0].specifier}'}'"
