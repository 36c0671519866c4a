"""The tasks: their graphs, objectives and files; every objective trains on each of them."""

import math
import sys
from itertools import combinations_with_replacement, product
from pathlib import Path

import headwater
import numpy as np
import pytest
import torch
from headwater.errors import ConfigError, DataError, PluginError, UsageError
from headwater_gfn import pareto
from headwater_gfn.environment import Samples
from headwater_gfn.evaluation import evaluate
from headwater_gfn.exact import exact_flows
from headwater_gfn.objective import detailed_balance, terminate
from headwater_gfn.rollout import roll_out
from headwater_gfn.table import TableEnvironment
from headwater_gfn_op.tasks.bag import Bag, BagConfig, make_modes
from headwater_gfn_op.tasks.grid import FUNCTIONS, ObjectiveGrid, ObjectiveGridConfig
from headwater_gfn_op.tasks.nas import OPERATIONS, NASBench201, NASBench201Config
from headwater_gfn_op.tasks.strings import QM9Strings, QM9StringsConfig, SEHStrings, SEHStringsConfig, read_trees
from torch import nn

DATA = next(
    (p / "shared/data/gfn-op" for p in Path(__file__).resolve().parents if (p / "shared/data/gfn-op").is_dir()), None
)


def accuracies(path):
    np.savez(path, acc=np.random.default_rng(0).random((15625, 2)), columns=np.array(["a", "b"]))
    return path


def trees(path):
    """Two trees over 6 x 18 features: the first splits twice, the second once."""
    np.savez(
        path, offsets=np.array([0, 5, 8]), baseline=1.0,
        value=np.array([0.0, 0.0, 1.0, 2.0, 3.0, 0.0, 10.0, 20.0]), feature_idx=np.array([0, 18, 0, 0, 0, 107, 0, 0]),
        threshold=np.full(8, 0.5), left=np.array([1, 2, 0, 0, 0, 1, 0, 0]), right=np.array([4, 3, 0, 0, 0, 2, 0, 0]),
        is_leaf=np.array([0, 0, 1, 1, 1, 0, 1, 1]),
    )  # fmt: skip
    return path


@pytest.fixture(params=["grid", "bag", "nas"])
def environment(request, tmp_path):
    return {
        "grid": lambda: ObjectiveGrid(ObjectiveGridConfig(side=5)),
        "bag": lambda: Bag(BagConfig(letters=4, size=5, repeats=3)),
        "nas": lambda: NASBench201(NASBench201Config(table=accuracies(tmp_path / "t.npz"))),
    }[request.param]()


def walks(environment, n):
    generator = torch.Generator().manual_seed(0)
    s, found = environment.start(n), []
    while len(s):
        a = torch.multinomial(environment.forward_mask(s).float(), 1, generator=generator).squeeze(1)
        child = environment.step(s, a)
        found.append((s, a, child))
        s = child[~environment.terminal(child)]
    return (torch.cat(v) for v in zip(*found, strict=True))


def test_undo_is_the_inverse_of_step(environment):
    s, a, child = walks(environment, 800)
    going = ~(environment.stops & (a == environment.n_actions - 1))
    b = environment.backward_action(s[going], a[going])
    assert environment.backward_mask(child[going]).gather(1, b.unsqueeze(1)).all()
    assert torch.equal(environment.undo(child[going], b), s[going])
    assert torch.equal(environment.forward_action(child[going], b), a[going])
    if environment.stops:
        assert torch.equal(environment.unstop(child[~going]), s[~going])
        assert environment.terminal(child[~going]).all()


def test_parents_found_backward_are_those_found_forward_and_all_states_are_counted(environment):
    table = TableEnvironment(environment)
    assert len(table.states) == environment.n_states
    forward = {(s, c) for s, row in enumerate(table.child.tolist()) for c in row if c >= 0}
    backward = {(p, c) for c, row in enumerate(table.parent.tolist()) for p in row if p >= 0}
    backward |= {(p, c) for c, p in enumerate(table.stopped.tolist()) if p >= 0}
    assert forward == backward


class Looked(nn.Module):
    def __init__(self, table, flows):
        super().__init__()
        self.tables = [v.clamp_min(-1e9) for v in (flows.log_pf, flows.log_pb, flows.log_flow)]
        table.observe = lambda s: s

    def forward_logits(self, s):
        return self.tables[0][s.clamp_max(len(self.tables[0]) - 1)]

    def forward(self, s):
        return self.forward_logits(s), self.tables[1][s], self.tables[2][s]


def test_at_the_exact_flows_detailed_balance_is_zero(environment):
    table = TableEnvironment(environment)
    policy = Looked(table, exact_flows(table))
    trajectories = roll_out(table, policy, 64, torch.Generator().manual_seed(0))
    terms = evaluate(table, policy, trajectories)
    log_reward = table.log_reward(trajectories.last).double()
    flow = terminate(terms.log_flow, log_reward, trajectories.length)
    assert float(detailed_balance(terms.log_pf, terms.log_pb, flow, trajectories.length)) < 1e-10


def test_words_come_back(environment):
    _, _, child = walks(environment, 30)
    x = child[environment.terminal(child)]
    assert torch.equal(environment.parse(environment.describe(x)), x)
    with pytest.raises(ValueError, match=r"'nothing' is no|invalid literal"):
        environment.parse(["nothing"])


# The grid


def test_the_true_fronts_have_the_known_sizes():
    pytest.importorskip("moocore")
    names = ["branin", "currin", "shubert", "beale"]
    for d, n in ((2, 36), (3, 104), (4, 372)):
        grid = ObjectiveGrid(ObjectiveGridConfig(objectives=names[:d]))
        table = TableEnvironment(grid)
        assert len(table.states) - table.n_inner == 1023
        from headwater_gfn.objective_pictures import front_mask

        assert int(front_mask(grid.objectives(table.states[table.n_inner :])).sum()) == n
        assert len(grid.front) <= n


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_functions_equal_their_formulae_point_by_point(name):
    def plain(x, y):
        if name == "currin":
            a, b = x / 2 + 0.5, y / 2 + 0.5
            top, bottom = 2300 * a**3 + 1900 * a**2 + 2092 * a + 60, 100 * a**3 + 500 * a**2 + 4 * a + 20
            return (1 - math.exp(-1 / (2 * b + 1e-10))) * top / bottom / 13.77
        if name == "branin":
            a, b = 15 * (x / 2 + 0.5) - 5, 15 * (y / 2 + 0.5)
            bowl = (b - 5.1 / (4 * math.pi**2) * a * a + 5 / math.pi * a - 6) ** 2
            return 1 - (bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(a) + 10) / 308.13
        if name == "shubert":
            one, two = (sum(i * math.cos((i + 1) * p + i) for i in range(1, 6)) for p in (-1.5 * x, -1.5 * y))
            return (one * two + 186.8) / 397
        return ((1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2) / 38.8

    x, y = (torch.rand(50, dtype=torch.float64) * 2 - 1 for _ in range(2))
    expected = torch.tensor([plain(*p) for p in zip(x.tolist(), y.tolist(), strict=True)], dtype=torch.float64)
    torch.testing.assert_close(FUNCTIONS[name](x, y), expected, rtol=1e-10, atol=1e-12)


def left(points):
    return -points[:, 0]


def some_nan(points):
    return torch.where(points[:, 0] > 0.9, torch.nan, points[:, 0])


def too_few(points):
    return points[:-1, 0]


def test_objectives_of_the_user_are_taken_by_import_string(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    grid = ObjectiveGrid(ObjectiveGridConfig(side=5, objectives=("branin", "mine:left"), minimise=("left",)))
    x = grid.parse(["0 2", "4 1"])
    assert grid.names == ("branin", "left")
    assert grid.raw_objectives(x)[:, 1].tolist() == [1.0, -1.0]
    assert grid.objectives(x)[:, 1].tolist() == [-1.0, 1.0]
    branin, left_of = grid.hypervolume_reference
    assert (branin, left_of) == (0.0, -1.0)
    samples = Samples(x, grid.log_reward(x))
    if pareto.available():
        (a, u), (b, v) = grid.objectives(x).tolist()
        low, high = sorted([(a, u + 1), (b, v + 1)])
        expected = low[0] * low[1] + (high[0] - low[0]) * high[1] if low[1] > high[1] else high[0] * high[1]
        assert grid.metrics(samples)["hypervolume"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("mine:some_nan", PluginError, r"'mine:some_nan' gave nan for \[1.0, "),
        ("mine:too_few", PluginError, r"'mine:too_few' gave an array of shape \(\d+,\) for \d+ objects"),
        ("mine:absent", PluginError, "task.objectives = 'mine:absent' cannot be imported"),
        ("braninn", ConfigError, "no function 'braninn'; did you mean 'branin'"),
    ],
)
def test_bad_objectives_are_refused(monkeypatch, tmp_path, name, error, message):
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    overrides = {"task": {"side": 5, "objectives": ["branin", name]}, "fit": {"max_steps": 1, "accelerator": "cpu"}}
    with pytest.raises(error, match=message):
        headwater.train("gfn-op", tmp_path / "run", overrides=overrides)


# Bags


def test_modes_of_bags_are_a_quarter_of_the_fillers_of_each_letter():
    modes = make_modes(7, 13, 7, 0)
    assert len(modes) == 7 * math.ceil(math.comb(11, 6) / 4)
    assert (modes.sum(1) == 13).all()
    assert ((modes == 7).sum(1) == 1).all()
    assert not torch.equal(modes, make_modes(7, 13, 7, 1))
    assert torch.equal(modes, make_modes(7, 13, 7, 0))


def test_the_worth_of_a_bag_is_by_its_most_frequent_letter_and_the_modes():
    bag = Bag(BagConfig(letters=3, size=4, repeats=3, mode_seed=2))
    modes = {tuple(m) for m in make_modes(3, 4, 3, 2).tolist()}
    bags = [[letters.count(i) for i in range(3)] for letters in combinations_with_replacement(range(3), 4)]
    worth = bag.objectives(torch.tensor(bags))[:, 0].tolist()
    for counts, value in zip(bags, worth, strict=True):
        assert value == (30.0 if tuple(counts) in modes else 10.0 if max(counts) >= 3 else 0.01)
    assert bag.n_modes == len(modes) == 3


# Cells


def test_a_cell_is_its_number_in_the_table(tmp_path):
    environment = NASBench201(NASBench201Config(table=accuracies(tmp_path / "t.npz"), columns=("b",)))
    table = np.random.default_rng(0).random((15625, 2))
    words = ["|".join(OPERATIONS[i] for i in (0, 1, 2, 3, 4, 0)), "|".join([OPERATIONS[4]] * 6)]
    found = environment.objectives(environment.parse(words))[:, 0].tolist()
    number = 1 * 5**4 + 2 * 5**3 + 3 * 5**2 + 4 * 5
    assert found == [table[number, 1], table[15624, 1]]


# Strings of blocks


def test_the_trees_are_walked_node_by_node(tmp_path):
    environment = SEHStrings(SEHStringsConfig(trees=trees(tmp_path / "trees.npz"), mode_score=23.5))
    assert environment.n_states is None
    for first, second, last in product((0, 1), (0, 1), (16, 17)):
        x = environment.parse([f"{first} {second} 3 4 5 {last}"])
        # feature 0: block 0 at place 0; feature 18: block 0 at place 1; feature 107: block 17 at place 5
        one = 3.0 if first == 0 else 2.0 if second == 0 else 1.0
        two = 20.0 if last == 17 else 10.0
        assert float(environment.raw_objectives(x)) == one + two + 1.0
        assert (int(environment.modes(x)) >= 0) == (one + two + 1.0 >= 23.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": np.zeros(8, dtype=int)}, r"left\[0\] is no later node of its tree"),
        ({"right": np.full(8, 7)}, r"right\[0\] is no later node of its tree"),
        ({"offsets": np.array([0, 9])}, "offsets must rise from 0 to the number of nodes, 8"),
        ({"feature_idx": np.full(8, 108)}, "a node looks at feature 108 of 108"),
        ({"value": np.full(8, np.nan)}, "no finite number"),
        ({"threshold": np.zeros(3)}, r"threshold has the shape \(3,\)"),
        ({"baseline": None}, "lacks the arrays baseline"),
    ],
)
def test_bad_trees_are_refused(tmp_path, change, message):
    with np.load(trees(tmp_path / "good.npz")) as file:
        arrays = {k: file[k] for k in file.files} | change
    np.savez(tmp_path / "bad.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(DataError, match=rf"bad\.npz.*{message}"):
        read_trees(tmp_path / "bad.npz", 108)


def test_tasks_that_need_a_file_say_so():
    for made, name in (
        (lambda: QM9Strings(QM9StringsConfig()), "qm9-strings needs task.table"),
        (lambda: SEHStrings(SEHStringsConfig()), "seh-strings needs task.trees"),
        (lambda: NASBench201(NASBench201Config()), "nas-bench-201 needs task.table"),
    ):
        with pytest.raises(ConfigError, match=name):
            made()


@pytest.mark.skipif(DATA is None, reason="the tables are not here")
def test_the_modes_of_the_users_tables_are_the_published_number():
    assert QM9Strings(QM9StringsConfig(table=DATA / "qm9str.npz")).n_modes == 805
    from headwater_gfn.tasks.strings import TFBind8, TFBind8Config

    environment = TFBind8(TFBind8Config(table=DATA / "tfbind8.npz"))
    assert environment.n_modes == 328


# Training on each of them


def settings(name, tmp_path):
    return {
        "objective-grid": {"side": 6},
        "bag": {"letters": 3, "size": 4, "repeats": 3},
        "strings": {"alphabet": "ABC", "length": 3},
        "hypergrid": {"side": 5},
        "seh-strings": {"trees": str(trees(tmp_path / "trees.npz"))},
        "objective-fragments": {"max_blocks": 3, "convolutions": 2},
    }[name]


OBJECTIVES = ("op-tb", "op-db", "op-subtb", "op-fm", "tb", "db", "subtb", "fm")
TASKS = ("objective-grid", "bag", "strings", "hypergrid", "seh-strings", "objective-fragments")


def train(path, task, task_settings, **trainer):
    overrides = {
        "task": task_settings,
        "trainer": {"hidden": [8], "batch_size": 4, "backward": "learned", "decay_steps": 5, **trainer},
        "sampler": {"block_size": 8},
        "fit": {"max_steps": 3, "accelerator": "cpu", "validate_every": 0},
    }
    return headwater.train("gfn-op", path, task=task, overrides=overrides)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_on_every_task(tmp_path, task, objective):
    if task == "objective-fragments":
        pytest.importorskip("rdkit")
    run = train(tmp_path / "run", task, settings(task, tmp_path), objective=objective)
    assert run.metrics()[0]["loss"] >= 0
    assert math.isfinite(run.metrics()[-1]["valid/different"])


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_written_and_read_back_and_pictures_are_made(tmp_path, task):
    if task == "objective-fragments":
        pytest.importorskip("rdkit")
    run = train(tmp_path / "run", task, settings(task, tmp_path), replay="uniform", backward_trajectories=2)
    model = headwater.load(run, device="cpu")
    for suffix in model.task.suffixes:
        path = model.sample_to(tmp_path / f"objects{suffix}", 11)
        again = model.task.read(path)
        assert torch.equal(again.x, torch.cat([block.x for block in model.sample(11)]))
    assert all(panel.title for panel in model.task.panels(run))
    assert model.evaluate(n=16)


def test_the_objectives_of_samples_are_columns_of_their_table(tmp_path):
    run = train(tmp_path / "run", "objective-grid", {"side": 6, "minimise": ["currin"]})
    model = headwater.load(run, device="cpu")
    lines = model.sample_to(tmp_path / "points.csv", 3).read_text().splitlines()
    assert lines[0] == "x,branin,currin,log_reward"
    x, branin, currin, _ = lines[1].split(",")
    expected = model.task.raw_objectives(model.task.parse([x]))[0].tolist()
    assert [float(branin), float(currin)] == pytest.approx(expected)


def test_molecules_have_the_objectives_that_are_asked_for():
    pytest.importorskip("rdkit")
    from headwater_gfn_op.tasks.fragments import ObjectiveFragments, ObjectiveFragmentsConfig, lightness
    from rdkit import Chem
    from rdkit.Chem import QED

    environment = ObjectiveFragments(ObjectiveFragmentsConfig(objectives=("qed", "mw"), max_blocks=3))
    _, _, child = walks(environment, 6)
    x = child[environment.terminal(child)]
    found = environment.objectives(x)
    for row, molecule in zip(found.tolist(), environment.molecules(x), strict=True):
        assert row == pytest.approx([QED.qed(molecule.mol), lightness(molecule.mol)])
    assert lightness(Chem.MolFromSmiles("C")) == 1.0
    assert lightness(Chem.MolFromSmiles("C" * 40)) == pytest.approx((300 - 563.1) / 700 + 1, abs=1e-3)
    assert lightness(Chem.MolFromSmiles("I" + "CI" * 0 + "C(I)(I)C(I)(I)C(I)(I)I")) == 0.0


def test_one_objective_is_refused_where_a_partial_order_is_asked_for(tmp_path):
    for setting in ("order", "replay"):
        with pytest.raises(UsageError, match=rf"trainer\.{setting} = 'pareto' needs a partial order.* one objective"):
            train(tmp_path / "run", "objective-grid", {"side": 6, "objectives": ["branin"]}, **{setting: "pareto"})
    with pytest.raises(UsageError, match="pc-tb prefers among several objectives"):
        train(tmp_path / "run", "bag", settings("bag", tmp_path), objective="pc-tb")
