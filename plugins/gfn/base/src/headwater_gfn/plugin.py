"""What the GFlowNet base registers: the tasks that its papers share."""

from headwater import TaskEntry, hookimpl

API = 1

KIND = "gfn.environment"


@hookimpl
def headwater_tasks() -> list[TaskEntry]:
    return [
        TaskEntry(
            name="hypergrid",
            kind=KIND,
            summary="A walk from the corner of a grid in D dimensions, with a reward of many modes",
            task="headwater_gfn.tasks.hypergrid:HyperGrid",
            config="headwater_gfn.tasks.hypergrid:HyperGridConfig",
        ),
        TaskEntry(
            name="sets",
            kind=KIND,
            summary="Sets of K out of A items with an energy that is a sum over the items, or your own",
            task="headwater_gfn.tasks.sets:SetGeneration",
            config="headwater_gfn.tasks.sets:SetGenerationConfig",
        ),
        TaskEntry(
            name="bits",
            kind=KIND,
            summary="Strings of bits written word by word, rewarded for being near to hidden modes",
            task="headwater_gfn.tasks.bits:BitSequence",
            config="headwater_gfn.tasks.bits:BitSequenceConfig",
        ),
        TaskEntry(
            name="strings",
            kind=KIND,
            summary="Strings of one length with scores from a table, from your functions, or from a ranking",
            task="headwater_gfn.tasks.strings:Strings",
            config="headwater_gfn.tasks.strings:StringsConfig",
        ),
        TaskEntry(
            name="tfbind8",
            kind=KIND,
            summary="DNA of eight letters with the measured binding of your table",
            task="headwater_gfn.tasks.strings:TFBind8",
            config="headwater_gfn.tasks.strings:TFBind8Config",
        ),
        TaskEntry(
            name="fragments",
            kind=KIND,
            summary="Molecules built from fragments, rewarded by QED, SA, logP, the sEH proxy, or your own scorer",
            task="headwater_gfn.tasks.fragments:Fragments",
            config="headwater_gfn.tasks.fragments:FragmentsConfig",
        ),
    ]
