"""headwater on set generation: the trainer of gfn-fl with the preset of the size, drawn and stepped.

``--check`` compares losses instead: ours, the plain loop's and, with ``--official``, the authors' own, for the same
weights on the same trajectories.
"""

import json
from typing import Any

import clock
import plain_sets
import torch
from headwater import seeding
from headwater.resolve import plan
from ours import make_trainer, training, versions
from torch import Tensor


def trainer_of(options: Any, **settings: Any) -> Any:
    """The trainer of a preset, with the energies of the file."""
    overrides = {
        "task": {"energies": options.energies},
        "trainer": {"batch_size": options.batch, **settings},
        "fit": {"seed": options.seed},
    }
    return make_trainer(plan("gfn-fl", preset=f"set-{options.size}", overrides=overrides))


def plain_network(policy: Any) -> Any:
    """The plain loop's network with the weights of ours."""
    network = plain_sets.make_network(policy.n_actions)
    own = policy.state_dict()
    names = {"0": "trunk.0", "2": "trunk.2", "4": "head"}
    network.load_state_dict({f"{n}.{p}": own[f"{o}.{p}"] for n, o in names.items() for p in ("weight", "bias")})
    return network


def official_losses(options: Any, network: Any, found: list[plain_sets.Trajectory]) -> dict[str, Tensor]:
    """The losses of the authors' code."""
    import numpy as np
    from official_sets import arguments_of, load_official

    module = load_official(options.official)
    module.set_device(torch.device("cpu"))
    args = arguments_of(module, options.size, 1, 0)
    args.dev, args.action_dim = torch.device("cpu"), network[0].in_features
    states = [torch.stack(t.states) for t in found]
    actions = [torch.tensor(t.actions).unsqueeze(1) for t in found]
    rewards = [torch.tensor(np.exp(-np.array(t.energies))).unsqueeze(-1).float() for t in found]
    batch = [states, actions, [len(s) for s in states], rewards]
    agent = module.DBFlowNetAgent(args, [])
    agent.model.load_state_dict(network.state_dict())
    with_z = module.TBFlowNetAgent(args, [])
    with_z.model.load_state_dict(network.state_dict())
    return {
        "fl-db free": agent.learn_from_fl(0, batch)[0],
        "db": agent.learn_from(0, batch)[0],
        "tb": with_z.learn_from(0, batch)[0],
    }


def check(options: Any) -> None:
    """Print the losses and the largest relative difference; more than 1e-5 is an error."""
    losses: dict[str, dict[str, float]] = {}
    worst = 0.0
    for name in ("fl-db zero", "fl-db free", "db", "tb"):
        objective, _, terminal = name.partition(" ")
        settings = {"objective": objective, **({"terminal_flow": terminal} if terminal else {})}
        trainer = trainer_of(options, **settings)
        batch = trainer.draw(0, seeding.generator(options.seed, 0, 0))
        network = plain_network(trainer.policy)
        energies = plain_sets.read_energies(options.energies, options.size)
        states, actions = batch.trajectories.states.float(), batch.trajectories.actions
        found = [
            plain_sets.Trajectory(list(states[:, b]), a, [energies[i] for i in a])
            for b, a in enumerate(actions.T.tolist())
        ]
        plain = plain_sets.loss_of(network, found, objective, terminal, torch.zeros(()))
        all_of = {"headwater": trainer.loss(batch), "plain": plain}
        if options.official:
            official = official_losses(options, network, found)
            all_of |= {"official": official[name]} if name in official else {}
        losses[name] = {k: float(v.detach()) for k, v in all_of.items()}
        own = losses[name]["headwater"]
        worst = max(worst, *(abs(v - own) / abs(own) for v in losses[name].values()))
    print(json.dumps({"losses": losses, "largest_difference": worst}))
    if worst > 1e-5:
        raise SystemExit("the losses differ")


def main() -> None:
    parser = clock.arguments()
    parser.add_argument("--energies", required=True)
    parser.add_argument("--size", choices=tuple(plain_sets.SIZES), default="small")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--official", metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.check:
        return check(options)
    advance = training(trainer_of(options), options.seed)
    clock.measure(options, advance, versions=versions())
    return None


if __name__ == "__main__":
    main()
