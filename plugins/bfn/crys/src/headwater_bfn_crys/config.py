"""Settings of bfn-crys."""

from pathlib import Path
from typing import Literal

from headwater import Config
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

__all__ = ["CrysConfig", "CrysSamplerConfig", "CrystalCondition", "FlowConfig"]


class FlowConfig(Config):
    """What is learned and by which flow: training and sampling must agree on it, so a run's facts hold it."""

    target: Literal["gen", "csp"] = Field(
        "gen", description="what is learned: types, coordinates and cell, or (csp) the last two for a composition"
    )
    steps: PositiveInt = Field(50, description="n, messages of the flow and network calls of a sample")
    coordinates: Literal["torus", "interval"] = Field(
        "torus", description="von Mises flow on the torus, or (the paper's ablation) Gaussian flow on an interval"
    )
    conditioning: Literal["entropy", "time"] = Field(
        "entropy", description="whether the network reads each coordinate's accuracy, or (ablation) the time alone"
    )
    standardise: Literal["entries", "scalar"] = Field(
        "entries",
        description="each entry of the cell by its own mean and deviation in the training set, so that the network "
        "starts from the mean cell; or (published) all by one deviation about 0",
    )
    beta1_coordinates: float = Field(1000.0, gt=1, description="mean accuracy of a coordinate after all messages")
    beta1_types: PositiveFloat = Field(0.5, description="accuracy of a type after all messages")
    sigma1_lattice: float = Field(
        0.0316228, gt=0, lt=1, description="deviation of a cell entry that is left after all messages"
    )


class CrysConfig(FlowConfig):
    """Flow, network, losses and optimiser."""

    batch_size: PositiveInt = Field(64, description="crystals in a training batch")

    width: PositiveInt = Field(128, description="of the network's hidden layers")
    layers: PositiveInt = Field(4, description="rounds of messages between atoms")
    frequencies: PositiveInt = Field(32, description="of the distance features")
    time_width: PositiveInt = Field(128, ge=4, multiple_of=2, description="of the embedding of the step")

    schedule: Path | None = Field(
        None,
        description="NPZ with the accuracies alpha_1..alpha_n under s{n}_{beta1} (official checkpoints were trained "
        "with those in it); exact quadrature without",
    )
    coordinate_loss: Literal["wrapped-square", "cosine"] = Field(
        "wrapped-square", description="distance of coordinates in the loss: the official code's, or the paper's"
    )
    normalise_weights: bool = Field(False, description="divide the coordinates' loss by its mean weight over all steps")
    weight_lattice: NonNegativeFloat = Field(1.0, description="weight of the cell's loss")
    weight_coordinates: NonNegativeFloat = Field(1.0, description="weight of the coordinates' loss")
    weight_types: NonNegativeFloat = Field(1.0, description="weight of the types' loss")
    flow: Literal["bank", "exact"] = Field(
        "bank", description="beliefs on coordinates by look-up in simulated ones, or simulated each time"
    )
    translate: bool = Field(True, description="shift each crystal at random every time it is drawn")

    lattice_std: PositiveFloat | None = Field(
        None,
        description="standard deviation of the cells' entries in angstrom (standardise=scalar); measured on the "
        "training set without",
    )
    elements: tuple[PositiveInt, ...] | None = Field(
        None, description="atomic numbers of the types, in order; those of the data set without"
    )
    atom_counts: tuple[int, ...] | None = Field(
        None, description="how many crystals have 1, 2, 3, ... atoms; counted in the training set without"
    )

    learning_rate: PositiveFloat = Field(1e-3, description="step size of AdamW")
    final_learning_rate: NonNegativeFloat = Field(1e-4, description="step size at the end of a cosine decay")
    decay_steps: PositiveInt | None = Field(
        None, description="steps over which the rate falls along a cosine; constant without"
    )
    clip_norm: PositiveFloat | None = Field(None, description="gradient norm above which gradients are scaled down")

    @model_validator(mode="after")
    def _check(self) -> "CrysConfig":
        if self.elements is not None and (len(set(self.elements)) < len(self.elements) or max(self.elements) > 118):
            raise ValueError("elements must be different atomic numbers, 1 to 118")
        if self.lattice_std is not None and self.standardise == "entries":
            raise ValueError("lattice_std is one number for all entries: it needs standardise=scalar")
        if self.atom_counts is not None and (min(self.atom_counts, default=0) < 0 or not any(self.atom_counts)):
            raise ValueError("atom_counts must be counts, not all of them 0")
        return self


class CrysSamplerConfig(Config):
    """How crystals are drawn from a trained network."""

    block_size: PositiveInt = Field(64, description="crystals sampled at once")
    method: Literal["end-back", "ancestral", "mix"] = Field(
        "end-back",
        description="how one belief leads to the next: drawn from scratch around the estimate, by a message, or the "
        "first for two thirds of the steps and then the second",
    )
    types: Literal["sample", "argmax"] = Field("sample", description="how the last probabilities become elements (gen)")
    atoms: PositiveInt | None = Field(None, description="atoms in each crystal (gen); as in the training set without")
    compositions: Literal["test", "val", "train"] | Path = Field(
        "test", description="crystals of the task, or a file of them, whose compositions are taken in turn (csp)"
    )
    flow: Literal["bank", "exact"] = Field("bank", description="as in training")
    pairs_at_once: PositiveInt = Field(
        32768, description="pairs of atoms in one network call; bounds the memory, and may change last bits"
    )


class CrystalCondition(Config):
    """What is asked of the crystals."""

    formula: str | None = Field(None, description="content of the cell, such as SrTiO3 or Sr2Ti2O6")
