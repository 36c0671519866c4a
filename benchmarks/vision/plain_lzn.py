"""The latent flow as it is usually written: differences to every anchor, B x N x D numbers at each step."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["forward_flow", "reverse_flow"]


def _velocity(s: Tensor, anchors: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    noise = (s[:, None] - (1 - t) * anchors[None]) / t
    density = -0.5 * noise.square().sum(2)
    p = torch.exp(density - density.max(1, keepdim=True).values)
    p = p / p.sum(1, keepdim=True)
    return (p[:, :, None] * (noise - anchors[None])).sum(1), p


def _step(s: Tensor, anchors: Tensor, t: Tensor, recompute: bool) -> tuple[Tensor, Tensor]:
    """One evaluation, done again in the backward pass where it would not fit into memory otherwise."""
    if recompute:
        return checkpoint(_velocity, s, anchors, t, use_reentrant=False)
    return _velocity(s, anchors, t)


def forward_flow(anchors: Tensor, prior: Tensor, steps: int, *, recompute: bool = False) -> Tensor:
    """Euler from t = 1e-4 to 1 for every anchor (N, D)."""
    eps = 1e-4
    s, h = eps * prior + (1 - eps) * anchors, (1 - eps) / steps
    for k in range(steps):
        s = s + h * _step(s, anchors, torch.tensor(eps + k * h, dtype=s.dtype), recompute)[0]
    return s


def reverse_flow(latents: Tensor, anchors: Tensor, steps: int, *, recompute: bool = False) -> tuple[Tensor, Tensor]:
    """Euler from t = 1 to 0; where it ends (B, D), and p before each step (n, B, N)."""
    s, h, every = latents, 1 / steps, []
    for k in range(steps):
        v, p = _step(s, anchors, torch.tensor(1 - k * h, dtype=s.dtype), recompute)
        every.append(p)
        s = s - h * v
    return s, torch.stack(every)
