"""The trainer: turns a config and a task into trained modules, one step at a time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from headwater.task import Task

__all__ = ["Place", "Stateful", "Trainer", "reduce_gradients"]


class Stateful(Protocol):
    """Anything with a state to be saved: a replay buffer, an archive, a curriculum."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> object: ...


@dataclass(frozen=True)
class Place:
    """Where a trainer or sampler runs."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009 - it is immutable
    rank: int = 0
    world: int = 1


def reduce_gradients(parameters: list[nn.Parameter], weight: float | Tensor) -> None:
    """Replace each gradient by its mean over all ranks, weighted by each rank's ``weight``.

    One flat all-reduce. A parameter without a gradient on some ranks counts as zero there; one without a
    gradient on every rank keeps none, so optimisers skip it as they do in one process.
    """
    if not parameters:
        return
    device = parameters[0].device
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    w = torch.as_tensor(weight, dtype=dtype, device=device)
    has = torch.tensor([p.grad is not None for p in parameters], dtype=dtype, device=device)
    grads = [(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1).to(dtype) for p in parameters]
    flat = torch.cat([*(g * w for g in grads), has, w.reshape(1)])
    dist.all_reduce(flat)
    total = flat[-1]
    present = flat[-1 - len(parameters) : -1].tolist()
    start = 0
    for p, on_some_rank in zip(parameters, present, strict=True):
        if on_some_rank:
            p.grad = (flat[start : start + p.numel()] / total).to(p.dtype).view_as(p)
        start += p.numel()


class Trainer(ABC):
    """One stage of a method.

    ``build`` makes the modules from config, task and facts; it must not read the training data, for sampling
    calls it too. ``facts`` measures what sampling needs from the data (a histogram of sizes, a scale).
    ``setup`` then makes the optimisers on the instance:

    - ``modules``: trained and saved, by name; modules of ``--from`` runs are in ``given`` and saved as well
    - ``frozen``: rebuilt from a local path, never saved
    - ``optimisers``, ``schedulers``: by name; a scheduler steps with the optimiser of its name
    - ``stateful``: what else changes while training (replay, archive), by name; saved with each rank

    A bare parameter such as log Z lives in an ``nn.ParameterDict``.
    """

    on_policy: ClassVar[bool] = False
    """Whether ``draw`` uses the modules (rollouts): it then runs between steps, on the training device."""

    averaged: ClassVar[tuple[str, ...] | None] = None
    """The modules of which ``fit.ema`` keeps a moving average; all without."""

    clip_norm: float | None = None
    """Gradient norm above which ``update`` scales gradients down."""

    def __init__(
        self,
        config: Any,
        task: Task,
        modules: dict[str, nn.Module],
        facts: dict[str, Any],
        given: dict[str, nn.Module] | None = None,
        place: Place | None = None,
    ) -> None:
        self.config = config
        self.task: Any = task
        self.modules = modules
        self.facts_found = facts
        self.given = given or {}
        self.place = place or Place()
        self.frozen: dict[str, nn.Module] = {}
        self.optimisers: dict[str, Optimizer] = {}
        self.schedulers: dict[str, LRScheduler] = {}
        self.stateful: dict[str, Stateful] = {}
        self.averages: dict[str, nn.Module] = {}
        """The moving averages that ``fit.ema`` keeps, by the name of their module, for ``validate``."""

    @classmethod
    def facts(cls, config: Any, task: Task) -> dict[str, Any]:
        """Measure what sampling needs from the data: a tree of tensors, containers and scalars."""
        return {}

    @classmethod
    @abstractmethod
    def build(cls, config: Any, task: Task, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        """The untrained modules, by name."""

    @abstractmethod
    def setup(self) -> None:
        """Make the optimisers (and schedulers, replay); the modules are on the device by now."""

    @abstractmethod
    def draw(self, k: int, generator: torch.Generator) -> Any:
        """Batch ``k``; all its randomness comes from ``generator``, which is keyed on (seed, k, rank)."""

    @abstractmethod
    def step(self, batch: Any) -> dict[str, Tensor]:
        """One training step on ``batch``: compute losses, call :meth:`update`, return scalar tensors.

        A metric whose name starts with ``loss`` stops the run when it is not finite. Nothing here should wait
        for the device (``.item()``, printing).
        """

    def validate(self) -> dict[str, float]:
        """Measure progress; called on all ranks every ``fit.validate_every`` steps."""
        return {}

    def update(self, loss: Tensor, optimiser: str | None = None, weight: float | Tensor = 1.0) -> None:
        """Backward, weighted mean of gradients over the ranks, clip, optimiser step, zero.

        Args:
            loss: scalar, the mean over this rank's share of the batch.
            optimiser: its name in ``optimisers``; not needed when there is one.
            weight: how much this rank's share counts, as a rule the number of items in it.
        """
        name = optimiser if optimiser is not None else next(iter(self.optimisers))
        chosen = self.optimisers[name]
        loss.backward()
        if self.place.world > 1 or self.clip_norm is not None:
            parameters = [p for group in chosen.param_groups for p in group["params"]]
            if self.place.world > 1:
                reduce_gradients(parameters, weight)
            if self.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        chosen.step()
        chosen.zero_grad(set_to_none=True)
        if name in self.schedulers:
            self.schedulers[name].step()
