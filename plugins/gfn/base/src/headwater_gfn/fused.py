"""What a perceptron says of trajectories in a table of states, with its gradient, as one node of the graph.

On a CPU a step of a small network is hardly more than the cost of its many calls. The products here are torch's; what
lies between them, the log-softmax and the choice of what was taken, is NumPy's work on the same memory.
:func:`headwater_gfn.evaluation.evaluate` gives the same by torch's own graph, which is the reference.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from headwater_gfn.environment import MASKED, Environment
from headwater_gfn.networks import MLPPolicy, Policy
from headwater_gfn.rollout import Trajectories
from headwater_gfn.table import TableEnvironment

__all__ = ["applies", "taken_terms"]


def applies(environment: Environment, policy: Policy, trajectories: Trajectories, learned_backward: bool) -> bool:
    """Whether :func:`taken_terms` can stand for torch's graph."""
    known = isinstance(environment, TableEnvironment) and environment.inherits("same_child")
    ours = type(policy) is MLPPolicy and learned_backward and trajectories.length.device.type == "cpu"
    return known and ours and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")


def taken_terms(
    environment: TableEnvironment, policy: MLPPolicy, trajectories: Trajectories
) -> tuple[Tensor, Tensor, Tensor]:
    """log P_F (T, B), log P_B (T, B) and log F (T + 1, B), zero past the end; they can be differentiated once."""
    actions, length = trajectories.actions.numpy(), trajectories.length.numpy()
    steps, n = actions.shape
    step = np.arange(steps + 1)[:, None]
    last = length  # the last state that is looked at: one made by STOP is not
    if environment.stops:
        last = length - (1 if trajectories.complete is None else trajectories.complete.numpy())
    seen = trajectories.states.numpy()[np.minimum(step, last), np.arange(n)]
    rows, place = np.unique(seen, return_inverse=True)
    place = place.reshape(seen.shape) * policy.n_outputs
    inside, back = step <= length, step[1:] <= last
    b = actions
    if not environment.inherits("backward_action"):
        where = torch.from_numpy(back)
        b = np.zeros_like(actions)
        b[back] = environment.backward_action(trajectories.states[:-1][where], trajectories.actions[where]).numpy()
    where = np.concatenate([inside[1:], back, inside])
    taken = np.concatenate([place[:-1] + actions, place[1:] + policy.n_actions + b, place + policy.n_outputs - 1])
    s = torch.from_numpy(rows)
    parts = (
        (slice(0, policy.n_actions), environment.forward_mask(s).numpy()),
        (slice(policy.n_actions, policy.n_outputs - 1), environment.backward_mask(s).numpy()),
    )
    parameters = [p for layer in policy.layers() for p in (layer.weight, layer.bias)]
    observed = environment.observe(s).to(parameters[0].dtype)
    found: Tensor = _Taken.apply(observed, policy.slope, parts, where, taken[where], *parameters)
    log_pf, log_pb, log_flow = found.split([steps, steps, steps + 1])
    return log_pf, log_pb, log_flow


class _Taken(torch.autograd.Function):
    """A layer is h' = act(h W^T + b); the last has no act. Its outputs are normalised where they are logits.

    With g the gradient of what was taken, that of the outputs is the sum of g at each, less softmax times the sum of
    its row where they are logits. With G that of what a layer gives before its act, dW = G^T h, db is the sum of the
    rows of G, and that of the layer before is G W times the slope of act at h.
    """

    @staticmethod
    def forward(
        ctx: Any, observed: Tensor, slope: float, parts: Any, where: Any, taken: Any, *parameters: Tensor
    ) -> Tensor:
        """The outputs (*, B) at the places ``taken`` (M,), put to the M true places of ``where`` (*, B).

        Args:
            ctx: torch's.
            observed: (R, n_features), without a gradient.
            slope: of the activation below 0.
            parts: pairs of the columns that are logits and which of them are allowed (R, A).
            where: array (*, B), where something is taken; only allowed actions are.
            taken: array (M,) of places in the flattened outputs.
            parameters: weight and bias of each layer, the first layer first.
        """
        weights, biases = parameters[::2], parameters[1::2]
        hidden = [observed]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            before = torch.addmm(bias, hidden[-1], weight.t())
            hidden.append(torch.relu_(before) if slope == 0 else nn.functional.leaky_relu_(before, slope))
        outputs = torch.addmm(biases[-1], hidden[-1], weights[-1].t()).numpy()
        with np.errstate(all="ignore"):  # what a network of NaN says, its loss will tell
            for columns, allowed in parts:
                z = np.where(allowed, outputs[:, columns], MASKED)
                z -= z.max(1, keepdims=True)
                z -= np.log(np.exp(z).sum(1, keepdims=True))
                outputs[:, columns] = z
        values = np.zeros(where.shape, outputs.dtype)
        values[where] = outputs.reshape(-1).take(taken)
        ctx.save_for_backward(*hidden, *weights)
        ctx.slope, ctx.parts, ctx.where, ctx.taken, ctx.outputs = slope, parts, where, taken, outputs
        return torch.from_numpy(values)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        outputs = ctx.outputs
        g = np.zeros_like(outputs)
        with np.errstate(all="ignore"):
            np.add.at(g.reshape(-1), ctx.taken, gradient.numpy()[ctx.where])
            for columns, _ in ctx.parts:
                g[:, columns] -= np.exp(outputs[:, columns]) * g[:, columns].sum(1, keepdims=True)
        n = len(ctx.saved_tensors) // 2
        hidden, weights = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        above, found = torch.from_numpy(g), []
        for layer in reversed(range(n)):
            # The weight's gradient is laid out as the weight lies in memory, or it would be copied.
            found += [above.sum(0), (hidden[layer].t() @ above).t()]
            if layer:
                above = above @ weights[layer]
                torch.ops.aten.leaky_relu_backward(above, hidden[layer], ctx.slope, True, grad_input=above)
        return (None, None, None, None, None, *reversed(found))
