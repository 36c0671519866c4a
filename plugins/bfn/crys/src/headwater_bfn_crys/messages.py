"""The messages of a layer: for every atom the mean over all atoms of its crystal of a perceptron of the pair.

With e_ij = A z_i + B z_j + C (lattice) + D_c cos(k d_ij) + D_s sin(k d_ij), atom i receives
mean_j silu(W silu(e_ij) + w). Three things make this cheap. A z and B z are products of atoms, not of pairs. The cosine
is even and the sine is odd in d, so D_c cos and D_s sin of the pair (i, j) give both directions, c + s and c - s. And
crystals of one size lie together, so that handing out a and b to pairs, and the mean over j, are products with one
small matrix for all of them.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

__all__ = ["Chunk", "Layout", "messages", "messages_fused"]

EDGES_AT_ONCE = 1024
"""Pairs worked on at a time: at width 512 two buffers of them stay in the cache of a core."""

SMALL = 32
"""Crystals of at most so many atoms are summed by products; in larger ones these would cost more than they save."""


@dataclass(frozen=True)
class Chunk:
    """``crystals`` crystals of ``size`` atoms each, and where their atoms, pairs and cells begin."""

    crystals: int
    size: int
    first_crystal: int
    first_atom: int
    first_pair: int

    @property
    def atoms(self) -> slice:
        """Their atoms among all."""
        return slice(self.first_atom, self.first_atom + self.crystals * self.size)

    @property
    def pairs(self) -> slice:
        """Their unordered pairs of different atoms among all."""
        return slice(self.first_pair, self.first_pair + self.crystals * (self.size * (self.size - 1) // 2))

    @property
    def cells(self) -> slice:
        """Their crystals among all."""
        return slice(self.first_crystal, self.first_crystal + self.crystals)


class Layout:
    """How atoms lie in a batch: crystals one after another, those of one size together.

    Args:
        num_atoms: atoms in each crystal.

    Example:
        >>> layout = Layout([1, 3, 3])
        >>> layout.atoms, layout.pairs, [(c.crystals, c.size) for c in layout.chunks]
        (7, 6, [(1, 1), (2, 3)])
    """

    def __init__(self, num_atoms: Sequence[int], edges_at_once: int = EDGES_AT_ONCE) -> None:
        self.num_atoms = tuple(int(n) for n in num_atoms)
        self.chunks: list[Chunk] = []
        self.groups: list[Chunk] = []
        crystal = atom = pair = 0
        for size, count in _runs(self.num_atoms):
            self.groups.append(Chunk(count, size, crystal, atom, pair))
            step = max(1, edges_at_once // (size * size))
            for begin in range(0, count, step):
                some = min(step, count - begin)
                self.chunks.append(Chunk(some, size, crystal, atom, pair))
                crystal, atom = crystal + some, atom + some * size
                pair += some * (size * (size - 1) // 2)
        self.crystals, self.atoms, self.pairs = crystal, atom, pair

    def crystal_of(self, device: torch.device) -> Tensor:
        """The crystal of each atom, (V,)."""
        counts = torch.tensor(self.num_atoms, device=device)
        return torch.repeat_interleave(torch.arange(self.crystals, device=device), counts, output_size=self.atoms)

    def mean_over_atoms(self, x: Tensor) -> Tensor:
        """The mean over the atoms of each crystal, (V, H) to (B, H)."""
        return torch.cat([x[g.atoms].view(g.crystals, g.size, -1).mean(1) for g in self.groups])

    def differences(self, x: Tensor) -> Tensor:
        """x_j - x_i for all unordered pairs i < j of a crystal, (V, 3) to (P, 3)."""
        parts = []
        for g in self.groups:
            i, j = torch.triu_indices(g.size, g.size, 1, device=x.device)
            grid = x[g.atoms].view(g.crystals, g.size, -1)
            parts.append((grid[:, j] - grid[:, i]).flatten(0, 1))
        return torch.cat(parts)


def _runs(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    begin = 0
    for k in range(1, len(sizes) + 1):
        if k == len(sizes) or sizes[k] != sizes[begin]:
            yield sizes[begin], k - begin
            begin = k


@functools.lru_cache(maxsize=256)
def _ends(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """i and j of all pairs of a crystal in the order used here: i < j, the same the other way round, i = i."""
    i, j = torch.triu_indices(size, size, 1, device=device)
    own = torch.arange(size, device=device)
    return torch.cat([i, j, own]), torch.cat([j, i, own])


@functools.lru_cache(maxsize=256)
def _incidence(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size^2, 2 size): a one at i and at size + j in the row of the pair (i, j)."""
    i, j = _ends(size, device)
    matrix = torch.zeros(size * size, 2 * size, dtype=dtype, device=device)
    rows = torch.arange(size * size, device=device)
    matrix[rows, i] = 1
    matrix[rows, size + j] = 1
    return matrix


def _hand_out(ab: Tensor, size: int, out: Tensor) -> None:
    """Add a_i + b_j to every pair: ``ab`` (n, 2 size, H) to ``out`` (n, size^2, H)."""
    if size <= SMALL:
        matrix = _incidence(size, ab.dtype, ab.device)
        out.baddbmm_(matrix.expand(len(ab), -1, -1), ab)
    else:
        i, j = _ends(size, ab.device)
        out += ab.index_select(1, i)
        out += ab.index_select(1, size + j)


def _collect(x: Tensor, size: int) -> Tensor:
    """The sums over j for every i, and over i for every j: (n, size^2, H) to (n, 2 size, H)."""
    if size <= SMALL:
        return _incidence(size, x.dtype, x.device).t().expand(len(x), -1, -1) @ x
    i, j = _ends(size, x.device)
    total = x.new_zeros(len(x), 2 * size, x.shape[2])
    return total.index_add_(1, i, x).index_add_(1, size + j, x)


def messages(
    layout: Layout, a: Tensor, b: Tensor, cosine: Tensor, sine: Tensor,
    even: Tensor, odd: Tensor, weight: Tensor, bias: Tensor,
) -> Tensor:  # fmt: skip
    """What each atom receives, (V, H), in plain operations: for compilers, reduced precision and other devices.

    Args:
        layout: of the batch.
        a: (V, H), A z.
        b: (V, H), B z plus all that is the same for the pairs of a crystal.
        cosine: (P, F), cos(k d) of the unordered pairs i < j with d = x_j - x_i.
        sine: (P, F), sin(k d).
        even: (H, F), D_c.
        odd: (H, F), D_s.
        weight: (H, H), W.
        bias: (H,), w.
    """
    own = even.sum(1)
    parts = []
    for g in layout.groups:
        n, size, width = g.crystals, g.size, len(own)
        i, j = _ends(size, a.device)
        c = linear(cosine[g.pairs], even).view(n, -1, width)
        s = linear(sine[g.pairs], odd).view(n, -1, width)
        e = torch.cat([c + s, c - s, own.to(c.dtype).expand(n, size, width)], 1)
        e = e + a[g.atoms].view(n, size, width)[:, i] + b[g.atoms].view(n, size, width)[:, j]
        m = silu(linear(silu(e), weight, bias))
        place = (i * size + j).argsort()  # row by row, so that the sum over j is one over neighbours
        parts.append(m[:, place].view(n * size, size, width).mean(1))
    return torch.cat(parts)


def _beside(a: Tensor, b: Tensor, chunk: Chunk) -> Tensor:
    """a and b of a chunk's atoms, (n, 2 size, H)."""
    shape = (chunk.crystals, chunk.size, a.shape[1])
    return torch.cat([a[chunk.atoms].view(shape), b[chunk.atoms].view(shape)], 1)


class _Messages(torch.autograd.Function):
    """:func:`messages` chunk by chunk with its gradient written out: what is worked on stays in the cache."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, *inputs: Tensor) -> Tensor:
        a, b, cosine, sine, even, odd, weight, bias = inputs
        out = torch.empty_like(a)
        own = even.sum(1)
        width = len(own)
        keep = any(ctx.needs_input_grad)
        most = max(chunk.crystals * chunk.size**2 for chunk in layout.chunks)
        scratch = None if keep else (a.new_empty(most, width), a.new_empty(most, width))
        kept: list[Tensor] = []
        for chunk in layout.chunks:
            n, size = chunk.crystals, chunk.size
            edges, pairs = n * size * size, size * (size - 1) // 2
            e, pre = (buffer[:edges] for buffer in scratch or (a.new_empty(edges, width), a.new_empty(edges, width)))
            grid = e.view(n, size * size, width)
            c = linear(cosine[chunk.pairs], even).view(n, pairs, width)
            s = linear(sine[chunk.pairs], odd).view(n, pairs, width)
            torch.add(c, s, out=grid[:, :pairs])
            torch.sub(c, s, out=grid[:, pairs : 2 * pairs])
            grid[:, 2 * pairs :] = own
            _hand_out(_beside(a, b, chunk), size, grid)
            hidden = silu(e) if keep else silu(e, inplace=True)
            torch.addmm(bias, hidden, weight.t(), out=pre)
            m = silu(pre) if keep else silu(pre, inplace=True)
            sums = _collect(m.view(n, size * size, width), size)[:, :size]
            torch.div(sums, size, out=out[chunk.atoms].view(n, size, width))
            if keep:
                kept += [e, hidden, pre]
        ctx.layout = layout
        ctx.save_for_backward(a, cosine, sine, even, odd, weight, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        a, cosine, sine, even, odd, weight = ctx.saved_tensors[:6]
        kept = ctx.saved_tensors[6:]
        ga, gb = torch.empty_like(a), torch.empty_like(a)
        geven, godd, gweight = (torch.zeros_like(w) for w in (even, odd, weight))
        gown, gbias = a.new_zeros(a.shape[1]), a.new_zeros(a.shape[1])
        width = a.shape[1]
        for k, chunk in enumerate(ctx.layout.chunks):
            e, hidden, pre = kept[3 * k : 3 * k + 3]
            n, size, pairs = chunk.crystals, chunk.size, chunk.size * (chunk.size - 1) // 2
            given = g[chunk.atoms].view(n, size, width) / size
            gpre = given.index_select(1, _ends(size, g.device)[0]).view(-1, width)
            torch.ops.aten.silu_backward(gpre, pre, grad_input=gpre)
            gbias += gpre.sum(0)
            gweight.addmm_(gpre.t(), hidden)
            ge = gpre @ weight
            torch.ops.aten.silu_backward(ge, e, grad_input=ge)
            grid = ge.view(n, size * size, width)
            sums = _collect(grid, size)
            ga[chunk.atoms] = sums[:, :size].flatten(0, 1)
            gb[chunk.atoms] = sums[:, size:].flatten(0, 1)
            gown += grid[:, 2 * pairs :].sum((0, 1))
            forth, back = grid[:, :pairs], grid[:, pairs : 2 * pairs]
            geven.addmm_((forth + back).view(-1, width).t(), cosine[chunk.pairs])
            godd.addmm_((forth - back).view(-1, width).t(), sine[chunk.pairs])
        return None, ga, gb, None, None, geven + gown.unsqueeze(1), godd, gweight, gbias


def messages_fused(layout: Layout, *inputs: Tensor) -> Tensor:
    """As :func:`messages`, with the same arguments, for the CPU; no gradient goes into ``cosine`` and ``sine``."""
    out: Tensor = _Messages.apply(layout, *inputs)
    return out
