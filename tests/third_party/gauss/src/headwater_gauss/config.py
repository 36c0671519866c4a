"""The settings."""

from headwater import Config
from pydantic import Field, PositiveFloat, PositiveInt


class TrainerConfig(Config):
    learning_rate: PositiveFloat = Field(0.05, description="step size of Adam")
    batch_size: PositiveInt = Field(128, description="points in a batch")


class SamplerConfig(Config):
    block_size: PositiveInt = Field(64, description="points computed at once")


class Condition(Config):
    temperature: PositiveFloat = Field(1.0, description="factor on the deviations from the mean")


class CloudConfig(Config):
    centre: tuple[float, float] = Field((1.0, -2.0), description="mean of the cloud")
