"""What this package registers."""

from headwater import MethodEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

API = 1


@hookimpl
def headwater_methods():
    return [
        MethodEntry(
            name="gauss",
            summary="A normal distribution fitted to points",
            paper=Paper(
                title="Theoria motus corporum coelestium",
                authors=("C. F. Gauss",),
                venue="Perthes et Besser",
                year=1809,
                url="https://doi.org/10.3931/e-rara-522",
            ),
            kinds=("gauss.points",),
            task="gauss-cloud",
            stages=(
                StageEntry(
                    name="fit",
                    summary="maximum likelihood",
                    trainer="headwater_gauss.trainer:GaussTrainer",
                    config="headwater_gauss.config:TrainerConfig",
                    defaults={"fit": {"max_steps": 300, "accelerator": "cpu"}},
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="direct",
                    summary="shift and scale normal noise",
                    sampler="headwater_gauss.sampler:GaussSampler",
                    config="headwater_gauss.config:SamplerConfig",
                    condition="headwater_gauss.config:Condition",
                ),
            ),
            tiny={"trainer": {"batch_size": 8}, "sampler": {"block_size": 4}},
        )
    ]


@hookimpl
def headwater_tasks():
    return [
        TaskEntry(
            name="gauss-cloud",
            kind="gauss.points",
            summary="a cloud of points in the plane",
            task="headwater_gauss.tasks:Cloud",
            config="headwater_gauss.config:CloudConfig",
        )
    ]
