"""Both networks, dense over the pairs of atoms: ``molgen`` (v3, equivariant) and ``tsgen`` (v1, as published).

The published networks run over edge lists of all three structures and throw away what they compute on reactant and
product. Here only the transition state is moved, pairs are (B, N, N) tensors indexed [batch, receiver j, sender i], and
what depends on reactant and product alone is computed once a reaction by ``prepare`` and used in the whole solve.

Three rewritings save most of the work and change nothing but rounding. A linear layer on [f_i, f_j, a_ij] is a sum of
three linear layers, two of them on atoms. f_i depends on the element alone, so it is a table. A sum over senders of
(W u_ij) * f_i is W applied to sums of u_ij over the senders of each element, times that element's f.

Shapes: B reactions, N atoms, K elements, d and e the widths of atoms and pairs, H heads.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot, silu

__all__ = ["CUTOFF", "Context", "MolGen", "Potential", "TSGen", "radial_basis"]

CUTOFF = 12.0
"""Distance in Angstrom beyond which atoms do not see each other."""

UNSEEN = -1e30


class Context(NamedTuple):
    """What stays the same along the solve of a batch of reactions.

    ``species`` (B, N) numbers the element of each atom, ``mask`` (B, N) is true at atoms, ``together`` (B, N, N) at
    pairs of one fragment; both are ``None`` where they would be all true. ``cached`` depends on the network.
    """

    species: Tensor
    mask: Tensor | None
    together: Tensor | None
    cached: tuple[Tensor, ...]

    def rows(self, rows: Tensor) -> "Context":
        """Some of the reactions, in any order and as often as wanted."""
        mask, together = (None if x is None else x[rows] for x in (self.mask, self.together))
        return Context(self.species[rows], mask, together, tuple(x[rows] for x in self.cached))

    def repeat(self, times: int) -> "Context":
        """Each reaction ``times`` times in a row."""
        rows = torch.arange(len(self.species), device=self.species.device)
        return self.rows(rows.repeat_interleave(times))


def norm_of(x: Tensor, dim: int) -> Tensor:
    """The Euclidean norm along ``dim``; its gradient is 0 at 0, and it is several times as fast as torch's own."""
    return x.square().sum(dim).clamp(min=1e-24).sqrt()


def constant(table: Any) -> Tensor:
    """The middle row of one of the published tables of three, the only one that is ever used."""
    row: Tensor = table.weight[1]
    return row


class Perceptron(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, n_in: int, hidden: int, n_out: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(n_in, hidden), nn.Linear(hidden, n_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(silu(self.first(x)))
        return out


class Layer(nn.Module):
    """Attention and feed-forward on scalars h (B, N, d) and vectors v (B, N, 3, d), both residual, norms first.

    logit_ji = q_j k_i / sqrt(d / H) - |x_i - x_j| + bias(a_ij), softmax over the senders i; heads are blocks of d / H
    channels, of the vectors too.
    """

    def __init__(self, d: int, e: int, heads: int, ff: int) -> None:
        super().__init__()
        self.heads, self.ff = heads, ff
        self.norm1, self.norm2, self.norm = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.bias = Perceptron(e, e, heads)
        self.value = nn.Parameter(torch.empty(d, d))  # applied from the right, as are the next three
        self.out_h, self.out_v = nn.Parameter(torch.empty(d, d)), nn.Parameter(torch.empty(d, d))
        self.mix = nn.Parameter(torch.empty(d, 2 * d))
        self.inner = nn.Linear(2 * d, 2 * ff)
        self.outer1, self.outer2 = nn.Linear(ff, d), nn.Linear(ff, d)
        for weight in (self.value, self.out_h, self.out_v, self.mix[:, :d], self.mix[:, d:]):
            nn.init.uniform_(weight, -1 / math.sqrt(d), 1 / math.sqrt(d))

    def forward(self, h: Tensor, v: Tensor, a: Tensor, near: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            h: scalars (B, N, d).
            v: vectors (B, N, 3, d).
            a: pair features (B, N, N, e).
            near: -|x_i - x_j| where i sends to j, and a very low number where it does not (B, N, N).
            seen: 1 where an atom has a neighbour and 0 where it has none (B, N, 1).
        """
        b, n, d = h.shape
        heads, size = self.heads, d // self.heads
        q, k, value = self.qkv(self.norm1(h)).view(b, n, 3, heads, size).unbind(2)
        logits = self.bias(a).permute(0, 3, 1, 2) + near.unsqueeze(1)
        logits = logits + (q * size**-0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)
        values = torch.cat([value.unsqueeze(2), (v @ self.value).view(b, n, 3, heads, size)], 2)
        got = logits.softmax(-1) @ values.permute(0, 3, 1, 2, 4).reshape(b, heads, n, 4 * size)
        got = got.view(b, heads, n, 4, size).permute(0, 2, 3, 1, 4).reshape(b, n, 4, d) * seen.unsqueeze(-1)
        h = h + got[:, :, 0] @ self.out_h
        v = v + got[:, :, 1:] @ self.out_v
        v1, v2 = (v @ self.mix).split(d, -1)
        length = norm_of(v1, 2)
        u1, u2 = silu(self.inner(torch.cat([self.norm2(h), length], -1))).split(self.ff, -1)
        return h + self.outer1(u1), v + self.norm(self.outer2(u2)).unsqueeze(2) * v2


class Network(nn.Module):
    """What both generations share: atoms, messages, time, layers and the read-out."""

    frequencies: Tensor

    def __init__(self, n_species: int, d: int, e: int, layers: int, heads: int, ff: int, *, scalar: bool) -> None:
        super().__init__()
        if d % heads or d % 2:
            raise ValueError(f"the width {d} must be even and a multiple of the {heads} heads")
        self.n_species, self.d, self.e = n_species, d, e
        self.atom = nn.Linear(n_species, d)
        self.phi_s, self.phi_v = Perceptron(2 * d + e, e, d), Perceptron(2 * d + e, e, d)
        self.phi_h = Perceptron(2 * d, e, d)
        self.register_buffer("frequencies", torch.randn(1, d // 2))
        self.time = Perceptron(d, e, d)
        self.layers = nn.ModuleList(Layer(d, e, heads, ff) for _ in range(layers))
        self.out = nn.Parameter(torch.randn(d, 1))
        self.scalar = scalar

    def elements(self, context: Context) -> Tensor:
        """One-hot elements (B, N, K) in the network's precision."""
        return one_hot(context.species, self.n_species).to(self.out.dtype)

    def pairs(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors x_i - x_j (B, N, N, 3), their lengths (B, N, N), and where atom i sends to atom j."""
        vectors = x.unsqueeze(1) - x.unsqueeze(2)
        lengths = norm_of(vectors, -1)
        keep = (lengths < CUTOFF) & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        if context.mask is not None:
            keep = keep & context.mask.unsqueeze(1) & context.mask.unsqueeze(2)
        return vectors, lengths, keep

    def messages(self, context: Context, a: Tensor, vectors: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The first scalars (B, N, d) and vectors (B, N, 3, d), from pair features ``a`` (B, N, N, e).

        With f the embedded elements and s_ij = [f_i, f_j, a_ij]:
        h_j = phi_h([f_j, sum_i phi_s(s_ij) * f_i]) and v_j = sum_i (x_i - x_j) phi_v(s_ij).
        """
        d, e = self.d, self.e
        f = self.atom.weight.T + self.atom.bias
        first = torch.cat([self.phi_s.first.weight, self.phi_v.first.weight])
        bias = torch.cat([self.phi_s.first.bias, self.phi_v.first.bias])
        sender = linear(f, first[:, :d])[context.species]
        receiver = linear(f, first[:, d : 2 * d], bias)[context.species]
        u = silu(linear(a, first[:, 2 * d :]) + sender.unsqueeze(1) + receiver.unsqueeze(2))
        w = keep.to(a.dtype)
        senders = w.unsqueeze(2) * self.elements(context).mT.unsqueeze(1)
        sums = (senders @ u[..., :e]).flatten(2)
        last = (self.phi_s.last.weight.T * f.unsqueeze(1)).flatten(0, 1)
        heard = sums @ last + senders.sum(-1) @ (self.phi_s.last.bias * f)
        own = linear(f, self.phi_h.first.weight[:, :d], self.phi_h.first.bias)[context.species]
        h = self.phi_h.last(silu(own + linear(heard, self.phi_h.first.weight[:, d:])))
        arrows = (vectors * w.unsqueeze(-1)).mT
        v = linear(arrows @ u[..., e:], self.phi_v.last.weight)
        return h, v + arrows.sum(-1, keepdim=True) * self.phi_v.last.bias

    def at_time(self, t: Tensor, n: int) -> Tensor:
        """The embedding of times (B,) or () as (B, 1, d)."""
        angle = 2 * math.pi * t.reshape(-1, 1) * self.frequencies
        embedded: Tensor = self.time(torch.cat([angle.cos(), angle.sin()], -1))
        return embedded.expand(n, -1).unsqueeze(1)

    def process(self, h: Tensor, v: Tensor, a: Tensor, lengths: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """All layers."""
        near = torch.where(keep, -lengths, UNSEEN)
        seen = keep.any(-1, keepdim=True).to(h.dtype)
        for layer in self.layers:
            h, v = layer(h, v, a, near, seen)
        return h, v

    def read_out(self, h: Tensor, v: Tensor, context: Context) -> Tensor:
        """Velocities (B, N, 3), 0 at padding; or one number a molecule (B,), the sum over its atoms."""
        out = (h if self.scalar else v) @ self.out
        if context.mask is not None:
            out = out * context.mask.view(*context.mask.shape, *[1] * (out.ndim - 2))
        return out.sum((1, 2)) if self.scalar else out.squeeze(-1)


class TSGen(Network):
    """v1 (TS-GEN): scalars see raw coordinates, so it works only in the frame of its data (neither rotation nor
    translation equivariant).

    With ``scalar`` it is the published potential model: one energy a structure instead of a velocity for each atom.
    """

    def __init__(
        self,
        n_species: int = 5,
        d: int = 384,
        e: int = 64,
        layers: int = 5,
        heads: int = 4,
        ff: int = 64,
        *,
        conditioned: bool = True,
        scalar: bool = False,
    ) -> None:
        super().__init__(n_species, d, e, layers, heads, ff, scalar=scalar)
        self.conditioned = conditioned
        self.bond = Perceptron(4, e, e)
        # Of the reactant and of the product: coordinates and a constant, to scalars (d) and to vectors (3 x d).
        self.condition_h = nn.ModuleList(nn.Linear(3, d) for _ in range(2))
        self.condition_v = nn.ModuleList(nn.Linear(3, 3 * d) for _ in range(2))
        self.given_h = nn.ModuleList(nn.Embedding(3, d) for _ in range(2))
        self.given_v = nn.ModuleList(nn.Embedding(3, 3 * d) for _ in range(2))

    def prepare(
        self,
        species: Tensor,
        reactant: Tensor | None,
        product: Tensor | None,
        mask: Tensor | None = None,
        fragment: Tensor | None = None,
    ) -> Context:
        """The context of a batch; without reactant and product the network is not conditioned.

        ``fragment`` is taken for the sake of :class:`MolGen` and not used.
        """
        if reactant is None or product is None or not self.conditioned:
            return Context(species, mask, None, ())
        ends = (reactant, product)
        h: Any = sum(f(x) + constant(c) for x, f, c in zip(ends, self.condition_h, self.given_h, strict=True))
        v: Any = sum(f(x) + constant(c) for x, f, c in zip(ends, self.condition_v, self.given_v, strict=True))
        return Context(species, mask, None, (h, v.unflatten(-1, (self.d, 3)).mT))

    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Velocity (B, N, 3) at ``x`` (B, N, 3) and time ``t`` (B,) or (); an energy (B,) with ``scalar``."""
        vectors, lengths, keep = self.pairs(x, context)
        w = self.bond.first.weight
        place = linear(x, w[:, :3])
        a = place.unsqueeze(1) - place.unsqueeze(2) + lengths.unsqueeze(-1) * w[:, 3] + self.bond.first.bias
        a = self.bond.last(silu(a))
        h, v = self.messages(context, a, vectors, keep)
        h = h + self.at_time(t, len(x))
        if context.cached:
            h, v = h + context.cached[0], v + context.cached[1]
        return self.read_out(*self.process(h, v, a, lengths, keep), context)


class Potential(TSGen):
    """v1's potential model: the barrier E(TS) - E(reactant) of a structure under a reaction."""

    def __init__(self, n_species: int = 5, d: int = 384, e: int = 64, layers: int = 5, heads: int = 4, ff: int = 64):
        super().__init__(n_species, d, e, layers, heads, ff, scalar=True)


def radial_basis(r: Tensor, means: Tensor, betas: Tensor) -> Tensor:
    """g_k(r) = (cos(pi r / 12) + 1) / 2 * exp(-beta_k (exp(-r) - mean_k)^2) for r < 12, else 0: (...) -> (..., K)."""
    envelope = 0.5 * (torch.cos(math.pi / CUTOFF * r) + 1.0) * (r < CUTOFF)
    return envelope.unsqueeze(-1) * torch.exp(-betas * (torch.exp(-r).unsqueeze(-1) - means).square())


CHANNELS: Sequence[int] = (64, 48, 8)
"""Invariants of degree l = 0, 1, 2."""


class EdgeBlock(nn.Module):
    """Invariants of a pair: a tensor product of the sender's scalars with the pair's spherical harmonics, then norms.

    The sender carries scalars only, so the product of degree l is C_l Y_l(direction) with
    C_l = sum_uv n_u w_lv W_l,uv / sqrt(512), and the norm of Y_l is sqrt(2 l + 1): the 120 invariants
    [C_0, sqrt(3) |C_1|, sqrt(5) |C_2|] depend on the distance and the sender's element alone.
    """

    NODE, RADIAL, HIDDEN, MULTIPLICITY = 128, 96, 32, 4

    means: Tensor
    betas: Tensor

    def __init__(self, n_species: int) -> None:
        super().__init__()
        k, m = self.RADIAL, self.MULTIPLICITY
        self.n_species = n_species
        self.embed = nn.Sequential(
            nn.Linear(n_species, self.NODE, bias=False), nn.SiLU(), nn.Linear(self.NODE, self.NODE)
        )
        self.radial = nn.ModuleList(Perceptron(k, self.HIDDEN, m) for _ in CHANNELS)
        self.weights = nn.ParameterList(torch.randn(self.NODE, m, c) for c in CHANNELS)
        low = math.exp(-CUTOFF)
        self.register_buffer("means", torch.linspace(low, 1.0, k))
        self.register_buffer("betas", torch.full((k,), (2.0 / k * (1.0 - low)) ** -2))

    def table(self) -> Tensor:
        """From the radial weights of all degrees to the invariants, for each element (K, 3 * 4, 120)."""
        node = self.embed(torch.eye(self.n_species, dtype=self.means.dtype, device=self.means.device))
        norm = [math.sqrt((2 * degree + 1) / (self.NODE * self.MULTIPLICITY)) for degree in range(len(CHANNELS))]
        blocks = [torch.einsum("ku,uvc->kvc", node, w) * c for w, c in zip(self.weights, norm, strict=True)]
        return torch.stack([torch.block_diag(*(block[k] for block in blocks)) for k in range(len(node))])

    def forward(self, lengths: Tensor, elements: Tensor) -> Tensor:
        """Invariants (B, N, N, 120) of pairs at ``lengths`` (B, N, N) from senders of ``elements`` (B, N, K)."""
        basis = radial_basis(lengths, self.means, self.betas)
        radial: Any = list(self.radial)
        hidden = silu(
            linear(basis, torch.cat([p.first.weight for p in radial]), torch.cat([p.first.bias for p in radial]))
        )
        last = torch.block_diag(*(p.last.weight for p in radial))
        weights = linear(hidden, last, torch.cat([p.last.bias for p in radial]))
        # One row of the table a sender: its element's one-hot, spread over the weights, picks it.
        spread = (elements[:, None, :, :, None] * weights.unsqueeze(-2)).flatten(-2)
        c = spread @ self.table().flatten(0, 1)
        return torch.cat([c[..., : CHANNELS[0]], c[..., CHANNELS[0] :].abs()], -1)


class MolGen(Network):
    """v3 (MolGEN): the reactant and the product enter by their distances, so the velocity turns with the input and does
    not change when reactant or product is moved (or mirrored).

    Fragments: atoms of one connected piece exchange geometry; between pieces only a scalar message passes, which knows
    that the others are there and not where.
    """

    def __init__(
        self,
        n_species: int = 5,
        d: int = 256,
        layers: int = 6,
        heads: int = 8,
        ff: int = 768,
        *,
        conditioned: bool = True,
    ) -> None:
        super().__init__(n_species, d, d, layers, heads, ff, scalar=False)
        self.conditioned = conditioned
        self.edge = EdgeBlock(n_species)
        self.bond = Perceptron(3 * sum(CHANNELS), d, d)
        self.cross_s, self.cross_h = Perceptron(2 * d, d, d), Perceptron(2 * d, d, d)
        self.fuse = Perceptron(2 * d, d, d)
        self.given_h = nn.ModuleList(nn.Embedding(3, d) for _ in range(2))

    def prepare(
        self,
        species: Tensor,
        reactant: Tensor,
        product: Tensor,
        mask: Tensor | None = None,
        fragment: Tensor | None = None,
    ) -> Context:
        """The context of a batch: what the pair features get from reactant and product (B, N, N, d).

        As published, the edge block learns from the transition state alone: no gradient passes into it here.
        """
        context = Context(species, mask, None, ())
        n = sum(CHANNELS)
        static = self.bond.first.bias.view(1, 1, 1, -1)
        if self.conditioned:
            with torch.no_grad():
                elements = self.elements(context)
                ends = [self.edge(norm_of(x.unsqueeze(1) - x.unsqueeze(2), -1), elements) for x in (reactant, product)]
            static = linear(torch.cat(ends, -1), self.bond.first.weight[:, n:], self.bond.first.bias)
        else:
            static = static.expand(len(species), 1, 1, -1)
        together = None if fragment is None else fragment.unsqueeze(1) == fragment.unsqueeze(2)
        return Context(species, mask, together, (static,))

    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Velocity (B, N, 3) at ``x`` (B, N, 3) and time ``t`` (B,) or ()."""
        vectors, lengths, keep = self.pairs(x, context)
        invariants = self.edge(lengths, self.elements(context))
        own = self.bond.first.weight[:, : sum(CHANNELS)]
        a = self.bond.last(silu(linear(invariants, own) + context.cached[0]))
        inside = keep if context.together is None else keep & context.together
        h, v = self.messages(context, a, vectors, inside)
        h = self.across(h, keep, inside, context)
        h = h + self.at_time(t, len(x)) + constant(self.given_h[0]) + constant(self.given_h[1])
        return self.read_out(*self.process(h, v, a, lengths, inside), context)

    def across(self, h: Tensor, keep: Tensor, inside: Tensor, context: Context) -> Tensor:
        """What passes between fragments: h <- fuse([h, cross_h([h, sum_i cross_s([h_i, h_j])])])."""
        if context.together is None:
            heard: Any = torch.zeros_like(h)
        else:
            outside = (keep & ~inside).to(h.dtype)
            first, d = self.cross_s.first, self.d
            sender, receiver = linear(h, first.weight[:, :d]), linear(h, first.weight[:, d:], first.bias)
            u = silu(sender.unsqueeze(1) + receiver.unsqueeze(2))
            sums = (outside.unsqueeze(2) @ u).squeeze(2)
            heard = linear(sums, self.cross_s.last.weight) + outside.sum(-1, keepdim=True) * self.cross_s.last.bias
        return self.fuse(torch.cat([h, self.cross_h(torch.cat([h, heard], -1))], -1))
