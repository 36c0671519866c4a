"""Settings of flow-meta."""

from pathlib import Path
from typing import Literal

from headwater import Config
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

__all__ = ["CloudCondition", "CloudSamplerConfig", "EmbedConfig", "FlowConfig", "ICNNConfig", "PredictConfig"]


class BatchConfig(Config):
    """What a training step sees."""

    populations: PositiveInt = Field(4, description="populations in a step")
    points: PositiveInt = Field(
        500, ge=2,
        description="points drawn of each; a smaller population gives all it has. Few points make embeddings noisy",
    )  # fmt: skip


class FlowConfig(BatchConfig):
    """The networks, and how the flow is trained."""

    model: Literal["mfm", "cgfm", "fm"] = Field(
        "mfm",
        description="what the field knows of the population: its embedding (mfm), which of the training populations it "
        "is (cgfm), nothing (fm)",
    )
    base: Literal["source", "gaussian"] = Field(
        "source", description="where the flow starts: at the points of the population, or at noise"
    )
    coupling: Literal["auto", "independent", "ot", "ot-resample"] = Field(
        "auto",
        description="how source and target points pair: as the task pairs them, else like ot (auto); at random; by "
        "exact transport in blocks of 256; by pairs drawn from the exact plan with replacement, as published",
    )
    schedule: Literal["joint", "alternate"] = Field(
        "joint", description="one optimiser for field and embedding, or the published one, in turn with a cache"
    )
    hidden: PositiveInt = Field(128, description="width of the field")
    layers: PositiveInt = Field(3, ge=2, description="hidden layers of the field; with skips one more")
    skips: bool = Field(False, description="residual hidden layers")
    time_features: PositiveInt = Field(128, ge=4, multiple_of=2, description="sinusoidal features of the time")
    space_features: PositiveInt = Field(128, description="random Fourier features of the position, two numbers each")
    space_scale: PositiveFloat = Field(
        0.1, description="standard deviation of the random frequencies (published: 0.01)"
    )
    embedding_width: PositiveInt = Field(64, description="width of the population embedding")
    embedding_layers: PositiveInt = Field(3, description="graph convolutions of the population embedding")
    neighbours: NonNegativeInt = Field(20, description="nearest neighbours of each point; 0 takes points one by one")
    official_linear: bool = Field(
        False,
        description="leave out the first ReLU, as the published code does on single populations with cell types",
    )
    learning_rate: PositiveFloat = Field(2e-3, description="of Adam (published: 1e-4)")

    @model_validator(mode="after")
    def _fits(self) -> "FlowConfig":
        if self.schedule == "alternate" and self.model != "mfm":
            raise ValueError(f"schedule = 'alternate' trains an embedding, and {self.model} has none")
        return self


class ICNNConfig(BatchConfig):
    """The baseline CellOT."""

    widths: tuple[PositiveInt, ...] = Field((64, 64, 64, 64), min_length=1, description="hidden widths of f and g")
    inner_steps: PositiveInt = Field(10, description="steps of g for one of f")
    penalty: float = Field(1.0, ge=0, description="weight of the penalty on negative weights of g")
    learning_rate: PositiveFloat = Field(1e-4, description="of Adam, with betas (0.5, 0.9)")


class SolveConfig(Config):
    """How predictions are integrated."""

    block_size: PositiveInt = Field(10, description="populations in a block")
    method: Literal["dopri5", "euler", "midpoint", "heun2", "heun3", "rk4", "rk4-classic"] = Field(
        "dopri5", description="solver; each population is solved by itself"
    )
    steps: PositiveInt = Field(20, description="steps of a fixed-step solver")
    tolerance: PositiveFloat = Field(1e-4, description="relative and absolute tolerance of dopri5")
    embed_points: PositiveInt | None = Field(
        None, description="points that the embedding sees; as many as in a training step without, for the same density"
    )


class CloudSamplerConfig(SolveConfig):
    """Which populations are predicted, and with how many points."""

    points: PositiveInt = Field(1000, description="points of each cloud, at most; drawn without replacement")
    split: Literal["train", "valid", "test"] = Field("test", description="whose populations, in turn")


class PredictConfig(SolveConfig):
    """Predictions for given populations."""

    points: PositiveInt | None = Field(None, description="points of each cloud, at most; all without")
    treatment: str | None = Field(None, description="treatment of all populations, in the place of their own")


class EmbedConfig(Config):
    """Embeddings of given populations."""

    block_size: PositiveInt = Field(10, description="populations in a block")
    embed_points: PositiveInt | None = Field(
        None, description="points that the embedding sees; as many as in a training step without, for the same density"
    )


class CloudCondition(Config):
    """One population in the place of a split's: of the task by its name, or of a file."""

    population: str | None = Field(None, description="name of a population of the task")
    file: Path | None = Field(None, description="a file with the points of one population (CSV, NPZ, h5ad)")
    treatment: str | None = Field(None, description="treatment, in the place of the population's own")

    @model_validator(mode="after")
    def _one(self) -> "CloudCondition":
        if self.population is not None and self.file is not None:
            raise ValueError("give population or file, not both")
        return self
