"""RNA binding and peptides: graphs, scores, files."""

import math

import numpy as np
import pytest
import torch
from headwater.errors import ConfigError, DataError
from headwater_gfn.rollout import roll_back, roll_out
from headwater_gfn.table import TableEnvironment
from headwater_gfn_oc.networks import conditional_policy
from headwater_gfn_oc.outcomes import Conditioned
from headwater_gfn_oc.tasks.peptides import RESIDUES, Peptides, PeptidesConfig, features_of, read_labelled
from headwater_gfn_oc.tasks.rna import TARGETS, RNABinding, RNABindingConfig

# Peptides


def walks(environment, n):
    generator = torch.Generator().manual_seed(0)
    s, found = environment.start(n), []
    while len(s):
        a = torch.multinomial(environment.forward_mask(s).float(), 1, generator=generator).squeeze(1)
        child = environment.step(s, a)
        found.append((s, a, child))
        s = child[~environment.terminal(child)]
    return (torch.cat(v) for v in zip(*found, strict=True))


def test_undo_is_the_inverse_of_step_on_peptides():
    environment = Peptides(PeptidesConfig(longest=7))
    s, a, child = walks(environment, 500)
    stop = a == 20
    b = environment.backward_action(s[~stop], a[~stop])
    assert torch.equal(environment.undo(child[~stop], b), s[~stop])
    assert torch.equal(environment.forward_action(child[~stop], b), a[~stop])
    assert torch.equal(environment.unstop(child[stop]), s[stop])
    assert int(child[stop].lt(20).sum(1).max()) <= 8  # seven residues and the mark


def test_peptides_of_two_residues_are_all_there_and_reached_as_the_letters_say():
    environment = Peptides(PeptidesConfig(longest=2))
    table = TableEnvironment(environment)
    n = len(table.states) - table.n_inner
    assert n == 20 + 400
    x = table.states[table.n_inner :]
    assert torch.equal(environment.parse(environment.describe(x)), x)
    assert torch.equal(environment.from_letters(environment.letters(x)), x)
    assert environment.proper(environment.letters(x)).all()
    assert not environment.proper(torch.tensor([[20, 3], [20, 20]])).any()
    generator = torch.Generator().manual_seed(0)
    s = table.states[torch.randint(len(table.states), (300,), generator=generator)]
    y = x[torch.randint(n, (300,), generator=generator)]
    by_letters = environment.possible(s, environment.letters(y)).gather(2, environment.letters(y).unsqueeze(2))
    assert torch.equal(by_letters.squeeze(2).all(1), environment.reaches(s, y))
    for word, other, leads in (("A", "AC", True), ("AC", "A", False), ("C", "AC", False)):
        s = environment.unstop(environment.parse([word]))
        assert bool(environment.reaches(s, environment.parse([other]))) == leads
        assert not bool(environment.reaches(environment.parse([word]), environment.parse([other])))


def test_random_peptides_and_walks_to_them():
    environment = Peptides(PeptidesConfig(longest=9))
    generator = torch.Generator().manual_seed(0)
    y = environment.random_objects(40, generator)
    assert environment.proper(environment.letters(y)).all()
    back = roll_back(environment, None, y, generator)
    assert torch.equal(back.last, y)
    conditioned = Conditioned(environment, y)
    policy = conditional_policy(environment, (8,), "relu", "concatenate")
    assert environment.terminal(conditioned.split(roll_out(conditioned, policy, 40, generator).last)[0]).all()


def test_the_reward_without_data_likes_charge_and_is_finite():
    environment = Peptides(PeptidesConfig())
    x = environment.parse(["KKLLKKLLKKLLKKLLKKLL", "DDDDDDDDDDDD", "A"])
    rewards = environment.log_reward(x)
    assert torch.isfinite(rewards).all()
    assert int(rewards.argmax()) == 0
    assert float(rewards[0]) > math.log(0.9)
    with pytest.raises(ConfigError, match=r"no classifier without task\.data"):
        environment.auroc()


def labelled(path, n=60, heading="5200,1,UniProt,AMP\n"):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        letters = "KRLIAW" if i % 2 else "DEGSTN"
        rows.append("".join(rng.choice(list(letters), 12)) + f", {i % 2}")
    path.write_text(heading + "\n".join([*rows, "A" * 80 + ",1"]) + "\n")
    return path


def test_a_classifier_learns_the_users_labels(tmp_path):
    pytest.importorskip("sklearn")
    environment = Peptides(PeptidesConfig(data=labelled(tmp_path / "amp.csv"), mode_probability=0.5))
    assert environment.auroc() > 0.95
    x = environment.parse(["KRLIAWKRLIAW", "DEGSTNDEGSTN"])
    p = environment.probabilities(x)
    assert float(p[0]) > 0.8
    assert float(p[1]) < 0.2
    assert environment.modes(x).tolist()[1] == -1
    odds = Peptides(PeptidesConfig(data=tmp_path / "amp.csv", reward="odds")).log_reward(x)
    assert torch.allclose(odds, torch.log(p / (1 - p)).float().clamp_min(math.log(1e-3)), atol=1e-5)
    again = Peptides(PeptidesConfig(data=tmp_path / "amp.csv")).probabilities(x)
    assert torch.equal(again, p)


def test_features_of_peptides_are_counts():
    found = features_of(["AAC"])[0]
    assert found[0] == pytest.approx(3 / 50)
    assert found[1:21].sum() == pytest.approx(1.0)
    assert found[1 + RESIDUES.index("A")] == pytest.approx(2 / 3)
    assert found[21] == pytest.approx(0.5)  # AA
    assert found[22] == pytest.approx(0.5)  # AC


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sequence,label\nKKK,2\n", "line 2: 'KKK,2' is no sequence and a label 0 or 1"),
        ("KKK,1\nKXB,0\n", "line 2: 'KXB' has BX"),
        ("KKK,1\n", "0 sequences of label 0"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(tmp_path, text, said):
    path = tmp_path / "amp.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_labelled(path, 50)
    assert said in Peptides.check(path)[0]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*amp\.csv"):
        read_labelled(tmp_path / "amp.csv", 50)


# RNA


def test_binding_is_the_energy_over_that_of_the_complement():
    rna = pytest.importorskip("RNA")
    environment = RNABinding(RNABindingConfig(reward="1+3", mode_score=0.5))
    word = "GAGCCGGAAUGUGC"
    complement = str.maketrans("ACGU", "UGCA")
    expected = 0.0
    for target in (TARGETS[0], TARGETS[2]):
        best = rna.duplexfold(target[::-1].translate(complement), target).energy
        expected += rna.duplexfold(target, word).energy / (best * 14 / 100) / 2
    x = environment.parse([word])
    assert float(environment.raw_objectives(x)) == pytest.approx(expected)
    assert float(environment.log_reward(x)) == pytest.approx(math.log(max(expected, 1e-3)), rel=1e-5)
    assert environment.n_states is None
    assert environment.describe(x) == [word]
    assert (int(environment.modes(x)) >= 0) == (expected >= 0.5)


def test_targets_and_lengths_of_rna_are_checked():
    assert [len(t) for t in TARGETS] == [100] * 4
    with pytest.raises(ValueError, match="should match pattern"):
        RNABindingConfig(reward="5")
    with pytest.raises(ValueError, match="table is given, but rna-binding computes its scores"):
        RNABindingConfig(table="x.csv")
