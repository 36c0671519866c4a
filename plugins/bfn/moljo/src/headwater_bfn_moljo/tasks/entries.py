"""The tasks that this package registers; importing this loads nothing heavy."""

from headwater import TaskEntry

__all__ = ["KIND", "TASKS"]

KIND = "complexes"

TASKS = [
    TaskEntry(
        name="posebusters-complexes",
        kind=KIND,
        summary="Four real complexes that ship inside the posebusters package: no download",
        task="headwater_bfn_moljo.tasks.task:PoseBustersComplexes",
        config="headwater_bfn_moljo.tasks.config:ComplexTaskConfig",
    ),
    TaskEntry(
        name="sbmo",
        kind=KIND,
        summary="Your complexes: one protein (PDB) and ligand (SDF), a CrossDocked2020 folder, or a CSV of pairs",
        task="headwater_bfn_moljo.tasks.task:UserComplexes",
        config="headwater_bfn_moljo.tasks.config:UserComplexesConfig",
    ),
]
