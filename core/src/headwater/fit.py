"""The one training loop of the project: draw, step, log, validate, checkpoint, stop, resume."""

import errno
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from headwater import registry, seeding
from headwater.config import FitConfig
from headwater.errors import HeadwaterError, NonFinite, RunError
from headwater.hookspecs import FIT_HOOKS
from headwater.progress import Progress
from headwater.ranks import together
from headwater.run import Run
from headwater.state import save_state
from headwater.task import Task
from headwater.trainer import Place, Trainer

__all__ = ["Fit"]


class _Draws(torch.utils.data.Dataset[Any]):
    """Batch k under index k, so that loader processes draw ahead what ``draw`` would give in line."""

    def __init__(self, draw: Callable[[int], Any], start: int, stop: int) -> None:
        self.draw, self.start, self.stop = draw, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, i: int) -> Any:
        return self.draw(self.start + i)


def _same(batch: Any) -> Any:
    return batch


def _leave_signals(worker: int) -> None:
    """A loader process ends when the training process tells it to, not by the Ctrl-C that both receive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Fit:
    """One training run under way: hooks see ``step``, ``trainer``, ``task``, ``config`` and ``state``."""

    def __init__(self, run: Run, trainer: Trainer, task: Task, config: FitConfig, fabric: Any) -> None:
        self.run, self.trainer, self.task, self.config, self.fabric = run, trainer, task, config, fabric
        self.step = 0
        self.state: dict[str, Any] = {}
        self.reason = "done"
        self._stop: str | None = None
        self._saved: int | None = None
        self._metrics: IO[bytes] | None = None
        self._pending: list[Mapping[str, Tensor | float]] = []
        self._last_metrics: dict[str, float] = {}
        self._hooks = {name: registry.implementations(name) for name in FIT_HOOKS} if self.main else {}
        # One object, seeded anew for each batch: to make one takes as long as a small draw.
        self._generator = torch.Generator(trainer.place.device if trainer.on_policy else "cpu")
        self._averages: dict[str, AveragedModel] = {}
        if config.ema is not None:
            average = get_ema_multi_avg_fn(config.ema)
            self._averages = {
                name: AveragedModel(module, multi_avg_fn=average, use_buffers=True)
                for name, module in trainer.modules.items()
                if trainer.averaged is None or name in trainer.averaged
            }
            trainer.averages = {name: average.module for name, average in self._averages.items()}

    @property
    def main(self) -> bool:
        """Whether this process is rank 0, which logs, calls hooks and writes what is shared."""
        return bool(self.fabric.global_rank == 0)

    def stop(self, reason: str) -> None:
        """End training after the current step; a checkpoint is written."""
        self._stop = reason

    # The loop

    def __call__(self) -> str:
        """Train up to ``config.max_steps``; return why training ended.

        Raises:
            NonFinite: a loss or weight became NaN or infinite; the latest checkpoint is from before that.
        """
        trainer, config, last = self.trainer, self.config, self.config.max_steps
        plain = nullcontext() if config.precision != "bf16-mixed" else None
        averages = [(average, trainer.modules[name]) for name, average in self._averages.items()]
        step_hooks = self._hooks.get("headwater_step_end", [])
        shared_stop = self.fabric.world_size > 1
        self._started, self._started_at = time.perf_counter(), self.step
        self._elapsed_before = self._elapsed_so_far()
        with ExitStack() as stack:
            stack.enter_context(self._signals())
            if config.threads is not None:
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(config.threads)
            bar = stack.enter_context(Progress(last, self.step, shown=self.main, label=self.run.manifest.method))
            stack.callback(self._close_metrics)
            self._call_hooks("headwater_fit_start", fit=self)
            batches = self._batches(last) if not self._stopping(shared_stop) else ()
            for batch in batches:
                with plain or self.fabric.autocast():
                    metrics = trainer.step(batch)
                for average, module in averages:
                    average.update_parameters(module)
                self.step += 1
                self._pending.append(metrics)
                if step_hooks:
                    self._call_hooks("headwater_step_end", fit=self, step=self.step, metrics=metrics)
                if self.step % config.log_every == 0 or self.step == last:
                    self._log()
                if config.validate_every and self.step % config.validate_every == 0 and self.step < last:
                    self._validate()
                if self.step % config.checkpoint_every == 0 and self.step < last:
                    self.save()
                bar.advance(self.step, self._last_metrics)
                if self._stopping(shared_stop):  # before the next draw, which may change a replay buffer
                    break
            if self.step == last and self._saved != last:  # else it is validated already
                self._validate()
            self.save()
            self.reason = self._stop or "done"
            self._call_hooks("headwater_fit_end", fit=self, reason=self.reason)
        return self.reason

    def _draw(self, k: int) -> Any:
        self._generator.manual_seed(seeding.key(self.config.seed, k, self.trainer.place.rank))
        return self.trainer.draw(k, self._generator)

    def _batches(self, last: int) -> Any:
        if self.trainer.on_policy:
            return (self._draw(k) for k in range(self.step, last))
        if self.config.workers == 0:
            drawn: Any = (self._draw(k) for k in range(self.step, last))
        else:
            drawn = torch.utils.data.DataLoader(
                _Draws(self._draw, self.step, last), batch_size=None, collate_fn=_same,
                num_workers=self.config.workers, generator=torch.Generator(), worker_init_fn=_leave_signals,
            )  # fmt: skip
        if self.trainer.place.device.type == "cpu":
            return drawn
        return (self.fabric.to_device(batch) for batch in drawn)

    def _stopping(self, shared: bool) -> bool:
        """Whether to stop before the next step; with several ranks they agree on it every eighth step."""
        if not shared:
            return self._stop is not None
        if self.step % 8:
            return False
        flag = torch.tensor(float(self._stop is not None), device=self.trainer.place.device)
        if float(self.fabric.all_reduce(flag, reduce_op="sum")) > 0:
            self._stop = self._stop or "stopped by another rank"
            return True
        return False

    def _signals(self) -> ExitStack:
        """Ctrl-C and SIGTERM end the run after the step at hand; a second Ctrl-C ends it at once."""

        def on_signal(number: int, frame: Any) -> None:
            if self._stop is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop = "interrupted"

        stack = ExitStack()
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread: whoever runs us there handles signals
                before = signal.signal(number, on_signal)
                stack.callback(signal.signal, number, before)
        return stack

    # Metrics

    def _elapsed_so_far(self) -> float:
        lines = self.run.metrics() if self.main else []
        return float(lines[-1].get("seconds", 0.0)) if lines else 0.0

    def _log(self) -> None:
        """Average the pending metrics (the one wait for the device), check them, write a line."""
        with together(self.fabric):
            means = self._means()
        if not means:
            return
        self._pending = []
        self._last_metrics = means
        seconds = time.perf_counter() - self._started
        rate = (self.step - self._started_at) / seconds if seconds > 0 else 0.0
        self._write({**means, "steps_per_second": rate})

    def _means(self) -> dict[str, float]:
        """The averages of the pending metrics; a loss among them that is not finite ends the run."""
        pending = self._pending
        names = dict.fromkeys(name for metrics in pending for name in metrics)
        means = {name: _mean([m[name] for m in pending if name in m]) for name in names}
        for name, value in means.items():
            if name.startswith("loss") and not math.isfinite(value):
                self._non_finite(f"{name} became {value} between steps {self.step - len(pending) + 1} and {self.step}")
        return means

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def _validate(self) -> None:
        with torch.no_grad():
            found = self.trainer.validate()
        if found:
            self._write({f"valid/{name}": float(value) for name, value in found.items()})

    def _write(self, values: Mapping[str, float]) -> None:
        with self._writing():
            if self.main:
                self._write_line(values)
        if self.main and self.config.tensorboard:
            self._write_tensorboard(values)

    def _write_line(self, values: Mapping[str, float]) -> None:
        seconds = self._elapsed_before + time.perf_counter() - self._started
        line: dict[str, float | None] = {"step": self.step, "seconds": round(seconds, 4)}
        line |= {k: (v if math.isfinite(v) else None) for k, v in values.items()}
        if self._metrics is None:
            self._metrics = self.run.metrics_path.open("ab", buffering=0)
        text = json.dumps(line).encode() + b"\n"
        if self._metrics.write(text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write_tensorboard(self, values: Mapping[str, float]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise HeadwaterError("fit.tensorboard needs: pip install 'headwater[tensorboard]'") from error
        if not hasattr(self, "_tensorboard"):
            self._tensorboard = SummaryWriter(str(self.run.path / "tensorboard"), purge_step=self.step)
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, self.step)

    @property
    def _kept(self) -> str:
        return "no checkpoint was written" if self._saved is None else f"the checkpoint of step {self._saved} is whole"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Write on some or all ranks; where one cannot, all end, and one line says what is safe."""
        with together(self.fabric):
            try:
                yield
            except OSError as error:
                raise RunError(
                    f"cannot write in {self.run.path}: {error.strerror}; {self._kept}; "
                    f"make room and go on with: headwater resume {self.run.path}"
                ) from error

    def _non_finite(self, what: str) -> None:
        raise NonFinite(
            f"{what}; training stopped and {self._kept}. A lower learning rate or a clipped gradient may help"
        )

    # Checkpoints

    def save(self) -> None:
        """Write the checkpoint of the step reached; nothing is written where a value is not finite."""
        with together(self.fabric):
            self._check_finite()
        if self._saved == self.step:
            return
        folder = self.run.unfinished_path(self.step)
        try:
            with self._writing():
                if self.main:
                    self.run.begin_checkpoint(self.step)
            with self._writing():
                if self.main:
                    save_state(folder, "model", self._model_state())
                    save_state(folder, "training", self._training_state())
                save_state(folder, f"rank-{self.fabric.global_rank}", self._rank_state())
            with self._writing():
                if self.main:
                    self.run.publish_checkpoint(self.step, self.config.keep)
        except HeadwaterError:
            if self.main:  # half a checkpoint is of no use, and takes room
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self._saved = self.step
        path = self.run.checkpoint_path(self.step)
        self._call_hooks("headwater_checkpoint_saved", fit=self, step=self.step, path=path)

    def _check_finite(self) -> None:
        self._means()
        for name, module in self.trainer.modules.items():
            for key, tensor in module.state_dict().items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    self._non_finite(f"the weights {name}.{key} are not finite at step {self.step}")

    def _model_state(self) -> dict[str, Any]:
        modules = {**self.trainer.given, **self.trainer.modules}
        return {
            "step": self.step,
            "facts": self.trainer.facts_found,
            "modules": {name: dict(module.state_dict()) for name, module in modules.items()},
            "ema": {name: dict(average.module.state_dict()) for name, average in self._averages.items()},
        }

    def _training_state(self) -> dict[str, Any]:
        return {
            "optimisers": {name: o.state_dict() for name, o in self.trainer.optimisers.items()},
            "schedulers": {name: s.state_dict() for name, s in self.trainer.schedulers.items()},
            "averaged": {name: int(average.n_averaged) for name, average in self._averages.items()},
            "hooks": self.state,
            "pending": [{name: _mean([v]) for name, v in metrics.items()} for metrics in self._pending],
        }

    def _rank_state(self) -> dict[str, Any]:
        return {
            "global": seeding.global_state(),
            "stateful": {name: s.state_dict() for name, s in self.trainer.stateful.items()},
        }

    def restore(self, step: int) -> None:
        """Go back to the checkpoint of ``step``.

        Raises:
            RunError: the run was made by another trainer.
        """
        run, trainer = self.run, self.trainer
        model, training = run.load(step, "model"), run.load(step, "training")
        own = run.load(step, f"rank-{self.fabric.global_rank}")
        try:
            for name, module in trainer.modules.items():
                module.load_state_dict(model["modules"][name])
            for name, average in self._averages.items():
                average.module.load_state_dict(model["ema"][name])
                average.n_averaged.fill_(training["averaged"][name])
            for name, optimiser in trainer.optimisers.items():
                optimiser.load_state_dict(training["optimisers"][name])
                _lay_out(optimiser)
            for name, scheduler in trainer.schedulers.items():
                scheduler.load_state_dict(training["schedulers"][name])
            for name, stateful in trainer.stateful.items():
                stateful.load_state_dict(own["stateful"][name])
            self.state = training["hooks"]
            self._pending = training["pending"]
            self.step = self._saved = int(model["step"])
            seeding.restore_global_state(own["global"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise RunError(
                f"{run.checkpoint_path(step)} does not fit the installed version of "
                f"{run.manifest.plugin or run.manifest.method}: {type(error).__name__}: {error}"
            ) from error

    # Hooks

    def _call_hooks(self, name: str, **arguments: Any) -> None:
        for plugin, implementation in list(self._hooks.get(name, ())):
            try:
                implementation(**arguments)
            except (Exception, SystemExit) as error:
                if registry.strict():
                    raise HeadwaterError(f"{name} of the plugin {plugin} failed: {error!r}") from error
                print(f"{name} of the plugin {plugin} failed and is off for this run: {error!r}", file=sys.stderr)
                for implementations in self._hooks.values():
                    implementations[:] = [i for i in implementations if i[0] != plugin]


def _lay_out(optimiser: torch.optim.Optimizer) -> None:
    """Lay the state of each parameter out in memory as the parameter is.

    A fused optimiser goes through both side by side, so where they differ (channels last, say) it would update each
    weight by the state of another, and say nothing.
    """
    for parameter, state in optimiser.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


@torch.no_grad()
def _mean(values: list[Tensor | float]) -> float:
    """The mean in single precision; numbers of a checkpoint join tensors on whatever device these are."""
    device = next((v.device for v in values if isinstance(v, Tensor)), None)
    tensors = [v if isinstance(v, Tensor) else torch.tensor(v, device=device) for v in values]
    return float(torch.stack([t.float().mean() if t.ndim else t for t in tensors]).float().mean())


def modules_to(modules: Mapping[str, nn.Module], place: Place, precision: str) -> None:
    """Move modules to where they run, in the precision's storage type."""
    dtype = torch.float64 if precision == "64-true" else None
    for module in modules.values():
        module.to(place.device, dtype)
