"""Settings of the three stages, of sampling and of the operations. The defaults of the stages are the papers'."""

from pathlib import Path
from typing import Literal

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

__all__ = ["ApplyConfig", "DlvConfig", "HCFlowConfig", "HideApplyConfig", "HideConfig", "PatchConfig", "RestoreConfig"]

Latent = Literal["zero", "normal"]


class PatchConfig(Config):
    """What the stages share: patches, optimiser and schedule."""

    batch_size: PositiveInt = Field(16, description="patches of a step, over all processes alike")
    patch: PositiveInt = Field(144, description="edge of a patch of the large image, in pixels")
    lr: PositiveFloat = Field(2e-4, description="learning rate of Adam")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decays of Adam's moments")
    weight_decay: NonNegativeFloat = Field(1e-5, description="L2 penalty in Adam's gradient")
    halve_at: list[PositiveInt] = Field([100_000, 200_000, 300_000, 400_000], description="steps that halve the rate")
    clip_norm: PositiveFloat | None = Field(10.0, description="gradient norm above which gradients are scaled down")


class DlvConfig(PatchConfig):
    """IRN with a downscaling latent (DLV-IRN); without (``zd_channels=0``) it is IRN."""

    scale: Literal[2, 4, 8] = Field(2, description="how many times smaller")
    couplings: PositiveInt | list[PositiveInt] = Field(8, description="couplings of each level; one number for all")
    growth: PositiveInt = Field(32, description="features of each layer of a dense block")
    zd_channels: NonNegativeInt = Field(1, description="channels of the downscaling latent; 0 is IRN")
    zd_entry: Literal["hr", "band"] = Field("hr", description="the latent enters before or after the first Haar step")
    zd_mode: Latent = Field("zero", description="the downscaling latent in training")
    zd_std: PositiveFloat = Field(1.0, description="its deviation where it is normal")
    zu_mode: Latent = Field("zero", description="the upscaling latent in training; published IRN: normal")
    lambda_fit: PositiveFloat | None = Field(None, description="weight of the small image's guide; scale^2 without")
    lambda_z: NonNegativeFloat = Field(1.0, description="weight of the latent's energy")
    lambda_rec: PositiveFloat = Field(1.0, description="weight of the restored image")
    recompute: bool = Field(True, description="compute activations again in the backward pass instead of storing them")

    @model_validator(mode="after")
    def _fits(self) -> "DlvConfig":
        levels = self.scale.bit_length() - 1
        if isinstance(self.couplings, list) and len(self.couplings) != levels:
            raise ValueError(f"couplings has {len(self.couplings)} numbers; scale {self.scale} has {levels} levels")
        if self.patch % self.scale:
            raise ValueError(f"patch {self.patch} is no multiple of the scale {self.scale}")
        return self


class HCFlowConfig(PatchConfig):
    """The hierarchical conditional flow, for rescaling by four."""

    lr: PositiveFloat = Field(2.5e-4, description="learning rate of Adam")
    betas: tuple[float, float] = Field((0.9, 0.99), description="decays of Adam's moments")
    weight_decay: NonNegativeFloat = Field(0.0, description="L2 penalty in Adam's gradient")
    halve_at: list[PositiveInt] = Field(
        [100_000, 200_000, 300_000, 400_000, 450_000], description="steps that halve the rate"
    )
    patch: PositiveInt = Field(160, multiple_of=4, description="edge of a patch of the large image, in pixels")
    clip_norm: PositiveFloat | None = Field(100.0, description="gradient norm above which gradients are scaled down")
    clip_value: PositiveFloat | None = Field(5.0, description="largest entry of a gradient, before its norm")
    steps: tuple[PositiveInt, PositiveInt] = Field((8, 8), description="steps of the main flow in each level")
    conditional_steps: tuple[PositiveInt, PositiveInt] = Field((6, 6), description="of the conditional flow")
    growth: PositiveInt = Field(32, description="features of each layer of a dense block")
    width: PositiveInt = Field(64, description="hidden channels of a conditional coupling")
    features: PositiveInt = Field(64, description="channels of the condition")
    feature_growth: PositiveInt = Field(16, description="growth of the network that makes the condition")
    feature_blocks: tuple[NonNegativeInt, NonNegativeInt] = Field((2, 1), description="its residual blocks")
    zd_channels: NonNegativeInt = Field(0, description="channels of a downscaling latent beside the image, zero")


class HideConfig(PatchConfig):
    """Hiding one image in another (HiNet); ``batch_size`` pairs of cover and secret."""

    batch_size: PositiveInt = Field(8, description="pairs of a step")
    patch: PositiveInt = Field(224, multiple_of=2, description="edge of a patch, in pixels")
    lr: PositiveFloat = Field(10**-4.5, description="learning rate of Adam; 1e-5 late in long runs, or it diverges")
    betas: tuple[float, float] = Field((0.5, 0.999), description="decays of Adam's moments")
    eps: PositiveFloat = Field(1e-6, description="Adam's guard against division by zero")
    halve_at: list[PositiveInt] = Field([], description="steps that halve the rate")
    couplings: PositiveInt = Field(16, description="couplings")
    growth: PositiveInt = Field(32, description="features of each layer of a dense block")
    zd_channels: NonNegativeInt = Field(0, description="channels of zeros beside the secret's wavelets (DLV)")
    quantised: bool = Field(True, description="round the stego image to 8 bits in training, as PNG will")
    zu_mode: Latent = Field("normal", description="what stands for the part left out when revealing")
    lambda_rec: PositiveFloat = Field(5.0, description="weight of the revealed secret")
    lambda_guide: PositiveFloat = Field(1.0, description="weight of the stego image's likeness")
    lambda_low: NonNegativeFloat = Field(1.0, description="weight of its likeness in the lowest band")
    recompute: bool = Field(True, description="compute activations again in the backward pass instead of storing them")


class InferenceConfig(Config):
    """How a network is run on whole images."""

    tile: PositiveInt = Field(1024, multiple_of=8, description="edge of a tile of the large image, in pixels")
    halo: NonNegativeInt | None = Field(
        None, multiple_of=8, description="pixels around a tile; without, all that can have influence: exact"
    )
    precision: Literal["float32", "bf16"] = Field("float32", description="bf16 is faster on some processors, not exact")
    zu_mode: Latent = Field("zero", description="the upscaling latent")
    zu_std: PositiveFloat = Field(1.0, description="its deviation (temperature) where it is normal")
    zd_mode: Latent = Field("zero", description="the downscaling latent")
    zd_std: PositiveFloat = Field(1.0, description="its deviation where it is normal")


class RestoreConfig(InferenceConfig):
    """Test images there and back."""

    block_size: PositiveInt = Field(1, description="images of a block; each goes through the network alone")


class ApplyConfig(InferenceConfig):
    """An operation on image files."""

    block_size: PositiveInt = Field(1, description="images of a block; each goes through the network alone")
    convert: bool = Field(False, description="take files that 8-bit RGB cannot hold without loss all the same")
    skip_bad: bool = Field(False, description="leave out files that cannot be used, and list them")


class HideApplyConfig(ApplyConfig):
    """Hiding needs a secret."""

    secret: Path = Field(description="the image to hide, or a folder with one for each cover, by name")

    @field_validator("secret")
    @classmethod
    def _there(cls, value: Path) -> Path:
        if not value.exists():
            raise ValueError(f"{value} does not exist")
        return value
