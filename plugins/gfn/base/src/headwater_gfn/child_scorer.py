"""A policy of strings that scores each child by what it is, not by the action that leads there (Shen et al., 2023)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["ChildScorer"]

LIMIT = 50.0
"""Logits are kept between minus this and this."""


def _perceptron(inputs: int, hidden: int, outputs: int, activation: str) -> nn.Sequential:
    middle = nn.ReLU() if activation == "relu" else nn.LeakyReLU()
    return nn.Sequential(nn.Linear(inputs, hidden), middle, nn.Linear(hidden, outputs))


class ChildScorer(nn.Module):
    """The logit of an action is score(encoding of s, encoding of the child); of a backward action, of the parent.

    Two actions that lead to the same child share its probability. The forward and the backward policy have an encoder
    and a scorer each; log F is a perceptron of its own.

    Args:
        n_letters: K, how many letters there are.
        length: L, the letters of a whole string.
        build: where letters are added, as in :class:`headwater_gfn.tasks.strings.StringsConfig`.
        hidden: width of the hidden layers and of the encodings.
        activation: ``"relu"`` or ``"leaky-relu"``.
        embedding: width of the encodings; ``hidden`` without.
    """

    def __init__(
        self,
        n_letters: int,
        length: int,
        build: Literal["prepend-append", "append"],
        hidden: int,
        activation: str = "leaky-relu",
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        self.n_letters, self.length, self.both = n_letters, length, build == "prepend-append"
        features, embedding = n_letters * length, embedding or hidden
        self.forward_encoder = _perceptron(features, hidden, embedding, activation)
        self.forward_scorer = _perceptron(2 * embedding, hidden, 1, activation)
        self.backward_encoder = _perceptron(features, hidden, embedding, activation)
        self.backward_scorer = _perceptron(2 * embedding, hidden, 1, activation)
        self.flow = _perceptron(features, hidden, 1, activation)

    def children_of(self, letters: Tensor) -> Tensor:
        """One-hot children (B, A, L, K) of one-hot strings (B, L, K); of a full string they mean nothing."""
        b, n, k = letters.shape
        added = torch.eye(k, dtype=letters.dtype, device=letters.device)
        size = letters.sum((1, 2)).long().clamp_max(n - 1)
        here = torch.nn.functional.one_hot(size, n).to(letters).view(b, 1, n, 1)
        found = [letters.unsqueeze(1) + here * added.view(1, k, 1, k)]
        if self.both:
            first = added.view(1, k, 1, k).expand(b, k, 1, k)
            found.append(torch.cat([first, letters[:, :-1].unsqueeze(1).expand(b, k, n - 1, k)], 2))
        return torch.cat(found, 1)

    def parents_of(self, letters: Tensor) -> Tensor:
        """One-hot parents (B, n_backward, L, K): without the last letter, without the first."""
        b, n, _ = letters.shape
        size = letters.sum((1, 2)).long()
        kept = (torch.arange(n, device=letters.device) < size.unsqueeze(1) - 1).to(letters).view(b, n, 1)
        found = [letters * kept]
        if self.both:
            found.append(torch.cat([letters[:, 1:], torch.zeros_like(letters[:, :1])], 1))
        return torch.stack(found, 1)

    def _score(self, encoder: nn.Module, scorer: nn.Module, letters: Tensor, near: Tensor) -> Tensor:
        own = encoder(letters.flatten(1)).unsqueeze(1)
        other = encoder(near.flatten(2))
        scores: Tensor = scorer(torch.cat([own.expand_as(other), other], 2)).squeeze(2)
        return scores.clamp(-LIMIT, LIMIT)

    def _unflatten(self, observed: Tensor) -> Tensor:
        weight = self.flow[0].weight
        assert isinstance(weight, Tensor)
        return observed.to(weight.dtype).view(-1, self.length, self.n_letters)

    def _forward_logits(self, letters: Tensor) -> Tensor:
        logits = self._score(self.forward_encoder, self.forward_scorer, letters, self.children_of(letters))
        if not self.both:
            return logits
        counts = letters.sum(1)
        # Letter c leads to the same child from both ends where the string has no other letter.
        alone = counts.sum(1, keepdim=True) == counts
        return logits - math.log(2.0) * torch.cat([alone, alone], 1)

    def forward_logits(self, observed: Tensor) -> Tensor:
        return self._forward_logits(self._unflatten(observed))

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        letters = self._unflatten(observed)
        backward = self._score(self.backward_encoder, self.backward_scorer, letters, self.parents_of(letters))
        flow: Tensor = self.flow(letters.flatten(1)).squeeze(1)
        return self._forward_logits(letters), backward, flow
