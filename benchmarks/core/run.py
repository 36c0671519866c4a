"""Speed of the core: the command that lists, discovery of many plugins, what `fit` adds. See ../README.md."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import HERE, ONE_THREAD, last_core, pin_to, write_results

LIGHT = "import click, pluggy, importlib_metadata; from pydantic import BaseModel, Field"
"""The light dependencies, used: `import pydantic` alone loads next to nothing of it."""

PLUGIN = '''"""A made plugin."""

from headwater import hookimpl
from headwater.entries import TaskEntry

API = 1


@hookimpl
def headwater_tasks():
    return [TaskEntry(name="made-{i}", kind="made", summary="Made.", task="made:Task", config="made:Config")]
'''


def _caching() -> dict[str, str]:
    """This environment, with compiled modules kept, as pip keeps them for the packages that it installs."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def child(command: list[str], core: int | None, **environment: str) -> tuple[float, str]:
    """CPU seconds of a process, its start included, and what it printed."""

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        env={**_caching(), **ONE_THREAD, **environment},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=pin_to(core),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def listing(python: str, core: int | None, repeats: int) -> list[dict[str, Any]]:
    """`headwater list` and the bare imports, in turn."""
    commands = {"list": ["-m", "headwater", "list"], "imports": ["-c", LIGHT]}
    measured = []
    for repeat in range(-1, repeats):
        for name, words in commands.items():
            seconds, _ = child([python, *words], core)
            if repeat >= 0:  # the first round fills the caches
                measured.append({"part": "list", "way": name, "repeat": repeat, "cpu_seconds": seconds})
    return measured


def make_plugins(folder: Path, count: int) -> None:
    """Write ``count`` modules and the metadata of as many distributions."""
    for i in range(count):
        (folder / f"made_plugin_{i}.py").write_text(PLUGIN.replace("{i}", str(i)), encoding="utf-8")
        info = folder / f"made_{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-{i}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[headwater]\nmade-{i} = made_plugin_{i}\n", encoding="utf-8")


def discovery(python: str, core: int | None, repeats: int, counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Discovery of plugins, imports of their modules, and imports with their hooks called, in turn."""
    measured = []
    with tempfile.TemporaryDirectory() as base:
        for count in counts:
            folder = Path(base) / str(count)
            folder.mkdir()
            make_plugins(folder, count)
            path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
            for repeat in range(-1, repeats):
                for way in ("discover", "import", "call"):
                    command = [python, str(HERE / "core" / "discover.py"), way, str(count)]
                    _, out = child(command, core, PYTHONPATH=path)
                    if repeat >= 0:
                        line = json.loads(out)
                        measured.append({"part": "discovery", "way": way, "count": count, "repeat": repeat, **line})
    return measured


def overhead(python: str, core: int | None, quick: bool) -> list[dict[str, Any]]:
    """What `fit` adds to the step of a trivial trainer."""
    words = ["--few", "50", "--many", "150", "--rounds", "1"] if quick else []
    _, out = child([python, str(HERE / "core" / "overhead.py"), *words], core)
    rounds = json.loads(out.strip().splitlines()[-1])["microseconds_a_step"]
    return [{"part": "fit", "repeat": i, **found} for i, found in enumerate(rounds)]


def middle(measured: list[dict[str, Any]], key: str = "cpu_seconds", **where: Any) -> float:
    return statistics.median(m[key] for m in measured if all(m.get(k) == v for k, v in where.items()))


def report(measured: list[dict[str, Any]], say: Callable[[str], None] = print) -> None:
    """Print what was measured beside what is aimed at."""
    say("| what | headwater | by hand | ratio | at most |\n| --- | ---: | ---: | ---: | ---: |")
    parts = {m["part"] for m in measured}
    if "list" in parts:
        own, other = (middle(measured, part="list", way=w) for w in ("list", "imports"))
        say(f"| headwater list | {own * 1e3:.0f} ms | {other * 1e3:.0f} ms | {own / other:.2f} | 1.5 |")
    for count in sorted({m["count"] for m in measured if m["part"] == "discovery"}):
        own, other, called = (
            middle(measured, part="discovery", count=count, way=w) for w in ("discover", "import", "call")
        )
        say(f"| discovery of {count} | {own * 1e3:.0f} ms | {other * 1e3:.0f} ms | {own / other:.2f} | 1.5 |")
        say(f"| ... their hooks called too | {own * 1e3:.0f} ms | {called * 1e3:.0f} ms | {own / called:.2f} | |")
    if "fit" in parts:
        own, other = (middle(measured, key, part="fit") for key in ("by_fit", "by_hand"))
        say(f"| a step of fit | {own:.1f} us | {other:.1f} us | {own / other:.3f} | 1.02 or + 20 us |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has headwater and its plugins")
    parser.add_argument("--core", type=int, default=last_core(), help="the core that all run on")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--parts", nargs="+", choices=("list", "discovery", "fit"), default=["list", "discovery", "fit"]
    )
    parser.add_argument("--quick", action="store_true", help="once, and small: does everything run?")
    options = parser.parse_args()
    repeats, counts = (1, (20,)) if options.quick else (options.repeats, (250, 500, 1000))
    measured: list[dict[str, Any]] = []
    if "list" in options.parts:
        measured += listing(options.python, options.core, repeats)
    if "discovery" in options.parts:
        measured += discovery(options.python, options.core, repeats, counts)
    if "fit" in options.parts:
        measured += overhead(options.python, options.core, options.quick)
    report(measured)
    if not options.quick:
        print(f"\nwritten to {write_results('core', measured, core=options.core)}")


if __name__ == "__main__":
    main()
