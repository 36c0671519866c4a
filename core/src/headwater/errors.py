"""The errors that headwater raises on purpose.

The command line shows them as one or two lines and exits with 2 (the request was wrong) or 1 (the work
failed).
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "INTERRUPTED",
    "ConfigError",
    "DataError",
    "Elsewhere",
    "HeadwaterError",
    "NonFinite",
    "PluginError",
    "RunError",
    "UsageError",
    "near",
]


INTERRUPTED = 130
"""Exit code of the command line after Ctrl-C or SIGTERM."""


class HeadwaterError(Exception):
    """Any error that headwater raises on purpose; its text says what is wrong and what would do."""

    exit_code = 1


class UsageError(HeadwaterError):
    """The request cannot be carried out as it was made: an unknown name, an option that does not fit."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value is wrong; the text names the field, the value and what would do."""


class PluginError(HeadwaterError):
    """A plugin is broken, missing, or made for another version of headwater."""


class RunError(HeadwaterError):
    """A run directory cannot be read, written or continued."""


class Elsewhere(RunError):
    """Another process of the same training met an error, and shows it; this one ends in silence."""


class DataError(HeadwaterError):
    """A file or data set of the user is missing, damaged or not what the task needs."""


class NonFinite(HeadwaterError):
    """Training met NaN or infinity and stopped before writing it into a checkpoint."""


def near(name: str, known: Iterable[str]) -> str:
    """Say which of the ``known`` names is near ``name``: ``"; did you mean 'x'?"``, or list them all."""
    names = sorted(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if found:
        return f"; did you mean {found[0]!r}?"
    return f"; known: {', '.join(names)}" if names else "; none is known"
