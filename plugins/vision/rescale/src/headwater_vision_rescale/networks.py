"""The networks: dense sub-networks, couplings that need no stored activations, rescalers, and image hiding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from headwater_vision_rescale.flow import (
    haar,
    haar_inverse,
    haar_log_det,
    orthonormal_haar,
    orthonormal_haar_inverse,
    scale_of,
)

__all__ = ["Coupling", "DenseBlock", "Haar", "HidingNet", "Rescaler", "RescalingNet", "chain"]


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each on the input and all features before it; the last makes ``out`` channels.

    Args:
        channels: channels of the input.
        out: channels of the output.
        growth: channels of each of the four features.
        slope: of the leaky rectifier.
        deviation: of the first weights of the features; Xavier's times 0.1 without. The last layer starts at zero.
    """

    def __init__(
        self, channels: int, out: int, growth: int = 32, slope: float = 0.2, deviation: float | None = None
    ) -> None:
        super().__init__()
        self.slope = slope
        for k in range(5):
            conv = nn.Conv2d(channels + k * growth, growth if k < 4 else out, 3, padding=1)
            if k == 4:
                nn.init.zeros_(conv.weight)
            elif deviation is None:
                nn.init.xavier_normal_(conv.weight, 0.1)
            else:
                nn.init.normal_(conv.weight, 0, deviation)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            self.add_module(f"conv{k + 1}", conv)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for k in range(1, 5):
            new = functional.leaky_relu_(getattr(self, f"conv{k}")(features), self.slope)
            features = torch.cat([features, new], 1)
        return self.get_submodule("conv5")(features)


class Coupling(nn.Module):
    """y1 = x1 + F(x2); y2 = x2 exp(s) + G(y1), s = clamp (2 sigmoid(H(y1)) - 1); x1 is the first ``split`` channels."""

    def __init__(
        self,
        channels: int,
        split: int = 3,
        *,
        growth: int = 32,
        clamp: float = 1.0,
        slope: float = 0.2,
        deviation: float | None = None,
    ) -> None:
        super().__init__()
        self.split, self.clamp = split, clamp
        rest = channels - split
        self.F = DenseBlock(rest, split, growth, slope, deviation)
        self.G = DenseBlock(split, rest, growth, slope, deviation)
        self.H = DenseBlock(split, rest, growth, slope, deviation)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x[:, : self.split], x[:, self.split :]
        y1 = x1 + self.F(x2)
        return torch.cat([y1, x2 * torch.exp(scale_of(self.H(y1), self.clamp)) + self.G(y1)], 1)

    def inverse(self, y: Tensor) -> Tensor:
        """The x of which ``forward`` gives ``y``."""
        y1, y2 = y[:, : self.split], y[:, self.split :]
        x2 = (y2 - self.G(y1)) * torch.exp(-scale_of(self.H(y1), self.clamp))
        return torch.cat([y1 - self.F(x2), x2], 1)

    def log_det(self, x: Tensor) -> Tensor:
        """log |det| of ``forward`` at x, for every sample."""
        y1 = x[:, : self.split] + self.F(x[:, self.split :])
        return scale_of(self.H(y1), self.clamp).flatten(1).sum(1)


def _vjp(
    blocks: Sequence[DenseBlock], at: Tensor, gradients: Callable[[Sequence[Tensor]], Sequence[Tensor]]
) -> tuple[Tensor, list[Tensor | None], Sequence[Tensor]]:
    """Evaluate blocks at one input, and pull back what ``gradients`` makes of their outputs.

    Returns the gradient of the input, those of all parameters in order, and the outputs.
    """
    with torch.enable_grad():
        leaf = at.detach().requires_grad_()
        outputs = [block(leaf) for block in blocks]
    detached = [output.detach() for output in outputs]
    parameters = [p for block in blocks for p in block.parameters()]
    wanted = [leaf, *(p for p in parameters if p.requires_grad)]
    pulled = [g.to(o.dtype) for g, o in zip(gradients(detached), outputs, strict=True)]
    found = iter(torch.autograd.grad(outputs, wanted, pulled))
    return next(found), [next(found) if p.requires_grad else None for p in parameters], detached


def _backward(c: Coupling, y1: Tensor, y2: Tensor, d1: Tensor, d2: Tensor) -> tuple[Any, ...]:
    """From outputs and their gradients to inputs and theirs, through ``Coupling.forward``."""
    found: dict[str, Tensor] = {}

    def of_outputs(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        g, h = outputs
        s = scale_of(h, c.clamp)
        found["x2"] = (y2 - g) * torch.exp(-s)
        found["d2"] = d2 * torch.exp(s)
        # ds/dh = 2 clamp sigmoid (1 - sigmoid) = (clamp^2 - s^2) / (2 clamp)
        return d2, found["d2"] * found["x2"] * (c.clamp**2 - s * s) / (2 * c.clamp)

    dy1, gh, _ = _vjp((c.G, c.H), y1, of_outputs)
    d1 = d1 + dy1
    dx2, f, outputs = _vjp((c.F,), found["x2"], lambda _: (d1,))
    return y1 - outputs[0], found["x2"], d1, found["d2"] + dx2, [*f, *gh]


def _backward_of_inverse(c: Coupling, x1: Tensor, x2: Tensor, d1: Tensor, d2: Tensor) -> tuple[Any, ...]:
    """From outputs x and their gradients to inputs y and theirs, through ``Coupling.inverse``."""
    dx2, f, outputs = _vjp((c.F,), x2, lambda _: (-d1,))
    y1, d2 = x1 + outputs[0], d2 + dx2
    found: dict[str, Tensor] = {}

    def of_outputs(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        g, h = outputs
        s = scale_of(h, c.clamp)
        found["y2"] = x2 * torch.exp(s) + g
        found["d2"] = d2 * torch.exp(-s)
        return -found["d2"], -d2 * x2 * (c.clamp**2 - s * s) / (2 * c.clamp)

    dy1, gh, _ = _vjp((c.G, c.H), y1, of_outputs)
    return y1, found["y2"], d1 + dy1, found["d2"], [*f, *gh]


def _autocast_now(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(
        device.type, dtype=torch.get_autocast_dtype(device.type), enabled=torch.is_autocast_enabled(device.type)
    )


class _Chain(torch.autograd.Function):
    """Couplings in a row of which only the last output is kept; the backward pass computes the others from it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, couplings: Sequence[Coupling], inverse: bool, *parameters: Tensor) -> Tensor:
        ctx.couplings, ctx.inverse, ctx.autocast = couplings, inverse, _autocast_now(x.device)
        for coupling in reversed(couplings) if inverse else couplings:
            x = coupling.inverse(x) if inverse else coupling(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (out,) = ctx.saved_tensors
        couplings: Sequence[Coupling] = ctx.couplings
        split = couplings[0].split
        v1, v2, d1, d2 = out[:, :split], out[:, split:], gradient[:, :split], gradient[:, split:]
        of_parameters: dict[int, list[Tensor | None]] = {}
        step = _backward_of_inverse if ctx.inverse else _backward
        with ctx.autocast:
            order = range(len(couplings)) if ctx.inverse else reversed(range(len(couplings)))
            for i in order:
                v1, v2, d1, d2, of_parameters[i] = step(couplings[i], v1, v2, d1, d2)
        flat = [g for i in range(len(couplings)) for g in of_parameters[i]]
        return torch.cat([d1, d2], 1), None, None, *flat


@torch.compiler.disable
def chain(couplings: Sequence[Coupling], x: Tensor, *, inverse: bool = False, recompute: bool = True) -> Tensor:
    """Apply couplings one after another, or their inverses in reverse order.

    With ``recompute`` the memory that training needs does not grow with their number: activations are computed again
    from the outputs in the backward pass, at the cost of one more evaluation. Gradients then differ by rounding.
    """
    if not couplings:
        return x
    if recompute and torch.is_grad_enabled():
        parameters = [p for c in couplings for block in (c.F, c.G, c.H) for p in block.parameters()]
        out: Tensor = _Chain.apply(x, tuple(couplings), inverse, *parameters)
        return out
    for coupling in reversed(couplings) if inverse else couplings:
        x = coupling.inverse(x) if inverse else coupling(x)
    return x


def _laid_out(x: Tensor) -> Tensor:
    """Channels last on a CPU, where convolutions of this kind are then faster."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


class Haar(nn.Module):
    """:func:`headwater_vision_rescale.flow.haar` as one of a network's operations; it has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return haar(x)


class Rescaler(nn.Module):
    """What the rescaling networks have in common.

    ``latent_channels`` is the number of channels of the upscaling latent on the pixels of the small image,
    ``zd_channels`` that of the downscaling latent on the pixels of the large one; zeros stand for either where it is
    not given. ``reach_down`` and ``reach_up`` say how many pixels of the large image away a pixel can have influence.
    """

    scale: int
    latent_channels: int
    zd_channels: int
    reach_down: int
    reach_up: int

    def reduce(self, x: Tensor, z_d: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) in [0, 1] to the small image (N, 3, H/s, W/s), neither clipped nor rounded."""
        raise NotImplementedError

    def restore(self, y: Tensor, z: Tensor | None = None) -> Tensor:
        """The small image (N, 3, h, w) in [0, 1] and latents to (N, 3, s h, s w)."""
        raise NotImplementedError


class RescalingNet(Rescaler):
    """IRN (no downscaling latent) and DLV-IRN: per factor of two a Haar step and couplings.

    Operations are numbered as in the published IRN. The downscaling latent enters as channels behind red, green and
    blue, before the first Haar step ("hr") or after it ("band": its every second pixel in each direction).
    """

    def __init__(
        self,
        scale: int = 2,
        couplings: int | Sequence[int] = 8,
        *,
        growth: int = 32,
        zd_channels: int = 0,
        zd_entry: Literal["hr", "band"] = "hr",
    ) -> None:
        super().__init__()
        levels = scale.bit_length() - 1
        if scale < 2 or scale != 2**levels:
            raise ValueError(f"scale {scale} is no power of two")
        counts = [couplings] * levels if isinstance(couplings, int) else list(couplings)
        self.scale, self.zd_channels, self.zd_entry = scale, zd_channels, zd_entry
        self.operations = nn.ModuleList()
        channels = 3 + (zd_channels if zd_entry == "hr" else 0)
        for level, count in enumerate(counts):
            channels = 4 * channels + (zd_channels if zd_entry == "band" and level == 0 else 0)
            made = [Coupling(channels, growth=growth) for _ in range(count)]
            self.operations.extend([Haar(), *made])
        self.channels, self.latent_channels = channels, channels - 3
        self.reach_down = self.reach_up = sum(10 * count * 2 ** (level + 1) for level, count in enumerate(counts))
        self.recompute = True

    def couplings(self) -> Iterator[list[Coupling]]:
        """The couplings of each level, the finest first."""
        level: list[Coupling] = []
        for i, operation in enumerate(self.operations):
            if isinstance(operation, Coupling):
                level.append(operation)
            elif i:
                yield level
                level = []
        yield level

    def forward(self, x: Tensor, z_d: Tensor | None = None) -> Tensor:
        """f of (N, 3, H, W) and z_d (N, c_d, H, W): the small image, then the latent z_u (N, C, H/s, W/s)."""
        z_d = x.new_zeros(len(x), self.zd_channels, *x.shape[2:]) if z_d is None else z_d
        late = self.zd_entry == "band"
        y = _laid_out(x if late else torch.cat([x, z_d], 1))
        for level, couplings in enumerate(self.couplings()):
            y = haar(y)
            if late and level == 0:
                y = torch.cat([y, z_d[:, :, ::2, ::2]], 1)
            y = chain(couplings, _laid_out(y), recompute=self.recompute)
        return y

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3, H, W) and z_d (on the pixels where it entered) of which ``forward`` gives ``y``."""
        late, z_d = self.zd_entry == "band", y[:, :0]
        levels = list(self.couplings())
        for level in reversed(range(len(levels))):
            y = chain(levels[level], _laid_out(y), inverse=True, recompute=self.recompute)
            if late and level == 0:
                y, z_d = y[:, :12], y[:, 12:]
            y = haar_inverse(y)
        return y[:, :3], (z_d if late else y[:, 3:])

    def log_det(self, x: Tensor, z_d: Tensor | None = None) -> Tensor:
        """log |det| of ``forward`` for every sample (N,)."""
        z_d = x.new_zeros(len(x), self.zd_channels, *x.shape[2:]) if z_d is None else z_d
        late = self.zd_entry == "band"
        y = x if late else torch.cat([x, z_d], 1)
        total = x.new_zeros(len(x))
        for level, couplings in enumerate(self.couplings()):
            total = total + haar_log_det(*y.shape[1:])
            y = haar(y)
            if late and level == 0:
                y = torch.cat([y, z_d[:, :, ::2, ::2]], 1)
            for coupling in couplings:
                total = total + coupling.log_det(y)
                y = coupling(y)
        return total

    def reduce(self, x: Tensor, z_d: Tensor | None = None) -> Tensor:
        return self(x, z_d)[:, :3]

    def restore(self, y: Tensor, z: Tensor | None = None) -> Tensor:
        z = y.new_zeros(len(y), self.latent_channels, *y.shape[2:]) if z is None else z
        return self.inverse(torch.cat([y, z], 1))[0]


class HidingNet(nn.Module):
    """Hides one image in another (HiNet), with ``zd_channels`` of zeros beside the wavelets of the secret."""

    scale = 2
    """What the edges of images must be multiples of."""

    def __init__(self, couplings: int = 16, *, growth: int = 32, zd_channels: int = 0) -> None:
        super().__init__()
        self.zd_channels, self.latent_channels = zd_channels, 12 + zd_channels
        self.operations = nn.ModuleList(
            Coupling(24 + zd_channels, 12, growth=growth, clamp=2.0, slope=0.01, deviation=0.01)
            for _ in range(couplings)
        )
        self.reach = 20 * couplings
        self.recompute = True

    def _couplings(self) -> list[Coupling]:
        return [c for c in self.operations if isinstance(c, Coupling)]

    def forward(self, cover: Tensor, secret: Tensor, z_d: Tensor | None = None) -> Tensor:
        """Two images (N, 3, H, W) and z_d (N, c_d, H/2, W/2) to (N, 24 + c_d, H/2, W/2), stego wavelets first."""
        x = torch.cat([orthonormal_haar(cover), orthonormal_haar(secret)], 1)
        if self.zd_channels:
            z_d = x.new_zeros(len(x), self.zd_channels, *x.shape[2:]) if z_d is None else z_d
            x = torch.cat([x, z_d], 1)
        return chain(self._couplings(), _laid_out(x), recompute=self.recompute)

    def inverse(self, y: Tensor) -> Tensor:
        """Wavelets of cover and secret (and z_d) of which ``forward`` gives ``y``."""
        return chain(self._couplings(), _laid_out(y), inverse=True, recompute=self.recompute)

    def hide(self, cover: Tensor, secret: Tensor) -> Tensor:
        """The picture (N, 3, H, W) that looks like ``cover`` and holds ``secret``; neither clipped nor rounded."""
        return orthonormal_haar_inverse(self(cover, secret)[:, :12])

    def reveal(self, stego: Tensor, z: Tensor | None = None) -> Tensor:
        """The secret (N, 3, H, W) in ``stego``, with ``z`` (N, 12 + c_d, H/2, W/2) or zeros for what was left out."""
        y = orthonormal_haar(stego)
        z = y.new_zeros(len(y), self.latent_channels, *y.shape[2:]) if z is None else z
        return orthonormal_haar_inverse(self.inverse(torch.cat([y, z], 1))[:, 12:24])
