"""The hierarchical conditional flow (HCFlow) for rescaling by four: what is split off is Gaussian given the rest."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from headwater_vision_rescale.flow import haar, haar_inverse
from headwater_vision_rescale.networks import DenseBlock, Rescaler

__all__ = ["HCFlow"]


def log_scale(raw: Tensor) -> Tensor:
    """0.318 atan(2 raw): a logarithm within half of plus or minus one."""
    return 0.318 * torch.atan(2 * raw)


def _over_ranks(mean: Tensor) -> Tensor:
    """The mean of equal shares of a batch, from the mean of each."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean


class ActNorm(nn.Module):
    """(x + bias) exp(logs) per channel; the first batch of training sets them so that it comes out standardised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.logs = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.started = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.started:
            self._start(x.detach())
        return (x + self.bias) * torch.exp(self.logs)

    def _start(self, x: Tensor) -> None:
        """Take mean and deviation of the joint batch of all ranks, unless the bias was loaded or trained already.

        A channel that does not vary (a downscaling latent of zeros) keeps its scale.
        """
        self.started = True
        if bool(self.bias.any()):
            return
        mean = _over_ranks(x.mean((0, 2, 3), keepdim=True))
        deviation = _over_ranks((x - mean).square().mean((0, 2, 3), keepdim=True)).sqrt()
        with torch.no_grad():
            self.bias.copy_(-mean)
            self.logs.copy_(-torch.where(deviation > 1e-6, deviation, 1.0).log())

    def inverse(self, y: Tensor) -> Tensor:
        """The x of which ``forward`` gives ``y``."""
        return y * torch.exp(-self.logs) - self.bias


class ZeroConv(nn.Conv2d):
    """A 3x3 convolution that starts at zero, times exp(3 logs) per channel."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, padding=1)
        self.logs = nn.Parameter(torch.zeros(out, 1, 1))
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * torch.exp(3 * self.logs)


class NormConv(nn.Conv2d):
    """A convolution without bias, and an activation norm on what it gives."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2, bias=False)
        nn.init.normal_(self.weight, 0, 0.05)
        self.actnorm = ActNorm(out)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.actnorm(super().forward(input))
        return out


class SmallNet(nn.Module):
    """Shift and raw scale, in alternate channels, of a coupling in the conditional flow."""

    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()
        self.conv1 = NormConv(channels, width, 3)
        self.conv2 = NormConv(width, width, 1)
        self.conv3 = ZeroConv(width, out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(torch.relu_(self.conv2(torch.relu_(self.conv1(x)))))
        return out


def _shift_scale(h: Tensor) -> tuple[Tensor, Tensor]:
    return h[:, ::2], log_scale(h[:, 1::2])


class MainStep(nn.Module):
    """Activation norm, then a coupling: of the others driven by the 3 LR channels, or of these by the others."""

    def __init__(self, channels: int, growth: int, *, shifts_lr: bool) -> None:
        super().__init__()
        self.shifts_lr = shifts_lr
        self.actnorm = ActNorm(channels)
        self.f = DenseBlock(channels - 3, 3, growth) if shifts_lr else DenseBlock(3, 2 * (channels - 3), growth)

    def forward(self, x: Tensor) -> Tensor:
        x = self.actnorm(x)
        lr, rest = x[:, :3], x[:, 3:]
        if self.shifts_lr:
            return torch.cat([lr + self.f(rest), rest], 1)
        shift, scale = _shift_scale(self.f(lr))
        return torch.cat([lr, (rest + shift) * torch.exp(scale)], 1)

    def inverse(self, y: Tensor) -> Tensor:
        """The x of which ``forward`` gives ``y``."""
        lr, rest = y[:, :3], y[:, 3:]
        if self.shifts_lr:
            x = torch.cat([lr - self.f(rest), rest], 1)
        else:
            shift, scale = _shift_scale(self.f(lr))
            x = torch.cat([lr, rest * torch.exp(-scale) - shift], 1)
        out: Tensor = self.actnorm.inverse(x)
        return out


class ConditionalStep(nn.Module):
    """Activation norm, a 1x1 convolution y = W x, and a coupling driven by the first half and the condition."""

    def __init__(self, channels: int, condition: int, width: int) -> None:
        super().__init__()
        self.first = channels // 2
        self.actnorm = ActNorm(channels)
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0].contiguous())
        self.f = SmallNet(self.first + condition, 2 * (channels - self.first), width)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        x = functional.conv2d(self.actnorm(x), self.weight[:, :, None, None])
        first, rest = x[:, : self.first], x[:, self.first :]
        shift, scale = _shift_scale(self.f(torch.cat([first, u], 1)))
        return torch.cat([first, (rest + shift) * torch.exp(scale)], 1)

    def inverse(self, y: Tensor, u: Tensor) -> Tensor:
        """The x of which ``forward`` gives ``y`` under the same condition."""
        first, rest = y[:, : self.first], y[:, self.first :]
        shift, scale = _shift_scale(self.f(torch.cat([first, u], 1)))
        x = torch.cat([first, rest * torch.exp(-scale) - shift], 1)
        back = torch.linalg.inv(self.weight.double()).to(x.dtype)
        out: Tensor = self.actnorm.inverse(functional.conv2d(x, back[:, :, None, None]))
        return out


class Residual(nn.Module):
    """x + 0.2 f(x), f a dense block or three of these in a row."""

    def __init__(self, width: int, growth: int, *, nested: bool) -> None:
        super().__init__()
        if nested:
            self.f: nn.Module = nn.Sequential(*(Residual(width, growth, nested=False) for _ in range(3)))
        else:
            dense = DenseBlock(width, width, growth)
            nn.init.xavier_normal_(dense.get_parameter("conv5.weight"), 0.1)
            self.f = dense

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.f(x)


class ConditionalFlow(nn.Module):
    """Makes what was split off at one level standard normal, given features ``u`` of what was kept."""

    def __init__(
        self,
        channels: int,
        condition: int,
        steps: int,
        *,
        width: int,
        features: int,
        growth: int,
        blocks: Sequence[int],
    ) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(condition, features, 3, padding=1)
        self.trunk0 = nn.Sequential(*(Residual(features, growth, nested=True) for _ in range(blocks[0])))
        self.trunk1 = nn.Sequential(*(Residual(features, growth, nested=True) for _ in range(blocks[1])))
        self.trunk_conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.steps = nn.ModuleList(ConditionalStep(channels, features, width) for _ in range(steps))
        self.prior = ZeroConv(features, 2 * channels)
        self.reach = 2 + 15 * sum(blocks) + 2 * steps + 1

    def features(self, kept: Tensor) -> Tensor:
        """u = f + conv(trunks(f)), f the first convolution of what was kept."""
        first = self.conv_first(kept)
        out: Tensor = first + self.trunk_conv1(self.trunk1(self.trunk0(first)))
        return out

    def forward(self, a: Tensor, u: Tensor) -> Tensor:
        """Standardised z of the part ``a``."""
        for step in self.steps:
            a = step(a, u)
        mean, logs = _shift_scale(self.prior(u))
        return (a - mean) * torch.exp(-logs)

    def inverse(self, z: Tensor, u: Tensor) -> Tensor:
        """The part of which ``forward`` gives ``z``; zeros give the mode of the prior."""
        mean, logs = _shift_scale(self.prior(u))
        a = mean + torch.exp(logs) * z
        for step in reversed(self.steps):
            a = step.inverse(a, u)  # type: ignore[operator]
        return a


class HCFlow(Rescaler):
    """Rescaling by four in two levels, with ``zd_channels`` of downscaling latent beside the image.

    Args:
        steps: steps of the main flow in each level.
        conditional_steps: steps of the conditional flow in each level.
        growth: features of a dense block in the main flow.
        width: hidden channels of a conditional coupling.
        features, feature_growth, feature_blocks: the network that makes the condition.
    """

    def __init__(
        self,
        steps: Sequence[int] = (8, 8),
        conditional_steps: Sequence[int] = (6, 6),
        *,
        growth: int = 32,
        width: int = 64,
        features: int = 64,
        feature_growth: int = 16,
        feature_blocks: Sequence[int] = (2, 1),
        zd_channels: int = 0,
    ) -> None:
        super().__init__()
        self.scale, self.zd_channels = 4, zd_channels
        first = 4 * (3 + zd_channels)
        self.kept = (first // 2, 3)
        self.off = (first - self.kept[0], 4 * self.kept[0] - 3)
        self.latent_channels = 4 * self.off[0] + self.off[1]
        self.main = nn.ModuleList(
            nn.ModuleList(MainStep(channels, growth, shifts_lr=k % 2 == 1) for k in range(count))
            for channels, count in zip((first, 4 * self.kept[0]), steps, strict=True)
        )
        self.conditional = nn.ModuleList(
            ConditionalFlow(
                off, condition, count, width=width, features=features, growth=feature_growth, blocks=feature_blocks
            )
            for off, condition, count in zip(self.off, (self.kept[0] + features, 3), conditional_steps, strict=True)
        )
        fine, coarse = (flow.reach for flow in self._flows())
        self.reach_down = 10 * steps[0] + 20 * steps[1]
        self.reach_up = self.reach_down + 2 * fine + 4 * coarse + 4

    def _flows(self) -> list[ConditionalFlow]:
        return [flow for flow in self.conditional if isinstance(flow, ConditionalFlow)]

    def _level(self, level: int) -> list[MainStep]:
        steps = self.main[level]
        assert isinstance(steps, nn.ModuleList)
        return [step for step in steps if isinstance(step, MainStep)]

    def _main(self, x: Tensor, z_d: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z_d = x.new_zeros(len(x), self.zd_channels, *x.shape[2:]) if z_d is None else z_d
        h = haar(torch.cat([x, z_d], 1))
        for step in self._level(0):
            h = step(h)
        kept, off0 = h[:, : self.kept[0]], h[:, self.kept[0] :]
        h = haar(kept)
        for step in self._level(1):
            h = step(h)
        return h[:, :3], kept, off0, h[:, 3:]

    def forward(self, x: Tensor, z_d: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The small image (N, 3, H/4, W/4) and the standardised latents (N, latent_channels, H/4, W/4)."""
        y, kept, off0, off1 = self._main(x, z_d)
        fine, coarse = self._flows()
        u = coarse.features(y)
        z1 = coarse(off1, u)
        z0 = fine(off0, fine.features(torch.cat([kept, _doubled(u)], 1)))
        return y, torch.cat([functional.pixel_unshuffle(z0, 2), z1], 1)

    def inverse(self, y: Tensor, z: Tensor) -> Tensor:
        """x and z_d (N, 3 + c_d, H, W) of which ``forward`` gives ``y`` and ``z``."""
        fine, coarse = self._flows()
        z0, z1 = functional.pixel_shuffle(z[:, : 4 * self.off[0]], 2), z[:, 4 * self.off[0] :]
        u = coarse.features(y)
        h = torch.cat([y, coarse.inverse(z1, u)], 1)
        for step in reversed(self._level(1)):
            h = step.inverse(h)
        kept = haar_inverse(h)
        h = torch.cat([kept, fine.inverse(z0, fine.features(torch.cat([kept, _doubled(u)], 1)))], 1)
        for step in reversed(self._level(0)):
            h = step.inverse(h)
        return haar_inverse(h)

    def reduce(self, x: Tensor, z_d: Tensor | None = None) -> Tensor:
        return self._main(x, z_d)[0]

    def restore(self, y: Tensor, z: Tensor | None = None) -> Tensor:
        z = y.new_zeros(len(y), self.latent_channels, *y.shape[2:]) if z is None else z
        return self.inverse(y, z)[:, :3]


def _doubled(u: Tensor) -> Tensor:
    return functional.interpolate(u, scale_factor=2, mode="nearest")
