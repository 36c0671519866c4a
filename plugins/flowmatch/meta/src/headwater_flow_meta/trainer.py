"""Training of the flow (MFM, CGFM, FM) and of the baseline CellOT."""

from collections.abc import Mapping
from typing import Any

import torch
from headwater import DataError, Trainer, UsageError
from headwater_flow.couplings import ExactOT
from headwater_flow.times import draw_times
from torch import Tensor, nn

from headwater_flow_meta.config import FlowConfig, ICNNConfig
from headwater_flow_meta.evaluation import scores
from headwater_flow_meta.flow import f_loss, flow_loss, g_loss, interpolate
from headwater_flow_meta.networks import ICNN, PopulationEmbedding, VelocityField
from headwater_flow_meta.prediction import Predictor
from headwater_flow_meta.tasks.populations import Population, PopulationTask

__all__ = ["FlowTrainer", "ICNNTrainer", "draw_population", "measure"]

VALIDATED = 10
VALIDATION_POINTS = 400


def measure(config: Any, task: PopulationTask) -> dict[str, Any]:
    """What sampling needs from the data: names, sizes, and the units in which the networks work."""
    populations = _training(task)
    shift, scale = torch.zeros(len(task.features)), torch.ones(())
    if task.standardise:
        points = torch.cat([p.source for p in populations] + [p.target for p in populations if p.target is not None])
        shift = points.mean(0)
        # One scalar for all features, so that distances between points keep their proportions.
        scale = points.std(0).mean().clamp(min=1e-12)
    return {
        "features": list(task.features), "treatments": list(task.treatments), "cell_types": list(task.cell_types),
        "populations": [p.name for p in populations], "points": config.points, "shift": shift, "scale": scale,
    }  # fmt: skip


def _training(task: PopulationTask) -> list[Population]:
    populations = task.populations("train")
    if not populations:
        raise DataError("the task has no population to train on")
    for p in populations:
        if p.target is None:
            raise DataError(f"{p.where} has no points after the change, and training needs them")
    return populations


def draw_population(
    population: Population, points: int, coupling: str, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of one population for a step: of the source that is embedded, and of the pairs (source, target).

    Both are drawn without replacement. There are as many pairs as the smaller of both draws; ``ot-resample`` draws as
    many from the plan, with replacement, and the embedding sees the points from before.
    """
    assert population.target is not None
    n, m = len(population.source), len(population.target)
    rows = torch.randperm(n, generator=generator)[:points]
    if population.paired and coupling in ("auto", "independent"):
        return rows, rows, rows
    other = torch.randperm(m, generator=generator)[:points]
    size = min(len(rows), len(other))
    i, j = rows[:size], other[:size]
    if coupling == "independent":
        return rows, i, j
    chosen = ExactOT(resample=True) if coupling == "ot-resample" else ExactOT(block=256)
    a, b = chosen(population.source[i], population.target[j], generator)
    return rows, i[a], j[b]


def pad(parts: list[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Clouds of different sizes in one tensor (P, size, D), and which of its rows are points (P, size)."""
    out = parts[0].new_zeros(len(parts), size, *parts[0].shape[1:])
    mask = torch.zeros(len(parts), size, dtype=torch.bool)
    for i, part in enumerate(parts):
        out[i, : len(part)] = part
        mask[i, : len(part)] = True
    return out, mask


class PopulationTrainer(Trainer):
    """What both stages share: the data in the networks' units, and validation."""

    @classmethod
    def facts(cls, config: Any, task: Any) -> dict[str, Any]:
        return measure(config, task)

    def setup(self) -> None:
        facts = self.facts_found
        self.populations = [p.scaled(facts["shift"], facts["scale"]) for p in _training(self.task)]
        self.index = {name: i for i, name in enumerate(facts["populations"])}
        # Adam in one kernel; on the CPU a third of its time.
        self.fused: dict[str, Any] = {"fused": True} if self.place.device.type in ("cpu", "cuda") else {}

    def draw_indices(self, generator: torch.Generator) -> list[int]:
        """Which populations this step sees, each at most once."""
        order = torch.randperm(len(self.populations), generator=generator)
        return order[: self.config.populations].tolist()

    def validate(self) -> dict[str, float]:
        """Mean W1, W2 and MMD on at most ten populations of the validation split, 400 points of each.

        By the averaged weights where there are any, as sampling does.
        """
        populations = [p for p in self.task.populations("valid") if p.target is not None][:VALIDATED]
        if not populations or self.place.rank:
            return {}
        facts = self.facts_found
        predictor = Predictor(
            {**self.modules, **self.averages}, facts, self.place.device, method="midpoint", steps=10,
            base=facts.get("base", "source"),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        found = []
        for population in populations:
            cloud = predictor(population, VALIDATION_POINTS, generator)
            truth = population.truth(cloud.rows)
            assert truth is not None
            found.append(scores(cloud.points, truth, VALIDATION_POINTS, ("w1", "w2", "mmd"), paired=population.paired))
        return {name: sum(f[name] for f in found) / len(found) for name in found[0]}


class FlowTrainer(PopulationTrainer):
    """Flow matching over many populations at once; ``config.model`` says what the field knows of each.

    Modules: ``field``, and with ``mfm`` the ``embedding``.
    """

    config: FlowConfig

    @classmethod
    def facts(cls, config: FlowConfig, task: Any) -> dict[str, Any]:
        return {**measure(config, task), "base": config.base}

    @classmethod
    def build(cls, config: FlowConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        dim, treatments = len(facts["features"]), len(facts["treatments"])
        condition = treatments + (len(facts["populations"]) if config.model == "cgfm" else 0)
        embedded = config.embedding_width if config.model == "mfm" else 0
        modules: dict[str, nn.Module] = {
            "field": VelocityField(
                dim, embedded, condition, config.hidden, config.layers, config.skips,
                config.time_features, config.space_features, config.space_scale,
            )
        }  # fmt: skip
        if config.model == "mfm":
            modules["embedding"] = PopulationEmbedding(
                dim, len(facts["cell_types"]), config.embedding_width, config.embedding_layers, config.neighbours,
                config.official_linear,
            )  # fmt: skip
        return modules

    def setup(self) -> None:
        super().setup()
        config = self.config
        if config.coupling in ("ot", "ot-resample") and config.base == "gaussian":
            raise UsageError(f"trainer.coupling = {config.coupling!r} pairs sources with targets; base is gaussian")
        self.field: Any = self.modules["field"]
        self.embedding: Any = self.modules.get("embedding")
        parts = {name: list(module.parameters()) for name, module in self.modules.items()}
        if config.schedule == "alternate":
            for name, parameters in parts.items():
                self.optimisers[name] = torch.optim.Adam(parameters, config.learning_rate, **self.fused)
            self.cache = self.stateful["cache"] = Cache(len(self.populations), config.embedding_width)
            self.cache.to(self.place.device)
        else:
            everything = [p for parameters in parts.values() for p in parameters]
            self.optimisers["adam"] = torch.optim.Adam(everything, config.learning_rate, **self.fused)

    def draw(self, k: int, generator: torch.Generator) -> dict[str, Any]:
        config, chosen = self.config, self.draw_indices(generator)
        sources, starts, ends, labels = [], [], [], []
        for i in chosen:
            population = self.populations[i]
            rows, a, b = draw_population(population, config.points, config.coupling, generator)
            assert population.target is not None
            sources.append(population.source[rows])
            starts.append(population.source[a])
            ends.append(population.target[b])
            if population.labels is not None:
                labels.append(population.labels[rows])
        batch: dict[str, Any] = {"k": k, "index": torch.tensor(chosen)}
        size = max(map(len, starts))
        batch["x0"], mask = pad(starts, size)
        batch["x1"], _ = pad(ends, size)
        batch["mask"] = None if bool(mask.all()) else mask
        if config.model == "mfm":
            size = max(map(len, sources))
            batch["source"], seen = pad(sources, size)
            batch["seen"] = None if bool(seen.all()) else seen
            if labels:
                batch["labels"] = nn.functional.one_hot(pad(labels, size)[0], len(self.task.cell_types)).float()
        if config.base == "gaussian":
            batch["x0"] = torch.randn(batch["x0"].shape, generator=generator)
        batch["t"] = draw_times(mask.numel(), generator).view(mask.shape)
        batch["condition"] = self.conditions(chosen)
        return batch

    def conditions(self, chosen: list[int]) -> Tensor | None:
        """One-hot columns (P, C): of the training population with CGFM, then of the treatment."""
        columns = []
        if self.config.model == "cgfm":
            columns.append(nn.functional.one_hot(torch.tensor(chosen), len(self.populations)))
        if self.task.treatments:
            treatment = torch.tensor([self.populations[i].treatment or 0 for i in chosen])
            columns.append(nn.functional.one_hot(treatment, len(self.task.treatments)))
        return torch.cat(columns, 1).float() if columns else None

    def embed(self, batch: Mapping[str, Any]) -> Tensor:
        """The embeddings (P, H) of the populations of a batch, with gradients."""
        found: Tensor = self.embedding(batch["source"], batch.get("labels"), batch["seen"])
        return found

    def loss(self, batch: Mapping[str, Any], embedding: Tensor | None) -> Tensor:
        """The loss of a batch under the embeddings (P, H) of its populations."""
        x = interpolate(batch["t"], batch["x0"], batch["x1"])
        velocity = self.field(batch["t"], x, embedding, batch["condition"])
        return flow_loss(velocity, batch["x0"], batch["x1"], batch["mask"])

    def step(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        # As many points as the mean is over, so that several ranks together weigh every point alike.
        weight = batch["t"].numel() if batch["mask"] is None else batch["mask"].sum()
        if self.config.schedule == "joint":
            loss = self.loss(batch, self.embed(batch) if self.embedding is not None else None)
            self.update(loss, weight=weight)
        elif batch["k"] % 2 == 0:
            embedding = self.embed(batch)
            self.cache.put(batch["index"], embedding.detach())
            loss = self.loss(batch, embedding)
            self.update(loss, "embedding", weight)
            self.field.zero_grad(set_to_none=True)
        else:
            with torch.no_grad():
                embedding = self.cache.get(batch["index"], self.embed(batch))
            loss = self.loss(batch, embedding)
            self.update(loss, "field", weight)
        return {"loss": loss.detach()}


class Cache:
    """The last embedding of each training population, of older points and weights, as published."""

    def __init__(self, populations: int, width: int) -> None:
        self.values = torch.zeros(populations, width)
        self.known = torch.zeros(populations, dtype=torch.bool)

    def to(self, device: torch.device) -> None:
        """Move the cache to where the embeddings are."""
        self.values, self.known = self.values.to(device), self.known.to(device)

    def put(self, index: Tensor, values: Tensor) -> None:
        """Remember embeddings (P, H) of the populations ``index`` (P,)."""
        self.values[index], self.known[index] = values, True

    def get(self, index: Tensor, fresh: Tensor) -> Tensor:
        """Those remembered, and ``fresh`` ones (P, H) where there is none yet."""
        return torch.where(self.known[index].unsqueeze(1), self.values[index], fresh)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "known": self.known}

    def load_state_dict(self, state: Any) -> None:
        self.values.copy_(state["values"])
        self.known.copy_(state["known"])


class ICNNTrainer(PopulationTrainer):
    """CellOT (Bunne et al., 2023): the gradient of g carries the source to the target, whatever the population.

    Modules: ``f`` and ``g``. One step is ``inner_steps`` updates of g, each on points of its own, and one of f.
    """

    config: ICNNConfig

    @classmethod
    def build(cls, config: ICNNConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        dim = len(facts["features"])
        return {"f": ICNN(dim, config.widths), "g": ICNN(dim, config.widths)}

    def setup(self) -> None:
        super().setup()
        self.f: Any = self.modules["f"]
        self.g: Any = self.modules["g"]
        for name in ("f", "g"):
            self.optimisers[name] = torch.optim.Adam(
                self.modules[name].parameters(), self.config.learning_rate, (0.5, 0.9), **self.fused
            )

    def draw(self, k: int, generator: torch.Generator) -> dict[str, Tensor]:
        points = self.config.points
        sources, targets = [], []
        for _ in range(self.config.inner_steps + 1):
            chosen = [self.populations[i] for i in self.draw_indices(generator)]
            pairs = [(p, *draw_population(p, points, "independent", generator)[1:]) for p in chosen]
            sources.append(torch.cat([p.source[i] for p, i, _ in pairs]))
            targets.append(torch.cat([p.target[j] for p, _, j in pairs if p.target is not None]))
        least = min(map(len, sources))
        return {"x0": torch.stack([x[:least] for x in sources]), "x1": torch.stack([x[:least] for x in targets])}

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        *inner, outer = batch["x0"]
        for x0 in inner:
            moved = self.g.transport(x0)
            loss_g = g_loss(self.f(moved).squeeze(1), x0, moved, self.config.penalty * self.g.penalty())
            self.update(loss_g, "g", len(x0))
            self.f.zero_grad(set_to_none=True)
        with torch.no_grad():
            moved = self.g.transport(outer)
        loss_f = f_loss(self.f(moved).squeeze(1), self.f(batch["x1"][-1]).squeeze(1))
        self.update(loss_f, "f", len(outer))
        self.f.make_convex()
        return {"loss_f": loss_f.detach(), "loss_g": loss_g.detach()}
