"""Settings that the trainers and samplers of all GFlowNet methods share."""

from typing import Literal

from headwater import Config
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

__all__ = ["GFlowNetConfig", "GFlowNetSamplerConfig"]


class GFlowNetConfig(Config):
    """Network, optimiser, exploration and replay."""

    batch_size: PositiveInt = Field(16, description="trajectories in a training batch")
    hidden: tuple[PositiveInt, ...] = Field((256, 256), min_length=1, description="widths of the hidden layers")
    activation: Literal["relu", "leaky-relu"] = Field("leaky-relu", description="between the layers")
    learning_rate: PositiveFloat = Field(1e-3, description="step size of Adam for the network")
    scalar_learning_rate: PositiveFloat = Field(0.1, description="step size of Adam for log Z and other bare scalars")
    decay_steps: PositiveInt | None = Field(
        None, description="steps over which the rates fall to 0 along a cosine; constant rates without"
    )
    exploration: float = Field(0.1, ge=0, le=1, description="probability of a uniform action")
    exploration_until: PositiveInt | None = Field(
        None, description="step at which exploration has fallen linearly to 0; it stays as it is without"
    )
    temperature: PositiveFloat = Field(1.0, description="divides the logits while training trajectories are sampled")
    backward: Literal["learned", "uniform"] = Field("learned", description="the backward policy P_B")
    replay: Literal["none", "uniform", "prioritised"] = Field(
        "none", description="learn from earlier objects too; prioritised: half of them from the best tenth"
    )
    replay_size: PositiveInt = Field(10_000, description="objects kept for replay")
    replay_batch: PositiveInt = Field(16, description="replayed trajectories in a batch, beside batch_size")
    archive_batch: NonNegativeInt = Field(
        0,
        description="trajectories of the policy itself drawn for the archive alone; 0 archives the training batch",
    )
    archive_size: PositiveInt = Field(1000, description="best different objects kept")


class GFlowNetSamplerConfig(Config):
    """How objects are drawn from a trained policy."""

    block_size: PositiveInt = Field(256, description="trajectories sampled at once")
    temperature: PositiveFloat = Field(1.0, description="divides the logits; below 1 samples are greedier")
