"""Reactions as tensors: padded batches of about equal sizes, placed for a flow."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from headwater import DataError
from torch import Tensor

from headwater_flow_tsgen.geometry import align, bonds, centre, components, midpoint, mirror_aligned
from headwater_flow_tsgen.tasks.reaction import Reaction, symbols

__all__ = [
    "Frames",
    "buckets",
    "collate",
    "elements_of",
    "facts_of",
    "fragments_of",
    "n_species",
    "place",
    "reaction_from",
]

FIRST = (1, 6, 7, 8)
"""The elements of the published networks, in the order of their columns."""


class Frames(NamedTuple):
    """A batch of B reactions of up to N atoms.

    ``species`` (B, N) numbers elements; coordinates are (B, N, 3), 0 at padding; ``start`` is where the flow starts.
    ``mask`` (B, N) and ``fragment`` (B, N) are ``None`` where all rows are atoms, and all atoms are one piece. ``ts``
    and ``barrier`` (B,), kcal/mol, are NaN where they are not known.
    """

    species: Tensor
    reactant: Tensor
    product: Tensor
    ts: Tensor
    start: Tensor
    mask: Tensor | None
    fragment: Tensor | None
    barrier: Tensor

    def rows(self, rows: Tensor) -> "Frames":
        """Some of the reactions."""
        return Frames._make(None if x is None else x[rows] for x in self)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Frames":
        """Coordinates in ``dtype``, all on ``device``."""
        return Frames._make(
            x if x is None else x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in self
        )


def elements_of(reactions: Sequence[Reaction]) -> list[int]:
    """The atomic numbers that a network learns: H, C, N, O as published, then what else there is."""
    found = {int(z) for reaction in reactions for z in np.unique(reaction.numbers)}
    return [*FIRST, *sorted(found - set(FIRST))]


def n_species(elements: Sequence[int]) -> int:
    """Columns for elements: the published networks have one more than they use."""
    return max(len(elements), len(FIRST) + 1)


def fragments_of(reaction: Reaction, mode: str = "rp") -> np.ndarray:
    """The piece that each atom belongs to (N,).

    ``rp``: atoms joined by bonds of the reactant or of the product. ``official``: by bonds of the TS (factor 1.5 on the
    sum of covalent radii), as the published code has it, which tells the network about the answer; where the TS is not
    known, ``rp`` again.
    """
    if mode == "official" and reaction.ts is not None:
        return components(bonds(reaction.numbers, reaction.ts, 1.5))
    return components(
        bonds(reaction.numbers, reaction.reactant, 1.5) | bonds(reaction.numbers, reaction.product, 1.5)
    )  # fmt: skip


def collate(reactions: Sequence[Reaction], elements: Sequence[int], fragments: str = "rp") -> Frames:
    """One padded batch, in float32.

    Raises:
        DataError: an element was not trained on; names the reaction and what the model knows.
    """
    column = {z: k for k, z in enumerate(elements)}
    sizes = [len(reaction) for reaction in reactions]
    b, n = len(reactions), max(sizes)
    species = np.zeros((b, n), dtype=np.int64)
    x = np.zeros((3, b, n, 3), dtype=np.float64)
    piece = np.full((b, n), -1, dtype=np.int64)
    for i, (reaction, size) in enumerate(zip(reactions, sizes, strict=True)):
        unknown = [z for z in reaction.numbers.tolist() if z not in column]
        if unknown:
            known = " ".join(symbols(np.asarray(elements)))
            found = symbols(np.asarray(unknown[:1]))[0]
            raise DataError(
                f"reaction {reaction.name or i + 1} has {found}, which this model was not trained on; it knows {known}"
            )
        species[i, :size] = [column[z] for z in reaction.numbers.tolist()]
        missing = np.full_like(reaction.reactant, np.nan)
        for k, frame in enumerate((reaction.reactant, reaction.product, reaction.ts)):
            x[k, i, :size] = missing if frame is None else frame
        piece[i, :size] = fragments_of(reaction, fragments)
    mask = torch.arange(n) < torch.tensor(sizes).unsqueeze(1)
    reactant, product, ts = torch.from_numpy(x).float()
    barrier = [float("nan") if r.barrier is None else r.barrier for r in reactions]
    return Frames(
        torch.from_numpy(species), reactant, product, ts, torch.zeros_like(ts),
        None if len(set(sizes)) == 1 else mask,
        None if int(piece.max()) == 0 else torch.from_numpy(piece), torch.tensor(barrier),
    )  # fmt: skip


def place(frames: Frames, prior: str, *, reflections: bool = False) -> Frames:
    """Put a batch into the frame of its flow.

    The reactant is centred, the product is aligned to it, and the TS to where the flow starts (``midpoint``) or to the
    reactant (``noise``), each by the best proper rotation. With ``reflections`` mirror images of product and TS are
    tried too, as v1's preparation does: then the three need not be of one handedness.
    """
    reactant = centre(frames.reactant, frames.mask)

    def onto(moving: Tensor, target: Tensor) -> Tensor:
        if reflections:
            return mirror_aligned(moving, target, frames.mask)[0]
        return align(moving, target, frames.mask)

    product = onto(frames.product, reactant)
    middle = 0.5 * (reactant + product) if reflections else midpoint(reactant, product, frames.mask)
    start = middle if prior == "midpoint" else torch.zeros_like(reactant)
    ts = frames.ts
    known = torch.isfinite(ts).all((1, 2))
    if bool(known.any()):
        aligned = onto(torch.where(known[:, None, None], ts, reactant), middle if prior == "midpoint" else reactant)
        ts = torch.where(known[:, None, None], aligned, ts)
    return frames._replace(reactant=reactant, product=product, ts=ts, start=start)


def buckets(sizes: Sequence[int], slack: float = 1.25, at_least: int = 1) -> list[list[int]]:
    """Split items by size into groups whose padding wastes little: a list of lists of indices.

    Sizes are taken in ascending order; the next size joins the group at hand as long as the group, padded to it, has at
    most ``slack`` times the pairs of atoms that it would have without padding, or while it has fewer than ``at_least``
    items.

    Example:
        >>> buckets([5, 12, 5, 6], slack=1.3)
        [[0, 2, 3], [1]]
    """
    by_size: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    groups: list[list[int]] = []
    real = 0
    for size in sorted(by_size):
        members = by_size[size]
        joined = real + size**2 * len(members)
        count = (len(groups[-1]) if groups else 0) + len(members)
        if groups and (count * size**2 <= slack * joined or len(groups[-1]) < at_least):
            groups[-1] += members
            real = joined
        else:
            groups.append(list(members))
            real = size**2 * len(members)
    if len(groups) > 1 and len(groups[-1]) < at_least:
        last = groups.pop()
        groups[-1] += last
    return groups


def facts_of(reaction: Reaction) -> dict[str, Any]:
    """A reaction as a tree of tensors and scalars, to be saved with a run."""
    known: dict[str, Any] = {} if reaction.ts is None else {"ts": torch.from_numpy(reaction.ts)}
    if reaction.barrier is not None:
        known["barrier"] = float(reaction.barrier)
    return {
        "numbers": torch.from_numpy(np.asarray(reaction.numbers, dtype=np.int64)),
        "reactant": torch.from_numpy(reaction.reactant),
        "product": torch.from_numpy(reaction.product),
        "name": reaction.name,
        "group": reaction.group,
        **known,
    }


def reaction_from(facts: Mapping[str, Any]) -> Reaction:
    """The inverse of :func:`facts_of`."""
    return Reaction(
        numbers=facts["numbers"].cpu().numpy(), reactant=facts["reactant"].double().cpu().numpy(),
        product=facts["product"].double().cpu().numpy(),
        ts=facts["ts"].double().cpu().numpy() if "ts" in facts else None,
        name=facts["name"], group=facts["group"], barrier=facts.get("barrier"),
    )  # fmt: skip
