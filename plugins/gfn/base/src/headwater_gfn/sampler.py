"""Objects from a trained policy."""

from typing import TYPE_CHECKING, Any

import torch
from headwater import Sampler

from headwater_gfn.environment import Samples
from headwater_gfn.rollout import Behaviour, roll_out
from headwater_gfn.table import TableEnvironment, tabulate

if TYPE_CHECKING:
    from headwater.reporting import Panel

__all__ = ["GFlowNetSampler"]


class GFlowNetSampler(Sampler):
    """Samples terminal states by the forward policy, so that P(x) is proportional to R(x) as far as it was learned."""

    def setup(self) -> None:
        self.environment = tabulate(self.task, device=self.place.device)

    def policies(self) -> dict[str, Any]:
        """The policies that a report shows, by name: a network, or log P_F of every action in every state."""
        return {"learned": self.modules["policy"]}

    def panels(self) -> "list[Panel]":
        """What else a report shows."""
        return []

    def block(self, k: int, generator: torch.Generator, condition: Any) -> Samples:
        behaviour = Behaviour(temperature=self.config.temperature)
        policy: Any = self.modules["policy"]
        x = roll_out(self.environment, policy, self.block_size, generator, behaviour).last
        log_reward = self.environment.log_reward(x)
        if isinstance(self.environment, TableEnvironment):
            x = self.environment.states[x]
        return Samples(x.cpu(), log_reward.cpu())
