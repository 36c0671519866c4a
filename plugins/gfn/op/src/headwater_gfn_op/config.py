"""Settings of gfn-op."""

from typing import Literal

from headwater import Config
from headwater_gfn.config import GFlowNetConfig, GFlowNetSamplerConfig
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

__all__ = ["OPConfig", "OPSamplerConfig", "Preference"]


class OPConfig(GFlowNetConfig):
    """The objective and what belongs to it; the rest is shared by all GFlowNet methods."""

    objective: Literal["op-tb", "op-db", "op-subtb", "op-fm", "tb", "db", "subtb", "fm", "pc-tb"] = Field(
        "op-tb",
        description="op-...: from the order alone; the others are baselines that sample in proportion to R^exponent, "
        "pc-tb under a preference among the objectives",
    )
    order: Literal["auto", "pairs", "pareto"] = Field(
        "auto",
        description="pairs of objects, or the non-dominated objects of a batch; pareto where there are several "
        "objectives",
    )
    tie: NonNegativeFloat = Field(
        0.0, description="what is worse by at most this counts as equal in a pair; the official code has 1e-6"
    )
    order_weight: PositiveFloat = Field(
        0.1, description="weight of the order loss beside the balance of op-db, op-subtb and op-fm"
    )
    lam: float = Field(0.9, gt=0, le=1, description="lambda of SubTB: the weight of a part of length l is lambda^l")
    backward_kl: NonNegativeFloat = Field(
        0.0, description="weight of KL(uniform || P_B), which keeps a learned P_B spread out; 0.1 in the paper"
    )
    exponent: PositiveFloat = Field(1.0, description="of the reward, for the baselines tb, db, subtb and fm")
    z_hidden: tuple[PositiveInt, ...] = Field(
        (32, 32, 32), min_length=1, description="widths of the hidden layers of pc-tb's network for log Z"
    )
    replay: Literal["none", "uniform", "prioritised", "pareto"] = Field(  # type: ignore[assignment] # one more
        "none",
        description="learn from earlier objects too; prioritised: half of them from the best tenth; pareto: a share "
        "of them from the non-dominated objects found so far",
    )
    pareto_share: float = Field(0.1, ge=0, le=1, description="that share, with replay = 'pareto'")
    backward_trajectories: PositiveInt = Field(
        1, description="trajectories drawn backward from each replayed object (augmentation)"
    )
    updates_per_batch: PositiveInt = Field(1, description="updates of the network on each batch")
    clip_norm: PositiveFloat | None = Field(None, description="gradient norm above which gradients are scaled down")
    weight_decay: NonNegativeFloat = Field(0.0, description="L2 penalty of Adam on the network")

    @model_validator(mode="after")
    def _fits(self) -> "OPConfig":
        if self.backward_kl and self.backward == "uniform":
            raise ValueError("backward_kl regularises a learned backward policy, but backward = 'uniform'")
        if self.backward_kl and self.objective in ("fm", "op-fm"):
            raise ValueError(f"backward_kl has no meaning for {self.objective}, which has no backward policy")
        return self

    @property
    def by_order(self) -> bool:
        """Whether the objective looks at the order alone."""
        return self.objective.startswith("op-")


class OPSamplerConfig(GFlowNetSamplerConfig):
    """How objects are drawn from a trained policy."""


class Preference(Config):
    """What a run with ``objective = "pc-tb"`` samples for."""

    weights: tuple[NonNegativeFloat, ...] | None = Field(
        None, description="of the objectives; drawn anew for each block without"
    )
    exponent: PositiveFloat = Field(16.0, description="of the weighted sum of the objectives")
