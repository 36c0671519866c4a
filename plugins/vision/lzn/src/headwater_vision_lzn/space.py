"""The latent space of a trained run: networks with their averaged weights, reference anchors, and the flow's settings.

The latent of an image depends on the anchors that share the space. In training these are the batch; here they are the
anchors of reference images, the bank, and of the image itself, so that an image has one latent whatever else is asked.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from headwater import UsageError
from torch import Tensor, nn

from headwater_vision_lzn.flow import forward_flow, nearest, reverse_flow, with_bank
from headwater_vision_lzn.networks import ConvEncoder, Encoder
from headwater_vision_lzn.objective import class_log_weights
from headwater_vision_lzn.solvers import Field

__all__ = ["CHUNK", "Space", "network", "to_bytes", "to_pixels"]

CHUNK = 64
"""How many images of the bank go through the encoder at once."""

IMAGENET = 224
"""The edge of images for a ResNet whose data are not known."""


def network(modules: Mapping[str, nn.Module], name: str) -> Any:
    """A module with its averaged weights, or with its own where there is no average; ``None`` where it is missing."""
    average: Any = modules.get(f"{name}_average")
    return modules.get(name) if average is None else average.module


def to_pixels(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(x: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, rounded."""
    return ((x.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


class Space:
    """What a run knows of images, latents and labels."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        facts: Mapping[str, Any],
        device: torch.device,
        reference: Tensor | None = None,
    ) -> None:
        """Open the space of a run.

        Args:
            modules: of the run.
            facts: of the run.
            device: where to compute.
            reference: uint8 (N, C, H, W), images of the bank; those of the run without.
        """
        self.encoder, self.decoder, labels = (network(modules, name) for name in ("encoder", "decoder", "labels"))
        self.points: Tensor | None = None if labels is None else labels.points.detach()
        self.facts, self.device, self.reference = facts, device, reference
        self.dtype = next(self.encoder.parameters()).dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Edge and channels of the images."""
        encoder: Any = self.encoder
        if isinstance(encoder, Encoder):
            return encoder.trunk.sizes[0], encoder.trunk.stem.in_channels
        convolution: Any = encoder.convs[0] if isinstance(encoder, ConvEncoder) else encoder.conv
        size = self.facts.get("size") or (self.decoder.trunk.sizes[0] if self.decoder is not None else IMAGENET)
        return size, convolution.in_channels

    @property
    def width(self) -> int:
        """D."""
        heads: Any = self.encoder.heads.values() if isinstance(self.encoder, Encoder) else [self.encoder.head]
        return int(next(iter(heads)).last.out_features)

    @property
    def classes(self) -> list[str]:
        """The names of the classes, numbers where none are known."""
        assert self.points is not None
        names = list(self.facts.get("classes", ()))
        return names if len(names) == len(self.points) else [str(k) for k in range(len(self.points))]

    def class_of(self, label: str) -> int:
        """The number of a class by its name."""
        if self.points is None:
            raise UsageError(f"label = {label!r}: this run knows no classes; the stage joint makes one that does")
        if label not in self.classes:
            raise UsageError(f"label = {label!r} is no class of this run: {', '.join(self.classes)}")
        return self.classes.index(label)

    def draws(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` Gaussian draws of the width of the latent."""
        return torch.randn(n, self.width, generator=generator, device=generator.device).to(self.device, self.dtype)

    # Images

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 as the networks want them."""
        return to_pixels(images.to(self.device)).to(self.dtype)

    def anchors(self, images: Tensor) -> Tensor:
        """E(x) (B, D) of images uint8 (B, C, H, W)."""
        found: Tensor = self.encoder(self.pixels(images))
        return found

    @property
    def images(self) -> Tensor:
        """The reference images, uint8 (N, C, H, W)."""
        images: Tensor | None = self.reference if self.reference is not None else self.facts.get("reference")
        if images is None:
            raise UsageError(
                "this run keeps no reference images, which a latent depends on: say operation.reference=PATH, some "
                "hundred images of the kind that it was trained on"
            )
        return images

    @cached_property
    def bank(self) -> Tensor:
        """The anchors of the reference images (N, D)."""
        return torch.cat([self.anchors(part) for part in self.images.split(CHUNK)])

    def latents(self, anchors: Tensor, prior: Tensor) -> Tensor:
        """The latent of each anchor (B, D) among the bank and itself."""
        flow = self.facts["flow"]
        return with_bank(anchors, self.bank, prior, solver=flow["solver"], steps=flow["steps"])

    # Labels

    def latents_of_labels(self, labels: Tensor, prior: Tensor) -> Tensor:
        """A latent in the zone of each label (B,), all classes alike."""
        assert self.points is not None
        steps = self.facts["flow"]["label_steps"]
        points = self.points.to(self.dtype)
        return forward_flow(points, points[labels], prior, solver="euler", steps=steps)

    def labels_of(self, latents: Tensor, weights: str = "uniform") -> tuple[Tensor, Tensor]:
        """The class in whose zone each latent is (B,), and its probability before the last step (B,)."""
        if self.points is None:
            raise UsageError("this run knows no classes; the stage joint makes one that does")
        points, log_weights = self.points.to(self.dtype), None
        if weights == "reference":
            labels = self.facts.get("reference_labels")
            if labels is None:
                raise UsageError("operation.weights = reference: the reference images of this run have no labels")
            log_weights = class_log_weights(labels.to(self.device), len(points))
        steps = self.facts["flow"]["label_steps"]
        back = reverse_flow(latents, points, solver="euler", steps=steps, log_weights=log_weights, keep=True)
        assert back.probabilities is not None
        labels = nearest(back.final, points)
        return labels, back.probabilities[-1].gather(1, labels[:, None])[:, 0]

    def field(self, latents: Tensor, labels: Tensor | None = None) -> Field:
        """The velocity of the image flow under latents, and labels where the decoder knows classes."""
        if self.decoder is None:
            raise UsageError("this run has no decoder: the stage represent trains none; generate and joint do")
        given = labels if self.decoder.classes else None
        return lambda x, t: self.decoder(x, t, latents, given)
