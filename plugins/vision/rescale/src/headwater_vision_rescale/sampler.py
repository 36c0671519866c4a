"""Test images there and back: made small, stored with 8 bits, and restored; or hidden and revealed."""

from typing import Any

import torch
from headwater import Sampler

from headwater_vision_rescale.inference import Runner
from headwater_vision_rescale.networks import HidingNet, Rescaler
from headwater_vision_rescale.tasks.photographs import Sample
from headwater_vision_rescale.tasks.scoring import cropped

__all__ = ["RestoreSampler", "network_of"]


def network_of(modules: Any) -> Rescaler | HidingNet:
    """The network of a run: that of a rescaling stage, or of hiding."""
    found = modules["rescaler"] if "rescaler" in modules else modules["hider"]
    assert isinstance(found, Rescaler | HidingNet)
    return found


class RestoreSampler(Sampler):
    """Sample i is test image i, from the first again after the last; edges are cut to multiples of the scale."""

    unit = "images"

    def setup(self) -> None:
        self.network = network_of(self.modules)
        self.runner = Runner(self.network, self.config, self.place.device)

    @property
    def evaluated(self) -> int:
        """Every test image once."""
        return len(self.task.tested)

    def block(self, k: int, generator: torch.Generator, condition: Any) -> list[Sample]:
        return [self._sample(i, generator) for i in range(k * self.block_size, (k + 1) * self.block_size)]

    def _sample(self, i: int, generator: torch.Generator) -> Sample:
        of, draw = self.task.tested[i % len(self.task.tested)], i // len(self.task.tested)
        if isinstance(self.network, HidingNet):
            cover, secret = (p.image() for p in self.task.pair(i))
            height, width = (min(a, b) for a, b in zip(cover.shape[:2], secret.shape[:2], strict=True))
            stego = self.runner.hide(cropped(cover[:height, :width], 2), cropped(secret[:height, :width], 2))
            return Sample(of.name, {"stego": stego, "secret": self.runner.reveal(stego, None, generator)}, draw)
        small = self.runner.downscale(cropped(of.image(), self.network.scale), generator)
        return Sample(of.name, {"hr": self.runner.upscale(small, None, generator), "lr": small}, draw)
