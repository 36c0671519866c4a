"""The tasks that this package registers; importing this loads nothing heavy."""

from headwater import TaskEntry

__all__ = ["KIND", "TASKS"]

KIND = "crystals"

TASKS = [
    TaskEntry(
        name="aflow-prototypes",
        kind=KIND,
        summary="288 real crystals of many structure types, which pymatgen brings along: no download",
        task="headwater_bfn_crys.tasks.embedded:Prototypes",
        config="headwater_bfn_crys.tasks.config:PrototypesConfig",
    ),
    TaskEntry(
        name="perovskites",
        kind=KIND,
        summary="ABX3 perovskites built from tabulated ionic radii, as many as you ask for: no download",
        task="headwater_bfn_crys.tasks.embedded:Perovskites",
        config="headwater_bfn_crys.tasks.config:PerovskitesConfig",
    ),
    TaskEntry(
        name="crystals",
        kind=KIND,
        summary="Your crystals: CSV with a cif column, folder of CIF, POSCAR or extended XYZ, pymatgen JSON, Parquet",
        task="headwater_bfn_crys.tasks.task:UserCrystals",
        config="headwater_bfn_crys.tasks.config:CrystalsConfig",
    ),
]
