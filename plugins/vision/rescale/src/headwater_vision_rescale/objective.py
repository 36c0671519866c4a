"""The losses of the papers, on tensors (N, C, H, W). Sums over pixels and channels, means over images."""

from torch import Tensor

__all__ = ["charbonnier", "hcflow_loss", "latent_energy", "summed_squares"]


def summed_squares(a: Tensor, b: Tensor) -> Tensor:
    """mean_n sum_chw (a - b)^2: how far the small image is from its guide."""
    return (a - b).square().sum((1, 2, 3)).mean()


def latent_energy(z: Tensor) -> Tensor:
    """sum z^2 / N: minus the log likelihood of a standard normal latent, up to a factor and a constant."""
    return z.square().sum() / len(z)


def charbonnier(a: Tensor, b: Tensor) -> Tensor:
    """mean_n sum_chw sqrt((a - b)^2 + 1e-6): a smooth L1 of the restored image."""
    return ((a - b).square() + 1e-6).sqrt().sum((1, 2, 3)).mean()


def hcflow_loss(y: Tensor, guide: Tensor, z: Tensor, restored: Tensor, x: Tensor) -> dict[str, Tensor]:
    """HCFlow's means: 0.05 (y - guide)^2, 1e-5 z^2 and |restored - x|."""
    return {
        "loss_fit": 0.05 * (y - guide).square().mean(),
        "loss_z": 1e-5 * z.square().mean(),
        "loss_rec": (restored - x).abs().mean(),
    }
