"""Training, sampling and operations from end to end, small."""

import headwater
import numpy as np
import pytest
import torch
from headwater.errors import ConfigError, DataError, UsageError
from headwater_flow_tsgen.evaluation import middle, score
from headwater_flow_tsgen.tasks.formats import read, write_xyz
from headwater_flow_tsgen.tasks.guess import Guess, read_guesses
from headwater_flow_tsgen.tasks.reactions import XtbReactions, XtbReactionsConfig

TINY = {"width": 8, "pair_width": 8, "layers": 1, "heads": 2, "feed_forward": 8, "batch_size": 4, "held_out": 6}
SAMPLER = {"block_size": 4, "trials": 2, "steps": 2}


def train(where, steps=3, fit=None, **trainer):
    overrides = {
        "trainer": {**TINY, **trainer},
        "sampler": SAMPLER,
        "fit": {"max_steps": steps, "accelerator": "cpu", "threads": 1, **(fit or {})},
    }
    return headwater.train("flow-tsgen", where, overrides=overrides)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return headwater.load(train(tmp_path_factory.mktemp("run") / "run"), device="cpu")


@pytest.mark.parametrize(
    "trainer",
    [
        {"loss": "l2"},
        {"loss": "symm"},
        {"loss": "alpha", "times": "uniform"},
        {"loss": "reverse", "path": "cosine"},
        {"loss": "forward", "path": "vp"},
        {"prior": "noise", "prior_scale": 1.0, "ot": "rotation"},
        {"prior": "noise", "prior_scale": 1.0, "ot": "atoms", "centred": False},
        {"conditioned": False, "fragments": "official"},
        {"times": "start", "prior_scale": 0.0, "decay_steps": 5},
        {"network": "tsgen", "loss": "l2", "variance_weight": 1.0, "prior": "noise", "reflections": True},
        {"network": "tsgen", "condition_share": 0.5, "potential": True},
        {"network": "tsgen", "conditioned": False},
    ],
    ids=str,
)
def test_every_setting_trains_and_samples(tmp_path, trainer):
    run = train(tmp_path / "run", **trainer)
    assert np.isfinite(run.metrics()[0]["loss"])
    guesses = next(iter(headwater.load(run, device="cpu").sample(3)))
    assert len(guesses) == 3
    assert all(np.isfinite(g.ts).all() for g in guesses)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("network", ["molgen", "tsgen"])
def test_every_precision_trains_and_samples(tmp_path, precision, network):
    run = train(tmp_path / "run", network=network, fit={"precision": precision})
    guesses = next(iter(headwater.load(run, device="cpu").sample(2)))
    assert all(np.isfinite(g.ts).all() for g in guesses)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"heads": 3}, "multiple of heads 3"),
        ({"condition_share": 0.5}, "is for network=tsgen"),
        ({"potential": True}, "potential is a part"),
        ({"network": "tsgen", "ot": "rotation"}, "ot=rotation needs"),
        ({"ot": "atoms"}, "needs prior=noise"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(tmp_path, trainer, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "run", **trainer)


def test_training_beats_the_midpoint_where_it_can_learn_by_heart(tmp_path):
    """Twelve reactions, trained on and tested on."""
    reactions = XtbReactions(XtbReactionsConfig()).reactions()[:12]
    write_xyz(reactions, tmp_path / "few.xyz")
    overrides = {
        "task": {"path": str(tmp_path / "few.xyz"), "held_out": 0.01},
        "trainer": {**TINY, "width": 32, "layers": 2, "heads": 4, "batch_size": 12, "prior_scale": 0.05,
                    "learning_rate": 3e-3},
        "fit": {"max_steps": 250, "accelerator": "cpu", "threads": 1},
    }  # fmt: skip
    run = headwater.train("flow-tsgen", tmp_path / "run", task="reactions", overrides={**overrides, "fit": {
        **overrides["fit"], "ema": None}})  # fmt: skip
    sampler = headwater.load(run, device="cpu").sampler(None, {"sampler": {"trials": 1}})
    with torch.no_grad():
        found = score(
            sampler.guesses(reactions, torch.Generator().manual_seed(0)), with_energies=False, with_idpp=False
        )
    assert found["rmsd"] < 0.75 * found["midpoint_rmsd"]


def test_guidance_goes_down_the_potentials_slope(tmp_path):
    run = train(tmp_path / "run", network="tsgen", potential=True)
    model = headwater.load(run, device="cpu")
    plain, pushed = (
        next(iter(model.sample(2, overrides={"sampler": {"guidance": w, "trials": 1}}))) for w in (0.0, 5.0)
    )
    assert not np.allclose(plain[0].ts, pushed[0].ts)
    without = headwater.load(train(tmp_path / "other"), device="cpu")
    with pytest.raises(UsageError, match="potential=true"):
        without.sampler(None, {"sampler": {"guidance": 1.0}})


def test_one_reaction_by_condition(model, tmp_path):
    from ase import Atoms
    from ase.io import write

    reaction = XtbReactions(XtbReactionsConfig()).reactions()[0]
    for name, x in (("r", reaction.reactant), ("p", reaction.product)):
        write(tmp_path / f"{name}.xyz", Atoms(reaction.numbers, x))
    condition = {"reactants": str(tmp_path / "r.xyz"), "products": str(tmp_path / "p.xyz")}
    path = model.sample_to(tmp_path / "ts.xyz", 5, condition=condition)
    guesses = read_guesses(path)
    assert len(guesses) == 5
    assert all(g.spread > 0 and (g.uncertainty > 0).all() and g.reaction.ts is None for g in guesses)
    assert not np.allclose(guesses[0].ts, guesses[1].ts)
    np.testing.assert_allclose(guesses[0].reaction.reactant.mean(0), 0, atol=1e-6)


def test_a_guess_does_not_depend_on_the_others(model):
    reactions = XtbReactions(XtbReactionsConfig()).reactions()[:6]
    sampler = model.sampler(None, {"sampler": {"trials": 2}})
    with torch.no_grad():
        together = sampler.guesses(reactions, torch.Generator().manual_seed(0))
        alone = sampler.guesses(reactions[:1], torch.Generator().manual_seed(0))
    np.testing.assert_allclose(together[0].ts, alone[0].ts, atol=1e-4)


def test_generate_does_a_file_in_order_and_leaves_out_what_is_bad(model, tmp_path, capsys):
    reactions = XtbReactions(XtbReactionsConfig()).reactions()[:5]
    write_xyz(reactions, tmp_path / "in.xyz")
    found = read_guesses(model.apply("generate", tmp_path / "in.xyz", tmp_path / "out.xyz"))
    assert [g.reaction.name for g in found] == [r.name for r in reactions]
    spoiled(reactions, tmp_path / "bad.xyz")
    with pytest.raises(DataError, match="has F, which this model was not trained on; it knows H C N O; --skip-bad"):
        model.apply("generate", tmp_path / "bad.xyz", tmp_path / "no.xyz")
    kept = model.apply(
        "generate", tmp_path / "bad.xyz", tmp_path / "some.xyz", overrides={"operation": {"skip_bad": True}}
    )
    assert len(read_guesses(kept)) == 4
    assert "left out" in capsys.readouterr().err


def spoiled(reactions, path):
    from dataclasses import replace

    numbers = reactions[0].numbers.copy()
    numbers[numbers == 1] = 9
    write_xyz([replace(reactions[0], numbers=numbers), *reactions[1:]], path)


def test_scores_of_the_known_and_of_the_midpoint():
    reactions = XtbReactions(XtbReactionsConfig()).reactions()[:3]
    zero = [np.zeros(len(r)) for r in reactions]
    exact = score([Guess(r, r.ts, z) for r, z in zip(reactions, zero, strict=True)], frequencies=1)
    assert exact["rmsd"] < 1e-5
    assert exact["barrier_error_kcal"] < 1e-6
    assert exact["below_1.58_kcal"] == 1.0
    assert exact["one_imaginary"] == 1.0
    assert 0 < exact["mode_overlap"] <= 1
    assert exact["better_than_midpoint"] == 1.0
    half = score([Guess(r, middle(r), z) for r, z in zip(reactions, zero, strict=True)])
    assert half["rmsd"] == pytest.approx(half["midpoint_rmsd"])
    assert half["barrier_error_kcal"] == pytest.approx(half["midpoint_barrier_error_kcal"])
    assert half["idpp_rmsd"] > 0
    assert half["rmsd_mirror"] <= half["rmsd"] + 1e-9
    lone = score([Guess(headwater_reaction(r), r.ts, z, 0.5) for r, z in zip(reactions, zero, strict=True)])
    assert lone == {"spread": 0.5}


def headwater_reaction(reaction):
    from dataclasses import replace

    return replace(reaction, ts=None)


def test_refine_finds_a_saddle_and_counts_steps(model, tmp_path):
    pytest.importorskip("sella")
    pytest.importorskip("tblite")
    reaction = min(XtbReactions(XtbReactionsConfig()).reactions(), key=len)
    write_xyz([reaction], tmp_path / "in.xyz")
    operation = model.operation("refine")
    # From a guess beside the known saddle the search must find that one again.
    near = Guess(reaction, reaction.ts + 0.02 * np.random.default_rng(0).normal(size=reaction.ts.shape),
                 np.zeros(len(reaction)))  # fmt: skip
    found = operation.refined(near)
    info = found.info
    assert info["converged"]
    assert info["imaginary"] == 1
    assert info["barrier_xtb_kcal"] == pytest.approx(reaction.barrier, abs=0.2)
    assert info["steps"] > 0
    assert info["moved"] < 0.2
    if info["idpp_converged"]:
        assert info["steps_saved"] == info["idpp_steps"] - info["steps"]
    path = model.apply("refine", tmp_path / "in.xyz", tmp_path / "out.xyz", overrides={"operation": {
        "max_steps": 2, "baseline": False}})  # fmt: skip
    again = read_guesses(path)
    assert len(again) == 1
    assert again[0].info["steps"] <= 2
    assert score([found], with_energies=False, with_idpp=False)["steps"] == info["steps"]


def test_refine_refuses_what_the_hamiltonian_cannot_do(model, tmp_path):
    pytest.importorskip("sella")
    reaction = XtbReactions(XtbReactionsConfig()).reactions()[0]
    open_shell = type(reaction)(reaction.numbers[:-1], reaction.reactant[:-1], reaction.product[:-1])
    write_xyz([open_shell], tmp_path / "in.xyz")
    with pytest.raises(DataError, match=r"in\.xyz, reaction .*odd number: an open shell"):
        model.apply("refine", tmp_path / "in.xyz", tmp_path / "out.xyz")
    assert read(tmp_path / "in.xyz")


def test_the_report_has_molecules_and_published_numbers(model):
    panels = model.task.panels(model.run)
    titles = [panel.title for panel in panels]
    assert titles[0] == "Distance to the transition state"
    assert titles[-1] == "Beside published numbers"
    scene = panels[1].figure
    assert {"scene", "scene2", "scene3", "scene4"} <= set(scene["layout"])
    assert sum(trace["mode"] == "markers" for trace in scene["data"]) == 4
