"""Pictures of what a GFlowNet learned, beside what it should have learned."""

from typing import Any

import torch
from headwater.reporting import Figure, Panel, Table, curves, heatmap
from torch import Tensor

from headwater_gfn.environment import Environment
from headwater_gfn.exact import forward_policy, learned_distribution, log_target
from headwater_gfn.table import TableEnvironment, tabulate

__all__ = ["distributions", "landscape_panels", "ranking_panels"]

SHOWN = 400


def distributions(
    environment: Environment, policies: dict[str, Any]
) -> tuple[TableEnvironment, Tensor, dict[str, Tensor]] | None:
    """The table of ``environment``, its exact target (X,), and the exact distribution of each of ``policies``.

    ``None`` where the environment is too large to go through.
    """
    table = tabulate(environment)
    if not isinstance(table, TableEnvironment):
        return None
    learned = {name: learned_distribution(table, forward_policy(table, policy)) for name, policy in policies.items()}
    return table, log_target(table).exp(), learned


def landscape_panels(environment: Any, policies: dict[str, Any]) -> list[Panel]:
    """Heat maps of a hypergrid: the exact target beside the exact distribution of each policy."""
    found = distributions(environment, policies)
    if found is None:
        return []
    table, target, learned = found
    grid = table.states[table.n_inner :, :-1]
    side, d = environment.config.side, environment.config.dimensions
    place = (grid * side ** torch.arange(d - 1, -1, -1)).sum(1)
    maps = {
        name: environment.landscape(torch.zeros(side**d, dtype=torch.float64).index_put((place,), p))
        for name, p in {"target": target, **learned}.items()
    }
    summed = "" if d <= 2 else f", summed over the other {d - 2} coordinates"
    picture = heatmap(
        "Probability of each cell", maps, x="coordinate 2", y="coordinate 1",
        caption=f"Target: reward over its exact sum. Learned: the policy's exact probability{summed}.",
    )  # fmt: skip
    # On the target's scale: one cell that is far too probable would darken all others.
    picture.figure["layout"]["coloraxis"].update(cmin=0.0, cmax=max(map(max, maps["target"])))
    return [picture, ranking(target, learned)]


def ranking_panels(environment: Environment, policies: dict[str, Any]) -> list[Panel]:
    """Target and learned probability of every object, ranked by the target; and the best objects."""
    found = distributions(environment, policies)
    if found is None:
        return []
    table, target, learned = found
    best = target.argsort(descending=True)[:10]
    words = table.describe(best + table.n_inner)
    rows = [
        [word, float(table.log_rewards[i]), float(target[i]), *(float(p[i]) for p in learned.values())]
        for word, i in zip(words, best.tolist(), strict=True)
    ]
    columns = ["object", "log R", "target", *learned]
    return [
        ranking(target, learned),
        Table("The ten best objects", columns, rows, caption="Exact probabilities, target and learned."),
    ]


def ranking(target: Tensor, learned: dict[str, Tensor]) -> Figure:
    """Probability of the objects, ranked by the target and put into groups of equal size where there are many."""
    order = target.argsort(descending=True)
    size = max(1, -(-len(order) // SHOWN))
    ranks = [float(i) for i in range(1, len(order) + 1, size)]

    def grouped(p: Tensor) -> list[float]:
        return [float(part.mean()) for part in p[order].split(size)]

    series = {name: (ranks, grouped(p)) for name, p in {**learned, "target": target}.items()}
    each = f" Each point is the mean of {size} objects." if size > 1 else ""
    return curves(
        "Probability by rank", series, x="rank by reward", y="probability", log_y=True,
        caption=f"A sampler without error lies on the target.{each}",
    )  # fmt: skip
