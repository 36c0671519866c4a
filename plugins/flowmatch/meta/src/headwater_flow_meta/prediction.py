"""Where a population goes, by trained modules: what validation, the sampler and the operations share."""

from collections.abc import Mapping
from typing import Any

import torch
from headwater import UsageError
from headwater.errors import near
from headwater_flow.solvers import solve
from torch import Tensor, nn

from headwater_flow_meta.tasks.populations import Cloud, Population

__all__ = ["Predictor"]


class Predictor:
    """Predicts one population at a time, so that a result depends on no other population, and any sizes will do.

    A population is hundreds of points and more, which fills the network; a batch of several would gain nothing.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        facts: Mapping[str, Any],
        device: torch.device,
        *,
        method: str = "dopri5",
        steps: int = 20,
        tolerance: float = 1e-4,
        embed_points: int | None = None,
        base: str = "source",
    ) -> None:
        self.modules: Any = modules
        self.facts, self.device = facts, device
        self.settings: dict[str, Any] = (
            {"method": method, "rtol": tolerance, "atol": tolerance}
            if method == "dopri5"
            else {"method": method, "steps": steps}
        )
        self.embed_points = embed_points or facts["points"]
        self.shift, self.scale = facts["shift"].to(device), facts["scale"].to(device)
        self.gaussian = base == "gaussian"

    @torch.no_grad()
    def embed(self, population: Population, generator: torch.Generator) -> Tensor | None:
        """The embedding (1, H) of a population, of at most ``embed_points`` of its points; ``None`` without a network.

        A training step draws so many points of each; more would lie denser, with nearer neighbours than in training.
        """
        if "embedding" not in self.modules:
            return None
        rows = _some(len(population.source), self.embed_points, generator)
        x = ((population.source[rows].to(self.device) - self.shift) / self.scale).unsqueeze(0)
        labels = None
        if self.facts["cell_types"]:
            if population.labels is None:
                raise UsageError(f"{population.where} has no cell types, and the embedding was trained with them")
            classes = population.labels[rows].to(self.device)
            labels = nn.functional.one_hot(classes, len(self.facts["cell_types"])).to(x.dtype).unsqueeze(0)
        found: Tensor = self.modules["embedding"](x, labels)
        return found

    def condition(self, population: Population) -> Tensor | None:
        """The condition's columns (1, C), as in training; a population not seen is the mean of those seen (CGFM)."""
        columns = []
        seen, treatments = self.facts["populations"], self.facts["treatments"]
        field = self.modules["field"]
        if field.condition > len(treatments):
            known = torch.tensor([name == population.name for name in seen], dtype=torch.float32)
            columns.append(known if bool(known.any()) else torch.full((len(seen),), 1 / len(seen)))
        if treatments:
            columns.append(torch.eye(len(treatments))[self.treatment(population)])
        return torch.cat(columns).unsqueeze(0).to(self.device) if columns else None

    def treatment(self, population: Population) -> int:
        """The number of a population's treatment.

        Raises:
            UsageError: nothing says which of several it is.
        """
        treatments = self.facts["treatments"]
        if population.treatment is None and len(treatments) > 1:
            raise UsageError(
                f"{population.where} names no treatment that the run knows ({', '.join(treatments[:8])}): give it a "
                "column 'treatment', or say which by --condition treatment=NAME (sample) or "
                "--set operation.treatment=NAME (apply)"
            )
        return population.treatment or 0

    @torch.no_grad()
    def __call__(
        self,
        population: Population,
        points: int | None,
        generator: torch.Generator,
        *,
        times: Tensor | None = None,
    ) -> Cloud:
        """The cloud after the change, of at most ``points`` of the population's points.

        With ``times`` (T,) the cloud's points are (T, n, D): where they are on the way.
        """
        if population.source.shape[1] != len(self.facts["features"]):
            raise UsageError(
                f"{population.where} has {population.source.shape[1]} features; "
                f"the run was trained on {len(self.facts['features'])}: {', '.join(self.facts['features'][:5])}"
            )
        rows = _some(len(population.source), points, generator)
        x = (population.source[rows].to(self.device) - self.shift) / self.scale
        if "g" in self.modules:
            moved = self.modules["g"].transport(x)
            if times is not None:
                moved = torch.stack([torch.lerp(x, moved, float(t)) for t in times])
        else:
            moved = self._flow(x, population, generator, times)
        moved = (moved * self.scale + self.shift).cpu()
        return Cloud(
            name=population.name, points=moved, rows=rows.cpu(), features=tuple(self.facts["features"]),
            treatment=self.facts["treatments"][self.treatment(population)] if self.facts["treatments"] else "",
            cell_types=population.cell_types(self.facts["cell_types"], rows),
        )  # fmt: skip

    def _flow(self, x: Tensor, population: Population, generator: torch.Generator, times: Tensor | None) -> Tensor:
        embedding, condition = self.embed(population, generator), self.condition(population)
        if self.gaussian:
            x = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        field = self.modules["field"]
        end = solve(lambda t, y: field(t, y, embedding, condition), x.unsqueeze(0), times=times, **self.settings)
        return end.squeeze(0) if times is None else end.squeeze(1)


def treatment_index(name: str, treatments: list[str]) -> int:
    """The number of a treatment.

    Raises:
        UsageError: the run knows none of that name.
    """
    if name not in treatments:
        raise UsageError(f"the run knows no treatment {name!r}{near(name, treatments)}")
    return treatments.index(name)


def _some(n: int, points: int | None, generator: torch.Generator) -> Tensor:
    """At most ``points`` of n rows, without replacement and in order."""
    if points is None or n <= points:
        return torch.arange(n)
    return torch.randperm(n, generator=generator, device=generator.device)[:points].cpu().sort().values
