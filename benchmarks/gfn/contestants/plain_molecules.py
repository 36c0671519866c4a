"""Our own plain writing of the published loop of molecules by fragments (Bengio et al., 2021; Pan et al., 2023).

One object for each molecule, RDKit at every step, one graph at a time through the network while sampling, the full
matrix of every edge, the proxy molecule by molecule with the matrix of every bond, one squared residual after another
in the loss. This is what a reader of the papers writes first; it is no code of their authors.

As in the published code the loss takes the graphs of a batch together; ``--apart`` takes them one by one. It leaves
out what that code spends beside: the proxy is called once for a molecule, not up to three times at its end, and all is
float32 (``--double`` is float64, the published default). As there, of the actions that lead to one child only the one
taken counts, and every block at an end counts as a parent, so nothing must be compared.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import clock
import numpy as np
import torch
from rdkit import Chem
from torch import Tensor, nn

MIN_BLOCKS, MAX_BLOCKS = 2, 8
BETA, FLOOR = 4.0, 0.1 / 8
STOP = (-1, -1)
"""The action that ends a molecule; the others are (free stem, block)."""


class Library:
    """The blocks, and how the network numbers them and their stems."""

    def __init__(self, path: str) -> None:
        columns = json.loads(Path(path).read_text(encoding="utf-8"))
        smiles, stems = (
            list(c.values()) if isinstance(c, dict) else c for c in (columns["block_smi"], columns["block_r"])
        )
        self.smiles: list[str] = smiles
        self.stems: list[list[int]] = stems
        self.mols = [Chem.MolFromSmiles(s) for s in smiles]
        true = sorted(set(smiles))
        self.true = [true.index(s) for s in smiles]
        reach = [max(stems[smiles.index(s)]) + 1 for s in true]
        self.offset = [sum(reach[:i]) for i in range(len(true))]
        self.n_true, self.n_types = len(true), sum(reach)

    def __len__(self) -> int:
        return len(self.smiles)

    def stem_type(self, block: int, atom: int) -> int:
        return self.offset[self.true[block]] + atom


@dataclass
class Molecule:
    """Blocks, bonds (slot, atom, new slot, its atom) and free stems (slot, atom), each in the order it came."""

    blocks: list[int] = field(default_factory=list)
    bonds: list[tuple[int, int, int, int]] = field(default_factory=list)
    stems: list[tuple[int, int]] = field(default_factory=list)

    def grown(self, library: Library, stem: int, block: int) -> "Molecule":
        """A copy with one block more, joined by its first stem."""
        slot, own = len(self.blocks), list(library.stems[block])
        stems, bonds = list(self.stems), list(self.bonds)
        if self.blocks:
            bonds.append((*stems.pop(stem), slot, own.pop(0)))
        return Molecule([*self.blocks, block], bonds, stems + [(slot, atom) for atom in own])

    def parents(self) -> int:
        """From how many molecules one step leads here, as the published code counts: the blocks with one bond."""
        ends = [end for i, _, j, _ in self.bonds for end in (i, j)]
        return max(sum(ends.count(i) == 1 for i in range(len(self.blocks))), 1)

    def assemble(self, library: Library) -> tuple[Any, list[int]]:
        """RDKit's molecule, and its atoms that are free stems."""
        whole, first = Chem.RWMol(), []
        for block in self.blocks:
            first.append(whole.GetNumAtoms())
            whole.InsertMol(library.mols[block])
        for i, a, j, b in self.bonds:
            whole.AddBond(first[i] + a, first[j] + b, Chem.BondType.SINGLE)
            for k in (first[i] + a, first[j] + b):
                atom = whole.GetAtomWithIdx(k)
                atom.SetNumExplicitHs(max(atom.GetNumExplicitHs() - 1, 0))
        Chem.SanitizeMol(whole)
        return whole, [first[slot] + atom for slot, atom in self.stems]


def convolve(x: Tensor, source: Tensor, target: Tensor, matrices: Tensor, root: Tensor, bias: Tensor) -> Tensor:
    """Edge-conditioned convolution: the mean of x M over the edges that arrive, with M (E, n, n), and x W^T + b."""
    sent = torch.bmm(x[source].unsqueeze(1), matrices).squeeze(1)
    degree = x.new_zeros(len(x)).index_add(0, target, x.new_ones(len(target))).clamp_min(1)
    return x.new_zeros(x.shape).index_add(0, target, sent) / degree.unsqueeze(1) + x @ root.T + bias


class PlainProxy(nn.Module):
    """The sEH proxy for one molecule."""

    def __init__(self, path: str, width: int = 64) -> None:
        super().__init__()
        with np.load(path) as file:
            arrays = {n.partition("_")[2]: torch.tensor(file[n], dtype=torch.get_default_dtype()) for n in file.files}
        self.enter, self.leave = nn.Linear(71, width), nn.Linear(2 * width, 1)
        self.edge = nn.Sequential(nn.Linear(4, 128), nn.LeakyReLU(), nn.Linear(128, width * width))
        self.gru, self.lstm = nn.GRU(width, width), nn.LSTM(2 * width, width)
        self.root, self.bias = arrays["conv.lin.weight(root)"], arrays["conv.bias"]
        layers = {"lin0": self.enter, "lin3": self.leave, "conv.nn": self.edge}
        for name, layer in {**layers, "gru": self.gru, "set2set.lstm": self.lstm}.items():
            own = {k.removeprefix(f"{name}."): v for k, v in arrays.items() if k.startswith(f"{name}.")}
            layer.load_state_dict(own)
        self.requires_grad_(False)

    @staticmethod
    def graph(mol: Any, stems: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the atoms (n, 71), ends (2, E) and features (E, 4) of the bonds, both ways."""
        hybrid = {
            Chem.HybridizationType.SP: 10,
            Chem.HybridizationType.SP2: 11,
            Chem.HybridizationType.SP3: 12,
        }
        kinds = [Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC]
        x = np.zeros((mol.GetNumAtoms(), 71), dtype=np.float32)
        for i, atom in enumerate(mol.GetAtoms()):
            number = atom.GetAtomicNum()
            x[i, {1: 0, 6: 1, 7: 2, 8: 3, 9: 4}.get(number, 5)] = 1
            x[i, 9] = atom.GetIsAromatic()
            if atom.GetHybridization() in hybrid:
                x[i, hybrid[atom.GetHybridization()]] = 1
            x[i, 13] = atom.GetTotalNumHs(True)
            x[i, 13 + number] = 1
        x[list(stems) or [0], 70] = 1
        ends, features = [], []
        for bond in mol.GetBonds():
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            ends += [(i, j), (j, i)]
            features += [[float(bond.GetBondType() == kind) for kind in kinds]] * 2
        if not ends:
            ends, features = [(0, 0)], [[0.0] * 4]
        return torch.from_numpy(x).to(torch.get_default_dtype()), torch.tensor(ends).T, torch.tensor(features)

    @torch.no_grad()
    def forward(self, mol: Any, stems: Sequence[int]) -> float:
        act = nn.functional.leaky_relu
        features, (source, target), edges = self.graph(mol, stems)
        x = act(self.enter(features))
        h = x.unsqueeze(0)
        for _ in range(12):
            matrices = self.edge(edges).view(len(edges), x.shape[1], x.shape[1])
            m = act(convolve(x, source, target, matrices, self.root, self.bias))
            out, h = self.gru(m.unsqueeze(0), h)
            x = out.squeeze(0)
        both, state = x.new_zeros(1, 2 * x.shape[1]), None
        for _ in range(3):
            query, state = self.lstm(both.unsqueeze(0), state)
            query = query.squeeze(0)
            both = torch.cat([query, (x @ query.T).softmax(0).T @ x], 1)
        return float(self.leave(both))


@dataclass
class Graphs:
    """Some molecules as one graph: blocks, edges from parents to children, and the free stems, all in one row."""

    block: Tensor
    owner: Tensor
    source: Tensor
    target: Tensor
    ends: Tensor
    stem_block: Tensor
    stem_type: Tensor
    stem_owner: Tensor
    first_stem: list[int]
    may_stop: Tensor


def graphs_of(library: Library, molecules: Sequence[Molecule]) -> Graphs:
    """The graphs; a full molecule shows no stems, because it can only stop."""
    block, owner, edges, ends, stems, first, may = [], [], [], [], [], [], []
    for g, m in enumerate(molecules):
        start = len(block)
        first.append(len(stems))
        block += [library.true[b] for b in m.blocks] or [library.n_true]
        owner += [g] * max(len(m.blocks), 1)
        edges += [(start + i, start + j) for i, _, j, _ in m.bonds]
        ends += [(library.stem_type(m.blocks[i], a), library.stem_type(m.blocks[j], b)) for i, a, j, b in m.bonds]
        if not m.blocks:
            stems.append((start, library.n_types, g))
        elif len(m.blocks) < MAX_BLOCKS:
            stems += [(start + slot, library.stem_type(m.blocks[slot], atom), g) for slot, atom in m.stems]
        may.append(len(m.blocks) >= MIN_BLOCKS or (bool(m.blocks) and not m.stems))

    def columns(rows: list[Any], width: int) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64).view(-1, width).T

    return Graphs(
        torch.tensor(block), torch.tensor(owner), *columns(edges, 2), columns(ends, 2).T, *columns(stems, 3), first,
        torch.tensor(may),
    )  # fmt: skip


class PlainAgent(nn.Module):
    """The published policy network: the full matrix of every edge."""

    def __init__(self, library: Library, width: int, steps: int) -> None:
        super().__init__()
        self.steps, self.width = steps, width
        self.blockemb = nn.Embedding(library.n_true + 1, width)
        self.stememb = nn.Embedding(library.n_types + 1, width)
        self.bondemb = nn.Embedding(library.n_types, width)
        self.root = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width)))
        self.bias = nn.Parameter(torch.zeros(width))
        act = nn.LeakyReLU
        self.block2emb = nn.Sequential(nn.Linear(width, width), act(), nn.Linear(width, width))
        self.gru = nn.GRUCell(width, width)
        self.stem2pred = nn.Sequential(
            nn.Linear(2 * width, width), act(), nn.Linear(width, width), act(), nn.Linear(width, len(library))
        )
        self.global2pred = nn.Sequential(nn.Linear(width, width), act(), nn.Linear(width, 2))

    def forward(self, graphs: Graphs) -> tuple[Tensor, Tensor, Tensor]:
        """log P_F of each block at each stem (S, blocks), of stopping (G,), and log flow (G,)."""
        e, f = self.bondemb(graphs.ends).unbind(1)
        matrices = e.unsqueeze(2) * f.unsqueeze(1)
        x = self.block2emb(self.blockemb(graphs.block))
        for _ in range(self.steps):
            m = convolve(x, graphs.source, graphs.target, matrices, self.root, self.bias)
            x = self.gru(nn.functional.leaky_relu(m), x)
        stems = self.stem2pred(torch.cat([x[graphs.stem_block], self.stememb(graphs.stem_type)], 1))
        n = len(graphs.may_stop)
        size = x.new_zeros(n).index_add(0, graphs.owner, x.new_ones(len(x))).unsqueeze(1)
        pooled = self.global2pred(x.new_zeros(n, self.width).index_add(0, graphs.owner, x) / size)
        stop, owner = torch.where(graphs.may_stop, pooled[:, 0], -1e9), graphs.stem_owner
        top = stop.scatter_reduce(0, owner, stems.amax(1), "amax").detach()
        total = (stop - top).exp().index_add(0, owner, (stems - top[owner].unsqueeze(1)).exp().sum(1))
        log_z = top + total.log()
        return stems - log_z[owner].unsqueeze(1), stop - log_z, pooled[:, 1]


@dataclass
class Trajectory:
    """Molecules, the empty one first; for each step the actions that lead there, the parents and log R after it."""

    molecules: list[Molecule]
    actions: list[list[tuple[int, int]]] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    log_rewards: list[float] = field(default_factory=list)


def log_reward(library: Library, proxy: PlainProxy, molecule: Molecule) -> float:
    return BETA * math.log(max(proxy(*molecule.assemble(library)) / 8, FLOOR))


@torch.no_grad()
def roll_out(
    network: PlainAgent, library: Library, proxy: PlainProxy, random: float, *, partial: bool = True
) -> Trajectory:
    """Sample one molecule; ``random`` is the probability of a uniform action. The end alone is scored without
    ``partial``.
    """
    molecule = Molecule()
    found = Trajectory([molecule])
    while True:
        graphs = graphs_of(library, [molecule])
        stems, stop, _ = network(graphs)
        log_p = torch.cat([stems.flatten(), stop])
        if float(torch.rand(())) < random:
            chosen = int(torch.randint(len(log_p) - 1 + int(graphs.may_stop), ()))
        else:
            chosen = int(torch.distributions.Categorical(logits=log_p).sample())
        if chosen == len(log_p) - 1:
            found.actions.append([STOP])
            found.parents.append(1)
            done = found.log_rewards[-1] if partial else log_reward(library, proxy, molecule)
            found.log_rewards.append(done)
            return found
        action = (chosen // len(library), chosen % len(library))
        molecule = molecule.grown(library, *action)
        found.molecules.append(molecule)
        found.actions.append([action])
        found.parents.append(molecule.parents())
        found.log_rewards.append(log_reward(library, proxy, molecule) if partial else 0.0)


def loss_of(network: PlainAgent, library: Library, trajectories: Sequence[Trajectory], apart: bool = False) -> Tensor:
    """FL-DB with log Ftilde = 0 at the end, transition by transition; the mean over all of them."""
    molecules = [m for t in trajectories for m in t.molecules]
    if apart:
        parts = [(network(g), g.first_stem) for g in (graphs_of(library, [m]) for m in molecules)]
        log_p = [(out[0], out[1][0], out[2][0]) for out, _ in parts]
    else:
        graphs = graphs_of(library, molecules)
        stems, stop, flow = network(graphs)
        ends = [*graphs.first_stem[1:], len(stems)]
        spans = zip(graphs.first_stem, ends, strict=True)
        log_p = [(stems[i:j], stop[k], flow[k]) for k, (i, j) in enumerate(spans)]
    total, n, first = torch.zeros(()), 0, 0
    for trajectory in trajectories:
        before = 0.0
        for i, same in enumerate(trajectory.actions):
            stems, stop, flow = log_p[first + i]
            log_pf = stop if same[0] == STOP else stems[same[0]]
            if len(same) > 1:
                log_pf = torch.stack([stems[a] for a in same]).logsumexp(0)
            after = trajectory.log_rewards[i]
            ahead = log_p[first + i + 1][2] if i + 1 < len(trajectory.actions) else 0.0
            residual = flow + log_pf - ahead + math.log(trajectory.parents[i]) - (after - before)
            total, n, before = total + residual.square(), n + 1, after
        first += len(trajectory.molecules)
    return total / n


# What the published loop leaves out, for the check alone: which actions and parents are the same.


def key(library: Library, molecule: Molecule) -> str:
    """Equal for equal trees of blocks: RDKit's canonical SMILES with every atom marked by its block's kind and by how
    often it is a stem there, and a dummy atom in every bond between blocks.
    """
    whole, first = Chem.RWMol(), []
    for block in molecule.blocks:
        start, stems = whole.GetNumAtoms(), library.stems[block]
        first.append(start)
        whole.InsertMol(library.mols[block])
        for k in range(start, whole.GetNumAtoms()):
            whole.GetAtomWithIdx(k).SetIsotope(1 + 8 * kind_of(library, block) + stems.count(k - start))
    for i, a, j, b in molecule.bonds:
        dummy = whole.AddAtom(Chem.Atom(0))
        whole.AddBond(first[i] + a, dummy, Chem.BondType.SINGLE)
        whole.AddBond(dummy, first[j] + b, Chem.BondType.SINGLE)
    return str(Chem.MolToSmiles(whole))


def kind_of(library: Library, block: int) -> int:
    """The first block with the same SMILES and stems, whichever comes first."""
    traits = [(s, sorted(r)) for s, r in zip(library.smiles, library.stems, strict=True)]
    return traits.index(traits[block])


def actions_to(library: Library, molecule: Molecule, child: str, kind: int) -> list[tuple[int, int]]:
    """All actions that lead from a molecule to the child with a key, whose new block is of a kind."""
    blocks = [b for b in range(len(library)) if kind_of(library, b) == kind]
    stems = range(len(molecule.stems) if molecule.blocks else 1)
    return [(k, b) for k in stems for b in blocks if key(library, molecule.grown(library, k, b)) == child]


def different_parents(library: Library, molecule: Molecule) -> int:
    """From how many different molecules one step leads here."""
    child, found = key(library, molecule), set()
    ends = [end for i, _, j, _ in molecule.bonds for end in (i, j)]
    for gone, block in enumerate(molecule.blocks):
        if ends.count(gone) > 1:
            continue
        slots = [i for i in range(len(molecule.blocks)) if i != gone]
        kept = [bond for bond in molecule.bonds if gone not in (bond[0], bond[2])]
        freed = [(j, b) if i == gone else (i, a) for i, a, j, b in molecule.bonds if gone in (i, j)]
        stems = [stem for stem in molecule.stems if stem[0] != gone] + freed
        parent = Molecule(
            [molecule.blocks[i] for i in slots],
            [(slots.index(i), a, slots.index(j), b) for i, a, j, b in kept],
            [(slots.index(slot), atom) for slot, atom in stems],
        )
        if actions_to(library, parent, child, kind_of(library, block)):
            found.add(key(library, parent))
    return len(found)


def arguments() -> Any:
    """The options of both contestants."""
    parser = clock.arguments()
    parser.add_argument("--blocks", required=True, help="JSON with the library of blocks")
    parser.add_argument("--proxy", required=True, help="NPZ with the weights of the sEH proxy")
    parser.add_argument("--width", type=int, default=64, help="of the policy network")
    parser.add_argument("--convolutions", type=int, default=10)
    parser.add_argument("--epsilon", type=float, default=0.1, help="probability of a uniform action")
    return parser


def main() -> None:
    parser = arguments()
    parser.add_argument("--apart", action="store_true", help="one graph at a time in the loss, too")
    parser.add_argument("--double", action="store_true", help="float64")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.double:
        torch.set_default_dtype(torch.float64)
    torch.manual_seed(options.seed)
    library, proxy = Library(options.blocks), PlainProxy(options.proxy)
    network = PlainAgent(library, options.width, options.convolutions)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    training = options.mode == "train"

    def advance(steps: int) -> float:
        lengths = []
        for _ in range(steps):
            random = options.epsilon if training else 0.0
            trajectories = [roll_out(network, library, proxy, random, partial=training) for _ in range(options.batch)]
            lengths += [len(t.actions) for t in trajectories]
            if training:
                optimizer.zero_grad()
                loss_of(network, library, trajectories, options.apart).backward()
                optimizer.step()
        return sum(lengths) / max(len(lengths), 1)

    versions = {name: version(name) for name in ("torch", "rdkit")}
    clock.measure(options, advance, batch=options.batch, versions=versions)


if __name__ == "__main__":
    main()
