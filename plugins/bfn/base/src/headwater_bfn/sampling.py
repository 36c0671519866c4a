"""Sampling in n network calls: the ancestral chain, resampling from the estimate, and first one, then the other."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from headwater_bfn.parts import Part

__all__ = ["Method", "sample"]

Method = Literal["end-back", "ancestral", "mix"]
Predict = Callable[[Mapping[str, Any], int], Mapping[str, Tensor]]


def sample(
    predict: Predict,
    parts: Mapping[str, Part],
    like: Mapping[str, Tensor],
    n: int,
    method: Method = "end-back",
    generator: torch.Generator | None = None,
    last_call: bool = False,
) -> Mapping[str, Tensor]:
    """The network's last estimates of all parts.

    - ``ancestral`` (Graves et al. 2023): each estimate sends a message to the belief that it came from.
    - ``end-back`` (MolCRAFT, Qu et al. 2024): each belief is drawn from scratch around the estimate before it.
    - ``mix``: end-back for i < 2n/3, ancestral after that (CrysBFN).

    Args:
        predict: the estimates (means, probabilities, angles) of all parts from their beliefs before message i, which
            counts from 1.
        parts: the kinds of data, by name.
        like: for each part a tensor of the shape, type and device of its estimate.
        n: how many messages; the network is tied to it.
        method: how one belief leads to the next.
        generator: source of all randomness.
        last_call: call the network once more after the last message (i = n + 1, so n + 1 calls), as Graves et al. do.

    Example:
        >>> from headwater_bfn.parts import Gaussian
        >>> target = torch.tensor([0.5, -0.5])
        >>> found = sample(lambda beliefs, i: {"x": target}, {"x": Gaussian(5, 0.03)}, {"x": target}, 5)
        >>> found["x"].tolist()
        [0.5, -0.5]
    """
    generator = generator or torch.default_generator
    beliefs = {name: part.prior(like[name], generator) for name, part in parts.items()}
    for i in range(1, n + 1):
        estimates = predict(beliefs, i)
        if i == n and not last_call:
            break
        back = method == "end-back" or (method == "mix" and 3 * i < 2 * n)
        beliefs = {
            name: part.flow(estimates[name], i, generator)
            if back
            else part.receive(beliefs[name], estimates[name], i, generator)
            for name, part in parts.items()
        }
    return predict(beliefs, n + 1) if last_call else estimates
