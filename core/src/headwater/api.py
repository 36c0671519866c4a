"""What the command line does, in Python: load, sample, apply, evaluate and report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater import registry
from headwater.config import validate
from headwater.errors import DataError, RunError, UsageError
from headwater.reporting import Figure, Panel, Table, Text, curves, write_page
from headwater.run import Run
from headwater.sampling import Model
from headwater.training import method_of

__all__ = ["apply", "evaluate", "load", "report", "sample", "task_of"]


def load(run: str | Path | Run, *, device: str | None = None) -> Model:
    """Open a trained run; see :class:`headwater.sampling.Model`."""
    return Model(run, device=device)


def sample(run: str | Path | Run, path: str | Path, n: int, **options: Any) -> Path:
    """Write ``n`` samples of a run to ``path``; the options are those of :meth:`Model.sample_to`."""
    return Model(run).sample_to(path, n, **options)


def apply(run: str | Path | Run, operation: str, source: str | Path, out: str | Path, **options: Any) -> Path:
    """Apply an operation of a run to the items in ``source``; options are those of :meth:`Model.apply`."""
    return Model(run).apply(operation, source, out, **options)


def task_of(name: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """The task ``name`` under config ``overrides``; nothing is loaded yet."""
    entry = registry.find_task(name)
    config = validate(registry.resolve(entry.config), (overrides or {}).get("task", {}), "task")
    return registry.resolve(entry.task)(config)


def evaluate(
    run: str | Path | Run | None = None,
    *,
    task: str | None = None,
    samples: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    n: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The task's metrics: of fresh samples of ``run``, or of the ``samples`` in a file under the task named.

    Raises:
        UsageError: neither a run nor a task with samples is given.
        DataError: the file is missing or unreadable.
    """
    if run is not None:
        model = Model(run)
        scores = model.evaluate(n, seed=seed, overrides=overrides)
        model.run.write("evaluation.json", json.dumps(scores, indent=1))
        return scores
    if task is None or samples is None:
        raise UsageError("say what to evaluate: a RUN, or --task T with --samples FILE")
    path = Path(samples)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    made = task_of(task, overrides)
    made.check_readable(path)
    return dict(made.metrics(made.read(path)))


def report(run: str | Path | Run, path: str | Path | None = None) -> Path:
    """Write the run's report page (``report.html`` in the run, without ``path``) and return its path."""
    opened = run if isinstance(run, Run) else Run(Path(run))
    out = Path(path) if path is not None else opened.path / "report.html"
    m = opened.manifest
    sections: list[tuple[str, list[Panel]]] = []
    found: list[Panel] = []
    if opened.checkpoints():
        model = Model(opened)
        found = list(model.task.panels(opened))
        entry = model.plan.method
    else:
        entry = method_of(opened)
    if found:
        sections.append(("Result", found))
    scores = _scores(opened)
    if scores:
        sections.append(("Metrics", [Table("Evaluation", ["metric", "value"], [list(i) for i in scores.items()])]))
    training = training_curves(opened)
    if training:
        sections.append(("Training", list(training)))
    config = [[f"{part}.{k}", json.dumps(v)] for part, t in opened.config().items() for k, v in t.items()]
    sections.append(("Settings", [Table("Config", ["setting", "value"], config)]))
    sections.append(("Paper", [Text("Method", f"{entry.summary}\n\n{entry.paper}")]))
    steps = opened.checkpoints()
    facts = [
        ("method", m.method),
        ("stage", m.stage),
        ("task", m.task),
        ("seed", str(m.seed)),
        ("step", str(steps[-1] if steps else 0)),
        *([(m.plugin, m.plugin_version or "")] if m.plugin else []),
        ("headwater", m.core_version),
        ("torch", m.torch),
        ("made", m.created),
    ]
    return write_page(
        out, title=f"{m.method} on {m.task}", subtitle=entry.summary, sections=sections, facts=facts,
        command=" ".join(m.command),
    )  # fmt: skip


def _scores(run: Run) -> dict[str, float]:
    try:
        scores: dict[str, float] = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        lines = [line for line in run.metrics() if any(k.startswith("valid/") for k in line)]
        last = lines[-1] if lines else {}
        return {k.removeprefix("valid/"): v for k, v in last.items() if k.startswith("valid/")}
    except ValueError as error:
        raise RunError(f"{run.path / 'evaluation.json'} is damaged: {error}") from error
    return scores


def training_curves(run: Run) -> list[Figure]:
    """One figure for every metric in ``metrics.jsonl``."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in run.metrics():
        for name, value in line.items():
            if name in ("step", "seconds") or not isinstance(value, int | float):
                continue
            xs, ys = series.setdefault(name, ([], []))
            xs.append(line["step"])
            ys.append(value)
    return [
        curves(name.removeprefix("valid/"), {name: points}, x="step", y=name.removeprefix("valid/"))
        for name, points in series.items()
        if len(points[0]) > 1
    ]
