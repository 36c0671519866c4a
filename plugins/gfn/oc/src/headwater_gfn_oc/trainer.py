"""The stages: pre-training without a reward, fine-tuning to one, and the baselines from scratch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from headwater import Trainer, UsageError
from headwater_gfn.environment import Environment
from headwater_gfn.evaluation import Evaluation, evaluate
from headwater_gfn.exact import forward_policy, jensen_shannon, l1_distance, learned_distribution, log_target
from headwater_gfn.networks import MLPPolicy
from headwater_gfn.objective import (
    detailed_balance,
    sub_trajectory_balance,
    terminate,
    trajectory_balance,
    valid_transitions,
)
from headwater_gfn.rollout import Behaviour, Trajectories, roll_back, roll_out
from headwater_gfn.table import TableEnvironment, tabulate
from headwater_gfn.trainer import Batch, GFlowNetTrainer
from torch import Tensor, nn

from headwater_gfn_oc.config import BaselineConfig, FinetuneConfig, PretrainConfig
from headwater_gfn_oc.conversion import convert, learned_weights, reach_probability, ways_of
from headwater_gfn_oc.networks import Curiosity, OutcomeSampler, conditional_policy
from headwater_gfn_oc.objective import (
    amortised_residual,
    augmented_trajectory_balance,
    conditional_balance,
    curiosity_loss,
    imitation,
    intrinsic_reward,
    normalise,
    outcome_reward,
)
from headwater_gfn_oc.outcomes import Conditioned

__all__ = ["BaselineTrainer", "FinetuneTrainer", "Pairs", "PretrainTrainer"]

WATCHED = 300_000
"""Most pairs of a state and an outcome up to which validation goes through all of them."""


@dataclass(frozen=True)
class Pairs:
    """What pre-training learns from: trajectories of states and outcomes, and how.

    ``hits`` (B,) says which reach their outcome; ``positive`` is how many of the first were made to. ``explored`` are
    the explorer's trajectories, without outcomes, and ``intrinsic`` (T, B) what it was rewarded with.
    """

    conditioned: Conditioned
    trajectories: Trajectories
    hits: Tensor
    positive: int
    explored: Trajectories | None = None
    intrinsic: Tensor | None = None


class PretrainTrainer(Trainer):
    """Learns the flows and policies to all outcomes.

    Modules: ``conditional``, the policy of states and outcomes; in the paper's mode with the explorer ``explorer``,
    ``curiosity`` and ``scalars`` (its log Z).
    """

    on_policy: ClassVar[bool] = True
    config: PretrainConfig

    @classmethod
    def facts(cls, config: PretrainConfig, task: Any) -> dict[str, Any]:
        """The space, and whether flows are normalised at the source: what the later stages must know."""
        return {"space": task.space(), "normalised": config.mode == "direct"}

    @classmethod
    def build(cls, config: PretrainConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        check_space(task, facts)
        modules = {"conditional": conditional_policy(task, config.hidden, config.activation, config.conditioning)}
        if config.mode == "paper" and config.explorer == "gafn":
            sizes = (task.n_features, task.n_actions, task.n_backward)
            modules["explorer"] = MLPPolicy(*sizes, (256, 256), "leaky-relu")
            modules["curiosity"] = Curiosity(task.n_features)
            modules["scalars"] = nn.ParameterDict({"log_z": nn.Parameter(torch.zeros(()))})
        return modules

    def setup(self) -> None:
        config, device = self.config, self.place.device
        self.clip_norm = config.clip_norm
        self.environment: Environment = tabulate(self.task, device=device)
        self.policy: Any = self.modules["conditional"]
        adam = torch.optim.Adam(self.policy.parameters(), lr=config.learning_rate, fused=True)
        self.optimisers["adam"] = adam
        if config.decay_steps is not None:
            steps = config.decay_steps

            def cosine(k: int) -> float:
                return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(k, steps) / steps))

            self.schedulers["adam"] = torch.optim.lr_scheduler.LambdaLR(adam, cosine)
        modules: Any = self.modules
        self.explorer, self.curiosity = modules.get("explorer"), modules.get("curiosity")
        if self.explorer is not None:
            learned = [*self.explorer.parameters(), *self.curiosity.predictor_network.parameters()]
            groups = [
                {"params": learned, "lr": config.learning_rate},
                {"params": list(self.modules["scalars"].parameters()), "lr": config.scalar_learning_rate},
            ]
            self.optimisers["explorer"] = torch.optim.Adam(groups, fused=True)

    # Batches

    def draw(self, k: int, generator: torch.Generator) -> Pairs:
        config, environment = self.config, self.environment
        n, device = config.batch_size, self.place.device
        if config.mode == "direct":
            y = environment.random_objects(n, generator)
            positive = roll_back(environment, None, y, generator)
            conditioned = Conditioned(environment, y)
            return Pairs(conditioned, lift(conditioned, positive), torch.ones(n, dtype=torch.bool, device=device), n)
        explored = intrinsic = None
        if self.explorer is None:
            y = environment.random_objects(n, generator)
            positive = roll_back(environment, None, y, generator)
        else:
            explored = positive = roll_out(environment, self.explorer, n, generator, Behaviour(config.exploration))
            y = positive.last
            with torch.no_grad():
                intrinsic = intrinsic_reward(*self._looked_at(explored), config.curiosity)
        conditioned = Conditioned(environment, y)
        tried = roll_out(conditioned, self.policy, n, generator)
        hits = conditioned.hit(tried.last)
        if not config.contrastive:
            return Pairs(conditioned, tried, hits, 0, explored, intrinsic)
        hits = torch.cat([torch.ones_like(hits), hits])
        return Pairs(conditioned, lift(conditioned, positive).beside(tried), hits, n, explored, intrinsic)

    def _looked_at(self, explored: Trajectories) -> tuple[Tensor, Tensor]:
        """What the two networks of curiosity say (T, B, D) of the states reached."""
        reached = explored.states[1:]
        observed = self.environment.observe(reached.flatten(0, 1))
        predicted, target = self.curiosity(observed)
        return predicted.view(*reached.shape[:2], -1), target.view(*reached.shape[:2], -1)

    # The losses

    def step(self, batch: Pairs) -> dict[str, Tensor]:
        loss, terms = self.loss(batch)
        n = len(batch.conditioned.y)
        self.update(loss, "adam", weight=n)
        found = {"loss": loss.detach()}
        if batch.positive < len(batch.hits):
            found["hits"] = batch.hits[batch.positive :].float().mean()
        if self.config.mode == "paper":
            found["flow_spread"] = terms.log_flow[0].detach().std()
        if batch.explored is not None:
            exploring = self.explorer_loss(batch)
            self.update(exploring, "explorer", weight=n)
            found["loss_explorer"] = exploring.detach()
        return found

    def loss(self, batch: Pairs) -> tuple[Tensor, Evaluation]:
        """The objective's value on a batch, a scalar, and what the policy says of its trajectories."""
        config, length = self.config, batch.trajectories.length
        learned = config.backward == "learned"
        terms = evaluate(batch.conditioned, self.policy, batch.trajectories, learned_backward=learned)
        log_reward = outcome_reward(batch.hits, config.reward_floor).to(terms.log_pf)
        if config.mode == "direct":
            flows = normalise(terms.log_flow)
            found = conditional_balance(terms.log_pf, terms.log_pb, flows, log_reward, length, teleport=False)
            if config.imitation:
                found = found + config.imitation * imitation(terms.log_pf, length)
            return found, terms
        found = torch.zeros((), device=length.device)
        for part in (slice(0, batch.positive), slice(batch.positive, None)):
            if len(length[part]):
                found = found + conditional_balance(
                    terms.log_pf[:, part], terms.log_pb[:, part], terms.log_flow[:, part], log_reward[part],
                    length[part], config.teleport,
                )  # fmt: skip
        return found, terms

    def explorer_loss(self, batch: Pairs) -> Tensor:
        """The explorer's balance and the error of the network that predicts the random one."""
        explored = batch.explored
        assert explored is not None
        assert batch.intrinsic is not None
        terms = evaluate(self.environment, self.explorer, explored)
        scalars: Any = self.modules["scalars"]
        distance = intrinsic_reward(*self._looked_at(explored), 1.0)
        valid = valid_transitions(explored.length, len(distance))
        balance = augmented_trajectory_balance(
            terms.log_pf, terms.log_pb, terms.log_flow, batch.intrinsic, scalars["log_z"], explored.length
        )
        return balance + curiosity_loss(torch.where(valid, distance, 0.0), explored.length)

    # What was learned

    def validate(self) -> dict[str, float]:
        """How often an outcome is reached; where all pairs can be gone through, exactly, and what is converted.

        ``success``: the mean probability of ending in y under the policy conditioned on y, no action ruled out;
        ``flow_spread``: standard deviation over y of log F(s_0|y), 0 where flows are right; ``converted_l1``: sum over
        the objects of |P_T - R / sum R| of the policy converted to the task's own reward.
        """
        environment, config = self.environment, self.config
        device = self.place.device
        if isinstance(environment, TableEnvironment):
            n = len(environment.states) - environment.n_inner
            if n * environment.n_inner <= WATCHED and device.type == "cpu":
                found = {"success": float(reach_probability(environment, self.policy, torch.arange(n)).mean())}
                ways = ways_of(environment)
                assert ways is not None  # fewer than WATCHED
                if config.mode == "paper":
                    observed = torch.cat(
                        [environment.observe(torch.zeros(n, dtype=torch.int64)),
                         environment.observe(torch.arange(n) + environment.n_inner)], 1
                    )  # fmt: skip
                    found["flow_spread"] = float(self.policy(observed)[2].std())
                weights = learned_weights(ways, self.policy, normalised=config.mode == "direct")
                p = learned_distribution(environment, convert(ways, weights, environment.log_rewards))
                found["converted_l1"] = l1_distance(p, log_target(environment).exp())
                return found
        generator = torch.Generator(device).manual_seed(0)
        y = environment.random_objects(config.validation_outcomes, generator)
        conditioned = Conditioned(environment, y)
        tried = roll_out(conditioned, self.policy, len(y), generator)
        return {"success": float(conditioned.hit(tried.last).float().mean())}


def lift(conditioned: Conditioned, trajectories: Trajectories) -> Trajectories:
    """Trajectories of the environment itself with the outcomes behind their states."""
    states = trajectories.states
    y = conditioned.y.unsqueeze(0).expand(states.shape)
    return Trajectories(conditioned.paired(states, y), trajectories.actions, trajectories.length)


def drop(conditioned: Conditioned, trajectories: Trajectories) -> Trajectories:
    """Trajectories of the environment itself, without the outcomes that they aimed at."""
    states = trajectories.states
    own = conditioned.split(states.flatten(0, 1))[0]
    return Trajectories(own.view(*states.shape[:2], *own.shape[1:]), trajectories.actions, trajectories.length)


def check_space(task: Any, facts: Mapping[str, Any]) -> None:
    """See that the flows were learned on the space of ``task``.

    Raises:
        UsageError: they were not; names what differs.
    """
    known, own = facts.get("space"), task.space()
    if known is None or known == own:
        return
    differs = [name for name in {**known, **own} if known.get(name) != own.get(name)]
    told = "; ".join(f"{name} is {own.get(name, 'not there')}, was {known.get(name, 'not there')}" for name in differs)
    raise UsageError(
        f"the run of --from was pre-trained on another space than that of this task: {told}; the reward may change, "
        "what objects are and how they are built may not"
    )


class RewardTrainer(GFlowNetTrainer):
    """Learns one reward R^exponent: rollouts, then some updates, each on the rollouts and objects replayed anew."""

    def setup(self) -> None:
        super().setup()
        self.clip_norm = self.config.clip_norm
        if self.config.decay_steps is not None and self.config.updates_per_batch > 1:
            updates = self.config.decay_steps * self.config.updates_per_batch

            def cosine(k: int) -> float:
                return 0.5 * (1.0 + math.cos(math.pi * min(k, updates) / updates))

            adam = self.optimisers["adam"]
            self.schedulers["adam"] = torch.optim.lr_scheduler.LambdaLR(adam, cosine)

    def draw(self, k: int, generator: torch.Generator) -> Any:
        config = self.config
        fresh = self.walked(k, config.batch_size, generator)
        log_reward = self.evaluated(fresh.last)
        batches = []
        for _ in range(config.updates_per_batch):
            trajectories, rewards = fresh, log_reward
            if self.replay is not None and len(self.replay):
                old, old_reward = self.replay.draw(config.replay_batch, generator)
                policy = self.policy if config.backward == "learned" else None
                trajectories = fresh.beside(roll_back(self.environment, policy, old, generator))
                rewards = torch.cat([log_reward, old_reward])
            batches.append(Batch(trajectories, rewards))
        if self.replay is not None:
            self.replay.add(fresh.last, log_reward, self.environment.key(fresh.last))
        return batches

    def walked(self, k: int, n: int, generator: torch.Generator) -> Trajectories:
        """``n`` trajectories of the policy, which explores at step ``k``."""
        behaviour = Behaviour(self.exploration(k), self.config.temperature)
        return roll_out(self.environment, self.policy, n, generator, behaviour)

    def evaluated(self, x: Tensor) -> Tensor:
        """log R (B,) of ``x``, which go into the archive: it counts the reward evaluations, each object once."""
        log_reward = self.environment.log_reward(x)
        self.archive.add(x, log_reward, self.environment.key(x))
        return log_reward

    def step(self, batch: Any) -> dict[str, Tensor]:
        first: dict[str, Tensor] = {}
        for part in batch:
            loss = self.loss(part)
            self.update(loss, weight=len(part.log_reward))
            first = first or {"loss": loss.detach(), "log_reward": part.log_reward[: self.config.batch_size].mean()}
        return first

    def log_partition(self) -> float | None:
        return None

    def validate(self) -> dict[str, float]:
        """As of every GFlowNet, and against R^exponent; ``different`` is the number of reward evaluations so far."""
        found = super().validate()
        environment, exponent = self.environment, self.config.exponent
        if isinstance(environment, TableEnvironment):
            p = self.distribution(environment)
            target = torch.softmax(exponent * environment.log_rewards.double(), 0)
            found |= {"l1": l1_distance(p, target), "jsd": jensen_shannon(p, target)}
            found["mean_reward"] = float(p @ environment.log_rewards.double().exp())
        return found

    def distribution(self, table: TableEnvironment) -> Tensor:
        """The exact probability of each object (X,)."""
        return learned_distribution(table, forward_policy(table, self.policy))


@dataclass(frozen=True)
class Transitions:
    """Transitions ``state`` to ``child`` by ``action`` (M,), an outcome ``y`` that each leads to, and its log R."""

    state: Tensor
    action: Tensor
    child: Tensor
    y: Tensor
    log_reward: Tensor


class FinetuneTrainer(RewardTrainer):
    """The amortised predictor: N sums over the outcomes, Q samples them; the flows to all outcomes stay as they are.

    Modules: ``policy``, with log N(s'|s) its log flow plus its log P_F, so that the policy is N normalised; and
    ``outcomes``, Q. ``given["conditional"]`` is what was pre-trained.
    """

    config: FinetuneConfig

    @classmethod
    def build(cls, config: FinetuneConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        check_space(task, facts)
        task.check_letters()
        return {
            "policy": MLPPolicy(task.n_features, task.n_actions, 0, config.hidden, config.activation),
            "outcomes": OutcomeSampler(task.n_features, task.n_places, task.n_values, config.outcome_hidden),
        }

    def setup(self) -> None:
        super().setup()
        if "conditional" not in self.given:
            raise UsageError("the run of --from has no flows to outcomes: it holds an explorer or a baseline alone")
        self.flows: Any = self.given["conditional"].requires_grad_(False).eval()
        self.sampler: Any = self.modules["outcomes"]
        adam: Any = self.optimisers["adam"]
        adam.add_param_group({"params": list(self.sampler.parameters()), "lr": self.config.learning_rate})
        if self.schedulers:  # it knows the groups that there were
            scheduler: Any = self.schedulers["adam"]
            self.schedulers["adam"] = torch.optim.lr_scheduler.LambdaLR(adam, scheduler.lr_lambdas[0])

    @cached_property
    def _root(self) -> Tensor:
        return self.environment.start(1, self.place.device)

    def walked(self, k: int, n: int, generator: torch.Generator) -> Trajectories:
        """As ever, but a share aims at random outcomes by the pre-trained policy, which explores from the start."""
        aimed = round(self.config.aimed * n)
        if not aimed:
            return super().walked(k, n, generator)
        conditioned = Conditioned(self.environment, self.environment.random_objects(aimed, generator))
        found = drop(conditioned, roll_out(conditioned, self.flows, aimed, generator))
        return found if aimed == n else super().walked(k, n - aimed, generator).beside(found)

    def draw(self, k: int, generator: torch.Generator) -> Any:
        return [self.transitions(batch, generator) for batch in super().draw(k, generator)]

    def transitions(self, batch: Batch, generator: torch.Generator) -> Transitions:
        """The transitions of a batch, each with an outcome."""
        config, environment, trajectories = self.config, self.environment, batch.trajectories
        valid = valid_transitions(trajectories.length, len(trajectories.actions))
        rows = valid.nonzero()[:, 1]
        state, child = trajectories.states[:-1][valid], trajectories.states[1:][valid]
        action = trajectories.actions[valid]
        if config.outcomes == "trajectory":
            return Transitions(state, action, child, trajectories.last[rows], batch.log_reward[rows])
        y = self.sampler.draw(environment, state, child, generator, config.outcome_temperature, config.outcome_uniform)
        log_reward = self.evaluated(y)
        if self.replay is not None:
            self.replay.add(y, log_reward, environment.key(y))
        return Transitions(state, action, child, y, log_reward)

    def residual(self, batch: Transitions) -> Tensor:
        """log N + log Q - log r - log F - log P_F of each transition (M,)."""
        environment, action = self.environment, batch.action
        mask, same = environment.forward_mask(batch.state), environment.same_child(batch.state, action)
        conditioned = Conditioned(environment, batch.y)
        with torch.no_grad():
            pairs = conditioned.paired(batch.state, batch.y)
            logits, _, log_flow = self.flows(conditioned.observe(pairs))
            log_pf = probability_of(logits, mask, action, same)
            if self.facts_found["normalised"]:
                root = conditioned.paired(self._root.expand_as(batch.state), batch.y)
                log_flow = log_flow - self.flows(conditioned.observe(root))[2]
        logits, _, total = self.policy(environment.observe(batch.state))
        log_n = total + probability_of(logits, mask, action, same)
        log_q = self.sampler.log_q(environment, batch.state, batch.child, batch.y)
        log_r = self.config.exponent * batch.log_reward
        return amortised_residual(log_n, log_q, log_r, log_flow, log_pf)

    def step(self, batch: Any) -> dict[str, Tensor]:
        first: dict[str, Tensor] = {}
        for part in batch:
            residual = self.residual(part)
            loss = residual.square().mean()
            self.update(loss, weight=len(part.state))
            # E_Q[r F P_F / (N Q)] is 1 where N is the sum: what lies far from it is not learned, or Q has collapsed.
            ratio = (-residual.detach()).clamp_max(20.0).exp().mean()
            first = first or {"loss": loss.detach(), "log_reward": part.log_reward.mean(), "share_of_sum": ratio}
        return first

    def loss(self, batch: Any) -> Tensor:
        return self.residual(batch).square().mean()


def probability_of(logits: Tensor, mask: Tensor, action: Tensor, same: Tensor | None) -> Tensor:
    """log P(s'|s) (M,) of the transitions that ``action`` (M,), and those in ``same`` (M, A) as well, make."""
    masked = torch.where(mask, logits, -1e9)
    log_p = torch.log_softmax(masked, 1)
    if same is None:
        return log_p.gather(1, action.unsqueeze(1)).squeeze(1)
    return torch.where(same, log_p, -torch.inf).logsumexp(1)


class BaselineTrainer(RewardTrainer):
    """TB, DB, SubTB and deep Q-learning from scratch, on the rollouts and replay of the other stages.

    Of deep Q-learning the logits are values Q(s, a), and the policy is the softmax of Q / temperature.
    """

    config: BaselineConfig

    @classmethod
    def facts(cls, config: BaselineConfig, task: Any) -> dict[str, Any]:
        """What divides the logits of the policy when it is sampled."""
        return {"temperature": config.temperature if config.objective == "dqn" else 1.0}

    @classmethod
    def scalars(cls, config: BaselineConfig) -> tuple[str, ...]:
        return ("log_z",) if config.objective == "tb" else ()

    @classmethod
    def build(cls, config: BaselineConfig, task: Any, facts: Mapping[str, Any]) -> dict[str, nn.Module]:
        modules = super().build(config, task, facts)
        if config.objective == "dqn":
            modules["target"] = task.make_policy(config.hidden, config.activation)
            modules["target"].load_state_dict(modules["policy"].state_dict())
        return modules

    def setup(self) -> None:
        super().setup()
        self.updates = self.stateful["updates"] = _Count()

    def log_partition(self) -> float | None:
        scalars: Any = self.modules.get("scalars")
        return None if scalars is None else float(scalars["log_z"])

    def distribution(self, table: TableEnvironment) -> Tensor:
        if self.config.objective != "dqn":
            return super().distribution(table)
        s = torch.arange(table.n_inner, device=self.place.device)
        logits = self.policy.forward_logits(table.observe(s)).double() / self.config.temperature
        return learned_distribution(table, torch.where(table.forward_mask(s), logits, -1e9).log_softmax(1))

    def loss(self, batch: Batch) -> Tensor:
        config, length = self.config, batch.trajectories.length
        log_reward = config.exponent * batch.log_reward
        if config.objective == "dqn":
            return self._bellman(batch.trajectories, log_reward)
        terms = self.evaluate(batch)
        if config.objective == "tb":
            scalars: Any = self.modules["scalars"]
            return trajectory_balance(terms.log_pf, terms.log_pb, log_reward, scalars["log_z"])
        flows = terminate(terms.log_flow, log_reward.to(terms.log_flow), length)
        if config.objective == "subtb":
            return sub_trajectory_balance(terms.log_pf, terms.log_pb, flows, length, config.lam)
        return detailed_balance(terms.log_pf, terms.log_pb, flows, length)

    def _bellman(self, trajectories: Trajectories, log_reward: Tensor) -> Tensor:
        """Mean of (Q(s, a) - max_a' Q'(s', a'))^2 over transitions; into x the target is R(x)."""
        environment, target = self.environment, self.modules["target"]
        if self.updates.n % self.config.target_every == 0:
            target.load_state_dict(self.policy.state_dict())
        self.updates.n += 1
        valid = valid_transitions(trajectories.length, len(trajectories.actions))
        rows = valid.nonzero()[:, 1]
        state, child, action = (
            trajectories.states[:-1][valid], trajectories.states[1:][valid], trajectories.actions[valid],
        )  # fmt: skip
        value = self.policy.forward_logits(environment.observe(state)).gather(1, action.unsqueeze(1)).squeeze(1)
        over = environment.terminal(child)
        with torch.no_grad():
            going: Any = child[~over]
            after: Any = target
            best = log_reward.exp()[rows].to(value)
            later = torch.where(
                environment.forward_mask(going), after.forward_logits(environment.observe(going)), -torch.inf
            )
            best[~over] = later.amax(1).to(value)
        return (value - best).square().mean()


class _Count:
    """A number that is saved with a run."""

    def __init__(self) -> None:
        self.n = 0

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n = state["n"]
