"""Energies, Hessians and saddle searches by GFN2-xTB (tblite), ASE and Sella; all of them imported on first use.

Energies are in eV and coordinates in Angstrom, as in ASE. Neutral closed-shell molecules only.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from headwater import UsageError

__all__ = [
    "KCAL",
    "Saddle",
    "calculator",
    "check_closed_shell",
    "energies",
    "have",
    "hessian",
    "idpp",
    "relax",
    "saddle",
    "vibrations",
]

KCAL = units.kcal / units.mol
"""One kcal/mol in eV."""

METHOD = "GFN2-xTB"


def have(*modules: str) -> bool:
    """Whether the optional packages are installed."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def need(*modules: str, what: str) -> None:
    """Refuse ``what`` where an optional package is missing.

    Raises:
        UsageError: names the package and how to install it.
    """
    missing = [module for module in modules if not have(module)]
    if missing:
        raise UsageError(f"{what} needs {', '.join(missing)}: pip install 'headwater-flow-tsgen[chem]'")


def check_closed_shell(numbers: np.ndarray, charge: int = 0) -> str | None:
    """What is wrong with these atoms as a neutral closed-shell molecule; ``None`` if nothing is."""
    if charge != 0:
        return f"its charge is {charge}; only neutral molecules can be computed here"
    electrons = int(np.sum(numbers))
    if electrons % 2:
        return (
            f"it has {electrons} electrons, an odd number: an open shell, and only closed shells can be computed here"
        )
    return None


def calculator() -> Any:
    """An ASE calculator for GFN2-xTB.

    Raises:
        UsageError: tblite is not installed.
    """
    need("tblite", what=METHOD)
    from tblite.ase import TBLite

    return TBLite(method=METHOD, verbosity=0)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what the chemistry packages print and warn from the user's terminal."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def energies(numbers: np.ndarray, frames: list[np.ndarray]) -> np.ndarray:
    """GFN2-xTB energies (len(frames),) in eV; NaN where the electronic structure does not converge."""
    found = []
    for positions in frames:
        atoms = Atoms(numbers, positions)
        atoms.calc = calculator()
        try:
            with quietly():
                found.append(float(atoms.get_potential_energy()))
        except Exception:  # tblite raises its own RuntimeError types where it does not converge
            found.append(float("nan"))
    return np.asarray(found)


def relax(atoms: Atoms, fmax: float = 0.01, steps: int = 300) -> bool:
    """Descend to a minimum in place; whether the largest force fell below ``fmax`` (eV/A)."""
    from ase.optimize import BFGS

    with quietly():
        return bool(BFGS(atoms, logfile=None, maxstep=0.1).run(fmax=fmax, steps=steps))


def hessian(atoms: Atoms, step: float = 0.005) -> np.ndarray:
    """Second derivatives (3N, 3N) in eV/A^2 by central differences of the forces, made symmetric."""
    work = atoms.copy()
    work.calc = atoms.calc
    rows = []
    for i in range(len(atoms)):
        for axis in range(3):
            forces = []
            for sign in (1.0, -1.0):
                work.positions[i, axis] += sign * step
                forces.append(work.get_forces().ravel())
                work.positions[i, axis] -= sign * step
            rows.append((forces[1] - forces[0]) / (2 * step))
    h = np.asarray(rows)
    return 0.5 * (h + h.T)


def vibrations(atoms: Atoms, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wavenumbers (3N,) in 1/cm, imaginary ones negative, and Cartesian displacements (3N, N, 3) of norm 1.

    Translations and rotations are projected out of the mass-weighted Hessian; they come with wavenumber 0.
    """
    mass = np.sqrt(atoms.get_masses()).repeat(3)
    positions = atoms.positions - atoms.get_center_of_mass()
    rigid = []
    for axis in np.eye(3):
        rigid.append(np.tile(axis, len(atoms)) * mass)
        rigid.append(np.cross(axis, positions).ravel() * mass)
    # The rank is 5 where all atoms lie on a line.
    u, s, _ = np.linalg.svd(np.asarray(rigid).T, full_matrices=False)
    basis = u[:, s > 1e-6 * s[0]]
    projector = np.eye(len(mass)) - basis @ basis.T
    values, vectors = np.linalg.eigh(projector @ (h / np.outer(mass, mass)) @ projector)
    to_wavenumber = units._hbar * 1e10 / np.sqrt(units._e * units._amu) / units.invcm
    wavenumbers = np.sign(values) * np.sqrt(np.abs(values)) * to_wavenumber
    modes = (vectors / mass[:, None]).T
    return wavenumbers, (modes / np.linalg.norm(modes, axis=1, keepdims=True)).reshape(len(mass), -1, 3)


def idpp(numbers: np.ndarray, reactant: np.ndarray, product: np.ndarray, images: int = 9) -> list[np.ndarray]:
    """The image-dependent pair potential path (Smidstrup et al. 2014): ``images`` structures, both ends included.

    ``product`` is taken as it stands; align it first. Where atoms meet on the straight way, which has no slope to leave
    by, the structures there are shaken by 0.05 A first, always in the same way.
    """
    from ase.mep import NEB
    from ase.mep.neb import idpp_interpolate

    chain = [Atoms(numbers, reactant) for _ in range(images - 1)] + [Atoms(numbers, product)]
    rng = np.random.default_rng(0)
    with quietly():
        NEB(chain).interpolate()
        for image in chain[1:-1]:
            if image.get_all_distances()[np.triu_indices(len(image), 1)].min() < 0.2:
                image.positions += rng.normal(0.0, 0.05, image.positions.shape)
        idpp_interpolate(chain, traj=None, log=None)
    return [image.positions.copy() for image in chain]


@dataclass(frozen=True)
class Saddle:
    """Where a saddle search ended: coordinates (N, 3), energy in eV, and what it cost."""

    positions: np.ndarray
    energy: float
    converged: bool
    steps: int


def saddle(numbers: np.ndarray, guess: np.ndarray, fmax: float = 0.01, steps: int = 200) -> Saddle:
    """Search for a first-order saddle from ``guess`` with Sella in Cartesian coordinates.

    ``steps`` counts the optimiser's steps, not the force calls of its Hessian updates.

    Raises:
        UsageError: Sella or tblite is not installed.
    """
    need("sella", "tblite", what="a saddle search")
    from sella import Sella

    silent: Any = None
    atoms = Atoms(numbers, guess)
    atoms.calc = calculator()
    with quietly():
        try:
            search = Sella(atoms, order=1, internal=False, logfile=silent)
            converged = bool(search.run(fmax=fmax, steps=steps))
            return Saddle(atoms.positions.copy(), float(atoms.get_potential_energy()), converged, int(search.nsteps))
        except Exception:  # a structure that the Hamiltonian cannot do ends the search, not the batch
            return Saddle(atoms.positions.copy(), float("nan"), False, steps)
