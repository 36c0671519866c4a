"""The sEH proxy (Bengio et al., 2021): a frozen message-passing network on atoms that predicts a docking score.

Scores are about 0 to 10, 4 on average, the higher the better. The weights are the user's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import DataError
from torch import Tensor, nn

from headwater_gfn.tasks.fragments.library import rdkit
from headwater_gfn.tasks.fragments.molecules import Molecule

__all__ = ["Atoms", "Proxy", "atoms_of", "load_proxy"]

ELEMENTS = {1: 0, 6: 1, 7: 2, 8: 3, 9: 4}
N_ELEMENTS = 56
N_FEATURES = 71
BONDS = 4
NO_BOND = BONDS
"""The kind of the edge from atom 0 to itself that a molecule without bonds has: its features are all zero."""
KIND = np.array([-1, -1, 0, 3, 1, -1, 2])
"""The kind of a bond by twice its order: single, double, triple, aromatic."""
HYBRIDS = ("SP", "SP2", "SP3")
CHUNK = 64
"""Molecules at once: more of them do not stay in the processor's cache."""


class Atoms:
    """A batch of molecules: ``features`` (M, 71), ``source``, ``target`` and ``bond`` (E,), ``molecule`` (M,)."""

    def __init__(self, features: Tensor, source: Tensor, target: Tensor, bond: Tensor, molecule: Tensor) -> None:
        self.features, self.source, self.target = features, source, target
        self.bond, self.molecule = bond, molecule
        self.size = int(molecule[-1]) + 1


def atoms_of(molecules: Sequence[Molecule]) -> Atoms:
    """The features of the atoms of some molecules, and their bonds in both directions.

    Columns: 0-5 element (H, C, N, O, F, other), 9 aromatic, 10-12 sp, sp2, sp3, 13 hydrogens, 14-69 atomic number,
    70 whether it has a free stem; without any the first atom counts as one.
    """
    chem = rdkit("Chem")
    rows: dict[tuple[Any, ...], int] = {}
    row_of: list[int] = []
    stems, sources, targets, bonds, sizes = [], [], [], [], []
    first = 0
    for molecule in molecules:
        mol = molecule.mol
        n = mol.GetNumAtoms()
        for atom in map(mol.GetAtomWithIdx, range(n)):
            traits = (
                atom.GetAtomicNum(), atom.GetIsAromatic(), atom.GetHybridization(), atom.GetTotalNumHs(True)
            )  # fmt: skip
            if traits[0] > N_ELEMENTS:
                raise DataError(f"the sEH proxy knows the elements up to barium, and {molecule.smiles!r} has another")
            row_of.append(rows.setdefault(traits, len(rows)))
        stems += [first + stem for stem in molecule.stems or (0,)]
        order = chem.GetAdjacencyMatrix(mol, useBO=True)
        source, target = order.nonzero()
        bonds.append(KIND[(2 * order[source, target]).astype(np.int64)] if len(source) else [NO_BOND])
        sources.append(first + source if len(source) else [first])
        targets.append(first + target if len(source) else [first])
        sizes.append(n)
        first += n
    features = np.stack([_features(*traits) for traits in rows])[row_of]
    features[stems, 70] = 1
    source, target, bond = (torch.from_numpy(np.concatenate(x)) for x in (sources, targets, bonds))
    owner = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    return Atoms(torch.from_numpy(features), source, target, bond, owner)


def _features(number: int, aromatic: bool, hybridization: Any, hydrogens: int) -> Any:
    row = np.zeros(N_FEATURES, dtype=np.float32)
    row[ELEMENTS.get(number, 5)] = 1
    row[9] = aromatic
    if hybridization.name in HYBRIDS:
        row[10 + HYBRIDS.index(hybridization.name)] = 1
    row[13] = hydrogens
    row[13 + number] = 1
    return row


class Proxy(nn.Module):
    """The network: 12 steps of edge-conditioned convolution and a gated recurrent unit, then Set2Set.

    The matrix of an edge depends on the kind of its bond alone, so there are only five.

    Args:
        width: channels of the atoms' states.
        steps: convolution steps.
        root: how the convolution's root array W acts on an atom's state, ``"linear"`` as x W^T, ``"matrix"`` as x W.

    Example:
        >>> Proxy(width=8).edge_matrices().shape
        torch.Size([5, 8, 8])
    """

    def __init__(self, width: int = 64, steps: int = 12, root: str = "linear") -> None:
        super().__init__()
        self.width, self.steps, self.linear_root = width, steps, root == "linear"
        self.enter = nn.Linear(N_FEATURES, width)
        self.root = nn.Parameter(torch.zeros(width, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.edge = nn.Sequential(nn.Linear(BONDS, 128), nn.LeakyReLU(), nn.Linear(128, width * width))
        self.recur = nn.GRUCell(width, width)
        self.read = nn.LSTMCell(2 * width, width)
        self.leave = nn.Linear(2 * width, 1)

    def edge_matrices(self) -> Tensor:
        """The matrices (5, width, width) of single, double, triple and aromatic bonds, and of no bond.

        A neighbour's state x contributes x M.
        """
        kinds = torch.eye(BONDS + 1, BONDS, dtype=self.bias.dtype, device=self.bias.device)
        out: Tensor = self.edge(kinds)
        return out.view(-1, self.width, self.width)

    def forward(self, atoms: Atoms) -> Tensor:
        """Scores (B,)."""
        act = nn.functional.leaky_relu
        h = act(self.enter(atoms.features.to(self.bias.dtype)))
        root = self.root if self.linear_root else self.root.T
        by_kind = atoms.bond.argsort(stable=True)
        source, target = atoms.source[by_kind], atoms.target[by_kind]
        sizes = atoms.bond.bincount(minlength=BONDS + 1).tolist()
        kinds = [x for x in zip(source.split(sizes), self.edge_matrices(), strict=True) if len(x[0])]
        degree = h.new_zeros(len(h)).index_add(0, target, h.new_ones(len(target)))
        share = 1 / degree.clamp_min(1).unsqueeze(1)
        for _ in range(self.steps):
            sent = torch.cat([h[of] @ matrix for of, matrix in kinds])
            mean = torch.zeros_like(h).index_add(0, target, sent) * share
            h = self.recur(act(mean + nn.functional.linear(h, root, self.bias)), h)
        return self.leave(self._set2set(h, atoms)).squeeze(1)

    def _set2set(self, h: Tensor, atoms: Atoms, rounds: int = 3) -> Tensor:
        """Set2Set (Vinyals et al., 2016): a query attends to the atoms, and what it reads makes the next query."""
        of, b = atoms.molecule, atoms.size
        state = (h.new_zeros(b, self.width), h.new_zeros(b, self.width))
        both = h.new_zeros(b, 2 * self.width)
        for _ in range(rounds):
            state = self.read(both, state)
            q = state[0]
            e = (h * q[of]).sum(1)
            top = e.new_full((b,), -torch.inf).scatter_reduce(0, of, e, "amax")
            w = (e - top[of]).exp()
            w = w / w.new_zeros(b).index_add(0, of, w)[of]
            both = torch.cat([q, torch.zeros_like(q).index_add(0, of, w.unsqueeze(1) * h)], 1)
        return both

    @torch.no_grad()
    def score(self, molecules: Sequence[Molecule]) -> Any:
        """Scores (B,) of any number of molecules, as an array."""
        parts = [self(atoms_of(molecules[i : i + CHUNK])) for i in range(0, len(molecules), CHUNK)]
        return torch.cat(parts).numpy()


_NAMES = {
    "lin0.weight": "enter.weight",
    "lin0.bias": "enter.bias",
    "conv.lin.weight(root)": "root",
    "conv.bias": "bias",
    "conv.nn.0.weight": "edge.0.weight",
    "conv.nn.0.bias": "edge.0.bias",
    "conv.nn.2.weight": "edge.2.weight",
    "conv.nn.2.bias": "edge.2.bias",
    "gru.weight_ih_l0": "recur.weight_ih",
    "gru.weight_hh_l0": "recur.weight_hh",
    "gru.bias_ih_l0": "recur.bias_ih",
    "gru.bias_hh_l0": "recur.bias_hh",
    "set2set.lstm.weight_ih_l0": "read.weight_ih",
    "set2set.lstm.weight_hh_l0": "read.weight_hh",
    "set2set.lstm.bias_ih_l0": "read.bias_ih",
    "set2set.lstm.bias_hh_l0": "read.bias_hh",
    "lin3.weight": "leave.weight",
    "lin3.bias": "leave.bias",
}
_UNUSED = ("lin1.weight", "lin1.bias", "lin2.weight", "lin2.bias")
"""The arrays of a head for stems, which the score does not use."""


def load_proxy(path: Path, root: str = "linear") -> Proxy:
    """Read the weights from an NPZ file of 22 arrays named ``00_lin0.weight`` to ``21_lin3.bias``.

    Raises:
        DataError: the file is missing or damaged, or its arrays are not those of the network.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.partition("_")[2]: file[name] for name in file.files}
    except OSError as error:
        raise DataError(f"cannot read the proxy {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise DataError(f"the proxy {path} is damaged or no NPZ file: {type(error).__name__}: {error}") from error
    return _built(arrays, path, root)


def _built(arrays: Mapping[str, Any], path: Path, root: str) -> Proxy:
    missing = [name for name in _NAMES if name not in arrays]
    unknown = [name for name in arrays if name not in _NAMES and name not in _UNUSED]
    if missing or unknown:
        what = f"has no array {missing[0]!r}" if missing else f"has the unknown array {unknown[0]!r}"
        raise DataError(f"the proxy {path} {what}; it needs those of the sEH proxy, as '00_lin0.weight'")
    state = {ours: torch.from_numpy(np.asarray(arrays[theirs])) for theirs, ours in _NAMES.items()}
    proxy = Proxy(width=len(state["bias"]), root=root)
    try:
        proxy.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(
            f"the proxy {path} has arrays of other shapes: {str(error).splitlines()[-1].strip()}"
        ) from error
    return proxy.eval().requires_grad_(False)
