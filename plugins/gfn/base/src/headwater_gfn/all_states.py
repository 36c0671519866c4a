"""Small environments: the policy is evaluated once on all states, and the rest of an update is look-ups.

A batch of 128 trajectories on a grid of 1,024 states visits most of them, many several times. One pass over all states
costs less than the states visited, and rollouts then need no network at all.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater_gfn.environment import log_policy
from headwater_gfn.evaluation import Evaluation
from headwater_gfn.rollout import Behaviour, Trajectories
from headwater_gfn.table import TableEnvironment

__all__ = ["MOST", "AllStates"]

MOST = 2048
"""States up to which it pays to look at all of them."""

CHECK = 4
"""Steps between two looks at whether all trajectories have ended."""


@dataclass
class AllStates:
    """log P_F (n_inner, n_actions), log P_B (M, n_backward) and log F (M,) of the first M states of ``table``.

    M is ``n_inner`` where STOP makes the terminal states, else all states. Gradients flow through all three. Actions
    must lead to different children.
    """

    table: TableEnvironment
    log_pf: Tensor
    log_pb: Tensor
    log_flow: Tensor

    @classmethod
    def fits(cls, environment: Any, device: torch.device) -> bool:
        """Whether ``environment`` is a table small enough, on a CPU, whose actions lead to different children."""
        return (
            isinstance(environment, TableEnvironment)
            and device.type == "cpu"
            and len(environment.states) <= 2 * MOST
            and environment.n_inner <= MOST
            and environment.same_child(environment.start(1), torch.zeros(1, dtype=torch.int64)) is None
        )

    @classmethod
    def of(cls, table: TableEnvironment, policy: Any, *, learned_backward: bool = True) -> "AllStates":
        """Evaluate ``policy``; P_B is uniform over the parents without ``learned_backward``."""
        last = table.n_inner if table.stops else len(table.states)
        s = torch.arange(last)
        forward, backward, flow = policy(table.observe(s))
        log_pf = log_policy(forward[: table.n_inner], table.forward_mask(s[: table.n_inner]))
        mask = table.backward_mask(s)
        if learned_backward and backward is not None:
            log_pb = log_policy(backward, mask)
        else:
            log_pb = torch.where(mask, -mask.sum(1, keepdim=True).clamp_min(1).to(flow.dtype).log(), -1e9)
        return cls(table, log_pf, log_pb, flow)

    @torch.no_grad()
    def roll_out(self, n: int, generator: torch.Generator, behaviour: Behaviour | None = None) -> Trajectories:
        """Sample ``n`` trajectories from the source by look-ups in the distribution functions of the actions."""
        table, behaviour = self.table, behaviour or Behaviour()
        s = torch.arange(table.n_inner)
        mask = table.forward_mask(s)
        plain = torch.where(mask, self.log_pf.exp(), 0.0).double()
        below = self._distribution_function(plain, mask)
        offset = np.zeros(n, dtype=np.int64)
        if behaviour.differs:
            p = plain if behaviour.temperature == 1 else (self.log_pf.double() / behaviour.temperature).softmax(1)
            p = (1.0 - behaviour.epsilon) * p + behaviour.epsilon * mask / mask.sum(1, keepdim=True)
            below = np.concatenate([self._distribution_function(p, mask), below])
            offset[n if behaviour.rows is None else behaviour.rows :] = table.n_inner
        uniform = torch.rand(table.max_len, n, 1, dtype=torch.float64, generator=generator).numpy()
        successor, inner, n_actions = table.successor.numpy(), table.n_inner, table.n_actions
        states = np.zeros((table.max_len + 1, n), dtype=np.int64)
        actions = np.zeros((table.max_len, n), dtype=np.int64)
        t = 0
        while t < table.max_len:
            here = states[t]
            # A terminal state stays where it is, whatever is chosen: the last inner state's row will do.
            a = (uniform[t] >= below.take(np.minimum(here, inner - 1) + offset, 0)).sum(1)
            actions[t] = a
            states[t + 1] = successor.take(here * n_actions + a)
            t += 1
            if t % CHECK == 0 and states[t].min() >= inner:
                break
        walked = torch.from_numpy(states[: t + 1])
        length = (walked < inner).sum(0).clamp_max(t)  # more only where the network gave NaN
        longest = int(length.max())
        return Trajectories(walked[: longest + 1], torch.from_numpy(actions[:longest]), length)

    @staticmethod
    def _distribution_function(p: Tensor, mask: Tensor) -> Any:
        """P(action <= a) (n_inner, n_actions); infinite from the last allowed action on."""
        total = p.cumsum(1)
        allowed = mask.cumsum(1)
        return torch.where(allowed == allowed[:, -1:], torch.inf, total).numpy()

    def evaluate(self, trajectories: Trajectories) -> Evaluation:
        """What the policy says of ``trajectories``, as :func:`headwater_gfn.evaluation.evaluate` does."""
        table, states, actions, length = self.table, trajectories.states, trajectories.actions, trajectories.length
        steps = len(actions)
        step = torch.arange(steps + 1).unsqueeze(1)
        valid = step[:-1] < length
        before = states[:-1].clamp_max(table.n_inner - 1)
        log_pf = self.log_pf.flatten().index_select(0, (before * table.n_actions + actions).flatten()).view(steps, -1)
        log_pf = torch.where(valid, log_pf, 0.0)

        seen = (states < len(self.log_flow)) & (step <= length)
        back = valid & seen[1:]
        b = table.backward_action(before.flatten(), actions.flatten()).view(steps, -1).clamp_max(table.n_backward - 1)
        after = states[1:].clamp_max(len(self.log_pb) - 1)
        log_pb = self.log_pb.flatten().index_select(0, (after * table.n_backward + b).flatten()).view(steps, -1)
        log_pb = torch.where(back, log_pb, 0.0)

        # A state made by STOP has the flow of the state before.
        place = torch.where(seen, states, torch.cat([states[:1], states[:-1]])).clamp_max(len(self.log_flow) - 1)
        log_flow = self.log_flow.index_select(0, place.flatten()).view(place.shape)
        return Evaluation(log_pf, log_pb, torch.where(step <= length, log_flow, 0.0))
