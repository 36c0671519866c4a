"""Objects from a trained policy, for a preference where it was trained for one."""

from typing import Any

import torch
from headwater import UsageError
from headwater_gfn.environment import Samples
from headwater_gfn.sampler import GFlowNetSampler

from headwater_gfn_op.config import Preference
from headwater_gfn_op.networks import PreferencePolicy
from headwater_gfn_op.trainer import draw_preference

__all__ = ["OPSampler"]


class OPSampler(GFlowNetSampler):
    """Samples by the forward policy; of a run with ``objective = "pc-tb"`` under a preference among the objectives."""

    def block(self, k: int, generator: torch.Generator, condition: Any) -> Samples:
        preference = condition or Preference.model_validate({})
        policy: Any = self.modules["policy"]
        if isinstance(policy, PreferencePolicy):
            weights = preference.weights
            d = len(policy.condition) - 1
            if weights is None:
                drawn, _ = draw_preference(d, generator)
            elif len(weights) != d or sum(weights) <= 0:
                raise UsageError(f"the condition weights = {weights} must be {d} weights, not all 0")
            else:
                drawn = torch.tensor(weights, dtype=torch.float64) / sum(weights)
            policy.set_condition(drawn.to(policy.condition.device), preference.exponent)
        elif preference.weights is not None:
            raise UsageError("this run takes no condition: only trainer.objective = 'pc-tb' learns preferences")
        return super().block(k, generator, None)
