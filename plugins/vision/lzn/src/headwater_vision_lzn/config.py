"""Settings of vision-lzn: one set for its three stages, for they train the same networks."""

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from headwater import Config
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

__all__ = [
    "ClassifyConfig",
    "DecodeConfig",
    "EmbedConfig",
    "EncodeConfig",
    "ImageCondition",
    "ImageSamplerConfig",
    "LznConfig",
    "ReconstructConfig",
]


class LznConfig(Config):
    """The networks, the latent flow, and how they are trained."""

    size: PositiveInt | None = Field(None, description="edge of the images in pixels; that of the data without")
    channels: Literal[1, 3] | None = Field(None, description="of the images; those of the data without")
    classes: PositiveInt | None = Field(None, description="K, number of labels (joint); those of the data without")
    latent: PositiveInt = Field(32, description="D, width of the latent")
    encoder: Literal["ncsnpp", "conv", "resnet50"] = Field(
        "ncsnpp", description="half of the decoder's network with read-out heads, a small one, or ResNet-50"
    )
    width: PositiveInt = Field(32, description="channels of NCSN++ after its first convolution; a multiple of 4")
    multipliers: tuple[PositiveInt, ...] = Field((1, 2), min_length=1, description="of the width, each resolution's")
    blocks: PositiveInt = Field(1, description="residual blocks of NCSN++ at each resolution")
    attention: tuple[PositiveInt, ...] = Field((4,), description="edges of NCSN++'s maps with attention")
    style: Literal["plain", "fir"] = Field("plain", description="of NCSN++: that of 32 pixels, or of 256")
    dropout: float = Field(0.0, ge=0, lt=1, description="in the residual blocks of NCSN++")
    narrow: PositiveInt = Field(20, description="channels of a read-out head's first layer")
    units: PositiveInt = Field(200, description="width of a read-out head's second layer")
    readout: tuple[PositiveInt, ...] | None = Field(None, description="edges of the maps with a head; all without")
    conv_width: PositiveInt = Field(32, multiple_of=8, description="channels of the small encoder")
    resnet_width: PositiveInt = Field(1, description="multiplier of all widths of ResNet-50")
    head_layers: PositiveInt = Field(2, description="layers of ResNet-50's projection head")

    solver: Literal["euler", "dpm"] = Field("dpm", description="of the latent flow")
    steps: PositiveInt = Field(20, description="of the latent flow, forward, and backward among images")
    label_steps: PositiveInt = Field(100, description="Euler steps of the flow to and from label anchors (joint)")
    prior: NonNegativeFloat = Field(1.0, description="factor of the Gaussian draws in the latent computation")
    cut_off: float = Field(0.2, ge=0, lt=1, description="c, share of the reverse flow next to t = 1 that is dropped")
    label_weight: NonNegativeFloat = Field(1.0, description="of the label loss beside that of the images (joint)")

    batch_size: PositiveInt = Field(64, description="images in a step, of each process")
    lr_encoder: PositiveFloat = Field(1e-3, description="learning rate of the encoder")
    lr_decoder: PositiveFloat = Field(1e-3, description="learning rate of the decoder")
    lr_labels: PositiveFloat = Field(2e-3, description="learning rate of the label anchors")
    warm_up: NonNegativeInt = Field(30, description="steps over which the learning rates rise")
    clip: PositiveFloat = Field(1.0, description="norm of the gradient of all parameters above which it is scaled down")
    decoder_steps: PositiveInt | None = Field(None, description="after so many the decoder stays as it is (joint)")
    ema: float = Field(0.999, ge=0, lt=1, description="greatest decay of the moving average: min(ema, (1+n)/(10+n))")
    augment: Literal["shapes", "photographs"] = Field(
        "shapes", description="how two views are made (represent): moved and turned, or cropped and recoloured"
    )
    bank: PositiveInt = Field(256, description="training images kept as the reference of latents")
    judged: PositiveInt = Field(256, description="test images that a validation looks at; all where there are fewer")

    @field_validator("width")
    @classmethod
    def _width(cls, value: int) -> int:
        if value % 4:
            raise ValueError("a multiple of 4 is needed, for group normalisation")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        widths = [self.width, *(self.width * m for m in self.multipliers)]
        for n in {*widths, *(a + b for a, b in pairwise(widths)), *(2 * n for n in widths)}:
            if n % min(n // 4, 32):
                raise ValueError(f"width and multipliers give {n} channels, which 32 groups do not divide")
        if self.size is not None:
            self.check_size(self.size)
        groups = {"ncsnpp": 0, "conv": 8, "resnet50": 32}[self.encoder]
        if groups and (self.latent % groups or self.latent == groups):  # one number alone is 0 when normalised
            raise ValueError(f"latent = {self.latent}: {self.encoder} needs a multiple of {groups} above {groups}")
        return self

    def check_size(self, size: int) -> None:
        """Refuse images that the resolutions do not halve evenly.

        Raises:
            ValueError: says what would do.
        """
        factor = 1 << (len(self.multipliers) - 1)
        if size % factor:
            raise ValueError(f"images of {size} pixels: {len(self.multipliers)} resolutions need multiples of {factor}")


class ImageFlowConfig(Config):
    """How an image is integrated out of noise."""

    method: Literal["euler", "rk45"] = Field(
        "euler", description="equal steps, or adaptive ones, which are common to a block"
    )
    steps: PositiveInt = Field(50, description="of euler")
    tolerance: PositiveFloat = Field(1e-5, description="relative and absolute, of rk45")


class ImageSamplerConfig(ImageFlowConfig):
    """How images are sampled."""

    block_size: PositiveInt = Field(64, description="images in a block")


class ImageCondition(Config):
    """What is asked of an image."""

    label: str | None = Field(None, description="name of the class; drawn for each image without")

    @field_validator("label", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


class ItemsConfig(Config):
    """How the images of an operation are read."""

    block_size: PositiveInt = Field(64, description="images in a block")
    skip_bad: bool = Field(False, description="leave out files that cannot be used, and list them")


class EmbedConfig(ItemsConfig):
    """Features for other models: what comes before the projection head."""


class EncodeConfig(ItemsConfig):
    """How the latent of an image is computed."""

    prior: NonNegativeFloat = Field(1.0, description="factor of the Gaussian draw; 0 gives the middle of the zone")
    reference: Path | None = Field(
        None, description="images whose anchors share the space; those kept from training without"
    )


class ClassifyConfig(EncodeConfig):
    """How an image is classified: to its latent, and back to the nearest label anchor."""

    prior: NonNegativeFloat = Field(0.0, description="factor of the Gaussian draw")
    weights: Literal["uniform", "reference"] = Field(
        "uniform", description="of the classes: equal, or their shares in the reference"
    )


class DecodeConfig(ImageFlowConfig):
    """How images are made of latents."""

    block_size: PositiveInt = Field(64, description="images in a block")
    label: str | None = Field(None, description="name of the class, where the decoder knows classes")


class ReconstructConfig(EncodeConfig, ImageFlowConfig):
    """To latent and initial noise, and back."""

    label: str | None = Field(
        None, description="name of the class, where the decoder knows classes; what classify says without"
    )
