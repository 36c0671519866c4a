"""Training CrysBFN: crystals, a step of the flow, the network, three losses."""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from headwater import DataError, Trainer
from headwater.seeding import key
from headwater_bfn import vonmises
from headwater_bfn.schedule import draw_steps
from torch import Tensor, nn

from headwater_bfn_crys.config import CrysConfig, FlowConfig
from headwater_bfn_crys.crystals import Crystals
from headwater_bfn_crys.flow import Inputs, Scale, accuracies, angles_of, beliefs, estimate
from headwater_bfn_crys.layout import Layout
from headwater_bfn_crys.networks import CSPNet
from headwater_bfn_crys.objective import coordinate_loss, interval_loss, lattice_loss, mean_weight, type_loss

__all__ = ["Batch", "CrysTrainer", "Data"]

BANK_STEPS = 500
"""Training steps for which one bank of simulated flows is used."""

VALIDATION = 512
"""At most so many validation crystals are measured."""


class Batch(NamedTuple):
    """B crystals of V atoms, by rising size, at a step of the flow each."""

    i: Tensor
    inputs: Inputs
    types: Tensor
    angles: Tensor
    lattice: Tensor
    num_atoms: tuple[int, ...]


class Data:
    """A data set as tensors: types (indices) and angles of all atoms, standardised cells, where each crystal begins.

    Raises:
        DataError: a crystal has an element that is not among ``elements``.
    """

    def __init__(self, crystals: Crystals, elements: Tensor, scale: Scale) -> None:
        index = np.full(256, -1)
        index[elements.numpy()] = np.arange(len(elements))
        types = index[crystals.numbers]
        if (types < 0).any():
            atom = int((types < 0).argmax())
            owner = int(np.searchsorted(crystals.num_atoms.cumsum(), atom, side="right"))
            name = crystals.ids[owner] if len(crystals.ids) else f"number {owner + 1}"
            raise DataError(
                f"crystal {name} has the element of atomic number {crystals.numbers[atom]}, which is not among the "
                f"{len(elements)} of the model; extend trainer.elements or leave the crystal out"
            )
        self.types = torch.from_numpy(types)
        self.angles = angles_of(torch.from_numpy(crystals.frac)).float()
        self.lattice = scale.standardised(torch.from_numpy(crystals.matrices)).float()
        self.num_atoms = torch.from_numpy(crystals.num_atoms)
        self.start = self.num_atoms.cumsum(0) - self.num_atoms

    def pick(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """Types, angles, cells and sizes of the chosen crystals, by rising size."""
        chosen = chosen[self.num_atoms[chosen].argsort(stable=True)]
        sizes = self.num_atoms[chosen]
        first = self.start[chosen] - (sizes.cumsum(0) - sizes)
        atoms = torch.repeat_interleave(first, sizes) + torch.arange(int(sizes.sum()))
        return self.types[atoms], self.angles[atoms], self.lattice[chosen], tuple(sizes.tolist())


class CrysTrainer(Trainer):
    """Learns to generate crystals, or to predict the structure of a composition (``trainer.target``)."""

    config: CrysConfig

    @classmethod
    def facts(cls, config: CrysConfig, task: Any) -> dict[str, Any]:
        """Elements, scale of the cells, histogram of sizes and accuracies; settings come before measurements."""
        found: dict[str, Any] = {name: getattr(config, name) for name in FlowConfig.model_fields}
        found = {"flow": found, "alpha": accuracies(config.steps, config.beta1_coordinates, config.schedule)}
        complete = config.elements and config.lattice_std and config.atom_counts
        crystals: Crystals | None = None if complete else task.train()
        if crystals is not None:
            every = [part.numbers for part in (crystals, task.validation(), task.test())]
            found["elements"] = torch.from_numpy(np.unique(np.concatenate(every)))
            if config.standardise == "entries":
                found["lattice_mean"], found["lattice_std"] = Scale.measured(crystals.matrices)
            else:
                found["lattice_std"] = float(np.std(crystals.matrices))
            found["atom_counts"] = torch.from_numpy(np.bincount(crystals.num_atoms)[1:].astype(np.int64))
        if config.elements:
            found["elements"] = torch.tensor(config.elements)
        if config.lattice_std:
            found["lattice_std"] = config.lattice_std
        if config.atom_counts:
            found["atom_counts"] = torch.tensor(config.atom_counts)
        return found

    @classmethod
    def build(cls, config: CrysConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        network = CSPNet(
            len(facts["elements"]), config.width, config.layers, config.frequencies, config.time_width,
            given_types=config.target == "csp",
        )  # fmt: skip
        # The first estimate of a coordinate is the belief. Random shifts cost many times what is to be learned, and
        # what they do to the other weights takes a thousand steps to undo.
        nn.init.zeros_(network.coord_out.weight)
        if config.standardise == "entries":
            nn.init.zeros_(network.lattice_out.weight)
        return {"network": network}

    def setup(self) -> None:
        config = self.config
        self.network = self.modules["network"]
        self.clip_norm = config.clip_norm
        adam = torch.optim.AdamW(self.network.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
        self.optimisers["adam"] = adam
        if config.decay_steps is not None:
            steps, last = config.decay_steps, config.final_learning_rate / config.learning_rate

            def cosine(k: int) -> float:
                return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(k, steps) / steps))

            self.schedulers["adam"] = torch.optim.lr_scheduler.LambdaLR(adam, cosine)
        self.scale = Scale.of(self.facts_found)
        self.alpha: Tensor = self.facts_found["alpha"]
        self.mean_weight = mean_weight(self.alpha) if config.normalise_weights else 1.0
        self._bank: tuple[int, vonmises.Bank] | None = None

    @cached_property
    def data(self) -> Data:
        """The training set."""
        return Data(self.task.train(), self.facts_found["elements"], self.scale)

    @cached_property
    def angles(self) -> vonmises.Angles:
        """Draws of the messages on coordinates."""
        return vonmises.Angles(self.alpha)

    def source(self, k: int) -> "vonmises.Bank | vonmises.Angles":
        """Where beliefs on coordinates come from at step ``k``; a bank depends on k alone, so none is saved."""
        if self.config.flow == "exact" or self.config.coordinates == "interval":
            return self.angles
        which = k // BANK_STEPS
        if self._bank is None or self._bank[0] != which:
            self._bank = which, vonmises.Bank(self.angles, seed=key(which))
        return self._bank[1]

    def draw(self, k: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(len(self.data.num_atoms), (self.config.batch_size,), generator=generator)
        return self.batch(self.data, chosen, self.source(k), generator)

    def batch(
        self, data: Data, chosen: Tensor, source: "vonmises.Bank | vonmises.Angles", generator: torch.Generator
    ) -> Batch:
        """The chosen crystals at random steps of the flow."""
        config = self.config
        types, angles, lattice, num_atoms = data.pick(chosen)
        layout = Layout(num_atoms)
        i = draw_steps(len(num_atoms), config.steps, generator)
        if config.translate:
            shift = 2 * math.pi * torch.rand((len(num_atoms), 3), generator=generator)
            angles = vonmises.wrap(angles + shift[layout.crystal_of(angles.device)])
        inputs = beliefs(
            config, source, i, types, angles, lattice, len(self.facts_found["elements"]), layout, generator
        )  # fmt: skip
        return Batch(i, inputs, types, angles, lattice, num_atoms)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of cell, coordinates and types, without their weights."""
        config, n = self.config, self.config.steps
        layout = Layout(batch.num_atoms)
        lattice, angles, logits = estimate(config, self.network, batch.i, batch.inputs, layout, self.scale)
        of_atom = batch.i[layout.crystal_of(batch.i.device)]
        alpha = self.alpha.to(of_atom.device)[of_atom - 1].unsqueeze(1)
        found = {"lattice": lattice_loss(batch.lattice, lattice.float(), batch.i, n, config.sigma1_lattice)}
        if config.coordinates == "interval":
            found["coordinates"] = interval_loss(batch.angles, angles.float(), of_atom, n, config.beta1_coordinates)
        else:
            loss = coordinate_loss(batch.angles, angles.float(), alpha, n, config.coordinate_loss)
            found["coordinates"] = loss / self.mean_weight
        if config.target == "gen":
            found["types"] = type_loss(batch.types, logits.float(), of_atom, n, config.beta1_types)
        return found

    def step(self, batch: Batch) -> dict[str, Tensor]:
        losses = self.losses(batch)
        total = self._total(losses)
        self.update(total, weight=len(batch.num_atoms))
        return {"loss": total.detach(), **{f"loss_{name}": value.detach() for name, value in losses.items()}}

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        weights = {name: getattr(self.config, f"weight_{name}") for name in losses}
        return torch.stack([weights[name] * value for name, value in losses.items()]).sum()

    def validate(self) -> dict[str, float]:
        """The losses on validation crystals, with the same noise every time."""
        crystals = self.task.validation()
        if len(crystals) == 0:
            return {}
        generator = torch.Generator().manual_seed(key(0))
        data = Data(crystals, self.facts_found["elements"], self.scale)
        chosen = torch.randperm(len(crystals), generator=generator)[:VALIDATION]
        total: dict[str, float] = {}
        for part in chosen.split(self.config.batch_size):
            batch = _to(self.batch(data, part, self.source(0), generator), self.place.device)
            losses = self.losses(batch)
            for name, value in {"loss": self._total(losses), **{f"loss_{k}": v for k, v in losses.items()}}.items():
                total[name] = total.get(name, 0.0) + float(value) * len(part) / len(chosen)
        return total


def _to(batch: Batch, device: torch.device) -> Batch:
    inputs = Inputs(*(tensor.to(device) for tensor in batch.inputs))
    return Batch(
        batch.i.to(device), inputs, batch.types.to(device), batch.angles.to(device), batch.lattice.to(device),
        batch.num_atoms,
    )  # fmt: skip
