"""Generator and discriminator of Mosser, Dubrule and Blunt (2017): 3-D convolutions without a fully connected layer.

The generator takes a latent of any size, so a larger latent gives a larger volume. A *cell* is one voxel of its first
layer; the layers after it double the resolution m times, so a cell covers F = 2^m voxels along each axis.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Discriminator",
    "Generator",
    "first_as_convolution",
    "halos",
    "initialise",
    "interleave",
    "levels",
    "phases",
    "side_of",
    "to_volume",
]

SLOPE = 0.2
"""Of the leaky rectifiers of the discriminator."""


def levels(side: int) -> int:
    """m, how often the generator doubles the resolution, for training crops of ``side`` = 4 2^m voxels.

    Raises:
        ValueError: no m >= 1 gives ``side``.
    """
    m = side.bit_length() - 3
    if m < 1 or side != 4 << m:
        raise ValueError(f"the side of a training crop is 8, 16, 32, 64, 128, ... voxels, not {side}")
    return m


def side_of(m: int) -> int:
    """The side of a training crop, for ``m`` doublings."""
    return 4 << m


def halos(m: int, extra_layers: int = 0) -> list[int]:
    """How many neighbours beyond the wanted range each layer has to give, first layer first, the volume last (0).

    A transposed convolution (kernel 4, stride 2, padding 1) whose output is wanted from 2 l - h on reads its input
    from l - h // 2 - 1 on; an extra layer (kernel 3) reads one neighbour.
    """
    found = [0, *range(1, extra_layers + 2)]
    for _ in range(m - 1):
        found.append(found[-1] // 2 + 1)
    return found[::-1]


class Generator(nn.Module):
    """G: latent (B, nz, n0, n1, n2) of i.i.d. N(0, 1) to a volume (B, 1, (n0+3) F, (n1+3) F, (n2+3) F) in (-1, 1).

    -1 is pore, +1 is grain. The first layer is a transposed convolution with kernel 4, stride 1 and no padding; m - 1
    more with kernel 4, stride 2, padding 1 halve the channels each; ``extra_layers`` convolutions with kernel 3 keep
    them; the last transposed convolution makes the one channel of the volume. Batch normalisation and a rectifier
    follow every layer but the last, whose tanh bounds the volume.

    Args:
        side: S = 4 F, the side of what one latent vector makes.
        nz: channels of the latent.
        ngf: channels before the last layer.
        extra_layers: convolutions before the last layer that keep the resolution.
        biases: whether the transposed convolutions have biases.
    """

    def __init__(self, side: int, nz: int, ngf: int, extra_layers: int = 0, biases: bool = False) -> None:
        super().__init__()
        self.m, self.nz, self.extra_layers = levels(side), nz, extra_layers
        self.factor = 1 << self.m
        widths = [ngf << k for k in reversed(range(self.m))]
        self.convs = nn.ModuleList([nn.ConvTranspose3d(nz, widths[0], 4, bias=biases)])
        for wide, narrow in pairwise(widths):
            self.convs.append(nn.ConvTranspose3d(wide, narrow, 4, 2, 1, bias=biases))
        for _ in range(extra_layers):
            self.convs.append(nn.Conv3d(ngf, ngf, 3, 1, 1, bias=False))
        self.convs.append(nn.ConvTranspose3d(ngf, 1, 4, 2, 1, bias=biases))
        self.norms = nn.ModuleList([nn.BatchNorm3d(w) for w in (*widths, *[ngf] * extra_layers)])
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.convs[-1](self._hidden(z)))

    def quick(self, z: Tensor) -> Tensor:
        """``forward(z)`` but for the last bits, in less time: the last layer runs on the resolution of its input."""
        last: Any = self.convs[-1]
        return torch.tanh(to_volume(self._hidden(z), last.weight, last.bias))

    def _hidden(self, z: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=False):
            z = F.relu(norm(conv(z)), inplace=True)
        return z

    @property
    def rim(self) -> int:
        """How many latents along an axis an :meth:`interior` needs beyond the number of its cells."""
        return 2 * self.halos[0] + 3

    def interior(self, z: Tensor) -> Tensor:
        """The part of ``forward(z)`` whose voxels see all latents that could reach them.

        Latents (B, nz, n0, n1, n2) give (n - rim) F voxels along each axis: a window of the stationary field that
        endless latents give. In train mode batch normalisation sees that window and its halo alone.
        """
        have = self.halos
        convs: Any = self.convs
        for k, (conv, norm) in enumerate(zip(convs, self.norms, strict=False)):
            if k == 0:  # the backward pass of this form is five times as fast
                z = F.conv3d(z, first_as_convolution(conv.weight), conv.bias)
            elif isinstance(conv, nn.ConvTranspose3d):
                padding = 1 + 2 * have[k - 1] - have[k]
                z = F.conv_transpose3d(z, conv.weight, conv.bias, stride=2, padding=padding)
            else:
                z = F.conv3d(z, conv.weight)
            z = F.relu(norm(z), inplace=True)
        return torch.tanh(to_volume(z, convs[-1].weight, convs[-1].bias, padding=0))

    @property
    def halos(self) -> list[int]:
        """What :func:`halos` says of this network."""
        return halos(self.m, self.extra_layers)


class Discriminator(nn.Module):
    """D: volume (B, 1, S, S, S) to one logit (B, 1); its sigmoid is the probability that the volume is real.

    Convolutions with kernel 4, stride 2, padding 1 double the channels while they halve the resolution to 4; a last one
    with kernel 4 and no padding gives the logit. Leaky rectifiers follow all but the last, batch normalisation all but
    the first and last. ``extra_layers`` convolutions with kernel 3 come after the first.

    Args:
        side: S.
        ndf: channels after the first layer.
        extra_layers: convolutions after the first that keep the resolution.
        dropout: probability of dropout after every leaky rectifier.
        dropout_of: whether ``voxels`` or whole ``channels`` are dropped.
        norm: whether there is batch normalisation; a critic with gradient penalty must have none, for the penalty is
            on the gradient of each volume by itself.
    """

    def __init__(
        self,
        side: int,
        ndf: int,
        extra_layers: int = 0,
        dropout: float = 0.0,
        dropout_of: str = "voxels",
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv3d(1, ndf, 4, 2, 1, bias=False)])
        width = ndf
        for _ in range(extra_layers):
            self.convs.append(nn.Conv3d(width, width, 3, 1, 1, bias=False))
        for _ in range(levels(side) - 1):
            self.convs.append(nn.Conv3d(width, 2 * width, 4, 2, 1, bias=False))
            width *= 2
        self.convs.append(nn.Conv3d(width, 1, 4, bias=False))
        hidden: Any = self.convs[1:-1]
        widths = [conv.out_channels for conv in hidden]
        self.norms = nn.ModuleList([nn.BatchNorm3d(w) if norm else nn.Identity() for w in widths])
        self.dropout = nn.Dropout3d(dropout) if dropout_of == "channels" else nn.Dropout(dropout)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.leaky_relu(self.convs[0](x), SLOPE, inplace=True))
        for conv, norm in zip(self.convs[1:-1], self.norms, strict=True):
            x = self.dropout(F.leaky_relu(norm(conv(x)), SLOPE, inplace=True))
        return self.convs[-1](x).flatten(1)


def first_as_convolution(weight: Tensor) -> Tensor:
    """Weights (nz, c, 4, 4, 4) of the first layer as those (c, nz, 4, 4, 4) of a convolution that does the same."""
    return weight.flip(2, 3, 4).transpose(0, 1).contiguous(memory_format=torch.channels_last_3d)


def phases(weight: Tensor) -> Tensor:
    """Weights (c, d, 4, 4, 4) of an upsampling layer as those (8, d, c, 2, 2, 2) of eight convolutions on its input.

    Along an axis voxel 2 q - 1 is made of inputs q - 1 and q by taps 2 and 0, voxel 2 q of the same by taps 3 and 1.
    So a window of two inputs gives the voxels 2 q - 1 and 2 q along each axis; the convolution 4 b0 + 2 b1 + b2 makes
    voxel 2 q - 1 + (b0, b1, b2).
    """
    c, d = weight.shape[:2]
    taps = weight.flip(2, 3, 4).reshape(c, d, 2, 2, 2, 2, 2, 2).flip(3, 5, 7)
    return taps.permute(3, 5, 7, 1, 0, 2, 4, 6).reshape(8, d, c, 2, 2, 2)


def interleave(eight: Tensor) -> Tensor:
    """The eight voxels in the channels of (B, 8, d0, d1, d2) put in their places: (B, 1, 2 d0, 2 d1, 2 d2)."""
    b, _, d0, d1, d2 = eight.shape
    apart = eight.reshape(b, 2, 2, 2, d0, d1, d2).permute(0, 4, 1, 5, 2, 6, 3)
    return apart.reshape(b, 1, 2 * d0, 2 * d1, 2 * d2)


def to_volume(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 1) -> Tensor:
    """The last transposed convolution, three times as fast as with its one output channel.

    Inputs (B, c, d0, d1, d2) give the volume (B, 1, 2 d0, 2 d1, 2 d2); with ``padding=0`` they are one voxel of halo on
    each side larger than what is wanted, and give (B, 1, 2 (d0 - 2), ...).
    """
    kernel = phases(weight).flatten(0, 1).contiguous(memory_format=torch.channels_last_3d)
    return interleave(F.conv3d(x, kernel, None if bias is None else bias.expand(8), padding=padding))[
        :, :, 1:-1, 1:-1, 1:-1
    ]


def initialise(module: nn.Module) -> None:
    """Weights of convolutions N(0, 0.02^2), of batch normalisation N(1, 0.02^2), biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.normal_(part.weight, 0.0, 0.02)
        elif isinstance(part, nn.BatchNorm3d):
            nn.init.normal_(part.weight, 1.0, 0.02)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
