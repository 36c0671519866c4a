"""Transition states of reactions: of one that is given, or of the run's held-out ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import Sampler, UsageError
from torch import Tensor

from headwater_flow_tsgen.batch import Frames, buckets, collate, place, reaction_from
from headwater_flow_tsgen.flow import central, generate, noise, right_handed, starts
from headwater_flow_tsgen.geometry import align, midpoint
from headwater_flow_tsgen.tasks.formats import join_ends, read_frames
from headwater_flow_tsgen.tasks.guess import Guess
from headwater_flow_tsgen.tasks.reaction import Reaction

__all__ = ["TSSampler", "reaction_of_condition"]


def reaction_of_condition(condition: Any) -> Reaction | None:
    """The reaction that a condition names; ``None`` without one.

    Raises:
        DataError: a file is missing or damaged, or reactant and product do not fit one another.
    """
    if condition is None:
        return None
    if condition.smiles is not None:
        from headwater_flow_tsgen.tasks.smiles import reaction_of

        return reaction_of(condition.smiles)
    if condition.reactants is None or condition.products is None:
        return None
    paths = Path(condition.reactants), Path(condition.products)
    ends = [read_frames(path)[-1] for path in paths]
    name = f"{paths[0].stem} to {paths[1].stem}"
    return join_ends(*ends, where=f"{paths[0]} and {paths[1]}", name=name)


class TSSampler(Sampler):
    """Integrates the flow for several seeds a reaction and keeps the most central guess.

    Which seeds a guess gets depends on its number alone; reactions of about one size are done together.
    """

    def setup(self) -> None:
        self.network: Any = self.modules["network"]
        self.potential: Any = self.modules.get("potential")
        self.elements = [int(z) for z in self.facts["elements"]]
        if self.config.guidance and self.potential is None:
            raise UsageError("sampler.guidance needs a run that was trained with trainer.potential=true")
        self._given: tuple[Any, Reaction | None] = (None, None)

    @property
    def settings(self) -> Any:
        """How the run was trained, as far as sampling must do the same."""
        return self.facts["flow"]

    def block(self, k: int, generator: torch.Generator, condition: Any) -> list[Guess]:
        if self._given[0] is not condition or condition is None:
            self._given = (condition, reaction_of_condition(condition))
        given = self._given[1]
        if given is not None:
            return self.guesses([given] * self.block_size, generator)
        held = self.facts["held_out"]
        numbers = range(k * self.block_size, (k + 1) * self.block_size)
        return self.guesses([reaction_from(held[i % len(held)]) for i in numbers], generator)

    def guesses(self, reactions: Sequence[Reaction], generator: torch.Generator) -> list[Guess]:
        """One guess for each reaction, in the same order."""
        dtype, device = next(self.network.parameters()).dtype, self.place.device
        trials, settings = self.config.trials, self.settings
        drawn = []
        source = generator if generator.device.type == "cpu" else _on_cpu(generator)
        for reaction in reactions:  # in the order of the reactions: grouping must not change who gets which noise
            shape = (trials, len(reaction), 3)
            drawn.append(noise(shape, settings["prior_scale"], source, centred=settings["centred"]))
        found: list[Guess | None] = [None] * len(reactions)
        for group in buckets([len(reaction) for reaction in reactions]):
            own = [reactions[i] for i in group]
            frames = place(
                collate(own, self.elements, settings["fragments"]),
                settings["prior"],
                reflections=settings["reflections"],
            ).to(device, dtype)
            x0 = starts(frames, [drawn[i] for i in group], trials)
            x = generate(
                self.network, frames, x0, method=self.config.solver, steps=self.config.steps, rtol=self.config.rtol,
                atol=self.config.atol, push=self.push(frames) if self.config.guidance else None,
            )  # fmt: skip
            for i, guess in zip(group, self.collect(own, frames, x), strict=True):
                found[i] = guess
        return [guess for guess in found if guess is not None]

    def collect(self, reactions: Sequence[Reaction], frames: Frames, x: Tensor) -> list[Guess]:
        """Guesses out of end points (B * S, N, 3): one hand, one frame, the most central of each reaction."""
        trials, settings = self.config.trials, self.settings
        mask = frames.mask
        wide = None if mask is None else mask.repeat_interleave(trials, 0)
        middle = midpoint(frames.reactant, frames.product, mask).double()
        target = middle.repeat_interleave(trials, 0)
        either = settings["network"] == "molgen" and settings["prior"] == "noise"
        x = right_handed(x.double(), target, wide) if either else align(x.double(), target, wide)
        ts, spread, apart = central(x.view(len(reactions), trials, *x.shape[1:]), mask)
        made = []
        for i, reaction in enumerate(reactions):
            n = len(reaction)

            def own(x: Tensor, i: int = i, n: int = n) -> np.ndarray:
                return x[i, :n].double().cpu().numpy()

            known = reaction.ts
            if known is not None:
                known = align(torch.from_numpy(known), torch.from_numpy(own(middle))).numpy()
            placed = replace(reaction, reactant=own(frames.reactant), product=own(frames.product), ts=known)
            made.append(Guess(placed, own(ts), own(spread), float(apart[i])))
        return made

    def push(self, frames: Frames) -> Any:
        """-guidance * dE/dx with E the potential's barrier."""
        potential, weight, trials = self.potential, self.config.guidance, self.config.trials
        context = potential.prepare(frames.species, frames.reactant, frames.product, frames.mask).repeat(trials)

        def slope(x: Tensor, t: Tensor) -> Tensor:
            with torch.enable_grad():
                moved = x.detach().requires_grad_()
                energy = potential(moved, t, context).sum()
                return -weight * torch.autograd.grad(energy, moved)[0]

        return slope


def _on_cpu(generator: torch.Generator) -> torch.Generator:
    """A CPU generator seeded by one draw from ``generator``: noise is the same wherever the network runs."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator().manual_seed(int(seed))
