"""Our own plain writing of order-preserving trajectory balance on the objective grid (Chen and Mauch, 2024).

One object for each trajectory; the policy is asked for one state at a time while sampling and once more, state by
state, for the loss; parents are listed for each state; the front of the batch is found by comparing all pairs in
Python. This is what a reader of the paper writes first; it is no code of the paper's authors.
"""

import math
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise

import clock
import torch
from torch import Tensor, nn

SIDE = 32


def make_network(side: int = SIDE) -> nn.Sequential:
    """Logits of +x, +y and STOP of a one-hot state."""
    widths = (2 * side, 64, 64, 64)
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 3))


def objectives(x: int, y: int, side: int = SIDE) -> tuple[float, float]:
    """Branin and Currin of a grid point, larger is better."""
    u, v = x / (side - 1), y / (side - 1)
    a, b = 15 * u - 5, 15 * v
    bowl = (b - 5.1 / (4 * math.pi**2) * a * a + 5 / math.pi * a - 6) ** 2
    branin = 1 - (bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(a) + 10) / 308.13
    top, bottom = 2300 * u**3 + 1900 * u**2 + 2092 * u + 60, 100 * u**3 + 500 * u**2 + 4 * u + 20
    currin = (1 - math.exp(-1 / (2 * v + 1e-10))) * top / bottom / 13.77
    return branin, currin


@dataclass
class Walk:
    """One trajectory: the states in which an action was taken, and the actions."""

    states: list[tuple[int, int]] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)


def observe(state: tuple[int, int], side: int = SIDE) -> Tensor:
    one_hot = torch.zeros(2 * side)
    one_hot[state[0]] = one_hot[side + state[1]] = 1.0
    return one_hot


def parents(state: tuple[int, int], side: int = SIDE) -> list[tuple[int, int]]:
    """The states that a step leads from to ``state``: those with a coordinate at its end lead nowhere."""
    x, y = state
    found = [(x - 1, y)] if x > 0 else []
    found += [(x, y - 1)] if y > 0 else []
    return [p for p in found if max(p) < side - 1]


def roll_out(network: nn.Module, n: int, uniform: float, side: int = SIDE) -> list[Walk]:
    """Sample ``n`` trajectories, one after another."""
    found = []
    for _ in range(n):
        walk, state = Walk(), (0, 0)
        while True:
            if max(state) == side - 1:
                action = 2
            elif float(torch.rand(())) < uniform:
                action = int(torch.randint(3, ()))
            else:
                with torch.no_grad():
                    action = int(torch.distributions.Categorical(logits=network(observe(state, side))).sample())
            walk.states.append(state)
            walk.actions.append(action)
            if action == 2:
                break
            state = (state[0] + 1, state[1]) if action == 0 else (state[0], state[1] + 1)
        found.append(walk)
    return found


def loss_of(network: nn.Module, walks: list[Walk], side: int = SIDE) -> Tensor:
    """Cross entropy of the uniform distribution over the batch's front and the softmax of log Rhat."""
    log_reward, values = [], []
    for walk in walks:
        total = torch.zeros(())
        for i, (state, action) in enumerate(zip(walk.states, walk.actions, strict=True)):
            if max(state) < side - 1:
                total = total + torch.log_softmax(network(observe(state, side)), 0)[action]
            if i:
                total = total + math.log(len(parents(state, side)))
        log_reward.append(total)
        values.append(objectives(*walk.states[-1], side))
    front = [not any(all(b >= a for a, b in zip(u, v, strict=True)) and v != u for v in values) for u in values]
    target = torch.tensor(front).float()
    return -(target / target.sum() * torch.log_softmax(torch.stack(log_reward), 0)).sum()


def main() -> None:
    options = clock.arguments().parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def advance(steps: int) -> float:
        lengths = []
        for _ in range(steps):
            walks = roll_out(network, options.batch, 0.01)
            loss = loss_of(network, walks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lengths += [len(walk.actions) for walk in walks]
        return sum(lengths) / len(lengths)

    clock.measure(options, advance, batch=options.batch, versions={"torch": version("torch")})


if __name__ == "__main__":
    main()
