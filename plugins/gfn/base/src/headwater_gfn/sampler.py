"""Objects from a trained policy."""

from typing import Any

import torch
from headwater import Sampler

from headwater_gfn.environment import Environment, Samples
from headwater_gfn.rollout import Behaviour, roll_out

__all__ = ["GFlowNetSampler"]


class GFlowNetSampler(Sampler):
    """Samples terminal states by the forward policy, so that P(x) is proportional to R(x) as far as it was learned."""

    def block(self, k: int, generator: torch.Generator, condition: Any) -> Samples:
        environment: Environment = self.task
        behaviour = Behaviour(temperature=self.config.temperature)
        policy: Any = self.modules["policy"]
        x = roll_out(environment, policy, self.block_size, generator, behaviour).last
        return Samples(x.cpu(), environment.log_reward(x).cpu())
