"""The method on every task of the base: a few steps, samples written and read back, the report's pictures."""

import gzip
import pickle

import headwater
import pytest
import torch
from headwater.errors import UsageError

TASKS = {
    "hypergrid": {"dimensions": 2, "side": 6},
    "sets": {"n_items": 24, "set_size": 5},
    "bits": {"bits": 16, "word": 4, "n_modes": 4},
    "fragments": {"max_blocks": 3, "convolutions": 2},
}


def train(path, task, **trainer):
    if task == "fragments":
        pytest.importorskip("rdkit")
    overrides = {
        "task": TASKS[task],
        "trainer": {"hidden": [16], "batch_size": 4, **trainer},
        "sampler": {"block_size": 8},
        "fit": {"max_steps": 3, "accelerator": "cpu"},
    }
    return headwater.train("gfn-fl", path, task=task, overrides=overrides)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("objective", ["fl-db", "fl-subtb", "db", "subtb", "tb", "fm"])
def test_every_objective_trains_on_every_task(tmp_path, task, objective):
    run = train(tmp_path / "run", task, objective=objective)
    line = run.metrics()[0]
    assert line["loss"] > 0
    assert line["length"] >= 1


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_written_and_read_back_and_pictures_are_made(tmp_path, task):
    run = train(tmp_path / "run", task, incomplete=0.5, replay="uniform")
    model = headwater.load(run, device="cpu")
    for suffix in model.task.suffixes:
        path = model.sample_to(tmp_path / f"objects{suffix}", 11)
        again = model.task.read(path)
        assert len(again) == 11
        expected = torch.cat([block.x for block in model.sample(11)])
        assert torch.equal(again.x, expected)
    assert all(panel.title for panel in model.task.panels(run))
    assert model.evaluate(n=16)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("objective", ["fl-db", "fl-subtb", "tb", "fm"])
def test_every_precision_trains_and_samples(tmp_path, objective, precision):
    overrides = {
        "task": TASKS["hypergrid"],
        "trainer": {"hidden": [16], "batch_size": 4, "objective": objective},
        "fit": {"max_steps": 3, "accelerator": "cpu", "precision": precision},
    }
    run = headwater.train("gfn-fl", tmp_path / "run", task="hypergrid", overrides=overrides)
    assert len(next(iter(headwater.load(run, device="cpu").sample(3)))) == 3


@pytest.mark.parametrize("archive_batch", [0, 3])
@pytest.mark.parametrize("task", TASKS)
def test_trajectories_may_be_wholly_random(tmp_path, task, archive_batch):
    run = train(tmp_path / "run", task, exploration=1.0, archive_batch=archive_batch)
    assert run.metrics()[0]["loss"] > 0


def test_molecules_learn_from_local_credit(tmp_path):
    pytest.importorskip("rdkit")
    overrides = {
        "task": {"beta": 30.0, "max_blocks": 3, "convolutions": 2},
        "trainer": {"hidden": [32], "learning_rate": 3e-3, "backward": "uniform"},
        "fit": {"max_steps": 120, "accelerator": "cpu", "log_every": 20},
    }
    run = headwater.train("gfn-fl", tmp_path / "run", task="fragments", overrides=overrides)
    rewards = [line["log_reward"] for line in run.metrics() if "log_reward" in line]
    assert rewards[-1] > rewards[0] + 3


def test_an_official_policy_of_molecules_becomes_a_run(tmp_path):
    pytest.importorskip("rdkit")
    from headwater_gfn.tasks.fragments import Fragments, FragmentsConfig

    environment = Fragments(FragmentsConfig(network="official", convolutions=4))
    torch.manual_seed(0)
    state = environment.make_policy((8,), "relu").state_dict()
    order = ["blockemb.weight", "stememb.weight", "bondemb.weight", "bias", "root"]
    order += [k for k in state if k.startswith("block2emb")] + [k for k in state if k.startswith("gru")]
    order += [k for k in state if k.startswith("stem2pred")] + [k for k in state if k.startswith("global2pred")]
    with gzip.open(tmp_path / "params.pkl.gz", "wb") as file:
        pickle.dump([state[k].numpy() for k in order], file)
    run = headwater.convert(
        "gfn-fl", [tmp_path / "params.pkl.gz"], tmp_path / "run", overrides={"official": {"steps": 4}}
    )
    assert run.manifest.task == "fragments"
    model = headwater.load(run, device="cpu")
    s = environment.start(1)
    for ours, theirs in zip(
        model.modules["policy"](environment.observe(s)), environment_policy(environment, state)(environment.observe(s)),
        strict=True,
    ):  # fmt: skip
        assert ours is theirs is None or torch.equal(ours, theirs)


def environment_policy(environment, state):
    policy = environment.make_policy((8,), "relu")
    policy.load_state_dict(state)
    return policy


def test_a_scorer_that_is_no_scorer_is_refused(tmp_path):
    pytest.importorskip("rdkit")
    with pytest.raises(UsageError, match="none of qed, sa, logp, seh"):
        headwater.train(
            "gfn-fl", tmp_path / "run", task="fragments",
            overrides={"task": {"reward": "qedd"}, "fit": {"max_steps": 1, "accelerator": "cpu"}},
        )  # fmt: skip
