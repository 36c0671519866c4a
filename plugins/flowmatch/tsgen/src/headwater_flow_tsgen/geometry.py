"""Geometry of molecules: alignment, distances between structures, bonds and fragments.

Coordinates are (..., N, 3) in Angstrom. A ``mask`` (..., N) is true at atoms and false at padding; without one every
row is an atom.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["align", "bonds", "centre", "components", "distance_mae", "midpoint", "mirror", "mirror_aligned", "rmsd"]


def _weights(x: Tensor, mask: Tensor | None) -> Tensor:
    """1 at atoms and 0 at padding (..., N, 1), in the type of ``x``."""
    return x.new_ones(*x.shape[:-1], 1) if mask is None else mask.unsqueeze(-1).to(x.dtype)


def centre(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Move the centroid of the atoms to the origin; padding becomes 0."""
    if mask is None:
        return x - x.mean(-2, keepdim=True)
    w = _weights(x, mask)
    return (x - (x * w).sum(-2, keepdim=True) / w.sum(-2, keepdim=True)) * w


def mirror(x: Tensor) -> Tensor:
    """The mirror image, z -> -z."""
    return x * x.new_tensor([1.0, 1.0, -1.0])


def align(moving: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Centre ``moving`` and rotate it onto the centred ``target`` by the best proper rotation (Kabsch 1976).

    With H = sum_i a_i b_i^T = U S V^T the rotation is V diag(1, 1, det(V U^T)) U^T, so its determinant is +1: an
    enantiomer is never turned into the other one. Where the best rotation is not unique (all atoms on a line) any of
    the best is taken. Computed in double precision; no gradient passes through the rotation.
    """
    a, b = centre(moving, mask), centre(target, mask)
    with torch.no_grad():
        u, _, vh = torch.linalg.svd(a.double().mT @ b.double())
        sign = torch.linalg.det(u @ vh).sign()
        u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1)
        rotation = (u @ vh).to(a.dtype)
    return a @ rotation


def mirror_aligned(moving: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Like :func:`align`, but the mirror image is tried as well and the nearer of the two is kept.

    Returns:
        The aligned coordinates, and whether the mirror image was taken (...).
    """
    straight, flipped = align(moving, target, mask), align(mirror(moving), target, mask)
    b = centre(target, mask)
    better = (flipped - b).square().sum((-1, -2)) < (straight - b).square().sum((-1, -2))
    return torch.where(better[..., None, None], flipped, straight), better


def rmsd(a: Tensor, b: Tensor, mask: Tensor | None = None, *, reflect: bool = False) -> Tensor:
    """sqrt(mean_i |a_i - b_i|^2) (...) after the best superposition, in Angstrom.

    Args:
        a: structures.
        b: structures of the same atoms in the same order.
        mask: which rows are atoms.
        reflect: also try the mirror image of ``a`` (what peers call ``ignore_chirality``) and take the smaller value;
            without, only proper rotations count.
    """
    moved = mirror_aligned(a, b, mask)[0] if reflect else align(a, b, mask)
    n = a.shape[-2] if mask is None else mask.sum(-1)
    return ((moved - centre(b, mask)).square().sum((-1, -2)) / n).sqrt()


def distance_mae(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean |d_ij(a) - d_ij(b)| over all pairs i < j of atoms (...), in Angstrom: D-MAE of GoFlow and TSDiff."""
    difference = (torch.cdist(a, a) - torch.cdist(b, b)).abs()
    n = a.shape[-2]
    pair = torch.ones(n, n, dtype=torch.bool, device=a.device).triu(1)
    if mask is not None:
        pair = pair & mask.unsqueeze(-1) & mask.unsqueeze(-2)
    w = pair.to(a.dtype).expand_as(difference)
    return (difference * w).sum((-1, -2)) / w.sum((-1, -2))


def midpoint(reactant: Tensor, product: Tensor, mask: Tensor | None = None) -> Tensor:
    """Half way between the centred reactant and the product aligned to it by a proper rotation."""
    return 0.5 * (centre(reactant, mask) + align(product, reactant, mask))


def bonds(numbers: np.ndarray, positions: np.ndarray, factor: float = 1.3) -> np.ndarray:
    """Which atoms are bonded (N, N): nearer than ``factor`` times the sum of their covalent radii."""
    from ase.data import covalent_radii

    radii = covalent_radii[numbers]
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    near = distance < factor * (radii[:, None] + radii[None])
    np.fill_diagonal(near, False)
    return near


def components(bonded: np.ndarray) -> np.ndarray:
    """The connected component of each atom (N,), numbered from 0 in the order of the atoms."""
    from scipy.sparse.csgraph import connected_components

    return np.asarray(connected_components(bonded, directed=False)[1], dtype=np.int64)
