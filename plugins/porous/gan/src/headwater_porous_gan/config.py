"""Settings of porous-gan."""

from pathlib import Path
from typing import Literal, Self

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

from headwater_porous_gan.networks import levels

__all__ = ["PorousConfig", "PorousSamplerConfig"]

Size = tuple[PositiveInt, PositiveInt, PositiveInt]
Place = tuple[int, int, int]


class PorousConfig(Config):
    """The two networks, the objective, and the order of training."""

    side: PositiveInt = Field(32, description="S, edge of the training crops in voxels: 8, 16, 32, 64, 128, ...")
    nz: PositiveInt = Field(64, description="channels of the latent")
    ngf: PositiveInt = Field(16, description="channels of the generator before its last layer")
    ndf: PositiveInt = Field(8, description="channels of the discriminator after its first layer")
    extra_layers: NonNegativeInt = Field(0, description="further layers before the generator's last one")
    discriminator_extra_layers: NonNegativeInt = Field(0, description="further layers after the discriminator's first")
    biases: bool = Field(False, description="biases in the generator's transposed convolutions")
    variant: Literal["smooth", "noise", "both"] = Field(
        "both",
        description="what weakens the discriminator: a smoothed label (Berea), noise (Ketton, bead pack), or both",
    )
    objective: Literal["gan", "wgan-gp"] = Field("gan", description="the paper's loss, or Wasserstein with penalty")
    label: float = Field(0.9, gt=0, le=1, description="label of real crops (not in the variant noise)")
    noise: NonNegativeFloat = Field(
        0.8, description="of the noise on the discriminator's input, at first (not in the variant smooth)"
    )
    schedule: Literal["linear", "official64", "official128", "constant"] = Field(
        "constant", description="how that noise falls: linear is what was meant, the official ones what was run"
    )
    epochs: PositiveInt = Field(300, description="epochs over which the noise falls")
    epoch_steps: PositiveInt = Field(100, description="steps in an epoch")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after the discriminator's rectifiers (paper: 0.2)")
    dropout_of: Literal["voxels", "channels"] = Field(
        "voxels", description="what dropout drops: single values (64^3), or whole channels (128^3)"
    )
    windows: Literal["published", "stationary"] = Field(
        "stationary",
        description="what the discriminator sees: the volume of one latent vector, as published, or windows of the "
        "field of endless latents, which is what sampling makes (eight from each field of edge 2 S)",
    )
    order: Literal["shared", "official"] = Field(
        "shared", description="one batch of fakes for both steps, or the order of the published code"
    )
    batch_size: PositiveInt = Field(16, description="crops in a step")
    lr: PositiveFloat = Field(1e-3, description="learning rate of the generator")
    lr_discriminator: PositiveFloat = Field(2e-4, description="learning rate of the discriminator")
    beta1: float = Field(0.5, ge=0, lt=1, description="first decay of Adam; the second is 0.999")
    decay_steps: NonNegativeInt = Field(
        4000, description="steps over which both rates fall to 0 along a cosine; 0 keeps them constant"
    )
    critic_steps: PositiveInt = Field(5, description="steps of the critic for one of the generator (wgan-gp)")
    penalty: NonNegativeFloat = Field(10.0, description="weight of the gradient penalty (wgan-gp)")
    stride: PositiveInt | None = Field(None, description="crops from a grid of this stride; from anywhere without")
    select_every: PositiveInt = Field(
        200, description="steps between the validations that may choose the best weights; fit.validate_every as a rule"
    )
    judged: Literal["none", "paper"] = Field("none", description="post-processing of the volumes that are validated")
    judged_cells: PositiveInt = Field(12, description="edge of the validated volume in cells of F = side / 4 voxels")

    @field_validator("side")
    @classmethod
    def _side(cls, value: int) -> int:
        levels(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.order == "official" and (self.objective != "gan" or self.variant == "both"):
            raise ValueError("order = official needs objective = gan and variant = smooth or noise, as published")
        if self.order == "official" and self.windows == "stationary":
            raise ValueError("order = official needs windows = published")
        return self


class PorousSamplerConfig(Config):
    """What volume is made of the trained field, and how."""

    shape: Size = Field((128, 128, 128), description="voxels along each axis")
    origin: Place = Field(
        (0, 0, 0), description="voxel of the field at which the volume begins, for going on beside another"
    )
    periodic: bool = Field(False, description="opposite faces fit together; the shape must then be whole cells")
    extend: Path | None = Field(
        None, description="a volume of the same field, whose tiles are taken over instead of being computed again"
    )
    tile: PositiveInt | None = Field(
        None, description="edge of a tile (and chunk) in voxels, whole cells; 256, or less for smaller volumes, without"
    )
    weights: Literal["best", "last"] = Field("best", description="those of the best validation, or of the last step")
    bn: Literal["global", "running", "batch"] = Field(
        "global",
        description="batch-norm statistics: of a pilot volume, of training, or of the volume itself (official)",
    )
    pilot: PositiveInt = Field(12, description="edge of the pilot volume in cells")
    margin: Literal["stationary", "paper", "none"] = Field(
        "stationary", description="what is cut from a volume that ends: all that is not stationary, 40 voxels, nothing"
    )
    latent: Literal["indexed", "torch"] = Field(
        "indexed", description="numbers by place, or drawn at once as the published code does (small volumes)"
    )
    postprocess: Literal["none", "paper"] = Field(
        "none", description="threshold at 0, or median of 3^3 and Otsu (paper)"
    )
    precision: Literal["float32", "bfloat16", "float64"] = Field("float32", description="of the computation")
    block_size: Literal[1] = Field(1, description="a block is one tile")
