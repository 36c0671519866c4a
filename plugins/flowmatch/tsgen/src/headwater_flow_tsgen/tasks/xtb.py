"""Real elementary reactions made with GFN2-xTB: edits of a molecule's bonds, a band, a saddle search, two descents.

The recipe, for one molecule:

1. *Edits.* A closed-shell product differs from its reactant along an alternating cycle of 4 or 6 atoms: the bonds
   a1-a2, a3-a4, ... lose one order and a2-a3, a4-a5, ... gain one, so every valence stays as it was (Ugi's R-matrices).
   Hydrogen shifts, eliminations, ring openings and closures, ene and retro-ene reactions are of this kind.
2. *Ends.* The reactant is embedded by RDKit and relaxed; the product starts from the reactant's coordinates under a
   force field with the product's bonds, and is relaxed.
3. *Band.* A short nudged elastic band from an IDPP path gives a guess of the saddle.
4. *Saddle.* Sella converges it; the Hessian must have exactly one negative eigenvalue that counts.
5. *Descents.* Two relaxations, from small steps along the imaginary mode either way, give the true reactant and
   product. They must be two different graphs, and the barrier must be below ``highest_barrier``.
"""

import hashlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from headwater import DataError
from headwater.progress import Progress

from headwater_flow_tsgen.chemistry import (
    KCAL,
    calculator,
    check_closed_shell,
    hessian,
    idpp,
    need,
    quietly,
    relax,
    saddle,
    vibrations,
)
from headwater_flow_tsgen.geometry import align, bonds
from headwater_flow_tsgen.tasks.formats import read_xyz, write_xyz
from headwater_flow_tsgen.tasks.reaction import Reaction
from headwater_flow_tsgen.tasks.smiles import embed, follow, parse

__all__ = ["MOLECULES", "Candidate", "attempt", "candidates", "edits", "make", "read_molecules"]

MOLECULES = (
    "CC=O", "C=CO", "NC=O", "OC=O", "C=C=O", "CC#N", "C=C=C", "CC#C", "C=CC", "C1CC1", "C1CO1", "C1CN1", "CC=N", "C=CN",
    "CNC", "COC", "CCO", "CCN", "OCC=O", "NCC=O", "O=CC=O", "CC(=O)O", "CC(N)=O", "COC=O", "CNC=O", "C=CC=C", "C=CC=O",
    "C1=CCC1", "C1CCC1", "C=CC#C", "C#CC=O", "C=COC", "CC(C)=O", "CCC=O", "C1CC1C", "CC1CO1", "C1COC1", "C=CCO",
    "C#CCO", "CC=NO", "C=NO", "NC#N", "CN=C=O", "NC(N)=O", "OCC#N", "NCC#N", "C1=CC1", "C1=COC=C1", "C=CN=C", "C=CC=N",
    "C=C(C)O", "CC(=O)C=O", "N=CC=O", "OC=CC=O", "CC(=N)N", "CON=C", "C=NN", "CNN", "CC(O)=N", "C=CC=C=O", "C=C1CC1",
    "O=C1CC1", "O=C1CCO1", "C=NC=O", "OCO", "NCO", "CC=C=O", "N#CC=O", "C#CC#N", "C=CC#N",
)  # fmt: skip
"""Small neutral molecules of C, N, O and H to start from."""

IMAGINARY = -80.0
"""Wavenumber (1/cm) below which a mode counts as imaginary; finite differences make softer ones."""


@dataclass(frozen=True)
class Candidate:
    """A molecule and one edit: atom-mapped bonds as (i, j, change of order)."""

    smiles: str
    product: str
    changes: tuple[tuple[int, int, int], ...]

    def key(self, *settings: float) -> str:
        """A short name that depends on the candidate and ``settings`` alone."""
        return hashlib.sha256(repr((self.smiles, self.changes, *settings)).encode()).hexdigest()[:12]


def _molecule(smiles: str, where: str = "") -> Any:
    """The molecule with explicit hydrogens and Kekule bonds.

    Raises:
        DataError: RDKit cannot read it, or the recipe cannot compute it.
    """
    from rdkit import Chem

    mol = Chem.AddHs(parse(smiles, where))
    problem = check_closed_shell(np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()]))
    if problem is not None:
        raise DataError(f"{where or 'molecule'}: {smiles!r}: {problem}")
    Chem.Kekulize(mol, clearAromaticFlags=True)
    return mol


def _orders(mol: Any) -> np.ndarray:
    """Bond orders (N, N) of a Kekule structure."""
    n = mol.GetNumAtoms()
    orders = np.zeros((n, n), dtype=np.int64)
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        orders[i, j] = orders[j, i] = round(bond.GetBondTypeAsDouble())
    return orders


def _with_orders(mol: Any, orders: np.ndarray) -> Any | None:
    """The same atoms under other bond orders; ``None`` where RDKit finds no such molecule."""
    from rdkit import Chem, rdBase

    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    edited = Chem.RWMol()
    for atom in mol.GetAtoms():
        plain = Chem.Atom(atom.GetAtomicNum())
        plain.SetFormalCharge(atom.GetFormalCharge())
        plain.SetNoImplicit(True)
        edited.AddAtom(plain)
    for i, j in zip(*np.nonzero(np.triu(orders)), strict=True):
        if orders[i, j] not in kinds:
            return None
        edited.AddBond(int(i), int(j), kinds[int(orders[i, j])])
    made = edited.GetMol()
    with rdBase.BlockLogs():
        if Chem.SanitizeMol(made, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            return None
    if any(atom.GetNumRadicalElectrons() for atom in made.GetAtoms()):
        return None
    for bond in made.GetBonds():  # a triple or cumulated bond in a small ring is no minimum
        if bond.IsInRing() and bond.GetBondTypeAsDouble() == 3:
            return None
    return made


def _cycles(orders: np.ndarray, length: int) -> Iterator[tuple[int, ...]]:
    """Alternating cycles (a1, ..., a_length) of different atoms, whose bonds a1-a2, a3-a4, ... exist.

    Each bond of the cycle that forms joins atoms that are bonded already (its order grows) or not.
    """
    pairs = [(int(i), int(j)) for i, j in zip(*np.nonzero(orders), strict=True)]

    def extend(path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(path) == length:
            yield path
            return
        for i, j in pairs:
            if i not in path and j not in path:
                yield from extend((*path, i, j))

    for i, j in pairs:
        if i == min(i, j):
            yield from extend((i, j))


def edits(smiles: str, cycles: Sequence[int] = (4, 6), most: int = 40) -> list[Candidate]:
    """Closed-shell products one alternating cycle away, at most ``most``, each kind of product once.

    Those that split off H2 come last, and those with few changed bonds between heavy atoms first; of equal ones the
    order is fixed by a hash, so the list depends on the SMILES alone.
    """
    from rdkit import Chem

    mol = _molecule(smiles)
    orders = _orders(mol)
    bare = Chem.MolToSmiles(Chem.RemoveHs(mol))
    heavy = np.array([atom.GetAtomicNum() > 1 for atom in mol.GetAtoms()])
    hops = Chem.GetDistanceMatrix(mol)
    found: dict[str, tuple[tuple[Any, ...], Candidate]] = {}
    for length in cycles:
        for path in _cycles(orders, length):
            broken = [(path[k], path[k + 1]) for k in range(0, length, 2)]
            formed = [(path[k + 1], path[(k + 2) % length]) for k in range(0, length, 2)]
            # Atoms far apart in the graph do not meet in one step of a small molecule.
            if any(hops[i, j] > 4 for i, j in formed) or any(not heavy[i] and not heavy[j] for i, j in formed[1:]):
                continue
            after = orders.copy()
            for i, j in broken:
                after[i, j] -= 1
                after[j, i] -= 1
            for i, j in formed:
                after[i, j] += 1
                after[j, i] += 1
            if (after < 0).any():
                continue
            product = _with_orders(mol, after)
            if product is None:
                continue
            text = Chem.MolToSmiles(Chem.RemoveHs(product))
            if text == bare or text.count(".") > 1:
                continue
            changed = after - orders
            changes = tuple(
                (int(i), int(j), int(changed[i, j])) for i, j in zip(*np.nonzero(np.triu(changed)), strict=True)
            )
            skeleton = sum(bool(heavy[i] and heavy[j]) for i, j, _ in changes)
            made = Candidate(smiles, text, changes)
            hydrogen = any(not heavy[i] and not heavy[j] for i, j in formed)
            rank = (hydrogen, length, skeleton, made.key())
            if text not in found or rank < found[text][0]:
                found[text] = (rank, made)
    return [candidate for _, candidate in sorted(found.values())][:most]


def candidates(molecules: Sequence[str], most: int) -> list[Candidate]:
    """The edits of all molecules, in an order that takes one of each in turn."""
    lists = [edits(smiles, most=most) for smiles in molecules]
    longest = max(map(len, lists), default=0)
    return [each[k] for k in range(longest) for each in lists if k < len(each)]


def _graph(numbers: np.ndarray, x: np.ndarray) -> tuple[tuple[int, int], ...]:
    """The bonds as sorted pairs of atoms."""
    return tuple((int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(bonds(numbers, x))), strict=True))


def _aligned(moving: np.ndarray, target: np.ndarray) -> np.ndarray:
    return align(torch.from_numpy(moving), torch.from_numpy(target)).numpy()


def _band(numbers: np.ndarray, reactant: np.ndarray, product: np.ndarray) -> np.ndarray:
    """The highest image of a short nudged elastic band that starts from an IDPP path."""
    from ase.mep import NEB
    from ase.optimize import FIRE

    shared = calculator()
    chain = []
    for x in idpp(numbers, reactant, product):
        image = Atoms(numbers, x)
        image.calc = shared
        chain.append(image)
    with quietly():
        for climb, fmax, steps in ((False, 1.0, 40), (True, 0.4, 60)):
            band = NEB(chain, climb=climb, method="improvedtangent", allow_shared_calculator=True)
            FIRE(band, logfile=None).run(fmax=fmax, steps=steps)
        heights = [float(image.get_potential_energy()) for image in chain]
    return chain[int(np.argmax(heights))].positions


def attempt(candidate: Candidate, *, seed: int = 0, highest_barrier: float = 150.0) -> Reaction | str:
    """Compute one reaction; why there is none as a short text.

    ``highest_barrier`` is in kcal/mol and holds for the lower of the two barriers' energies, E(TS) - E(reactant).
    """
    mol = _molecule(candidate.smiles)
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    orders = _orders(mol)
    for i, j, change in candidate.changes:
        orders[i, j] += change
        orders[j, i] += change
    target = _with_orders(mol, orders)
    start = embed(mol, seed + 1)
    if target is None or start is None:
        return "no embedding"
    ends: list[Atoms] = []
    for x in (start, None):
        guess = x if x is not None else follow(target, ends[0].positions, seed)
        if guess is None:
            return "no force field"
        atoms = Atoms(numbers, guess)
        atoms.calc = calculator()
        if not relax(atoms, fmax=0.03, steps=200):
            return "an end does not relax"
        ends.append(atoms)
    wanted = [
        {(min(i, j), max(i, j)) for i, j in zip(*np.nonzero(np.triu(o)), strict=True)} for o in (_orders(mol), orders)
    ]
    if _graph(numbers, ends[0].positions) == _graph(numbers, ends[1].positions):
        return "the product is no minimum"
    peak = _band(numbers, ends[0].positions, _aligned(ends[1].positions, ends[0].positions))
    found = saddle(numbers, peak, fmax=0.008, steps=150)
    if not found.converged:
        return "the saddle search does not converge"
    ts = Atoms(numbers, found.positions)
    ts.calc = calculator()
    with quietly():
        wavenumbers, modes = vibrations(ts, hessian(ts))
    imaginary = np.flatnonzero(wavenumbers < IMAGINARY)
    if len(imaginary) != 1:
        return f"{len(imaginary)} imaginary modes"
    mode = modes[int(imaginary[0])]
    minima = []
    for sign in (1.0, -1.0):
        atoms = Atoms(numbers, found.positions + sign * 0.15 * mode / np.abs(mode).max())
        atoms.calc = calculator()
        if not relax(atoms, fmax=0.01, steps=500):
            return "a descent does not end"
        minima.append(atoms)
    graphs = [set(_graph(numbers, atoms.positions)) for atoms in minima]
    if graphs[0] == graphs[1]:
        return "both descents end in one graph"
    # The end that is nearer to the molecule we started from is the reactant.
    if len(graphs[1] ^ wanted[0]) < len(graphs[0] ^ wanted[0]):
        minima.reverse()
        graphs.reverse()
    energies = [float(atoms.get_potential_energy()) for atoms in minima]
    barrier = (found.energy - energies[0]) / KCAL
    if not 0.5 < barrier < highest_barrier or found.energy - energies[1] < 0.5 * KCAL:
        return f"barrier {barrier:.0f} kcal/mol"
    matches = sum(graph == want for graph, want in zip(graphs, wanted, strict=True))
    x_r = minima[0].positions - minima[0].positions.mean(0)
    return Reaction(
        numbers=numbers, reactant=x_r, ts=_aligned(found.positions, x_r), product=_aligned(minima[1].positions, x_r),
        name=candidate.key(), group=candidate.smiles, barrier=barrier,
        info={
            "reaction": f"{candidate.smiles}>>{candidate.product}",
            "ends": ("other", "one", "both")[matches],
            "reverse_barrier_kcal": round((found.energy - energies[1]) / KCAL, 3),
            "imaginary_cm1": round(float(wavenumbers[imaginary[0]]), 1),
            "method": "GFN2-xTB",
        },
    )  # fmt: skip


def _one_thread() -> None:
    """What a worker does first: the molecules are too small for threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    torch.set_num_threads(1)


def _try(candidate: Candidate, seed: int, highest: float, folder: str) -> str:
    """Attempt one candidate and leave its outcome on disk; return the outcome."""
    try:
        found = attempt(candidate, seed=seed, highest_barrier=highest)
    except Exception as error:  # one molecule that a package cannot do must not end the others
        found = f"{type(error).__name__}: {error}".splitlines()[0]
    path = Path(folder) / candidate.key(seed, highest)
    if isinstance(found, Reaction):
        write_xyz([found], path.with_suffix(".part"))
        path.with_suffix(".part").rename(path.with_suffix(".xyz"))
        return "done"
    path.with_suffix(".txt").write_text(found + "\n", encoding="utf-8")
    return found


def make(
    out: Path, molecules: Sequence[str], *, count: int, most: int, workers: int, seed: int, highest_barrier: float
) -> Path:
    """Write up to ``count`` reactions of ``molecules`` to ``out/reactions.xyz``; go on where an earlier call stopped.

    Every outcome is kept, a reaction as extended XYZ and a failure as a line of text: in ``out.parts/attempts`` until
    enough are there, then in ``out/attempts``. What was tried under the same settings is not tried again.

    Raises:
        DataError: a molecule cannot be computed, or no attempt succeeds.
    """
    need("tblite", "sella", "rdkit", what="making reactions")
    parts = out.with_name(f"{out.name}.parts")
    folder = parts / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    tried = {candidate.key(seed, highest_barrier): candidate for candidate in candidates(molecules, most)}
    if not tried:
        raise DataError("no edit of these molecules gives another closed-shell molecule")

    def outcomes() -> tuple[list[Path], list[Candidate]]:
        good = [folder / f"{key}.xyz" for key in tried if (folder / f"{key}.xyz").exists()]
        done = {path.stem for path in folder.iterdir() if path.suffix in (".xyz", ".txt")}
        return good, [candidate for key, candidate in tried.items() if key not in done]

    good, left = outcomes()
    found = len(good)
    if found < count and left:
        began = time.perf_counter()
        with Progress(count, found, label="reactions", unit="reactions") as bar:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, _one_thread) as pool:
                queue = iter(left)
                waiting: set[Future[str]] = set()
                tries = 0
                try:
                    while True:
                        while found < count and len(waiting) < workers:
                            candidate = next(queue, None)
                            if candidate is None:
                                break
                            waiting.add(pool.submit(_try, candidate, seed, highest_barrier, str(folder)))
                        if not waiting:
                            break
                        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                        for future in done:
                            tries += 1
                            found += future.result() == "done"
                        bar.advance(min(found, count), {"tries": tries, "s/try": (time.perf_counter() - began) / tries})
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    good, _ = outcomes()
    if not good:
        reasons = [path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.txt"))]
        raise DataError(f"none of {len(reasons)} attempts gave a reaction; the first ended with: {reasons[0]}")
    path = parts / "reactions.xyz"
    made = _different([reaction for file in good for reaction in read_xyz(file)])[:count]
    write_xyz(made, path)
    failed = len(list(folder.glob("*.txt")))
    print(f"{len(made)} reactions; {failed} attempts failed, each with its reason in attempts/", file=sys.stderr)
    parts.rename(out)
    return out / path.name


def _different(reactions: Sequence[Reaction]) -> list[Reaction]:
    """The reactions without those that two edits led to: the same atoms, and both barriers equal to 0.05 kcal/mol."""
    kept: dict[tuple[Any, ...], Reaction] = {}
    for reaction in reactions:
        both = (reaction.barrier or 0.0, float(reaction.info["reverse_barrier_kcal"]))
        rounded = tuple(sorted(round(barrier / 0.05) for barrier in both))
        kept.setdefault((tuple(sorted(reaction.numbers.tolist())), rounded), reaction)
    return list(kept.values())


def read_molecules(path: Path) -> list[str]:
    """One SMILES a line; each is checked.

    Raises:
        DataError: the file is missing, empty, or a line is no molecule that the recipe can compute.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            _molecule(words[0], f"{path}, line {number}")
            found.append(words[0])
    if not found:
        raise DataError(f"{path} has no SMILES")
    return found
