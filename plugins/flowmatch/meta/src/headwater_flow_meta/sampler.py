"""Predicted clouds of populations."""

from dataclasses import replace
from typing import Any

import torch
from headwater import DataError, Sampler, UsageError
from headwater.errors import near

from headwater_flow_meta.prediction import Predictor, treatment_index
from headwater_flow_meta.tasks.files import read_sources
from headwater_flow_meta.tasks.populations import Cloud, Population

__all__ = ["CloudSampler", "predictor_of"]


def predictor_of(sampler: Any) -> Predictor:
    """The predictor of a sampler or operation under its config."""
    config = sampler.config
    settings = {
        name: getattr(config, name) for name in ("method", "steps", "tolerance") if name in type(config).model_fields
    }
    return Predictor(
        sampler.modules, sampler.facts, sampler.place.device, embed_points=config.embed_points,
        base=sampler.facts.get("base", "source"), **settings,
    )  # fmt: skip


class CloudSampler(Sampler):
    """A sample is a cloud: number i is the prediction for population i of the split, counted round and round.

    Each draws its own points of the population. Under a condition all samples are of the one population.
    """

    def setup(self) -> None:
        self.predictor = predictor_of(self)

    def chosen(self, condition: Any) -> list[Population]:
        """The populations that are predicted in turn."""
        if condition is not None and condition.file is not None:
            found = read_sources(condition.file, self.task, self.facts)
            if len(found) > 1:
                raise UsageError(
                    f"{condition.file} holds {len(found)} populations; for all of them: headwater apply RUN predict"
                )
        elif condition is not None and condition.population is not None:
            known = {p.name: p for split in ("test", "valid", "train") for p in self.task.populations(split)}
            if condition.population not in known:
                names = near(condition.population, known)
                raise UsageError(f"the task has no population {condition.population!r}{names}")
            found = [known[condition.population]]
        else:
            found = self.task.populations(self.config.split)
            if not found:
                raise DataError(f"the task has no population in the split {self.config.split!r}; set sampler.split")
        if condition is not None and condition.treatment is not None:
            number = treatment_index(condition.treatment, self.facts["treatments"])
            found = [replace(p, treatment=number) for p in found]
        return found

    def block(self, k: int, generator: torch.Generator, condition: Any) -> list[Cloud]:
        populations = self.chosen(condition)
        numbers = range(k * self.block_size, (k + 1) * self.block_size)
        return [self.predictor(populations[i % len(populations)], self.config.points, generator) for i in numbers]
