"""headwater on outcomes of a grid: the pre-training of gfn-oc, drawn and stepped as `headwater train gfn-oc` does.

``--check`` compares losses instead: ours and the plain loop's, for the same weights on the same trajectories.
"""

import json
from importlib.metadata import version
from typing import Any

import clock
import plain_outcomes
import torch
from headwater import seeding
from headwater.resolve import plan
from headwater_grid import make_trainer


def trainer_of(options: Any) -> Any:
    """The trainer of the default task; its rate stays as it is, for the clock sees only a part of the cosine."""
    trainer = {"batch_size": options.batch, "decay_steps": 10**9}
    task = {"side": plain_outcomes.SIDE}
    return make_trainer(plan("gfn-oc", overrides={"task": task, "trainer": trainer, "fit": {"seed": options.seed}}))


def check(options: Any) -> None:
    """Print both losses and their relative difference; more than 1e-4 is an error."""
    trainer = trainer_of(options)
    batch = trainer.draw(0, seeding.generator(options.seed, 0, 0))
    own = float(trainer.loss(batch)[0].detach())
    network, state = plain_outcomes.make_network(), trainer.policy.state_dict()
    names = {"0": "trunk.0", "2": "trunk.2", "4": "head"}
    network.load_state_dict({f"{n}.{p}": state[f"{o}.{p}"] for n, o in names.items() for p in ("weight", "bias")})
    conditioned, walked = batch.conditioned, batch.trajectories
    cells = trainer.environment.states
    outcomes = cells[conditioned.y][:, :2].tolist()
    walks = []
    for b, n in enumerate(walked.length.tolist()):
        states = [tuple(cells[walked.states[t, b, 0]][:2].tolist()) for t in range(n)]
        walks.append(plain_outcomes.Walk(tuple(outcomes[b]), states, walked.actions[:n, b].tolist()))
    plain = float(plain_outcomes.loss_of(network, walks).detach())
    difference = abs(own - plain) / abs(own)
    print(json.dumps({"losses": {"headwater": own, "plain": plain}, "largest_difference": difference}))
    if difference > 1e-4:
        raise SystemExit("the losses differ")


def main() -> None:
    parser = clock.arguments()
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.check:
        return check(options)
    trainer = trainer_of(options)
    done = 0

    def advance(steps: int) -> float:
        nonlocal done
        lengths = []
        for k in range(done, done + steps):
            batch = trainer.draw(k, seeding.generator(options.seed, k, 0))
            trainer.step(batch)
            lengths.append(batch.trajectories.length.float().mean())
        done += steps
        return float(torch.stack(lengths).mean())

    versions = {name: version(name) for name in ("headwater", "headwater-gfn", "headwater-gfn-oc", "torch")}
    clock.measure(options, advance, batch=options.batch, versions=versions)
    return None


if __name__ == "__main__":
    main()
