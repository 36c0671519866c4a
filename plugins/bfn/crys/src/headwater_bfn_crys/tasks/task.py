"""The crystal task: data and their parts, files, metrics and pictures."""

import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater import DataError, Task

from headwater_bfn_crys.crystals import Crystals
from headwater_bfn_crys.tasks.entries import KIND
from headwater_bfn_crys.tasks.reading import Bad, cached, read_file, unique_ids
from headwater_bfn_crys.tasks.splits import split
from headwater_bfn_crys.tasks.writing import CrystalWriter, write_csv

if TYPE_CHECKING:
    from headwater.reporting import Panel
    from headwater.run import Run

__all__ = ["CrystalTask", "UserCrystals"]

PARTS = ("train", "val", "test")
"""The parts of a data set on disk, in the layout that the field uses."""

LISTED = 50
"""So many crystals that were left out are named; ``headwater data check`` names all."""


class CrystalTask(CrystalWriter, Task):
    """Crystals in three parts. A subclass gives all of them with ``load``, or the parts themselves.

    Training, validation and test crystals have names that are all different. A sampler that predicts the structure of
    a test crystal gives its sample that crystal's name, by which ``metrics`` finds the two.
    """

    kind = KIND

    def load(self) -> Crystals:
        """All crystals of the data set."""
        raise NotImplementedError(f"{type(self).__name__} defines neither load nor parts")

    @cached_property
    def parts(self) -> tuple[Crystals, Crystals, Crystals]:
        """Training, validation and test crystals."""
        c = self.config
        test, validation, train = split(
            self.load(), (c.test_fraction, c.validation_fraction), c.split_seed, c.split == "composition"
        )
        return train, validation, test

    def train(self) -> Crystals:
        """The crystals that the model learns from."""
        return self.parts[0]

    def validation(self) -> Crystals:
        """The crystals that show while training how well it goes; possibly none."""
        return self.parts[1]

    def test(self) -> Crystals:
        """The crystals that samples are measured against; possibly none."""
        return self.parts[2]

    def metrics(self, samples: Crystals) -> dict[str, float]:
        """The metrics of ``samples`` that the settings name."""
        from headwater_bfn_crys.tasks.scoring import score

        return score(samples, self)

    def panels(self, run: "Run") -> "list[Panel]":
        from headwater_bfn_crys.tasks.pictures import panels

        return panels(self, run)

    def test_cache(self) -> Path | None:
        """The folder in which fingerprints of the test crystals are kept, if there is one."""
        return None

    def make(self, out: Path) -> None:
        """Write train.csv, val.csv and test.csv with the columns ``material_id`` and ``cif`` into ``out``."""
        from headwater_bfn_crys.tasks.writing import rounded

        out.mkdir(parents=True)
        for name, part in zip(PARTS, self.parts, strict=True):
            write_csv(rounded(part), out / f"{name}.csv")


class UserCrystals(CrystalTask):
    """The user's crystals."""

    @cached_property
    def parts(self) -> tuple[Crystals, Crystals, Crystals]:
        c = self.config
        files = _layout(c.path)
        files |= {"val": c.validation_path} if c.validation_path else {}
        files |= {"test": c.test_path} if c.test_path else {}
        given = {name: self._part(path) for name, path in files.items()}
        # What no file gives is drawn from the training crystals.
        missing = [name for name in ("test", "val") if name not in given]
        shares = {"test": c.test_fraction, "val": c.validation_fraction}
        *drawn, train = split(
            given["train"], tuple(shares[name] for name in missing), c.split_seed, c.split == "composition"
        )
        found = {**given, **dict(zip(missing, drawn, strict=True)), "train": train}
        if len(found["train"]) == 0:
            raise DataError(f"{c.path} leaves no crystal to train on")
        return found["train"], found["val"], found["test"]

    def _part(self, path: Path) -> Crystals:
        c = self.config
        parsed = cached(path, self.cache(path), reduce=c.reduce, processes=c.processes, limit=c.time_limit)
        large = parsed.crystals.num_atoms > c.max_atoms
        reasons = [(i, f"has {parsed.crystals.num_atoms[i]} atoms, more than task.max_atoms = {c.max_atoms}")
                   for i in large.nonzero()[0]]  # fmt: skip
        bad = [*parsed.bad, *(Bad(parsed.where[i], reason) for i, reason in reasons)]
        if bad and not c.skip_bad:
            more = f"; {len(bad) - 1} more are bad" if len(bad) > 1 else ""
            raise DataError(f"{bad[0]}{more}; --skip-bad leaves such crystals out")
        if bad:
            lines = [f"left out: {one}" for one in bad[:LISTED]]
            lines += [f"left out: {len(bad) - LISTED} more"] if len(bad) > LISTED else []
            print("\n".join(lines), file=sys.stderr)
        good = parsed.crystals[~large]
        if len(good) == 0:
            raise DataError(f"{path} has no crystal that can be used")
        return good.named(unique_ids(good.ids))

    def cache(self, path: Path) -> Path | None:
        """The folder in which what is made of the file ``path`` is kept."""
        if self.config.cache == "beside":
            return path.parent / ".headwater-cache"
        return None if self.config.cache == "off" else self.config.cache

    def test_cache(self) -> Path | None:
        return self.cache(self.config.test_path or self.config.path)

    @classmethod
    def check(cls, root: Path) -> list[str]:
        """One line for each crystal at ``root`` that cannot be used, or for what is wrong with the whole."""
        problems = []
        try:
            for path in _layout(root).values():
                problems += [str(one) for one in read_file(path).bad]
        except DataError as error:
            problems.append(str(error))
        return problems


def _layout(path: Path) -> dict[str, Any]:
    """The files of the parts: those of a folder with train.csv, or one for training alone."""
    if path.is_dir():
        for suffix in (".csv", ".parquet"):
            files = {name: path / f"{name}{suffix}" for name in PARTS if (path / f"{name}{suffix}").is_file()}
            if "train" in files:
                return files
            if files:
                raise DataError(
                    f"{path} has {', '.join(f.name for f in files.values())} and no train{suffix}; name the files: "
                    f"task.path={next(iter(files.values()))} and task.test_path=..."
                )
    return {"train": path}
