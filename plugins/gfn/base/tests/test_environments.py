from itertools import combinations, product

import numpy as np
import pytest
import torch
from headwater import ConfigError, DataError, PluginError
from headwater.config import validate
from headwater_gfn.environment import Samples
from headwater_gfn.table import TableEnvironment
from headwater_gfn.tasks.bits import BitSequence, BitSequenceConfig, make_modes
from headwater_gfn.tasks.hypergrid import HyperGrid, HyperGridConfig, log_reward_of
from headwater_gfn.tasks.sets import (
    SetGeneration,
    SetGenerationConfig,
    log_elementary_symmetric,
    read_energies,
)
from oracle import random_walks


def test_undo_is_the_inverse_of_step_on_random_states(environment, generator):
    s, a, child = random_walks(environment, 6000, generator)
    assert len(s) >= 10_000
    stop = environment.stops & (a == environment.n_actions - 1)
    going = ~stop
    b = environment.backward_action(s[going], a[going])
    assert environment.backward_mask(child[going]).gather(1, b.unsqueeze(1)).all()
    assert torch.equal(environment.undo(child[going], b), s[going])
    assert torch.equal(environment.forward_action(child[going], b), a[going])
    if environment.stops:
        assert torch.equal(environment.unstop(child[stop]), s[stop])
        assert environment.terminal(child[stop]).all()


def test_the_source_has_no_parent_and_every_other_state_has_one(environment, generator):
    assert not environment.backward_mask(environment.start(1)).any()
    s, _, _ = random_walks(environment, 500, generator)
    inner = s[(s != environment.start(1)).flatten(1).any(1)]
    assert environment.backward_mask(inner).any(1).all()


def test_parents_found_backward_are_those_found_forward(table):
    forward = {(int(s), int(c)) for s, row in enumerate(table.child.tolist()) for c in row if c >= 0}
    backward = {(p, c) for c, row in enumerate(table.parent.tolist()) for p in row if p >= 0}
    backward |= {(p, c) for c, p in enumerate(table.stopped.tolist()) if p >= 0}
    assert forward == backward


def test_the_table_moves_as_the_environment_does(environment, generator):
    table = TableEnvironment(environment)
    s, a, child = random_walks(environment, 300, generator)
    number = table.index(s)
    assert torch.equal(table.step(number, a), table.index(child))
    assert torch.equal(table.forward_mask(number), environment.forward_mask(s))
    assert torch.equal(table.observe(number), environment.observe(s))
    assert torch.equal(table.log_partial_reward(number), environment.log_partial_reward(s))
    ended = environment.terminal(child)
    x = child[ended]
    assert torch.equal(table.terminal(table.index(child)), ended)
    assert torch.equal(table.log_reward(table.index(x)), environment.log_reward(x))
    with pytest.raises(ValueError, match="none that"):
        table.index(x + 17)


def test_the_partial_reward_of_a_terminal_state_is_its_reward(environment, generator):
    _, _, child = random_walks(environment, 100, generator)
    x = child[environment.terminal(child)]
    assert torch.equal(environment.log_partial_reward(x), environment.log_reward(x))


def test_samples_come_back_from_a_file(environment, generator, tmp_path):
    _, _, child = random_walks(environment, 20, generator)
    x = child[environment.terminal(child)]
    samples = Samples(x, environment.log_reward(x))
    for name in ("s.csv", "s.jsonl"):
        environment.write(samples, tmp_path / name)
        again = environment.read(tmp_path / name)
        assert torch.equal(again.x, x)
        torch.testing.assert_close(again.log_reward, samples.log_reward)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no object"),
        ("x,log_reward\n", "no object"),
        ("y\n1 2\n", "no column 'x'"),
        ("x\n1 2 3\n", "no grid point"),
        ("x\n1 9\n", "no grid point"),
        ("x\nnan nan\n", "nan"),
    ],
)
def test_a_bad_file_of_samples_is_refused_with_its_name(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"bad\.csv.*{message}"):
        HyperGrid(HyperGridConfig(side=5)).read(path)


# HyperGrid


def test_hypergrid_counts_states_and_modes():
    grid = HyperGrid(HyperGridConfig(dimensions=2, side=8, reward="standard"))
    table = TableEnvironment(grid)
    assert (len(table.states), table.n_inner, grid.max_len) == (128, 64, 15)
    modes = grid.modes(table.states[table.n_inner :])
    assert grid.n_modes == 4
    assert len(torch.unique(modes[modes >= 0])) == 4
    best = grid.log_reward(table.states[table.n_inner :])
    assert torch.equal(modes >= 0, best > best.max() - 1e-6)
    assert HyperGrid(HyperGridConfig(dimensions=4, side=8, reward="standard")).n_modes == 16


def plain_reward(kind, x, side):
    a = [abs(v / (side - 1) - 0.5) for v in x]
    if kind == "cosine":
        value = 1.0
        for v in a:
            value *= (np.cos(50 * v) + 1) * np.exp(-0.5 * (5 * v) ** 2) / np.sqrt(2 * np.pi)
        return 0.1 + value
    if kind == "waves":
        return np.exp(sum(6 * np.sin(3 * np.pi * v / (side - 1)) ** 2 - 3 for v in x))
    r0 = {"standard": 1e-1, "hard": 1e-3}[kind]
    return r0 + 0.5 * all(0.25 < v <= 0.5 for v in a) + 2.0 * all(0.3 < v < 0.4 for v in a)


@pytest.mark.parametrize("kind", ["standard", "hard", "cosine", "waves"])
def test_hypergrid_rewards_equal_a_plain_loop(kind):
    points = list(product(range(9), repeat=2))
    expected = [np.log(plain_reward(kind, p, 9)) for p in points]
    np.testing.assert_allclose(log_reward_of(kind, torch.tensor(points), 9).numpy(), expected, atol=1e-12)


# Sets


def test_log_z_of_sets_equals_brute_force():
    environment = SetGeneration(SetGenerationConfig(n_items=9, set_size=4, energy_seed=3))
    brute = np.logaddexp.reduce([-environment.energies[list(c)].sum().item() for c in combinations(range(9), 4)])
    assert environment.log_partition() == pytest.approx(brute, abs=1e-12)
    assert TableEnvironment(environment).log_partition() == pytest.approx(brute, abs=1e-6)


def test_the_highest_reward_of_sets_is_that_of_the_lowest_energies():
    environment = SetGeneration(SetGenerationConfig(n_items=9, set_size=4, energy_seed=3))
    assert environment.highest_log_reward() == pytest.approx(TableEnvironment(environment).highest_log_reward())


def test_elementary_symmetric_polynomials_of_known_weights():
    found = log_elementary_symmetric(torch.tensor([1.0, 2.0, 3.0]).log(), 3).exp()
    torch.testing.assert_close(found, torch.tensor([1.0, 6.0, 11.0, 6.0], dtype=torch.float64))


def test_energies_come_from_csv_and_json(tmp_path):
    (tmp_path / "e.csv").write_text("item,energy\n1,0.5\n0,-0.25\n2,1\n")
    energies, size = read_energies(tmp_path / "e.csv")
    assert (energies.tolist(), size) == ([-0.25, 0.5, 1.0], None)
    (tmp_path / "e.json").write_text('{"small": {"n_items": 2, "set_size": 1, "energies": [0.1, 0.2]}}')
    assert read_energies(tmp_path / "e.json", "small")[1] == 1
    made = SetGeneration(SetGenerationConfig(size="small", energies=tmp_path / "e.json"))
    assert (made.n_items, made.set_size) == (2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,energy\n0,nan\n1,0\n", "finite"),
        ("item,energy\n0,1\n0,2\n", "each once"),
        ("item,energy\n", "at least one energy"),
        ("item,value\n0,1\n", "no column or entry 'energy'"),
        ("item,energy\n0,x\n", "x"),
    ],
)
def test_bad_energies_are_refused_with_the_file_name(tmp_path, text, message):
    path = tmp_path / "e.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"e\.csv.*{message}"):
        read_energies(path)
    with pytest.raises(DataError, match="No such file"):
        read_energies(tmp_path / "none.csv")


def broken_nan(s):
    return s.sum(1) * float("nan")


def broken_shape(s):
    return s


def count(s):
    return s.sum(1)


def test_an_energy_of_the_user_is_used_and_checked():
    def made(name):
        return SetGeneration(SetGenerationConfig(n_items=4, set_size=2, energy=f"{__name__}:{name}"))

    x = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]])
    assert made("count").log_reward(x).tolist() == [-2.0, -2.0]
    with pytest.raises(PluginError, match=r"broken_nan returned nan for the set '0 1'"):
        made("broken_nan").log_reward(x)
    with pytest.raises(PluginError, match=r"shape \(2, 4\) for 2 sets"):
        made("broken_shape").log_reward(x)
    with pytest.raises(PluginError, match="cannot be imported"):
        made("no_such_function")


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (SetGenerationConfig, {"n_items": -3, "set_size": 2}, r"task\.n_items = -3"),
        (HyperGridConfig, {"dimensions": 0}, r"task\.dimensions = 0"),
        (HyperGridConfig, {"reward": "harder"}, "'hard'"),
        (BitSequenceConfig, {"bits": 30, "word": 4}, "multiple of 8"),
    ],
)
def test_bad_sizes_are_refused_by_name(model, values, message):
    with pytest.raises(ConfigError, match=message):
        validate(model, values, "task")


def test_energies_of_a_size_of_the_paper_need_no_set_size(tmp_path):
    (tmp_path / "e.csv").write_text("item,energy\n" + "".join(f"{i},0.5\n" for i in range(30)))
    made = SetGeneration(SetGenerationConfig(size="small", energies=tmp_path / "e.csv"))
    assert (made.n_items, made.set_size) == (30, 20)
    with pytest.raises(ConfigError, match="set_size is not given; with 30 items"):
        SetGeneration(SetGenerationConfig(energies=tmp_path / "e.csv"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_items": 3, "set_size": 9}, r"set_size = 9; with 3 items it must be from 1 to 3"),
        ({"n_items": 3}, r"set_size is not given; with 3 items"),
    ],
)
def test_a_set_that_cannot_be_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        SetGeneration(SetGenerationConfig(**values))


# Bits


def test_bit_sequences_count_the_distance_to_the_nearest_mode(generator):
    environment = BitSequence(BitSequenceConfig(bits=16, word=4, n_modes=5))
    modes = make_modes(5, 16, 0)
    _, _, child = random_walks(environment, 50, generator)
    x = child[environment.terminal(child)]
    strings = environment.describe(x)
    for string, log_reward in zip(strings, environment.log_reward(x).tolist(), strict=True):
        bits = np.array([int(c) for c in string])
        nearest = min(int((bits != mode).sum()) for mode in modes.numpy())
        assert log_reward == pytest.approx(3.0 * (1 - nearest / 16), abs=1e-6)
    exact = environment.parse(["".join(map(str, mode)) for mode in modes.tolist()])
    assert environment.log_reward(exact).tolist() == [3.0] * 5
    assert (environment.modes(exact) >= 0).all()


def test_the_partial_reward_of_bits_ignores_what_is_not_written():
    environment = BitSequence(BitSequenceConfig(bits=16, word=4, n_modes=5))
    assert environment.log_partial_reward(environment.start(1)).tolist() == [3.0]
