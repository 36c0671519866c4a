"""bfn-moljo beside the published network written plainly, at the published size, on one thread.

One complex of 396 pocket and 33 ligand atoms (synthetic: uniform in balls of protein and ligand density), 32
neighbours, width 128, 9 layers, 16 heads, float32. Both compute in one process, in turn, with the same weights, after
their outputs are found equal to 1e-5.

- forward: the backbone, without gradients.
- train: forward and backward of the backbone's continuous losses, no optimiser.
- guided: a step of a guided chain, the backbone and the gradient of two predictors with respect to mu and y. The plain
  form calls and differentiates the predictors one by one, their weights' gradients included.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import moljo_plain as plain
import torch
from headwater_bfn_moljo import guidance
from headwater_bfn_moljo.flow import Belief, coordinate_loss, type_loss
from headwater_bfn_moljo.layout import Layout
from headwater_bfn_moljo.networks import Backbone, Predictor
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import write_results

SIZE = {"types": 13, "width": 128, "layers": 9, "heads": 16}
KNN, PROTEINS, LIGANDS = 32, 396, 33
SIGMA1, BETA1, T = 0.03, 1.5, 0.6


def ball(atoms: int, radius: float, generator: torch.Generator) -> Tensor:
    """Points uniform in a ball, (atoms, 3)."""
    direction = torch.nn.functional.normalize(torch.randn(atoms, 3, generator=generator), dim=1)
    return radius * torch.rand(atoms, 1, generator=generator) ** (1 / 3) * direction


class Workload:
    """The complex, the networks, and each measured piece in both forms."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.pos, self.x = ball(PROTEINS, 6.0, g), ball(LIGANDS, 2.5, g)
        self.protein = torch.rand(PROTEINS, 27, generator=g)
        self.e = torch.nn.functional.one_hot(torch.randint(13, (LIGANDS,), generator=g), 13).float()
        self.belief = Belief(self.x + 0.1 * torch.randn(LIGANDS, 3, generator=g), torch.randn(LIGANDS, 13, generator=g))
        self.t = torch.full((LIGANDS,), T)
        torch.manual_seed(seed)
        self.backbone = Backbone(**SIZE)
        self.predictors = [Predictor(**SIZE), Predictor(**SIZE)]
        self.layout = Layout(self.pos, (PROTEINS,), (LIGANDS,), KNN)
        _ = self.layout.edges(self.x)  # the pocket's own neighbours, found once for a whole chain

    def inputs(self, mu: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Layout]:
        return mu, theta, self.t, self.protein, self.layout

    def network(self, form: str, mu: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        call = self.backbone if form == "headwater" else lambda *a: plain.backbone(self.backbone, *a)
        found: tuple[Tensor, Tensor] = call(*self.inputs(mu, theta))
        return found

    @torch.no_grad()
    def forward(self, form: str) -> list[Tensor]:
        return list(self.network(form, self.belief.mu, self.belief.theta))

    def train(self, form: str) -> list[Tensor]:
        x, logits = self.network(form, self.belief.mu, self.belief.theta)
        loss = coordinate_loss(self.x, x, self.t, SIGMA1, None).mean()
        loss = loss + type_loss(self.e, logits, self.t, BETA1, None).mean()
        self.backbone.zero_grad()
        loss.backward()
        return [p.grad for name, p in self.backbone.named_parameters() if not name.endswith("key.3.bias")]

    def guided(self, form: str) -> list[Tensor]:
        mu, theta = self.belief.mu, self.belief.theta
        if form == "plain":
            with torch.no_grad():
                self.network(form, mu, theta)
            total = [torch.zeros_like(mu), torch.zeros_like(self.belief.y)]
            for module in self.predictors:
                module.requires_grad_(True)
                leaves = mu.clone().requires_grad_(), self.belief.y.clone().requires_grad_()
                value = plain.predictor(module, *self.inputs(leaves[0], leaves[1].softmax(-1)))
                value.log().sum().backward()
                total = [a + leaf.grad / 2 for a, leaf in zip(total, leaves, strict=True)]
                module.zero_grad()
            return total
        for module in (self.backbone, *self.predictors):
            module.requires_grad_(False)
        edges = self.layout.edges(mu)
        self.backbone(*self.inputs(mu, theta), edges)
        found = guidance.by_logits(
            lambda m, p: [module(*self.inputs(m, p), edges) for module in self.predictors], self.belief
        )
        self.backbone.requires_grad_(True)
        return list(found)


def equal(piece: Callable[[str], list[Tensor]]) -> float:
    """The largest difference of the two forms, relative to the largest number."""
    ours, theirs = (torch.cat([v.detach().flatten() for v in piece(form)]) for form in ("headwater", "plain"))
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument("--quick", action="store_true", help="one round: does everything run? nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = Workload(0)
    found: dict[str, dict[str, object]] = {}
    for name in ("forward", "train", "guided"):
        piece = getattr(work, name)
        difference = equal(piece)
        if difference > 1e-5:
            raise SystemExit(f"{name}: the two forms differ by {difference:.2g}")
        seconds: dict[str, list[float]] = {"headwater": [], "plain": []}
        for round_ in range(1 if arguments.quick else arguments.repeats):
            for form in sorted(seconds, reverse=round_ % 2 == 1):
                began = time.process_time()
                piece(form)
                seconds[form].append(time.process_time() - began)
        ratio = statistics.median(seconds["plain"]) / statistics.median(seconds["headwater"])
        paired = statistics.median(b / a for a, b in zip(seconds["headwater"], seconds["plain"], strict=True))
        found[name] = {"cpu_seconds": seconds, "ratio": ratio, "by_rounds": paired, "difference": difference}
        print(
            f"{name:8} plain {statistics.median(seconds['plain']):.3f} s, headwater "
            f"{statistics.median(seconds['headwater']):.3f} s: {ratio:.2f} times ({paired:.2f} by rounds), equal to "
            f"{difference:.1g}",
            flush=True,
        )
    if not arguments.quick:
        print(write_results("bfn-moljo", [{"piece": name, **values} for name, values in found.items()]))


if __name__ == "__main__":
    main()
