"""What bfn-moljo registers."""

from headwater import MethodEntry, OperationEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

from headwater_bfn_moljo.tasks.entries import KIND, TASKS

API = 1

PUBLISHED = {"width": 128, "layers": 9, "heads": 16, "knn": 32}


@hookimpl
def headwater_methods() -> list[MethodEntry]:
    return [
        MethodEntry(
            name="bfn-moljo",
            summary="Molecules for a protein pocket by Bayesian flow, optimised by gradients of property predictors",
            paper=Paper(
                title="Empower Structure-Based Molecule Optimization with Gradient Guided Bayesian Flow Networks",
                authors=(
                    "Keyue Qiu",
                    "Yuxuan Song",
                    "Jie Yu",
                    "Hongbo Ma",
                    "Ziyao Cao",
                    "Zhilong Zhang",
                    "Yushuai Wu",
                    "Mingyue Zheng",
                    "Hao Zhou",
                    "Wei-Ying Ma",
                ),
                venue="ICML",
                year=2025,
                url="https://arxiv.org/abs/2411.13280",
            ),
            kinds=(KIND,),
            task="posebusters-complexes",
            stages=(
                StageEntry(
                    name="train",
                    summary="the backbone: coordinates and types of ligands in pockets",
                    trainer="headwater_bfn_moljo.trainer:BackboneTrainer",
                    config="headwater_bfn_moljo.config:BackboneConfig",
                    defaults={"fit": {"max_steps": 2000, "validate_every": 500, "ema": 0.999}},
                ),
                StageEntry(
                    name="predictor",
                    summary="predictors of properties (vina, qed, sa, lipinski or your own) on beliefs of the flow",
                    trainer="headwater_bfn_moljo.trainer:PredictorTrainer",
                    config="headwater_bfn_moljo.config:PredictorConfig",
                    after=("train",),
                    defaults={"fit": {"max_steps": 800, "validate_every": 200, "ema": 0.999}},
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="molecules",
                    summary="molecules in the task's held-out pockets, or in yours, guided by the run's predictors",
                    sampler="headwater_bfn_moljo.sampler:MolSampler",
                    config="headwater_bfn_moljo.config:MolSamplerConfig",
                    condition="headwater_bfn_moljo.config:MoleculeCondition",
                ),
            ),
            operations=tuple(
                OperationEntry(
                    name=name,
                    summary=summary,
                    operation=f"headwater_bfn_moljo.operations:{name.capitalize()}",
                    config="headwater_bfn_moljo.config:OperationConfig",
                )
                for name, summary in (
                    ("score", "Vina energy of each molecule as it lies"),
                    ("minimize", "each molecule moved to the nearest minimum of Vina's energy"),
                    ("dock", "each molecule in its best docked pose"),
                )
            ),
            presets={
                "published": {
                    "trainer": PUBLISHED,
                    "sampler": {"steps": 200},
                    "fit": {"ema": 0.999, "validate_every": 1000, "checkpoint_every": 1000},
                },
                "published-official-sampler": {
                    "trainer": PUBLISHED,
                    "sampler": {"steps": 200, "compat": "official", "coordinate_scale": 50.0, "type_scale": 50.0},
                    "fit": {"ema": 0.999, "validate_every": 1000, "checkpoint_every": 1000},
                },
            },
            tiny={
                "task": {"vina": "off", "radius": 5.0},
                "trainer": {"width": 16, "layers": 2, "heads": 2, "knn": 6, "batch_size": 2},
                "sampler": {"block_size": 2, "steps": 4, "size": 7},
            },
            converter="headwater_bfn_moljo.convert:from_official",
        )
    ]


@hookimpl
def headwater_tasks() -> list[TaskEntry]:
    return list(TASKS)
