"""The moving average of weights whose decay rises with the number of updates."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Average", "decay_of"]


def decay_of(n: int, greatest: float) -> float:
    """min(greatest, (1+n)/(10+n)) of update n = 1, 2, ...: the first weights are forgotten at once."""
    return min(greatest, (1 + n) / (10 + n))


class Average(nn.Module):
    """A copy of a module whose parameters follow those of the original: a <- d a + (1-d) p."""

    updates: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = copy.deepcopy(module).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def restart(self, module: nn.Module) -> None:
        """Begin anew at the weights of ``module``."""
        self.module.load_state_dict(module.state_dict())
        self.updates.zero_()

    @torch.no_grad()
    def update(self, module: nn.Module, n: int, greatest: float) -> None:
        """Follow ``module`` after its update number ``n``, counted from 1."""
        own: list[Tensor] = list(self.module.parameters())
        new: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(own, new, 1 - decay_of(n, greatest))
        self.updates.fill_(n)
