"""The command line: a thin skin over the Python interface. Heavy imports wait until a verb needs them."""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from headwater.errors import INTERRUPTED, Elsewhere, HeadwaterError, UsageError, near

__all__ = ["cli", "main"]

SET = click.option(
    "--set", "assignments", multiple=True, metavar="PART.FIELD=VALUE", help="Override one setting; may be repeated."
)
FORCE = click.option("--force", is_flag=True, help="Replace what is there.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
WORKERS = click.option("--workers", type=int, default=1, show_default=True, help="Processes; the result is the same.")


class _Commands(click.Group):
    """Says which command is near an unknown one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            raise UsageError(f"there is no command {args[0]!r}{near(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="headwater")
def cli(debug: bool) -> None:
    """Train and sample generative samplers that are installed as plugins."""


def _tables(assignments: tuple[str, ...], parts: tuple[str, ...] | None = None) -> dict[str, Any]:
    from headwater.config import PARTS, parse_assignments

    return parse_assignments(assignments, PARTS if parts is None else parts)


def _print(text: str) -> None:
    click.echo(text)


@cli.command("list")
@AS_JSON
def list_(as_json: bool) -> None:
    """Show the installed plugins, methods and tasks."""
    from headwater import listing

    found = listing.listing()
    _print(json.dumps(found, indent=1) if as_json else listing.as_text(found))


@cli.command()
@click.argument("method")
@click.option("--schema", is_flag=True, help="Print the JSON schema of the config.")
@AS_JSON
def describe(method: str, schema: bool, as_json: bool) -> None:
    """Show a method: its paper, stages, samplers, operations, presets and settings."""
    from headwater import describing

    if schema:
        _print(json.dumps(describing.schema(method), indent=1))
    elif as_json:
        _print(json.dumps(describing.described(method), indent=1))
    else:
        _print(describing.as_text(method))


@cli.command()
@click.argument("method")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run directory to make.")
@click.option("--task", help="What to train on; the method's embedded default without.")
@click.option("--stage", help="Which trainer; the first without.")
@click.option("--preset", help="A named set of overrides of the method.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="A TOML file with the parts task, trainer, sampler, fit."
)
@SET
@click.option("--max-steps", type=int)
@click.option("--seed", type=int)
@click.option("--devices", type=int, help="Processes on this machine, one device each.")
@click.option("--nodes", type=int, help="Machines.")
@click.option("--precision")
@click.option("--compile", "compile_", is_flag=True, help="Compile the modules.")
@click.option("--from", "from_runs", multiple=True, type=click.Path(path_type=Path), help="A run to start from.")
@click.option("--skip-bad", is_flag=True, help="Leave out items of the data set that cannot be used, and list them.")
@FORCE
def train(
    method: str,
    out: Path,
    task: str | None,
    stage: str | None,
    preset: str | None,
    config: Path | None,
    assignments: tuple[str, ...],
    from_runs: tuple[Path, ...],
    skip_bad: bool,
    compile_: bool,
    force: bool,
    **fit: Any,
) -> None:
    """Train a method into a new run directory."""
    from headwater.config import merge
    from headwater.training import train as start

    given = {name: value for name, value in fit.items() if value is not None}
    if compile_:
        given["compile"] = True
    tables = merge(_tables(assignments), {"fit": given} if given else {})
    if skip_bad:
        tables = merge(tables, {"task": {"skip_bad": True}})
    before = _run_id(out)
    try:
        run = start(
            method, out, task=task, stage=stage, preset=preset, config=config, overrides=tables,
            from_runs=from_runs, force=force,
        )  # fmt: skip
    except KeyboardInterrupt:
        if _run_id(out) in (None, before):
            raise
        _interrupted(f"interrupted; go on with: headwater resume {out}")
    _after_training(run)


def _run_id(path: Path) -> str | None:
    """Which run is at ``path``, if one is."""
    from headwater.run import Run

    try:
        return Run(path).manifest.id
    except HeadwaterError:
        return None


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--max-steps", type=int, help="New total of steps.")
def resume(run: Path, max_steps: int | None) -> None:
    """Go on with an interrupted run, as if it had never stopped."""
    from headwater.training import resume as go_on

    _after_training(go_on(run, max_steps=max_steps))


def _after_training(run: Any) -> None:
    if _rank() > 0:
        return
    step = run.checkpoints()[-1]
    if run.reason == "interrupted":
        _interrupted(f"interrupted at step {step}; go on with: headwater resume {run.path}")
    note = "" if run.reason in ("done", "") else f" ({run.reason})"
    _print(f"trained to step {step}{note}: {run.path}")
    _write_report(run)


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def _interrupted(text: str) -> NoReturn:
    if _rank() == 0:
        click.echo(text, err=True)
    raise click.exceptions.Exit(INTERRUPTED)


def _write_report(run: Any) -> None:
    from importlib.util import find_spec

    from headwater.api import report as write

    if find_spec("plotly") is None:
        _print("no report: it needs pip install 'headwater[report]'")
    else:
        _print(f"report: {write(run)}")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-n", "n", type=int, default=1, show_default=True, help="How many samples.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File or folder; in the run without.")
@SEED
@click.option("--condition", "conditions", multiple=True, metavar="K=V", help="What to condition on.")
@click.option("--sampler", help="Another sampler of the method.")
@SET
@WORKERS
@FORCE
def sample(
    run: Path,
    n: int,
    output: Path | None,
    seed: int,
    conditions: tuple[str, ...],
    sampler: str | None,
    assignments: tuple[str, ...],
    workers: int,
    force: bool,
) -> None:
    """Write samples of a trained run, block by block, in the domain's own format."""
    from headwater.sampling import Model

    model = Model(run)
    path = output or run / "samples" / f"samples-seed{seed}{model.task.suffixes[0]}"
    condition = _tables(conditions, ()) if conditions else None
    tables = _tables(assignments)
    written = model.sample_to(
        path, n, seed=seed, condition=condition, sampler=sampler, overrides=tables, workers=workers, force=force
    )
    _print(f"{n} samples: {written}")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("operation")
@click.option("--input", "source", required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@SEED
@SET
@WORKERS
@click.option("--skip-bad", is_flag=True, help="Leave out items that cannot be used, and list them.")
@FORCE
def apply(
    run: Path,
    operation: str,
    source: Path,
    output: Path,
    seed: int,
    assignments: tuple[str, ...],
    workers: int,
    skip_bad: bool,
    force: bool,
) -> None:
    """Do something else with a trained run: one output for each item of the input."""
    from headwater.config import merge
    from headwater.sampling import Model

    # An operation has one table of settings, so its name may be left out: --set secret=PATH.
    named = tuple(a if a.startswith("operation.") else f"operation.{a}" for a in assignments)
    tables = _tables(named, ("operation",))
    if skip_bad:
        tables = merge(tables, {"operation": {"skip_bad": True}})
    written = Model(run).apply(operation, source, output, overrides=tables, seed=seed, workers=workers, force=force)
    _print(f"{operation}: {written}")


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--task", help="Evaluate samples of a file under this task.")
@click.option("--samples", type=click.Path(path_type=Path))
@click.option("-n", "n", type=click.IntRange(min=1), help="How many fresh samples of the run.")
@SEED
@SET
@AS_JSON
def evaluate(
    run: Path | None,
    task: str | None,
    samples: Path | None,
    n: int | None,
    seed: int,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print the metrics of a run's samples, or of samples in a file."""
    from headwater.api import evaluate as score

    scores = score(run, task=task, samples=samples, overrides=_tables(assignments), n=n, seed=seed)
    if as_json:
        _print(json.dumps(scores, indent=1))
    else:
        width = max(map(len, scores), default=0)
        _print("\n".join(f"{name:<{width}}  {value:.6g}" for name, value in scores.items()) or "no metrics")


@cli.group()
def data() -> None:
    """Check the data of a task, or make some."""


@data.command("check")
@click.argument("task")
@click.argument("root", type=click.Path(path_type=Path))
def data_check(task: str, root: Path) -> None:
    """Say what is wrong with the data at ROOT, one line a problem."""
    from headwater import registry
    from headwater.errors import DataError

    entry = registry.find_task(task)
    if not root.exists():
        raise DataError(f"{root} does not exist")
    problems = registry.resolve(entry.task).check(root)
    if problems:
        raise DataError("\n".join(problems))
    _print(f"{root} is fit for {task}")


@data.command("make")
@click.argument("task")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@SET
def data_make(task: str, output: Path, assignments: tuple[str, ...]) -> None:
    """Write the task's own data set."""
    from headwater.api import task_of
    from headwater.errors import RunError

    if output.exists():
        raise RunError(f"{output} exists; choose another -o")
    task_of(task, _tables(assignments)).make(output)
    _print(f"made {output}")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path))
def report(run: Path, output: Path | None) -> None:
    """Write the run's report page."""
    from headwater.api import report as write

    _print(str(write(run, output)))


@cli.command()
@click.argument("method")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--stage")
@click.option("--task")
@SET
@FORCE
def convert(
    method: str,
    files: tuple[Path, ...],
    out: Path,
    stage: str | None,
    task: str | None,
    assignments: tuple[str, ...],
    force: bool,
) -> None:
    """Make a run out of official checkpoint files."""
    from headwater.config import PARTS
    from headwater.training import convert as take_over

    tables = _tables(assignments, (*PARTS, "official"))
    run = take_over(method, files, out, stage=stage, task=task, overrides=tables, force=force)
    _print(f"converted: {run.path}")


@cli.command()
@click.argument("method")
def check(method: str) -> None:
    """Run the conformance suite on an installed method."""
    from headwater.testing import run_checks

    failed = run_checks(method, say=_print)
    if failed:
        raise HeadwaterError(f"{method} fails {failed} of the checks above")


@cli.command("new-plugin")
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path(), help="Where to make its folder.")
def new_plugin(name: str, output: Path) -> None:
    """Make a plugin package that installs and passes its tests at once."""
    from headwater.scaffold import make

    folder = make(name, output)
    _print(f"made {folder}\nnext: pip install -e {folder}[test] && pytest {folder}")


@cli.command()
@AS_JSON
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=120.0, show_default=True, help="Seconds for one import."
)
def doctor(as_json: bool, timeout: float) -> None:
    """Resolve everything that every plugin names, in a child process, and say what is wrong."""
    from headwater import doctor as examiner

    findings = examiner.examine(timeout)
    _print(json.dumps(examiner.as_json(findings), indent=1) if as_json else examiner.as_text(findings))
    if any(finding.level == "error" for finding in findings):
        raise click.exceptions.Exit(1)


@cli.command()
@click.argument("method", required=False)
@click.option("--out", type=click.Path(path_type=Path), default=Path("headwater-demo"), show_default=True)
def demo(method: str | None, out: Path) -> None:
    """Train a method beside its baseline on its embedded task, and write a report."""
    from headwater import registry

    names = [name for name, entry in registry.methods().items() if entry.demo is not None]
    if method is None:
        if not names:
            raise UsageError("no installed method has a demo; pip install headwater-gfn-fl has one")
        method = "gfn-fl" if "gfn-fl" in names else names[0]
    entry = registry.find_method(method)
    if entry.demo is None:
        raise UsageError(f"{method} has no demo{near(method, names)}")
    run: Callable[[Path], None] = registry.resolve(entry.demo)
    run(out)


def _fail(text: str, code: int) -> NoReturn:
    where = f" on rank {_rank()}" if _rank() > 0 else ""
    click.echo(f"error{where}: {text}", err=True)
    raise SystemExit(code)


def main() -> None:
    """Entry point: errors are one or two lines, exit 2 for a wrong request and 1 for work that failed."""
    sys._headwater_cli = True  # type: ignore[attr-defined]
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a request to end, as Ctrl-C is
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]  # wherever it stands
    try:
        code = cli.main(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # now, where a reader that went away can be dealt with
    except Elsewhere as error:
        raise SystemExit(error.exit_code if _rank() == 0 else 0) from None  # whoever fails ends the job
    except HeadwaterError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        if debug:
            raise
        hint = error.ctx.get_usage() + "\n" if isinstance(error, click.UsageError) and error.ctx else ""
        _fail(f"{error.format_message()}\n{hint}".rstrip(), 2)
    except (click.Abort, KeyboardInterrupt):
        if _rank() == 0:
            click.echo("interrupted; what was finished is on disk, the same command goes on", err=True)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush would fail again
        raise SystemExit(1) from None
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error} (headwater --debug shows where)", 1)
    raise SystemExit(code if isinstance(code, int) else 0)
