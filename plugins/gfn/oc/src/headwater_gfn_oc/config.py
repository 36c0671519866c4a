"""Settings of gfn-oc."""

from typing import Literal

from headwater import Config
from headwater_gfn.config import GFlowNetConfig, GFlowNetSamplerConfig
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

__all__ = ["BaselineConfig", "FinetuneConfig", "MetropolisConfig", "OCSamplerConfig", "Outcome", "PretrainConfig"]


class PretrainConfig(Config):
    """Learning to reach every outcome, without a reward."""

    mode: Literal["direct", "paper"] = Field(
        "direct",
        description="direct: flows normalised to 1 at the source, on trajectories drawn backward from outcomes; paper: "
        "a trajectory of the explorer and one of the policy for each outcome",
    )
    contrastive: bool = Field(
        True, description="paper: learn from the explorer's trajectories too, and not from the policy's alone"
    )
    teleport: bool = Field(True, description="paper: the reward of the outcome on every transition, not the last alone")
    reward_floor: PositiveFloat = Field(1e-4, lt=1, description="paper: stands for the reward 0 of a missed outcome")
    explorer: Literal["gafn", "uniform"] = Field(
        "gafn", description="paper: a curious network finds the outcomes, or they are drawn uniformly"
    )
    curiosity: PositiveFloat = Field(
        0.005, description="scale of the explorer's intrinsic reward; the official code has 0.001 for large grids"
    )
    imitation: NonNegativeFloat = Field(
        1.0, description="direct: weight of -log P_F of the backward trajectories beside the balance; 0 leaves it out"
    )
    conditioning: Literal["concatenate", "film"] = Field(
        "concatenate", description="the outcome beside the state in the input, or scaling each hidden layer"
    )
    batch_size: PositiveInt = Field(64, description="outcomes in a training batch")
    hidden: tuple[PositiveInt, ...] = Field((256, 256), min_length=1, description="widths of the hidden layers")
    activation: Literal["relu", "leaky-relu"] = Field("leaky-relu", description="between the layers")
    learning_rate: PositiveFloat = Field(1e-3, description="step size of Adam for the networks")
    scalar_learning_rate: PositiveFloat = Field(0.1, description="step size of Adam for the explorer's log Z")
    decay_steps: PositiveInt | None = Field(
        None, description="steps over which the policy's rate falls to a hundredth along a cosine; constant without"
    )
    clip_norm: PositiveFloat | None = Field(10.0, description="gradient norm above which gradients are scaled down")
    exploration: float = Field(0.0, ge=0, le=1, description="paper: probability of a uniform action of the explorer")
    backward: Literal["uniform", "learned"] = Field("uniform", description="the backward policy P_B; direct: uniform")
    validation_outcomes: PositiveInt = Field(
        256, description="outcomes tried for the success rate where it cannot be had exactly"
    )

    @model_validator(mode="after")
    def _fits(self) -> "PretrainConfig":
        if self.mode == "direct" and self.backward == "learned":
            raise ValueError("mode = 'direct' draws by the uniform P_B; backward = 'learned' needs mode = 'paper'")
        return self


class _RewardConfig(GFlowNetConfig):
    """What learning a reward has in common, from flows or from scratch."""

    exponent: PositiveFloat = Field(1.0, description="r = R^exponent")
    replay: Literal["none", "uniform", "prioritised"] = Field(
        "prioritised", description="learn from earlier objects too; prioritised: half of them from the best tenth"
    )
    updates_per_batch: PositiveInt = Field(
        1, description="updates after each rollout; each of them replays replay_batch other objects"
    )
    backward: Literal["learned", "uniform"] = Field("uniform", description="the backward policy P_B")
    clip_norm: PositiveFloat | None = Field(10.0, description="gradient norm above which gradients are scaled down")


class FinetuneConfig(_RewardConfig):
    """The amortised predictor of a reward, on pre-trained flows."""

    outcomes: Literal["trajectory", "sampled"] = Field(
        "trajectory",
        description="the outcome of a transition: the object that its trajectory ends in, whose reward is known; or "
        "drawn by Q, which takes a reward evaluation each (the paper)",
    )
    aimed: float = Field(
        0.25, ge=0, le=1, description="share of the trajectories that aim at random outcomes by the pre-trained policy"
    )
    outcome_uniform: float = Field(
        0.1, ge=0, le=1, description="sampled: probability that a letter of the outcome is drawn uniformly"
    )
    outcome_temperature: PositiveFloat = Field(1.0, description="sampled: divides the logits of Q")
    outcome_hidden: tuple[PositiveInt, ...] = Field(
        (256, 256), min_length=1, description="widths of the hidden layers of Q"
    )

    @model_validator(mode="after")
    def _fits(self) -> "FinetuneConfig":
        if self.backward == "learned":
            raise ValueError("backward = 'learned': the predictor has no backward policy; replay goes back uniformly")
        return self


class BaselineConfig(_RewardConfig):
    """Learning a reward from scratch."""

    objective: Literal["tb", "db", "subtb", "dqn"] = Field(
        "tb", description="GFlowNets by trajectory, detailed or sub-trajectory balance; or deep Q-learning"
    )
    lam: float = Field(0.9, gt=0, le=1, description="lambda of SubTB: the weight of a part of length l is lambda^l")
    target_every: PositiveInt = Field(100, description="dqn: updates between two copies into the target network")


class OCSamplerConfig(GFlowNetSamplerConfig):
    """How objects are drawn: by the policy learned for a reward, or by converting the flows to all outcomes."""

    exponent: PositiveFloat = Field(1.0, description="of the reward that the flows are converted to")
    conversion: Literal["auto", "exact", "sampled"] = Field(
        "auto", description="sum over all outcomes, or over a sample of them; exact where all can be gone through"
    )
    outcomes: PositiveInt = Field(256, description="outcomes in that sample, drawn anew for each block")


class Outcome(Config):
    """What a pre-trained run aims at, in place of a reward."""

    outcome: str | None = Field(None, description="the object to reach, in the words of the task")


class MetropolisConfig(Config):
    """Markov chains on objects: one letter at a time."""

    block_size: PositiveInt = Field(64, description="chains, one sample each")
    steps: PositiveInt = Field(1000, description="proposals in each chain")
    exponent: PositiveFloat = Field(1.0, description="r = R^exponent")
