"""The processes of one training run or sampling job: how they start, and how they end together."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from headwater.config import FitConfig
from headwater.errors import Elsewhere, RunError

__all__ = ["joined", "launch", "losses", "together"]


def launch(config: FitConfig) -> Any:
    """Start Lightning Fabric as the config says; under ``torchrun`` or SLURM, join their processes."""
    import logging

    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # What watches the processes kills all of them when one has died: that much it should say.
    logging.getLogger("lightning_fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))
    many = config.devices * config.nodes > 1 or world > 1
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=max(config.nodes, world // devices if "LOCAL_WORLD_SIZE" in os.environ else 1),
        precision=config.precision,
        strategy="ddp" if many else "auto",
    )
    if many:
        fabric.launch()
        atexit.register(_leave)
    return fabric


def joined() -> Any:
    """The processes that ``torchrun`` started for one sampling job; one process by itself starts nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SimpleNamespace(world_size=1, global_rank=0)
    return launch(FitConfig.model_validate({"accelerator": "cpu"}))  # what they tell each other, wherever they compute


def _leave() -> None:
    """End gloo's threads before the interpreter ends: it may be ended by one that it finds running."""
    with suppress(Exception):
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def together(fabric: Any) -> Iterator[None]:
    """End the block on all ranks or on none: an error on one is raised there, and on the others ``Elsewhere``.

    All ranks leave the block at the same time, so it is a barrier as well. Of several ranks that fail, the first
    says why.
    """
    if fabric.world_size == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = torch.zeros(fabric.world_size, device=fabric.device)
    failed[fabric.global_rank] = float(error is not None)
    failing = fabric.all_reduce(failed, reduce_op="sum").nonzero().flatten().tolist()
    if error is not None and failing[0] == fabric.global_rank:
        raise error
    if failing:
        raise Elsewhere(f"the process of rank {failing[0]} met an error and says which")


@contextmanager
def losses(fabric: Any, run: Path) -> Iterator[None]:
    """Say plainly that another process went away, where torch says that a socket was closed."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if fabric.world_size == 1 or not lost:
            raise
        made = (run / "manifest.json").exists()
        advice = f"go on with: headwater resume {run}" if made else "give the same command again"
        raise RunError(f"another process of this training ended before its time; {advice}") from error
