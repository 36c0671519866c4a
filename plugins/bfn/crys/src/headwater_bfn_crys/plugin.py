"""What bfn-crys registers."""

from headwater import MethodEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

from headwater_bfn_crys.presets import PRESETS
from headwater_bfn_crys.tasks.entries import KIND, TASKS

API = 1


@hookimpl
def headwater_methods() -> list[MethodEntry]:
    return [
        MethodEntry(
            name="bfn-crys",
            summary="Crystals by periodic Bayesian flow: new ones, or the structure of a composition, in few steps",
            paper=Paper(
                title="A Periodic Bayesian Flow for Material Generation",
                authors=(
                    "Hanlin Wu",
                    "Yuxuan Song",
                    "Jingjing Gong",
                    "Ziyao Cao",
                    "Yawen Ouyang",
                    "Jianbing Zhang",
                    "Hao Zhou",
                    "Wei-Ying Ma",
                    "Jingjing Liu",
                ),
                venue="ICLR",
                year=2025,
                url="https://arxiv.org/abs/2502.02016",
            ),
            kinds=(KIND,),
            task="aflow-prototypes",
            stages=(
                StageEntry(
                    name="train",
                    summary="the flow of types, coordinates and cells, or (trainer.target=csp) of the last two",
                    trainer="headwater_bfn_crys.trainer:CrysTrainer",
                    config="headwater_bfn_crys.config:CrysConfig",
                    defaults={
                        "fit": {"max_steps": 2000, "validate_every": 500, "ema": 0.995},
                        "trainer": {"decay_steps": 2000},
                    },
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="crystals",
                    summary="crystals of the training set's sizes, of a formula, or of the test set's compositions",
                    sampler="headwater_bfn_crys.sampler:CrysSampler",
                    config="headwater_bfn_crys.config:CrysSamplerConfig",
                    condition="headwater_bfn_crys.config:CrystalCondition",
                ),
            ),
            presets=PRESETS,
            tiny={
                "trainer": {"width": 16, "layers": 2, "frequencies": 4, "time_width": 16, "batch_size": 4, "steps": 4},
                "sampler": {"block_size": 4},
            },
            converter="headwater_bfn_crys.convert:from_official",
        )
    ]


@hookimpl
def headwater_tasks() -> list[TaskEntry]:
    return list(TASKS)
