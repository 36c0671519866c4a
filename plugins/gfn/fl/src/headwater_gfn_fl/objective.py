"""The forward-looking flow of Pan et al. (2023): which log F each objective of the base is given."""

from typing import Literal

import torch
from headwater_gfn.objective import forward_looking, terminate
from torch import Tensor

__all__ = ["TerminalFlow", "state_flows"]

TerminalFlow = Literal["zero", "const", "free"]


def state_flows(
    log_flow_tilde: Tensor,
    log_partial_reward: Tensor,
    log_reward: Tensor,
    length: Tensor,
    complete: Tensor | None = None,
    *,
    terminal_flow: TerminalFlow = "zero",
    log_constant: Tensor | None = None,
    energy_scale: float = 1.0,
) -> Tensor:
    """log F (T + 1, B) of every state: log Ftilde(s) + c log R(s); at a terminal one log R(x) + log Ftilde(x).

    With these flows detailed balance is FL-DB, log Ftilde(s) + log P_F = log Ftilde(s') + log P_B - E(s -> s'), and
    sub-trajectory balance is FL-SubTB (section 4 of the paper).

    Args:
        log_flow_tilde: (T + 1, B), the network's output.
        log_partial_reward: (T + 1, B), log R of each state, -E(s).
        log_reward: (B,), log R of the last state where it is terminal.
        length: (B,), transitions of each trajectory.
        complete: (B,), which trajectories end in a terminal state; all without.
        terminal_flow: log Ftilde(x): ``"zero"`` is the paper's condition; ``"const"`` takes ``log_constant``, which
            cancels, so P(x) is still proportional to R(x); ``"free"`` keeps the network's output as the official code
            does, and then P(x) is proportional to R(x) Ftilde(x), which is biased.
        log_constant: (), the learned constant of ``"const"``.
        energy_scale: c in [0, 1], the weight of the energies of partial objects.
    """
    flows = forward_looking(log_flow_tilde, energy_scale * log_partial_reward)
    if terminal_flow == "free":
        last = log_flow_tilde[length, torch.arange(len(length), device=length.device)] + log_reward
    else:
        last = log_reward if terminal_flow == "zero" or log_constant is None else log_reward + log_constant
    return terminate(flows, last.to(flows.dtype), length, complete)
