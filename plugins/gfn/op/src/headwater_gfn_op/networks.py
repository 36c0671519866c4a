"""The policy of the preference-conditioned baseline (Jain et al., 2023)."""

from itertools import pairwise

import torch
from headwater_gfn.networks import MLPPolicy
from torch import Tensor, nn

__all__ = ["PreferencePolicy"]


class PreferencePolicy(nn.Module):
    """A perceptron that sees the preference beside the state, and another that gives log Z for a preference.

    The preference, weights of the objectives and an exponent, stands in the buffer ``condition`` (D + 1,): one for a
    batch. It is ones at first.
    """

    condition: Tensor

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        n_backward: int,
        n_objectives: int,
        hidden: tuple[int, ...],
        activation: str,
        z_hidden: tuple[int, ...] = (32, 32, 32),
    ) -> None:
        super().__init__()
        self.policy = MLPPolicy(n_features + n_objectives + 1, n_actions, n_backward, hidden, activation)
        widths = (n_objectives + 1, *z_hidden)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), nn.LeakyReLU()]
        self.z = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        self.register_buffer("condition", torch.ones(n_objectives + 1))

    def set_condition(self, weights: Tensor, exponent: Tensor | float) -> None:
        """Sample and learn for ``weights`` (D,) and ``exponent`` from now on."""
        self.condition.copy_(torch.cat([weights.double(), torch.as_tensor(exponent).double().reshape(1).to(weights)]))

    def _seen(self, observed: Tensor) -> Tensor:
        return torch.cat([observed, self.condition.to(observed).expand(len(observed), -1)], 1)

    def forward_logits(self, observed: Tensor) -> Tensor:
        return self.policy.forward_logits(self._seen(observed))

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = self.policy(self._seen(observed))
        return found

    def log_z(self) -> Tensor:
        """log Z () under the preference at hand."""
        found: Tensor = self.z(self.condition.to(next(self.z.parameters()).dtype)).squeeze(-1)
        return found
