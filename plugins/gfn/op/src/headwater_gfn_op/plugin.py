"""What gfn-op registers."""

from typing import Any

from headwater import MethodEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

API = 1

KIND = "gfn.environment"

GRID: dict[str, Any] = {
    "batch_size": 128, "hidden": [64, 64, 64], "learning_rate": 1e-2, "decay_steps": 1000, "exploration": 0.01,
    "backward": "uniform",
}  # fmt: skip
"""The paper's settings of the objective grid, and a decaying learning rate."""

STRINGS: dict[str, Any] = {
    "batch_size": 32, "learning_rate": 1e-3, "decay_steps": 2000, "backward": "learned", "clip_norm": 10.0,
    "replay": "prioritised", "replay_batch": 32, "replay_size": 100_000,
}  # fmt: skip

LONG: dict[str, Any] = {"max_steps": 2000, "validate_every": 200, "checkpoint_every": 200}


@hookimpl
def headwater_methods() -> list[MethodEntry]:
    return [
        MethodEntry(
            name="gfn-op",
            summary="GFlowNets that learn from an order: the best, or a Pareto front, without a reward exponent",
            paper=Paper(
                title="Order-Preserving GFlowNets",
                authors=("Yihang Chen", "Lukas Mauch"),
                venue="ICLR",
                year=2024,
                url="https://arxiv.org/abs/2310.00386",
            ),
            kinds=(KIND,),
            task="objective-grid",
            stages=(
                StageEntry(
                    name="train",
                    summary="OP-TB, OP-DB, OP-SubTB or OP-FM, or a baseline with a scalar reward (trainer.objective)",
                    trainer="headwater_gfn_op.trainer:OPTrainer",
                    config="headwater_gfn_op.config:OPConfig",
                    # The networks are small: more threads would wait for one another.
                    defaults={
                        "trainer": GRID,
                        "fit": {
                            "max_steps": 1000,
                            "validate_every": 100,
                            "checkpoint_every": 100,
                            "keep": 10,
                            "threads": 1,
                        },
                    },
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="forward",
                    summary="objects by the forward policy, of pc-tb under a preference",
                    sampler="headwater_gfn_op.sampler:OPSampler",
                    config="headwater_gfn_op.config:OPSamplerConfig",
                    condition="headwater_gfn_op.config:Preference",
                ),
            ),
            presets={
                "strings": {
                    "trainer": {**STRINGS, "hidden": [128, 128], "updates_per_batch": 3, "exploration": 0.01},
                    "fit": LONG,
                },
                "bag": {"trainer": {**STRINGS, "hidden": [16, 16], "exploration": 0.1}, "fit": LONG},
                "nas": {
                    "trainer": {
                        **STRINGS,
                        "batch_size": 10,
                        "hidden": [256, 256],
                        "activation": "relu",
                        "backward_kl": 0.1,
                        "replay_batch": 20,
                        "backward_trajectories": 20,
                        "updates_per_batch": 20,
                        "decay_steps": 100,
                    },
                    "fit": {"max_steps": 100},
                },
                "fragments": {
                    "trainer": {
                        **STRINGS,
                        "batch_size": 64,
                        "hidden": [64],
                        "learning_rate": 5e-4,
                        "backward": "uniform",
                        "replay": "pareto",
                        "replay_batch": 64,
                    },
                    "fit": LONG,
                },
            },
            tiny={"trainer": {"hidden": [16], "batch_size": 4, "decay_steps": 6}, "sampler": {"block_size": 8}},
            converter="headwater_gfn_op.convert:from_official",
        )
    ]


@hookimpl
def headwater_tasks() -> list[TaskEntry]:
    def entry(name: str, summary: str, room: str, task: str) -> TaskEntry:
        place = f"headwater_gfn_op.tasks.{room}:{task}"
        return TaskEntry(name=name, kind=KIND, summary=summary, task=place, config=f"{place}Config")

    return [
        entry(
            "objective-grid",
            "A grid whose end points have several objectives: Branin, Currin, Shubert, Beale, or your own",
            "grid",
            "ObjectiveGrid",
        ),
        entry("bag", "Multisets of letters, of which a few hidden ones are worth the most", "bag", "Bag"),
        entry("qm9-strings", "Strings of five QM9 blocks with the scores of your table", "strings", "QM9Strings"),
        entry("seh-strings", "Strings of six sEH blocks scored by your ensemble of trees", "strings", "SEHStrings"),
        entry("nas-bench-201", "Network cells with the accuracies of your NAS-Bench-201 table", "nas", "NASBench201"),
        entry(
            "objective-fragments",
            "Molecules built from fragments with several objectives: QED, SA, logP, weight, sEH, or your own",
            "fragments",
            "ObjectiveFragments",
        ),
    ]
