"""The network of MolJO: attention over nearest neighbours that moves ligand atoms and leaves the pocket where it is.

Every target atom has k incoming edges, so that all sums over edges are dense. Three identities keep the work small,
and change nothing but the last digits:

- the first linear map of an edge's perceptron is a sum over its parts (type and distance, target, source), so the
  parts that belong to atoms are computed once an atom;
- the second linear map commutes with the sum over edges (values) or moves onto the query (keys);
- only ligand atoms move, so coordinates need the edges of ligand atoms alone; a predictor does not move the atoms
  after its last layer at all.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, softplus

from headwater_bfn_moljo.layout import Edges, Layout, safe_norm

__all__ = ["CENTRES", "Backbone", "Geometry", "Predictor"]

CENTRES = (0, 1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9, 10)
"""Centres of the Gaussians that describe a distance."""

LN2 = 0.6931471805599453


def shifted_softplus(x: Tensor) -> Tensor:
    """softplus(x) - ln 2, which is 0 at 0."""
    return softplus(x) - LN2


def _perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, outputs))


class Geometry(NamedTuple):
    """The edges into some atoms as a layer sees them: (T, k) each, but for ``features``, (T, k, 42).

    ``features`` holds the Gaussians of the distance twice, for a source in the protein and in the ligand, the other
    kind's zero, and which of the two it is.
    """

    edges: Edges
    features: Tensor
    distances: Tensor

    def of(self, rows: Tensor) -> "Geometry":
        """The edges into some of the targets."""
        edges = Edges(self.edges.sources[rows], self.edges.valid[rows])
        return Geometry(edges, self.features[rows], self.distances[rows])


class Attention(nn.Module):
    """Keys and values of edges, query of the target; the heads' weighted sums of values.

    The first linear maps read [type of edge (4), type x Gaussians (80), h of the target, h of the source].
    """

    def __init__(self, width: int, heads: int, values: int) -> None:
        super().__init__()
        inputs = 4 + 4 * len(CENTRES) + 2 * width
        self.heads = heads
        self.key = _perceptron(inputs, width, width)
        self.value = _perceptron(inputs, width, values)
        self.query = _perceptron(width, width, width)

    def hidden(self, net: Any, h: Tensor, targets: Tensor, geometry: Geometry, kinds: tuple[int, int]) -> Tensor:
        """The perceptron's hidden layer for every edge, (T, k, width).

        ``kinds`` are the numbers of the edge types whose source is in the protein and in the ligand.
        """
        first, norm = net[0], net[1]
        r, width = len(CENTRES), h.shape[1]
        of_type, of_distance, of_target, of_source = first.weight.split([4, 4 * r, width, width], 1)
        blocks = [of_distance[:, kind * r : (kind + 1) * r] for kind in kinds]
        of_edge = torch.cat([*blocks, of_type[:, list(kinds)]], 1)
        sources = geometry.edges.sources
        # In place where no backward pass needs what is overwritten: these tensors are the bulk of all memory traffic.
        a = linear(h, of_source).index_select(0, sources.flatten())
        a.view(*sources.shape, width).add_(linear(h[targets], of_target, first.bias).unsqueeze(1))
        a = a.addmm_(geometry.features.flatten(0, 1), of_edge.t()).view(*sources.shape, width)
        return layer_norm(a, (width,), norm.weight, norm.bias, norm.eps).relu_()

    def weights(self, h: Tensor, targets: Tensor, geometry: Geometry, kinds: tuple[int, int]) -> Tensor:
        """The softmax over each target's edges, (T, k, heads)."""
        keys = self.hidden(self.key, h, targets, geometry, kinds)
        q = self.query(h[targets]).unflatten(1, (self.heads, -1))
        last: Any = self.key[3]
        size = q.shape[-1]
        # The key's bias adds the same to all edges of a target, so it drops out of the softmax.
        moved = torch.einsum("thd,hdw->twh", q, last.weight.unflatten(0, (self.heads, size)))
        scores = (keys @ moved) * size**-0.5
        scores = scores.masked_fill(~geometry.edges.valid.unsqueeze(-1), torch.finfo(scores.dtype).min)
        return scores.softmax(1)

    def sum_of_values(
        self, h: Tensor, targets: Tensor, geometry: Geometry, gate: Tensor, kinds: tuple[int, int]
    ) -> Tensor:
        """sum over edges of weight x gate x value, (T, width)."""
        alpha = self.weights(h, targets, geometry, kinds) * gate.unsqueeze(-1)
        hidden = self.hidden(self.value, h, targets, geometry, kinds)
        last: Any = self.value[3]
        gathered = alpha.transpose(1, 2) @ hidden
        out = torch.einsum("thw,hdw->thd", gathered, last.weight.unflatten(0, (self.heads, -1)))
        out = out + alpha.sum(1).unsqueeze(-1) * last.bias.unflatten(0, (self.heads, -1))
        return out.flatten(1)

    def shift(
        self, h: Tensor, targets: Tensor, geometry: Geometry, gate: Tensor, kinds: tuple[int, int], away: Tensor
    ) -> Tensor:
        """Mean over heads of the sum over edges of weight x gate x value x (x_target - x_source), (T, 3)."""
        alpha = self.weights(h, targets, geometry, kinds)
        values = self.value[3](self.hidden(self.value, h, targets, geometry, kinds))
        scale = (alpha * values).mean(-1) * gate
        return (scale.unsqueeze(-1) * away).sum(1)


class Block(nn.Module):
    """One layer: all atoms update their features, then ligand atoms their coordinates."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.x2h = Attention(width, heads, width)
        self.h2x = Attention(width, heads, heads)


INTO_PROTEIN = (3, 1)
INTO_LIGAND = (2, 0)
"""Numbers of the edge types by their source, protein or ligand: ligand-ligand 0, ligand-protein 1, protein-ligand 2,
protein-protein 3."""


class Body(nn.Module):
    """What backbone and predictors share: embeddings, gate and layers."""

    def __init__(self, types: int, width: int, layers: int, heads: int, features: int = 27) -> None:
        super().__init__()
        self.protein_in = nn.Linear(features, width - 1)
        self.ligand_in = nn.Linear(types + 1, width - 1)
        self.gate = _perceptron(len(CENTRES), width, 1)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.register_buffer("centres", torch.tensor(CENTRES, dtype=torch.float32), persistent=False)

    def geometry(self, edges: Edges, targets: Tensor, pos: Tensor, layout: Layout) -> tuple[Geometry, Tensor]:
        """The edges into ``targets`` at the positions ``pos`` of all atoms, and x_target - x_source (T, k, 3)."""
        away = pos[targets].unsqueeze(1) - pos[edges.sources]
        distances = safe_norm(away)
        centres: Any = self.centres
        gaussians = (-0.5 * (distances.unsqueeze(-1) - centres.to(pos.dtype)).square()).exp()
        in_ligand = (edges.sources >= layout.proteins).unsqueeze(-1).to(pos.dtype)
        in_protein = 1 - in_ligand
        features = torch.cat([gaussians * in_protein, gaussians * in_ligand, in_protein, in_ligand], -1)
        return Geometry(edges, features, distances), away

    def gates(self, geometry: Geometry) -> Tensor:
        """A weight between 0 and 1 of every edge, (T, k), by its distance in the input."""
        r = len(CENTRES)
        return self.gate(geometry.features[..., :r] + geometry.features[..., r : 2 * r]).squeeze(-1).sigmoid()

    def forward(
        self,
        mu: Tensor,
        theta: Tensor,
        t: Tensor,
        protein: Tensor,
        layout: Layout,
        edges: tuple[Edges, Edges] | None = None,
        move_last: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Coordinates (L, 3) and features (L, width) of the ligand atoms after all layers.

        Args:
            mu: (L, 3), coordinates.
            theta: (L, K), probabilities of the types.
            t: (L,), time.
            protein: (P, 27), features of the protein atoms.
            layout: of the batch.
            edges: ``layout.edges(mu)``, where they are known.
            move_last: move the ligand atoms after the last layer; without, coordinates are those before it.
        """
        into_protein, into_ligand = edges if edges is not None else layout.edges(mu)
        p = layout.proteins
        ligand = self.ligand_in(torch.cat([2 * theta - 1, t.unsqueeze(-1)], -1))
        h = torch.cat(
            [
                torch.cat([self.protein_in(protein), protein.new_zeros(p, 1)], 1),
                torch.cat([ligand, ligand.new_ones(layout.ligands, 1)], 1),
            ]
        )
        proteins = torch.arange(p, device=mu.device)
        ligands = torch.arange(p, p + layout.ligands, device=mu.device)
        x = mu
        pos = torch.cat([layout.protein_pos, x])
        to_protein, _ = self.geometry(into_protein, proteins, pos, layout)
        to_ligand, away = self.geometry(into_ligand, ligands, pos, layout)
        gates = self.gates(to_protein), self.gates(to_ligand)
        for number, block in enumerate(self.layers):
            last = number == len(self.layers) - 1
            heard = proteins
            if last:
                # Nobody reads the features of other protein atoms any more; a predictor reads the ligand's alone.
                found = into_ligand.sources[into_ligand.valid]
                heard = found[found < p].unique() if move_last else proteins[:0]
            if number > 0:
                pos = torch.cat([layout.protein_pos, x])
                to_ligand, away = self.geometry(into_ligand, ligands, pos, layout)
                chosen = Edges(into_protein.sources[heard], into_protein.valid[heard]) if last else into_protein
                to_protein, _ = self.geometry(chosen, heard, pos, layout)
            elif last:
                to_protein = to_protein.of(heard)
            attention: Any = block.x2h
            gate = gates[0][heard] if last else gates[0]
            to_heard = attention.sum_of_values(h, heard, to_protein, gate, INTO_PROTEIN)
            to_ligands = attention.sum_of_values(h, ligands, to_ligand, gates[1], INTO_LIGAND)
            h = h.index_add(0, torch.cat([heard, ligands]), torch.cat([to_heard, to_ligands]))
            if not last or move_last:
                mover: Any = block.h2x
                x = x + mover.shift(h, ligands, to_ligand, gates[1], INTO_LIGAND, away)
        return x, h[p:]


class Backbone(nn.Module):
    """Estimates of coordinates and types of the ligand atoms from a belief in a pocket.

    Args:
        types: K, how many atom types.
        width: of all hidden layers.
        layers: rounds of messages.
        heads: of the attention; they divide the width.
        features: of a protein atom.

    The coordinates follow rotations, reflections and permutations of the atoms; the logits do not change under the
    first two. Chirality is therefore not modelled.
    """

    def __init__(self, types: int, width: int, layers: int, heads: int, features: int = 27) -> None:
        super().__init__()
        self.body = Body(types, width, layers, heads, features)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, types)

    def forward(
        self,
        mu: Tensor,
        theta: Tensor,
        t: Tensor,
        protein: Tensor,
        layout: Layout,
        edges: tuple[Edges, Edges] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Coordinates (L, 3) and logits of the types (L, K); arguments as in :meth:`Body.forward`."""
        x, h = self.body(mu, theta, t, protein, layout, edges)
        return x, self.second(shifted_softplus(self.first(h)))


class Predictor(nn.Module):
    """A property in (0, 1) of each ligand from a belief in a pocket; the arguments are those of the backbone."""

    def __init__(self, types: int, width: int, layers: int, heads: int, features: int = 27) -> None:
        super().__init__()
        self.body = Body(types, width, layers, heads, features)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, 1)

    def forward(
        self,
        mu: Tensor,
        theta: Tensor,
        t: Tensor,
        protein: Tensor,
        layout: Layout,
        edges: tuple[Edges, Edges] | None = None,
    ) -> Tensor:
        """The mean over each ligand's atoms of what the atoms say, (B,)."""
        _, h = self.body(mu, theta, t, protein, layout, edges, move_last=False)
        each = self.second(shifted_softplus(self.first(h))).squeeze(-1).sigmoid()
        total = each.new_zeros(layout.complexes).index_add(0, layout.ligand_of, each)
        return total / torch.tensor(layout.ligand_sizes, dtype=each.dtype, device=each.device)
