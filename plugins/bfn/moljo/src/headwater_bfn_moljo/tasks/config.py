"""Settings of the complex tasks."""

from pathlib import Path
from typing import Literal

from headwater import Config
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

__all__ = ["ComplexTaskConfig", "UserComplexesConfig"]


class ComplexTaskConfig(Config):
    """What all complex tasks share: the cut of the pocket, what is held out, how molecules are scored."""

    radius: PositiveFloat = Field(
        10.0, description="residues whose centre of mass is nearer to a ligand atom, in angstrom, are the pocket"
    )
    hold_out: PositiveInt = Field(
        10, ge=2, description="every so manieth complex, by name, is not trained on; molecules are made for those"
    )
    vina: Literal["off", "score", "minimize", "dock"] = Field(
        "minimize", description="energies among the metrics; dock also does the two others and takes minutes a molecule"
    )
    exhaustiveness: PositiveInt = Field(16, description="of docking; published numbers on CrossDocked used 32")
    posebusters: bool = Field(False, description="check each molecule's geometry with PoseBusters, about 1 s each")
    processes: PositiveInt | None = Field(None, description="processes for Vina and PoseBusters; all CPUs without")
    time_limit: PositiveFloat = Field(600.0, description="seconds for one molecule in one of them")
    cache: Path | None = Field(
        None, description="folder in which each Vina result is kept, so that a killed job goes on; none without"
    )


class UserComplexesConfig(ComplexTaskConfig):
    """The user's complexes."""

    path: Path | None = Field(
        None,
        description="folder TARGET/X.sdf with TARGET/X_pocket10.pdb and, for docking, the receptor named by the first "
        "ten letters of X; or a CSV with the columns protein, ligand and, if known, labels (vina, qed, ...)",
    )
    split: Path | None = Field(
        None, description="JSON or .pt with lists train and test of (pocket, ligand) paths below path"
    )
    pocket: Path | None = Field(None, description="PDB of one protein, or of its pocket")
    ligand: Path | None = Field(None, description="SDF of the reference ligand in it")
    skip_bad: bool = Field(False, description="leave out complexes that cannot be used, and list them")

    @model_validator(mode="after")
    def _one_source(self) -> "UserComplexesConfig":
        if self.path is not None and (self.pocket is not None or self.ligand is not None):
            raise ValueError("give path, or pocket and ligand, not both")
        if self.ligand is not None and self.pocket is None:
            raise ValueError("ligand needs the pocket that it lies in")
        if self.split is not None and self.path is None:
            raise ValueError("split needs the path of the data that it divides")
        return self
