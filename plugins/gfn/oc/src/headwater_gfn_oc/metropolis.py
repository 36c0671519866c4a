"""The baseline MCMC: Metropolis-Hastings on the letters of objects."""

from collections.abc import Callable

import torch
from headwater_gfn.environment import Environment
from torch import Tensor

__all__ = ["metropolis"]


def metropolis(
    environment: Environment,
    x: Tensor,
    steps: int,
    exponent: float,
    generator: torch.Generator,
    visit: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Chains from ``x`` (B, ...) whose stationary distribution is R^exponent.

    A proposal changes one letter, drawn uniformly, to one drawn uniformly, which is as probable as the way back.

    Args:
        environment: of the objects.
        x: where the chains begin.
        steps: proposals in each.
        exponent: of the reward.
        generator: of all randomness.
        visit: called with the objects proposed and their log R.

    Returns:
        the objects reached and their log R.
    """
    letters, log_reward = environment.letters(x), environment.log_reward(x)
    n, device = len(x), generator.device
    for _ in range(steps):
        place = torch.randint(environment.n_places, (n, 1), generator=generator, device=device)
        value = torch.randint(environment.n_values, (n, 1), generator=generator, device=device)
        proposed = letters.scatter(1, place, value)
        proper = environment.proper(proposed)
        proposed = torch.where(proper.unsqueeze(1), proposed, letters)
        candidate = environment.from_letters(proposed)
        other = environment.log_reward(candidate)
        if visit is not None:
            visit(candidate, other)
        uniform = torch.rand(n, generator=generator, device=device)
        accepted = uniform.log() < exponent * (other - log_reward)
        letters = torch.where(accepted.unsqueeze(1), proposed, letters)
        log_reward = torch.where(accepted, other, log_reward)
    return environment.from_letters(letters), log_reward
