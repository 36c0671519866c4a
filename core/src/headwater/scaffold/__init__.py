"""``headwater new-plugin NAME``: a package with one small working method, to be changed into one's own."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from headwater.entries import is_slug
from headwater.errors import RunError, UsageError

__all__ = ["make"]


def make(name: str, where: Path) -> Path:
    """Write the package ``headwater-NAME`` into the folder ``where`` and return its path.

    Raises:
        UsageError: the name is no plugin name.
        RunError: the folder is there already or cannot be written.
    """
    slug = name.removeprefix("headwater-")
    if not is_slug(slug):
        raise UsageError(f"{name!r} is no plugin name; use lower-case letters and digits joined by single hyphens")
    folder = where / f"headwater-{slug}"
    if folder.exists():
        raise RunError(f"{folder} exists; choose another name or -o")
    package = f"headwater_{slug.replace('-', '_')}"
    words = {"slug": slug, "dist": f"headwater-{slug}", "package": package, "title": slug.replace("-", " ")}
    try:
        _copy(files("headwater.scaffold") / "template", folder, words)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}") from error
    return folder


def _copy(source: Traversable, target: Path, words: dict[str, str]) -> None:
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.is_dir():
            _copy(entry, target / (words["package"] if entry.name == "package" else entry.name), words)
        elif entry.name.endswith(".txt"):
            text = Template(entry.read_text(encoding="utf-8")).substitute(words)
            (target / entry.name.removesuffix(".txt")).write_text(text, encoding="utf-8")
