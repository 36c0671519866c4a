"""IRN written plainly, as published: grouped convolutions for Haar, a concatenation before every convolution.

Activations of the whole network are stored for the backward pass, and each coupling keeps the logarithm of its scale.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PlainIRN"]


class PlainDense(nn.Module):
    def __init__(self, channels: int, out: int, growth: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, growth, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels + growth, growth, 3, 1, 1)
        self.conv3 = nn.Conv2d(channels + 2 * growth, growth, 3, 1, 1)
        self.conv4 = nn.Conv2d(channels + 3 * growth, growth, 3, 1, 1)
        self.conv5 = nn.Conv2d(channels + 4 * growth, out, 3, 1, 1)
        self.rectify = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.rectify(self.conv1(x))
        b = self.rectify(self.conv2(torch.cat((x, a), 1)))
        c = self.rectify(self.conv3(torch.cat((x, a, b), 1)))
        d = self.rectify(self.conv4(torch.cat((x, a, b, c), 1)))
        out: Tensor = self.conv5(torch.cat((x, a, b, c, d), 1))
        return out


class PlainCoupling(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.F = PlainDense(channels - 3, 3, growth)
        self.G = PlainDense(3, channels - 3, growth)
        self.H = PlainDense(3, channels - 3, growth)
        self.s: Tensor | None = None

    def forward(self, x: Tensor, inverse: bool = False) -> Tensor:
        x1, x2 = x.narrow(1, 0, 3), x.narrow(1, 3, x.shape[1] - 3)
        if not inverse:
            y1 = x1 + self.F(x2)
            self.s = 2 * torch.sigmoid(self.H(y1)) - 1
            y2 = x2.mul(torch.exp(self.s)) + self.G(y1)
        else:
            self.s = 2 * torch.sigmoid(self.H(x1)) - 1
            y2 = (x2 - self.G(x1)).div(torch.exp(self.s))
            y1 = x1 - self.F(y2)
        return torch.cat((y1, y2), 1)


class PlainHaar(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).view(4, 1, 2, 2)
        self.haar_weights = nn.Parameter(signs.repeat(channels, 1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor, inverse: bool = False) -> Tensor:
        n, c = len(x), self.channels
        if not inverse:
            out = functional.conv2d(x, self.haar_weights, stride=2, groups=c) / 4
            return out.view(n, c, 4, *out.shape[2:]).transpose(1, 2).reshape(n, 4 * c, *out.shape[2:])
        out = x.view(n, 4, c, *x.shape[2:]).transpose(1, 2).reshape(n, 4 * c, *x.shape[2:])
        return functional.conv_transpose2d(out, self.haar_weights, stride=2, groups=c)


class PlainIRN(nn.Module):
    """Its state dict has the published names, so ``headwater_vision_rescale.convert`` reads it."""

    def __init__(self, couplings: Sequence[int], growth: int = 32) -> None:
        super().__init__()
        self.operations = nn.ModuleList()
        channels = 3
        for count in couplings:
            self.operations.append(PlainHaar(channels))
            channels *= 4
            self.operations.extend(PlainCoupling(channels, growth) for _ in range(count))

    def forward(self, x: Tensor, inverse: bool = False) -> Tensor:
        for operation in reversed(self.operations) if inverse else self.operations:
            x = operation(x, inverse)
        return x
