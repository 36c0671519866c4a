"""What a trained run does with a file of reactions: generate transition states, or refine them to saddles."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from headwater import DataError, Operation

from headwater_flow_tsgen.chemistry import (
    KCAL,
    calculator,
    check_closed_shell,
    energies,
    hessian,
    need,
    quietly,
    relax,
    saddle,
    vibrations,
)
from headwater_flow_tsgen.evaluation import idpp_middle
from headwater_flow_tsgen.geometry import align, bonds, rmsd
from headwater_flow_tsgen.sampler import TSSampler
from headwater_flow_tsgen.tasks.formats import READABLE, Faults, read
from headwater_flow_tsgen.tasks.guess import Guess
from headwater_flow_tsgen.tasks.reaction import Reaction, check, symbols

__all__ = ["Generate", "Refine"]


class Generate(TSSampler, Operation):
    """Transition states for all reactions of a file."""

    input_suffixes = (*READABLE, "folder")

    def read(self, path: Path) -> Sequence[Reaction]:
        faults: Faults = [] if self.config.skip_bad else None
        found = read(path, faults)
        for fault in faults or ():
            print(f"left out: {fault}", file=sys.stderr)
        usable = []
        for number, reaction in enumerate(found, 1):
            problem = self.problem(reaction)
            if problem is None:
                usable.append(reaction)
            elif self.config.skip_bad:
                print(f"left out: {path}, reaction {reaction.name or number}: {problem}", file=sys.stderr)
            else:
                raise DataError(f"{path}, reaction {reaction.name or number}: {problem}; --skip-bad leaves it out")
        return usable

    def problem(self, reaction: Reaction) -> str | None:
        """Why this reaction cannot be done; ``None`` if it can."""
        unknown = sorted(set(reaction.numbers.tolist()) - set(self.elements))
        if not unknown:
            return None
        known = " ".join(symbols(np.asarray(self.elements)))
        return f"it has {symbols(np.asarray(unknown))[0]}, which this model was not trained on; it knows {known}"

    def block(self, k: int, generator: torch.Generator, condition: Any) -> list[Guess]:
        guesses: list[Guess] = Operation.block(self, k, generator, condition)
        return guesses

    def apply(self, items: Sequence[Reaction], generator: torch.Generator) -> list[Guess]:
        return self.guesses(items, generator)


class Refine(Generate):
    """Transition states for all reactions of a file, each refined to a saddle on the GFN2-xTB surface by Sella.

    ``info`` of a result: ``converged``, ``steps`` from the guess; ``idpp_converged``, ``idpp_steps``, and
    ``steps_saved`` where both searches converged; ``moved`` (RMSD from guess to saddle), ``same_saddle`` (RMSD between
    the two saddles below 0.1); ``barrier_xtb_kcal``; with ``check``: ``imaginary``, ``lowest_cm1`` and ``connects``,
    whether the two descents end in the graphs of reactant and product (``idpp_connects`` for the other search).
    """

    def setup(self) -> None:
        need("tblite", "sella", what="refine")
        super().setup()

    def problem(self, reaction: Reaction) -> str | None:
        return super().problem(reaction) or check_closed_shell(
            reaction.numbers, int(reaction.info.get("charge", 0))
        )  # fmt: skip

    def apply(self, items: Sequence[Reaction], generator: torch.Generator) -> list[Guess]:
        return [self.refined(guess) for guess in self.guesses(items, generator)]

    def refined(self, guess: Guess) -> Guess:
        """One guess, taken to its saddle; the guess itself where the search does not converge."""
        config, reaction = self.config, guess.reaction
        z = reaction.numbers
        found = saddle(z, guess.ts, config.fmax, config.max_steps)
        info: dict[str, Any] = {"converged": found.converged, "steps": found.steps}
        ts = _onto(found.positions, reaction.reactant) if found.converged else guess.ts
        if found.converged:
            info["moved"] = round(_apart(guess.ts, found.positions), 4)
        if config.baseline:
            check(reaction, f"reaction {reaction.name}")
            other = saddle(z, idpp_middle(reaction, 9), config.fmax, config.max_steps)
            info |= {"idpp_converged": other.converged, "idpp_steps": other.steps}
            if config.check and other.converged:
                info["idpp_connects"] = _checked(reaction, other.positions)["connects"]
            if found.converged and other.converged:
                info["steps_saved"] = other.steps - found.steps
                info["same_saddle"] = _apart(found.positions, other.positions) < 0.1
        if found.converged:
            base = float(energies(z, [reaction.reactant])[0])
            info["barrier_xtb_kcal"] = round((found.energy - base) / KCAL, 3)
            if config.check:
                info |= _checked(reaction, found.positions)
        return Guess(reaction, ts, guess.uncertainty, guess.spread, info)


def _onto(moving: np.ndarray, target: np.ndarray) -> np.ndarray:
    moved: np.ndarray = align(torch.from_numpy(moving), torch.from_numpy(np.ascontiguousarray(target))).numpy()
    return moved


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(rmsd(torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))))


def _checked(reaction: Reaction, ts: np.ndarray) -> dict[str, Any]:
    """Frequencies at a saddle, and whether the ways down from it end in the graphs of reactant and product."""
    atoms = Atoms(reaction.numbers, ts)
    atoms.calc = calculator()
    with quietly():
        wavenumbers, modes = vibrations(atoms, hessian(atoms))
    graphs = []
    for sign in (1.0, -1.0):
        end = Atoms(reaction.numbers, ts + sign * 0.15 * modes[0] / np.abs(modes[0]).max())
        end.calc = calculator()
        relax(end, fmax=0.02, steps=300)
        graphs.append(bonds(reaction.numbers, end.positions))
    wanted = [bonds(reaction.numbers, x) for x in (reaction.reactant, reaction.product)]
    either = (wanted, wanted[::-1])
    connects = any(all(np.array_equal(a, b) for a, b in zip(graphs, pair, strict=True)) for pair in either)
    return {
        "imaginary": int((wavenumbers < -80.0).sum()),
        "lowest_cm1": round(float(wavenumbers[0]), 1),
        "connects": connects,
    }
