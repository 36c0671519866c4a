"""Complexes as tensors in the network's units, batches of them, and labels for predictors."""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from headwater import ConfigError, DataError
from headwater_bfn.pool import Failure
from torch import Tensor
from torch.nn.functional import one_hot

from headwater_bfn_moljo.config import KNOWN
from headwater_bfn_moljo.flow import POSITION_SCALE, Belief, flow
from headwater_bfn_moljo.layout import Layout
from headwater_bfn_moljo.tasks.chemistry import TYPES
from headwater_bfn_moljo.tasks.reading import Complex, protein_features

__all__ = ["Batch", "Item", "batch_of", "item", "labels", "random_rotation"]


class Item(NamedTuple):
    """A complex: pocket (P, 3) and (P, 27), ligand (L, 3) and (L,), and the centre (3,) in angstrom."""

    protein_pos: Tensor
    protein: Tensor
    x: Tensor
    types: Tensor
    centre: Tensor


class Batch(NamedTuple):
    """Complexes one after another, with a belief on their ligands at the time of each ligand atom.

    ``seed`` is that of what a loss draws itself.
    """

    protein_pos: Tensor
    protein: Tensor
    protein_sizes: tuple[int, ...]
    ligand_sizes: tuple[int, ...]
    x: Tensor
    e: Tensor
    t: Tensor
    mu: Tensor
    y: Tensor
    which: Tensor
    seed: int

    def layout(self, knn: int) -> Layout:
        """Its neighbours."""
        return Layout(self.protein_pos, self.protein_sizes, self.ligand_sizes, knn)

    @property
    def belief(self) -> Belief:
        return Belief(self.mu, self.y)


def item(source: Complex) -> Item:
    """A complex centred on the mean of its pocket's atoms, in the network's units."""
    centre = source.pocket.positions.mean(0)
    return Item(
        torch.from_numpy((source.pocket.positions - centre) / POSITION_SCALE).float(),
        torch.from_numpy(protein_features(source.pocket)),
        torch.from_numpy((source.positions - centre) / POSITION_SCALE).float(),
        torch.from_numpy(source.types),
        torch.from_numpy(centre),
    )


def random_rotation(generator: torch.Generator) -> Tensor:
    """A rotation (3, 3), uniform over all, from a unit quaternion: never a reflection."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(4, generator=generator), dim=0)
    return torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]),
            torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]),
            torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]),
        ]
    )


def batch_of(
    items: Sequence[Item], chosen: Tensor, sigma1: float, beta1: float, generator: torch.Generator, rotate: bool
) -> Batch:
    """The chosen complexes with beliefs at times that are uniform and spread evenly over the batch."""
    picked = [items[k] for k in chosen.tolist()]
    turns = [random_rotation(generator) if rotate else torch.eye(3) for _ in picked]
    proteins, ligands = tuple(len(i.protein) for i in picked), tuple(len(i.x) for i in picked)
    x = torch.cat([i.x @ q for i, q in zip(picked, turns, strict=True)])
    e = one_hot(torch.cat([i.types for i in picked]), len(TYPES)).float()
    count = len(picked)
    u = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    t = torch.repeat_interleave(u, torch.tensor(ligands))
    belief = flow(x, e, t, sigma1, beta1, generator)
    return Batch(
        torch.cat([i.protein_pos @ q for i, q in zip(picked, turns, strict=True)]),
        torch.cat([i.protein for i in picked]), proteins, ligands, x, e, t, belief.mu, belief.y, chosen,
        int(torch.randint(1 << 62, (), generator=generator)),
    )  # fmt: skip


def labels(complexes: Sequence[Complex], name: str, task: Any) -> Tensor:
    """The property ``name`` of each complex's ligand, scaled into (0, 1), (len(complexes),).

    Vina scores v become -clip(v, -16, 0)/16, QED (v - 0.01)/0.94, SA (v - 0.17)/0.83, Lipinski counts v/5. A label that
    came with the data is taken before one is computed.

    Raises:
        DataError: a ligand has no such property, or it lies outside 0..1.
        ConfigError: the import string names no function.
    """
    if name in KNOWN:
        raw = np.array([_raw(c, name) for c in complexes])
        if name == "vina":
            raw = _vina(complexes, raw, task)
        scaled = {
            "vina": lambda v: -np.clip(v, -16, 0) / 16,
            "qed": lambda v: (v - 0.01) / 0.94,
            "sa": lambda v: (v - 0.17) / 0.83,
            "lipinski": lambda v: v / 5,
        }[name](raw)
        return torch.from_numpy(np.clip(scaled, 0, 1)).float()
    function = _function(name)
    found = np.array([float(function(c.ligand)) for c in complexes])
    odd = np.flatnonzero(~((found >= 0) & (found <= 1)))
    if len(odd):
        raise DataError(f"{name} is {found[odd[0]]:g} for {complexes[odd[0]].name}; a property must lie in 0..1")
    return torch.from_numpy(found).float()


def _raw(source: Complex, name: str) -> float:
    from headwater_bfn_moljo.tasks.scoring import chemistry

    if name in source.labels:
        return source.labels[name]
    return float("nan") if name == "vina" else chemistry(source.ligand)[name]


def _vina(complexes: Sequence[Complex], raw: np.ndarray, task: Any) -> np.ndarray:
    """Vina scores, those that no file gives computed."""
    from headwater_bfn_moljo.tasks import docking
    from headwater_bfn_moljo.tasks.scoring import reference_pose

    missing = np.flatnonzero(np.isnan(raw)).tolist()
    if not missing:
        return raw
    c = task.config
    poses = [reference_pose(complexes[k].name, complexes[k].ligand) for k in missing]
    receptors = {complexes[k].name: complexes[k].receptor for k in missing}
    found = docking.run(poses, receptors, {}, "score", c.cache, c.processes, c.time_limit)
    for k, result in zip(missing, found, strict=True):
        if isinstance(result, Failure):
            raise DataError(
                f"no Vina score for the ligand of {complexes[k].name}: {result.reason}; leave the complex out, or give "
                "the score in a CSV's column vina"
            )
        raw[k] = result.score
    return raw


def _function(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"trainer.properties: {name!r} cannot be imported: {error}") from error
