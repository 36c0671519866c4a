"""Training a method: start a run, go on with one, or take over official weights."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headwater import registry, seeding
from headwater.config import merge, to_toml, validate
from headwater.entries import MethodEntry
from headwater.errors import INTERRUPTED, DataError, PluginError, RunError, UsageError
from headwater.fit import Fit, modules_to
from headwater.ranks import launch, losses, together
from headwater.resolve import Plan, plan
from headwater.run import Manifest, Run, Source, circumstances
from headwater.state import load_state, sha256
from headwater.trainer import Place, Trainer

__all__ = ["convert", "load_model", "method_of", "plan_of", "resume", "train"]


def train(
    method: str,
    out: str | Path,
    *,
    task: str | None = None,
    stage: str | None = None,
    preset: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    from_runs: Sequence[str | Path] = (),
    force: bool = False,
    devices: int | None = None,
) -> Run:
    """Train ``method`` into the run directory ``out``.

    Args:
        method: its name, for example ``"gfn-fl"``.
        out: the run directory to make.
        task: name of the task; the method's embedded default without.
        stage: name of the stage; the first without.
        preset: a named set of overrides of the method.
        config: a TOML file or nested mapping with the parts task, trainer, sampler, fit.
        overrides: nested overrides of the same form, stronger than ``config``.
        from_runs: runs whose modules this one starts from or carries along.
        force: replace a run that is there.
        devices: processes on this machine; with more than one the command line is started in a child, so that
            the calling script never runs twice.

    Returns:
        The finished (or interrupted) run.

    Raises:
        HeadwaterError: the request, the data or the machine does not allow it; the text says what would do.
    """
    extra = {} if devices is None else {"fit": {"devices": devices}}
    tables = merge(overrides or {}, extra)
    made = plan(method, task=task, stage=stage, preset=preset, config=_path(config), overrides=tables)
    if made.fit.devices > 1 and not _in_cli():
        return _train_in_child(made, Path(out), from_runs, force)
    fabric = launch(made.fit)
    path, main = Path(out), fabric.global_rank == 0
    with losses(fabric, path):
        with together(fabric):  # before what may take long
            if main:
                Run.check_free(path, force)
        with together(fabric):
            sources, lineage, states = _from(from_runs, made)
            settings = made.config["trainer"].model_dump(mode="json")
            own = Source(stage=made.stage.name, trainer=settings, modules=[])
            trainer = _trainer(made, fabric, [own, *sources], states)
            own.modules = list(trainer.modules)
        with together(fabric):
            if main:
                manifest = _manifest(made, fabric.world_size, [own, *sources], lineage)
                Run.create(path, manifest, made.config, force=force)
        run = Run(path)
        with _holding(run, fabric):
            return _fit(run, Fit(run, trainer, made.task, made.fit, fabric), first=bool(states))


def resume(path: str | Path, *, max_steps: int | None = None) -> Run:
    """Go on with an interrupted run from its latest checkpoint, as if it had never stopped.

    Args:
        path: the run directory.
        max_steps: new total of steps; the run's own without.

    Raises:
        RunError: the run is damaged, in use, or was made with another number of processes.
        PluginError: its plugin is not installed.
    """
    run = Run(Path(path))
    reached = run.checkpoints()[-1:]
    if max_steps is not None and reached and max_steps < reached[0]:
        raise UsageError(f"{run.path} has reached step {reached[0]}; --max-steps {max_steps} is behind that")
    extra = {} if max_steps is None else {"fit": {"max_steps": max_steps}}
    made = plan_of(run, extra)
    if made.fit.devices > 1 and not _in_cli():
        return _child(
            ["resume", str(run.path), *([] if max_steps is None else ["--max-steps", str(max_steps)])], run.path
        )
    fabric = launch(made.fit)
    with losses(fabric, run.path), _holding(run, fabric):
        with together(fabric):
            step = _where_to_go_on(run, fabric.world_size)
            states = [model_state(run, step)] if step is not None else []
            facts = states[0]["facts"] if states else None
            trainer = _trainer(made, fabric, run.manifest.sources, states, facts=facts)
            fit = Fit(run, trainer, made.task, made.fit, fabric)
            if step is not None:
                fit.restore(step)
        with together(fabric):
            if fabric.global_rank == 0:
                run.go_back(step or 0)
                if max_steps is not None:
                    run.write_config(made.config)
        return _fit(run, fit)


def _where_to_go_on(run: Run, processes: int) -> int | None:
    """The step of the latest whole checkpoint, if these processes can go on from there; ``None`` for the start."""
    if run.manifest.processes != processes:
        raise RunError(
            f"{run.path} was trained by {run.manifest.processes} processes; resume it with as many, not {processes}"
        )
    step = run.latest()
    if step is None and run.manifest.lineage:
        raise RunError(f"{run.path} stopped before its first checkpoint; start it again with --force")
    return step


@contextmanager
def _holding(run: Run, fabric: Any) -> Iterator[None]:
    """Have rank 0 hold the run for all."""
    with together(fabric):
        if fabric.global_rank == 0:
            run.lock()
    try:
        yield
    finally:
        run.unlock()


def _fit(run: Run, fit: Fit, *, first: bool = False) -> Run:
    if first:
        fit.save()
    run.reason = fit()
    return run


def _path(config: str | Path | Mapping[str, Any] | None) -> Path | Mapping[str, Any] | None:
    return Path(config) if isinstance(config, str) else config


def _in_cli() -> bool:
    return bool(getattr(sys, "_headwater_cli", False))


def _train_in_child(made: Plan, out: Path, from_runs: Sequence[str | Path], force: bool) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.toml"
        file.write_text(to_toml(made.config), encoding="utf-8")
        arguments = ["train", made.method.name, "--out", str(out), "--task", made.task_entry.name]
        arguments += ["--stage", made.stage.name, "--config", str(file)]
        arguments += [word for source in from_runs for word in ("--from", str(source))]
        return _child(arguments + (["--force"] if force else []), out)


def _child(arguments: list[str], out: Path) -> Run:
    child = subprocess.Popen([sys.executable, "-m", "headwater", *arguments])
    asked = 0
    while True:
        try:
            code = child.wait()
            break
        except KeyboardInterrupt:  # the child saves and ends, as it would alone; at the second one it ends at once
            child.send_signal(signal.SIGTERM if asked == 0 else signal.SIGINT)
            asked += 1
    if code == INTERRUPTED and Run(out).checkpoints():
        run = Run(out)
        run.reason = "interrupted"
        return run
    if asked:
        raise KeyboardInterrupt
    if code != 0:
        raise RunError(f"training in a child process ended with exit code {code}; its message is above")
    return Run(out)


def _trainer(
    made: Plan,
    fabric: Any,
    sources: Sequence[Source],
    states: Sequence[Mapping[str, Any]],
    facts: dict[str, Any] | None = None,
) -> Trainer:
    """Build the trainer: facts (measured, if not given) and modules from the run's seed, then the weights of
    ``states`` on top.
    """
    seeding.seed_all(seeding.key(made.fit.seed))
    place = Place(fabric.device, fabric.global_rank, fabric.world_size)
    kind: type[Trainer] = registry.resolve(made.stage.trainer)
    config = made.config["trainer"]
    if facts is None:
        facts = merge(*(state["facts"] for state in states), kind.facts(config, made.task))
    modules = kind.build(config, made.task, facts)
    given = _build_sources([s for s in sources if s.stage != made.stage.name], made, facts)
    given = {name: module for name, module in given.items() if name not in modules}
    for state in states:
        _load_weights(modules, state["modules"])
        _load_weights(given, {**state["modules"], **state["ema"]})  # carried along as they would be sampled with
    modules_to({**given, **modules}, place, made.fit.precision)
    seeding.seed_all(seeding.key(made.fit.seed, place.rank))
    trainer = kind(config, made.task, modules, facts, given, place)
    trainer.setup()
    if made.fit.compile:
        for module in trainer.modules.values():
            module.compile()
    return trainer


def _load_weights(modules: Mapping[str, nn.Module], states: Mapping[str, Any]) -> None:
    for name, state in states.items():
        if name not in modules:
            continue
        try:
            modules[name].load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            # torch says in its first line that there are faults, and then gives each a line.
            faults = [line.strip() for line in str(error).splitlines()]
            first = faults[1] if len(faults) > 1 else faults[0]
            more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
            raise RunError(f"the weights of module {name!r} do not fit this config: {first}{more}") from error


def _build_sources(sources: Sequence[Source], made: Plan, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Build the modules of a run's sources, untrained."""
    modules: dict[str, nn.Module] = {}
    for source in sources:
        stage = registry.stage(made.method.name, source.stage)
        config = validate(registry.resolve(stage.config), source.trainer, "trainer")
        built = registry.resolve(stage.trainer).build(config, made.task, facts)
        modules |= {name: built[name] for name in source.modules if name not in modules}
    return modules


def _from(paths: Sequence[str | Path], made: Plan) -> tuple[list[Source], list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the runs of ``--from``: the stages that built their modules, their lineage, and their states."""
    sources: list[Source] = []
    lineage: list[dict[str, Any]] = []
    states: list[dict[str, Any]] = []
    for path in paths:
        run = Run(Path(path))
        if run.manifest.method != made.method.name:
            raise UsageError(f"--from {path} is a run of {run.manifest.method}, not of {made.method.name}")
        step = run.latest()
        if step is None:
            raise RunError(f"--from {path} has no checkpoint yet")
        states.append(model_state(run, step))
        sources += [s for s in run.manifest.sources if s.stage != made.stage.name]
        lineage.append({"path": str(path), "id": run.manifest.id, "stage": run.manifest.stage, "step": step})
    got = {entry["stage"] for entry in lineage}
    missing = [stage for stage in made.stage.after if stage not in got]
    if missing:
        first = f"headwater train {made.method.name} --stage {missing[0]} --out ..."
        raise UsageError(f"the stage {made.stage.name!r} builds on {missing[0]!r}: pass --from RUN, made by '{first}'")
    return sources, lineage, states


def _manifest(made: Plan, processes: int, sources: list[Source], lineage: list[dict[str, Any]]) -> Manifest:
    owner = registry.owner("method", made.method.name)
    return Manifest(
        method=made.method.name, stage=made.stage.name, task=made.task_entry.name, sampler=made.sampler.name,
        plugin=owner.distribution, plugin_version=owner.version, seed=made.fit.seed,
        processes=processes, sources=sources, lineage=lineage,
        **circumstances(),
    )  # fmt: skip


def method_of(run: Run) -> MethodEntry:
    """The entry of the run's method.

    Raises:
        PluginError: its plugin is not installed, or broken; the text says what to install.
    """
    m = run.manifest
    try:
        return registry.find_method(m.method)
    except UsageError as error:
        known = {plugin.distribution for plugin in registry.plugins().values()}
        if m.plugin is None or m.plugin in known:
            raise PluginError(f"{run.path} needs {error}") from error
        raise PluginError(
            f"{run.path} needs method {m.method!r}, which is not installed; "
            f"try: pip install {m.plugin}=={m.plugin_version}"
        ) from error


def plan_of(run: Run, overrides: Mapping[str, Any] | None = None, sampler: str | None = None) -> Plan:
    """The plan that a run was made by, with the plugins installed now."""
    m = run.manifest
    method_of(run)
    tables = run.config()
    if sampler is not None and sampler != m.sampler:
        tables["sampler"] = {}
    return plan(m.method, task=m.task, stage=m.stage, sampler=sampler or m.sampler, config=tables, overrides=overrides)


def model_state(run: Run, step: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state ``model`` of the checkpoint of ``step``: its modules' weights, their averages, and facts.

    Raises:
        RunError: it is damaged, or something else than a trained model.
    """
    state = load_state(run.checkpoint_path(step), "model", device)
    parts = ("modules", "ema", "facts")
    if not isinstance(state, dict) or not all(isinstance(state.get(part), dict) for part in parts):
        raise RunError(f"{run.checkpoint_path(step)} holds no trained model")
    return state


def load_model(run: Run, made: Plan, place: Place) -> tuple[dict[str, nn.Module], dict[str, Any], int]:
    """The run's modules in eval mode (the averaged weights where there are any), its facts, and the step.

    Raises:
        RunError: the run has no whole checkpoint, or it does not fit the installed plugin.
    """
    step = run.latest()
    if step is None:
        raise RunError(f"{run.path} has no checkpoint yet; go on with: headwater resume {run.path}")
    state = model_state(run, step, place.device)
    with torch.random.fork_rng(devices=[]):
        modules = _build_sources(run.manifest.sources, made, state["facts"])
    missing = [name for name in modules if name not in state["modules"]]
    if missing:
        raise RunError(f"{run.checkpoint_path(step)} lacks module {missing[0]!r}, which the run's config has")
    _load_weights(modules, {**state["modules"], **state["ema"]})
    modules_to(modules, place, made.fit.precision)
    for module in modules.values():
        module.eval().requires_grad_(False)
    return modules, state["facts"], step


def convert(
    method: str,
    files: Sequence[str | Path],
    out: str | Path,
    *,
    stage: str | None = None,
    task: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Run:
    """Make a run out of official checkpoint files, ready to sample from or to train on with ``from_runs``.

    The method's converter module gives ``read_official(paths) -> (state, hyperparameters)`` and
    ``from_official(state, **hyperparameters) -> modules``; if it has ``config_of(state, hyperparameters)``,
    ``stage_of`` and ``task_of``, these say which config, stage and task the weights belong to.

    Raises:
        DataError: a file is missing or is not the checkpoint that it should be; names keys that do not fit.
    """
    entry = registry.find_method(method)
    if entry.converter is None:
        raise UsageError(f"{method} has no official checkpoints to convert")
    from_official: Callable[..., dict[str, nn.Module]] = registry.resolve(entry.converter)
    module = sys.modules[entry.converter.partition(":")[0]]
    paths = [Path(f) for f in files]
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist")
    tables = dict(overrides or {})
    official = tables.pop("official", {})
    state, hyperparameters = module.read_official(paths)
    hyperparameters = {**hyperparameters, **official}
    modules = from_official(state, **hyperparameters)
    found = module.config_of(state, hyperparameters) if hasattr(module, "config_of") else {}
    if task is None and hasattr(module, "task_of"):
        task = module.task_of(state, hyperparameters)
    if stage is None and hasattr(module, "stage_of"):
        stage = module.stage_of(state, hyperparameters)
    made = plan(method, stage=stage, task=task, overrides=merge(found, tables))
    kind: type[Trainer] = registry.resolve(made.stage.trainer)
    own = Source(stage=made.stage.name, trainer=made.config["trainer"].model_dump(mode="json"), modules=list(modules))
    model: dict[str, Any] = {
        "step": 0, "facts": kind.facts(made.config["trainer"], made.task), "ema": {},
        "modules": {name: dict(m.state_dict()) for name, m in modules.items()},
    }  # fmt: skip
    built = _build_sources([own], made, model["facts"])
    _load_weights(built, model["modules"])
    manifest = _manifest(made, 1, [own], [])
    manifest.converted_from = [{"path": str(p), "sha256": sha256(p)} for p in paths if p.is_file()]
    run = Run.create(Path(out), manifest, made.config, force=force)
    run.save_model(model)
    return run
