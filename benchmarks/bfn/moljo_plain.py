"""The network of MolJO written plainly: a list of edges, whole rows through every perceptron, sums by scatter.

It reads the weights of headwater's modules, so both compute the same function; neighbours are found anew in each call
and everything is computed for all atoms, as in the published form.
"""

from typing import Any

import torch
from headwater_bfn_moljo.networks import CENTRES, shifted_softplus
from torch import Tensor

__all__ = ["backbone", "predictor"]


def knn_edges(pos: Tensor, batch: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sources and targets of the edges from the k nearest atoms of the same complex, (E,) each."""
    d = torch.cdist(pos, pos)
    d = d.masked_fill(batch[:, None] != batch[None], torch.inf)
    d.fill_diagonal_(torch.inf)
    near, index = d.topk(min(k, len(pos) - 1), largest=False)
    valid = near.isfinite()
    target = torch.arange(len(pos))[:, None].expand_as(index)
    return index[valid], target[valid]


def scatter_softmax(scores: Tensor, target: Tensor, count: int) -> Tensor:
    """Softmax of (E, heads) over the edges of each target."""
    index = target[:, None].expand_as(scores)
    highest = torch.full((count, scores.shape[1]), -torch.inf, dtype=scores.dtype)
    highest = highest.scatter_reduce(0, index, scores.detach(), "amax")
    p = (scores - highest[target]).exp()
    return p / torch.zeros(count, scores.shape[1], dtype=p.dtype).index_add(0, target, p)[target]


def body(module: Any, mu: Tensor, theta: Tensor, t: Tensor, protein: Tensor, layout: Any) -> tuple[Tensor, Tensor]:
    """Coordinates and features of the ligand atoms, by the weights of ``module`` (a ``Body``)."""
    p = layout.proteins
    ligand = module.ligand_in(torch.cat([2 * theta - 1, t[:, None]], 1))
    h = torch.cat([
        torch.cat([module.protein_in(protein), torch.zeros(p, 1)], 1), torch.cat([ligand, torch.ones(len(mu), 1)], 1)
    ])  # fmt: skip
    x = torch.cat([layout.protein_pos, mu])
    batch = torch.cat([layout.protein_of, layout.ligand_of])
    source, target = knn_edges(x.detach(), batch, layout.knn)
    from_ligand, to_ligand = source >= p, target >= p
    kind = torch.where(from_ligand, torch.where(to_ligand, 0, 1), torch.where(to_ligand, 2, 3))
    one_hot = torch.nn.functional.one_hot(kind, 4).to(x.dtype)
    centres = torch.tensor(CENTRES, dtype=x.dtype)
    moves = (torch.arange(len(x)) >= p)[:, None].to(x.dtype)
    gate = None
    for block in module.layers:
        away = x[target] - x[source]
        gaussians = (-0.5 * (away.norm(dim=1, keepdim=True) - centres) ** 2).exp()
        gate = torch.sigmoid(module.gate(gaussians)) if gate is None else gate
        edge = torch.cat([one_hot, (one_hot[:, :, None] * gaussians[:, None]).flatten(1)], 1)
        heads = block.x2h.heads
        for attention, moving in ((block.x2h, False), (block.h2x, True)):
            row = torch.cat([edge, h[target], h[source]], 1)
            key = attention.key(row).view(len(row), heads, -1)
            query = attention.query(h).view(len(h), heads, -1)
            alpha = scatter_softmax((query[target] * key).sum(-1) / key.shape[-1] ** 0.5, target, len(h))
            value = attention.value(row) * gate
            if moving:
                shift = (alpha * value)[:, :, None] * away[:, None]
                x = x + moves * torch.zeros(len(x), heads, 3, dtype=x.dtype).index_add(0, target, shift).mean(1)
            else:
                weighted = (alpha[:, :, None] * value.view(len(row), heads, -1)).flatten(1)
                h = h + torch.zeros_like(h).index_add(0, target, weighted)
    return x[p:], h[p:]


def backbone(module: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
    """Coordinates and logits, as :class:`headwater_bfn_moljo.networks.Backbone` gives them."""
    x, h = body(module.body, *inputs)
    return x, module.second(shifted_softplus(module.first(h)))


def predictor(module: Any, *inputs: Any) -> Tensor:
    """Values of each ligand, as :class:`headwater_bfn_moljo.networks.Predictor` gives them."""
    layout = inputs[-1]
    _, h = body(module.body, *inputs)
    each = module.second(shifted_softplus(module.first(h))).squeeze(1).sigmoid()
    total = torch.zeros(layout.complexes, dtype=each.dtype).index_add(0, layout.ligand_of, each)
    return total / torch.bincount(layout.ligand_of)
