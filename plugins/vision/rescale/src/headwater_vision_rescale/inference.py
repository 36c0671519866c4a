"""Whole images through a trained network: 8 bits in, 8 bits out, padded and cropped exactly, in tiles."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater_vision_rescale.flow import reflect_to_multiple, to_bytes, to_unit
from headwater_vision_rescale.networks import HidingNet, Rescaler
from headwater_vision_rescale.tiling import tiled

__all__ = ["Runner", "as_array", "as_tensor"]


def as_tensor(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) as uint8 (1, 3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def as_array(x: Tensor) -> np.ndarray:
    """uint8 (1, 3, H, W) as uint8 (H, W, 3)."""
    return np.ascontiguousarray(x[0].permute(1, 2, 0).numpy())


class Runner:
    """A network with the settings of :class:`InferenceConfig`; images are uint8 (H, W, 3) arrays."""

    def __init__(self, network: Rescaler | HidingNet, config: Any, device: torch.device) -> None:
        self.network, self.config, self.device = network, config, device

    def _precision(self) -> AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _halo(self, reach: int, multiple: int) -> int:
        halo = reach if self.config.halo is None else self.config.halo
        return -(-halo // multiple) * multiple

    def _noise(self, mode: str, std: float, shape: tuple[int, ...], generator: torch.Generator) -> list[Tensor]:
        """The latent as one more input; none where it is zero."""
        if mode == "zero" or shape[1] == 0:
            return []
        return [std * torch.randn(shape, generator=generator, device=generator.device).cpu()]

    def _through(self, fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        dtype = next(self.network.parameters()).dtype

        def run(*parts: Tensor) -> Tensor:
            with torch.no_grad(), self._precision():
                return to_bytes(fn(*(to_unit(part.to(self.device), dtype) for part in parts))).cpu()

        return run

    def downscale(self, image: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """The small image; edges that are no multiples of the scale are rounded up (padded by reflection)."""
        net = self.network
        assert isinstance(net, Rescaler)
        x = reflect_to_multiple(as_tensor(image), net.scale)
        z = self._noise(self.config.zd_mode, self.config.zd_std, (1, net.zd_channels, *x.shape[2:]), generator)
        halo = self._halo(net.reach_down, net.scale)
        return as_array(tiled(self._through(net.reduce), [x, *z], tile=self.config.tile, halo=halo, over=net.scale))

    def upscale(self, image: np.ndarray, size: tuple[int, int] | None, generator: torch.Generator) -> np.ndarray:
        """The image restored, cropped to ``size`` (height, width) where it is known."""
        net = self.network
        assert isinstance(net, Rescaler)
        y = as_tensor(image)
        z = self._noise(self.config.zu_mode, self.config.zu_std, (1, net.latent_channels, *y.shape[2:]), generator)
        tile, halo = self.config.tile // net.scale, self._halo(net.reach_up, net.scale) // net.scale
        out = tiled(self._through(net.restore), [y, *z], tile=tile, halo=halo, times=net.scale)
        height, width = size or out.shape[2:]
        return as_array(out[..., :height, :width])

    def hide(self, cover: np.ndarray, secret: np.ndarray) -> np.ndarray:
        """``cover`` with ``secret`` in it, which may not be larger; edges are rounded up to even numbers.

        A smaller secret is continued by reflection.
        """
        net = self.network
        assert isinstance(net, HidingNet)
        x = reflect_to_multiple(as_tensor(cover), 2)
        s = reflect_to_multiple(as_tensor(secret), 2, (x.shape[2], x.shape[3]))
        halo = self._halo(net.reach, 2)
        return as_array(tiled(self._through(net.hide), [x, s], tile=self.config.tile, halo=halo))

    def reveal(self, stego: np.ndarray, size: tuple[int, int] | None, generator: torch.Generator) -> np.ndarray:
        """The secret in ``stego``, cropped to ``size`` where it is known."""
        net = self.network
        assert isinstance(net, HidingNet)
        y = as_tensor(stego)
        shape = (1, net.latent_channels, y.shape[2] // 2, y.shape[3] // 2)
        z = [v.repeat_interleave(2, 2).repeat_interleave(2, 3)
             for v in self._noise(self.config.zu_mode, self.config.zu_std, shape, generator)]  # fmt: skip

        def revealed(part: Tensor, *noise: Tensor) -> Tensor:
            return net.reveal(part, *(n[:, :, ::2, ::2] for n in noise))

        halo = self._halo(net.reach, 2)
        out = tiled(self._through(revealed), [y, *z], tile=self.config.tile, halo=halo)
        height, width = size or out.shape[2:]
        return as_array(out[..., :height, :width])
