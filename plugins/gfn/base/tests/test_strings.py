"""Strings: their graph against a brute force, their scores from every source, and what is refused."""

from itertools import product

import numpy as np
import pytest
import torch
from headwater.errors import ConfigError, DataError, PluginError
from headwater_gfn.child_scorer import ChildScorer
from headwater_gfn.evaluation import evaluate
from headwater_gfn.exact import exact_flows, forward_policy, l1_distance, learned_distribution, log_target
from headwater_gfn.networks import MLPPolicy
from headwater_gfn.objective import detailed_balance, terminate, trajectory_balance
from headwater_gfn.rollout import roll_back, roll_out
from headwater_gfn.table import TableEnvironment
from headwater_gfn.tasks.objectives import objectives_of
from headwater_gfn.tasks.score_tables import read_ranking
from headwater_gfn.tasks.strings import Strings, StringsConfig, TFBind8, TFBind8Config, make_landscape
from oracle import TablePolicy, numbered, random_walks

SPACE = {"alphabet": "ABC", "length": 3}


@pytest.fixture(params=["prepend-append", "append"])
def environment(request):
    return Strings(StringsConfig(**SPACE, build=request.param))


def test_undo_is_the_inverse_of_step(environment, generator):
    s, a, child = random_walks(environment, 400, generator)
    b = environment.backward_action(s, a)
    assert environment.backward_mask(child).gather(1, b.unsqueeze(1)).all()
    assert torch.equal(environment.undo(child, b), s)
    again = environment.forward_action(child, b)
    assert torch.equal(environment.step(s, again), child)
    same = environment.same_child(s, a)
    if same is None:
        assert torch.equal(again, a)
    else:
        assert same.gather(1, again.unsqueeze(1)).all()


def test_children_and_parents_are_those_of_strings(environment):
    both = environment.config.build == "prepend-append"
    table = TableEnvironment(environment)
    words = ["".join("ABC"[i] for i in row if i < 3) for row in table.states.tolist()]
    assert len(words) == len(set(words)) == 1 + 3 + 9 + 27
    assert environment.n_states == len(words)
    of = {word: i for i, word in enumerate(words)}
    for i, word in enumerate(words):
        if len(word) < 3:
            children = {of[word + c] for c in "ABC"} | ({of[c + word] for c in "ABC"} if both else set())
            assert set(table.child[i].tolist()) == children
        parents = [] if not word else sorted({of[word[:-1]]} | ({of[word[1:]]} if both else set()))
        assert sorted(p for p in table.parent[i].tolist() if p >= 0) == parents


def test_actions_with_one_child_are_those_of_a_string_of_one_letter(environment):
    if environment.config.build == "append":
        assert environment.same_child(environment.start(1), torch.zeros(1, dtype=torch.int64)) is None
        return
    table = TableEnvironment(environment)
    s = torch.arange(table.n_inner)
    for a in range(environment.n_actions):
        same = table.same_child(s, torch.full_like(s, a))
        assert torch.equal(same, table.child == table.child[:, a : a + 1])


def test_at_the_exact_flows_the_objectives_are_zero(environment, generator):
    table = TableEnvironment(environment)
    flows = exact_flows(table)
    policy = TablePolicy(flows.log_pf, flows.log_pb, flows.log_flow)
    table = numbered(table)
    trajectories = roll_out(table, policy, 64, generator)
    with torch.no_grad():
        terms = evaluate(table, policy, trajectories)
    log_reward = table.log_reward(trajectories.last).double()
    flow = terminate(terms.log_flow, log_reward, trajectories.length)
    assert float(detailed_balance(terms.log_pf, terms.log_pb, flow, trajectories.length)) < 1e-10
    log_z = torch.tensor(table.log_partition(), dtype=torch.float64)
    assert float(trajectory_balance(terms.log_pf, terms.log_pb, log_reward, log_z)) < 1e-10
    assert l1_distance(learned_distribution(table, flows.log_pf), log_target(table).exp()) < 1e-10


def test_backward_trajectories_lead_to_their_string(environment, generator):
    x = environment.parse(["ABC", "AAA", "BAB"])
    trajectories = roll_back(environment, None, x, generator)
    assert torch.equal(trajectories.last, x)
    assert (trajectories.length == 3).all()
    for t in range(3):
        stepped = environment.step(trajectories.states[t], trajectories.actions[t])
        assert torch.equal(stepped, trajectories.states[t + 1])


def test_words_come_back_and_others_are_refused(environment):
    words = ["ABC", "CCC"]
    assert environment.describe(environment.parse(words)) == words
    assert torch.equal(environment.parse(["012"]), environment.parse(["ABC"]))
    for bad in ("AB", "ABCA", "ABD", "013", ""):
        with pytest.raises(ValueError, match="no string of 3 letters"):
            environment.parse([bad])


def test_the_drawn_landscape_is_the_sum_of_its_terms():
    environment = Strings(StringsConfig(**SPACE, landscape_seed=4))
    fields, couplings = make_landscape(3, 3, 4)
    energies = []
    for a, b, c in product(range(3), repeat=3):
        pairs = couplings[0, a, 1, b] + couplings[0, a, 2, c] + couplings[1, b, 2, c]
        energies.append(fields[0, a] + fields[1, b] + fields[2, c] + pairs)
    energies = torch.stack(energies)
    scores = environment.objectives(environment.parse(["".join(w) for w in product("ABC", repeat=3)]))[:, 0]
    assert float(scores.min()) >= 0
    assert float(scores.max()) <= 1
    torch.testing.assert_close(scores.diff() / scores.diff()[0], energies.diff() / energies.diff()[0])


# Scores from files


def rows(n=27, columns=("score",)):
    words = ["".join(w) for w in product("ABC", repeat=3)]
    lines = [",".join(["x", *columns])]
    lines += [",".join([word, *(f"{(i * 7 + k * 5) % 27 / 27:.4f}" for k in range(len(columns)))]) for i, word in
              enumerate(words[:n])]  # fmt: skip
    return lines


def write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_gives_scores_modes_and_directions(tmp_path):
    path = write(tmp_path / "t.csv", rows(columns=("good", "bad")))
    environment = Strings(StringsConfig(**SPACE, table=path, minimise=("bad",), preference=(3, 1)))
    x = environment.parse(["AAB"])
    assert environment.names == ("good", "bad")
    assert environment.raw_objectives(x).tolist() == [
        [pytest.approx(7 / 27, abs=1e-4), pytest.approx(12 / 27, abs=1e-4)]
    ]
    assert environment.objectives(x).tolist() == [[pytest.approx(7 / 27, abs=1e-4), pytest.approx(-12 / 27, abs=1e-4)]]
    scalar = 0.75 * 0.2593 - 0.25 * 0.4444
    assert float(environment.log_reward(x)) == pytest.approx(np.log(scalar), abs=1e-3)
    one = Strings(StringsConfig(**SPACE, table=path, columns=("bad",), minimise=("bad",), mode_share=0.1))
    assert one.n_modes == 3
    best = one.raw_objectives(one.parse(["".join(w) for w in product("ABC", repeat=3)]))[:, 0]
    modes = one.modes(one.parse(["".join(w) for w in product("ABC", repeat=3)]))
    assert sorted(best[modes >= 0].tolist()) == sorted(best.tolist())[:3]


@pytest.mark.parametrize("shuffled", [False, True])
def test_an_npz_gives_the_same_scores_in_any_order(tmp_path, shuffled, generator):
    words = np.array(["".join(w) for w in product("ABC", repeat=3)])
    scores = np.arange(27.0)
    order = torch.randperm(27, generator=generator).numpy() if shuffled else np.arange(27)
    arrays = {"y": scores[order], "modes": np.array(["CCC", "ABC"])} | ({"x": words[order]} if shuffled else {})
    np.savez(tmp_path / "t.npz", **arrays)
    environment = Strings(StringsConfig(**SPACE, table=tmp_path / "t.npz"))
    x = environment.parse(words.tolist())
    assert torch.equal(environment.objectives(x)[:, 0], torch.arange(27.0).double())
    assert environment.n_modes == 2
    assert environment.modes(environment.parse(["CCC", "ABC", "AAA"])).tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r[:-1], r"has 26 of 27 objects.*number 26"),
        (lambda r: [*r, r[3]], r"line 29: 'AAC' is given twice, first in line 4"),
        (lambda r: [*r[:5], "ABX,0.5", *r[6:]], r"line 6: 'ABX' is no string of 3 letters"),
        (lambda r: [*r[:5], "ABB,nan", *r[6:]], r"line 6: score = 'nan' is no finite number"),
        (lambda r: [*r[:5], "ABB", *r[6:]], r"line 6: score = None is no finite number"),
        (lambda r: [*r[:5], "ABB,much", *r[6:]], r"line 6: score = 'much' is no finite number"),
        (lambda r: ["y,score", *r[1:]], r"needs the column 'x'"),
        (lambda r: ["x", *(line.split(",")[0] for line in r[1:])], r"at least one column of scores"),
        (lambda r: [], r"needs the column 'x'"),
    ],
)
def test_a_bad_table_is_refused_by_file_and_row(tmp_path, spoil, message):
    path = write(tmp_path / "bad.csv", spoil(rows()))
    with pytest.raises(DataError, match=rf"bad\.csv.*{message}"):
        Strings(StringsConfig(**SPACE, table=path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.arange(26.0)}, "has 26 rows, but there are 27"),
        ({"y": np.array([*range(26), np.inf])}, r"y\[26\] is no finite number"),
        ({"y": np.arange(27.0), "z": np.arange(27.0)}, "one floating-point array"),
        ({"n": np.arange(27)}, "one floating-point array"),
        ({"y": np.arange(27.0), "x": np.array(["AAA"] * 27)}, "'AAA' is given twice"),
        ({"y": np.arange(26.0), "x": np.array(["".join(w) for w in product("ABC", repeat=3)][:26])}, "26 of 27"),
        ({"y": np.arange(27.0), "modes": np.array(["AXA"])}, r"modes\[0\]: 'AXA' is no string"),
        ({"y": np.ones((27, 2)), "columns": np.array(["a"])}, "1 names for 2 columns"),
        ({"y": np.array([None] * 27)}, "no NPZ file of plain arrays"),
    ],
)
def test_a_bad_npz_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=rf"bad\.npz.*{message}"):
        Strings(StringsConfig(**SPACE, table=tmp_path / "bad.npz"))


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "t.txt").write_text("x,score\n")
    for name, message in (("missing.csv", "cannot read"), ("broken.npz", "NPZ"), ("t.txt", r"\.csv or \.npz")):
        with pytest.raises(DataError, match=message):
            Strings(StringsConfig(**SPACE, table=tmp_path / name))
    path = write(tmp_path / "t.csv", rows())
    with pytest.raises(DataError, match="no column 'scor'; did you mean 'score'"):
        Strings(StringsConfig(**SPACE, table=path, columns=("scor",)))


def test_settings_that_do_not_fit_are_refused(tmp_path):
    path = write(tmp_path / "t.csv", rows())
    with pytest.raises(ConfigError, match=r"task\.minimise: there is no objective 'scor'; did you mean 'score'"):
        Strings(StringsConfig(**SPACE, table=path, minimise=("scor",)))
    with pytest.raises(ConfigError, match=r"task\.preference has 2 numbers, but there are 1"):
        Strings(StringsConfig(**SPACE, table=path, preference=(1, 1)))
    with pytest.raises(ConfigError, match="not all 0"):
        Strings(StringsConfig(**SPACE, table=path, preference=(0,)))
    with pytest.raises(ValueError, match="table and ranking are given"):
        StringsConfig(**SPACE, table=path, ranking=path)
    with pytest.raises(ValueError, match="a letter twice"):
        StringsConfig(alphabet="ABA")
    with pytest.raises(ConfigError, match="more than a table"):
        Strings(StringsConfig(alphabet="ACGT", length=20))
    with pytest.raises(ConfigError, match=r"tfbind8 needs task\.table"):
        TFBind8(TFBind8Config())
    assert "has 26 of 65,536 objects" in TFBind8.check(write(tmp_path / "b.csv", dna(26)))[0]


def dna(n):
    return ["x,y", *(f"{''.join(w)},0.5" for w, _ in zip(product("ACGT", repeat=8), range(n), strict=False))]


# Functions of the user


def count_a(words):
    return [word.count("A") for word in words]


def some_nan(words):
    return [float("nan") if word == "ABC" else 1.0 for word in words]


def too_few(words):
    return [1.0] * (len(words) - 1)


def raises(words):
    raise RuntimeError("the simulator is off")


def test_functions_score_each_string_once_and_nothing_is_gone_through(monkeypatch):
    seen = []
    monkeypatch.setitem(globals(), "count_a", lambda words: seen.extend(words) or [w.count("A") for w in words])
    import sys

    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    environment = Strings(StringsConfig(**SPACE, objectives=("mine:count_a",)))
    assert environment.n_states is None
    x = environment.parse(["AAB", "CCC", "AAB"])
    assert environment.objectives(x)[:, 0].tolist() == [2.0, 0.0, 2.0]
    environment.objectives(x)
    assert sorted(seen) == ["AAB", "CCC"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some_nan", "gave nan for 'ABC'"),
        ("too_few", r"shape \(2,\) for 3 objects, the first 'AAB'"),
        ("raises", "failed on 3 objects, the first 'AAB': RuntimeError: the simulator is off"),
    ],
)
def test_functions_that_fail_are_named(monkeypatch, name, message):
    import sys

    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    environment = Strings(StringsConfig(**SPACE, objectives=("mine:count_a", f"mine:{name}")))
    with pytest.raises(PluginError, match=f"mine:{name}.*{message}"):
        environment.objectives(environment.parse(["AAB", "ABC", "CCC"]))


# Rankings


def test_a_ranking_becomes_a_partial_order(tmp_path):
    path = write(tmp_path / "r.csv", ["better,worse", "AAA,AAB", "AAB,AAC", "BBB,AAC"])
    environment = Strings(StringsConfig(**SPACE, ranking=path))
    u = {w: environment.objectives(environment.parse([w]))[0] for w in ("AAA", "AAB", "AAC", "BBB", "CCC", "CCB")}

    def better(a, b):
        return bool((u[a] >= u[b]).all() and (u[a] > u[b]).any())

    assert better("AAA", "AAB")
    assert better("AAA", "AAC")  # by way of AAB
    assert not better("AAA", "BBB")
    assert not better("BBB", "AAA")
    assert all(better(w, "CCC") for w in ("AAA", "AAB", "AAC", "BBB"))
    assert torch.equal(u["CCC"], u["CCB"])
    assert not environment.measurable


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["better,worse", "AAA,AAA"], "line 2: 'AAA' is better than itself"),
        (["better,worse", "AAA,AAB", "AAC,ABA", "AAB,AAC", "AAC,AAA"], "line 2: the pairs go in a circle"),
        (["better,worse", "AAA,AAX"], "line 2: 'AAX' is no string"),
        (["better,worse"], "holds no pair"),
        (["a,b", "AAA,AAB"], "needs the columns 'better' and 'worse'"),
    ],
)
def test_a_bad_ranking_is_refused(tmp_path, lines, message):
    path = write(tmp_path / "bad.csv", lines)
    with pytest.raises(DataError, match=rf"bad\.csv.*{message}"):
        Strings(StringsConfig(**SPACE, ranking=path))


def test_a_ranking_of_too_many_is_refused(tmp_path):
    path = write(tmp_path / "r.csv", ["better,worse", *(f"{i},{i + 1}" for i in range(2100))])
    with pytest.raises(DataError, match="names 2,101 objects; at most 2,000"):
        read_ranking(path, int)


# The scorer of children


@pytest.mark.parametrize("build", ["prepend-append", "append"])
def test_the_scorer_of_children_scores_the_child_itself(build, generator):
    torch.manual_seed(0)
    environment = Strings(StringsConfig(**SPACE, build=build, network="children"))
    policy = environment.make_policy((8,), "leaky-relu")
    assert isinstance(policy, ChildScorer)
    s, a, child = random_walks(environment, 60, generator)
    mask = environment.forward_mask(s)
    log_p = torch.log_softmax(torch.where(mask, policy.forward_logits(environment.observe(s)), -1e9), 1)
    own = policy.forward_encoder(environment.observe(s))
    score = policy.forward_scorer(torch.cat([own, policy.forward_encoder(environment.observe(child))], 1))[:, 0]
    same = environment.same_child(s, a)
    found = log_p.gather(1, a.unsqueeze(1))[:, 0] if same is None else torch.where(same, log_p, -1e9).logsumexp(1)
    # The probability of a child is the softmax of the scores of the different children.
    total = []
    for i in range(len(s)):
        children = {
            tuple(environment.step(s[i : i + 1], torch.tensor([b]))[0].tolist()) for b in range(environment.n_actions)
        }
        each = policy.forward_encoder(environment.observe(torch.tensor(sorted(children))))
        both = torch.cat([own[i].expand_as(each), each], 1)
        total.append(policy.forward_scorer(both)[:, 0].logsumexp(0))
    torch.testing.assert_close(found, score - torch.stack(total), rtol=1e-4, atol=1e-5)
    backward = policy(environment.observe(child))[1]
    b = environment.backward_action(s, a)
    pair = torch.cat([policy.backward_encoder(environment.observe(v)) for v in (child, s)], 1)
    torch.testing.assert_close(
        backward.gather(1, b.unsqueeze(1))[:, 0], policy.backward_scorer(pair)[:, 0], rtol=1e-4, atol=1e-5
    )


def test_objectives_of_a_table_are_looked_up():
    environment = Strings(StringsConfig(**SPACE))
    table = TableEnvironment(environment)
    x = torch.arange(table.n_inner, len(table.states))
    assert torch.equal(objectives_of(table)(x), environment.objectives(table.states[x]))


def test_samples_of_a_policy_follow_its_exact_distribution(environment, generator):
    torch.manual_seed(0)
    table = TableEnvironment(environment)
    policy = MLPPolicy(environment.n_features, environment.n_actions, environment.n_backward, (16,))
    x = roll_out(table, policy, 20_000, generator).last
    expected = 20_000 * learned_distribution(table, forward_policy(table, policy))
    seen = torch.bincount(x - table.n_inner, minlength=len(expected))
    assert float(((seen - expected).square() / expected).sum()) < 54.1  # chi-squared of 26 degrees, p = 0.001
