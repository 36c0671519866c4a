"""What flow-tsgen registers."""

from headwater import MethodEntry, OperationEntry, Paper, SamplerEntry, StageEntry, TaskEntry, hookimpl

API = 1

KIND = "reactions"

PUBLISHED = {"prior": "noise", "prior_scale": 1.0, "centred": False, "learning_rate": 1e-4}

MOLGEN = {
    **PUBLISHED,
    "network": "molgen",
    "width": 256,
    "layers": 6,
    "heads": 8,
    "feed_forward": 768,
    "loss": "l1",
    "batch_size": 64,
}

TSGEN = {
    **PUBLISHED,
    "network": "tsgen",
    "width": 384,
    "pair_width": 64,
    "layers": 5,
    "heads": 4,
    "feed_forward": 64,
    "loss": "l2",
    "times": "uniform",
    "variance_weight": 1.0,
    "condition_share": 0.3,
    "reflections": True,
    "batch_size": 8,
}


@hookimpl
def headwater_tasks() -> list[TaskEntry]:
    return [
        TaskEntry(
            name="xtb-reactions",
            kind=KIND,
            summary="Embedded: elementary reactions of small molecules on the GFN2-xTB surface; makes more of your own",
            task="headwater_flow_tsgen.tasks.reactions:XtbReactions",
            config="headwater_flow_tsgen.tasks.reactions:XtbReactionsConfig",
        ),
        TaskEntry(
            name="reactions",
            kind=KIND,
            summary="Your reactions: extended XYZ, folders, Transition1x HDF5, RDB7 tables, mapped reaction SMILES",
            task="headwater_flow_tsgen.tasks.reactions:Reactions",
            config="headwater_flow_tsgen.tasks.reactions:ReactionsConfig",
        ),
    ]


@hookimpl
def headwater_methods() -> list[MethodEntry]:
    return [
        MethodEntry(
            name="flow-tsgen",
            summary="Transition states of chemical reactions by conditional flow matching, from reactant and product",
            paper=Paper(
                title="Accurate generation of chemical reaction transition states by conditional flow matching",
                authors=("Ping Tuo", "Jiale Chen", "Ju Li"),
                venue="arXiv 2507.10530",
                year=2025,
                url="https://arxiv.org/abs/2507.10530",
            ),
            kinds=(KIND,),
            task="xtb-reactions",
            stages=(
                StageEntry(
                    name="train",
                    summary="conditional flow matching; molgen (v3, equivariant) or tsgen (v1)",
                    trainer="headwater_flow_tsgen.trainer:TSGenTrainer",
                    config="headwater_flow_tsgen.config:TSGenConfig",
                    defaults={"fit": {"max_steps": 2000, "validate_every": 200, "ema": 0.99}},
                ),
            ),
            samplers=(
                SamplerEntry(
                    name="flow",
                    summary="TS guesses with an uncertainty over seeds, of one reaction or of the held-out ones",
                    sampler="headwater_flow_tsgen.sampler:TSSampler",
                    config="headwater_flow_tsgen.config:TSSamplerConfig",
                    condition="headwater_flow_tsgen.config:ReactionCondition",
                ),
            ),
            operations=(
                OperationEntry(
                    name="generate",
                    summary="TS guesses for all reactions of a file",
                    operation="headwater_flow_tsgen.operations:Generate",
                    config="headwater_flow_tsgen.config:GenerateConfig",
                ),
                OperationEntry(
                    name="refine",
                    summary="guesses, then a saddle search by Sella on GFN2-xTB; steps saved against IDPP",
                    operation="headwater_flow_tsgen.operations:Refine",
                    config="headwater_flow_tsgen.config:RefineConfig",
                ),
            ),
            presets={
                "molgen": {"trainer": MOLGEN, "sampler": {"solver": "dopri5", "trials": 30}},
                "tsgen": {"trainer": TSGEN, "sampler": {"solver": "dopri5", "trials": 1}},
            },
            tiny={
                "trainer": {"width": 8, "layers": 1, "heads": 2, "feed_forward": 8, "batch_size": 4, "held_out": 6},
                "sampler": {"block_size": 4, "trials": 2, "steps": 1},
            },
            converter="headwater_flow_tsgen.convert:from_official",
        )
    ]
