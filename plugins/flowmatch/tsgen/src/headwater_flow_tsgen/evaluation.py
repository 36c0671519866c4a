"""How good guesses of transition states are: geometry, barrier, frequencies, beside the midpoint and IDPP."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from headwater_flow_tsgen.chemistry import (
    KCAL,
    calculator,
    check_closed_shell,
    energies,
    hessian,
    idpp,
    quietly,
    vibrations,
)
from headwater_flow_tsgen.geometry import align, distance_mae, midpoint, rmsd
from headwater_flow_tsgen.tasks.guess import Guess
from headwater_flow_tsgen.tasks.reaction import Reaction

__all__ = ["CHEMICAL", "Mode", "barrier_errors", "idpp_middle", "middle", "mode_of", "rmsds", "score"]

CHEMICAL = 1.58
"""Absolute barrier error in kcal/mol below which a guess counts as good enough (the paper's threshold)."""


NOTES = (
    "converged", "steps", "idpp_converged", "idpp_steps", "steps_saved", "same_saddle", "connects", "idpp_connects",
)  # fmt: skip
"""What ``refine`` notes and the metrics average."""


def _tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(a, dtype=np.float64)) for a in arrays]


def middle(reaction: Reaction) -> np.ndarray:
    """The midpoint of the centred reactant and the aligned product (N, 3)."""
    return np.asarray(midpoint(*_tensors(reaction.reactant, reaction.product)))


def idpp_middle(reaction: Reaction, images: int = 5) -> np.ndarray:
    """The middle image of the IDPP path from the reactant to the aligned product (N, 3)."""
    reactant, product = _tensors(reaction.reactant, reaction.product)
    return idpp(
        reaction.numbers, reaction.reactant, align(product, reactant).numpy() + reaction.reactant.mean(0), images
    )[images // 2]


def rmsds(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, reflect: bool = False) -> np.ndarray:
    """RMSD of each pair of structures in Angstrom (see :func:`headwater_flow_tsgen.geometry.rmsd`)."""
    return np.array([float(rmsd(*_tensors(a, b), reflect=reflect)) for a, b in pairs])


def barrier_errors(guesses: Sequence[Guess]) -> np.ndarray:
    """|E(guess) - E(known TS)| in kcal/mol by GFN2-xTB single points; the reactant's energy drops out.

    NaN where the atoms are no neutral closed shell or the electronic structure does not converge.
    """
    found = []
    for guess in guesses:
        if guess.reaction.ts is None or check_closed_shell(guess.reaction.numbers) is not None:
            found.append(float("nan"))
            continue
        pair = energies(guess.reaction.numbers, [guess.ts, guess.reaction.ts])
        found.append(abs(float(pair[0] - pair[1])) / KCAL)
    return np.array(found)


@dataclass(frozen=True)
class Mode:
    """How many wavenumbers are below -80 1/cm, the lowest of all, and how far its mode points along the reaction.

    ``overlap`` is |cos| of the angle between that mode and the displacement from reactant to product, each aligned to
    the structure.
    """

    imaginary: int
    lowest: float
    overlap: float


def mode_of(reaction: Reaction, ts: np.ndarray) -> Mode:
    """Frequencies at ``ts`` by GFN2-xTB (6 N forces); everything is computed there, not at the nearest saddle."""
    atoms = Atoms(reaction.numbers, ts)
    atoms.calc = calculator()
    with quietly():
        wavenumbers, modes = vibrations(atoms, hessian(atoms))
    reactant, product, at = _tensors(reaction.reactant, reaction.product, ts)
    way = (align(product, at) - align(reactant, at)).numpy()
    overlap = abs(float((modes[0] * way).sum())) / max(float(np.linalg.norm(way)), 1e-12)
    return Mode(int((wavenumbers < -80.0).sum()), float(wavenumbers[0]), overlap)


def score(
    guesses: Sequence[Guess], *, with_energies: bool = True, with_idpp: bool = True, frequencies: int = 0
) -> dict[str, float]:
    """Means over all guesses whose transition state is known, and of the baselines on the same reactions.

    - ``rmsd``, ``rmsd_mirror``: with proper rotations, and with mirror images tried too
    - ``d_mae``: of interatomic distances
    - ``midpoint_*``, ``idpp_*``: the same for the middle of reactant and aligned product, and of the IDPP path
    - ``barrier_error_kcal``, ``barrier_error_median_kcal``, ``below_1.58_kcal`` (a share), ``no_energy`` (how many did
      not converge; they are in no mean, and count as not below): GFN2-xTB single points
    - ``one_imaginary`` (a share), ``mode_overlap``: of the first ``frequencies`` guesses

    - ``converged``, ``steps``, ``steps_saved`` and others: what ``refine`` noted, means over those that have it

    Without a known transition state there are the spread and the notes of ``refine``.
    """
    found: dict[str, float] = {}
    if guesses:
        found["spread"] = float(np.mean([guess.spread for guess in guesses]))
    for name in NOTES:
        values = [float(guess.info[name]) for guess in guesses if name in guess.info]
        if values:
            found[name] = float(np.mean(values))
    known = [guess for guess in guesses if guess.reaction.ts is not None]
    if not known:
        return found
    refs = [np.asarray(guess.reaction.ts) for guess in known]
    starts = {"": [guess.ts for guess in known], "midpoint_": [middle(guess.reaction) for guess in known]}
    if with_idpp:
        starts["idpp_"] = [idpp_middle(guess.reaction) for guess in known]
    for name, structures in starts.items():
        pairs = list(zip(structures, refs, strict=True))
        plain, reflected = rmsds(pairs), rmsds(pairs, reflect=True)
        found[f"{name}rmsd"], found[f"{name}rmsd_median"] = float(plain.mean()), float(np.median(plain))
        found[f"{name}rmsd_mirror"] = float(reflected.mean())
        found[f"{name}rmsd_mirror_median"] = float(np.median(reflected))
        found[f"{name}d_mae"] = float(np.mean([float(distance_mae(*_tensors(a, b))) for a, b in pairs]))
    found["better_than_midpoint"] = float(
        np.mean(
            rmsds(list(zip(starts[""], refs, strict=True))) < rmsds(list(zip(starts["midpoint_"], refs, strict=True)))
        )
    )
    if with_energies:
        for name, structures in starts.items():
            errors = barrier_errors(
                [Guess(g.reaction, x, g.uncertainty) for g, x in zip(known, structures, strict=True)]
            )  # fmt: skip
            here = errors[np.isfinite(errors)]
            found[f"{name}no_energy"] = float(len(errors) - len(here))
            if len(here):
                found[f"{name}barrier_error_kcal"] = float(here.mean())
                found[f"{name}barrier_error_median_kcal"] = float(np.median(here))
            found[f"{name}below_1.58_kcal"] = float((here <= CHEMICAL).sum() / len(errors))
    checked = [g for g in known[:frequencies] if check_closed_shell(g.reaction.numbers) is None]
    if checked:
        modes = [mode_of(guess.reaction, guess.ts) for guess in checked]
        found["one_imaginary"] = float(np.mean([mode.imaginary == 1 for mode in modes]))
        found["mode_overlap"] = float(np.mean([mode.overlap for mode in modes]))
    return found
