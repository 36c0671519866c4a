"""Settings of bfn-moljo."""

import re
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

__all__ = ["KNOWN", "BackboneConfig", "MolSamplerConfig", "MoleculeCondition", "OperationConfig", "PredictorConfig"]

KNOWN = ("vina", "qed", "sa", "lipinski")
"""Properties that this package computes by itself."""


class NetworkConfig(Config):
    """A network and its optimiser."""

    width: PositiveInt = Field(64, description="of the network's hidden layers")
    layers: PositiveInt = Field(4, description="rounds of messages")
    heads: PositiveInt = Field(8, description="of the attention; they divide the width")
    knn: PositiveInt = Field(16, description="nearest atoms that each atom hears")
    batch_size: PositiveInt = Field(8, description="complexes in a training batch")
    learning_rate: PositiveFloat = Field(5e-4, description="step size of Adam")
    clip_norm: PositiveFloat | None = Field(8.0, description="gradient norm above which gradients are scaled down")
    rotate: bool = Field(True, description="turn each complex at random every time it is drawn")

    @model_validator(mode="after")
    def _heads_divide(self) -> "NetworkConfig":
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")
        return self


class BackboneConfig(NetworkConfig):
    """The flow and its network."""

    sigma1: float = Field(0.03, gt=0, lt=1, description="deviation of a coordinate after all messages, in 2 angstrom")
    beta1: PositiveFloat = Field(1.5, description="accuracy of a type after all messages")
    loss: Literal["continuous", "discrete"] = Field(
        "continuous", description="the limit of infinitely many messages, or the published one of 1000"
    )
    type_weight: NonNegativeFloat = Field(1.0, description="weight of the types' loss beside that of the coordinates")


class PredictorConfig(NetworkConfig):
    """Predictors of properties, one network each, trained side by side."""

    properties: tuple[str, ...] = Field(
        ("vina", "sa"),
        min_length=1,
        description="vina, qed, sa, lipinski; or package.module:function of an RDKit molecule, with values in (0, 1)",
    )

    @field_validator("properties")
    @classmethod
    def _known(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value not in KNOWN and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
                raise ValueError(
                    f"{value!r} is none of {', '.join(KNOWN)} and no import string package.module:function"
                )
        if len(set(values)) < len(values):
            raise ValueError("a property is named twice")
        return values


class MolSamplerConfig(Config):
    """How molecules are drawn."""

    block_size: PositiveInt = Field(4, description="molecules made at once, all in one pocket")
    steps: PositiveInt = Field(100, description="n, network calls of a molecule; published numbers used 200")
    compat: Literal["theory", "official"] = Field(
        "theory",
        description="the sampler of the theory, or that of the released code; their differences are in the docs",
    )
    strategy: Literal["end-back", "vanilla", "window"] = Field(
        "end-back", description="of the official sampler; window needs sampler.window"
    )
    window: PositiveInt | None = Field(
        None, description="k, messages that a step draws again; the whole chain without, 1 is the plain chain"
    )
    types: Literal["pmf", "sample"] = Field(
        "pmf", description="a step takes the types' probabilities, or a class drawn"
    )
    guides: dict[str, NonNegativeFloat] | None = Field(
        None, description="weights of the predictors by property; all alike without, {} does not guide"
    )
    coordinate_scale: NonNegativeFloat = Field(1.0, description="s of the coordinates' guidance; official: 50")
    type_scale: NonNegativeFloat = Field(1.0, description="s of the types' guidance; official: 50")
    size: Literal["reference", "prior"] | PositiveInt = Field(
        "reference", description="atoms of a molecule: those of the reference ligand, drawn by pocket size, or a number"
    )
    size_prior: Path | None = Field(
        None, description="JSON with bounds and bins (n_atoms, p) of the published prior; needed by size=prior"
    )

    @model_validator(mode="after")
    def _fits(self) -> "MolSamplerConfig":
        if self.size == "prior" and self.size_prior is None:
            raise ValueError("size=prior needs size_prior, a JSON file with bounds and bins")
        if self.window is not None and self.window > self.steps:
            raise ValueError(f"window = {self.window} is longer than the chain of steps = {self.steps}")
        if self.compat == "official" and self.strategy == "window" and self.window is None:
            raise ValueError("strategy=window needs window, how many messages a step draws again")
        if self.compat == "official" and self.types == "sample":
            raise ValueError("types is of the sampler of the theory; the official strategies fix it")
        return self


class MoleculeCondition(Config):
    """Where molecules are made, and what of the reference ligand they keep."""

    pocket: Path | None = Field(None, description="PDB of the protein; the task's complexes without")
    ligand: Path | None = Field(None, description="SDF of the reference ligand in it")
    target: str | None = Field(None, description="name of the one complex of the task to make molecules for")
    keep: Literal["none", "scaffold", "side-groups", "all"] | tuple[NonNegativeInt, ...] = Field(
        "none",
        description="atoms of the reference that stay: its scaffold (R-group optimisation), all but the scaffold "
        "(scaffold hopping), all (growing), or these, counted from 0 among heavy atoms",
    )
    grow: NonNegativeInt = Field(0, description="free atoms beyond those of the reference")

    @model_validator(mode="after")
    def _pair(self) -> "MoleculeCondition":
        if (self.pocket is None) != (self.ligand is None):
            raise ValueError("pocket and ligand are given together")
        if self.pocket is not None and self.target is not None:
            raise ValueError("give pocket and ligand, or the name of a target")
        if self.keep == "all" and self.grow == 0:
            raise ValueError("keep=all leaves nothing free: say how many atoms to grow, grow=5")
        return self


class OperationConfig(Config):
    """Vina on given molecules."""

    block_size: PositiveInt = Field(64, description="molecules in one block of the output")
    pocket: Path | None = Field(
        None, description="PDB of the protein; without, that of the complex that a molecule names as its target"
    )
    exhaustiveness: PositiveInt = Field(16, description="of docking")
    processes: PositiveInt | None = Field(None, description="as many as there are CPUs without")
    time_limit: PositiveFloat = Field(600.0, description="seconds for one molecule")
    cache: Path | None = Field(
        None, description="folder in which each result is kept, so that a killed job goes on; none without"
    )
