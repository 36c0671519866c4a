"""Training by conditional flow matching, either generation of the network."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from headwater import DataError, Trainer, seeding
from torch import Tensor, nn

from headwater_flow_tsgen.batch import Frames, buckets, collate, elements_of, facts_of, n_species, place
from headwater_flow_tsgen.config import TSGenConfig
from headwater_flow_tsgen.flow import generate, noise, pair, path_of, times
from headwater_flow_tsgen.geometry import distance_mae, midpoint, rmsd
from headwater_flow_tsgen.networks import MolGen, Potential, TSGen
from headwater_flow_tsgen.objective import flow_loss, mean_over_atoms, variance_loss
from headwater_flow_tsgen.tasks.reaction import Reaction

__all__ = ["Draw", "TSGenTrainer", "build_network", "pool"]

NOISES = 5
"""How many noises the variance loss compares."""

VALIDATED = 64
"""How many reactions a validation generates."""


class Draw(NamedTuple):
    """One training batch: placed reactions, times (B,), starts (S, B, N, 3) and targets (S, B, N, 3)."""

    frames: Frames
    t: Tensor
    x0: Tensor
    x1: Tensor
    conditioned: bool


def build_network(config: TSGenConfig, species: int) -> nn.Module:
    """The untrained network of a config.

    Its read-out starts small: the published scale makes velocities tens of times those that are learned.
    """
    network: MolGen | TSGen
    if config.network == "molgen":
        network = MolGen(
            species, config.width, config.layers, config.heads, config.feed_forward, conditioned=config.conditioned
        )
    else:
        network = TSGen(
            species, config.width, config.pair_width, config.layers, config.heads, config.feed_forward,
            conditioned=config.conditioned,
        )  # fmt: skip
    with torch.no_grad():
        network.out.mul_(0.01)
    return network


def pool(
    reactions: Sequence[Reaction], elements: Sequence[int], config: TSGenConfig, at_least: int = 1
) -> list[Frames]:
    """All reactions as placed batches of about equal sizes."""
    return [
        place(
            collate([reactions[i] for i in group], elements, config.fragments),
            config.prior,
            reflections=config.reflections,
        )
        for group in buckets([len(reaction) for reaction in reactions], at_least=at_least)
    ]


class TSGenTrainer(Trainer):
    """Regresses the velocity of the path from start to transition state, of the TS structure alone."""

    config: TSGenConfig

    @classmethod
    def facts(cls, config: TSGenConfig, task: Any) -> dict[str, Any]:
        """The elements of the data, held-out reactions to generate without a condition, and how the flow starts."""
        parts = task.parts()
        kept = parts["test"] or parts["val"] or parts["train"]
        everything = [reaction for part in parts.values() for reaction in part]
        names = ("network", "prior", "prior_scale", "centred", "fragments", "reflections")
        return {
            "elements": elements_of(everything),
            "held_out": [facts_of(reaction) for reaction in kept[: config.held_out]],
            "flow": {name: getattr(config, name) for name in names},
        }

    @classmethod
    def build(cls, config: TSGenConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        species = n_species(facts["elements"])
        modules: dict[str, nn.Module] = {"network": build_network(config, species)}
        if config.potential:
            modules["potential"] = Potential(
                species, config.width, config.pair_width, config.layers, config.heads, config.feed_forward
            )
        return modules

    def setup(self) -> None:
        config = self.config
        self.network: Any = self.modules["network"]
        self.potential: Any = self.modules.get("potential")
        self.clip_norm = config.clip_norm
        dtype = next(self.network.parameters()).dtype
        parts = self.task.parts()
        train = [reaction for reaction in parts["train"] if reaction.ts is not None]
        if not train:
            raise DataError(
                "no reaction of the training part has a transition state, so there is nothing to learn from"
            )
        if config.potential and any(reaction.barrier is None for reaction in train):
            raise DataError("trainer.potential needs a barrier for every reaction; some of these have none")
        elements = self.facts_found["elements"]
        self.pool = [f.to("cpu", dtype) for f in pool(train, elements, config, at_least=config.batch_size)]
        self.share = torch.tensor([len(frames.species) for frames in self.pool], dtype=torch.float64)
        held = [r for r in parts["val"] or parts["test"] if r.ts is not None][:VALIDATED]
        self.held = [f.to(self.place.device, dtype) for f in pool(held, elements, config)] if held else []
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        adam = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )  # fmt: skip
        self.optimisers["adam"] = adam
        if config.decay_steps is not None:
            steps = config.decay_steps

            def cosine(k: int) -> float:
                return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(k, steps) / steps))

            self.schedulers["adam"] = torch.optim.lr_scheduler.LambdaLR(adam, cosine)

    def draw(self, k: int, generator: torch.Generator) -> Draw:
        config = self.config
        bucket = self.pool[int(torch.multinomial(self.share, 1, generator=generator))]
        n = len(bucket.species)
        if n > config.batch_size:
            rows = torch.randperm(n, generator=generator)[: config.batch_size]
        else:
            rows = torch.randint(n, (config.batch_size,), generator=generator)
        frames = bucket.rows(rows)
        conditioned = True
        if config.condition_share < 1:
            conditioned = float(torch.rand((), generator=generator)) < config.condition_share
        if not conditioned:
            frames = all_three(frames)
        t = times(len(frames.species), config.times, config.path, generator).to(frames.ts.dtype)
        x0, x1 = [], []
        for _ in range(NOISES if config.variance_weight else 1):
            drawn = noise(
                frames.start.shape, config.prior_scale, generator, centred=config.centred, mask=frames.mask
            )  # fmt: skip
            pairs = pair(frames.start + drawn.to(frames.start.dtype), frames.ts, frames.mask, config.ot)
            x0.append(pairs[0])
            x1.append(pairs[1])
        return Draw(frames, t, torch.stack(x0), torch.stack(x1), conditioned)

    def step(self, batch: Draw) -> dict[str, Tensor]:
        config, frames = self.config, batch.frames
        path = path_of(config.path)
        s, b = batch.x0.shape[:2]
        t = batch.t.repeat(s)
        x0, x1 = batch.x0.flatten(0, 1), batch.x1.flatten(0, 1)
        context = self.context(frames, batch.conditioned)
        if s > 1:  # several noises of one batch, side by side
            rows = torch.arange(b, device=t.device).repeat(s)
            context = context.rows(rows)
        v = self.network(path.mean(t, x0, x1), t, context)
        u = path.velocity(t, x0, x0, x1)
        mask = frames.mask
        flow = flow_loss(v[:b], u[:b], batch.t, config.loss, mask).mean()
        found = {"loss": flow, "velocity_error": mean_over_atoms((v[:b] - u[:b]).detach().abs(), mask).mean()}
        if s > 1:
            found["loss_variance"] = variance_loss(v.view(s, b, *v.shape[1:]), mask).mean()
            found["loss"] = found["loss"] + config.variance_weight * found["loss_variance"]
        if self.potential is not None and batch.conditioned:
            barrier = self.potential(frames.ts, torch.ones_like(batch.t), self.potential_context(frames))
            found["loss_potential"] = (barrier - frames.barrier).square().mean()
            found["loss"] = found["loss"] + found["loss_potential"]
        self.update(found["loss"], weight=float(b))
        return {name: value.detach() for name, value in found.items()}

    def context(self, frames: Frames, conditioned: bool) -> Any:
        """The network's context of a batch."""
        if not conditioned:
            return self.network.prepare(frames.species, None, None, frames.mask)
        return self.network.prepare(frames.species, frames.reactant, frames.product, frames.mask, frames.fragment)

    def potential_context(self, frames: Frames) -> Any:
        """The potential's context of a batch."""
        return self.potential.prepare(frames.species, frames.reactant, frames.product, frames.mask)

    def validate(self) -> dict[str, float]:
        """One guess for each held-out reaction, by the averaged weights where there are any; beside the midpoint."""
        if not self.held:
            return {}
        config, network = self.config, self.averages.get("network", self.network)
        names = ("rmsd", "rmsd_mirror", "d_mae", "midpoint_rmsd_mirror")
        sums, count = dict.fromkeys(names, 0.0), 0
        for k, frames in enumerate(self.held):
            generator = seeding.generator(0, k)
            mask = None if frames.mask is None else frames.mask.cpu()
            drawn = noise(frames.start.shape, config.prior_scale, generator, centred=config.centred, mask=mask)
            x = generate(network, frames, frames.start + drawn.to(frames.start))
            middle = midpoint(frames.reactant, frames.product, frames.mask)
            measures = (
                rmsd(x, frames.ts, frames.mask),
                rmsd(x, frames.ts, frames.mask, reflect=True),
                distance_mae(x, frames.ts, frames.mask),
                rmsd(middle, frames.ts, frames.mask, reflect=True),
            )
            for name, values in zip(names, measures, strict=True):
                sums[name] += float(values.sum())
            count += len(x)
        return {name: value / count for name, value in sums.items()}


def all_three(frames: Frames) -> Frames:
    """Reactant, TS and product as three structures that are all to be generated, without a condition."""

    def thrice(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat([x, x, x])

    return Frames(
        torch.cat([frames.species] * 3), torch.cat([frames.reactant] * 3), torch.cat([frames.product] * 3),
        torch.cat([frames.reactant, frames.ts, frames.product]), torch.cat([frames.start] * 3),
        thrice(frames.mask), thrice(frames.fragment), torch.cat([frames.barrier] * 3),
    )  # fmt: skip
