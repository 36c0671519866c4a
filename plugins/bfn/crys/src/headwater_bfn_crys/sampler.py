"""Crystals from a trained network, in n calls of it."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from headwater import Sampler, UsageError
from headwater_bfn import vonmises
from headwater_bfn.sampling import sample
from torch import Tensor
from torch.nn.functional import one_hot

from headwater_bfn_crys.config import CrysSamplerConfig, CrystalCondition, FlowConfig
from headwater_bfn_crys.crystals import Crystals, cell_parameters, wrap_unit
from headwater_bfn_crys.flow import Inputs, Scale, batches, estimate, frac_of, inputs_of, parts
from headwater_bfn_crys.layout import Layout
from headwater_bfn_crys.networks import CSPNet
from headwater_bfn_crys.tasks.formula import parse_formula

__all__ = ["CrysSampler", "draw_crystals"]


def draw_crystals(
    config: FlowConfig,
    network: Any,
    angles: vonmises.Angles,
    bank: vonmises.Bank | None,
    num_atoms: tuple[int, ...],
    n_types: int,
    types: Tensor | None,
    scale: Scale,
    generator: torch.Generator,
    method: Any = "end-back",
    pairs_at_once: int = 32768,
) -> Mapping[str, Tensor]:
    """Standardised cells (B, 3, 3), coordinates (V, 3) as angles, probabilities of types (V, K) that are not given.

    Args:
        config: of the flow.
        network: the trained network.
        angles: draws of the messages on coordinates.
        bank: flows of coordinates by look-up; simulated without.
        num_atoms: atoms in each crystal; those of one size stand together.
        n_types: K.
        types: (V,), indices of given types: the composition that is asked for.
        scale: of the cells.
        generator: source of all randomness.
        method: see :func:`headwater_bfn.sampling.sample`.
        pairs_at_once: pairs of atoms in one call of the network.
    """
    device = generator.device
    v, b = sum(num_atoms), len(num_atoms)
    runs, ends = [], np.concatenate([[0], np.cumsum(num_atoms)])
    for first, last in batches(num_atoms, pairs_at_once):
        runs.append((slice(first, last), slice(ends[first], ends[last]), Layout(num_atoms[first:last])))
    known = one_hot(types, n_types).float() if types is not None and config.target == "gen" else None

    def predict(states: Mapping[str, Any], i: int) -> Mapping[str, Tensor]:
        given: Any = states["types"] if config.target == "gen" else types
        inputs = inputs_of(config, given, states["coordinates"], states["lattice"])
        found = []
        for cells, atoms, layout in runs:
            part = Inputs(inputs.types[atoms], inputs.angles[atoms], inputs.lattice[cells], inputs.log_accuracy[atoms])
            step = torch.full((layout.crystals,), i, device=device)
            found.append(estimate(config, network, step, part, layout, scale))
        lattice, where, logits = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        made = {"lattice": lattice, "coordinates": where / torch.pi if config.coordinates == "interval" else where}
        return made if config.target == "csp" else {**made, "types": logits.softmax(1) if known is None else known}

    like = {
        "lattice": torch.empty(b, 3, 3, device=device),
        "coordinates": torch.empty(v, 3, device=device),
        "types": torch.empty(v, n_types, device=device),
    }
    with network.unchanged() if isinstance(network, CSPNet) else nullcontext():
        made = dict(sample(predict, parts(config, angles, bank), like, config.steps, method, generator))
    if config.coordinates == "interval":
        made["coordinates"] = made["coordinates"] * torch.pi
    return made


class CrysSampler(Sampler):
    """Samples crystals: of the training set's sizes, of a composition, or (csp) of the task's test compositions."""

    config: CrysSamplerConfig

    def setup(self) -> None:
        self.network = self.modules["network"]
        self.elements: Tensor = self.facts["elements"].cpu()
        self.angles = vonmises.Angles(self.facts["alpha"].to(self.place.device))
        self.scale = Scale.of(self.facts)
        self.flow = FlowConfig(**self.facts["flow"])

    @cached_property
    def bank(self) -> vonmises.Bank | None:
        """Simulated flows, the same for all blocks; made on first use."""
        needed = self.config.flow == "bank" and self.config.method != "ancestral" and self.flow.coordinates == "torus"
        return vonmises.Bank(self.angles) if needed else None

    @cached_property
    def compositions(self) -> Crystals:
        """The crystals whose compositions are asked for in turn.

        Raises:
            UsageError: there is none.
        """
        source = self.config.compositions
        if source in ("train", "val", "test"):
            found = {"train": self.task.train, "val": self.task.validation, "test": self.task.test}[source]()
        else:
            found = self.task.read(source)
        if len(found) == 0:
            raise UsageError(
                f"sampler.compositions = {str(source)!r} has no crystal; name a formula with "
                "--condition formula=SrTiO3, or a file of crystals"
            )
        return found

    def block(self, k: int, generator: torch.Generator, condition: CrystalCondition | None) -> Crystals:
        numbers, sizes, ids = self._asked(k, generator, condition)
        order = np.argsort(sizes, kind="stable")
        types = None
        if numbers is not None:
            types = self._index(np.concatenate([numbers[c] for c in order])).to(self.place.device)
        made = draw_crystals(
            self.flow, self.network, self.angles, self.bank, tuple(sizes[order].tolist()), len(self.elements),
            types, self.scale, generator, self.config.method, self.config.pairs_at_once,
        )  # fmt: skip
        if types is None:
            p = made["types"]
            types = p.argmax(1) if self.config.types == "argmax" else torch.multinomial(p, 1, generator=generator)[:, 0]
        lengths, angles = cell_parameters(self.scale.cells(made["lattice"].double().cpu()).numpy())
        frac = wrap_unit(frac_of(made["coordinates"].double().cpu()).numpy())
        sorted_crystals = Crystals(
            self.elements.numpy()[types.cpu().numpy()],
            frac,
            lengths,
            angles,
            sizes[order],
            tuple(ids[c] for c in order) if ids else (),
        )
        return sorted_crystals[np.argsort(order)]

    def _asked(
        self, k: int, generator: torch.Generator, condition: CrystalCondition | None
    ) -> tuple[list[np.ndarray] | None, np.ndarray, tuple[str, ...]]:
        """Atomic numbers of each crystal of block ``k`` (``None``: the network makes them), sizes, and names."""
        n = self.block_size
        if condition is not None and condition.formula is not None:
            numbers = parse_formula(condition.formula)
            return [numbers] * n, np.full(n, len(numbers)), ()
        if self.flow.target == "csp":
            known = self.compositions
            which = np.arange(k * n, (k + 1) * n) % len(known)
            chosen = known[which]
            return np.split(chosen.numbers, chosen.offsets[1:-1]), chosen.num_atoms, tuple(chosen.ids)
        if self.config.atoms is not None:
            return None, np.full(n, self.config.atoms), ()
        counts = self.facts["atom_counts"].double().to(generator.device)
        return None, torch.multinomial(counts, n, replacement=True, generator=generator).cpu().numpy() + 1, ()

    def _index(self, numbers: np.ndarray) -> Tensor:
        """The model's indices of atomic numbers."""
        index = np.full(256, -1)
        index[self.elements.numpy()] = np.arange(len(self.elements))
        found = index[numbers]
        if (found < 0).any():
            from ase.data import chemical_symbols

            strange = chemical_symbols[int(numbers[found < 0][0])]
            known = " ".join(chemical_symbols[z] for z in self.elements.tolist())
            raise UsageError(f"the model was not trained on {strange}; it knows {known}")
        return torch.from_numpy(found)
