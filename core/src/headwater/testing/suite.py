"""What holds for every method, each check one function that raises ``AssertionError``."""

import contextlib
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headwater import registry
from headwater.config import PARTS, merge
from headwater.errors import ConfigError, HeadwaterError

__all__ = ["CHECKS", "Bench", "conformance", "run_checks"]

STEPS = 6


class Bench:
    """One method under test, with runs that several checks share."""

    def __init__(self, method: str, folder: Path) -> None:
        self.method, self.folder = method, folder
        self.entry = registry.find_method(method)
        self._finished: dict[str, Path] = {}

    def tables(self, max_steps: int = STEPS, **fit: Any) -> dict[str, Any]:
        base = {"fit": {"log_every": 2, "checkpoint_every": 3, "keep": 9, "accelerator": "cpu", "ema": 0.5}}
        return merge(base, self.entry.tiny, {"fit": {"max_steps": max_steps, **fit}})

    def train(self, name: str, stage: str, max_steps: int = STEPS, **fit: Any) -> Path:
        """Train ``stage`` on top of finished runs of the stages that it builds on; return its run."""
        from headwater.training import train

        out = self.folder / f"{name}-{stage}"
        entry = next(s for s in self.entry.stages if s.name == stage)
        after = [self.finished(s) for s in entry.after]
        train(self.method, out, stage=stage, overrides=self.tables(max_steps, **fit), from_runs=after)
        return out

    def finished(self, stage: str) -> Path:
        """The finished tiny run of ``stage``, trained on first use."""
        if stage not in self._finished:
            self._finished[stage] = self.train("whole", stage)
        return self._finished[stage]

    @property
    def run(self) -> Path:
        """The finished tiny run of the last stage."""
        return self.finished(self.entry.stages[-1].name)

    def model(self) -> Any:
        from headwater.sampling import Model

        return Model(self.run, device="cpu")


def digest(path: Path) -> str:
    """One hash of a file, or of all files of a folder with their names."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    parts = [f"{p.relative_to(path)}:{digest(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_entries(bench: Bench) -> None:
    """Every import string resolves to a class of the right kind."""
    from headwater.sampler import Operation, Sampler
    from headwater.task import Task
    from headwater.trainer import Trainer

    entry = bench.entry
    for stage in entry.stages:
        assert issubclass(registry.resolve(stage.trainer), Trainer), stage.trainer
        registry.resolve(stage.config).model_json_schema()
    for sampler in entry.samplers:
        assert issubclass(registry.resolve(sampler.sampler), Sampler), sampler.sampler
        registry.resolve(sampler.config).model_json_schema()
        if sampler.condition:
            registry.resolve(sampler.condition).model_json_schema()
    for operation in entry.operations:
        assert issubclass(registry.resolve(operation.operation), Operation), operation.operation
        registry.resolve(operation.config).model_json_schema()
    task = registry.find_task(entry.task)
    assert issubclass(registry.resolve(task.task), Task), task.task
    assert registry.resolve(task.task).kind == task.kind, f"{task.name}: the entry's kind is not the class's"
    assert task.kind in entry.kinds
    for stage in entry.stages:
        assert set(stage.after) <= {s.name for s in entry.stages}, f"{stage.name} builds on an unknown stage"


def check_light_import(bench: Bench) -> None:
    """Importing the plugin's module loads neither torch nor numpy."""
    module = registry.owner("method", bench.method).module
    if module is None:
        return  # registered from a script, which has no module of its own to import
    code = f"import sys, {module}; print(*(m for m in ('torch', 'numpy') if m in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.strip()
    assert not loaded, f"importing {module} is not light, or not silent: {loaded}"


def check_config_round_trip(bench: Bench) -> None:
    """The config survives TOML, and its JSON schema can be written."""
    import tomllib

    from headwater.config import to_toml
    from headwater.describing import schema
    from headwater.resolve import plan

    json.dumps(schema(bench.method))
    for preset in (None, *bench.entry.presets):
        made = plan(bench.method, preset=preset)
        again = plan(bench.method, config=tomllib.loads(to_toml(made.config)))
        for part in PARTS:
            assert made.config[part] == again.config[part], f"[{part}] of preset {preset} changes in TOML"


def check_bad_config(bench: Bench) -> None:
    """An unknown setting in any part is refused by its name."""
    from headwater.resolve import plan

    for part in PARTS:
        said = ""
        try:
            plan(bench.method, overrides={part: {"no_such_setting": 1}})
        except ConfigError as error:
            said = str(error)
        assert said, f"[{part}] accepts an unknown setting"
        assert f"{part}.no_such_setting" in said, f"the error does not name the field: {said}"


def check_resume(bench: Bench) -> None:
    """Stopped and resumed, on a checkpoint or off one, a run equals the uninterrupted one bit for bit."""
    from headwater.run import Run
    from headwater.training import resume

    for stage in (entry.name for entry in bench.entry.stages):
        whole = Run(bench.finished(stage))
        for k in (3, 4):
            part = bench.train(f"part{k}", stage, max_steps=k)
            resume(part, max_steps=STEPS)
            for name in ("model", "training", "rank-0"):
                equal = same(whole.load(STEPS, name), Run(part).load(STEPS, name))
                assert equal, f"stage {stage}: {name} differs after stop at step {k} and resume"


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    import torch

    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (a != a and b != b)


def check_seeds(bench: Bench) -> None:
    """The same seed gives the same file, another seed another one, and the first n of more are the same."""
    model = bench.model()
    suffix = model.sampler().writer.suffixes[0]
    n = model.sampler().block_size + 1
    files = {}
    for name, seed, count in (("a", 0, n), ("b", 0, n), ("c", 1, n)):
        files[name] = digest(model.sample_to(bench.folder / f"seed-{name}{suffix}", count, seed=seed))
    assert files["a"] == files["b"], "the same seed gives different samples"
    assert files["a"] != files["c"], "another seed gives the same samples"
    if model.sampler().blocks(n) == model.sampler().blocks(2 * n):
        return  # the number of samples is not what makes blocks here (one large volume)
    first = next(iter(model.sample(n, seed=0)))
    more = next(iter(model.sample(2 * n, seed=0)))
    a, b = bench.folder / f"first{suffix}", bench.folder / f"more{suffix}"
    model.sampler().writer.write(first, a)
    model.sampler().writer.write(more, b)
    assert digest(a) == digest(b), "the first block depends on how many follow"


def check_read_back(bench: Bench) -> None:
    """What is written can be read, and reads as what was sampled."""
    model = bench.model()
    writer = model.sampler().writer
    for i, suffix in enumerate(writer.suffixes):  # a folder each: some formats name a second file, which has theirs
        path = model.sample_to(bench.folder / f"written-{i}" / f"samples{suffix}", 3, seed=0)
        again = bench.folder / f"written-{i}" / "again" / path.name
        again.parent.mkdir()
        writer.write(writer.read(path), again)
        assert digest(path) == digest(again), f"{suffix or 'folder'}: reading back and writing gives another file"


def check_interrupted_sampling(bench: Bench) -> None:
    """A sampling job that lost its last blocks goes on and gives the same file."""
    from headwater import sampling

    model = bench.model()
    sampler, job, _ = model._sampler(None, None)
    suffix = sampler.writer.suffixes[0]
    n = 2 * sampler.block_size + 1
    expected = digest(model.sample_to(bench.folder / f"straight{suffix}", n, seed=5))
    path = bench.folder / f"interrupted{suffix}"
    parts = path.with_name(path.name + ".parts")
    job.items, job.seed = n, 5
    with sampling._holding(parts, path):
        sampling._open_parts(parts, job, force=False)
        sampling._write_block(sampler, sampling._SampleHooks(job), 0, _no_condition(model), parts, suffix)
    assert digest(model.sample_to(path, n, seed=5)) == expected
    assert not parts.exists(), "the parts of a finished job are left behind"


def _no_condition(model: Any) -> Any:
    from headwater.sampling import _condition

    return _condition(registry.sampler(model.plan.method.name, model.run.manifest.sampler), None)


def check_workers(bench: Bench) -> None:
    """Two worker processes write the same file as one."""
    if registry.owner("method", bench.method).distribution is None:
        return  # registered from a script: worker processes do not know it
    model = bench.model()
    suffix = model.sampler().writer.suffixes[0]
    n = 2 * model.sampler().block_size
    one = digest(model.sample_to(bench.folder / f"one{suffix}", n, seed=2))
    two = digest(model.sample_to(bench.folder / f"two{suffix}", n, seed=2, workers=2))
    assert one == two


def check_metrics_and_report(bench: Bench) -> None:
    """Metrics are finite numbers; the report page is written."""
    import math

    model = bench.model()
    scores = model.evaluate(seed=0)
    assert all(isinstance(v, int | float) and not math.isnan(v) for v in scores.values()), scores
    if importlib.util.find_spec("plotly") is not None:
        from headwater.api import report

        assert report(bench.run).stat().st_size > 1000


def check_command_line(bench: Bench) -> None:
    """``headwater sample`` works from the command line on a trained run."""
    if registry.owner("method", bench.method).distribution is None:
        return
    suffix = bench.model().sampler().writer.suffixes[0]
    out = bench.folder / f"cli{suffix}"
    command = [sys.executable, "-m", "headwater", "sample", str(bench.run), "-n", "2", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.exists()


def check_gpu(bench: Bench) -> None:
    """Where there is a GPU, the method trains and samples on it."""
    import torch

    if not torch.cuda.is_available():
        return
    from headwater.sampling import Model

    for stage in (entry.name for entry in bench.entry.stages):
        run = bench.train("gpu", stage, accelerator="gpu")
    list(Model(run, device="cuda").sample(2))


CHECKS: tuple[Callable[[Bench], None], ...] = (
    check_entries,
    check_light_import,
    check_config_round_trip,
    check_bad_config,
    check_resume,
    check_seeds,
    check_read_back,
    check_interrupted_sampling,
    check_workers,
    check_metrics_and_report,
    check_command_line,
    check_gpu,
)


def conformance(method: str) -> type:
    """A pytest class with one test for every check, for ``method``."""
    import pytest

    benches: list[Bench] = []

    class TestConformance:
        @pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__.removeprefix("check_"))
        def test(self, tmp_path_factory: pytest.TempPathFactory, check: Callable[[Bench], None]) -> None:
            if not benches:
                benches.append(Bench(method, tmp_path_factory.mktemp(method)))
            check(benches[0])

    return TestConformance


def run_checks(method: str, say: Callable[[str], None]) -> int:
    """Run every check and say how each went; return how many failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(method, Path(folder))
        for check in CHECKS:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    check(bench)
            except (AssertionError, HeadwaterError) as error:
                failed += 1
                say(f"FAILED {name}: {error}")
            else:
                say(f"ok     {name}")
    return failed
