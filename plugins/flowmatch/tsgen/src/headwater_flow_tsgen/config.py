"""Settings of flow-tsgen."""

from typing import Any, Literal, Self

from headwater import Config
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

__all__ = ["GenerateConfig", "ReactionCondition", "RefineConfig", "TSGenConfig", "TSSamplerConfig"]

SOLVERS = Literal["euler", "midpoint", "heun2", "rk4", "dopri5"]


class TSGenConfig(Config):
    """Network, flow, loss and optimiser."""

    network: Literal["molgen", "tsgen"] = Field(
        "molgen", description="molgen: v3, equivariant; tsgen: v1, as published, tied to the frame of its data"
    )
    width: PositiveInt = Field(64, description="channels of an atom (published: molgen 256, tsgen 384)")
    pair_width: PositiveInt = Field(64, description="channels of a pair of atoms, of tsgen alone")
    layers: PositiveInt = Field(3, description="attention layers (published: molgen 6, tsgen 5)")
    heads: PositiveInt = Field(4, description="attention heads (published: molgen 8, tsgen 4)")
    feed_forward: PositiveInt = Field(128, description="hidden width between attentions (published: 768, 64)")
    conditioned: bool = Field(True, description="whether the network sees reactant and product")
    condition_share: float = Field(
        1.0, ge=0, le=1,
        description="share of batches with conditions; the others learn all three structures without (tsgen alone)",
    )  # fmt: skip
    fragments: Literal["rp", "official"] = Field(
        "rp", description="molgen's pieces: of the bonds of reactant and product; official: of the TS, which leaks it"
    )
    prior: Literal["midpoint", "noise"] = Field(
        "midpoint", description="where the flow starts: midpoint of reactant and product, or the origin (published)"
    )
    prior_scale: NonNegativeFloat = Field(0.1, description="standard deviation of the noise there, in Angstrom")
    centred: bool = Field(True, description="take the mean off the noise (the published code does not)")
    ot: Literal["none", "rotation", "atoms"] = Field(
        "none",
        description="pairing of TS and noise in a molecule: rotate the TS onto it, or permute its points (as dynOT)",
    )
    path: Literal["linear", "cosine", "vp"] = Field("linear", description="schedule between start and TS")
    times: Literal["uniform", "beta", "start"] = Field(
        "beta",
        description="times in training: U[0,1] (v1), Beta(0.8, 0.8) (v3); start: t = 0 alone, regression without flow",
    )
    reflections: bool = Field(
        False, description="align TS and product to the reactant as mirror images too, as v1 does: loses handedness"
    )
    loss: Literal["l1", "l2", "symm", "alpha", "reverse", "forward"] = Field("l1", description="see the README")
    variance_weight: NonNegativeFloat = Field(
        0.0, description="weight of the loss that wants one direction for 5 noises (v1: 1; costs 5 passes)"
    )
    potential: bool = Field(False, description="train v1's barrier model too, for guidance (tsgen; needs barriers)")
    batch_size: PositiveInt = Field(64, description="reactions in a batch")
    learning_rate: PositiveFloat = Field(1e-3, description="step size of AdamW (published: 1e-4)")
    weight_decay: NonNegativeFloat = Field(0.01, description="weight decay of AdamW")
    clip_norm: PositiveFloat = Field(1.0, description="gradient norm above which gradients are scaled down")
    decay_steps: PositiveInt | None = Field(
        None, description="steps over which the rate falls to 1 % along a cosine; constant without"
    )
    held_out: PositiveInt = Field(
        64, description="reactions that are not trained on and stay with the run, for samples"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads {self.heads}")
        if self.network == "molgen" and self.condition_share < 1:
            raise ValueError("condition_share below 1 is for network=tsgen; molgen has conditioned=false")
        if self.network == "molgen" and self.potential:
            raise ValueError("potential is a part of network=tsgen")
        if self.network == "tsgen" and self.ot == "rotation":
            raise ValueError("ot=rotation needs network=molgen: tsgen depends on how a molecule is turned")
        if self.ot == "atoms" and self.prior == "midpoint":
            raise ValueError("ot=atoms needs prior=noise: around a midpoint every atom has its own place")
        return self


class TSSamplerConfig(Config):
    """How transition states are generated."""

    block_size: PositiveInt = Field(16, description="reactions done at once")
    trials: PositiveInt = Field(
        8, description="seeds for each; the most central guess is kept, and their spread is its uncertainty"
    )
    solver: SOLVERS = Field("midpoint", description="how the flow is integrated")
    steps: PositiveInt = Field(5, description="steps of the solver (not for dopri5); 1 with euler: one network call")
    rtol: PositiveFloat = Field(1e-3, description="relative tolerance of dopri5")
    atol: PositiveFloat = Field(1e-6, description="absolute tolerance of dopri5")
    guidance: NonNegativeFloat = Field(0.0, description="weight of the potential's slope (with a trained potential)")


class ReactionCondition(Config):
    """The reaction to be done; without any the run's own held-out reactions are."""

    reactants: str | None = Field(None, description="file with the reactant, all atoms (XYZ or what ASE reads)")
    products: str | None = Field(None, description="file with the product: the same atoms in the same order")
    smiles: str | None = Field(None, description="mapped reaction SMILES instead of the two files")

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, values: Any) -> Any:
        if isinstance(values, dict):
            ends = [name for name in ("reactants", "products") if values.get(name) is not None]
            if len(ends) == 1:
                other = "products" if ends == ["reactants"] else "reactants"
                raise ValueError(f"{ends[0]} needs {other} beside it")
            if ends and values.get("smiles") is not None:
                raise ValueError("give either reactants and products, or smiles")
        return values


class GenerateConfig(TSSamplerConfig):
    """Generation for a whole file of reactions."""

    skip_bad: bool = Field(False, description="leave out reactions that cannot be used, and list them")


class RefineConfig(TSSamplerConfig):
    """Generation, then a saddle search by Sella on GFN2-xTB."""

    block_size: PositiveInt = Field(1, description="reactions done at once")
    fmax: PositiveFloat = Field(0.01, description="largest force at the saddle, eV/A")
    max_steps: PositiveInt = Field(200, description="steps after which a search is given up")
    baseline: bool = Field(True, description="also start from the IDPP path's middle, to tell the steps saved")
    check: bool = Field(True, description="frequencies at the saddle, and both ways down compared with R and P")
    skip_bad: bool = Field(False, description="leave out reactions that cannot be used, and list them")
