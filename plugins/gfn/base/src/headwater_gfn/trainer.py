"""What the trainers of all GFlowNet methods share: rollouts, replay, archive, exact diagnostics, optimiser."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from headwater import Trainer
from torch import Tensor, nn

from headwater_gfn.archive import Archive
from headwater_gfn.environment import Environment
from headwater_gfn.evaluation import Evaluation, evaluate
from headwater_gfn.exact import forward_policy, jensen_shannon, l1_distance, learned_distribution, log_target
from headwater_gfn.replay import Replay
from headwater_gfn.rollout import Behaviour, Trajectories, roll_back, roll_out
from headwater_gfn.table import TableEnvironment, tabulate

__all__ = ["Batch", "GFlowNetTrainer"]


@dataclass(frozen=True)
class Batch:
    """Trajectories to learn from and the log-reward (B,) of their last states, zero where one is incomplete."""

    trajectories: Trajectories
    log_reward: Tensor


class GFlowNetTrainer(Trainer):
    """Samples trajectories, evaluates the policy on them and descends :meth:`loss`.

    A subclass defines the loss; it may add scalars in :meth:`scalars`. Modules: ``policy``, and ``scalars`` with the
    bare parameters, which has a learning rate of its own.
    """

    on_policy: ClassVar[bool] = True

    @classmethod
    def scalars(cls, config: Any) -> tuple[str, ...]:
        """The names of bare parameters, which start at 0."""
        return ()

    @classmethod
    def build(cls, config: Any, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        names = cls.scalars(config)
        scalars = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in names})
        policy = task.make_policy(config.hidden, config.activation)
        return {"policy": policy, **({"scalars": scalars} if names else {})}

    def setup(self) -> None:
        config, device = self.config, self.place.device
        self.environment: Environment = tabulate(self.task, device=device)
        self.policy: Any = self.modules["policy"]
        groups: list[dict[str, Any]] = [{"params": list(self.policy.parameters()), "lr": config.learning_rate}]
        if "scalars" in self.modules:
            groups.append({"params": list(self.modules["scalars"].parameters()), "lr": config.scalar_learning_rate})
        adam = torch.optim.Adam(groups, fused=True)
        self.optimisers["adam"] = adam
        if config.decay_steps is not None:
            steps = config.decay_steps

            def cosine(k: int) -> float:
                return 0.5 * (1.0 + math.cos(math.pi * min(k, steps) / steps))

            self.schedulers["adam"] = torch.optim.lr_scheduler.LambdaLR(adam, cosine)
        self.archive = self.stateful["archive"] = Archive(
            config.archive_size, self.environment.n_modes, self.environment.modes
        )
        self.replay: Replay | None = None
        if config.replay != "none":
            prioritised = config.replay == "prioritised"
            self.replay = self.stateful["replay"] = Replay(
                config.replay_size, prioritised=prioritised, unique=prioritised
            )

    def exploration(self, k: int) -> float:
        """The probability of a uniform action at step ``k``."""
        until = self.config.exploration_until
        return float(self.config.exploration * (1.0 if until is None else max(0.0, 1.0 - k / until)))

    def draw(self, k: int, generator: torch.Generator) -> Batch:
        config, environment = self.config, self.environment
        n, extra = config.batch_size, config.archive_batch
        behaviour = Behaviour(self.exploration(k), config.temperature, n)
        trajectories = roll_out(environment, self.policy, n + extra, generator, behaviour)
        x = trajectories.last
        log_reward = environment.log_reward(x)
        keys = environment.key(x)
        kept = slice(n, None) if extra else slice(None)
        self.archive.add(x[kept], log_reward[kept], keys[kept])
        if extra:
            trajectories, x, log_reward, keys = trajectories.rows(n), x[:n], log_reward[:n], keys[:n]
        if self.replay is not None:
            if len(self.replay):
                old, old_reward = self.replay.draw(config.replay_batch, generator)
                policy = self.policy if config.backward == "learned" else None
                trajectories = trajectories.beside(roll_back(environment, policy, old, generator))
                log_reward = torch.cat([log_reward, old_reward])
            self.replay.add(x, log_reward[: len(x)], keys)
        return Batch(trajectories, log_reward)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        loss = self.loss(batch)
        self.update(loss, weight=len(batch.log_reward))
        return {
            "loss": loss.detach(),
            "log_reward": batch.log_reward.mean(),
            "length": batch.trajectories.length.float().mean(),
        }

    def evaluate(self, batch: Batch) -> Evaluation:
        """The policy's terms on the batch."""
        learned = self.config.backward == "learned"
        return evaluate(self.environment, self.policy, batch.trajectories, learned_backward=learned)

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The objective's value on a batch, a scalar."""

    @abstractmethod
    def log_partition(self) -> float | None:
        """The learned log Z; ``None`` where the objective has no estimate of it."""

    def validate(self) -> dict[str, float]:
        """Exact distance to the target where all states can be gone through; log Z; what was found so far.

        ``top_100_reward``: mean R of the 100 best different objects; ``near_best``: how many different objects (of at
        most ``archive_size``) have at least 90 % of the highest reward.
        """
        environment, archive = self.environment, self.archive
        best = archive.log_reward.double()
        found = {"top_100_reward": float(best[:100].exp().mean()), "different": float(archive.different)}
        highest = environment.highest_log_reward()
        if highest is not None:
            found["near_best"] = float((best >= highest + math.log(0.9)).sum())
        if environment.n_modes is not None:
            found["modes"] = float(archive.modes)
        learned, exact = self.log_partition(), environment.log_partition()
        if learned is not None:
            found["log_z"] = learned
        if learned is not None and exact is not None:
            found["log_z_error"] = learned - exact
        if isinstance(environment, TableEnvironment):
            distribution = learned_distribution(environment, forward_policy(environment, self.policy))
            target = log_target(environment).exp()
            found["l1"] = l1_distance(distribution, target)
            found["jsd"] = jensen_shannon(distribution, target)
        return found
