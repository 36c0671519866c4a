"""Settings of the crystal tasks."""

from pathlib import Path
from typing import Literal

from headwater import Config
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

__all__ = ["METRICS", "CrystalTaskConfig", "CrystalsConfig", "PerovskitesConfig", "PrototypesConfig"]

Metric = Literal["match", "metre", "validity", "coverage", "distances", "unique", "novel"]

METRICS: tuple[Metric, ...] = ("match", "metre", "validity", "coverage", "distances", "unique", "novel")


class CrystalTaskConfig(Config):
    """What all crystal tasks share: how the data are split, and how samples are scored."""

    max_atoms: PositiveInt = Field(128, description="most atoms in a cell")
    split: Literal["random", "composition"] = Field(
        "random",
        description="how validation and test crystals are drawn where no file gives them: one by one, or all "
        "crystals of a reduced formula together, so that no polymorph of a test crystal is trained on",
    )
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share of the crystals for validation")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="share of the crystals for the test")
    split_seed: NonNegativeInt = Field(0, description="seed of that draw")

    metrics: tuple[Metric, ...] = Field(METRICS, description="which groups of metrics to compute")
    pair: Literal["ids", "order", "none"] = Field(
        "ids",
        description="which test crystal a sample predicts: the one of its id, the one at its place "
        "(sample i goes with test crystal i modulo their number), or none",
    )
    published: Literal["mp-20", "perov-5", "carbon-24", "mpts-52"] | None = Field(
        None, description="the data set, if it is a published one: sets the coverage cut-offs and the paper's numbers"
    )
    comp_scaler: Path | None = Field(
        None,
        description="NPZ with means and stds (132,) that standardise Magpie features, as the published coverage needs; "
        "those of the training crystals without",
    )
    oxidation_states: Literal["smact14", "icsd16", "icsd24", "wiki", "pymatgen_sp"] = Field(
        "smact14", description="SMACT's set of oxidation states; published numbers used smact14"
    )
    max_elements: PositiveInt = Field(
        8, description="crystals of more elements count as compositionally invalid: SMACT's time grows exponentially"
    )
    processes: PositiveInt | None = Field(None, description="processes for reading and scoring; all CPUs without")
    time_limit: PositiveFloat = Field(60.0, description="seconds for one structure in one metric")

    @model_validator(mode="after")
    def _something_is_left(self) -> "CrystalTaskConfig":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave no crystal for training")
        return self


class PrototypesConfig(CrystalTaskConfig):
    """The AFLOW prototypes inside pymatgen."""

    max_atoms: PositiveInt = Field(20, description="most atoms in a cell; larger prototypes are left out")


class PerovskitesConfig(CrystalTaskConfig):
    """Perovskites built from ionic radii."""

    crystals: PositiveInt = Field(1000, description="how many")
    strain: float = Field(0.02, ge=0, le=0.2, description="standard deviation of the random strain of each cell edge")
    seed: NonNegativeInt = Field(0, description="seed of compositions and strains")
    max_atoms: PositiveInt = Field(5, ge=5, description="most atoms in a cell; a perovskite has five")


class CrystalsConfig(CrystalTaskConfig):
    """Crystals from the user's files."""

    path: Path = Field(
        description="folder with train.csv, val.csv and test.csv; or a file (CSV or Parquet with a column cif, "
        "pymatgen JSON, CIF, extended XYZ, POSCAR) or a folder of files with the training crystals"
    )
    validation_path: Path | None = Field(None, description="file or folder with the validation crystals")
    test_path: Path | None = Field(None, description="file or folder with the test crystals")
    reduce: bool = Field(True, description="replace each cell by its Niggli-reduced one")
    skip_bad: bool = Field(False, description="leave out crystals that cannot be used, and list them")
    cache: Literal["beside", "off"] | Path = Field(
        "beside",
        description="where parsed files are kept: in .headwater-cache beside them, nowhere, or in a folder of yours; "
        "safe to delete",
    )
