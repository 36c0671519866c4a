"""Molecules in pockets from a trained backbone, guided by the predictors that came with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headwater import DataError, Sampler, UsageError
from scipy.spatial.distance import pdist
from torch import Tensor
from torch.nn.functional import one_hot

from headwater_bfn_moljo import chains, guidance
from headwater_bfn_moljo.config import MoleculeCondition, MolSamplerConfig
from headwater_bfn_moljo.data import item
from headwater_bfn_moljo.flow import POSITION_SCALE, Belief, prior
from headwater_bfn_moljo.layout import Edges, Layout
from headwater_bfn_moljo.tasks.chemistry import TYPES, scaffold_atoms
from headwater_bfn_moljo.tasks.poses import Pose, pose_of_atoms
from headwater_bfn_moljo.tasks.reading import Complex, pair

__all__ = ["MolSampler", "kept_atoms", "pocket_size", "size_bin"]


def pocket_size(positions: np.ndarray) -> float:
    """Median of the ten largest distances between pocket atoms (P, 3), in angstrom."""
    return float(np.median(np.sort(pdist(positions))[-10:]))


def size_bin(size: float, bounds: list[float]) -> int:
    """The bin of a pocket size: how many ``bounds`` are not above it."""
    return int(np.searchsorted(bounds, size, side="right"))


def kept_atoms(source: Complex, keep: Any) -> np.ndarray:
    """Which atoms of the reference stay, (L,).

    Raises:
        UsageError: an atom number is too large, or nothing or everything would be kept where that makes no sense.
    """
    atoms = len(source.types)
    if keep == "none":
        return np.zeros(atoms, dtype=bool)
    if keep == "all":
        return np.ones(atoms, dtype=bool)
    if isinstance(keep, tuple):
        if keep and max(keep) >= atoms:
            raise UsageError(f"keep names atom {max(keep)}; the ligand of {source.name} has atoms 0 to {atoms - 1}")
        mask = np.zeros(atoms, dtype=bool)
        mask[list(keep)] = True
        return mask
    scaffold = scaffold_atoms(source.ligand)
    if not scaffold.any():
        raise UsageError(f"the ligand of {source.name} has no ring, so it has no scaffold; name atoms: keep=0,1,2")
    return scaffold if keep == "scaffold" else ~scaffold


class _Nets:
    """The networks at one batch of one pocket; neighbours are found once for all networks that share k."""

    def __init__(self, sampler: "MolSampler", protein_pos: Tensor, protein: Tensor, sizes: tuple[int, ...]) -> None:
        self.sampler, self.protein = sampler, protein.repeat(len(sizes), 1)
        pos = protein_pos.repeat(len(sizes), 1)
        knn = {k for name, k in sampler.facts["knn"].items() if name in sampler.modules}
        self.layouts = {k: Layout(pos, (len(protein_pos),) * len(sizes), sizes, k) for k in knn}
        self._edges: tuple[Tensor, dict[int, tuple[Edges, Edges]]] | None = None

    def edges(self, mu: Tensor, k: int) -> tuple[Edges, Edges]:
        if self._edges is None or not torch.equal(self._edges[0], mu):
            self._edges = mu.detach().clone(), {}
        known = self._edges[1]
        if k not in known:
            known[k] = self.layouts[k].edges(mu)
        return known[k]

    def call(self, name: str, mu: Tensor, theta: Tensor, t: float) -> Any:
        k = int(self.sampler.facts["knn"][name])
        time = torch.full((len(mu),), t, dtype=mu.dtype, device=mu.device)
        return self.sampler.modules[name](mu, theta, time, self.protein, self.layouts[k], self.edges(mu, k))

    def backbone(self, belief: Belief, t: float) -> tuple[Tensor, Tensor]:
        x, logits = self.call("backbone", belief.mu, belief.theta, t)
        return x, logits


class MolSampler(Sampler):
    """Block k holds molecules of one pocket; pockets take turns."""

    config: MolSamplerConfig

    def setup(self) -> None:
        if "backbone" not in self.modules:
            raise UsageError("this run has no backbone: join it, headwater train bfn-moljo --from BACKBONE --from THIS")
        for module in self.modules.values():
            module.requires_grad_(False)
        self.guides = self._guides(dict(self.facts.get("properties", {})))

    def _guides(self, known: Mapping[str, str]) -> dict[str, float]:
        """Weights of the predictors, by module."""
        asked = self.config.guides
        if asked is None:
            return dict.fromkeys(known.values(), 1.0)
        for name in asked:
            if name not in known:
                there = ", ".join(known) or "none"
                raise UsageError(f"sampler.guides names {name!r}, of which the run has no predictor; it has {there}")
        return {known[name]: weight for name, weight in asked.items() if weight > 0}

    def prior(self, path: Path) -> Any:
        """The table of atom counts by pocket size.

        Raises:
            DataError: the file is no such table.
        """
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            fits = len(table["bins"]) == len(table["bounds"]) + 1
            fits = fits and all(len(b["n_atoms"]) == len(b["p"]) for b in table["bins"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no table of sizes with bounds and bins: {error}") from error
        if not fits:
            raise DataError(f"{path}: there must be one bin more than bounds, with n_atoms and p of one length")
        return table

    def targets(self, condition: MoleculeCondition | None) -> list[Complex]:
        """The complexes that molecules are asked for.

        Raises:
            UsageError: there is none, or none of that name.
        """
        if condition is not None and condition.pocket is not None and condition.ligand is not None:
            return [pair(condition.ligand.stem, condition.pocket, condition.ligand, self.task.config.radius)]
        found = self.task.targets()
        if condition is not None and condition.target is not None:
            found = [c for part in self.task.parts for c in part if c.name == condition.target]
            if not found:
                raise UsageError(f"the task has no complex {condition.target!r}")
        if not found:
            raise UsageError("no pocket to make molecules in; --condition pocket=P.pdb --condition ligand=L.sdf")
        return list(found)

    def block(self, k: int, generator: torch.Generator, condition: MoleculeCondition | None) -> list[Pose]:
        found = self.targets(condition)
        source = found[k % len(found)]
        data = item(source)
        device, n = generator.device, self.block_size
        mask = kept_atoms(source, "none" if condition is None else condition.keep)
        kept = int(mask.sum())
        grown = 0 if condition is None else condition.grow
        sizes = [max(size + grown, kept + 1) for size in self._sizes(source, generator)]
        nets = _Nets(self, data.protein_pos.to(device), data.protein.to(device), tuple(sizes))
        fixed = None
        if kept:
            # Kept atoms come first in each molecule.
            where = torch.cat([torch.arange(size) < kept for size in sizes]).to(device)
            x, e = torch.zeros(sum(sizes), 3, device=device), torch.zeros(sum(sizes), len(TYPES), device=device)
            x[where] = data.x[mask].to(device).repeat(n, 1)
            e[where] = one_hot(data.types[mask].to(device), len(TYPES)).float().repeat(n, 1)
            fixed = chains.Fixed(where, x, e)
        x, logits = self._chain(nets, sum(sizes), generator, fixed)
        positions = x.double().cpu() * POSITION_SCALE + data.centre
        kinds = logits.argmax(-1).cpu()
        poses = []
        for b, (where_x, what) in enumerate(zip(positions.split(sizes), kinds.split(sizes), strict=True)):
            numbers = [TYPES[i][0] for i in what.tolist()]
            poses.append(pose_of_atoms(f"molecule-{k * n + b:06d}", numbers, where_x.numpy(), source.name))
        return poses

    def _sizes(self, source: Complex, generator: torch.Generator) -> list[int]:
        size = self.config.size
        if size == "reference":
            return [len(source.types)] * self.block_size
        if size == "prior" and self.config.size_prior is not None:
            table = self.prior(self.config.size_prior)
            chosen = table["bins"][size_bin(pocket_size(source.pocket.positions), table["bounds"])]
            p = torch.tensor(chosen["p"], dtype=torch.float64, device=generator.device)
            drawn = torch.multinomial(p, self.block_size, replacement=True, generator=generator)
            return [int(chosen["n_atoms"][i]) for i in drawn.tolist()]
        return [int(size)] * self.block_size

    def _chain(
        self, nets: _Nets, atoms: int, generator: torch.Generator, fixed: chains.Fixed | None
    ) -> tuple[Tensor, Tensor]:
        c, flow = self.config, self.facts["flow"]
        start = prior(atoms, len(TYPES), nets.protein)
        scales = (c.coordinate_scale, c.type_scale)
        gradient = None
        if self.guides and any(scales):
            weights = list(self.guides.values())
            by = guidance.by_logits if c.compat == "theory" else guidance.by_probabilities

            def gradient(belief: Belief, t: float) -> tuple[Tensor, Tensor]:
                return by(lambda mu, theta: [nets.call(m, mu, theta, t) for m in self.guides], belief, weights)

        if c.compat == "theory":
            return chains.sample(
                nets.backbone, start, c.steps, flow["sigma1"], flow["beta1"], generator, c.window, gradient, scales,
                c.types, fixed,
            )  # fmt: skip
        if fixed is not None:
            raise UsageError("sampler.compat=official cannot keep atoms, for the released code loses the free ones")
        return chains.sample_official(
            nets.backbone, start, c.steps, flow["sigma1"], flow["beta1"], generator, c.strategy, c.window or 1,
            gradient, scales,
        )  # fmt: skip
