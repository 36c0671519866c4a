"""Our own plain writing of the published loop of set generation (Pan et al., 2023), with no batching beyond the paper.

One object for each trajectory, appends at each step, one loss for each trajectory, a list of all sets seen. This is
what a reader of the paper writes first; it is no code of the paper's authors.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import clock
import torch
from torch import Tensor, nn

BIG = 1e9
SIZES = {"small": (30, 20), "medium": (80, 60), "large": (100, 80)}


def read_energies(path: str, size: str) -> list[float]:
    """One energy an item, from JSON (a list, or an entry for each size) or CSV."""
    text = Path(path).read_text(encoding="utf-8")
    if path.endswith(".json"):
        content = json.loads(text)
        return list(content[size]["energies"] if isinstance(content, dict) else content)
    return [float(row["energy"]) for row in csv.DictReader(text.splitlines())]


def make_network(n_items: int) -> nn.Sequential:
    """Outputs: a logit for each item to add, one for each item to take away, log flow."""
    return nn.Sequential(
        nn.Linear(n_items, 256), nn.LeakyReLU(), nn.Linear(256, 256), nn.LeakyReLU(), nn.Linear(256, 2 * n_items + 1)
    )  # fmt: skip


class SetWalk:
    """One trajectory's environment: a set that grows item by item."""

    def __init__(self, energies: Sequence[float], set_size: int) -> None:
        self.energies, self.set_size = energies, set_size
        self.items: set[int] = set()

    def observe(self) -> list[float]:
        return [1.0 if i in self.items else 0.0 for i in range(len(self.energies))]

    def add(self, item: int) -> tuple[float, bool]:
        """Add an item; its energy, and whether the set is full."""
        self.items.add(item)
        return self.energies[item], len(self.items) == self.set_size


@dataclass
class Trajectory:
    """States (one more than there are actions), actions and the energy of each step."""

    states: list[Tensor] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)


@torch.no_grad()
def roll_out(network: nn.Module, energies: Sequence[float], set_size: int, n: int, uniform: float) -> list[Trajectory]:
    """Sample ``n`` trajectories; ``uniform`` is the weight of the uniform policy in the behaviour."""
    walks = [SetWalk(energies, set_size) for _ in range(n)]
    found = [Trajectory() for _ in range(n)]
    full = False
    while not full:
        states = torch.tensor([walk.observe() for walk in walks])
        logits = network(states)[:, : len(energies)] - BIG * states
        unused = 1 - states
        chances = (1 - uniform) * logits.softmax(1) + uniform * unused / unused.sum(1, keepdim=True)
        chosen = chances.multinomial(1)
        for i in range(n):
            item = int(chosen[i])
            energy, full = walks[i].add(item)
            found[i].states.append(states[i])
            found[i].actions.append(item)
            found[i].energies.append(energy)
    for walk, trajectory in zip(walks, found, strict=True):
        trajectory.states.append(torch.tensor(walk.observe()))
    return found


def loss_of(
    network: nn.Module,
    trajectories: list[Trajectory],
    objective: str,
    terminal: str = "zero",
    log_z: Tensor | None = None,
) -> Tensor:
    """FL-DB, DB or TB, trajectory by trajectory; the mean over transitions, or over trajectories for TB.

    ``terminal`` says what log Ftilde of a full set is: ``"zero"``, or the network's output (``"free"``).
    """
    squares = []
    for trajectory in trajectories:
        states, actions = torch.stack(trajectory.states), torch.tensor(trajectory.actions)
        n_items, rows = states.shape[1], torch.arange(len(actions))
        out = network(states)
        log_pf = (out[:, :n_items] - BIG * states).log_softmax(1)[rows, actions]
        log_pb = (out[:, n_items:-1] - BIG * (1 - states)).log_softmax(1)[rows + 1, actions]
        energies = torch.tensor(trajectory.energies)
        if objective == "tb":
            squares.append((log_z + log_pf.sum() - log_pb.sum() + energies.sum()).square().reshape(1))
            continue
        flow = out[:, -1]
        before, after = flow[:-1], flow[1:]
        if objective == "fl-db":
            last = after[-1:] if terminal == "free" else torch.zeros(1)
            residual = before + log_pf - torch.cat([after[:-1], last]) - log_pb + energies
        else:
            residual = before + log_pf - torch.cat([after[:-1], -energies.sum().reshape(1)]) - log_pb
        squares.append(residual.square())
    return torch.cat(squares).mean()


def main() -> None:
    parser = clock.arguments()
    parser.add_argument("--energies", required=True)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--uniform", type=float, default=1.0, help="weight of the uniform policy")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    energies, set_size = read_energies(options.energies, options.size), SIZES[options.size][1]
    network = make_network(len(energies))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    seen: list[list[int]] = []
    rewards: list[float] = []
    top = 0.0
    done = 0

    def advance(steps: int) -> float:
        nonlocal done, top
        for _ in range(steps):
            trajectories = roll_out(network, energies, set_size, options.batch, options.uniform)
            for trajectory in roll_out(network, energies, set_size, options.batch, 0.0):
                items = sorted(trajectory.actions)
                if items not in seen:
                    seen.append(items)
                    rewards.append(float(torch.tensor(trajectory.energies).sum().neg().exp()))
            loss = loss_of(network, trajectories, "fl-db")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done % 10 == 0:
                best = sorted(rewards, reverse=True)[:100]
                top = sum(best) / len(best)
        return float(set_size)

    clock.measure(options, advance, versions={"torch": version("torch")})


if __name__ == "__main__":
    main()
