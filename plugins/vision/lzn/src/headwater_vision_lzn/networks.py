"""The networks: NCSN++ as decoder and encoder, ResNet-50 with group normalisation, and a small encoder.

NCSN++ (Song et al. 2021) comes in two styles. ``plain``: sinusoidal time embedding, nearest and mean resampling.
``fir``: Fourier embedding, resampling with a binomial filter, the image itself carried along at every resolution on
the way down and up, output divided by 999 t; the style of the 256-pixel sets.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Anchors",
    "ConvEncoder",
    "Decoder",
    "Encoder",
    "ResNet50",
    "Style",
    "fir_down",
    "fir_up",
]

Style = Literal["plain", "fir"]

TIME_SCALE = 999.0
FOURIER_SCALE = 16.0
SQRT_HALF = math.sqrt(0.5)


def _groups(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _initialise(layer: Any, scale: float = 1.0) -> Any:
    """Uniform weights of variance ``scale`` over the mean of fan-in and fan-out, zero bias; 0 stands for 1e-10."""
    fan = math.prod(layer.weight.shape[2:]) * (layer.weight.shape[0] + layer.weight.shape[1]) / 2
    bound = math.sqrt(3 * max(scale, 1e-10) / fan)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


def _conv3(n: int, m: int, scale: float = 1.0) -> nn.Conv2d:
    return _initialise(nn.Conv2d(n, m, 3, padding=1), scale)


def _conv1(n: int, m: int) -> nn.Conv2d:
    return _initialise(nn.Conv2d(n, m, 1))


def _kernel(x: Tensor) -> Tensor:
    """The filter (1,3,3,1) x (1,3,3,1) with sum 1 for each channel of ``x``: (C, 1, 4, 4)."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 8
    return torch.outer(line, line).expand(x.shape[1], 1, 4, 4)


def fir_down(x: Tensor) -> Tensor:
    """Half of an image (B, C, H, W): filtered with one row of zeros around, every other pixel kept."""
    return F.conv2d(x, _kernel(x), stride=2, padding=1, groups=x.shape[1])


def fir_up(x: Tensor) -> Tensor:
    """Twice an image (B, C, H, W): pixels at even places, zeros between, filtered with four times the kernel."""
    return F.conv_transpose2d(x, 4 * _kernel(x), stride=2, padding=1, groups=x.shape[1])


def _mean_down(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _nearest_up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Residual(nn.Module):
    """A BigGAN residual block, which may also halve (``down``) or double (``up``) the resolution."""

    def __init__(
        self, n: int, m: int, embedding: int, style: Style, dropout: float = 0.0, to: Literal["", "down", "up"] = ""
    ) -> None:
        super().__init__()
        self.norm0, self.conv0 = _groups(n), _conv3(n, m)
        self.dense = _initialise(nn.Linear(embedding, m)) if embedding else None
        self.norm1, self.dropout, self.conv1 = _groups(m), nn.Dropout(dropout), _conv3(m, m, 0.0)
        self.shortcut = _conv1(n, m) if n != m or to else None
        fir = style == "fir"
        self.resample = {"": None, "down": fir_down if fir else _mean_down, "up": fir_up if fir else _nearest_up}[to]

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = F.silu(self.norm0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv0(h)
        if self.dense is not None:
            h = h + self.dense(embedding)[:, :, None, None]
        h = self.conv1(self.dropout(F.silu(self.norm1(h))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return (x + h) * SQRT_HALF


class Attention(nn.Module):
    """Self-attention of one head over the pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _groups(channels)
        self.query, self.key, self.value = (_initialise(nn.Linear(channels, channels), 0.1) for _ in range(3))
        self.out = _initialise(nn.Linear(channels, channels), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).mT
        h = self.out(F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h)))
        return (x + h.mT.reshape(x.shape)) * SQRT_HALF


class Down(nn.Module):
    """One resolution on the way down: residual blocks, attention after each, and the block that halves."""

    def __init__(
        self, n: int, m: int, blocks: int, attend: bool, last: bool, channels: int, embedding: int,
        style: Style, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [n, *[m] * blocks]
        self.blocks = nn.ModuleList(Residual(a, b, embedding, style, dropout) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(Attention(m) for _ in range(blocks)) if attend else None
        self.down = None if last else Residual(m, m, embedding, style, dropout, "down")
        self.image = None if last or style == "plain" else _conv1(channels, m)

    def forward(self, h: Tensor, image: Tensor, embedding: Tensor | None) -> tuple[list[Tensor], Tensor]:
        maps = []
        for i, block in enumerate(self.blocks):
            h = block(h, embedding)
            if self.attentions is not None:
                h = self.attentions[i](h)
            maps.append(h)
        if self.down is not None:
            h = self.down(h, embedding)
            if self.image is not None:
                image = fir_down(image)
                h = h + self.image(image)
            maps.append(h)
        return maps, image


class Trunk(nn.Module):
    """The way down and the middle of NCSN++, which decoder and encoder have in common."""

    def __init__(
        self, size: int, channels: int, width: int, multipliers: Sequence[int], blocks: int,
        attention: Sequence[int], embedding: int, style: Style, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = _conv3(channels, width)
        self.widths = [width, *(width * m for m in multipliers)]
        self.sizes = [size >> i for i in range(len(multipliers))]
        self.levels = nn.ModuleList(
            Down(n, m, blocks, side in attention, side == self.sizes[-1], channels, embedding, style, dropout)
            for (n, m), side in zip(pairwise(self.widths), self.sizes, strict=True)
        )
        m = self.widths[-1]
        self.middle = nn.ModuleList(
            [Residual(m, m, embedding, style, dropout), Attention(m), Residual(m, m, embedding, style, dropout)]
        )

    def places(self) -> list[tuple[int, int]]:
        """Channels and side of each map that ``forward`` gives, in order."""
        found = [(self.widths[0], self.sizes[0])]
        for m, side, level in zip(self.widths[1:], self.sizes, self.levels, strict=True):
            found += [(m, side)] * len(level.blocks)  # type: ignore[arg-type]
            if level.down is not None:
                found.append((m, side // 2))
        return [*found, (self.widths[-1], self.sizes[-1])]

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> list[Tensor]:
        maps, image = [self.stem(x)], x
        for level in self.levels:
            more, image = level(maps[-1], image, embedding)
            maps += more
        before, attention, after = self.middle
        return [*maps, after(attention(before(maps[-1], embedding)), embedding)]


class Readout(nn.Module):
    """What one map says of the anchor: conv1x1, swish, two linear layers with swish between."""

    def __init__(self, channels: int, side: int, narrow: int, units: int, latent: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, narrow, 1)
        self.linear0, self.linear1 = nn.Linear(narrow * side * side, units), nn.Linear(units, latent)

    @property
    def last(self) -> nn.Linear:
        """The layer whose width is D."""
        return self.linear1

    def forward(self, x: Tensor) -> Tensor:
        return self.linear1(F.silu(self.linear0(F.silu(self.conv(x)).flatten(1))))


class Encoder(nn.Module):
    """Half of NCSN++ without time; the anchor is the sum of what its maps say.

    Args:
        size: edge of the images in pixels.
        channels: of the images.
        latent: D.
        width: channels after the first convolution.
        multipliers: of ``width``, for each resolution.
        blocks: residual blocks at each resolution.
        attention: edges of the maps with attention.
        style: ``plain`` or ``fir``.
        dropout: in the residual blocks.
        narrow: channels of a read-out head's first layer.
        units: width of its second.
        readout: edges of the maps that have a head; all without.
    """

    def __init__(
        self, size: int, channels: int, latent: int, width: int, multipliers: Sequence[int], blocks: int,
        attention: Sequence[int], style: Style = "plain", dropout: float = 0.0, narrow: int = 20, units: int = 200,
        readout: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.trunk = Trunk(size, channels, width, multipliers, blocks, attention, 0, style, dropout)
        self.heads = nn.ModuleDict(
            {
                str(k): Readout(n, side, narrow, units, latent)
                for k, (n, side) in enumerate(self.trunk.places())
                if readout is None or side in readout
            }
        )

    def features(self, x: Tensor) -> Tensor:
        """What a linear classifier is given: the anchor, for there is no layer before it that holds all."""
        return self(x)

    def forward(self, x: Tensor) -> Tensor:
        """The anchors (B, D) of images (B, C, H, W) in [-1, 1]."""
        maps = self.trunk(x)
        return torch.stack([head(maps[int(k)]) for k, head in self.heads.items()]).sum(0)


class Up(nn.Module):
    """One resolution on the way up: blocks over the skips, attention, the picture so far, the block that doubles."""

    def __init__(
        self, n: int, m: int, skips: Sequence[int], attend: bool, last: bool, channels: int, embedding: int,
        style: Style, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [n, *[m] * (len(skips) - 1)]
        self.blocks = nn.ModuleList(
            Residual(w + skip, m, embedding, style, dropout) for w, skip in zip(widths, skips, strict=True)
        )
        self.attention = Attention(m) if attend else None
        self.norm = _groups(m) if last or style == "fir" else None
        self.picture = _conv3(m, channels, 0.0) if last or style == "fir" else None
        self.up = None if last else Residual(m, m, embedding, style, dropout, "up")

    def forward(
        self, h: Tensor, maps: list[Tensor], picture: Tensor | None, embedding: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        for block in self.blocks:
            h = block(torch.cat([h, maps.pop()], 1), embedding)
        if self.attention is not None:
            h = self.attention(h)
        if self.picture is not None and self.norm is not None:
            drawn = self.picture(F.silu(self.norm(h)))
            picture = drawn if picture is None else fir_up(picture) + drawn
        return (h if self.up is None else self.up(h, embedding)), picture


class Decoder(nn.Module):
    """NCSN++ with the latent, and a one-hot label where there are classes, beside the time.

    Args:
        size: edge of the images in pixels.
        channels: of the images.
        latent: D.
        classes: K, 0 without labels.
        width: channels after the first convolution.
        multipliers: of ``width``, for each resolution.
        blocks: residual blocks at each resolution on the way down; one more on the way up.
        attention: edges of the maps with attention.
        style: ``plain`` or ``fir``.
        dropout: in the residual blocks.
    """

    frequencies: Tensor

    def __init__(
        self, size: int, channels: int, latent: int, classes: int, width: int, multipliers: Sequence[int], blocks: int,
        attention: Sequence[int], style: Style = "plain", dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.latent, self.classes, self.style, embedding = latent, classes, style, 4 * width
        if style == "fir":
            self.register_buffer("frequencies", torch.randn(width) * FOURIER_SCALE)
        else:
            half = width // 2
            self.register_buffer("frequencies", torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half)), False)
        time = 2 * len(self.frequencies)
        self.linear0 = _initialise(nn.Linear(latent + classes + time, embedding))
        self.linear1 = _initialise(nn.Linear(embedding, embedding))
        self.trunk = Trunk(size, channels, width, multipliers, blocks, attention, embedding, style, dropout)
        skips = [n for n, _ in self.trunk.places()[:-1]]
        widths = self.trunk.widths[:0:-1]
        levels = []
        for n, m, side in zip([widths[0], *widths], widths, self.trunk.sizes[::-1], strict=False):
            here = [skips.pop() for _ in range(blocks + 1)]
            levels.append(Up(n, m, here, side in attention, side == size, channels, embedding, style, dropout))
        self.levels = nn.ModuleList(levels)

    def embed_time(self, t: Tensor) -> Tensor:
        """The embedding of t (B,): sine and cosine of 999 t, or of 2 pi W log(999 t)."""
        if self.style == "fir":
            angles = torch.log(TIME_SCALE * t)[:, None] * self.frequencies * (2 * math.pi)
        else:
            angles = TIME_SCALE * t.clamp(0, 1)[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)

    def forward(self, x: Tensor, t: Tensor, latent: Tensor, labels: Tensor | None = None) -> Tensor:
        """The velocity u (B, C, H, W) of the image flow.

        Args:
            x: x_t (B, C, H, W), in [-1, 1] at t = 1.
            t: (B,) in [0, 1]; above 0 in the style ``fir``.
            latent: s (B, D).
            labels: (B,), where there are classes.
        """
        known = [latent]
        if labels is not None:
            known.append(F.one_hot(labels, self.classes).to(latent.dtype))
        # Every block puts swish before its own layer; it is the same for all.
        e = F.silu(self.linear1(F.silu(self.linear0(torch.cat([*known, self.embed_time(t)], 1)))))
        *maps, h = self.trunk(x, e)
        picture: Tensor | None = None
        for level in self.levels:
            h, picture = level(h, maps, picture, e)
        assert picture is not None
        return picture / (TIME_SCALE * t)[:, None, None, None] if self.style == "fir" else picture


class Bottleneck(nn.Module):
    """A residual block of ResNet-50; the stride is on the 3x3 convolution."""

    def __init__(self, n: int, m: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(n, m, 1, bias=False)
        self.conv1 = nn.Conv2d(m, m, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(m, 4 * m, 1, bias=False)
        self.norm0, self.norm1, self.norm2 = nn.GroupNorm(32, m), nn.GroupNorm(32, m), nn.GroupNorm(32, 4 * m)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut = nn.Conv2d(n, 4 * m, 1, stride, bias=False) if project else None
        self.shortcut_norm = nn.GroupNorm(32, 4 * m) if project else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm0(self.conv0(x)))
        h = F.relu(self.norm1(self.conv1(h)))
        h = self.norm2(self.conv2(h))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return F.relu(h + x)


class Head(nn.Module):
    """The projection head: linear layers without bias, each normalised, with a rectifier between."""

    def __init__(self, width: int, latent: int, layers: int, groups: Sequence[int]) -> None:
        super().__init__()
        widths = [*[width] * layers, latent]
        self.linears = nn.ModuleList(nn.Linear(n, m, bias=False) for n, m in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(g, m) for g, m in zip(groups, widths[1:], strict=True))

    @property
    def last(self) -> Any:
        """The layer whose width is D."""
        return self.linears[-1]

    def forward(self, h: Tensor) -> Tensor:
        for i, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            h = norm(linear(F.relu(h) if i else h))
        return h


class ResNet50(nn.Module):
    """ResNet-50 with group normalisation and a projection head, for pictures from about 64 pixels.

    Args:
        channels: of the images.
        latent: D, a multiple of 32 above 32.
        width: multiplier of all widths.
        layers: of the head.
    """

    def __init__(self, channels: int, latent: int, width: int = 1, layers: int = 2) -> None:
        super().__init__()
        n = 64 * width
        self.conv, self.norm = nn.Conv2d(channels, n, 7, 2, 3, bias=False), nn.GroupNorm(32, n)
        stages = []
        for i, count in enumerate((3, 4, 6, 3)):
            m = 64 * width << i
            blocks = [Bottleneck(n if j == 0 else 4 * m, m, 2 if i and j == 0 else 1, j == 0) for j in range(count)]
            stages.append(nn.Sequential(*blocks))
            n = 4 * m
        self.stages = nn.Sequential(*stages)
        self.head = Head(n, latent, layers, [32] * layers)

    def features(self, x: Tensor) -> Tensor:
        """The pooled maps (B, 2048 width) of images in [-1, 1]."""
        h = F.relu(self.norm(self.conv((x + 1) / 2)))
        return self.stages(F.max_pool2d(h, 3, 2, 1)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """The anchors (B, D) of images (B, C, H, W) in [-1, 1]."""
        return self.head(self.features(x))


class ConvEncoder(nn.Module):
    """Three convolutions with group normalisation and a projection head, for small images.

    Args:
        channels: of the images.
        latent: D, a multiple of 8 above 8.
        width: channels of the first convolution; twice and four times as many after.
    """

    def __init__(self, channels: int, latent: int, width: int = 32) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(n, m, 3, 1 if i == 0 else 2, 1) for i, (n, m) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, m) for m in widths[1:])
        self.head = Head(widths[-1], latent, 2, [16, 8])

    def features(self, x: Tensor) -> Tensor:
        """The pooled maps (B, 4 width) of images in [-1, 1]."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """The anchors (B, D) of images (B, C, H, W) in [-1, 1]."""
        return self.head(self.features(x))


class Anchors(nn.Module):
    """One learnable anchor for each of K classes: ``points`` (K, D), N(0, 1) at first."""

    def __init__(self, classes: int, latent: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(classes, latent))
