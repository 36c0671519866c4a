"""Pictures of objectives: where the samples of a policy lie, and what it learned, step by step."""

from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from headwater.reporting import Figure, Panel, Table, curves
from headwater.reporting.panels import COLOURS
from torch import Tensor

from headwater_gfn import pareto
from headwater_gfn.exact import forward_policy, learned_distribution
from headwater_gfn.reporting import SHOWN
from headwater_gfn.rollout import roll_out
from headwater_gfn.table import TableEnvironment, tabulate

if TYPE_CHECKING:
    from headwater.run import Run

    from headwater_gfn.tasks.objectives import ObjectiveEnvironment

__all__ = ["front_mask", "objective_panels", "sparsification", "training_panels"]

SAMPLES = 512
MOST_POINTS = 4000
VISIBLE = 1e-3


def front_mask(values: Tensor) -> Tensor:
    """Which of all objects, with ``values`` (X, D), are on the true Pareto front (X,)."""
    return torch.from_numpy(pareto.non_dominated(values.cpu().numpy()))


def objective_panels(environment: "ObjectiveEnvironment", policies: dict[str, Any]) -> list[Panel]:
    """The objective space with what each policy samples, and its Pareto front against the true one."""
    table = tabulate(environment)
    if not isinstance(table, TableEnvironment):
        return _of_samples(environment, policies)
    values = environment.objectives(table.states[table.n_inner :])
    learned = {name: learned_distribution(table, forward_policy(table, policy)) for name, policy in policies.items()}
    if not environment.measurable:
        return _ranked(environment, table, values, learned)
    if not pareto.available():
        return []
    front = front_mask(values)
    panels: list[Panel] = [
        _space(environment, values, front, learned, pair) for pair in _pairs_of(len(environment.names))
    ]
    order = values[front][:, 0].argsort()
    share = {name: p[front][order].tolist() for name, p in learned.items()}
    ranks = [float(i) for i in range(1, int(front.sum()) + 1)]
    lines = {name: (ranks, p) for name, p in share.items()}
    lines["uniform on the front"] = (ranks, [1 / len(ranks)] * len(ranks))
    panels.append(
        curves(
            "Probability of the true Pareto front",
            lines,
            x=f"objects of the front by {environment.names[0]}",
            y="probability",
            log_y=True,
            caption="Exact probability of each object of the true front. A sampler of the front alone sums to 1 here.",
        )
    )
    rows = []
    for name, p in learned.items():
        on_front = p[front]
        rows.append([name, float(on_front.sum()), int((on_front > VISIBLE).sum()), int(front.sum()), _effective(p)])
    columns = ["policy", "mass on the front", f"of it above {VISIBLE:g}", "objects of the front", "effective objects"]
    panels.append(Table("Against the true front", columns, rows, caption="Exact, by dynamic programming."))
    return panels


def _effective(p: Tensor) -> float:
    """exp of the entropy: how many equally probable objects the distribution is worth."""
    return float(torch.special.entr(p).sum().exp())


def _pairs_of(d: int) -> list[tuple[int, int]]:
    return list(combinations(range(d), 2))[:6]


def _space(
    environment: "ObjectiveEnvironment",
    values: Tensor,
    front: Tensor,
    learned: dict[str, Tensor],
    pair: tuple[int, int],
) -> Figure:
    """All objects, the true front, and what is sampled, in the plane of two objectives."""
    signs = environment._signs[list(pair)]
    raw = values[:, list(pair)] * signs
    shown = torch.arange(len(raw))[:: max(1, len(raw) // MOST_POINTS)]
    data: list[dict[str, Any]] = [
        _points("all objects", raw[shown], COLOURS[7], {"size": 4, "opacity": 0.35}),
        _points("true Pareto front", raw[front], COLOURS[1], {"size": 10, "symbol": "circle-open"}),
    ]
    for i, (name, p) in enumerate(learned.items()):
        kept = (p > VISIBLE).nonzero().squeeze(1)
        sizes = (p[kept] / p[kept].max()).sqrt() * 14 + 3 if len(kept) else p[kept]
        marker = {"size": sizes.tolist(), "opacity": 0.75}
        data.append(_points(name, raw[kept], COLOURS[(0, 2, 3, 4)[i % 4]], marker))
    names = [environment.names[i] for i in pair]
    return Figure(
        f"Objective space: {names[0]} and {names[1]}",
        {"data": data, "layout": {"xaxis": {"title": {"text": names[0]}}, "yaxis": {"title": {"text": names[1]}}}},
        caption=f"Objects that the policy samples with a probability above {VISIBLE:g}, larger where more probable.",
    )


def _points(name: str, xy: Tensor, colour: str, marker: dict[str, Any]) -> dict[str, Any]:
    x, y = xy[:, 0].tolist(), xy[:, 1].tolist()
    return {"type": "scatter", "mode": "markers", "name": name, "x": x, "y": y, "marker": {"color": colour, **marker}}


def _of_samples(environment: "ObjectiveEnvironment", policies: dict[str, Any]) -> list[Panel]:
    """The objectives of samples, where the space is too large to go through."""
    panels: list[Panel] = []
    found = {
        name: environment.objectives(roll_out(environment, policy, SAMPLES, torch.Generator().manual_seed(0)).last)
        for name, policy in policies.items()
    }
    if not environment.measurable:
        lines = {
            name: ([i / len(v) for i in range(len(v))], v[:, 0].sort(descending=True).values.tolist())
            for name, v in found.items()
        }
        return [curves(f"{environment.names[0]} of samples", lines, x="share of samples", y=environment.names[0])]
    if not pareto.available():
        return panels
    for pair in _pairs_of(len(environment.names)):
        data: list[dict[str, Any]] = []
        for i, (name, values) in enumerate(found.items()):
            raw = values[:, list(pair)] * environment._signs[list(pair)]
            data.append(_points(name, raw, COLOURS[i], {"size": 5, "opacity": 0.5}))
            data.append(
                _points(f"{name}: front", raw[front_mask(values)], COLOURS[i], {"size": 10, "symbol": "circle-open"})
            )
        names = [environment.names[i] for i in pair]
        layout = {"xaxis": {"title": {"text": names[0]}}, "yaxis": {"title": {"text": names[1]}}}
        panels.append(
            Figure(
                f"Objective space: {names[0]} and {names[1]}",
                {"data": data, "layout": layout},
                caption=f"{SAMPLES} samples; circles: those that no other sample dominates.",
            )
        )
    return panels


def _ranked(
    environment: "ObjectiveEnvironment", table: TableEnvironment, values: Tensor, learned: dict[str, Tensor]
) -> list[Panel]:
    """Probability by rank, and the best objects, for one objective; the most probable objects for a ranking."""
    if len(environment.names) > 1:
        panels: list[Panel] = []
        for name, p in learned.items():
            best = p.argsort(descending=True)[:20]
            rows = [[w, float(p[i]), int(values[i].sum())] for w, i in zip(_words(table, best), best, strict=True)]
            panels.append(Table(f"The most probable objects, {name}", ["object", "probability", "above"], rows))
        return panels
    lines = {name: _grouped(p, values[:, 0]) for name, p in learned.items()}
    best = values[:, 0].argsort(descending=True)[:10]
    rows = [
        [word, float(values[i, 0]), *(float(p[i]) for p in learned.values())]
        for word, i in zip(_words(table, best), best.tolist(), strict=True)
    ]
    return [
        curves("Probability by rank", lines, x=f"rank by {environment.names[0]}", y="probability", log_y=True),
        Table("The ten best objects", ["object", environment.names[0], *learned], rows, caption="Exact probabilities."),
    ]


def _words(table: TableEnvironment, chosen: Tensor) -> list[str]:
    return table.describe(chosen + table.n_inner)


def _grouped(p: Tensor, by: Tensor) -> tuple[list[float], list[float]]:
    """Ranks and mean probabilities of objects ordered by ``by``, put into groups of equal size where there are many."""
    size = max(1, -(-len(p) // SHOWN))
    ranks = [float(i) for i in range(1, len(p) + 1, size)]
    return ranks, [float(part.mean()) for part in p[by.argsort(descending=True)].split(size)]


def sparsification(
    steps: dict[str, Tensor], by: Tensor | None = None, *, name: str = "its own learned reward"
) -> Figure:
    """The learned reward of all objects over the highest, at several steps of training.

    ``steps`` maps a label to the exact probabilities (X,), which are proportional to the learned reward. Objects are
    ordered by ``by`` (X,), else at each step by the learned reward itself.
    """
    lines = {}
    for label, p in steps.items():
        ranks, means = _grouped(p / p.max(), p if by is None else by)
        lines[label] = (ranks, [max(v, 1e-12) for v in means])
    figure = curves(
        "The learned reward through training", lines, x=f"rank of the object by {name}",
        y="learned reward over the highest", log_y=True,
        caption="All objects are worth about the same at first; with training the reward of the worse falls by ever "
        "larger factors, without an exponent being chosen. Exact, by dynamic programming.",
    )  # fmt: skip
    figure.figure["layout"]["yaxis"]["range"] = [-8, 0.1]
    return figure


@torch.no_grad()
def training_panels(environment: "ObjectiveEnvironment", run: "Run") -> list[Panel]:
    """The learned reward at each checkpoint that the run keeps; none where not all objects can be gone through."""
    from headwater.sampling import Model

    table = tabulate(environment)
    kept = run.checkpoints()
    if not isinstance(table, TableEnvironment) or not kept:
        return []
    policy: Any = Model(run, device="cpu").modules.get("policy")
    if policy is None:  # a stage that learned something else
        return []
    at_last = {k: v.clone() for k, v in policy.state_dict().items()}
    steps = {}
    for step in kept:
        policy.load_state_dict(run.load(step, "model")["modules"]["policy"])
        steps[f"step {step:,}"] = learned_distribution(table, forward_policy(table, policy))
    policy.load_state_dict(at_last)
    if len(environment.names) == 1:
        values = environment.objectives(table.states[table.n_inner :])[:, 0]
        return [sparsification(steps, values, name=environment.names[0])]
    return [sparsification(steps)]
