"""headwater on HyperGrid with trajectory balance: the trainer that `headwater train gfn-fl` uses, drawn and stepped."""

from typing import Any

import clock
import headwater
import numpy as np
import torch
from headwater import seeding
from headwater.resolve import plan
from headwater_gfn.exact import forward_policy
from headwater_gfn.rollout import Behaviour, roll_out
from headwater_gfn.table import TableEnvironment
from ours import make_trainer, training, versions


def plan_of(options: Any) -> Any:
    """The plan that the command line would make from the same settings."""
    task = {"dimensions": options.dimensions, "side": options.side, "reward": options.reward}
    trainer = {
        "objective": "tb", "hidden": [256, 256], "activation": "relu", "batch_size": options.batch,
        "learning_rate": 1e-3, "scalar_learning_rate": 0.1, "exploration": options.epsilon,
    }  # fmt: skip
    sampler = {"block_size": options.batch}
    fit = {"seed": options.seed}
    overrides = {"task": task, "trainer": trainer, "sampler": sampler, "fit": fit}
    return plan("gfn-fl", task="hypergrid", overrides=overrides)


def main() -> None:
    parser = clock.grid_arguments()
    parser.add_argument("--through", choices=("trainer", "sampler"), default="trainer", help="what samples")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = plan_of(options)
    trainer = make_trainer(made)
    done = 0

    def roll(steps: int) -> float:
        nonlocal done
        behaviour = Behaviour(options.epsilon)
        total = torch.zeros(())
        for k in range(done, done + steps):
            generator = seeding.generator(options.seed, k, 0)
            found = roll_out(trainer.environment, trainer.policy, options.batch, generator, behaviour)
            total += found.length.float().mean()
        done += steps
        return float(total) / max(steps, 1)

    kind = headwater.registry.resolve(made.sampler.sampler)
    sampler = kind(made.config["sampler"], made.task, trainer.modules, {})

    def blocks(steps: int) -> float:
        nonlocal done
        total = torch.zeros(())
        with torch.no_grad():
            for k in range(done, done + steps):
                block = sampler.block(k, seeding.generator(options.seed, k), None)
                total += block.x[:, :-1].sum(1).float().mean() + 1
        done += steps
        return float(total) / max(steps, 1)

    sample = roll if options.through == "trainer" else blocks
    advance = training(trainer, options.seed) if options.mode == "train" else sample
    clock.measure(options, advance, versions=versions())
    if options.export:
        environment = trainer.environment
        if not isinstance(environment, TableEnvironment):
            environment = TableEnvironment(made.task)
        place = options.side ** torch.arange(options.dimensions - 1, -1, -1)
        points = environment.states[: environment.n_inner, :-1]
        log_pf = torch.empty(environment.n_inner, options.dimensions + 1, dtype=torch.float64)
        log_pf[(points * place).sum(1)] = forward_policy(environment, trainer.policy)
        np.savez(options.export, log_pf=log_pf.numpy(), log_z=float(trainer.log_partition()))


if __name__ == "__main__":
    main()
