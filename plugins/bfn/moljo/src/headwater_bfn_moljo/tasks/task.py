"""The complex tasks: which complexes there are, files, metrics."""

import csv
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from headwater import DataError, Task, UsageError

from headwater_bfn_moljo.tasks.entries import KIND
from headwater_bfn_moljo.tasks.poses import Pose, PoseWriter
from headwater_bfn_moljo.tasks.reading import RADIUS, Complex, pair, read_pdb, unique

if TYPE_CHECKING:
    from headwater.reporting import Panel
    from headwater.run import Run

__all__ = ["ComplexTask", "PoseBustersComplexes", "UserComplexes"]


class Source(NamedTuple):
    """The files of one complex."""

    name: str
    protein: Path
    ligand: Path
    receptor: Path | None = None
    labels: dict[str, float] = {}  # noqa: RUF012 - a NamedTuple's default

    def read(self, radius: float) -> Complex:
        return pair(self.name, self.protein, self.ligand, radius, self.receptor, dict(self.labels))


class ComplexTask(PoseWriter, Task):
    """Ligands in pockets; a subclass gives them with ``parts``."""

    kind = KIND

    @cached_property
    def parts(self) -> tuple[list[Complex], list[Complex]]:
        """Training and held-out complexes; names differ."""
        raise NotImplementedError(f"{type(self).__name__} does not define parts")

    def train(self) -> list[Complex]:
        """The complexes that networks learn from.

        Raises:
            UsageError: there is none.
        """
        if not self.parts[0]:
            raise UsageError("this task has no complex to train on; name some: --set task.path=... (folder or CSV)")
        return self.parts[0]

    def held_out(self) -> list[Complex]:
        """The complexes that no network saw; possibly none."""
        return self.parts[1]

    def targets(self) -> list[Complex]:
        """The complexes that molecules are made for: those held out, or all where none is."""
        return self.parts[1] or self.parts[0]

    def receptors(self) -> dict[str, str]:
        """PDB texts by target; a molecule that names none belongs to the only one there is."""
        found = {c.name: c.receptor for part in self.parts for c in part}
        return {**found, "": next(iter(found.values()))} if len(found) == 1 else found

    def references(self) -> dict[str, Any]:
        """Reference ligands by target, as :meth:`receptors` has them."""
        found = {c.name: c.ligand for part in self.parts for c in part}
        return {**found, "": next(iter(found.values()))} if len(found) == 1 else found

    def metrics(self, samples: Sequence[Pose]) -> dict[str, float]:
        """Metrics of molecules, as the paper defines them."""
        from headwater_bfn_moljo.tasks.scoring import score

        return score(samples, self)

    def panels(self, run: "Run") -> "list[Panel]":
        from headwater_bfn_moljo.tasks.pictures import panels

        return panels(self, run)


class PoseBustersComplexes(ComplexTask):
    """The complexes 1ia1, 1of6, 1s3v and 1uou of the Protein Data Bank."""

    @cached_property
    def parts(self) -> tuple[list[Complex], list[Complex]]:
        found = importlib.util.find_spec("posebusters")
        if found is None or found.origin is None:
            raise UsageError("the default complexes are those inside posebusters: pip install posebusters")
        folder = Path(found.origin).parent / "datasets/pdb"
        sources = [
            Source(d.name, d / f"{d.name}_protein_one_lig_removed.pdb", d / f"{d.name}_ligand.sdf")
            for d in sorted(folder.glob("*"))
            if (d / f"{d.name}_ligand.sdf").is_file()
        ]
        if not sources:
            raise DataError("this posebusters has no complexes in datasets/pdb: pip install 'posebusters>=0.6'")
        return _split([s.read(self.config.radius) for s in sources], self.config.hold_out)


class UserComplexes(ComplexTask):
    """The user's complexes."""

    @cached_property
    def parts(self) -> tuple[list[Complex], list[Complex]]:
        c = self.config
        if c.pocket is not None:
            if c.ligand is None:
                return [], []
            return [], [Source(c.ligand.stem, c.pocket, c.ligand).read(c.radius)]
        if c.path is None:
            return [], []
        if c.split is not None:
            train, test = (self._read([_source_of(c.path, *files) for files in part]) for part in _read_split(c.split))
            unique([x.name for x in [*train, *test]])
            return train, test
        return _split(self._read(sources(c.path)), c.hold_out)

    def _read(self, sources: Sequence[Source]) -> list[Complex]:
        found, bad = [], []
        for source in sources:
            try:
                found.append(source.read(self.config.radius))
            except DataError as error:
                if not self.config.skip_bad:
                    raise DataError(f"{error}; --skip-bad leaves such complexes out") from error
                bad.append(f"left out: {error}")
        if bad:
            print("\n".join(bad[:50]), file=sys.stderr)
        return found

    def receptors(self) -> dict[str, str]:
        """As any complex task's; a pocket without a ligand is the receptor of all molecules."""
        if self.config.pocket is not None:
            text = read_pdb(self.config.pocket).text
            return {"": text} | {c.name: text for c in self.parts[1]}
        return super().receptors()

    @classmethod
    def check(cls, root: Path) -> list[str]:
        """One line for each complex at ``root``, a folder or a CSV, that cannot be used."""
        problems = []
        try:
            for source in sources(root):
                try:
                    source.read(RADIUS)
                except DataError as error:
                    problems.append(str(error))
        except DataError as error:
            problems.append(str(error))
        return problems


def _split(complexes: list[Complex], every: int) -> tuple[list[Complex], list[Complex]]:
    ordered = sorted(complexes, key=lambda c: c.name)
    unique([c.name for c in ordered])
    held = np.arange(len(ordered)) % every == every - 1
    return (
        [c for c, out in zip(ordered, held, strict=True) if not out],
        [c for c, out in zip(ordered, held, strict=True) if out],
    )


def sources(path: Path) -> list[Source]:
    """The complexes of a CrossDocked folder or a CSV.

    Raises:
        DataError: there is none, or a file or column is missing.
    """
    if path.is_dir():
        found = [
            _source_of(path, pocket.relative_to(path).as_posix(), _ligand_of(pocket).relative_to(path).as_posix())
            for pocket in sorted(path.glob("*/*_pocket10.pdb"))
        ]
        if not found:
            raise DataError(f"{path} has no pockets: expected are TARGET/X_pocket10.pdb beside TARGET/X.sdf")
        return found
    if path.suffix.lower() == ".csv":
        return list(_rows(path))
    raise DataError(f"{path} is neither a folder nor a CSV")


def _ligand_of(pocket: Path) -> Path:
    return pocket.with_name(pocket.name.removesuffix("_pocket10.pdb") + ".sdf")


def _source_of(root: Path, pocket: str, ligand: str) -> Source:
    protein, sdf = root / pocket, root / ligand
    for path in (protein, sdf):
        if not path.is_file():
            raise DataError(f"{path} is missing")
    receptor = sdf.with_name(f"{sdf.name[:10]}.pdb")
    return Source(Path(ligand).with_suffix("").as_posix(), protein, sdf, receptor if receptor.is_file() else None)


def _rows(path: Path) -> Iterator[Source]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in ("protein", "ligand") if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} has no column {missing[0]!r}; it needs protein and ligand")
            for number, row in enumerate(reader, 2):
                try:
                    labels = {k: float(v) for k, v in row.items() if k not in ("protein", "ligand", "name") and v}
                except (TypeError, ValueError) as error:
                    raise DataError(f"{path}, line {number}: a label is no number: {error}") from error
                protein, ligand = (path.parent / str(row[k]) for k in ("protein", "ligand"))
                for file_path in (protein, ligand):
                    if not file_path.is_file():
                        raise DataError(f"{path}, line {number}: {file_path} is missing")
                yield Source(row.get("name") or Path(str(row["ligand"])).with_suffix("").as_posix(), protein, ligand,
                             None, labels)  # fmt: skip
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _read_split(path: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
    else:
        from headwater.unpickling import load_official

        content = load_official(path)
    try:
        train, test = ([(str(p), str(q)) for p, q in content[k]] for k in ("train", "test"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} does not hold lists train and test of (pocket, ligand) paths") from error
    return train, test
