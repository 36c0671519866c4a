"""The embedding of a population, the velocity field, and the input-convex network of the baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater_flow_meta.flow import space_features, time_features

__all__ = ["ICNN", "NeighbourMean", "PopulationEmbedding", "VelocityField", "neighbour_mean", "neighbours"]

DENSE = 1024
"""Up to so many points, a population's graph is a dense matrix: its product is faster than gathering neighbours."""

ROWS = 2**22
"""How many distances are held at once, where a population is large."""


@torch.no_grad()
def neighbours(x: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k nearest neighbours of every point among its population, without the point itself, by exact distances.

    Args:
        x: (P, n, D), P populations.
        k: at most n - 1 are found.
        mask: (P, n), true for points; the rest is padding.

    Returns:
        Their indices (P, n, min(k, n - 1)), and which of them are points (same shape): a small population in a padded
        batch has fewer.

    Example:
        >>> neighbours(torch.tensor([[[0.0], [1.0], [3.0]]]), 1)[0].tolist()
        [[[1], [0], [1]]]
    """
    size, n, _ = x.shape
    k = min(k, n - 1)
    found, real = [], []
    chunk = max(1, ROWS // max(size * n, 1))
    for start in range(0, n, chunk):
        # Not by a matrix product: that would lose the digits that tell near neighbours apart.
        distance = torch.cdist(x[:, start : start + chunk], x, compute_mode="donot_use_mm_for_euclid_dist")
        rows = torch.arange(distance.shape[1], device=x.device)
        distance[:, rows, rows + start] = torch.inf
        if mask is not None:
            distance.masked_fill_(~mask.unsqueeze(1), torch.inf)
        nearest = distance.topk(k, largest=False, sorted=False)
        found.append(nearest.indices)
        real.append(torch.isfinite(nearest.values))
    return torch.cat(found, 1), torch.cat(real, 1)


@dataclass(frozen=True)
class NeighbourMean:
    """Takes the mean over each point and its neighbours: the graph convolution's aggregation.

    Every point has k incoming edges and a loop, so the symmetric normalisation of a GCN gives each edge the weight
    1/(k + 1). ``matrix`` holds these, (P, n, n), or sparse (P n, P n); rows of padding are zero.
    """

    matrix: Tensor
    counts: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """(P, n, C) to (P, n, C)."""
        if self.matrix.is_sparse:
            flat: Tensor = torch.sparse.mm(self.matrix, z.flatten(0, 1))
            return flat.view_as(z)
        return self.matrix @ z

    def pooled(self, z: Tensor) -> Tensor:
        """The mean over points of the mean over neighbours, (P, n, C) to (P, C), in one weighted sum."""
        if self.matrix.is_sparse:
            weights = torch.sparse.sum(self.matrix, 0).to_dense().view(z.shape[:2])
        else:
            weights = self.matrix.sum(1)
        return (weights.unsqueeze(1) @ z).squeeze(1) / self.counts


@torch.no_grad()
def neighbour_mean(x: Tensor, k: int, mask: Tensor | None = None) -> NeighbourMean:
    """The aggregation over the graph of the k nearest neighbours of ``x`` (P, n, D), with ``mask`` (P, n)."""
    size, n, _ = x.shape
    index, real = neighbours(x, k, mask)
    itself = torch.arange(n, device=x.device).expand(size, n).unsqueeze(2)
    index = torch.cat([index, itself], 2)
    real = torch.cat([real, torch.ones_like(itself, dtype=torch.bool)], 2)
    weight = real.to(x.dtype) / real.sum(2, keepdim=True)
    counts = torch.full((size, 1), float(n), dtype=x.dtype, device=x.device)
    if mask is not None:
        weight = weight * mask.unsqueeze(2)
        counts = mask.sum(1, keepdim=True).to(x.dtype)
    if n <= DENSE:
        return NeighbourMean(x.new_zeros(size, n, n).scatter_(2, index, weight), counts)
    offset = n * torch.arange(size, device=x.device).view(-1, 1, 1)
    rows = (itself + offset).expand_as(index).flatten()
    columns = (index + offset).flatten()
    matrix = torch.sparse_coo_tensor(torch.stack([rows, columns]), weight.flatten(), (size * n, size * n))
    return NeighbourMean(matrix.coalesce(), counts)


class PopulationEmbedding(nn.Module):
    """A graph network on the nearest neighbours of a population's points, pooled to one unit vector.

    Args:
        dim: D, coordinates of a point, by which neighbours are found.
        labels: classes of a point (cell types), which join its features.
        width: H.
        layers: graph convolutions; ReLU between, none after the last.
        neighbours: k; 0 is a network on single points.
        official_linear: no ReLU after the first convolution.
    """

    def __init__(
        self, dim: int, labels: int = 0, width: int = 64, layers: int = 3, neighbours: int = 20,
        official_linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = [dim + labels] + [width] * layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.neighbours, self.official_linear = neighbours, official_linear

    def forward(self, x: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Unit vectors (P, H) of populations ``x`` (P, n, D), with one-hot ``labels`` (P, n, L) and ``mask`` (P, n).

        A linear map and the mean over neighbours commute, so each is taken where fewer columns are: the first mean is
        of D columns, and the last one, with the pooling, is one weighted sum.
        """
        graph = neighbour_mean(x, self.neighbours, mask) if self.neighbours else None
        z = x if labels is None else torch.cat([x, labels], 2)
        for i, layer in enumerate(self.layers[:-1]):
            z = layer(z if graph is None else graph(z))
            if not (self.official_linear and i == 0):
                z = z.relu()
        if graph is not None:
            pooled = graph.pooled(z)
        elif mask is None:
            pooled = z.mean(1)
        else:
            pooled = (z * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.layers[-1](pooled), dim=1, eps=1e-12)


class VelocityField(nn.Module):
    """v(t, y | embedding, condition): a perceptron with SELU on features of the time and the position.

    The first layer's inputs are [embedding, time, space, y, condition]. What is the same for all points of a population
    goes through it once a population.

    Args:
        dim: D.
        embedding: H, 0 without.
        condition: C, columns of the condition (population or treatment, one-hot), 0 without.
        hidden: width.
        layers: with skips, residual hidden layers after the first layer and one more; without, hidden layers in all.
        skips: h <- SELU(W h + b + h).
        time_features: even.
        space_features: random frequencies F.
        space_scale: their standard deviation.
    """

    def __init__(
        self, dim: int, embedding: int = 0, condition: int = 0, hidden: int = 256, layers: int = 4,
        skips: bool = False, time_features: int = 128, space_features: int = 128, space_scale: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding, self.condition, self.skips, self.time_features = embedding, condition, skips, time_features
        inputs = embedding + time_features + 2 * space_features + dim + condition
        self.first = nn.Linear(inputs, hidden)
        with torch.no_grad():
            # The entries of a unit vector are small beside the other inputs; its columns start as much larger, so that
            # the embedding is heard from the first step.
            self.first.weight[:, :embedding] *= max(embedding, 1) ** 0.5
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 1))
        self.last = nn.Linear(hidden, dim)
        self.frequencies: Tensor
        self.register_buffer("frequencies", space_scale * torch.randn(dim, space_features))

    def forward(self, t: Tensor, y: Tensor, embedding: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Velocities (P, n, D) at ``y`` (P, n, D) and times (), or (P, n); embedding (P, H), condition (P, C)."""
        weight, start = self.first.weight, self.embedding
        shared: Tensor = self.first.bias
        if embedding is not None:
            shared = shared + embedding @ weight[:, :start].T
        if condition is not None:
            shared = shared + condition @ weight[:, weight.shape[1] - self.condition :].T
        own = [space_features(y, self.frequencies), y]
        times = time_features(t, self.time_features)
        if t.ndim == 0:
            shared = shared + times @ weight[:, start : start + self.time_features].T
            start += self.time_features
        else:
            own = [times, *own]
        columns = torch.cat(own, -1)
        h = F.linear(columns, weight[:, start : start + columns.shape[-1]])
        # Two dimensions from here on: in three, a layer's output is a view, and changing one in place costs a copy.
        h = F.selu(h + (shared if shared.ndim == 1 else shared.unsqueeze(1))).flatten(0, -2)
        for layer in self.hidden:
            z = layer(h)
            h = F.selu(z + h if self.skips else z, inplace=True)
        out: Tensor = self.last(h)
        return out.view_as(y)


class ICNN(nn.Module):
    """A function convex in its input (Amos et al., 2017): z <- lrelu(W z + A x) with W >= 0, the first layer squared.

    Args:
        dim: D.
        widths: of the hidden layers.
    """

    def __init__(self, dim: int, widths: Sequence[int] = (64, 64, 64, 64)) -> None:
        super().__init__()
        outputs = [*widths, 1]
        self.W = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(outputs))
        self.A = nn.ModuleList(nn.Linear(dim, width) for width in outputs)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.uniform_(parameter, 0, 0.1)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """f(x), (N, 1), of ``x`` (N, D)."""
        z = F.leaky_relu(self.A[0](x), 0.2).square()
        for w, a in zip(self.W[:-1], self.A[1:-1], strict=True):
            z = F.leaky_relu(w(z) + a(x), 0.2)
        out: Tensor = self.W[-1](z) + self.A[-1](x)
        return out

    def transport(self, x: Tensor) -> Tensor:
        """The gradient of f at ``x`` (N, D); it can be differentiated where gradients are on."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(x).sum(), x, create_graph=graph)
        return gradient

    def penalty(self) -> Tensor:
        """The sum of the Frobenius norms of the negative parts of all W."""
        return torch.stack([torch.relu(-w.weight).norm() for w in self.W]).sum()  # type: ignore[operator]

    @torch.no_grad()
    def make_convex(self) -> None:
        """Put negative entries of all W to zero."""
        for w in self.W:
            w.weight.clamp_(min=0)  # type: ignore[operator]
