"""Training, by every mode and stage; lineage; what is asked for in vain."""

import headwater
import pytest
import torch
from exact_flows import Exact
from headwater.errors import ConfigError, UsageError
from headwater_gfn.exact import forward_policy, learned_distribution, log_target
from headwater_gfn.rollout import roll_back
from headwater_gfn.table import TableEnvironment
from headwater_gfn.tasks.hypergrid import HyperGrid, HyperGridConfig
from headwater_gfn_oc.config import FinetuneConfig, PretrainConfig
from headwater_gfn_oc.conversion import exact_weights, ways_of
from headwater_gfn_oc.metropolis import metropolis
from headwater_gfn_oc.trainer import Batch, FinetuneTrainer

CPU = {"accelerator": "cpu", "threads": 1}


def pretrained(path, **overrides):
    own = {} if "name" in overrides else {"side": 4}
    tables = {
        "task": {**own, **overrides.get("task", {})},
        "trainer": {"hidden": [64], "batch_size": 32, "decay_steps": None, **overrides.get("trainer", {})},
        "fit": {"max_steps": 20, **CPU, **overrides.get("fit", {})},
    }
    return headwater.train("gfn-oc", path, task=overrides.get("name"), overrides=tables)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    trainer = {"decay_steps": 300, "learning_rate": 3e-3, "hidden": [128, 128], "batch_size": 64}
    return pretrained(tmp_path_factory.mktemp("pre") / "run", trainer=trainer, fit={"max_steps": 300})


def test_the_default_mode_learns_to_reach_outcomes_and_to_convert(run):
    last = run.metrics()[-1]
    assert last["valid/success"] > 0.85
    assert last["valid/converted_l1"] < 0.2


MODES = {
    "paper": {"mode": "paper"},
    "no teleportation": {"mode": "paper", "teleport": False},
    "no contrast": {"mode": "paper", "contrastive": False},
    "uniform outcomes": {"mode": "paper", "explorer": "uniform"},
    "learned P_B": {"mode": "paper", "backward": "learned", "explorer": "uniform"},
    "film": {"conditioning": "film"},
    "no imitation": {"imitation": 0.0},
}


@pytest.mark.parametrize("trainer", MODES.values(), ids=MODES)
def test_every_mode_trains(tmp_path, trainer):
    run = pretrained(tmp_path / "run", trainer=trainer)
    last = run.metrics()[-1]
    assert 0.0 <= last["valid/success"] <= 1.0
    assert ("valid/flow_spread" in last) == ("mode" in trainer)


def test_one_run_serves_several_rewards_and_the_manifest_says_where_they_come_from(run, tmp_path):
    for reward in ("corners", "checkerboard"):
        tuned = headwater.train(
            "gfn-oc", tmp_path / reward, stage="finetune", from_runs=[run.path],
            overrides={
                "task": {"side": 4, "reward": reward},
                "trainer": {"hidden": [128], "outcome_hidden": [128], "learning_rate": 3e-3, "batch_size": 16},
                "fit": {"max_steps": 300, "validate_every": 50, **CPU},
            },
        )  # fmt: skip
        [parent] = tuned.manifest.lineage
        assert parent["id"] == run.manifest.id
        assert parent["stage"] == "pretrain"
        values = [line["valid/l1"] for line in tuned.metrics() if "valid/l1" in line]
        assert values[-1] < values[0]
        assert values[-1] < 0.5
        model = headwater.load(tuned.path, device="cpu")
        assert set(model.modules) == {"policy", "outcomes", "conditional"}


def test_fine_tuning_does_not_touch_the_flows(run, tmp_path):
    tuned = headwater.train(
        "gfn-oc", tmp_path / "t", stage="finetune", from_runs=[run.path],
        overrides={"task": {"side": 4}, "trainer": {"hidden": [8]}, "fit": {"max_steps": 3, **CPU}},
    )  # fmt: skip
    before = run.load(run.checkpoints()[-1], "model")["modules"]["conditional"]
    after = tuned.load(3, "model")["modules"]["conditional"]
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("outcomes", ["trajectory", "sampled"])
def test_the_residual_of_n_and_q_is_that_of_the_formula(outcomes):
    """With the exact flows in the place of the network: log N + log Q - log r - log F - log P_F, edge by edge."""
    torch.manual_seed(0)
    task = HyperGrid(HyperGridConfig(side=4, reward="checkerboard"))
    config = FinetuneConfig(outcomes=outcomes, hidden=(8,), outcome_hidden=(8,), exponent=2.0)
    facts = {"space": task.space(), "normalised": True}
    modules = FinetuneTrainer.build(config, task, facts)
    flows = torch.nn.Module()
    trainer = FinetuneTrainer(config, task, modules, facts, {"conditional": flows})
    trainer.setup()
    table = trainer.environment
    plain = table.observe
    policy = Exact(TableEnvironment(task))

    class Looked:
        def __call__(self, observed):
            width = observed.shape[1] // 2
            every = plain(torch.arange(len(table.states)))

            def number(rows, first, last):
                return (rows.unsqueeze(1) == every[first:last]).all(2).float().argmax(1) + first

            s = number(observed[:, :width], 0, table.n_inner)
            y = number(observed[:, width:], table.n_inner, len(table.states))
            return policy(torch.stack([s, y], 1))

    trainer.flows = Looked()
    generator = torch.Generator().manual_seed(0)
    y = table.random_objects(5, generator)
    walks = roll_back(table, None, y, generator)
    batch = trainer.transitions(Batch(walks, table.log_reward(y)), generator)
    found = trainer.residual(batch)
    ways = ways_of(table)
    weight = {
        (s, c, o): float(w)
        for layer, ws in zip(ways.layers, exact_weights(ways), strict=True)
        for s, c, o, w in zip(layer.state.tolist(), layer.child.tolist(), layer.outcome.tolist(), ws, strict=True)
    }
    log_pf = forward_policy(table, trainer.policy)
    total = trainer.policy(plain(batch.state))[2]
    log_q = trainer.sampler.log_q(table, batch.state, batch.child, batch.y)
    assert len(found) == int(walks.length.sum())
    for i, (s, a, c, o) in enumerate(
        zip(batch.state.tolist(), batch.action.tolist(), batch.child.tolist(), batch.y.tolist(), strict=True)
    ):
        expected = float((total[i] + log_pf[s, a] + log_q[i]).detach())
        expected -= 2.0 * float(table.log_rewards[o - table.n_inner]) + weight[s, c, o - table.n_inner]
        assert float(found[i]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("objective", ["tb", "db", "subtb", "dqn"])
def test_every_baseline_learns(tmp_path, objective):
    trainer = {"objective": objective, "hidden": [32], "learning_rate": 1e-2, "batch_size": 16}
    if objective == "dqn":
        trainer["temperature"] = 0.1
    run = headwater.train(
        "gfn-oc", tmp_path / "run", stage="baseline",
        overrides={
            "task": {"side": 4, "reward": "corners"}, "trainer": trainer,
            "fit": {"max_steps": 150, "validate_every": 25, **CPU},
        },
    )  # fmt: skip
    lines = [line for line in run.metrics() if "valid/mean_reward" in line]
    assert lines[-1]["valid/mean_reward"] > lines[0]["valid/mean_reward"]
    assert lines[-1]["valid/different"] <= 16
    if objective != "dqn":
        assert lines[-1]["valid/l1"] < 0.7


def test_metropolis_samples_the_reward():
    table = TableEnvironment(HyperGrid(HyperGridConfig(side=4, reward="checkerboard", floor=0.3)))
    generator = torch.Generator().manual_seed(0)
    visited = []
    x, log_reward = metropolis(
        table, table.random_objects(4000, generator), 40, 1.0, generator, lambda y, _: visited.append(len(y))
    )
    p = torch.bincount(x - table.n_inner, minlength=16).double() / 4000
    assert float((p - log_target(table).exp()).abs().sum()) < 0.12
    assert torch.equal(log_reward, table.log_reward(x))
    assert visited == [4000] * 40


def test_a_pretrained_run_samples_any_reward_at_once_and_aims_at_one_outcome(run, tmp_path):
    model = headwater.load(run.path, device="cpu")
    [block] = model.sample(256, overrides={"task": {"reward": "corners", "floor": 1e-6}})
    assert float((block.log_reward > -1).float().mean()) > 0.9
    [block] = model.sample(256, overrides={"sampler": {"conversion": "sampled", "outcomes": 16}})
    assert len(block) == 256
    [block] = model.sample(256, condition={"outcome": "3 1"})
    assert float((block.x == torch.tensor([3, 1, 1])).all(1).float().mean()) > 0.7
    [block] = model.sample(64, sampler="metropolis", overrides={"sampler": {"steps": 5}})
    assert len(block) == 64


def test_the_report_shows_what_is_converted_beside_the_target_and_each_success(run):
    titles = [panel.title for panel in headwater.load(run.path, device="cpu").task.panels(run)]
    assert "Reaching each outcome" in titles
    assert "Probability of each cell" in titles


# What is asked for in vain


def test_another_space_is_refused_and_named(run, tmp_path):
    with pytest.raises(UsageError, match=r"another space than that of this task: side is 5, was 4;"):
        headwater.train(
            "gfn-oc", tmp_path / "t", stage="finetune", from_runs=[run.path], overrides={"task": {"side": 5}}
        )
    with pytest.raises(UsageError, match=r"another space than that of this task: .*letters is"):
        headwater.train("gfn-oc", tmp_path / "t", stage="finetune", from_runs=[run.path], task="strings")
    assert not (tmp_path / "t").exists()


def test_fine_tuning_needs_a_pretrained_run(tmp_path):
    with pytest.raises(UsageError, match="builds on 'pretrain'"):
        headwater.train("gfn-oc", tmp_path / "t", stage="finetune")


def test_a_task_without_letters_is_refused(tmp_path):
    with pytest.raises(UsageError, match="SetGeneration does not say what its space is"):
        pretrained(tmp_path / "t", name="sets")


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="direct' draws by the uniform P_B"):
        pretrained(tmp_path / "t", trainer={"backward": "learned"})
    with pytest.raises(ValueError, match="no backward policy"):
        FinetuneConfig(backward="learned")
    with pytest.raises(ValueError, match="less than 1"):
        PretrainConfig(reward_floor=2.0)


def test_an_outcome_that_is_none_is_refused(run):
    with pytest.raises(UsageError, match="the condition outcome = '9 9'"):
        next(iter(headwater.load(run.path, device="cpu").sample(4, condition={"outcome": "9 9"})))


def test_learned_flows_of_a_larger_space_are_sampled(tmp_path):
    """A space too large for tables: success by rollouts, conversion by sampled outcomes."""
    run = pretrained(
        tmp_path / "run", name="bits", task={"bits": 24, "word": 2}, fit={"max_steps": 5},
        trainer={"validation_outcomes": 16},
    )  # fmt: skip
    assert "valid/converted_l1" not in run.metrics()[-1]
    [block] = headwater.load(run.path, device="cpu").sample(8, overrides={"sampler": {"block_size": 8, "outcomes": 16}})
    assert block.x.shape == (8, 12)


def test_distribution_of_a_dqn_is_that_of_its_sampler(tmp_path):
    run = headwater.train(
        "gfn-oc", tmp_path / "run", stage="baseline",
        overrides={
            "task": {"side": 3, "reward": "corners"},
            "trainer": {"objective": "dqn", "temperature": 0.2, "hidden": [16]},
            "fit": {"max_steps": 20, **CPU},
        },
    )  # fmt: skip
    model = headwater.load(run.path, device="cpu")
    [block] = model.sample(4096, overrides={"sampler": {"block_size": 4096}})
    table = TableEnvironment(model.task)
    logits = model.modules["policy"].forward_logits(table.observe(torch.arange(table.n_inner))).double() / 0.2
    mask = table.forward_mask(torch.arange(table.n_inner))
    p = learned_distribution(table, torch.where(mask, logits, -1e9).log_softmax(1))
    found = torch.bincount(table.index(block.x) - table.n_inner, minlength=len(p)).double() / 4096
    assert float((found - p).abs().sum()) < 0.12
