"""The networks: the conditional policy, the outcome sampler Q, the explorer's curiosity."""

from typing import Any

import torch
from headwater_gfn.networks import ACTIVATIONS, MLPPolicy
from torch import Tensor, nn

__all__ = ["Curiosity", "FiLMPolicy", "OutcomeSampler", "conditional_policy"]


class FiLMPolicy(nn.Module):
    """A policy of states (B, F) that an outcome (B, F) scales and shifts, layer by layer (Perez et al., 2018).

    It sees both side by side, as a perceptron of their concatenation would.
    """

    def __init__(
        self, n_features: int, n_actions: int, n_backward: int, hidden: tuple[int, ...], activation: str
    ) -> None:
        super().__init__()
        self.n_features, self.sizes = n_features, [n_actions, n_backward, 1]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip((n_features, *hidden), hidden, strict=False))
        self.modulation = nn.ModuleList(nn.Linear(n_features, 2 * o) for o in hidden)
        self.activation = ACTIVATIONS[activation]()
        self.head = nn.Linear(hidden[-1], sum(self.sizes))

    def _out(self, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        observed = observed.to(self.head.weight.dtype)
        x, y = observed[:, : self.n_features], observed[:, self.n_features :]
        for layer, modulation in zip(self.layers, self.modulation, strict=True):
            scale, shift = modulation(y).chunk(2, 1)
            x = self.activation((1 + scale) * layer(x) + shift)
        a, b, f = self.head(x).split(self.sizes, 1)
        return a, b, f.squeeze(1)

    def forward_logits(self, observed: Tensor) -> Tensor:
        return self._out(observed)[0]

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._out(observed)


def conditional_policy(environment: Any, hidden: tuple[int, ...], activation: str, conditioning: str) -> nn.Module:
    """An untrained policy of states and outcomes of ``environment``: logits of P_F and P_B, and log F(s|y)."""
    n, a, b = environment.n_features, environment.n_actions, environment.n_backward
    if conditioning == "film":
        return FiLMPolicy(n, a, b, hidden, activation)
    return MLPPolicy(2 * n, a, b, hidden, activation)


class _Masked(nn.Linear):
    """A linear layer of which only the weights in ``mask`` (outputs, inputs) are there."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.mask * self.weight, self.bias)


class OutcomeSampler(nn.Module):
    """Q(y|s',s): the letters of y one after another, from one masked perceptron (MADE, Germain et al., 2015).

    Args:
        n_features: width of the observation of a state.
        n_places, n_values: how many letters y has, and how many different ones there are.
        hidden: widths of the hidden layers.
    """

    def __init__(self, n_features: int, n_places: int, n_values: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.n_places, self.n_values = n_places, n_values
        # A unit of degree d sees the letters before place d; the two states have degree 0, and all units see them.
        before = torch.cat([torch.zeros(2 * n_features), torch.arange(1, n_places + 1).repeat_interleave(n_values)])
        layers: list[nn.Module] = []
        for width in hidden:
            degrees = (torch.arange(width) % n_places).float()
            layers += [_Masked((degrees.unsqueeze(1) >= before).float()), nn.LeakyReLU()]
            before = degrees
        place = torch.arange(n_places).repeat_interleave(n_values)
        self.trunk = nn.Sequential(*layers)
        self.head = _Masked((place.unsqueeze(1) >= before).float())
        self.context = nn.Linear(2 * n_features, n_places * n_values)

    def forward(self, context: Tensor, letters: Tensor) -> Tensor:
        """Logits (B, n_places, n_values) of each letter given those before, of ``letters`` (B, n_places).

        ``context`` (B, 2 n_features): the observations of s and s'.
        """
        context = context.to(self.context.weight.dtype)
        known = nn.functional.one_hot(letters, self.n_values).flatten(1).to(context.dtype)
        found: Tensor = self.head(self.trunk(torch.cat([context, known], 1))) + self.context(context)
        return found.view(-1, self.n_places, self.n_values)

    def log_q(self, environment: Any, s: Tensor, child: Tensor, y: Tensor) -> Tensor:
        """log Q(y|s',s) (B,) of outcomes ``y`` that ``child`` leads to."""
        letters = environment.letters(y)
        logits = self(torch.cat([environment.observe(s), environment.observe(child)], 1), letters)
        log_p = torch.log_softmax(torch.where(environment.possible(child, letters), logits, -1e9), 2)
        return log_p.gather(2, letters.unsqueeze(2)).squeeze(2).sum(1)

    @torch.no_grad()
    def draw(
        self,
        environment: Any,
        s: Tensor,
        child: Tensor,
        generator: torch.Generator,
        temperature: float = 1.0,
        uniform: float = 0.0,
    ) -> Tensor:
        """Outcomes (B, \\*state_shape) that ``child`` leads to, by Q.

        ``temperature`` divides the logits; with probability ``uniform`` a letter is any of those possible.
        """
        context = torch.cat([environment.observe(s), environment.observe(child)], 1)
        letters = torch.zeros(len(context), self.n_places, dtype=torch.int64, device=context.device)
        for j in range(self.n_places):
            logits = self(context, letters)[:, j].nan_to_num() / temperature
            mask = environment.possible(child, letters)[:, j]
            blind = torch.rand(len(letters), 1, generator=generator, device=context.device) < uniform
            p = torch.softmax(torch.where(mask, torch.where(blind, 0.0, logits), -1e9), 1)
            letters[:, j] = torch.multinomial(p, 1, generator=generator).squeeze(1)
        found: Tensor = environment.from_letters(letters)
        return found


class Curiosity(nn.Module):
    """Random network distillation (Burda et al., 2019): a frozen random network, and one that learns to predict it."""

    def __init__(self, n_features: int, hidden: int = 256, width: int = 128) -> None:
        super().__init__()

        def perceptron() -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(n_features, hidden), nn.LeakyReLU(), nn.Linear(hidden, hidden), nn.LeakyReLU(),
                nn.Linear(hidden, width),
            )  # fmt: skip

        self.random_target_network, self.predictor_network = perceptron(), perceptron()
        self.random_target_network.requires_grad_(False)

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """What the trained and the frozen network say (B, D) of ``observed`` (B, F)."""
        return self.predictor_network(observed), self.random_target_network(observed)
