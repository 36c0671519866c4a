"""The policy network: one trunk, and one linear layer for the forward policy, the backward policy and the flow."""

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["MLPPolicy", "Policy"]

ACTIVATIONS = {"relu": nn.ReLU, "leaky-relu": nn.LeakyReLU}


class Policy(Protocol):
    """What rollouts and objectives need of a network; any module with these two functions will do."""

    def forward_logits(self, observed: Tensor) -> Tensor:
        """Logits (B, n_actions) of the forward policy."""

    def __call__(self, observed: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Forward logits (B, n_actions), backward logits (B, n_backward) or ``None``, and log flow (B,)."""


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer whose weight lies in memory input by input: small batches are half as dear that way on a CPU."""
    layer = nn.Linear(inputs, outputs)
    layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    return layer


class MLPPolicy(nn.Module):
    """A multilayer perceptron whose last layer gives forward logits, backward logits and log flow side by side.

    Args:
        n_features: width of the observation.
        n_actions, n_backward: how many actions there are each way.
        hidden: widths of the hidden layers.
        activation: ``"relu"`` or ``"leaky-relu"``.

    Example:
        >>> import torch
        >>> forward, backward, log_flow = MLPPolicy(8, 3, 2)(torch.zeros(5, 8))
        >>> forward.shape, backward.shape, log_flow.shape
        (torch.Size([5, 3]), torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        n_backward: int,
        hidden: tuple[int, ...] = (256, 256),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.n_actions, self.n_backward = n_actions, n_backward
        self._activate = torch.relu_ if activation == "relu" else nn.functional.leaky_relu_
        widths = (n_features, *hidden)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [_linear(i, o), ACTIVATIONS[activation](inplace=True)]
        self.trunk = nn.Sequential(*layers)
        self.head = _linear(widths[-1], n_actions + n_backward + 1)

    def forward_logits(self, observed: Tensor) -> Tensor:
        n = self.n_actions
        hidden = self.trunk(observed.to(self.head.weight.dtype))
        return nn.functional.linear(hidden, self.head.weight[:n], self.head.bias[:n])

    def prepared(self) -> Callable[[Tensor], Tensor]:
        """:meth:`forward_logits` for many small batches without gradients, free of what a module call costs."""
        layers = [layer for layer in (*self.trunk, self.head) if isinstance(layer, nn.Linear)]
        *inner, (head, bias) = [(layer.weight.detach().t(), layer.bias.detach()) for layer in layers]
        head, bias = head[:, : self.n_actions], bias[: self.n_actions]
        activate = self._activate

        def forward_logits(observed: Tensor) -> Tensor:
            observed = observed.to(bias.dtype)
            for weight, b in inner:
                observed = activate(torch.addmm(b, observed, weight))
            return torch.addmm(bias, observed, head)

        return forward_logits

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.head(self.trunk(observed.to(self.head.weight.dtype)))
        a, b, f = out.split([self.n_actions, self.n_backward, 1], -1)
        return a, b, f.squeeze(-1)
