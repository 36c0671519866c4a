import headwater
import pytest
import torch
from headwater.errors import ConfigError, NonFinite, PluginError, UsageError
from headwater_gfn.exact import l1_distance, learned_distribution, log_target


def train(path, *, task=None, trainer=None, steps=1000, name=None, **fit):
    overrides = {
        "task": task or {"size": "tiny"},
        "trainer": {"exploration": 1.0, **(trainer or {})},
        "fit": {
            "max_steps": steps,
            "validate_every": 0,
            "accelerator": "cpu",
            "checkpoint_every": 10_000,
            **fit,
        },
    }
    return headwater.train("gfn-fl", path, task=name, overrides=overrides)


def found(run):
    return {k.removeprefix("valid/"): v for line in run.metrics() for k, v in line.items() if k.startswith("valid/")}


@pytest.mark.parametrize(
    ("trainer", "most"),
    [
        ({"objective": "fl-db"}, 0.03),
        ({"objective": "fl-db", "terminal_flow": "const"}, 0.03),
        ({"objective": "fl-db", "incomplete": 0.5}, 0.05),
        ({"objective": "fl-db", "backward": "uniform"}, 0.05),
        ({"objective": "fl-subtb"}, 0.05),
        ({"objective": "db"}, 0.08),
        ({"objective": "subtb"}, 0.08),
        ({"objective": "tb", "exploration": 0.0}, 0.05),
        ({"objective": "fm", "batch_size": 8}, 0.25),
        ({"objective": "fl-db", "replay": "prioritised", "exploration": 0.1}, 0.06),
    ],
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else "",
)
def test_each_objective_learns_the_exact_target(tmp_path, trainer, most):
    metrics = found(train(tmp_path / "run", trainer=trainer))
    assert metrics["l1"] < most
    assert abs(metrics["log_z_error"]) < 0.1


def test_the_free_terminal_flow_of_the_official_code_is_biased(tmp_path):
    metrics = found(train(tmp_path / "run", trainer={"terminal_flow": "free"}))
    assert metrics["l1"] > 0.06
    assert "log_z_error" not in metrics


def test_objects_of_the_trained_policy_follow_the_reward(tmp_path):
    run = train(tmp_path / "run", trainer={"objective": "fl-db"})
    model = headwater.load(run)
    samples = list(model.sample(20_000, seed=1, overrides={"sampler": {"block_size": 4000}}))
    log_reward = torch.cat([block.log_reward for block in samples]).double()
    from headwater_gfn.table import TableEnvironment

    table = TableEnvironment(model.task)
    target = log_target(table)
    expected = float((target.exp() * table.log_rewards.double()).sum())
    spread = float((target.exp() * (table.log_rewards.double() - expected).square()).sum()) ** 0.5
    assert abs(float(log_reward.mean()) - expected) < 5 * spread / 20_000**0.5 + 0.03
    numbers = torch.cat([table.index(block.x) for block in samples]) - table.n_inner
    seen = torch.bincount(numbers, minlength=len(target)).double() / 20_000
    assert l1_distance(seen, target.exp()) < 0.25  # 924 objects: sampling noise alone gives about 0.17
    assert (
        learned_distribution(table, torch.log_softmax(torch.where(table.child >= 0, 0.0, -1e9).double(), 1)).sum()
        > 0.99
    )


def test_a_grid_with_stop_is_learned_and_its_modes_are_found(tmp_path):
    task = {"dimensions": 2, "side": 8, "reward": "standard"}
    metrics = found(train(tmp_path / "run", name="hypergrid", task=task, trainer={"exploration": 0.1}, steps=1500))
    assert metrics["l1"] < 0.1
    assert metrics["modes"] == 4


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"objective": "fldb"}, r"trainer\.objective = 'fldb'"),
        ({"batch_size": -1}, r"trainer\.batch_size = -1"),
        ({"learning_rat": 1e-3}, "did you mean 'learning_rate'"),
        ({"exploration": 1.5}, r"trainer\.exploration = 1\.5"),
        ({"hidden": []}, r"trainer\.hidden"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, trainer, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", trainer=trainer)
    assert not (tmp_path / "run").exists()


def test_trajectory_balance_refuses_incomplete_trajectories(tmp_path):
    with pytest.raises(UsageError, match="incomplete"):
        train(tmp_path / "run", trainer={"objective": "tb", "incomplete": 0.5})


def nan_energy(s):
    return s.sum(1) * float("nan")


def test_a_reward_that_returns_nan_is_named(tmp_path):
    with pytest.raises(PluginError, match=r"nan_energy returned nan for the set"):
        train(tmp_path / "run", task={"n_items": 30, "set_size": 3, "energy": f"{__name__}:nan_energy"})


@pytest.mark.parametrize("task", ["sets", "hypergrid", "bits", "fragments"])
@pytest.mark.parametrize("exploration", [0.1, 1.0])
def test_a_diverging_network_stops_the_run(tmp_path, task, exploration):
    if task == "fragments":
        pytest.importorskip("rdkit")
    trainer = {"learning_rate": 1e18, "exploration": exploration, "hidden": [8], "batch_size": 4}
    settings = {"hypergrid": {"side": 6}, "fragments": {"max_blocks": 3, "convolutions": 2}, "bits": {"bits": 8}}
    with pytest.raises(NonFinite, match="learning rate"):
        train(tmp_path / "run", name=task, task=settings.get(task), trainer=trainer, log_every=5, steps=60)
