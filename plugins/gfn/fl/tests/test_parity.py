"""Outputs, losses, gradients and training steps equal those of the official code (skipped without its numbers)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from headwater_gfn.evaluation import evaluate
from headwater_gfn.objective import detailed_balance, terminate, trajectory_balance
from headwater_gfn.rollout import Trajectories
from headwater_gfn.tasks.sets import SetGeneration, SetGenerationConfig
from headwater_gfn_fl.convert import from_official
from headwater_gfn_fl.objective import state_flows

DATA = next(
    (p / "shared/data/gfn-fl" for p in Path(__file__).resolve().parents if (p / "shared/data/gfn-fl").is_dir()),
    Path("shared/data/gfn-fl"),
)
FOLDER = DATA / "parity"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the official reference numbers are not here")


class Case:
    def __init__(self, name):
        self.arrays = dict(np.load(FOLDER / f"{name}.npz", allow_pickle=False))
        sizes = json.loads((FOLDER / "config.json").read_text())[name]
        self.sizes = sizes
        self.environment = SetGeneration(SetGenerationConfig(n_items=sizes["action_dim"], set_size=sizes["set_size"]))
        self.environment.energies = torch.from_numpy(self.arrays["energies"]).double()
        state = {k.removeprefix("sd/"): torch.from_numpy(v) for k, v in self.arrays.items() if k.startswith("sd/")}
        self.policy = from_official(state)["policy"]
        actions = torch.from_numpy(self.arrays["actions"]).T.long()
        states = [self.environment.start(actions.shape[1])]
        for a in actions:
            states.append(self.environment.step(states[-1], a))
        self.trajectories = Trajectories(torch.stack(states), actions, torch.full((actions.shape[1],), len(actions)))
        self.log_reward = self.environment.log_reward(states[-1])
        self.log_z = torch.tensor(float(self.arrays["Z"][0]), requires_grad=True)

    def loss(self, kind, learned):
        terms = evaluate(self.environment, self.policy, self.trajectories, learned_backward=learned)
        length = self.trajectories.length
        if kind == "tb":
            return trajectory_balance(terms.log_pf, terms.log_pb, self.log_reward, self.log_z), terms
        if kind == "db":
            flows = terminate(terms.log_flow, self.log_reward, length)
        else:
            states = self.trajectories.states
            partial = self.environment.log_partial_reward(states.flatten(0, 1)).view(states.shape[:2])
            flows = state_flows(terms.log_flow, partial, self.log_reward, length, terminal_flow="free")
        return detailed_balance(terms.log_pf, terms.log_pb, flows, length), terms


@pytest.fixture(params=["set_a", "set_b"])
def case(request):
    return Case(request.param)


def official_name(name, last):
    return name.replace("trunk.", "") if name.startswith("trunk.") else f"{last}.{name.split('.')[1]}"


def test_states_and_rewards_are_those_of_the_official_environment(case):
    states = case.trajectories.states.transpose(0, 1).float()
    assert torch.equal(states, torch.from_numpy(case.arrays["states"]).float())
    log_step = torch.from_numpy(case.arrays["step_rewards"]).double().log()
    partial = case.environment.log_partial_reward(case.trajectories.states.flatten(0, 1)).view(states.shape[1], -1)
    torch.testing.assert_close(partial.diff(dim=0).T.double(), log_step, rtol=1e-5, atol=2e-6)
    walk = np.log(case.arrays["walk/reward"].astype(np.float64)).sum()
    assert float(case.log_reward[0]) == pytest.approx(float(walk), abs=1e-5)


def test_outputs_equal_the_official_network(case):
    with torch.no_grad():
        out = torch.cat(
            [
                v if v.ndim == 3 else v.unsqueeze(2)
                for v in case.policy(torch.from_numpy(case.arrays["states"]).float())
            ],
            2,
        )
    torch.testing.assert_close(out, torch.from_numpy(case.arrays["out"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("learned", [True, False], ids=["learned_pb", "uniform_pb"])
@pytest.mark.parametrize("kind", ["db", "fl_db", "tb"])
def test_losses_and_gradients_equal_the_official_ones(case, kind, learned):
    room = "learned_pb" if learned else "uniform_pb"
    loss, terms = case.loss(kind, learned)
    for name in ("log_pf", "log_pb"):
        expected = torch.from_numpy(case.arrays[f"{room}/{name}"]).T
        torch.testing.assert_close(getattr(terms, name), expected, rtol=1e-5, atol=1e-6)
    assert float(loss) == pytest.approx(float(case.arrays[f"{room}/{kind}"]), rel=1e-5)
    loss.backward()
    last = 2 * case.sizes["n_layers"]
    for name, parameter in case.policy.named_parameters():
        expected = torch.from_numpy(case.arrays[f"{room}/{kind}_grad/{official_name(name, last)}"])
        atol = 1e-4 * float(expected.abs().max()) + 1e-7
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=atol)
    if kind == "tb":
        assert float(case.log_z.grad) == pytest.approx(float(case.arrays[f"{room}/tb_Z_grad"][0]), rel=1e-4)


@pytest.mark.parametrize("kind", ["db", "fl_db"])
def test_five_training_steps_equal_the_official_ones(case, kind):
    adam = torch.optim.Adam(case.policy.parameters(), case.sizes["adam_lr"], fused=True)
    losses = []
    for _ in range(5):
        loss, _ = case.loss(kind, True)
        losses.append(float(loss))
        loss.backward()
        adam.step()
        adam.zero_grad()
    expected = case.arrays[f"adam5_{kind}_losses"]
    assert losses[0] == pytest.approx(float(expected[0]), rel=1e-5)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
