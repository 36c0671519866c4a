"""The task: what a method is applied to, and the one who knows the domain's files, metrics and pictures."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from headwater.errors import UsageError

if TYPE_CHECKING:
    from headwater.reporting import Panel
    from headwater.run import Run

__all__ = ["Task", "Writer", "join_bytes"]


def join_bytes(parts: Sequence[Path], path: Path) -> None:
    """Join part files by putting their bytes one after another (JSON lines, SDF, extended XYZ, SMILES)."""
    with path.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                while chunk := source.read(1 << 20):
                    out.write(chunk)


class Writer(ABC):
    """How samples are written, block by block, in the domain's own format.

    ``suffixes`` lists the file suffixes that can be written, the default first; ``""`` stands for a
    directory. ``readable`` lists those that ``read`` takes besides.
    """

    suffixes: ClassVar[tuple[str, ...]]
    readable: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def write(self, samples: Any, path: Path, start: int = 0) -> None:
        """Write ``samples`` as one part at ``path``; the first is number ``start`` of the whole job."""

    def read(self, path: Path) -> Any:
        """Read samples back from a file that ``write`` and ``join`` made."""
        raise UsageError(f"{type(self).__name__} cannot read {path.name}")

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Join the part files, in order, into ``path``; the default puts their bytes one after another."""
        join_bytes(parts, path)

    def finish(self, path: Path) -> None:  # noqa: B027 - optional
        """A second pass over the joined file, where the format needs one (a global threshold)."""

    def companions(self, path: Path) -> tuple[Path, ...]:
        """Other files that belong to ``path``, which ``join`` and ``finish`` write beside it: a header's raw data."""
        return ()

    def cut(self, samples: Any, n: int) -> Any:
        """The first ``n`` of ``samples``; the last block is computed whole and cut by this."""
        return samples[:n]

    def suffix_of(self, path: Path) -> str:
        """The suffix by which ``path`` is written.

        Raises:
            UsageError: no suffix of this writer fits.
        """
        fits = [s for s in self.suffixes if s and path.name.lower().endswith(s)]
        if fits:
            return max(fits, key=len)
        if "" in self.suffixes and not path.suffix:
            return ""
        raise UsageError(f"cannot write {path.name!r}: {type(self).__name__} writes {_listed(self.suffixes)}")

    def check_readable(self, path: Path) -> None:
        """Refuse what ``read`` will not take, by its name.

        Raises:
            UsageError: no suffix that can be written or read fits.
        """
        if path.name.lower().endswith(self.readable):
            return
        try:
            self.suffix_of(path)
        except UsageError:
            known = _listed((*self.suffixes, *self.readable))
            raise UsageError(f"cannot read {path.name!r}: {type(self).__name__} reads {known}") from None


def _listed(suffixes: Sequence[str]) -> str:
    return ", ".join(suffix or "a directory" for suffix in suffixes)


class Task(Writer):
    """A data set or an environment with a reward, under a config; nothing is loaded before use.

    A subclass says its ``kind`` and gives its data in the form that the kind prescribes; the family's base
    package defines that form.
    """

    kind: ClassVar[str]

    def __init__(self, config: BaseModel) -> None:
        self.config: Any = config

    def metrics(self, samples: Any) -> dict[str, float]:
        """The paper's metrics of ``samples``; an empty dict where the task has none."""
        return {}

    def panels(self, run: "Run") -> "list[Panel]":
        """The report's pictures and tables that only this task can make."""
        return []

    @classmethod
    def check(cls, root: Path) -> list[str]:
        """What is wrong with the user's data at ``root``: one line a problem, none when it is fit for use."""
        raise UsageError(f"{cls.__name__} reads no data set, so there is nothing to check")

    def make(self, out: Path) -> None:
        """Write the task's own data set to ``out`` in the format that it reads."""
        raise UsageError(f"{type(self).__name__} cannot make a data set")
