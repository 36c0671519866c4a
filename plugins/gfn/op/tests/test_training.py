"""What is learned: where the probability goes, what only the order decides, and replay."""

import headwater
import numpy as np
import pytest
import torch
from headwater import seeding
from headwater.errors import ConfigError, NonFinite, UsageError
from headwater.resolve import plan
from headwater_gfn_op.networks import PreferencePolicy
from headwater_gfn_op.replay import ParetoReplay
from headwater_gfn_op.trainer import draw_preference

GRID = {"side": 12}


def train(path, *, task=None, name=None, trainer=None, steps=250, **more):
    overrides = {
        "task": GRID if task is None else task,
        "trainer": {"batch_size": 64, "decay_steps": max(steps, 1), **(trainer or {})},
        "fit": {"max_steps": steps, "validate_every": 0, "accelerator": "cpu", "checkpoint_every": max(steps // 4, 1)},
    }
    return headwater.train("gfn-op", path, task=name, overrides=overrides, **more)


def found(run):
    return {k.removeprefix("valid/"): v for line in run.metrics() for k, v in line.items() if k.startswith("valid/")}


def make_trainer(**overrides):
    made = plan("gfn-op", task=overrides.pop("name", None), overrides=overrides)
    seeding.seed_all(0)
    kind = headwater.registry.resolve(made.stage.trainer)
    trainer = kind(made.config["trainer"], made.task, kind.build(made.config["trainer"], made.task, {}), {})
    trainer.setup()
    return trainer


@pytest.mark.parametrize(
    ("trainer", "least"),
    [
        ({"objective": "op-tb"}, 0.85),
        ({"objective": "op-tb", "backward": "learned", "backward_kl": 0.1}, 0.85),
        ({"objective": "op-tb", "order": "pairs"}, 0.25),
        ({"objective": "op-db", "order_weight": 1.0}, 0.6),
        ({"objective": "op-subtb", "order_weight": 1.0}, 0.6),
        ({"objective": "op-fm", "order_weight": 1.0}, 0.6),
        ({"objective": "op-tb", "replay": "pareto", "replay_batch": 32}, 0.85),
    ],
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else "",
)
def test_the_probability_goes_to_the_true_front(tmp_path, trainer, least):
    pytest.importorskip("moocore")
    metrics = found(train(tmp_path / "run", trainer=trainer))
    untrained = found(train(tmp_path / "untrained", trainer=trainer, steps=0))
    assert untrained["front_mass"] < 0.15
    assert metrics["front_mass"] > least


@pytest.mark.parametrize("objective", ["op-tb", "op-db"])
def test_one_objective_is_maximised_by_pairs(tmp_path, objective):
    task = {"alphabet": "ABC", "length": 4}
    trainer = {"objective": objective, "backward": "learned", "order_weight": 1.0}
    metrics = found(train(tmp_path / "run", name="strings", task=task, trainer=trainer))
    untrained = found(train(tmp_path / "untrained", name="strings", task=task, trainer=trainer, steps=0))
    assert metrics["mean_objective"] > untrained["mean_objective"] + 0.15
    assert metrics["effective"] < 0.5 * untrained["effective"]


def test_only_the_order_of_the_objectives_decides(tmp_path, monkeypatch):
    """A monotone map of the scores, of any range and sign, leaves every weight as it is, bit for bit."""
    from itertools import product

    words = ["".join(w) for w in product("ABC", repeat=3)]
    scores = torch.rand(27, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = []
    for i, mapped in enumerate((scores, scores.exp() * 1e-12 - 5.0)):
        path = tmp_path / f"t{i}.csv"
        path.write_text("x,y\n" + "".join(f"{w},{v!r}\n" for w, v in zip(words, mapped.tolist(), strict=True)))
        task = {"alphabet": "ABC", "length": 3, "table": str(path)}
        run = train(tmp_path / f"run{i}", name="strings", task=task, trainer={"backward": "learned"}, steps=40)
        states.append(run.load(40, "model")["modules"]["policy"])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def test_the_learned_reward_sparsifies(tmp_path):
    task = {"alphabet": "ABC", "length": 4}
    run = train(tmp_path / "run", name="strings", task=task, trainer={"backward": "learned"})
    model = headwater.load(run, device="cpu")
    [panel] = [p for p in model.task.panels(run) if p.title == "The learned reward through training"]
    lines = panel.figure["data"]
    assert len(lines) == len(run.checkpoints()) >= 4

    def below_the_median(line):
        return sum(line["y"][len(line["y"]) // 2 :]) / len(line["y"])

    assert below_the_median(lines[-1]) < 0.3 * below_the_median(lines[0])


def test_a_ranking_is_learned_from(tmp_path):
    pairs = [("AAA", "AAB"), ("AAB", "ABB"), ("ABB", "BBB"), ("BAB", "BBB")]
    path = tmp_path / "r.csv"
    path.write_text("better,worse\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    task = {"alphabet": "AB", "length": 3, "ranking": str(path)}
    metrics = found(train(tmp_path / "run", name="strings", task=task, trainer={"backward": "learned"}))
    assert metrics["front_mass"] > 0.9  # of AAA and BAB, which nothing is above
    run = train(tmp_path / "again", name="strings", task=task, steps=2)
    assert headwater.load(run, device="cpu").evaluate(n=16)
    assert all(p.title for p in headwater.load(run, device="cpu").task.panels(run))


def test_the_baselines_learn_the_target_of_their_exponent(tmp_path):
    task = {"alphabet": "ABC", "length": 3}
    for objective in ("tb", "db", "subtb"):
        trainer = {"objective": objective, "exponent": 3.0, "backward": "learned"}
        metrics = found(train(tmp_path / objective, name="strings", task=task, trainer=trainer, steps=400))
        assert metrics["l1"] < 0.1, objective


# The preference-conditioned baseline


def test_preferences_are_learned_and_sampled_for(tmp_path):
    run = train(tmp_path / "run", trainer={"objective": "pc-tb"}, steps=400)
    model = headwater.load(run, device="cpu")
    means = []
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        blocks = list(model.sample(256, condition={"weights": weights, "exponent": 16.0}))
        means.append(torch.cat([model.task.objectives(b.x) for b in blocks]).mean(0))
    assert means[0][0] > means[1][0] + 0.02
    assert means[1][1] > means[0][1] + 0.02
    with pytest.raises(UsageError, match="must be 2 weights"):
        list(model.sample(8, condition={"weights": (1.0, 0.0, 0.0)}))


def test_a_preference_is_refused_by_a_run_that_has_none(tmp_path):
    model = headwater.load(train(tmp_path / "run", steps=1), device="cpu")
    with pytest.raises(UsageError, match=r"only trainer\.objective = 'pc-tb'"):
        list(model.sample(8, condition={"weights": (1.0, 0.0)}))


def test_the_policy_sees_the_preference_beside_the_state():
    torch.manual_seed(0)
    policy = PreferencePolicy(5, 3, 2, 2, (8,), "relu")
    x = torch.rand(4, 5)
    policy.set_condition(torch.tensor([0.3, 0.7]), 2.5)
    seen = torch.cat([x, torch.tensor([0.3, 0.7, 2.5]).expand(4, 3)], 1)
    assert torch.equal(policy.forward_logits(x), policy.policy.forward_logits(seen))
    before = policy.log_z()
    policy.set_condition(torch.tensor([0.7, 0.3]), 2.5)
    assert not torch.equal(before, policy.log_z())


def test_drawn_preferences_have_the_moments_of_their_distributions():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_preference(3, generator) for _ in range(4000)]
    weights, exponents = torch.stack([w for w, _ in drawn]), torch.tensor([e for _, e in drawn])
    assert torch.allclose(weights.sum(1), torch.ones(4000).double())
    torch.testing.assert_close(weights.mean(0), torch.full((3,), 1 / 3).double(), rtol=0, atol=0.015)
    assert float(exponents.mean()) == pytest.approx(16, abs=0.3)
    assert float(exponents.var()) == pytest.approx(16, rel=0.15)


# Replay


def test_the_archive_holds_what_nothing_seen_dominates():
    generator = torch.Generator().manual_seed(0)
    replay = ParetoReplay(20, share=0.5)
    every = torch.zeros(0, 2, dtype=torch.float64)
    for _ in range(30):
        values = torch.randint(0, 12, (8, 2), generator=generator).double()
        x, keys = values.long(), (values[:, 0] * 100 + values[:, 1]).long()
        replay.add_to_front(x, values, values.sum(1), keys)
        replay.add(x, values.sum(1), keys)
        every = torch.cat([every, values])
        unique = torch.unique(every, dim=0)
        best = [u.tolist() for u in unique if not any(bool((v >= u).all() and (v > u).any()) for v in unique)]
        assert sorted(replay.front_values.tolist()) == sorted(best)
    assert len(replay) == 20  # the ring has long overwritten the first ones
    x, _ = replay.draw(10, generator)
    assert len(x) == 10
    front = {tuple(v) for v in replay.front.tolist()}
    assert all(tuple(v) in front for v in x[5:].tolist())
    again = ParetoReplay(20, share=0.5)
    again.load_state_dict(replay.state_dict())
    assert torch.equal(again.front, replay.front)


def test_replayed_objects_come_with_their_objectives_and_several_trajectories():
    task = {"side": 6}
    trainer = make_trainer(
        task=task,
        trainer={"batch_size": 8, "replay": "pareto", "replay_batch": 4, "backward_trajectories": 3, "hidden": [8]},
    )
    generator = torch.Generator().manual_seed(0)
    trainer.draw(0, generator)
    batch = trainer.draw(1, generator)
    assert len(batch.log_reward) == len(batch.values) == 8 + 4 * 3
    assert torch.equal(batch.values, trainer.objectives(batch.trajectories.last))
    ends = batch.trajectories.last[8:].view(4, 3)
    assert (ends == ends[:, :1]).all()


def test_looking_at_all_states_or_at_those_visited_gives_the_same_loss():
    trainer = make_trainer(task={"side": 6}, trainer={"batch_size": 8, "backward": "learned", "backward_kl": 0.1})
    assert trainer.looks_at_all
    for objective in ("op-tb", "op-db", "op-subtb", "tb"):
        other = make_trainer(
            task={"side": 6},
            trainer={"batch_size": 8, "backward": "learned", "backward_kl": 0.1, "objective": objective},
        )
        batch = other.draw(0, torch.Generator().manual_seed(0))
        looked = other.loss(batch)
        visited = other.loss(type(batch)(batch.trajectories, batch.log_reward, batch.values, batch.noise, None))
        torch.testing.assert_close(looked, visited, rtol=1e-5, atol=1e-6)


def test_the_rate_falls_to_zero_over_all_updates():
    trainer = make_trainer(
        task={"side": 6}, trainer={"batch_size": 4, "decay_steps": 3, "updates_per_batch": 4, "hidden": [8]}
    )
    rates = []
    for k in range(3):
        trainer.step(trainer.draw(k, torch.Generator().manual_seed(k)))
        rates.append(trainer.optimisers["adam"].param_groups[0]["lr"])
    assert rates == pytest.approx([0.0075, 0.0025, 0.0], abs=1e-9)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"objective": "optb"}, r"trainer\.objective = 'optb'"),
        ({"backward_kl": 0.1}, "backward = 'uniform'"),
        ({"backward_kl": 0.1, "backward": "learned", "objective": "op-fm"}, "has no meaning for op-fm"),
        ({"tie": -1.0}, r"trainer\.tie = -1\.0"),
        ({"pareto_share": 2.0}, r"trainer\.pareto_share = 2\.0"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path, trainer, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", trainer=trainer)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("objective", ["op-tb", "op-db", "op-subtb", "op-fm", "pc-tb"])
def test_every_precision_trains_and_samples(tmp_path, objective, precision):
    overrides = {
        "task": {"side": 6},
        "trainer": {"hidden": [8], "batch_size": 4, "objective": objective, "updates_per_batch": 2},
        "fit": {"max_steps": 3, "accelerator": "cpu", "precision": precision},
    }
    run = headwater.train("gfn-op", tmp_path / "run", overrides=overrides)
    assert len(next(iter(headwater.load(run, device="cpu").sample(3)))) == 3


# OP-TB on the grid collapses onto one object instead, at which its loss is finite and flat.
@pytest.mark.parametrize(
    ("name", "task", "objective"),
    [
        ("objective-grid", {"side": 6}, "op-db"),
        ("objective-grid", {"side": 6}, "op-subtb"),
        ("strings", {"length": 3}, "op-tb"),
        ("strings", {"length": 3}, "op-db"),
    ],
)
def test_a_diverging_network_stops_the_run(tmp_path, name, task, objective):
    overrides = {
        "task": task,
        "trainer": {"learning_rate": 1e18, "hidden": [8], "batch_size": 4, "objective": objective},
        "fit": {"max_steps": 60, "log_every": 5, "accelerator": "cpu"},
    }
    with pytest.raises(NonFinite, match="learning rate"):
        headwater.train("gfn-op", tmp_path / "run", task=name, overrides=overrides)


def test_the_preset_of_cells_augments_and_clips(tmp_path):
    np.savez(tmp_path / "t.npz", acc=np.random.default_rng(0).random(15625))
    overrides = {
        "task": {"table": str(tmp_path / "t.npz")},
        "trainer": {"hidden": [8], "updates_per_batch": 2, "decay_steps": 3},
        "fit": {"max_steps": 3, "accelerator": "cpu"},
    }
    run = headwater.train("gfn-op", tmp_path / "run", task="nas-bench-201", preset="nas", overrides=overrides)
    metrics = found(run)
    assert metrics["different"] > 20
    assert 0 < metrics["best_reward"] <= 1
