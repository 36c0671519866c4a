"""What gfn-fl registers."""

from headwater import MethodEntry, Paper, SamplerEntry, StageEntry, hookimpl

API = 1

SET_TASK = {"archive_batch": 16, "hidden": [256, 256], "activation": "leaky-relu"}


@hookimpl
def headwater_methods() -> list[MethodEntry]:
    return [
        MethodEntry(
            name="gfn-fl",
            summary="GFlowNets with local credit: forward-looking flows learn from the energy of partial objects",
            paper=Paper(
                title="Better Training of GFlowNets with Local Credit and Incomplete Trajectories",
                authors=("Ling Pan", "Nikolay Malkin", "Dinghuai Zhang", "Yoshua Bengio"),
                venue="ICML",
                year=2023,
                url="https://arxiv.org/abs/2302.01687",
            ),
            kinds=("gfn.environment",),
            task="sets",
            stages=(
                StageEntry(
                    name="train",
                    summary="FL-DB or FL-SubTB, or one of the baselines DB, SubTB, TB, FM (trainer.objective)",
                    trainer="headwater_gfn_fl.trainer:FLTrainer",
                    config="headwater_gfn_fl.config:FLConfig",
                    # The networks are small: more threads would wait for one another.
                    defaults={"fit": {"max_steps": 2000, "validate_every": 200, "threads": 1}},
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="forward",
                    summary="objects by the forward policy",
                    sampler="headwater_gfn.sampler:GFlowNetSampler",
                    config="headwater_gfn.config:GFlowNetSamplerConfig",
                ),
            ),
            presets={
                "set-small": {"task": {"size": "small"}, "trainer": {**SET_TASK, "exploration": 1.0}},
                "set-medium": {"task": {"size": "medium"}, "trainer": {**SET_TASK, "exploration": 0.5}},
                "set-large": {"task": {"size": "large"}, "trainer": {**SET_TASK, "exploration": 0.5}},
            },
            tiny={"trainer": {"hidden": [16], "batch_size": 4}, "sampler": {"block_size": 8}},
            converter="headwater_gfn_fl.convert:from_official",
            demo="headwater_gfn_fl.demo:demo",
        )
    ]
