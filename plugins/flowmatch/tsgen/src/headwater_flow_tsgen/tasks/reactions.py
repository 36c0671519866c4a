"""The tasks: reactions of the user's own, and the embedded set of GFN2-xTB reactions."""

import hashlib
import sys
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from headwater import Config, DataError, Task, UsageError
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from headwater_flow_tsgen.tasks.formats import Faults, read
from headwater_flow_tsgen.tasks.guess import Guess, read_guesses, write_guesses
from headwater_flow_tsgen.tasks.reaction import Reaction

if TYPE_CHECKING:
    from headwater.reporting import Panel
    from headwater.run import Run

__all__ = ["PARTS", "Reactions", "ReactionsConfig", "XtbReactions", "XtbReactionsConfig"]

PARTS = ("train", "val", "test")


class EvaluationConfig(Config):
    """What is measured of guesses."""

    energies: bool = Field(True, description="barrier errors by GFN2-xTB single points, where tblite is installed")
    idpp: bool = Field(True, description="the IDPP path as a baseline (0.1 s a reaction)")
    frequencies: NonNegativeInt = Field(0, description="how many guesses have their frequencies computed (tblite)")


class ReactionsConfig(EvaluationConfig):
    """Where reactions come from and how they are split."""

    path: str = Field(description="extended XYZ, folder, Transition1x HDF5, RDB7 NPZ or mapped reaction SMILES")
    split: str = Field("grouped", description="which split column of an RDB7 table: grouped (by reactant) or source")
    held_out: float = Field(
        0.2, gt=0, lt=1, description="share of reactants held out where the data has no split: half val, half test"
    )
    max_atoms: PositiveInt | None = Field(None, description="leave larger reactions out; all without")
    skip_bad: bool = Field(False, description="leave out reactions that cannot be used, and list them")


def part_of(group: str, held_out: float) -> str:
    """Train, val or test by a hash of ``group``, so that one reactant is never on two sides."""
    u = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if u < held_out / 2:
        return "test"
    return "val" if u < held_out else "train"


class Reactions(Task):
    """Reactions of a file or folder."""

    kind: ClassVar[str] = "reactions"
    suffixes: ClassVar[tuple[str, ...]] = (".xyz", ".extxyz")

    def reactions(self) -> list[Reaction]:
        """All reactions that can be used, in the order of the file."""
        config = self.config
        faults: Faults = [] if config.skip_bad else None
        found = read(Path(config.path), faults, config.split)
        for fault in faults or ():
            print(f"left out: {fault}", file=sys.stderr)
        if config.max_atoms is not None:
            found = [reaction for reaction in found if len(reaction) <= config.max_atoms]
        if not found:
            raise DataError(f"{config.path} has no reaction that can be used")
        return found

    @cached_property
    def _parts(self) -> dict[str, list[Reaction]]:
        parts: dict[str, list[Reaction]] = {part: [] for part in PARTS}
        for reaction in self.reactions():
            group = reaction.group or reaction.name
            parts[reaction.part or part_of(group, self.held_out)].append(reaction)
        return parts

    @property
    def held_out(self) -> float:
        """The share of reactants that is held out."""
        return float(self.config.held_out)

    def parts(self) -> dict[str, list[Reaction]]:
        """Reactions to train on, to validate on and to test on."""
        return self._parts

    def metrics(self, samples: Sequence[Guess]) -> dict[str, float]:
        from headwater_flow_tsgen.chemistry import have
        from headwater_flow_tsgen.evaluation import score

        config, able = self.config, have("tblite")
        if config.frequencies and not able:
            raise UsageError("task.frequencies needs tblite: pip install 'headwater-flow-tsgen[chem]'")
        return score(
            samples, with_energies=config.energies and able, with_idpp=config.idpp, frequencies=config.frequencies
        )

    def write(self, samples: Sequence[Guess], path: Path, start: int = 0) -> None:
        write_guesses(samples, path, start)

    def read(self, path: Path) -> list[Guess]:
        return read_guesses(path)

    def panels(self, run: "Run") -> "list[Panel]":
        from headwater.sampling import Model

        from headwater_flow_tsgen.evaluation import score
        from headwater_flow_tsgen.reporting import panels_of

        model = Model(run, device="cpu")
        n = min(len(model.facts["held_out"]), 32)
        guesses = [guess for block in model.sample(n) for guess in block]
        return panels_of(guesses, score(guesses, with_energies=False, with_idpp=False))

    @classmethod
    def check(cls, root: Path) -> list[str]:
        faults: list[str] = []
        try:
            read(root, faults)
        except DataError as error:
            faults.append(str(error))
        return faults


class XtbReactionsConfig(EvaluationConfig):
    """The embedded reactions, and how ``headwater data make`` makes more."""

    molecules: str | None = Field(
        None, description="file with a SMILES a line to make reactions of; the recipe's own molecules without"
    )
    count: PositiveInt = Field(100, description="how many reactions to make")
    edits: PositiveInt = Field(12, description="products tried of each molecule, at most")
    workers: PositiveInt = Field(1, description="processes, one thread each")
    seed: NonNegativeInt = Field(0, description="seed of conformers")
    highest_barrier: PositiveFloat = Field(150.0, description="reactions above are left out, kcal/mol")


class XtbReactions(Reactions):
    """Reactions of small C, N, O and H molecules on the GFN2-xTB surface, made by the recipe beside this file."""

    def reactions(self) -> list[Reaction]:
        from headwater_flow_tsgen.tasks.formats import read_xyz

        with as_file(files("headwater_flow_tsgen.tasks") / "xtb_reactions.xyz") as path:
            return read_xyz(path)

    @property
    def held_out(self) -> float:
        return 0.3

    def make(self, out: Path) -> None:
        from headwater_flow_tsgen.tasks.xtb import MOLECULES, make, read_molecules

        config = self.config
        molecules = MOLECULES if config.molecules is None else read_molecules(Path(config.molecules))
        make(
            out, molecules, count=config.count, most=config.edits, workers=config.workers, seed=config.seed,
            highest_barrier=config.highest_barrier,
        )  # fmt: skip
