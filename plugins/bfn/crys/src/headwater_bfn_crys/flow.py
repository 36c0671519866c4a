"""The flow of a crystal: Gaussian for the cell, von Mises for coordinates, categorical for types.

Coordinates are angles x = 2 pi F - pi. On the interval, the paper's ablation, a Gaussian flow on x/pi takes the place
of the von Mises flow, with the same accuracy at the end.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from headwater import DataError
from headwater_bfn import continuous, discrete, vonmises
from headwater_bfn.parts import Categorical, Gaussian, Part, VonMises
from headwater_bfn.schedule import von_mises_schedule
from torch import Tensor, nn

from headwater_bfn_crys.config import FlowConfig
from headwater_bfn_crys.layout import Layout
from headwater_bfn_crys.objective import interval_sigma1

__all__ = [
    "Inputs",
    "Scale",
    "accuracies",
    "angles_of",
    "batches",
    "beliefs",
    "estimate",
    "frac_of",
    "inputs_of",
    "parts",
]


class Inputs(NamedTuple):
    """What the network reads: ``types`` (V, K) or (V,), ``angles`` (V, 3), ``lattice`` (B, 3, 3), ``log_accuracy``."""

    types: Tensor
    angles: Tensor
    lattice: Tensor
    log_accuracy: Tensor


CONSTANT = 1e-3
"""An entry of the cell that deviates by less (angstrom) is the same in all training crystals."""


class Scale(NamedTuple):
    """Mean and deviation of the cells in angstrom, (3, 3) in double precision; the flow is that of (L - mean)/std.

    An entry whose deviation is 0 is the same in all crystals: it is 0 in the flow, and the mean outside.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def measured(cls, matrices: np.ndarray) -> "Scale":
        """Of cells (B, 3, 3): entry by entry."""
        std = torch.from_numpy(matrices.std(0))
        return cls(torch.from_numpy(matrices.mean(0)), torch.where(std > CONSTANT, std, 0.0))

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Scale":
        """As a run's facts have it."""
        std = torch.as_tensor(facts["lattice_std"], dtype=torch.float64).cpu().expand(3, 3)
        mean = facts.get("lattice_mean")
        return cls(torch.zeros_like(std) if mean is None else mean.double().cpu(), std)

    def standardised(self, matrices: Tensor) -> Tensor:
        """Cells (B, 3, 3) as the flow has them."""
        return (matrices - self.mean.to(matrices)) * torch.where(self.std > 0, 1 / self.std, 0.0).to(matrices)

    def cells(self, standardised: Tensor) -> Tensor:
        """What the flow has, (B, 3, 3), in angstrom."""
        return self.mean.to(standardised) + self.std.to(standardised) * standardised

    def unit(self) -> float:
        """Root mean square of all entries of all cells, angstrom."""
        return float((self.mean.square() + self.std.square()).mean().sqrt())


def angles_of(frac: Tensor) -> Tensor:
    """Fractional coordinates, wrapped or not, as angles in [-pi, pi)."""
    return 2 * math.pi * frac.remainder(1.0) - math.pi


def frac_of(angles: Tensor) -> Tensor:
    """Angles as fractional coordinates in [0, 1)."""
    frac = ((angles + math.pi) / (2 * math.pi)).remainder(1.0)
    return torch.where(frac >= 1.0, 0.0, frac)  # a tiny negative number modulo 1 rounds to 1


def accuracies(n: int, beta1: float, path: Path | None = None) -> Tensor:
    """alpha_1..alpha_n, (n,), double precision: by quadrature, or the array ``s{n}_{beta1}`` of an NPZ file.

    Raises:
        DataError: the file cannot be read, or has no such array of n positive numbers.
    """
    if path is None:
        return von_mises_schedule(n, beta1)[0]
    name = f"s{n}_{float(beta1)}"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            known = sorted(arrays)
            found = np.asarray(arrays[name], dtype=np.float64) if name in arrays else None
    except (OSError, ValueError) as error:
        raise DataError(f"trainer.schedule: cannot read {path} as NPZ: {error}") from error
    if found is None:
        raise DataError(f"trainer.schedule: {path} has no {name}, the schedule of n = {n}; it has {', '.join(known)}")
    if found.shape != (n,) or not np.isfinite(found).all() or (found <= 0).any():
        raise DataError(f"trainer.schedule: {name} in {path} must be {n} positive numbers")
    return torch.from_numpy(found)


def beliefs(
    config: FlowConfig,
    source: "vonmises.Bank | vonmises.Angles",
    i: Tensor,
    types: Tensor,
    angles: Tensor,
    lattice: Tensor,
    n_types: int,
    layout: Layout,
    generator: torch.Generator,
) -> Inputs:
    """What the network reads before message i of crystals that are known: one draw of the flow.

    Args:
        config: of the flow.
        source: of the coordinates' flow.
        i: (B,), numbers of the messages.
        types: (V,), indices.
        angles: (V, 3).
        lattice: (B, 3, 3), standardised.
        n_types: K.
        layout: of the batch.
        generator: source of all randomness.
    """
    t = (i - 1) / config.steps
    crystal_of = layout.crystal_of(i.device)
    read = types
    if config.target == "gen":
        target = torch.nn.functional.one_hot(types, n_types).to(angles.dtype)
        read = discrete.flow(target, t[crystal_of].to(angles.dtype), config.beta1_types, generator)
    if config.coordinates == "interval":
        time = t[crystal_of].to(angles.dtype).unsqueeze(1)
        known: Any = continuous.flow(angles / math.pi, time, interval_sigma1(config.beta1_coordinates), generator)
    else:
        steps = (i - 1)[crystal_of].unsqueeze(1).expand_as(angles)
        if isinstance(source, vonmises.Bank):
            known = source.flow(angles, steps, generator)
        else:
            known = vonmises.flow(angles, steps, source, generator)
    time = t.to(lattice.dtype).view(-1, 1, 1)
    return inputs_of(config, read, known, continuous.flow(lattice, time, config.sigma1_lattice, generator))


def inputs_of(config: FlowConfig, types: Tensor, coordinates: Any, lattice: Tensor) -> Inputs:
    """What the network reads of beliefs: logits of the types (or the types themselves), angles or means, the cell."""
    read = 2 * types.softmax(1) - 1 if config.target == "gen" else types
    if config.coordinates == "interval":
        mean = coordinates * math.pi
        return Inputs(read, mean, lattice, torch.zeros_like(mean))
    mean, concentration = coordinates
    if config.conditioning == "time":
        return Inputs(read, mean, lattice, torch.zeros_like(mean))
    return Inputs(read, mean, lattice, vonmises.log_accuracy(concentration, config.beta1_coordinates))


def estimate(
    config: FlowConfig, network: nn.Module, i: Tensor, inputs: Inputs, layout: Layout, scale: Scale
) -> tuple[Tensor, Tensor, Tensor]:
    """The network's estimates: cell (B, 3, 3) standardised, angles (V, 3), logits of types (V, K).

    With ``standardise=scalar`` the network reads the belief mu on the cell and its answer is the estimate: 0 where mu
    is 0, at the start. With ``entries`` it reads the cell that mu stands for, in units of ``scale``, and its answer r
    is a correction: Lhat = mu + sigma1^t r with t = (i - 1)/n. For a standard normal entry E[L | mu] = mu with the
    deviation sigma1^t, so r is of order 1 at all times, weighs the same in the loss at all times, and r = 0 is the best
    guess without the other inputs: the mean cell at first.
    """
    if config.standardise == "scalar":
        lattice, shift, logits = network(i, *inputs, layout)
    else:
        read = inputs._replace(lattice=scale.cells(inputs.lattice) / scale.unit())
        correction, shift, logits = network(i, *read, layout)
        t = ((i - 1) / config.steps).view(-1, 1, 1)
        left = torch.as_tensor(continuous.remaining(t, config.sigma1_lattice)).sqrt()
        lattice = (inputs.lattice + left * correction) * (scale.std > 0).to(inputs.lattice)
    moved = inputs.angles + shift
    return lattice, moved if config.coordinates == "interval" else vonmises.wrap(moved), logits


def parts(config: FlowConfig, angles: vonmises.Angles, bank: vonmises.Bank | None) -> dict[str, Part]:
    """The crystal's parts under their schedules, as the samplers take them."""
    n = config.steps
    coordinates: Part = VonMises(angles, bank)
    if config.coordinates == "interval":
        coordinates = Gaussian(n, interval_sigma1(config.beta1_coordinates))
    found: dict[str, Part] = {"lattice": Gaussian(n, config.sigma1_lattice), "coordinates": coordinates}
    if config.target == "gen":
        found["types"] = Categorical(n, config.beta1_types)
    return found


def batches(num_atoms: Sequence[int], pairs: int) -> list[tuple[int, int]]:
    """Cut crystals into runs of at most ``pairs`` pairs of atoms, one crystal at least: (first, past the last).

    Example:
        >>> batches([2, 2, 2, 9], 8)
        [(0, 2), (2, 3), (3, 4)]
    """
    found, begin, total = [], 0, 0
    for k, size in enumerate(num_atoms):
        if k > begin and total + size * size > pairs:
            found.append((begin, k))
            begin, total = k, 0
        total += size * size
    return [*found, (begin, len(num_atoms))]
