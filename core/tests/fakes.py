"""Fake distributions: a dist-info folder and modules, put where a test's ``sys.path`` finds them."""

import os
import subprocess
import sys
from textwrap import dedent

PLUGIN = """\
from headwater import MethodEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

API = 1


@hookimpl
def headwater_methods():
    return [
        MethodEntry(
            name="{method}",
            summary="a fake method",
            paper=Paper(title="T", authors=("A.",), venue="V", year=2026, url="https://example.org"),
            kinds=("fake.kind",),
            task="{name}-task",
            stages=(StageEntry(name="fit", summary="s", trainer="{trainer}", config="{config}"),),
            samplers=(SamplerEntry(name="plain", summary="s", sampler="{sampler}", config="{config}"),),
        )
    ]


@hookimpl
def headwater_tasks():
    return [
        TaskEntry(name="{name}-task", kind="fake.kind", summary="s", task="{task}", config="{config}")
    ]
"""

PARTS = """\
from headwater import Config, Sampler, Task, Trainer


class FakeConfig(Config):
    block_size: int = 2


class FakeTask(Task):
    kind = "fake.kind"
    suffixes = (".txt",)

    def write(self, samples, path, start=0):
        path.write_text(str(samples))


class FakeTrainer(Trainer):
    @classmethod
    def build(cls, config, task, facts):
        return {}

    def setup(self):
        pass

    def draw(self, k, generator):
        return k

    def step(self, batch):
        return {}


class FakeSampler(Sampler):
    def block(self, k, generator, condition):
        return [0] * self.block_size
"""


def source(name, **strings):
    """The plugin module of a fake that works; ``strings`` replace the method's name or import strings."""
    parts = f"{package(name)}.parts"
    names = {
        "method": name,
        "trainer": f"{parts}:FakeTrainer",
        "sampler": f"{parts}:FakeSampler",
        "task": f"{parts}:FakeTask",
        "config": f"{parts}:FakeConfig",
    }
    return PLUGIN.format(name=name, **(names | strings))


def package(name):
    return f"fake_{name.replace('-', '_')}"


def install(folder, name, plugin=None, *, parts=PARTS, requires=(), entry="", dist=""):
    """Install ``headwater-<name>`` 1.2 into ``folder``."""
    dist = dist or f"headwater-{name}"
    home = folder / package(name)
    home.mkdir()
    (home / "__init__.py").touch()
    (home / "plugin.py").write_text(source(name) if plugin is None else dedent(plugin))
    (home / "parts.py").write_text(dedent(parts))
    info = folder / f"{dist.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    lines = [f"Name: {dist}", "Version: 1.2", *(f"Requires-Dist: {r}" for r in requires)]
    (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n\n")
    (info / "entry_points.txt").write_text(f"[headwater]\n{name} = {entry or package(name) + '.plugin'}\n")


def command(*arguments, path=None, code=None, cwd=None, **environment):
    """Run ``headwater`` in a child process, with ``path`` before what is on its path."""
    before = os.environ.get("PYTHONPATH", "")
    both = os.pathsep.join(filter(None, [str(path) if path else "", before]))
    start = ["-c", code] if code else ["-m", "headwater"]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=120,
        env={**os.environ, "PYTHONPATH": both, **environment},
    )
