"""What flow-meta registers."""

from headwater import MethodEntry, OperationEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

API = 1

KIND = "populations"


@hookimpl
def headwater_tasks() -> list[TaskEntry]:
    return [
        TaskEntry(
            name="letters",
            kind=KIND,
            summary="Silhouettes of letters in any rotation, blurred by noise: recover those of letters not seen",
            task="headwater_flow_meta.tasks.letters:Letters",
            config="headwater_flow_meta.tasks.letters:LettersConfig",
        ),
        TaskEntry(
            name="h5ad",
            kind=KIND,
            summary="Cells of an AnnData file: population, treatment and time (before, after) in obs",
            task="headwater_flow_meta.tasks.h5ad:H5AD",
            config="headwater_flow_meta.tasks.h5ad:H5ADConfig",
        ),
        TaskEntry(
            name="population-pairs",
            kind=KIND,
            summary="A folder with a pair of clouds for each population, before and after, as NPZ or CSV",
            task="headwater_flow_meta.tasks.pairs:PopulationPairs",
            config="headwater_flow_meta.tasks.pairs:PopulationPairsConfig",
        ),
        TaskEntry(
            name="organoids",
            kind=KIND,
            summary="The organoid drug screen in the official files: a matrix of cells and pickled splits",
            task="headwater_flow_meta.tasks.organoids:Organoids",
            config="headwater_flow_meta.tasks.organoids:OrganoidsConfig",
        ),
        TaskEntry(
            name="pbmc-response",
            kind=KIND,
            summary="Semi-synthetic: real blood cells (scanpy's pbmc68k_reduced), a made, density-dependent response",
            task="headwater_flow_meta.tasks.pbmc:PBMCResponse",
            config="headwater_flow_meta.tasks.pbmc:PBMCResponseConfig",
        ),
    ]


@hookimpl
def headwater_methods() -> list[MethodEntry]:
    return [
        MethodEntry(
            name="flow-meta",
            summary="Meta flow matching: predicts how a whole population moves, from an embedding of its points",
            paper=Paper(
                title="Meta Flow Matching: Integrating Vector Fields on the Wasserstein Manifold",
                authors=(
                    "Lazar Atanackovic",
                    "Xi Zhang",
                    "Brandon Amos",
                    "Mathieu Blanchette",
                    "Leo J. Lee",
                    "Yoshua Bengio",
                    "Alexander Tong",
                    "Kirill Neklyudov",
                ),
                venue="ICLR",
                year=2025,
                url="https://arxiv.org/abs/2408.14608",
            ),
            kinds=(KIND,),
            task="letters",
            stages=(
                StageEntry(
                    name="flow",
                    summary="flow matching with the embedding (trainer.model = mfm), or a baseline without (fm, cgfm)",
                    trainer="headwater_flow_meta.trainer:FlowTrainer",
                    config="headwater_flow_meta.config:FlowConfig",
                    defaults={"fit": {"max_steps": 4000, "validate_every": 1000}},
                ),
                StageEntry(
                    name="icnn",
                    summary="the baseline CellOT: one transport map, the gradient of an input-convex network",
                    trainer="headwater_flow_meta.trainer:ICNNTrainer",
                    config="headwater_flow_meta.config:ICNNConfig",
                    defaults={"fit": {"max_steps": 2000, "threads": 1}},
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="clouds",
                    summary="the predicted cloud of each population of a split, or of the one that a condition names",
                    sampler="headwater_flow_meta.sampler:CloudSampler",
                    config="headwater_flow_meta.config:CloudSamplerConfig",
                    condition="headwater_flow_meta.config:CloudCondition",
                ),
            ),
            operations=(
                OperationEntry(
                    name="predict",
                    summary="the predicted cloud of every population in a file (CSV, NPZ, h5ad)",
                    operation="headwater_flow_meta.operations:Predict",
                    config="headwater_flow_meta.config:PredictConfig",
                ),
                OperationEntry(
                    name="embed",
                    summary="the embedding of every population in a file",
                    operation="headwater_flow_meta.operations:Embed",
                    config="headwater_flow_meta.config:EmbedConfig",
                ),
            ),
            presets={
                "letters-paper": {
                    "trainer": {
                        "populations": 10, "points": 700, "hidden": 512, "layers": 4, "embedding_width": 64,
                        "embedding_layers": 3, "neighbours": 50, "learning_rate": 1e-4, "space_scale": 0.01,
                    },
                    "fit": {"max_steps": 576_000},
                },
                "organoids-paper": {
                    "trainer": {
                        "populations": 1, "points": 1024, "hidden": 512, "layers": 7, "skips": True,
                        "embedding_width": 128, "embedding_layers": 2, "neighbours": 100, "learning_rate": 1e-4,
                        "coupling": "independent", "space_scale": 0.01,
                    },
                },
            },
            tiny={
                "task": {"letters": "SQ", "rotations": 2, "valid": "X", "test": "Y", "metric_points": 60},
                "trainer": {"points": 24, "populations": 3},
                "sampler": {"block_size": 2, "points": 50, "method": "midpoint", "steps": 3},
            },
            converter="headwater_flow_meta.convert:from_official",
        )
    ]  # fmt: skip
