"""Rewards chosen by name or function, E-scores in both of their forms, lists of modes; walks back by look-up."""

import math
import sys
from itertools import product

import numpy as np
import pytest
import torch
from headwater.errors import ConfigError, DataError, PluginError
from headwater_gfn.rollout import roll_back
from headwater_gfn.table import TableEnvironment
from headwater_gfn.tasks.hypergrid import HyperGrid, HyperGridConfig, log_reward_of
from headwater_gfn.tasks.strings import Strings, StringsConfig, TFBind8, TFBind8Config

WORDS = ["".join(p) for p in product("ACGT", repeat=8)]


def test_shapes_of_the_grid_are_those_of_their_formulas():
    side = 8
    for x, y in product(range(side), repeat=2):
        u, v = x / 7 - 0.5, y / 7 - 0.5
        expected = {
            "corners": abs(u) > 0.35 and abs(v) > 0.35,
            "ring": 0.25 < math.hypot(u, v) < 0.4,
            "checkerboard": (x // 2 + y // 2) % 2 == 0,
        }
        for reward, on in expected.items():
            found = float(log_reward_of(reward, torch.tensor([x, y]), side, 0.1).exp())
            assert found == pytest.approx(0.1 + on)
    assert HyperGrid(HyperGridConfig(reward="corners")).n_modes == 4
    assert HyperGrid(HyperGridConfig(reward="ring")).n_modes is None
    assert HyperGrid(HyperGridConfig(reward="ring")).modes(torch.zeros(2, 3, dtype=torch.int64)) is None


@pytest.fixture
def functions(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine.py").write_text(
        "def points(x):\n    return x.sum(1) * 1.0\n"
        "def nan(x):\n    return [float('nan')] * len(x)\n"
        "def short(x):\n    return [1.0]\n"
        "def strings(words):\n    return [w.count('A') / len(w) for w in words]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "rewards_of_mine"
    sys.modules.pop("rewards_of_mine", None)


def test_a_function_of_the_user_is_a_reward_of_grid_points(functions):
    grid = HyperGrid(HyperGridConfig(side=4, reward=f"{functions}:points"))
    x = torch.tensor([[0, 0, 1], [1, 2, 1]])
    assert grid.log_reward(x).tolist() == pytest.approx([math.log(1e-3), math.log(3)])
    with pytest.raises(PluginError, match="gave nan"):
        HyperGrid(HyperGridConfig(reward=f"{functions}:nan")).log_reward(x)
    with pytest.raises(PluginError, match=r"shape \(1,\) for 2 objects"):
        HyperGrid(HyperGridConfig(reward=f"{functions}:short")).log_reward(x)
    with pytest.raises(PluginError, match=r"task.reward = 'nowhere:f' cannot be imported"):
        HyperGrid(HyperGridConfig(reward="nowhere:f"))


def test_one_reward_of_strings_by_function_or_column(functions, tmp_path):
    by_function = Strings(StringsConfig(length=3, reward=f"{functions}:strings"))
    assert by_function.log_reward(by_function.parse(["AAC"])).tolist() == pytest.approx([math.log(2 / 3)])
    table = tmp_path / "t.csv"
    rows = [f"{''.join(p)},{i},{64 - i}" for i, p in enumerate(product("ACGT", repeat=3))]
    table.write_text("x,up,down\n" + "\n".join(rows) + "\n")
    strings = Strings(StringsConfig(length=3, table=table, reward="down"))
    assert strings.names == ("down",)
    assert float(strings.raw_objectives(strings.parse(["AAA"]))) == 64.0
    modes = tmp_path / "modes.txt"
    modes.write_text("AAC\n\nTTT\n")
    strings = Strings(StringsConfig(length=3, table=table, reward="up", mode_list=modes))
    assert strings.n_modes == 2
    assert strings.modes(strings.parse(["AAA", "AAC", "TTT"])).tolist() == [-1, 0, 1]
    for text, said in (("AAC\nAAC\n", "line 2: 'AAC' is given twice, first in line 1"), ("", "holds no word"),
                       ("AAX\n", "line 1: 'AAX' is no string")):  # fmt: skip
        modes.write_text(text)
        with pytest.raises(DataError, match=said):
            Strings(StringsConfig(length=3, table=table, reward="up", mode_list=modes))


def test_a_reward_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="column of a table, which is not given"):
        StringsConfig(reward="up")
    with pytest.raises(ValueError, match="reward and columns are given"):
        StringsConfig(reward="up", columns=("up",), table="t.csv")
    with pytest.raises(ValueError, match="reward is a function and table is given"):
        StringsConfig(reward="a:b", table="t.csv")
    with pytest.raises(ConfigError, match=r"tfbind8 needs task\.table"):
        TFBind8(TFBind8Config())


def test_e_scores_of_many_factors_and_of_one_are_scaled_alike(tmp_path):
    scores = np.random.default_rng(0).integers(-50_000, 50_000, (2, 65_536)).astype(np.int32)
    np.savez(tmp_path / "e.npz", escore_1e5=scores, tf=np.array(["ONE", "TWO"]))
    task = TFBind8(TFBind8Config(table=tmp_path / "e.npz", reward="TWO"))
    assert Strings(StringsConfig(length=8, table=tmp_path / "e.npz", reward="TWO")).names == ("TWO",)
    x = task.parse(["AAAAAAAA", "AAAAAAAC", "TTTTTTTT"])
    own = (scores[1] - scores[1].min()) / (scores[1].max() - scores[1].min())
    assert task.raw_objectives(x)[:, 0].tolist() == pytest.approx(own[[0, 1, -1]].tolist())
    assert TFBind8(TFBind8Config(table=tmp_path / "e.npz")).names == ("ONE", "TWO")
    with pytest.raises(DataError, match="no column 'TOW'; did you mean 'TWO'"):
        TFBind8(TFBind8Config(table=tmp_path / "e.npz", reward="TOW"))
    np.savez(tmp_path / "e.npz", escore_1e5=scores[:, :7], tf=np.array(["ONE", "TWO"]))
    with pytest.raises(DataError, match=r"has the shape \(2, 7\); 2 factors need 65,536 scores each"):
        TFBind8(TFBind8Config(table=tmp_path / "e.npz"))

    complement = str.maketrans("ACGT", "TGCA")
    lines = ["8-mer\t8-mer\tE-score\tMedian\tZ-score"]
    value = {}
    for i, word in enumerate(WORDS):
        other = word[::-1].translate(complement)
        if word <= other:
            value[word] = value[other] = i / 1e5
            lines.append(f"{word}\t{other}\t{i / 1e5:.5f}\t1\t1")
    path = tmp_path / "GATA_8mers.txt"
    path.write_text("\n".join(lines) + "\n")
    task = TFBind8(TFBind8Config(table=path))
    assert task.names == ("GATA",)
    low, high = min(value.values()), max(value.values())
    found = task.raw_objectives(task.parse(["ACGTTGCA", "TTTTTTTT"]))[:, 0].tolist()
    assert found == pytest.approx([(value[w] - low) / (high - low) for w in ("ACGTTGCA", "TTTTTTTT")])
    path.write_text("\n".join(lines[:-1]) + "\n")
    assert "lacks" in TFBind8.check(path)[0]
    path.write_text(lines[0] + "\nAAAAAAAA\tTTTTTTTT\tnan\n")
    assert "line 2: E-score = 'nan' is no finite number" in TFBind8.check(path)[0]


@pytest.mark.parametrize("build", ["prepend-append", "append"])
def test_walks_back_by_look_up_are_walks_that_end_in_their_object(build):
    for environment in (HyperGrid(HyperGridConfig(side=5)), Strings(StringsConfig(length=4, build=build))):
        table = TableEnvironment(environment)
        generator = torch.Generator().manual_seed(0)
        x = table.random_objects(300, generator)
        walks = roll_back(table, None, x, generator)
        assert torch.equal(walks.last, x)
        assert (walks.states[0] == 0).all()
        assert len(walks.actions) == int(walks.length.max())
        for t in range(len(walks.actions)):
            going = t < walks.length
            child = table.step(walks.states[t][going], walks.actions[t][going])
            assert torch.equal(child, walks.states[t + 1][going])
            assert torch.equal(walks.states[t + 1][~going], x[~going])
