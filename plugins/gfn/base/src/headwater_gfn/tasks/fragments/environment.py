"""Molecules built from fragments (Bengio et al., 2021): a tree of blocks that grows by one block a step."""

import json
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from headwater import Config, ConfigError, DataError
from headwater.reporting import Panel
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from headwater_gfn.environment import Environment, Samples
from headwater_gfn.tasks.fragments import trees
from headwater_gfn.tasks.fragments.library import default_library, rdkit, read_library
from headwater_gfn.tasks.fragments.molecules import Molecule, assemble
from headwater_gfn.tasks.fragments.rewards import log_reward_of, make_scorer
from headwater_gfn.tasks.fragments.tables import Tables, make_tables
from headwater_gfn.tasks.fragments.trees import Tree

__all__ = ["Fragments", "FragmentsConfig"]


class FragmentsConfig(Config):
    """The library of blocks, how many a molecule has, and the reward."""

    blocks: Path | None = Field(
        None, description="JSON file of blocks (block_smi, block_r); the embedded library without"
    )
    min_blocks: PositiveInt = Field(2, description="a molecule with fewer blocks cannot stop, unless no stem is free")
    max_blocks: int = Field(8, ge=1, le=16, description="a molecule of so many blocks can only stop")
    reward: str = Field(
        "qed",
        description="qed, sa, logp, seh (with proxy), or a scorer of SMILES as 'package.module:function'",
    )
    proxy: Path | None = Field(None, description="NPZ file with the weights of the sEH proxy")
    proxy_root: Literal["linear", "matrix"] = Field(
        "linear", description="whether the root array of the proxy's convolution acts as x W^T or as x W"
    )
    beta: PositiveFloat = Field(4.0, description="log R = beta log(max(value, floor))")
    floor: PositiveFloat = Field(0.0125, description="the lowest value that counts")
    network: Literal["graph", "one-hot", "official", "official-pyg1"] = Field(
        "graph",
        description="graph: messages along all bonds; one-hot: a perceptron; official: messages to the children only, "
        "of torch-geometric 2 or 1, for converted weights",
    )
    convolutions: PositiveInt = Field(6, description="message-passing steps of a graph network; 10 in the paper")
    mode_reward: float | None = Field(None, description="lowest value of a mode; 7.5/8 for seh, else 0.8 without")
    mode_similarity: float = Field(0.7, gt=0, le=1, description="molecules nearer than this are one mode (Tanimoto)")
    cache_size: NonNegativeInt = Field(200_000, description="how many rewards and molecules are remembered")

    @model_validator(mode="after")
    def _fits(self) -> "FragmentsConfig":
        if self.min_blocks > self.max_blocks:
            raise ValueError(f"min_blocks = {self.min_blocks} is more than max_blocks = {self.max_blocks}")
        if (self.reward == "seh") != (self.proxy is not None):
            raise ValueError("the reward 'seh' needs the proxy's weights (proxy), and no other takes them")
        return self


class Fragments(Environment):
    """States (B, 4 N + 1): block, parent's slot, parent's stem and own stem of N slots, and 1 at the end after STOP.

    Unused entries are -1. Every state is in canonical form (:mod:`.trees`): equal objects are equal tensors, and a
    block stands for all blocks of its kind. Stems are given by their position in the sorted list of a block's stems.

    Action ``(slot S + position) nb + block`` adds a block at a free stem; the last action is STOP. The first block
    is added at slot 0, position 0. The backward action k takes away the block in slot k. Of the blocks whose removal
    leaves the same object only the first may be taken, so that P_B can be uniform over distinct parents.

    The reward may score any molecule, so forward-looking objectives can be used; the source has log R = 0.
    """

    stops = True
    suffixes = (".smi", ".csv", ".sdf", ".jsonl")

    def __init__(self, config: FragmentsConfig) -> None:
        """Read the library.

        Raises:
            UsageError: RDKit is not installed.
            DataError: the library cannot be used.
        """
        super().__init__(config)
        rdkit("Chem")
        self.blocks = read_library(config.blocks) if config.blocks else default_library()
        self.tables = make_tables(self.blocks)
        self.size, self.width = config.max_blocks, self.tables.atom.shape[1]
        if (self.width + 1) ** (self.size - 1) >= 2**63:
            raise ConfigError(f"task.max_blocks = {self.size} is too many for blocks with {self.width} stems")
        # A full molecule takes no block, so the last slot has no action; a lone block must have one for the first.
        self.n_stems = max(self.size - 1, 1) * self.width
        self.n_actions = self.n_stems * len(self.blocks) + 1
        self.n_backward = self.size
        self.max_len = self.size + 1
        self.state_shape = (4 * self.size + 1,)
        self._sizes = (len(self.blocks), self.size, self.width, self.width)
        self.n_features = self.size * sum(n + 1 for n in self._sizes) if config.network == "one-hot" else 4 * self.size
        self._on: dict[torch.device, Tables] = {self.tables.own.device: self.tables}
        self._scores: OrderedDict[tuple[int, ...], float] = OrderedDict()
        self._molecules: OrderedDict[tuple[int, ...], Molecule] = OrderedDict()

    # States as trees

    def _tables(self, device: torch.device) -> Tables:
        if device not in self._on:
            self._on[device] = self.tables.to(device)
        return self._on[device]

    def tree(self, s: Tensor) -> Tree:
        """The tree of each state, without its flag."""
        return Tree(*s[:, :-1].view(len(s), 4, self.size).unbind(1))

    def _state(self, tree: Tree, stopped: Tensor | int = 0) -> Tensor:
        flag = torch.zeros_like(tree.block[:, :1]) + stopped
        return torch.cat([*tree, flag], 1)

    def _take_apart(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether an action is STOP, else its stem and its block (0 for STOP)."""
        stop = a == self.n_actions - 1
        a = torch.where(stop, 0, a)
        return stop, a // len(self.blocks), a % len(self.blocks)

    # The environment

    def start(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        s = torch.full((n, *self.state_shape), -1, device=device)
        s[:, -1] = 0
        return s

    def step(self, s: Tensor, a: Tensor) -> Tensor:
        tables = self._tables(s.device)
        stop, stem, block = self._take_apart(a)
        stop = stop.unsqueeze(1)
        grown, _ = trees.grow(tables, self.tree(s), stem, block)
        child = trees.canonical(tables, grown).tree
        return torch.where(stop, self._state(self.tree(s), 1), self._state(child))

    def undo(self, s: Tensor, b: Tensor) -> Tensor:
        return self._state(trees.canonical(self._tables(s.device), trees.prune(self.tree(s), b)).tree)

    def unstop(self, s: Tensor) -> Tensor:
        return self._state(self.tree(s))

    def forward_mask(self, s: Tensor) -> Tensor:
        tree = self.tree(s)
        free = trees.free_stems(self._tables(s.device), tree).flatten(1)
        size = (tree.block >= 0).sum(1, keepdim=True)
        open_ = free[:, : self.n_stems] & (size < self.size)
        open_[:, :1] |= size == 0
        stop = (size >= self.config.min_blocks) | ((size > 0) & ~free.any(1, keepdim=True))
        mask = open_.unsqueeze(2).expand(-1, -1, len(self.blocks)).flatten(1)
        return torch.cat([mask, stop], 1)

    def backward_mask(self, s: Tensor) -> Tensor:
        tables, tree = self._tables(s.device), self.tree(s)
        first = trees.twins(tables, tree, trees.codes(tables, tree))
        return first == torch.arange(self.size, device=s.device)

    def backward_action(self, s: Tensor, a: Tensor) -> Tensor:
        tables = self._tables(s.device)
        _, stem, block = self._take_apart(a)
        grown, slot = trees.grow(tables, self.tree(s), stem, block)
        child = trees.canonical(tables, grown)
        first = trees.twins(tables, child.tree, trees.codes(tables, child.tree))
        return first.gather(1, child.slot.gather(1, slot)).squeeze(1)

    def forward_action(self, s: Tensor, b: Tensor) -> Tensor:
        """The actions (B,) that lead back to ``s`` from its parents ``undo(s, b)``."""
        tables, tree = self._tables(s.device), self.tree(s)
        parent = trees.canonical(tables, trees.prune(tree, b))
        b = b.unsqueeze(1)
        slot, position, own = (x.gather(1, b) for x in trees.bonds_of_leaves(tree))
        place = parent.position.flatten(1).gather(1, slot * self.width + position)
        kind = tree.block.gather(1, b).clamp_min(0)
        stem = parent.slot.gather(1, slot) * self.width + place
        alone = (tree.block >= 0).sum(1, keepdim=True) == 1
        block = torch.where(alone, kind, tables.attach[kind, own])
        return (torch.where(alone, 0, stem) * len(self.blocks) + block).squeeze(1)

    def same_child(self, s: Tensor, a: Tensor) -> Tensor:
        tables, tree = self._tables(s.device), self.tree(s)
        stop, stem, block = self._take_apart(a)
        every = torch.arange(len(self.blocks), device=s.device)

        # The places at which the child may have been joined to an equal parent, as what is seen from there.
        child, slot = trees.grow(tables, tree, stem, block)
        found = trees.codes(tables, child)
        first = trees.twins(tables, child, found)
        same = (first == first.gather(1, slot)) & (first >= 0)
        _, _, own = trees.bonds_of_leaves(child)
        seen = found.arriving.gather(2, own.unsqueeze(2)).squeeze(2)
        orbit = tables.orbit[child.block.clamp_min(0), own]

        here = trees.stem_codes(tables, tree, trees.codes(tables, tree)).flatten(1)[:, : self.n_stems]
        here = here.unsqueeze(1) == seen.unsqueeze(2)
        here &= trees.free_stems(tables, tree).flatten(1)[:, None, : self.n_stems] & same.unsqueeze(2)
        fits = orbit.unsqueeze(2) == tables.orbit[every, tables.own]
        pairs = torch.einsum("bjs,bjv->bsv", here.float(), fits.float()) > 0

        empty = (tree.block < 0).all(1)
        source = torch.zeros_like(pairs)
        source[:, 0] = tables.kind == tables.kind[block].unsqueeze(1)
        pairs = torch.where(empty[:, None, None], source, pairs)
        pairs &= ~stop[:, None, None]
        return torch.cat([pairs.flatten(1), stop.unsqueeze(1)], 1)

    def terminal(self, s: Tensor) -> Tensor:
        return s[:, -1] == 1

    def observe(self, s: Tensor) -> Tensor:
        if self.config.network != "one-hot":
            return s[:, :-1]
        columns = [torch.nn.functional.one_hot(f + 1, n + 1) for f, n in zip(self.tree(s), self._sizes, strict=True)]
        return torch.cat([c.flatten(1) for c in columns], 1).float()

    # Rewards

    @cached_property
    def scorer(self) -> Any:
        """The function from molecules to values that the config names."""
        return make_scorer(self.config)

    def values(self, s: Tensor) -> Tensor:
        """The reward's value (B,), before ``beta``, of any states but the source; only new ones are scored.

        Raises:
            PluginError: the scorer of the user fails, or gives other than one finite number for each molecule.
        """
        rows = [tuple(row) for row in s[:, :-1].tolist()]
        cache = self._scores
        known = {row: cache[row] for row in set(rows) if row in cache}
        new = [row for row in dict.fromkeys(rows) if row not in known]
        if new:
            known.update(zip(new, self.scorer([self._molecule(row) for row in new]), strict=True))
        for row in dict.fromkeys(rows):
            _remember(cache, row, known[row], self.config.cache_size)
        return torch.tensor([known[row] for row in rows], dtype=torch.float64)

    def log_reward(self, x: Tensor) -> Tensor:
        return log_reward_of(self.values(x), self.config.beta, self.config.floor).float().to(x.device)

    def log_partial_reward(self, s: Tensor) -> Tensor:
        inside = s[:, 0] >= 0
        out = torch.zeros(len(s), device=s.device)
        out[inside] = self.log_reward(s[inside])
        return out

    # Molecules

    @cached_property
    def _mols(self) -> list[Any]:
        return [rdkit("Chem").MolFromSmiles(b.smiles) for b in self.blocks]

    @cached_property
    def _atoms(self) -> list[list[int]]:
        return [[int(i) for i in row] for row in self.tables.atom.tolist()]

    def _molecule(self, row: tuple[int, ...]) -> Molecule:
        found = self._molecules.get(row)
        if found is None:
            found = assemble(self.blocks, self._mols, self._atoms, row)
        _remember(self._molecules, row, found, self.config.cache_size)
        return found

    def molecules(self, x: Tensor) -> list[Molecule]:
        """The molecules of states, other than the source."""
        return [self._molecule(tuple(row)) for row in x[:, :-1].tolist()]

    def smiles(self, x: Tensor) -> list[str]:
        """Canonical SMILES of states, other than the source."""
        return [m.smiles for m in self.molecules(x)]

    def metrics(self, samples: Samples) -> dict[str, float]:
        from headwater_gfn.tasks.fragments.metrics import metrics

        return metrics(self, samples)

    def modes(self, x: Tensor) -> Tensor:
        from headwater_gfn.tasks.fragments.metrics import modes

        mols = [m.mol for m in self.molecules(x)]
        found = modes(mols, self.values(x).numpy(), self.mode_threshold, self.config.mode_similarity)
        return torch.from_numpy(found)

    @property
    def mode_threshold(self) -> float:
        """The lowest value of a mode."""
        given: float | None = self.config.mode_reward
        return given if given is not None else 7.5 / 8 if self.config.reward == "seh" else 0.8

    def make_policy(self, hidden: tuple[int, ...], activation: str) -> nn.Module:
        """A graph network of width ``hidden[0]``, unless the config wants a perceptron."""
        network = self.config.network
        if network == "one-hot":
            return super().make_policy(hidden, activation)
        from headwater_gfn.tasks.fragments.policy import GraphPolicy

        official, root = network != "graph", "matrix" if network == "official-pyg1" else "linear"
        return GraphPolicy(
            self.blocks, self.size, hidden[0], self.config.convolutions,
            directed=official, root=root, shared_types=official,
        )  # fmt: skip

    # Files

    def describe(self, x: Tensor) -> list[str]:
        """Each molecule's tree in words: ``"12 3@0.1:0 ..."``, a block for each slot and, after ``@``, its bond.

        The bond is ``parent slot.parent's stem:own stem``.
        """
        words = []
        for row in x[:, :-1].tolist():
            n = self.size
            parts = [
                f"{row[i]}" if row[n + i] < 0 else f"{row[i]}@{row[n + i]}.{row[2 * n + i]}:{row[3 * n + i]}"
                for i in range(n)
                if row[i] >= 0
            ]
            words.append(" ".join(parts))
        return words

    def parse(self, words: list[str]) -> Tensor:
        """The terminal states of trees that :meth:`describe` wrote, or another writer in any order of the slots.

        Raises:
            ValueError: an item is no tree of this library.
        """
        from headwater_gfn.tasks.fragments.files import parse_tree

        rows = [parse_tree(word, self.size, self.tables) for word in words]
        s = torch.tensor(rows, dtype=torch.int64).reshape(-1, *self.state_shape)
        tables = self._tables(s.device)
        out = self._state(trees.canonical(tables, self.tree(s)).tree, 1)
        tree = self.tree(out)
        out_of_reach = ((tree.parent >= 0) & (tables.attach[tree.block.clamp_min(0), tree.own.clamp_min(0)] < 0)).any(1)
        if bool(out_of_reach.any()):
            word = words[int(out_of_reach.nonzero()[0])]
            raise ValueError(f"{word!r} cannot be built: of two joined blocks one must be joined by its first stem")
        size = (tree.block >= 0).sum(1)
        early = (size < self.config.min_blocks) & trees.free_stems(tables, tree).flatten(1).any(1)
        if bool(early.any()):
            word = words[int(early.nonzero()[0])]
            raise ValueError(f"{word!r} has fewer than {self.config.min_blocks} blocks")
        return out

    def write(self, samples: Samples, path: Path, start: int = 0) -> None:
        """Write ``.smi``, ``.sdf``, ``.csv`` or ``.jsonl``; all hold the tree in words, so reading back is exact."""
        from headwater_gfn.tasks.fragments.files import write

        write(self, samples, path, start)

    def read(self, path: Path) -> Samples:
        from headwater_gfn.tasks.fragments.files import read

        x = read(self, path)
        return Samples(x, self.log_reward(x))

    @classmethod
    def check(cls, root: Path) -> list[str]:
        """What is wrong with the library of blocks in the JSON file ``root``."""
        try:
            read_library(root)
        except DataError as error:
            return [str(error)]
        return []

    def make(self, out: Path) -> None:
        """Write the library of blocks to ``out`` as JSON, in the format that ``blocks`` reads."""
        columns = {
            "block_name": [b.name for b in self.blocks],
            "block_smi": [b.smiles for b in self.blocks],
            "block_r": [list(b.stems) for b in self.blocks],
        }
        path = out / "blocks.json" if not out.suffix else out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(columns, indent=1) + "\n", encoding="utf-8")

    def pictures(self, policies: dict[str, Any]) -> list[Panel]:
        from headwater_gfn.tasks.fragments.pictures import pictures

        return pictures(self, policies)


def _remember(cache: "OrderedDict[Any, Any]", name: Any, value: Any, most: int) -> None:
    cache[name] = value
    cache.move_to_end(name)
    while len(cache) > most:
        cache.popitem(last=False)
