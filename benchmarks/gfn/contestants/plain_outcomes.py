"""Our own plain writing of the outcome-conditioned loss on a grid, with flows normalised at the source.

One trajectory after another: back from its outcome step by step, with a list of parents for each state; then the
network is asked for one state at a time, and one residual after another goes into the loss. This is what a reader of
the paper writes first; it is no code of the paper's authors.
"""

import math
import random
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise

import clock
import torch
from torch import Tensor, nn

SIDE = 8
State = tuple[int, int]


def make_network(side: int = SIDE) -> nn.Sequential:
    """Of the one-hot state and outcome: logits of +x, +y, STOP; two of P_B, which nothing uses; log F."""
    widths = (4 * side, 256, 256)
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 6))


@dataclass
class Walk:
    """A trajectory to an outcome: the states in which an action was taken, and the actions."""

    outcome: State
    states: list[State] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)


def parents(state: State) -> list[tuple[State, int]]:
    """The states before ``state`` and the actions that lead on from them."""
    x, y = state
    found = [((x - 1, y), 0)] if x > 0 else []
    return found + ([((x, y - 1), 1)] if y > 0 else [])


def walk_back(rng: random.Random, side: int = SIDE) -> Walk:
    """A uniform outcome, and a way to it by the uniform backward policy."""
    outcome = state = (rng.randrange(side), rng.randrange(side))
    states, actions = [state], [2]
    while before := parents(state):
        state, action = rng.choice(before)
        states.append(state)
        actions.append(action)
    return Walk(outcome, states[::-1], actions[::-1])


def observe(state: State, outcome: State, side: int = SIDE) -> Tensor:
    one_hot = torch.zeros(4 * side)
    for place, value in enumerate((*state, *outcome)):
        one_hot[place * side + value] = 1.0
    return one_hot


def loss_of(network: nn.Module, walks: list[Walk], side: int = SIDE) -> Tensor:
    """Balance of all transitions, and -log P_F of all transitions, each a mean."""
    residuals, likelihoods = [], []
    for walk in walks:
        outputs = [network(observe(state, walk.outcome, side)) for state in walk.states]
        for t, (state, action) in enumerate(zip(walk.states, walk.actions, strict=True)):
            allowed = torch.tensor([state[0] < side - 1, state[1] < side - 1, True])
            log_pf = torch.log_softmax(torch.where(allowed, outputs[t][:3], -1e9), 0)[action]
            last = t == len(walk.states) - 1
            log_flow = outputs[t][5] - outputs[0][5]
            after = torch.zeros(()) if last else outputs[t + 1][5] - outputs[0][5]
            log_pb = 0.0 if last else -math.log(len(parents(walk.states[t + 1])))
            residuals.append((log_flow + log_pf - after - log_pb) ** 2)
            likelihoods.append(log_pf)
    return torch.stack(residuals).mean() - torch.stack(likelihoods).mean()


def main() -> None:
    options = clock.arguments().parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def advance(steps: int) -> float:
        lengths = []
        for _ in range(steps):
            walks = [walk_back(rng) for _ in range(options.batch)]
            loss = loss_of(network, walks)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            lengths += [len(walk.actions) for walk in walks]
        return sum(lengths) / len(lengths)

    clock.measure(options, advance, batch=options.batch, versions={"torch": version("torch")})


if __name__ == "__main__":
    main()
