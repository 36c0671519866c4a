"""Rewards, outputs, losses and gradients equal those of the official code (skipped without its numbers)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from headwater_gfn.all_states import AllStates
from headwater_gfn.environment import log_policy
from headwater_gfn.evaluation import edge_flows, evaluate
from headwater_gfn.exact import forward_policy, learned_distribution
from headwater_gfn.objective import (
    detailed_balance,
    log_partition_variance,
    terminate,
    trajectory_balance,
)
from headwater_gfn.pareto import non_dominated as strictly
from headwater_gfn.rollout import Trajectories
from headwater_gfn.table import TableEnvironment
from headwater_gfn.tasks.hypergrid import HyperGrid, HyperGridConfig, log_reward_of
from headwater_gfn_op.convert import from_official
from headwater_gfn_op.objective import (
    backward_kl,
    learned_log_reward,
    op_detailed_balance,
    op_flow_matching,
    op_sub_trajectory_balance,
    order_loss,
    pair_loss,
    pair_target,
    pareto_target,
)
from headwater_gfn_op.tasks.grid import ObjectiveGrid, ObjectiveGridConfig
from headwater_gfn_op.tasks.nas import NASBench201, NASBench201Config
from headwater_gfn_op.tasks.strings import SEHStrings, SEHStringsConfig
from headwater_gfn_op.trainer import preference_reward
from torch import nn

DATA = next(
    (p / "shared/data/gfn-op" for p in Path(__file__).resolve().parents if (p / "shared/data/gfn-op").is_dir()),
    Path("shared/data/gfn-op"),
)
FOLDER = DATA / "parity"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the official reference numbers are not here")

SLACK = 1e-6  # of the official code


def load(name):
    with np.load(FOLDER / name, allow_pickle=False) as file:
        return {k: torch.from_numpy(np.asarray(file[k])) for k in file.files}


# The multi-objective grid


@pytest.fixture(params=[["currin", "shubert"], ["branin", "currin", "beale"]], ids="-".join)
def grid(request):
    prefix = "_".join(request.param) + "/"
    arrays = {k.removeprefix(prefix): v for k, v in load("grid.npz").items() if k.startswith(prefix)}
    environment = ObjectiveGrid(ObjectiveGridConfig(side=14, objectives=request.param))
    state = {k.removeprefix("sd/").replace("/", "."): v for k, v in arrays.items() if k.startswith("sd/")}
    return arrays, environment, state


def ends(arrays):
    return torch.cat([arrays["states"].long(), torch.ones(len(arrays["states"]), 1, dtype=torch.int64)], 1)


def test_objectives_and_the_strict_front_are_the_official_ones(grid):
    arrays, environment, _ = grid
    x = ends(arrays)
    torch.testing.assert_close(environment.coordinates(x), arrays["x"], rtol=0, atol=1e-12)
    values = environment.objectives(x)
    torch.testing.assert_close(values, arrays["rewards"], rtol=1e-10, atol=1e-12)
    front = arrays["rewards"][torch.from_numpy(strictly(values.numpy(), strict=True))]
    torch.testing.assert_close(front.float(), arrays["pareto"], rtol=1e-6, atol=0)
    table = TableEnvironment(environment)
    assert len(table.states) - table.n_inner == len(x) == 195


@pytest.mark.parametrize("condition", ["ones", "pref"])
def test_the_policy_log_z_and_its_exact_distribution_are_the_official_ones(grid, condition):
    arrays, environment, state = grid
    room = {k.removeprefix(f"{condition}/"): v for k, v in arrays.items() if k.startswith(f"{condition}/")}
    policy = from_official(state, condition="preference")["policy"]
    policy.set_condition(room["coefficients"], room["temperature"])
    picked = ends(arrays)[room["pick"].long()]
    observed = environment.observe(environment.unstop(picked))
    torch.testing.assert_close(policy._seen(observed), room["obs"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(policy.forward_logits(observed), room["logits"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(policy.log_z().reshape(1), room["log_z"], rtol=1e-5, atol=1e-6)
    policies = [policy]
    if condition == "ones":
        policies.append(from_official(state)["policy"])
    table = TableEnvironment(environment)
    place = table.index(ends(arrays)) - table.n_inner
    for made in policies:
        found = learned_distribution(table, forward_policy(table, made))[place]
        torch.testing.assert_close(found.float(), room["exact_dist"], rtol=0, atol=1e-6)
    if condition == "pref":
        weights, exponent = room["coefficients"], float(room["temperature"])
        reward = preference_reward(environment.objectives(ends(arrays)), weights, exponent, 1e-30).exp()
        torch.testing.assert_close(reward, room["scalar_reward"], rtol=1e-10, atol=0)


def test_order_losses_and_gradients_are_the_official_ones(grid):
    arrays, _, _ = grid
    values = arrays["ord_log_rewards"].double()
    pred = arrays["ord_pred"].clone().requires_grad_()
    loss = order_loss(pred, pareto_target(values))
    loss.backward()
    torch.testing.assert_close(loss.detach(), arrays["ord_ce"], rtol=1e-5, atol=0)
    torch.testing.assert_close(pred.grad, arrays["ord_ce_grad"], rtol=1e-4, atol=1e-7)
    for k in range(values.shape[1]):
        partner = arrays[f"pair/{k}/perm"].long()
        pred = arrays["ord_pred"].clone().requires_grad_()
        loss = pair_loss(pred, pair_target(values[:, k : k + 1], partner, SLACK), partner)
        loss.backward()
        torch.testing.assert_close(loss.detach(), arrays[f"pair/{k}/loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(pred.grad, arrays[f"pair/{k}/grad"], rtol=1e-4, atol=1e-7)


# Losses on a hypergrid


class Official(nn.Module):
    """The official estimators; P_F, P_B and log F share their torso."""

    def __init__(self, arrays):
        super().__init__()
        self.estimators = nn.ModuleDict()
        for name in ("pf", "pb", "logF", "edge"):
            made = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, len(arrays[f"sd/{name}/last_layer.bias"])))
            for i, layer in ((0, "torso.0"), (2, "last_layer")):
                made[i].weight.data = arrays[f"sd/{name}/{layer}.weight"].clone()
                made[i].bias.data = arrays[f"sd/{name}/{layer}.bias"].clone()
            if name in ("pb", "logF"):
                made[0] = self.estimators["pf"][0]
            self.estimators[name] = made
        self.forward_from = "pf"

    def forward_logits(self, observed):
        return self.estimators[self.forward_from](observed)

    def forward(self, observed):
        return self.forward_logits(observed), self.estimators["pb"](observed), self.estimators["logF"](observed)[:, 0]


class Case:
    def __init__(self):
        self.arrays = arrays = load("hypergrid_losses.npz")
        self.environment = HyperGrid(HyperGridConfig(dimensions=3, side=4))
        self.policy = Official(arrays)
        self.length = arrays["done"].long()
        actions = arrays["actions"].long()
        states = [self.environment.start(len(self.length))]
        for t, a in enumerate(actions):
            child = self.environment.step(states[-1], a.clamp_min(0))
            states.append(torch.where((t < self.length).unsqueeze(1), child, states[-1]))
        self.trajectories = Trajectories(torch.stack(states), actions.clamp_min(0), self.length)
        self.log_reward = arrays["log_rewards"]

    def visited(self):
        """The states that are neither the source nor made by STOP, as often as they were visited."""
        states = self.trajectories.states
        seen = torch.arange(len(states)).unsqueeze(1) < self.length
        seen[0] = False
        return states[seen]

    def order(self, name):
        """The official pairs, in their order of objects; each checks the learned rewards that it is given."""

        def loss(found, valid):
            out = []
            for k, row in enumerate(found):
                room = {n: self.arrays[f"{name}/pairs/{k}/{n}"] for n in ("log_rewards", "pred", "perm", "loss")}
                index = torch.tensor([int((self.log_reward - v).abs().argmin()) for v in room["log_rewards"]])
                assert set(index.tolist()) == set(valid[k].nonzero().squeeze(1).tolist())
                torch.testing.assert_close(row[index], room["pred"], rtol=1e-5, atol=2e-6)
                partner = room["perm"].long()
                target = pair_target(self.log_reward[index].double().unsqueeze(1), partner, SLACK)
                out.append(pair_loss(row[index], target, partner))
                torch.testing.assert_close(out[-1], room["loss"], rtol=1e-5, atol=0)
            return torch.stack(out)

        return loss

    def kl(self):
        s = self.visited()
        mask = self.environment.backward_mask(s)
        return backward_kl(log_policy(self.policy(self.environment.observe(s))[1], mask), mask)

    def sub_trajectory_balance(self, pf, pb, flows):
        """The official SubTB: a mean for each length of parts, those that end in an object included.

        One more transition at the end of each trajectory makes these parts inner ones of OP-SubTB; it also adds a
        length, with weight but without parts.
        """
        row = torch.zeros_like(pf[:1])
        padded = (torch.cat([pf, row]), torch.cat([pb, row]), torch.cat([flows, row]))
        none = op_sub_trajectory_balance(*padded, self.length + 1, lambda found, valid: found.new_zeros(len(found)))
        total = (0.9 ** torch.arange(1.0, len(pf) + 2)).cumsum(0)
        return none * total[-1] / total[-2]

    def loss(self, name):
        if name.startswith("loss_op_fm"):
            self.policy.forward_from = "edge"
            s = self.visited()
            flows = edge_flows(self.environment, self.policy, s, torch.zeros(len(s)))
            into, _ = edge_flows(self.environment, self.policy, self.trajectories.last, self.log_reward)
            return op_flow_matching(*flows, into, self.order(name), 0.3)
        terms = evaluate(self.environment, self.policy, self.trajectories)
        pf, pb, length = terms.log_pf, terms.log_pb, self.length
        flows = terminate(terms.log_flow, self.log_reward, length)
        log_z = float(self.arrays["log_z"])
        kl = 0.2 * self.kl() if "kl0.2" in name else 0.0
        all_of = torch.ones(1, len(length), dtype=torch.bool)
        kinds = {
            "loss_tb": lambda: trajectory_balance(pf, pb, self.log_reward, torch.tensor(log_z)),
            "loss_logvar": lambda: log_partition_variance(pf, pb, self.log_reward),
            "loss_subtb": lambda: self.sub_trajectory_balance(pf, pb, flows),
            "loss_op_tb": lambda: self.order(name)(learned_log_reward(pf, pb).unsqueeze(0) + log_z, all_of)[0],
            "loss_db": lambda: detailed_balance(pf, pb, flows, length),
            "loss_op_db": lambda: op_detailed_balance(pf, pb, terms.log_flow, length, self.order(name), 0.3),
            "loss_op_subtb": lambda: op_sub_trajectory_balance(
                pf, pb, terms.log_flow, length, self.order(name), 0.3, 0.9
            ),
        }
        return kl + next(made for kind, made in kinds.items() if name.startswith(kind))()


LOSSES = (
    "loss_tb", "loss_logvar", "loss_tb_kl0.2", "loss_op_tb_kl0", "loss_op_tb_kl0.2", "loss_db",
    "loss_op_db_ce0.3_kl0.2", "loss_subtb_geom0.9", "loss_op_subtb_ce0.3_kl0.2", "loss_op_fm_alpha0.3",
)  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradient_norms_are_the_official_ones(name):
    case = Case()
    loss = case.loss(name)
    expected = float(case.arrays[f"{name}/loss"])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for module, made in case.policy.estimators.items():
        norm = sum(float(p.grad.double().square().sum()) for p in made.parameters() if p.grad is not None) ** 0.5
        assert norm == pytest.approx(float(case.arrays[f"{name}/grad_norm/{module}"]), rel=1e-4, abs=1e-9)


def test_outputs_and_rewards_of_the_hypergrid_are_the_official_ones():
    case = Case()
    inputs = case.environment.observe(torch.cat([case.arrays["probe_states"], torch.zeros(30, 1).long()], 1))
    torch.testing.assert_close(inputs, case.arrays["probe_inputs"], rtol=0, atol=0)
    for name, made in case.policy.estimators.items():
        torch.testing.assert_close(made(inputs), case.arrays[f"probe_out/{name}"], rtol=1e-5, atol=1e-6)
    states = case.arrays["all_states"]
    u = (states.double() / 3 - 0.5).abs()
    plateaus = 0.05 + 0.5 * ((u > 0.25) & (u <= 0.5)).all(1) + 2.0 * ((u > 0.3) & (u < 0.4)).all(1)
    torch.testing.assert_close(plateaus.float(), case.arrays["grid_default_rewards"], rtol=1e-5, atol=0)
    standard = log_reward_of("standard", states, 4, 0.05).exp()
    torch.testing.assert_close(standard.float(), case.arrays["grid_default_rewards"], rtol=1e-5, atol=0)


def test_looking_at_all_states_gives_the_same_losses():
    case = Case()
    table = TableEnvironment(case.environment)
    numbered = table.index(case.trajectories.states.flatten(0, 1)).view(case.trajectories.states.shape[:2])
    states = AllStates.of(table, case.policy)
    found = states.evaluate(Trajectories(numbered, case.trajectories.actions, case.length))
    expected = evaluate(case.environment, case.policy, case.trajectories)
    for name in ("log_pf", "log_pb", "log_flow"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)


# The user's tables


def test_the_trees_give_the_known_scores():
    environment = SEHStrings(SEHStringsConfig(trees=DATA / "sehstr_gbtr_trees.npz"))
    x = environment.parse(["0 1 2 3 4 5", "5 5 5 5 5 5", "12 1 3 15 16 17"])
    expected = torch.tensor([4.541798, 6.477504, 6.318798], dtype=torch.float64)
    torch.testing.assert_close(environment.raw_objectives(x)[:, 0], expected, rtol=0, atol=1e-6)


def test_the_best_cells_are_the_known_ones():
    environment = NASBench201(NASBench201Config(table=DATA / "nasbench201_test200.npz"))
    assert environment.names == ("cifar10", "cifar100", "ImageNet16-120")
    best = environment._table.amax(0)
    torch.testing.assert_close(best, torch.tensor([94.373, 73.513, 47.311]).double(), rtol=0, atol=1e-3)
