"""Training from the order of the objects alone, and the baselines that need a scalar reward."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from headwater import UsageError
from headwater_gfn import pareto as metrics
from headwater_gfn.all_states import AllStates
from headwater_gfn.environment import Environment, log_policy
from headwater_gfn.evaluation import Evaluation, edge_flows
from headwater_gfn.exact import forward_policy, l1_distance, learned_distribution
from headwater_gfn.objective import (
    detailed_balance,
    flow_matching,
    sub_trajectory_balance,
    terminate,
    trajectory_balance,
    valid_transitions,
)
from headwater_gfn.rollout import Behaviour, Trajectories, roll_back, roll_out
from headwater_gfn.table import TableEnvironment
from headwater_gfn.tasks.objectives import ObjectiveEnvironment, objectives_of
from headwater_gfn.trainer import Batch, GFlowNetTrainer
from torch import Tensor, nn

from headwater_gfn_op.config import OPConfig
from headwater_gfn_op.networks import PreferencePolicy
from headwater_gfn_op.objective import (
    OrderLoss,
    backward_kl,
    learned_log_reward,
    op_detailed_balance,
    op_flow_matching,
    op_sub_trajectory_balance,
    pairs,
    pareto,
)
from headwater_gfn_op.replay import ParetoReplay

__all__ = ["OPBatch", "OPTrainer", "draw_preference", "preference_reward"]

CONCENTRATION = 1.5
EXPONENT_SHAPE, EXPONENT_SCALE = 16.0, 1.0
COVERED = 1e-3
CONDITIONS = 16
"""Preferences over which the distribution of the preference-conditioned baseline is averaged."""


def draw_preference(d: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """Weights (d,) from Dirichlet(1.5) and an exponent from Gamma(16, 1), as the baseline draws them."""
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    rng = np.random.default_rng(int(seed))
    weights = torch.from_numpy(rng.dirichlet([CONCENTRATION] * d))
    return weights, float(rng.gamma(EXPONENT_SHAPE, EXPONENT_SCALE))


def preference_reward(values: Tensor, weights: Tensor, exponent: float, floor: float) -> Tensor:
    """log R (B,) = exponent log(max(w u, floor)) of objectives ``values`` (B, D)."""
    return exponent * (values * weights.to(values)).sum(1).clamp_min(floor).log()


@dataclass(frozen=True)
class OPBatch(Batch):
    """Also the objectives ``values`` (B, D) and what draws the pairs, ``noise`` (K, B).

    ``states`` is what the policy says of all states, where these are few: it was needed to draw the batch.
    """

    values: Tensor
    noise: Tensor
    states: AllStates | None


class OPTrainer(GFlowNetTrainer):
    """OP-TB, OP-DB, OP-SubTB and OP-FM; TB, DB, SubTB, FM and preference-conditioned TB on the same rollouts.

    With several processes each orders its own share of the batch.
    """

    config: OPConfig

    @classmethod
    def scalars(cls, config: OPConfig) -> tuple[str, ...]:
        return ("log_z",) if config.objective == "tb" else ()

    @classmethod
    def build(cls, config: OPConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        if config.objective != "pc-tb":
            return super().build(config, task, facts)
        if not isinstance(task, ObjectiveEnvironment) or not task.measurable:
            raise UsageError("pc-tb prefers among several objectives, but the task has one")
        if type(task).make_policy is not Environment.make_policy and getattr(task.config, "network", "") != "direct":
            raise UsageError(f"pc-tb conditions a perceptron, and {type(task).__name__} has a network of its own")
        sizes = (task.n_features, task.n_actions, task.n_backward, len(task.names))
        return {"policy": PreferencePolicy(*sizes, config.hidden, config.activation, config.z_hidden)}

    def setup(self) -> None:
        super().setup()
        config, environment = self.config, self.environment
        self.clip_norm = config.clip_norm
        adam: Any = self.optimisers["adam"]
        adam.param_groups[0]["weight_decay"] = config.weight_decay
        if config.decay_steps is not None and config.updates_per_batch > 1:
            updates = config.decay_steps * config.updates_per_batch

            def cosine(k: int) -> float:
                return 0.5 * (1.0 + math.cos(math.pi * min(k, updates) / updates))

            self.schedulers["adam"] = torch.optim.lr_scheduler.LambdaLR(adam, cosine)
        self.objectives = objectives_of(environment)
        several = isinstance(self.task, ObjectiveEnvironment) and len(self.task.names) > 1
        if not several and "pareto" in (config.order, config.replay):
            setting = "order" if config.order == "pareto" else "replay"
            raise UsageError(
                f"trainer.{setting} = 'pareto' needs a partial order, but the task has one objective; give it several "
                f"(task.objectives, task.columns or task.ranking), or set trainer.{setting} to another value"
            )
        self.by_front = config.order == "pareto" or (config.order == "auto" and several)
        if config.replay == "pareto":
            self.replay = self.stateful["replay"] = ParetoReplay(config.replay_size, config.pareto_share)
        self.looks_at_all = AllStates.fits(environment, self.place.device)

    # Batches

    def look(self) -> AllStates | None:
        """What the policy says of all states, where these are few."""
        if not self.looks_at_all:
            return None
        table: Any = self.environment
        return AllStates.of(table, self.policy, learned_backward=self.config.backward == "learned")

    def draw(self, k: int, generator: torch.Generator) -> OPBatch:
        config, environment = self.config, self.environment
        if config.objective == "pc-tb":
            self.policy.set_condition(*draw_preference(len(self.task.names), generator))
        states = self.look()
        n, extra = config.batch_size, config.archive_batch
        behaviour = Behaviour(self.exploration(k), config.temperature, n)
        if states is None:
            trajectories = roll_out(environment, self.policy, n + extra, generator, behaviour)
        else:
            trajectories = states.roll_out(n + extra, generator, behaviour)
        x = trajectories.last
        log_reward, keys = environment.log_reward(x), environment.key(x)
        kept = slice(n, None) if extra else slice(None)
        self.archive.add(x[kept], log_reward[kept], keys[kept])
        if extra:
            trajectories, x, log_reward, keys = trajectories.rows(n), x[:n], log_reward[:n], keys[:n]
        values = self.objectives(x)
        if self.replay is not None:
            replayed = self._replayed(generator) if len(self.replay) else None
            if isinstance(self.replay, ParetoReplay):
                self.replay.add_to_front(x, values, log_reward, keys)
            self.replay.add(x, log_reward, keys)
            if replayed is not None:
                old, old_reward, back = replayed
                trajectories = trajectories.beside(back)
                log_reward = torch.cat([log_reward, old_reward])
                values = torch.cat([values, self.objectives(old)])
        rows = len(trajectories.actions) if config.objective == "op-subtb" else 1
        noise = torch.rand(rows, len(log_reward), generator=generator, device=log_reward.device)
        return OPBatch(trajectories, log_reward, values, noise, states)

    def _replayed(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Trajectories]:
        """Objects of the buffer, each as often as trajectories are drawn from it, their log-rewards, trajectories."""
        assert self.replay is not None
        old, old_reward = self.replay.draw(self.config.replay_batch, generator)
        times = self.config.backward_trajectories
        old, old_reward = old.repeat_interleave(times, 0), old_reward.repeat_interleave(times)
        policy = self.policy if self.config.backward == "learned" else None
        return old, old_reward, roll_back(self.environment, policy, old, generator)

    def step(self, batch: Any) -> dict[str, Tensor]:
        loss = self.loss(batch)
        self.update(loss, weight=len(batch.log_reward))
        first = loss.detach()
        for _ in range(self.config.updates_per_batch - 1):
            again = OPBatch(batch.trajectories, batch.log_reward, batch.values, batch.noise, self.look())
            self.update(self.loss(again), weight=len(batch.log_reward))
        return {
            "loss": first,
            "log_reward": batch.log_reward.mean(),
            "length": batch.trajectories.length.float().mean(),
        }

    # The loss

    def order(self, batch: OPBatch) -> OrderLoss:
        """The order loss of the batch: over pairs, or of its non-dominated objects."""
        return pareto(batch.values) if self.by_front else pairs(batch.values, batch.noise, self.config.tie)

    def loss(self, batch: Any) -> Tensor:
        config, trajectories, length = self.config, batch.trajectories, batch.trajectories.length
        if config.objective in ("fm", "op-fm"):
            return self._flow_matching(batch)
        terms = self.evaluate(batch) if batch.states is None else batch.states.evaluate(trajectories)
        found = self._balance(batch, terms)
        if config.backward_kl:
            seen = valid_transitions(length + 1, len(trajectories.states))
            seen[0] = False
            if self.environment.stops:
                seen &= valid_transitions(length, len(trajectories.states))
            found = found + config.backward_kl * self._backward_kl(trajectories.states[seen], batch.states)
        return found

    def _balance(self, batch: OPBatch, terms: Evaluation) -> Tensor:
        config, length = self.config, batch.trajectories.length
        terms_of = (terms.log_pf, terms.log_pb)
        if config.objective == "op-tb":
            found = learned_log_reward(*terms_of).unsqueeze(0)
            return self.order(batch)(found, torch.ones_like(found, dtype=torch.bool))[0]
        if config.objective == "op-db":
            return op_detailed_balance(*terms_of, terms.log_flow, length, self.order(batch), config.order_weight)
        if config.objective == "op-subtb":
            return op_sub_trajectory_balance(
                *terms_of, terms.log_flow, length, self.order(batch), config.order_weight, config.lam
            )
        if config.objective == "pc-tb":
            *weights, exponent = self.policy.condition.double().unbind()
            log_reward = preference_reward(batch.values, torch.stack(weights), exponent, self.task.config.floor)
            return trajectory_balance(*terms_of, log_reward.to(terms.log_pf), self.policy.log_z())
        log_reward = config.exponent * batch.log_reward
        if config.objective == "tb":
            scalars: Any = self.modules["scalars"]
            return trajectory_balance(*terms_of, log_reward, scalars["log_z"])
        flows = terminate(terms.log_flow, log_reward.to(terms.log_flow), length)
        if config.objective == "subtb":
            return sub_trajectory_balance(*terms_of, flows, length, config.lam)
        return detailed_balance(*terms_of, flows, length)

    def _flow_matching(self, batch: OPBatch) -> Tensor:
        config, trajectories = self.config, batch.trajectories
        seen = valid_transitions(trajectories.length, len(trajectories.actions))
        s, rows = trajectories.states[1:][seen], seen.nonzero()[:, 1]
        log_reward = config.exponent * batch.log_reward
        if config.objective == "fm":
            return flow_matching(*edge_flows(self.environment, self.policy, s, log_reward[rows]))
        into, out = edge_flows(self.environment, self.policy, s, log_reward[rows])
        inner = ~self.environment.terminal(s)
        found = torch.zeros_like(log_reward, dtype=into.dtype).index_put((rows[~inner],), into[~inner])
        return op_flow_matching(into[inner], out[inner], found, self.order(batch), config.order_weight)

    def _backward_kl(self, s: Tensor, states: AllStates | None) -> Tensor:
        """Mean KL of P_B from the uniform one over visited states ``s`` (M, ...)."""
        if states is not None:
            return backward_kl(states.log_pb.index_select(0, s), self.environment.backward_mask(s))
        backward = self.policy(self.environment.observe(s))[1]
        if backward is None:
            raise UsageError("trainer.backward_kl: the network of this task has no backward policy")
        mask = self.environment.backward_mask(s)
        return backward_kl(log_policy(backward, mask), mask)

    # Exact diagnostics

    def log_partition(self) -> float | None:
        scalars: Any = self.modules.get("scalars")
        return None if scalars is None else float(scalars["log_z"])

    @cached_property
    def _best(self) -> Tensor | None:
        """Which objects of the table are on the true Pareto front, or best (X,); ``None`` where that is not known."""
        table: Any = self.environment
        values = self.objectives(torch.arange(table.n_inner, len(table.states), device=self.place.device))
        if values.shape[1] == 1:
            return values[:, 0] == values.max()
        if not self.task.measurable:  # a ranking: the best are those that no other object is above
            return (values[:, values.sum(0) == 1] > 0).any(1)
        if not metrics.available():
            return None
        return torch.from_numpy(metrics.non_dominated(values.cpu().numpy())).to(values.device)

    def distribution(self, table: TableEnvironment) -> Tensor:
        """The exact probability of each object (X,); averaged over preferences where the policy depends on one."""
        if self.config.objective != "pc-tb":
            return learned_distribution(table, forward_policy(table, self.policy))
        before = self.policy.condition.clone()
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(CONDITIONS):
            weights, exponent = draw_preference(len(self.task.names), generator)
            self.policy.set_condition(weights.to(before.device), exponent)
            found.append(learned_distribution(table, forward_policy(table, self.policy)))
        self.policy.condition.copy_(before)
        return torch.stack(found).mean(0)

    def validate(self) -> dict[str, float]:
        """What was found so far; where all objects can be gone through, where the policy's probability goes.

        ``front_mass``: the exact probability of the true Pareto front (of the best objects, with one objective);
        ``front_covered``: how many of its objects have more than 0.001; ``effective``: how many equally probable
        objects the distribution is worth; ``mean_objective``; ``l1`` to the target of the baselines.
        """
        environment, archive, config = self.environment, self.archive, self.config
        best = archive.log_reward.double()
        found = {"different": float(archive.different)}
        if len(best):
            found |= {"best_reward": float(best[0].exp()), "top_100_reward": float(best[:100].exp().mean())}
        if environment.n_modes is not None:
            found["modes"] = float(archive.modes)
        if not isinstance(environment, TableEnvironment):
            return found
        p = self.distribution(environment)
        front = self._best
        if front is not None:
            found["front_mass"] = float(p[front].sum())
            found["front_covered"] = float((p[front] > COVERED).sum())
        found["effective"] = float(torch.special.entr(p).sum().exp())
        values = self.objectives(torch.arange(environment.n_inner, len(environment.states), device=p.device))
        if values.shape[1] == 1:
            found["mean_objective"] = float(p @ values[:, 0])
        if config.objective in ("tb", "db", "subtb", "fm"):
            target = torch.softmax(config.exponent * environment.log_rewards.double(), 0)
            found["l1"] = l1_distance(p, target)
        return found
