"""Running contestants side by side: their environments, whole processes in turn, the table, the file of results."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "HERE",
    "ROOT",
    "Contestant",
    "about",
    "add_arguments",
    "interleave",
    "last_core",
    "machine",
    "make_environment",
    "pin_to",
    "ratios",
    "run",
    "table",
    "write_results",
]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


@dataclass(frozen=True)
class Contestant:
    """A command that prints one line of JSON: an interpreter, a script and what it is always given."""

    name: str
    python: str
    script: Path
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    """The options of every benchmark: the core, how many rounds, and whether to try only."""
    parser.add_argument("--core", type=int, default=last_core(), help="the core that all run on")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds; the number of a round is its seed")
    parser.add_argument("--quick", action="store_true", help="one round of a few steps: does everything run?")


def last_core() -> int | None:
    """The last of the cores that this process may use; ``None`` where the system cannot say."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def pin_to(core: int | None) -> Callable[[], None]:
    """What a child does first: stay on one core."""

    def pin() -> None:
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})

    return pin


def make_environment(name: str, requirements: Sequence[str], constraints: Path | None = None) -> str:
    """The interpreter of a virtual environment under ``build/benchmarks``, made where there is none yet."""
    folder = ROOT / "build" / "benchmarks" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = "\n".join(requirements)
    marker = folder / "requirements.txt"
    if not marker.exists() or marker.read_text(encoding="utf-8") != wanted:
        print(f"making {folder.relative_to(ROOT)}: {', '.join(requirements)}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
        subprocess.run(command + (["-c", str(constraints)] if constraints else []), check=True)
        marker.write_text(wanted, encoding="utf-8")
    return str(python)


def run(contestant: Contestant, arguments: Sequence[str], core: int | None) -> dict[str, Any]:
    """One whole process on one core and one thread; what it printed, and its seconds from start to end.

    Raises:
        SystemExit: it failed; its last words are in the text.
    """
    command = [contestant.python, str(contestant.script), *contestant.arguments, *arguments]
    environment = {**os.environ, **ONE_THREAD, **contestant.environment}
    began = time.perf_counter()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, preexec_fn=pin_to(core)
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"{contestant.name} failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    line: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"contestant": contestant.name, "process_seconds": seconds, **line}


def interleave(
    jobs: Sequence[tuple[str, Contestant, Sequence[str]]], repeats: int, core: int | None
) -> list[dict[str, Any]]:
    """Every job once, then every job again: what slows the machine for a while slows all of them.

    A job is a workload, a contestant and its arguments. Every other round goes backward; the round's number is the
    seed, the same for all, so that no contestant wins by the luck of its first weights.
    """
    measured = []
    for repeat in range(repeats):
        for workload, contestant, arguments in jobs if repeat % 2 == 0 else list(reversed(jobs)):
            found = run(contestant, [*arguments, "--seed", str(repeat)], core)
            measured.append({"workload": workload, "repeat": repeat, **found})
            rate = found.get("steps_per_cpu_second", 0.0)
            print(
                f"{repeat + 1}/{repeats} {workload} {contestant.name}: {rate:.1f} steps/CPU s",
                file=sys.stderr,
            )
    return measured


def ratios(measured: Sequence[Mapping[str, Any]], first: str, other: str, key: str) -> tuple[float, float] | None:
    """Ratio of the medians of ``first`` and ``other``, and the median of their ratios round by round."""
    a = {m["repeat"]: m[key] for m in measured if m["contestant"] == first}
    b = {m["repeat"]: m[key] for m in measured if m["contestant"] == other}
    both = sorted(a.keys() & b.keys())
    if not both:
        return None
    of_medians = statistics.median(a.values()) / statistics.median(b.values())
    return of_medians, statistics.median(a[r] / b[r] for r in both)


def table(measured: Sequence[Mapping[str, Any]], first: str, unit: str = "steps") -> str:
    """Markdown: medians of every contestant on every workload, and how many times faster ``first`` is.

    With ``unit`` other than steps the rates are multiplied by the ``batch`` that a contestant reports.
    """
    lines = [
        f"| workload | contestant | {unit} / CPU s | spread | {unit} / s | length | ready | ratio | by rounds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for workload in dict.fromkeys(m["workload"] for m in measured):
        here = [m for m in measured if m["workload"] == workload]
        for name in dict.fromkeys(m["contestant"] for m in here):
            own = [m for m in here if m["contestant"] == name]
            each = 1 if unit == "steps" else own[0]["batch"]
            rates = [each * m["steps_per_cpu_second"] for m in own]
            middle = statistics.median(rates)
            wall = statistics.median(each * m["steps_per_second"] for m in own)
            length = statistics.median(m["mean_length"] for m in own)
            ready = statistics.median(m["setup_cpu_seconds"] for m in own)
            found = None if name == first else ratios(here, first, name, "steps_per_cpu_second")
            compared = "|  " if found is None else f"| {found[0]:.2f} | {found[1]:.2f} "
            lines.append(
                f"| {workload} | {name} | {middle:.1f} | {min(rates):.1f}-{max(rates):.1f} | {wall:.1f} "
                f"| {length:.2f} | {ready:.1f} s {compared}|".replace("|  |", "|  |  |")
            )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system and the load when asked."""
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "processor": _processor(),
    }
    if hasattr(os, "sysconf"):
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if hasattr(os, "getloadavg"):
        facts["load"] = [round(v, 2) for v in os.getloadavg()]
    return facts


def _processor() -> str:
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    except OSError:
        return platform.processor()
    parts = [facts.get("model name", ""), facts.get("cpu family", ""), facts.get("model", "")]
    return "{} (family {}, model {})".format(*parts)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def about() -> dict[str, Any]:
    """When, of which commit and on which machine: what every file of results says of itself."""
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "git": {
            "commit": _git("rev-parse", "HEAD"),
            "describe": _git("describe", "--always", "--dirty"),
            "changed": bool(_git("status", "--porcelain", "core", "plugins")),
        },
        "machine": machine(),
    }


def write_results(name: str, measured: Sequence[Mapping[str, Any]], **facts: Any) -> Path:
    """Write every single measurement with machine and commit to ``results/<name>-<time>.json``."""
    path = HERE / "results" / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.parent.mkdir(exist_ok=True)
    content = {**about(), **facts, "measured": list(measured)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
