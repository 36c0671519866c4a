"""A generated transition state beside the reaction that it belongs to, and how guesses are written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headwater_flow_tsgen.tasks.formats import frames_of, join_ends, structure, write_frames
from headwater_flow_tsgen.tasks.reaction import Reaction

__all__ = ["Guess", "read_guesses", "write_guesses"]


@dataclass(frozen=True)
class Guess:
    """A transition state for ``reaction``, aligned to its centred reactant.

    ``uncertainty`` (N,) is the root mean square displacement of each atom over several seeds and ``spread`` the mean
    RMSD of the others to this guess, both in Angstrom; 0 from one seed. ``reaction.ts`` is the known one, if there is.
    ``info`` is written along.
    """

    reaction: Reaction
    ts: np.ndarray
    uncertainty: np.ndarray
    spread: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)


def write_guesses(guesses: Sequence[Guess], path: Path, start: int = 0) -> None:
    """Write guesses as extended XYZ: frames R, TS (with a column ``uncertainty``), P, and REF where the TS is known."""
    frames = []
    for number, guess in enumerate(guesses, start):
        reaction = guess.reaction
        keys: dict[str, Any] = {"rxn": number, "name": reaction.name, "group": reaction.group}
        if reaction.barrier is not None:
            keys["barrier_kcal"] = round(reaction.barrier, 4)
        frames.append(structure(reaction.numbers, reaction.reactant, {**keys, "role": "R"}))
        said = {**keys, "role": "TS", "spread": round(guess.spread, 5), **guess.info}
        frames.append(structure(reaction.numbers, guess.ts, said, uncertainty=guess.uncertainty))
        frames.append(structure(reaction.numbers, reaction.product, {**keys, "role": "P"}))
        if reaction.ts is not None:
            frames.append(structure(reaction.numbers, reaction.ts, {**keys, "role": "REF"}))
    write_frames(frames, path)


KEYS = ("rxn", "name", "group", "barrier_kcal", "role", "spread")


def read_guesses(path: Path) -> list[Guess]:
    """Read what :func:`write_guesses` wrote.

    Raises:
        DataError: the file is damaged, or a reaction in it lacks a structure.
    """
    found = []
    for rxn, members in frames_of(path, needed=("R", "TS", "P")):
        ts = members["TS"]
        info = ts.info
        reaction = join_ends(
            members["R"], members["P"], members.get("REF"), where=f"{path}, reaction {rxn}",
            name=str(info.get("name", "")), group=str(info.get("group", "")),
            barrier=float(info["barrier_kcal"]) if "barrier_kcal" in info else None,
        )  # fmt: skip
        found.append(
            Guess(
                reaction, ts.positions.copy(), ts.arrays.get("uncertainty", np.zeros(len(ts))),
                float(info.get("spread", 0.0)), {k: v for k, v in info.items() if k not in KEYS},
            )
        )  # fmt: skip
    return found
