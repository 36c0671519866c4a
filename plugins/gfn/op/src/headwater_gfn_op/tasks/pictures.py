"""Pictures of the objective grid."""

from typing import Any

import torch
from headwater.reporting import Panel, heatmap
from headwater_gfn import pareto
from headwater_gfn.objective_pictures import front_mask
from headwater_gfn.reporting import distributions
from torch import Tensor

__all__ = ["grid_maps"]


def grid_maps(environment: Any, policies: dict[str, Any]) -> list[Panel]:
    """Heat maps: the true Pareto set beside the exact probability of each cell under each policy."""
    found = distributions(environment, policies)
    if found is None or not pareto.available():
        return []
    table, _, learned = found
    cells = table.states[table.n_inner :]
    side = environment.config.side

    def rows(values: Tensor) -> list[list[float]]:
        grid = torch.zeros(side, side, dtype=torch.float64)
        grid[cells[:, 0], cells[:, 1]] = values
        return [[float(v) for v in row] for row in grid.tolist()]

    front = front_mask(environment.objectives(cells)).double()
    maps = {"uniform on the true Pareto set": rows(front / front.sum())}
    maps |= {name: rows(p) for name, p in learned.items()}
    picture = heatmap(
        "Probability of each cell", maps, x="y", y="x",
        caption="The true Pareto set, and the policy's exact probability.",
    )  # fmt: skip
    picture.figure["layout"]["coloraxis"].update(cmin=0.0, cmax=3 / float(front.sum()))
    return [picture]
