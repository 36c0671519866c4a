"""The published form of meta flow matching, written plainly for comparison: our own words, none of the authors' code.

Message passing over an edge list (gather, scale, scatter), the graph of one population after another, the embedding
repeated for every point before the first layer, and an integration that stops at 500 output points.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from headwater_flow.solvers import DOPRI5, ERROR
from torch import Tensor

__all__ = ["embed", "integrate", "joint_loss", "velocity"]


def edges_of(x: Tensor, k: int) -> Tensor:
    """The edges (2, n k) of one population (n, D): row 0 is the neighbour, row 1 the centre."""
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(torch.inf)
    neighbours = distance.topk(k, largest=False).indices
    centres = torch.arange(len(x)).repeat_interleave(k)
    return torch.stack([neighbours.flatten(), centres])


def convolve(z: Tensor, edges: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A graph convolution with self loops and symmetric normalisation, edge by edge."""
    n = len(z)
    loops = torch.arange(n)
    source, target = torch.cat([edges[0], loops]), torch.cat([edges[1], loops])
    degree = z.new_zeros(n).index_add(0, target, z.new_ones(len(target)))
    scale = degree[source].rsqrt() * degree[target].rsqrt()
    messages = (z @ weight.T)[source] * scale.unsqueeze(1)
    return z.new_zeros(n, len(weight)).index_add(0, target, messages) + bias


def embed(embedding: Any, x: Tensor, k: int) -> Tensor:
    """Unit vectors (P, H) of populations (P, n, D): graphs one by one, then one message passing over all edges."""
    size, n, _ = x.shape
    edges = torch.cat([edges_of(x[i], k) + i * n for i in range(size)], 1)
    z = x.flatten(0, 1)
    layers = embedding.layers
    for i, layer in enumerate(layers):
        z = convolve(z, edges, layer.weight, layer.bias)
        if i < len(layers) - 1:
            z = torch.relu(z)
    mean = z.view(size, n, -1).mean(1)
    return mean / mean.norm(dim=1, keepdim=True)


def velocity(field: Any, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
    """The field on points (N, D), times (N,) and an embedding for each point (N, H), as one long input."""
    half = field.time_features // 2
    rates = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, dtype=y.dtype))
    angles = t.unsqueeze(1) * rates
    place = 2 * math.pi * y @ field.frequencies
    columns = [context, angles.sin(), angles.cos(), place.cos(), place.sin(), y]
    h = torch.selu(field.first(torch.cat(columns, 1)))
    for layer in field.hidden:
        h = torch.selu(layer(h))
    out: Tensor = field.last(h)
    return out


def joint_loss(field: Any, embedding: Any, batch: dict[str, Any], k: int, *, detached: bool = False) -> Tensor:
    """The loss of a step, less its constant; without gradients through the embedding where ``detached``."""
    x0, x1, t = batch["x0"].flatten(0, 1), batch["x1"].flatten(0, 1), batch["t"].flatten()
    if detached:
        with torch.no_grad():
            context = embed(embedding, batch["source"], k)
    else:
        context = embed(embedding, batch["source"], k)
    context = context.repeat_interleave(batch["x0"].shape[1], 0)
    x = (1 - t.unsqueeze(1)) * x0 + t.unsqueeze(1) * x1
    b = velocity(field, t, x, context)
    u = x1 - x0
    return (b.square().sum(1) - 2 * (b * u).sum(1)).mean()


def integrate(
    f: Callable[[Tensor, Tensor], Tensor], x: Tensor, points: int = 500, rtol: float = 1e-4, atol: float = 1e-4
) -> tuple[Tensor, int]:
    """The end point by dopri5 that cuts its steps at each of ``points`` output times, and the evaluations it took."""
    times = torch.linspace(0, 1, points)
    k1, evaluations = f(times[0], x), 2  # one more, as such solvers spend on the first step size
    f(times[0], x)
    for start, end in pairwise(times):
        t, h = float(start), float(end - start)
        while t < float(end) - 1e-9:
            stages = [k1]
            for a, c in zip(DOPRI5.a[1:], DOPRI5.c[1:], strict=True):
                y = x + h * sum(w * k for w, k in zip(a, stages, strict=True))
                stages.append(f(torch.tensor(t + c * h), y))
            evaluations += 6
            new = x + h * sum(w * k for w, k in zip(DOPRI5.b, stages, strict=True))
            gap = h * sum(w * k for w, k in zip(ERROR, stages, strict=True))
            error = float((gap / (atol + rtol * torch.maximum(x.abs(), new.abs()))).square().mean().sqrt())
            if error <= 1:
                t, x, k1 = t + h, new, stages[-1]
            h = min(h * min(10.0, max(0.2, 0.9 * (error + 1e-10) ** -0.2)), float(end) - t)
    return x, evaluations
