"""The published networks of TS-GEN and MolGEN, written plainly: the other contestant of ``tsgen_speed.py``.

As published: edge lists over all three structures of a reaction, concatenated inputs of every perceptron, sums by
scattering, and (MolGEN) the full tensor product of each edge with its spherical harmonics, for all three geometries,
in every call. Parameters have the official names, so the converter turns a plain network into ours. Left out is the
published search for periodic neighbours (27 images of every pair in a box of 200 A), which costs time and changes
nothing.
"""

import math

import torch
from torch import Tensor, nn

CUTOFF = 12.0


def scatter(values: Tensor, index: Tensor, n: int) -> Tensor:
    """Sums of ``values`` (E, ...) by receiver, (n, ...)."""
    return values.new_zeros(n, *values.shape[1:]).index_add(0, index, values)


class Mlp(nn.Module):
    def __init__(self, n_in: int, hidden: int, n_out: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(n_in, hidden), nn.SiLU(), nn.Linear(hidden, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class TimeEmbedding(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("B", torch.randn(1, d // 2))

    def forward(self, t: Tensor) -> Tensor:
        angle = 2 * math.pi * t[:, None] @ self.B
        return torch.cat([angle.cos(), angle.sin()], -1)


class Attention(nn.Module):
    def __init__(self, d: int, e: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.W_Q, self.W_K, self.W_Vh = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.W_Vv, self.W_Oh, self.W_Ov = (nn.Parameter(torch.empty(d, d)) for _ in range(3))
        for w in (self.W_Vv, self.W_Oh, self.W_Ov):
            nn.init.kaiming_uniform_(w, a=math.sqrt(5))
        self.edge_bias = Mlp(e, e, heads)

    def forward(self, h: Tensor, v: Tensor, edges: Tensor, a: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        i, j = edges
        n, d = h.shape
        heads, size = self.heads, d // self.heads
        q, k, value = (w(h).view(n, heads, size) for w in (self.W_Q, self.W_K, self.W_Vh))
        vectors = torch.einsum("ndx,de->nex", v, self.W_Vv).reshape(n, heads, size, 3)
        logits = (q[j] * k[i]).sum(-1) / math.sqrt(size) - length[:, None] + self.edge_bias(a)
        top = logits.new_full((n, heads), -torch.inf).index_reduce(0, j, logits.detach(), "amax")
        weight = (logits - top[j]).exp()
        weight = weight / (scatter(weight, j, n)[j] + 1e-12)
        dh = scatter(weight[..., None] * value[i], j, n).reshape(n, d)
        dv = scatter(weight[..., None, None] * vectors[i], j, n).reshape(n, d, 3)
        return dh @ self.W_Oh, torch.einsum("ndx,de->nex", dv, self.W_Ov)


class FeedForward(nn.Module):
    def __init__(self, d: int, ff: int) -> None:
        super().__init__()
        self.W1, self.W2 = nn.Parameter(torch.empty(d, d)), nn.Parameter(torch.empty(d, d))
        for w in (self.W1, self.W2):
            nn.init.kaiming_uniform_(w, a=math.sqrt(5))
        self.ffn1, self.ffn2 = Mlp(2 * d, ff, d), Mlp(2 * d, ff, d)
        self.norm = nn.LayerNorm(d)

    def forward(self, h: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v1, v2 = torch.einsum("ndx,de->nex", v, self.W1), torch.einsum("ndx,de->nex", v, self.W2)
        both = torch.cat([h, v1.norm(dim=-1)], -1)
        return self.ffn1(both), self.norm(self.ffn2(both))[..., None] * v2


class Convolution(nn.Module):
    def __init__(self, d: int, e: int, heads: int, ff: int) -> None:
        super().__init__()
        self.attn, self.feedforward = Attention(d, e, heads), FeedForward(d, ff)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, h: Tensor, v: Tensor, edges: Tensor, a: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        dh, dv = self.attn(self.norm1(h), v, edges, a, length)
        h, v = h + dh, v + dv
        dh, dv = self.feedforward(self.norm2(h), v)
        return h + dh, v + dv


class Encoder(nn.Module):
    def __init__(self, d: int, e: int, n_edge: int, *, cross: bool) -> None:
        super().__init__()
        self.embed_atom = nn.Linear(5, d)
        self.embed_bond = Mlp(n_edge, e, e)
        self.phi_s, self.phi_v, self.phi_h = Mlp(2 * d + e, e, d), Mlp(2 * d + e, e, d), Mlp(2 * d, e, d)
        self.embed_time = nn.Sequential(TimeEmbedding(d), Mlp(d, e, d))
        if cross:
            self.phi_s_cross, self.phi_h_cross, self.phi_fuse = (Mlp(2 * d, e, d) for _ in range(3))
        self.cross = cross

    def forward(
        self, onehot: Tensor, edges: Tensor, vector: Tensor, features: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        i, j = edges
        f, a, n = self.embed_atom(onehot), self.embed_bond(features), len(onehot)
        s = torch.cat([f[i], f[j], a], -1)
        h = self.phi_h(torch.cat([f, scatter(self.phi_s(s) * f[i], j, n)], -1))
        v = scatter(self.phi_v(s)[..., None] * vector[:, None, :], j, n)
        if self.cross:  # one piece: nothing passes between pieces
            h = self.phi_fuse(torch.cat([h, self.phi_h_cross(torch.cat([h, torch.zeros_like(h)], -1))], -1))
        return h + self.embed_time(t), v, a


class Processor(nn.Module):
    def __init__(self, d: int, e: int, layers: int, heads: int, ff: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Convolution(d, e, heads, ff) for _ in range(layers))


class Decoder(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.Oh, self.Ov = nn.Parameter(torch.randn(d, 0)), nn.Parameter(torch.randn(d, 1))


class Plain(nn.Module):
    """What both have in common; x (B, 3, N, 3) are reactant, transition state and product."""

    def __init__(self, d: int, e: int, n_edge: int, layers: int, heads: int, ff: int, *, cross: bool) -> None:
        super().__init__()
        self.d = d
        self.encoder = Encoder(d, e, n_edge, cross=cross)
        self.processor, self.decoder = Processor(d, e, layers, heads, ff), Decoder(d)
        self.mask_to_emb_f, self.mask_to_emb_r = nn.Embedding(3, d), nn.Embedding(3, d)

    def edges(self, x: Tensor) -> Tensor:
        """Edges (2, E) of every structure for itself, sender first."""
        _, frames, n, _ = x.shape
        near = (torch.cdist(x, x) < CUTOFF) & ~torch.eye(n, dtype=torch.bool)
        molecule, frame, i, j = near.nonzero().T
        start = (molecule * frames + frame) * n
        return torch.stack([start + i, start + j])

    def run(self, h: Tensor, v: Tensor, edges: Tensor, a: Tensor, length: Tensor, shape: torch.Size) -> Tensor:
        for layer in self.processor.convs:
            h, v = layer(h, v, edges, a, length)
        out = torch.einsum("ndx,dk->nkx", v, self.decoder.Ov).reshape(shape)
        moving = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
        return out * moving


class PlainTSGen(Plain):
    def __init__(self, d: int = 384, e: int = 64, layers: int = 5, heads: int = 4, ff: int = 64) -> None:
        super().__init__(d, e, 4, layers, heads, ff, cross=False)
        self.cond_to_emb_f, self.cond_to_emb_r = nn.Linear(3, d), nn.Linear(3, d)
        self.v_cond_to_emb_f, self.v_cond_to_emb_r = nn.Linear(3, 3 * d), nn.Linear(3, 3 * d)
        self.v_mask_to_emb_f, self.v_mask_to_emb_r = nn.Embedding(3, 3 * d), nn.Embedding(3, 3 * d)

    def forward(self, x: Tensor, t: Tensor, onehot: Tensor) -> Tensor:
        edges = self.edges(x)
        flat, t = x.reshape(-1, 3), t[:, None, None].expand(x.shape[:3]).reshape(-1)
        vector = flat[edges[0]] - flat[edges[1]]
        length = vector.norm(dim=-1)
        h, v, a = self.encoder(onehot.reshape(-1, 5), edges, vector, torch.cat([vector, length[:, None]], -1), t)
        for frame, end in ((0, "f"), (2, "r")):
            given = x[:, frame : frame + 1].expand_as(x).reshape(-1, 3)
            one = torch.ones(len(given), dtype=torch.long)
            h = h + getattr(self, f"cond_to_emb_{end}")(given) + getattr(self, f"mask_to_emb_{end}")(one)
            shift = getattr(self, f"v_cond_to_emb_{end}")(given) + getattr(self, f"v_mask_to_emb_{end}")(one)
            v = v + shift.view(-1, self.d, 3)
        return self.run(h, v, edges, a, length, x.shape)


class RadialBasis(nn.Module):
    def __init__(self, k: int = 96) -> None:
        super().__init__()
        low = math.exp(-CUTOFF)
        self.register_buffer("means", torch.linspace(low, 1, k))
        self.register_buffer("betas", torch.full((k,), (2 / k * (1 - low)) ** -2))

    def forward(self, r: Tensor) -> Tensor:
        envelope = 0.5 * (torch.cos(r * math.pi / CUTOFF) + 1) * (r < CUTOFF)
        return envelope[:, None] * torch.exp(-self.betas * (torch.exp(-r[:, None]) - self.means) ** 2)


def spherical_harmonics(u: Tensor) -> list[Tensor]:
    """Degrees 0 to 3 of directions (E, 3), each of norm sqrt(2 l + 1), as the library that was used computes them."""
    x, y, z = u.unbind(-1)
    two = torch.stack(
        [
            math.sqrt(15) * x * z,
            math.sqrt(15) * x * y,
            math.sqrt(5) * (y**2 - 0.5 * (x**2 + z**2)),
            math.sqrt(15) * y * z,
            0.5 * math.sqrt(15) * (z**2 - x**2),
        ],
        -1,
    )
    three = torch.stack(
        [
            math.sqrt(35 / 8) * x * (3 * z**2 - x**2),
            math.sqrt(105) * x * y * z,
            math.sqrt(21 / 8) * x * (4 * y**2 - x**2 - z**2),
            0.5 * math.sqrt(7) * y * (2 * y**2 - 3 * x**2 - 3 * z**2),
            math.sqrt(21 / 8) * z * (4 * y**2 - x**2 - z**2),
            0.5 * math.sqrt(105) * y * (z**2 - x**2),
            math.sqrt(35 / 8) * z * (z**2 - 3 * x**2),
        ],
        -1,
    )
    return [torch.ones_like(x)[:, None], math.sqrt(3) * u, two, three]


class TensorProduct(nn.Module):
    """128 scalars with 4 copies of degrees 0, 1, 2 to 64, 48 and 8 of them; degree 3 meets no output."""

    channels = (64, 48, 8)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(sum(128 * 4 * c for c in self.channels)))
        self.register_buffer("output_mask", torch.ones(248))

    def forward(self, node: Tensor, edge: list[Tensor]) -> Tensor:
        out, start = [], 0
        for c, irrep in zip(self.channels, edge, strict=False):
            w = self.weight[start : start + 512 * c].view(128, 4, c)
            start += 512 * c
            outer = torch.einsum("eu,evm->euvm", node, irrep)
            out.append(torch.einsum("euvm,uvw->ewm", outer, w).flatten(1) / math.sqrt(512))
        return torch.cat(out, -1)


class EdgeBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rbf_centers", torch.linspace(0, CUTOFF, 96))
        self.register_buffer("rbf_gamma", torch.tensor(1.0))
        self.rbf_to_mul = nn.ModuleList(
            nn.Sequential(nn.Linear(96, 32), nn.SiLU(), nn.Linear(32, 4)) for _ in range(4)
        )  # fmt: skip
        self.tp, self._rbf = TensorProduct(), RadialBasis()

    def forward(self, node: Tensor, edges: Tensor, vector: Tensor) -> Tensor:
        r = vector.norm(dim=-1)
        g = self._rbf(r)
        harmonics = spherical_harmonics(vector / r[:, None].clamp(min=1e-9))
        irreps = [net(g)[..., None] * y[:, None, :] for net, y in zip(self.rbf_to_mul, harmonics, strict=True)]
        message = self.tp(node[edges[0]], irreps)
        n = len(message)
        one, two = message[:, 64:208].view(n, 48, 3), message[:, 208:].view(n, 8, 5)
        return torch.cat([message[:, :64], one.norm(dim=-1), two.norm(dim=-1)], -1)


class PlainMolGen(Plain):
    def __init__(self, d: int = 256, layers: int = 6, heads: int = 8, ff: int = 768) -> None:
        super().__init__(d, d, 360, layers, heads, ff, cross=True)
        self.embed_atom = nn.Sequential(nn.Linear(5, 128, bias=False), nn.SiLU(), nn.Linear(128, 128))
        self.edge_block = EdgeBlock()
        self.cond_to_emb_f, self.cond_to_emb_r = nn.Linear(3, d), nn.Linear(3, d)

    def forward(self, x: Tensor, t: Tensor, onehot: Tensor) -> Tensor:
        edges = self.edges(x[:, 1:2].expand_as(x))
        flat, t = x.reshape(-1, 3), t[:, None, None].expand(x.shape[:3]).reshape(-1)
        one = onehot.reshape(-1, 5)
        node = self.embed_atom(one)
        invariants = []
        for frame in (1, 0, 2):
            geometry = x[:, frame : frame + 1].expand_as(x).reshape(-1, 3)
            vector = geometry[edges[0]] - geometry[edges[1]]
            with torch.set_grad_enabled(torch.is_grad_enabled() and frame == 1):
                invariants.append(self.edge_block(node, edges, vector))
        vector = flat[edges[0]] - flat[edges[1]]
        h, v, a = self.encoder(one, edges, vector, torch.cat(invariants, -1), t)
        given = torch.ones(len(flat), dtype=torch.long)
        h = h + self.mask_to_emb_f(given) + self.mask_to_emb_r(given)
        return self.run(h, v, edges, a, vector.norm(dim=-1), x.shape)
