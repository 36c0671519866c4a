"""What the method ``toy`` registers; the metadata beside this file make it an installed plugin."""

from headwater import (
    MethodEntry,
    OperationEntry,
    Paper,
    SamplerEntry,
    StageEntry,
    TaskEntry,
    hookimpl,
)

API = 1


@hookimpl
def headwater_methods():
    return [
        MethodEntry(
            name="toy",
            summary="a method for tests",
            paper=Paper(title="T", authors=("A. B.",), venue="V", year=2026, url="https://example.org"),
            kinds=("toy.numbers",),
            task="toy-numbers",
            stages=(
                StageEntry(name="fit", summary="s", trainer="toy:ToyTrainer", config="toy:TrainerConfig"),
                StageEntry(
                    name="refine",
                    summary="s",
                    trainer="toy:ToyTrainer",
                    config="toy:TrainerConfig",
                    after=("fit",),
                ),
                StageEntry(
                    name="polish",
                    summary="s",
                    trainer="toy:PolishTrainer",
                    config="toy:TrainerConfig",
                    after=("fit",),
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="plain",
                    summary="s",
                    sampler="toy:ToySampler",
                    config="toy:SamplerConfig",
                    condition="toy:Condition",
                ),
            ),
            operations=(
                OperationEntry(name="double", summary="s", operation="toy:Double", config="toy:OperationConfig"),
            ),
            presets={"wide": {"trainer": {"width": 9}}},
            tiny={"sampler": {"block_size": 3}},
            converter="toy:from_official",
        )
    ]


@hookimpl
def headwater_tasks():
    return [
        TaskEntry(
            name="toy-numbers",
            kind="toy.numbers",
            summary="s",
            task="toy:Numbers",
            config="toy:NumbersConfig",
        )
    ]
