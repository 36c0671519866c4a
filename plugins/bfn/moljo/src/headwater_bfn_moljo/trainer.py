"""The two stages: the backbone, and property predictors on beliefs of the same flow."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from headwater import Trainer, UsageError
from headwater.seeding import key
from torch import Tensor, nn

from headwater_bfn_moljo.config import BackboneConfig, NetworkConfig, PredictorConfig
from headwater_bfn_moljo.data import Batch, Item, batch_of, item, labels
from headwater_bfn_moljo.flow import coordinate_loss, mean_by_molecule, type_loss
from headwater_bfn_moljo.networks import Backbone, Predictor
from headwater_bfn_moljo.tasks.chemistry import TYPES

__all__ = ["BackboneTrainer", "PredictorTrainer", "module_name"]

DISCRETE_STEPS = 1000
"""Messages of the published loss."""

DRAWS = 200
"""Messages by which the published loss of the types is averaged."""

VALIDATION = 64
"""At most so many held-out complexes are measured."""


def module_name(property_name: str) -> str:
    """The name of a property's predictor among the modules; a module cannot have dots or colons in its name."""
    return "predictor_" + property_name.replace(".", "_").replace(":", "__")


class _MolTrainer(Trainer):
    """What both stages share: complexes, batches, the optimiser."""

    config: Any

    def setup(self) -> None:
        config: NetworkConfig = self.config
        self.clip_norm = config.clip_norm
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        self.optimisers["adam"] = torch.optim.Adam(parameters, lr=config.learning_rate, betas=(0.95, 0.999), fused=True)
        self.flow: Mapping[str, float] = self.facts_found["flow"]

    @cached_property
    def items(self) -> list[Item]:
        return [item(c) for c in self.task.train()]

    @cached_property
    def held_out(self) -> list[Item]:
        return [item(c) for c in self.task.held_out()[:VALIDATION]]

    def draw(self, k: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(len(self.items), (self.config.batch_size,), generator=generator)
        return self.batch(self.items, chosen, generator)

    def batch(self, items: list[Item], chosen: Tensor, generator: torch.Generator) -> Batch:
        return batch_of(items, chosen, self.flow["sigma1"], self.flow["beta1"], generator, self.config.rotate)

    def losses(self, batch: Batch, items: str) -> dict[str, Tensor]:
        """The losses of a batch of ``items``, ``train`` or ``held_out``; the first is what is minimised."""
        raise NotImplementedError

    def step(self, batch: Batch) -> dict[str, Tensor]:
        losses = self.losses(batch, "train")
        self.update(losses["loss"], weight=len(batch.ligand_sizes))
        return {name: value.detach() for name, value in losses.items()}

    def validate(self) -> dict[str, float]:
        """The losses on held-out complexes, with the same noise every time."""
        if not self.held_out:
            return {}
        generator = torch.Generator().manual_seed(key(0))
        total: dict[str, float] = {}
        for chosen in torch.arange(len(self.held_out)).split(self.config.batch_size):
            batch = _to(self.batch(self.held_out, chosen, generator), self.place.device)
            for name, value in self.losses(batch, "held_out").items():
                total[name] = total.get(name, 0.0) + float(value) * len(chosen) / len(self.held_out)
        return total


class BackboneTrainer(_MolTrainer):
    """Learns to estimate a ligand's coordinates and types from a belief in its pocket."""

    config: BackboneConfig

    @classmethod
    def facts(cls, config: BackboneConfig, task: Any) -> dict[str, Any]:
        return {"flow": {"sigma1": config.sigma1, "beta1": config.beta1}, "knn": {"backbone": config.knn}}

    @classmethod
    def build(cls, config: BackboneConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        return {"backbone": Backbone(len(TYPES), config.width, config.layers, config.heads)}

    def losses(self, batch: Batch, items: str) -> dict[str, Tensor]:
        config = self.config
        layout = batch.layout(config.knn)
        x, logits = self.modules["backbone"](batch.mu, batch.belief.theta, batch.t, batch.protein, layout)
        steps = None if config.loss == "continuous" else DISCRETE_STEPS
        atoms = coordinate_loss(batch.x, x.float(), batch.t, config.sigma1, steps)
        positions = mean_by_molecule(atoms, layout.ligand_of, layout.complexes).mean()
        generator = torch.Generator(batch.e.device).manual_seed(batch.seed)
        types = type_loss(batch.e, logits.float(), batch.t, config.beta1, steps, generator, DRAWS).mean()
        return {"loss": positions + config.type_weight * types, "loss_coordinates": positions, "loss_types": types}


class PredictorTrainer(_MolTrainer):
    """Learns properties of ligands from beliefs on them; the flow is that of the backbone's run."""

    config: PredictorConfig

    @classmethod
    def facts(cls, config: PredictorConfig, task: Any) -> dict[str, Any]:
        return {
            "knn": {module_name(p): config.knn for p in config.properties},
            "properties": {p: module_name(p) for p in config.properties},
        }

    @classmethod
    def build(cls, config: PredictorConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        return {
            module_name(p): Predictor(len(TYPES), config.width, config.layers, config.heads) for p in config.properties
        }

    def setup(self) -> None:
        if "flow" not in self.facts_found:
            raise UsageError("a predictor learns on the beliefs of a backbone: pass --from RUN of the stage train")
        super().setup()

    @cached_property
    def targets(self) -> dict[str, dict[str, Tensor]]:
        """The properties of all complexes, by part and property."""
        parts = {"train": self.task.train(), "held_out": self.task.held_out()[:VALIDATION]}
        return {
            part: {p: labels(complexes, p, self.task) if complexes else torch.empty(0) for p in self.config.properties}
            for part, complexes in parts.items()
        }

    def losses(self, batch: Batch, items: str) -> dict[str, Tensor]:
        layout = batch.layout(self.config.knn)
        edges = layout.edges(batch.mu)
        theta = batch.belief.theta
        found = {}
        for p in self.config.properties:
            predicted = self.modules[module_name(p)](batch.mu, theta, batch.t, batch.protein, layout, edges).float()
            truth = self.targets[items][p].to(predicted.device)[batch.which]
            found[f"loss_{p.rpartition(':')[2]}"] = (predicted - truth).abs().mean()
        return {"loss": torch.stack(list(found.values())).sum(), **found}


def _to(batch: Batch, device: torch.device) -> Batch:
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in batch._asdict().items() if isinstance(value, Tensor)
    }
    return batch._replace(**moved)
