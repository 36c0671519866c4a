"""Two views of an image: random changes that leave what it shows, on a whole batch at once."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["photographs", "shapes"]


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def shapes(
    x: Tensor, generator: torch.Generator, *, degrees: float = 20.0, scale: float = 0.2, shift: float = 0.25
) -> Tensor:
    """Turned, scaled and moved, a little brighter or darker, with a little noise: for digits and letters.

    Args:
        x: (B, C, H, W) in [-1, 1], dark (-1) around.
        generator: of all randomness.
        degrees: largest angle.
        scale: largest change of the size.
        shift: largest move, as a share of the edge.
    """
    n = len(x)
    angle = _uniform(n, -degrees, degrees, generator) * (math.pi / 180)
    zoom = 1 / _uniform(n, 1 - scale, 1 + scale, generator)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    # Coordinates run from -1 to 1, so a share of the edge counts twice.
    dx, dy = (_uniform(n, -2 * shift, 2 * shift, generator) for _ in range(2))
    theta = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False).to(x.dtype)
    moved = F.grid_sample(x + 1, grid, align_corners=False)
    moved = moved * _uniform(n, 0.8, 1.2, generator).view(-1, 1, 1, 1) - 1
    return (moved + 0.05 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def photographs(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random part at the full size, mirrored or not, recoloured, grey at times, blurred: for natural images.

    The crop has 8 to 100 % of the area and an aspect of 3/4 to 4/3; with probability 0.8 brightness, contrast and
    saturation change by up to 80 % and the hue by 20 %, in random order; with 0.2 the picture turns grey; the Gaussian
    blur has sigma 0.1 to 2 pixels over at most 23.

    Args:
        x: (B, C, H, W) in [-1, 1]; colours change only with three channels.
        generator: of all randomness.
    """
    n = len(x)
    x = (_crop(x, generator) + 1) / 2
    if x.shape[1] == 3:
        chosen = (torch.rand(n, generator=generator) < 0.8).view(-1, 1, 1, 1)
        x = torch.where(chosen, _jitter(x, generator), x)
        grey = (torch.rand(n, generator=generator) < 0.2).view(-1, 1, 1, 1)
        x = torch.where(grey, _grey(x).expand_as(x), x)
    return _blur(x, _uniform(n, 0.1, 2.0, generator)) * 2 - 1


def _crop(x: Tensor, generator: torch.Generator) -> Tensor:
    n = len(x)
    area = _uniform(n, 0.08, 1.0, generator)
    aspect = _uniform(n, math.log(3 / 4), math.log(4 / 3), generator).exp()
    w, h = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    cx, cy = ((torch.rand(n, generator=generator) * 2 - 1) * (1 - edge) for edge in (w, h))
    mirror = 1 - 2 * (torch.rand(n, generator=generator) < 0.5).float()
    zero = torch.zeros(n)
    theta = torch.stack([torch.stack([w * mirror, zero, cx], 1), torch.stack([zero, h, cy], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False).to(x.dtype)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _grey(x: Tensor) -> Tensor:
    return (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    n = len(x)
    for change in torch.randperm(4, generator=generator).tolist():
        factor = _uniform(n, 0.2, 1.8, generator).view(-1, 1, 1, 1)
        if change == 0:
            x = x * factor
        elif change == 1:
            x = torch.lerp(_grey(x).mean((1, 2, 3), keepdim=True), x, factor)
        elif change == 2:
            x = torch.lerp(_grey(x), x, factor)
        else:
            x = _turn_hue(x, (factor - 1) / 4)
        x = x.clamp(0, 1)
    return x


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """The colours turned about the grey axis by ``turns`` (B, 1, 1, 1) of a full turn."""
    angle = 2 * math.pi * turns
    cos, sin = angle.cos(), angle.sin() / math.sqrt(3)
    mean = x.mean(1, keepdim=True)
    # Rodrigues' formula; the cross product with the axis (1, 1, 1).
    cross = x.roll(1, 1) - x.roll(-1, 1)
    return mean + cos * (x - mean) + sin * cross


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    reach = min(11, height - 1, width - 1)
    line = torch.arange(-reach, reach + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (line / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    h = F.pad(x.reshape(1, n * channels, height, width), (reach, reach, reach, reach), mode="reflect")
    h = F.conv2d(h, kernel[:, None, None, :], groups=n * channels)
    return F.conv2d(h, kernel[:, None, :, None], groups=n * channels).view_as(x)
