"""The flows as parts of one object: what a sampler needs to know of each kind of data.

A crystal has three parts: cell (Gaussian), atom types (categorical), coordinates (von Mises). A part knows the n
messages of its schedule, draws the belief before and after any of them, and learns from one.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from headwater_bfn import continuous, discrete, vonmises
from headwater_bfn.vonmises import Belief

__all__ = ["Categorical", "Gaussian", "Part", "VonMises"]


class Part(Protocol):
    """One kind of data, under a schedule of n messages. ``like`` gives shape, type and device."""

    def prior(self, like: Tensor, generator: torch.Generator) -> Any:
        """The belief before the first message."""

    def flow(self, estimate: Tensor, i: int, generator: torch.Generator) -> Any:
        """A belief after i messages, drawn from scratch as if the estimate were the data."""

    def receive(self, belief: Any, estimate: Tensor, i: int, generator: torch.Generator) -> Any:
        """The belief after message i, which is drawn around the estimate."""


@dataclass(frozen=True)
class Gaussian:
    """Continuous data, and discretised data whose estimate is a bin's centre or the mean over bins.

    The belief is its mean; the precision depends on i alone.
    """

    n: int
    sigma1: float

    def prior(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(like)

    def flow(self, estimate: Tensor, i: int, generator: torch.Generator) -> Tensor:
        return continuous.flow(estimate, i / self.n, self.sigma1, generator)

    def receive(self, belief: Tensor, estimate: Tensor, i: int, generator: torch.Generator) -> Tensor:
        accuracy = continuous.step_alpha(i, self.n, self.sigma1)
        y = continuous.sender(estimate, accuracy, generator)
        return continuous.update(belief, 1 + continuous.beta((i - 1) / self.n, self.sigma1), y, accuracy)[0]


@dataclass(frozen=True)
class Categorical:
    """Classes; the belief is logits, the estimate probabilities, both (..., K).

    ``floor`` keeps probabilities of the estimate from being 0 when a flow is drawn around it.
    """

    n: int
    beta1: float
    floor: float = 1e-6

    def prior(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(like)

    def flow(self, estimate: Tensor, i: int, generator: torch.Generator) -> Tensor:
        return discrete.flow(estimate.clamp_min(self.floor), i / self.n, self.beta1, generator)

    def receive(self, belief: Tensor, estimate: Tensor, i: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(estimate.flatten(0, -2), 1, generator=generator).view(estimate.shape[:-1])
        target = torch.nn.functional.one_hot(chosen, estimate.shape[-1]).to(estimate.dtype)
        y = discrete.sender(target, discrete.step_alpha(i, self.n, self.beta1), generator)
        return discrete.update(belief, y)


@dataclass(frozen=True)
class VonMises:
    """Angles; the belief is a :class:`~headwater_bfn.vonmises.Belief`. ``bank`` gives flows by look-up."""

    angles: vonmises.Angles
    bank: vonmises.Bank | None = None

    def prior(self, like: Tensor, generator: torch.Generator) -> Belief:
        return self.flow(like, 0, generator)

    def flow(self, estimate: Tensor, i: int, generator: torch.Generator) -> Belief:
        steps = torch.full(estimate.shape, i, device=estimate.device)
        if self.bank is not None:
            return self.bank.flow(estimate, steps, generator)
        return vonmises.flow(estimate, steps, self.angles, generator)

    def receive(self, belief: Belief, estimate: Tensor, i: int, generator: torch.Generator) -> Belief:
        which = torch.full(estimate.shape, i - 1, device=estimate.device)
        y = estimate + self.angles.draw(which, generator).to(estimate.dtype)
        return vonmises.update(belief, y, float(self.angles.alpha[i - 1]))
