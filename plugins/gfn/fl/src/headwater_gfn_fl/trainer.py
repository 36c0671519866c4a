"""Training with local credit, and the baselines beside it."""

from typing import Any

import torch
from headwater import UsageError
from headwater_gfn.evaluation import edge_flows
from headwater_gfn.objective import (
    detailed_balance,
    flow_matching,
    sub_trajectory_balance,
    terminate,
    trajectory_balance,
    valid_transitions,
)
from headwater_gfn.trainer import Batch, GFlowNetTrainer
from torch import Tensor

from headwater_gfn_fl.config import FLConfig
from headwater_gfn_fl.objective import state_flows

__all__ = ["FLTrainer"]


class FLTrainer(GFlowNetTrainer):
    """FL-DB and FL-SubTB, and DB, SubTB, TB and FM on the same rollouts."""

    config: FLConfig

    @classmethod
    def scalars(cls, config: FLConfig) -> tuple[str, ...]:
        if config.objective == "tb":
            return ("log_z",)
        looks_forward = config.objective.startswith("fl-")
        return ("log_constant",) if looks_forward and config.terminal_flow == "const" else ()

    def setup(self) -> None:
        super().setup()
        if self.config.incomplete and self.config.objective in ("tb", "fm"):
            raise UsageError(f"trainer.incomplete: {self.config.objective} cannot learn from incomplete trajectories")

    def scalar(self, name: str) -> Tensor:
        """One of the bare parameters."""
        scalars: Any = self.modules["scalars"]
        found: Tensor = scalars[name]
        return found

    def draw(self, k: int, generator: torch.Generator) -> Batch:
        batch = super().draw(k, generator)
        if not self.config.incomplete:
            return batch
        length = batch.trajectories.length
        uniform = torch.rand(2, len(length), generator=generator, device=length.device)
        shorter = 1 + (uniform[0] * length).long().minimum(length - 1)
        cut = torch.where(uniform[1] < self.config.incomplete, shorter, length)
        return Batch(batch.trajectories.cut(cut), batch.log_reward)

    def loss(self, batch: Batch) -> Tensor:
        config, trajectories = self.config, batch.trajectories
        length, complete = trajectories.length, trajectories.complete
        if config.objective == "fm":
            seen = valid_transitions(length, len(trajectories.actions))
            s = trajectories.states[1:][seen]
            rows = seen.nonzero()[:, 1]
            return flow_matching(*edge_flows(self.environment, self.policy, s, batch.log_reward[rows]))
        terms = self.evaluate(batch)
        if config.objective == "tb":
            return trajectory_balance(terms.log_pf, terms.log_pb, batch.log_reward, self.scalar("log_z"))
        if config.objective.startswith("fl-"):
            states = trajectories.states
            partial = self.environment.log_partial_reward(states.flatten(0, 1)).view(states.shape[:2])
            flows = state_flows(
                terms.log_flow, partial, batch.log_reward, length, complete,
                terminal_flow=config.terminal_flow, energy_scale=config.energy_scale,
                log_constant=self.scalar("log_constant") if config.terminal_flow == "const" else None,
            )  # fmt: skip
        else:
            flows = terminate(terms.log_flow, batch.log_reward, length, complete)
        if config.objective.endswith("subtb"):
            return sub_trajectory_balance(terms.log_pf, terms.log_pb, flows, length, config.lam)
        return detailed_balance(terms.log_pf, terms.log_pb, flows, length)

    def log_partition(self) -> float | None:
        config = self.config
        if config.objective == "tb":
            return float(self.scalar("log_z"))
        source = self.environment.start(1, self.place.device)
        observed = self.environment.observe(source)
        if config.objective == "fm":
            logits = torch.where(
                self.environment.forward_mask(source), self.policy.forward_logits(observed), -torch.inf
            )
            return float(logits.logsumexp(1))
        flow = float(self.policy(observed)[2])
        if config.objective.startswith("fl-"):
            if config.terminal_flow == "free":
                return None
            flow += config.energy_scale * float(self.environment.log_partial_reward(source))
            flow -= float(self.scalar("log_constant")) if config.terminal_flow == "const" else 0.0
        return flow
