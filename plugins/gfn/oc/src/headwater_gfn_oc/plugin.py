"""What gfn-oc registers."""

from typing import Any

from headwater import MethodEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

API = 1

KIND = "gfn.environment"

ONE_THREAD: dict[str, Any] = {"threads": 1}
"""The networks are small: more threads would wait for one another."""

GRID: dict[str, Any] = {"side": 16, "reward": "standard", "floor": 1e-3}


@hookimpl
def headwater_methods() -> list[MethodEntry]:
    return [
        MethodEntry(
            name="gfn-oc",
            summary="GFlowNets pre-trained without a reward to reach every object, and adapted to any reward",
            paper=Paper(
                title="Pre-Training and Fine-Tuning Generative Flow Networks",
                authors=("Ling Pan", "Moksh Jain", "Kanika Madan", "Yoshua Bengio"),
                venue="ICLR",
                year=2024,
                url="https://arxiv.org/abs/2310.03419",
            ),
            kinds=(KIND,),
            task="hypergrid",
            stages=(
                StageEntry(
                    name="pretrain",
                    summary="flows and policies to all outcomes, without a reward (trainer.mode: direct, paper)",
                    trainer="headwater_gfn_oc.trainer:PretrainTrainer",
                    config="headwater_gfn_oc.config:PretrainConfig",
                    defaults={
                        "task": GRID,
                        "trainer": {"decay_steps": 3000},
                        "fit": {"max_steps": 3000, "validate_every": 500, **ONE_THREAD},
                    },
                ),
                StageEntry(
                    name="baseline",
                    summary="the task's reward from scratch: TB, DB, SubTB, deep Q-learning (trainer.objective)",
                    trainer="headwater_gfn_oc.trainer:BaselineTrainer",
                    config="headwater_gfn_oc.config:BaselineConfig",
                    defaults={"task": GRID, "fit": {"max_steps": 2000, "validate_every": 200, **ONE_THREAD}},
                ),
                StageEntry(
                    name="finetune",
                    summary="the amortised predictor of the task's reward, on pre-trained flows (--from)",
                    trainer="headwater_gfn_oc.trainer:FinetuneTrainer",
                    config="headwater_gfn_oc.config:FinetuneConfig",
                    after=("pretrain",),
                    defaults={"task": GRID, "fit": {"max_steps": 500, "validate_every": 50, **ONE_THREAD}},
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="forward",
                    summary="objects by the policy of the reward, or by converting the flows to all outcomes",
                    sampler="headwater_gfn_oc.sampler:OCSampler",
                    config="headwater_gfn_oc.config:OCSamplerConfig",
                    condition="headwater_gfn_oc.config:Outcome",
                ),
                SamplerEntry(
                    name="metropolis",
                    summary="the baseline MCMC on the task's reward: Metropolis-Hastings, one letter at a time",
                    sampler="headwater_gfn_oc.sampler:MetropolisSampler",
                    config="headwater_gfn_oc.config:MetropolisConfig",
                ),
            ),
            presets={
                "paper": {"trainer": {"mode": "paper", "batch_size": 16}, "fit": {"max_steps": 20_000}},
                "strings": {
                    "trainer": {"decay_steps": 10_000},
                    "fit": {"max_steps": 10_000, "validate_every": 1000},
                },
            },
            tiny={
                "task": {"side": 4},
                "trainer": {"hidden": [16], "batch_size": 4},
                "sampler": {"block_size": 8},
            },
            converter="headwater_gfn_oc.convert:from_official",
        )
    ]


@hookimpl
def headwater_tasks() -> list[TaskEntry]:
    return [
        TaskEntry(
            name="rna-binding",
            kind=KIND,
            summary="RNA of one length that binds to hidden targets, by the energy of their duplex (ViennaRNA)",
            task="headwater_gfn_oc.tasks.rna:RNABinding",
            config="headwater_gfn_oc.tasks.rna:RNABindingConfig",
        ),
        TaskEntry(
            name="peptides",
            kind=KIND,
            summary="Peptides of up to 50 residues, rewarded by a classifier of your labelled sequences",
            task="headwater_gfn_oc.tasks.peptides:Peptides",
            config="headwater_gfn_oc.tasks.peptides:PeptidesConfig",
        ),
    ]
