"""What a trained run does with populations in a file: predict and embed them."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from headwater import Operation, UsageError, Writer
from torch import Tensor

from headwater_flow_meta.prediction import treatment_index
from headwater_flow_meta.sampler import predictor_of
from headwater_flow_meta.tasks.files import SUFFIXES, read_sources
from headwater_flow_meta.tasks.populations import Cloud, Population

__all__ = ["Embed", "EmbeddingWriter", "Predict"]


class OfPopulations(Operation):
    """An operation whose items are the populations in a file."""

    input_suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def setup(self) -> None:
        self.predictor = predictor_of(self)

    def read(self, path: Path) -> list[Population]:
        return read_sources(path, self.task, self.facts)


class Predict(OfPopulations):
    """The cloud after the change, of every population."""

    def read(self, path: Path) -> list[Population]:
        found = super().read(path)
        if self.config.treatment is None:
            return found
        number = treatment_index(self.config.treatment, self.facts["treatments"])
        return [replace(population, treatment=number) for population in found]

    def apply(self, items: Sequence[Population], generator: torch.Generator) -> list[Cloud]:
        return [self.predictor(population, self.config.points, generator) for population in items]


class Embed(OfPopulations):
    """The unit vector that stands for every population."""

    def setup(self) -> None:
        super().setup()
        if "embedding" not in self.modules:
            raise UsageError("this run has no population embedding; train one with trainer.model = 'mfm'")

    @property
    def writer(self) -> Writer:
        return EmbeddingWriter()

    def apply(self, items: Sequence[Population], generator: torch.Generator) -> list[tuple[str, Tensor]]:
        found = []
        for population in items:
            embedding = self.predictor.embed(population, generator)
            assert embedding is not None
            found.append((population.name, embedding[0].cpu()))
        return found


class EmbeddingWriter(Writer):
    """Embeddings as CSV: the population's name, then its coordinates."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv",)

    def write(self, samples: Sequence[tuple[str, Tensor]], path: Path, start: int = 0) -> None:
        with path.open("w", newline="", encoding="utf-8") as out:
            table = csv.writer(out)
            if start == 0:
                table.writerow(["population", *(f"e{i}" for i in range(len(samples[0][1])))])
            for name, embedding in samples:
                table.writerow([name, *embedding.numpy().astype(str)])

    def read(self, path: Path) -> list[tuple[str, Tensor]]:
        with path.open(newline="", encoding="utf-8") as source:
            rows: Any = list(csv.reader(source))[1:]
        return [(name, torch.tensor([float(v) for v in values])) for name, *values in rows]
