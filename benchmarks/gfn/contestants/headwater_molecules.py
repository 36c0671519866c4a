"""headwater on molecules by fragments: the trainer and the sampler of gfn-fl, with the sEH proxy.

``--check`` compares the loss with that of the plain loop instead, for the same weights on the same trajectories.
"""

import json
from typing import Any

import clock
import headwater
import plain_molecules as plain
import torch
from headwater import seeding
from headwater.resolve import plan
from ours import make_trainer, training, versions


def plan_of(options: Any) -> Any:
    """The plan that the command line would make from the same settings."""
    task = {
        "blocks": options.blocks, "reward": "seh", "proxy": options.proxy, "network": options.network,
        "convolutions": options.convolutions,
    }  # fmt: skip
    trainer = {
        "objective": "fl-db", "backward": "uniform", "hidden": [options.width], "batch_size": options.batch,
        "learning_rate": 5e-4, "exploration": options.epsilon,
    }  # fmt: skip
    overrides = {
        "task": task,
        "trainer": trainer,
        "sampler": {"block_size": options.batch},
        "fit": {"seed": options.seed},
    }
    return plan("gfn-fl", task="fragments", overrides=overrides)


def plain_molecule(environment: Any, row: list[int]) -> plain.Molecule:
    """The plain loop's object of one state."""
    n, atom = environment.size, environment.tables.atom.tolist()
    blocks = [b for b in row[:n] if b >= 0]
    bonds, used = [], set()
    for i in range(1, len(blocks)):
        parent, stem, own = row[n + i], row[2 * n + i], row[3 * n + i]
        bonds.append((parent, atom[blocks[parent]][stem], i, atom[blocks[i]][own]))
        used |= {(parent, stem), (i, own)}
    return plain.Molecule(blocks, bonds, [(i, atom[blocks[i]][p]) for i, p in places(environment, blocks, used)])


def places(environment: Any, blocks: list[int], used: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The free stems (slot, position)."""
    count = environment.tables.count.tolist()
    return [(i, p) for i, b in enumerate(blocks) for p in range(count[b]) if (i, p) not in used]


def plain_trajectory(
    environment: Any, library: plain.Library, proxy: plain.PlainProxy, states: Any, actions: list[int]
) -> plain.Trajectory:
    """One of our trajectories in the plain loop's objects, with all actions and parents that are the same."""
    found = plain.Trajectory([plain_molecule(environment, row) for row in states[:-1].tolist()])
    steps = zip(actions, found.molecules, [*found.molecules[1:], None], strict=True)
    for action, before, after in steps:
        if after is None:
            assert action == environment.n_actions - 1
            found.actions.append([plain.STOP])
            found.parents.append(1)
            found.log_rewards.append(found.log_rewards[-1])
            continue
        child = plain.key(library, after)
        kind = plain.kind_of(library, action % len(library))
        found.actions.append(plain.actions_to(library, before, child, kind))
        found.parents.append(plain.different_parents(library, after))
        found.log_rewards.append(plain.log_reward(library, proxy, after))
    return found


def check(options: Any, made: Any) -> None:
    """Print both losses and their relative difference; more than 1e-4 is an error."""
    trainer = make_trainer(made)
    environment = trainer.environment
    library, proxy = plain.Library(options.blocks), plain.PlainProxy(options.proxy)
    network = plain.PlainAgent(library, options.width, options.convolutions)
    network.load_state_dict(trainer.policy.state_dict())
    batch = trainer.draw(0, seeding.generator(options.seed, 0, 0))
    found = batch.trajectories
    trajectories = []
    for b, length in enumerate(found.length.tolist()):
        states, actions = found.states[: length + 1, b], found.actions[:length, b].tolist()
        trajectories.append(plain_trajectory(environment, library, proxy, states, actions))
    losses = {"headwater": trainer.loss(batch)}
    for name, apart in (("plain", False), ("plain-apart", True)):
        losses[name] = plain.loss_of(network, library, trajectories, apart)
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    worst = max(abs(v - values["headwater"]) / abs(values["headwater"]) for v in values.values())
    print(json.dumps({"losses": values, "largest_difference": worst}))
    if not worst <= 1e-4:
        raise SystemExit(f"the losses differ: {values}")


def main() -> None:
    parser = plain.arguments()
    parser.add_argument("--network", default="official", help="'official': messages to the children only")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = plan_of(options)
    if options.check:
        return check(options, made)
    trainer = make_trainer(made)
    kind = headwater.registry.resolve(made.sampler.sampler)
    sampler = kind(made.config["sampler"], made.task, trainer.modules, {})
    done = 0

    @torch.no_grad()
    def sample(steps: int) -> float:
        nonlocal done
        lengths = []
        for k in range(done, done + steps):
            x = sampler.block(k, seeding.generator(options.seed, k), None).x
            lengths.append((x[:, : made.task.size] >= 0).sum(1).float().mean() + 1)
        done += steps
        return float(torch.stack(lengths).mean())

    advance = training(trainer, options.seed) if options.mode == "train" else sample
    clock.measure(options, advance, batch=options.batch, versions=versions("rdkit"))
    return None


if __name__ == "__main__":
    main()
