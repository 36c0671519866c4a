"""The messages of a layer: for every atom the mean over all atoms of its crystal of a perceptron of the pair.

With e_ij = A z_i + B z_j + C (lattice) + D_c cos(k d_ij) + D_s sin(k d_ij), atom i receives
mean_j silu(W silu(e_ij) + w). A z and B z are products of atoms, not of pairs. What the features of the distance
contribute is looked up, or where there are few pairs computed once for both directions, for cosines are even and sines
odd in d: see :mod:`headwater_bfn_crys.lookup`. Crystals of one size lie together, so that nothing is padded.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from headwater_bfn_crys.layout import Layout
from headwater_bfn_crys.lookup import Terms, weighted_sums

__all__ = ["messages", "messages_fused"]

COLUMNS = 128
"""Columns of the looked-up rows taken at a time, so that the table stays in the cache of a core."""


def messages(
    layout: Layout, a: Tensor, b: Tensor, cosine: Tensor, sine: Tensor,
    even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor,
) -> Tensor:  # fmt: skip
    """What each atom receives, (V, H), in plain operations: for compilers, reduced precision and other devices.

    Args:
        layout: of the batch.
        a: (V, H), A z.
        b: (V, H), B z plus all that is the same for the pairs of a crystal.
        cosine: (P, 3F), cos(k d) of the unordered pairs i < j with d = x_j - x_i.
        sine: (P, 3F), sin(k d).
        even: (H, 3F), D_c.
        odd: (H, 3F), D_s.
        weight: (H, H), W.
        bias: (H,), w.
    """
    own = even.sum(1)
    parts = []
    for g in layout.groups:
        n, size, width = g.crystals, g.size, len(own)
        i, j = torch.triu_indices(size, size, 1, device=a.device)
        self_pairs = torch.arange(size, device=a.device)
        first, second = torch.cat([i, j, self_pairs]), torch.cat([j, i, self_pairs])
        c = linear(cosine[g.pairs], even).view(n, -1, width)
        s = linear(sine[g.pairs], odd).view(n, -1, width)
        e = torch.cat([c + s, c - s, own.to(c.dtype).expand(n, size, width)], 1)
        e = e + a[g.atoms].view(n, size, width)[:, first] + b[g.atoms].view(n, size, width)[:, second]
        m = silu(linear(silu(e), weight, bias))
        place = (first * size + second).argsort()  # row by row, so that the sum over j is one over neighbours
        parts.append(m[:, place].view(n * size, size, width).mean(1))
    return torch.cat(parts)


def _columns(width: int) -> list[slice]:
    return [slice(begin, min(begin + COLUMNS, width)) for begin in range(0, width, COLUMNS)]


class _Messages(torch.autograd.Function):
    """:func:`messages` chunk by chunk with its gradient written out: what is worked on stays in the cache."""

    @staticmethod
    def forward(
        ctx: Any, layout: Layout, terms: Terms, values: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        out = torch.empty_like(a)
        width = a.shape[1]
        columns = _columns(width)
        tables = [torch.cat([values[:, some], a[:, some], b[:, some]]) for some in columns]
        keep = any(ctx.needs_input_grad)
        edges = [weighted_sums(terms.rows, terms.weights, table) for table in tables] if keep else []
        kept: list[Tensor] = []
        scratch = a.new_empty(max(chunk.edges.stop - chunk.edges.start for chunk in layout.chunks), width)
        for chunk in layout.chunks:
            hidden = scratch[: chunk.edges.stop - chunk.edges.start]
            for k, some in enumerate(columns):
                if keep:
                    e = edges[k][chunk.edges]
                else:
                    e = weighted_sums(terms.rows[chunk.edges], terms.weights[chunk.edges], tables[k])
                torch.ops.aten.silu.out(e, out=hidden[:, some])
            pre = torch.addmm(bias, hidden, weight.t())
            m = silu(pre) if keep else silu(pre, inplace=True)
            torch.mean(m.view(-1, chunk.size, width), 1, out=out[chunk.atoms])
            if keep:
                kept.append(pre)
        ctx.layout, ctx.terms, ctx.rows = layout, terms, len(values)
        ctx.save_for_backward(weight, *edges, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        layout, width = ctx.layout, g.shape[1]
        columns = _columns(width)
        weight, *saved = ctx.saved_tensors
        edges, kept = saved[: len(columns)], saved[len(columns) :]
        gweight, gbias = torch.zeros_like(weight), g.new_zeros(width)
        # Fresh memory costs more than what is done with it. So gradients are written over what was kept for them, and
        # what is cheap is computed again, in one place for all chunks.
        scratch = torch.empty_like(max(kept, key=len))
        for chunk, pre in zip(layout.chunks, kept, strict=True):
            hidden = scratch[: len(pre)]
            for some, all_edges in zip(columns, edges, strict=True):
                torch.ops.aten.silu.out(all_edges[chunk.edges], out=hidden[:, some])
            given = (g[chunk.atoms] / chunk.size).unsqueeze(1).expand(-1, chunk.size, -1)
            grid = pre.view(given.shape)
            torch.ops.aten.silu_backward(given, grid, grad_input=grid)
            gbias += pre.sum(0)
            gweight.addmm_(pre.t(), hidden)
            torch.mm(pre, weight, out=hidden)
            for some, all_edges in zip(columns, edges, strict=True):
                e = all_edges[chunk.edges]
                torch.ops.aten.silu_backward(hidden[:, some], e, grad_input=e)
        sizes = [ctx.rows, layout.atoms, layout.atoms]
        of_row, begins, weights = ctx.terms.transposed
        found = [g.new_empty(rows, width) for rows in sizes]
        for some, all_edges in zip(columns, edges, strict=True):
            sums = weighted_sums(of_row, weights, all_edges, begins)
            for target, source in zip(found, sums.split(sizes), strict=True):
                target[:, some] = source
        return None, None, *found, gweight, gbias


def messages_fused(
    layout: Layout, terms: Terms, values: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """As :func:`messages`, for the CPU, with ``values`` the rows of f that ``terms`` refers to."""
    out: Tensor = _Messages.apply(layout, terms, values, a, b, weight, bias)
    return out
