import gzip
import pickle
from itertools import pairwise

import headwater
import numpy as np
import pytest
import torch
from headwater.errors import DataError
from headwater_gfn.tasks.strings import Strings, StringsConfig
from headwater_gfn_op.convert import from_official, read_official
from torch import nn

SIDE = 6


def perceptron(*widths):
    layers = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers[:-1])


def grid_networks():
    torch.manual_seed(0)
    return perceptron(2 * SIDE + 3, 9, 8, 3), perceptron(3, 5, 4, 1)


def grid_file(path, change=lambda arrays: arrays):
    arrays = [p.detach().numpy() for net in grid_networks() for p in net.parameters()]
    with gzip.open(path, "wb") as file:
        pickle.dump({"params": change(arrays), "losses": [1.0]}, file)
    return path


def observed(n=7):
    coordinates = torch.randint(0, SIDE, (n, 2), generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.one_hot(coordinates, SIDE).flatten(1).float()


def test_a_grid_checkpoint_gives_the_same_outputs_with_its_constant_condition_folded_in(tmp_path):
    state, hyperparameters = read_official([grid_file(tmp_path / "params.pkl.gz")])
    policy = from_official(state, **hyperparameters)["policy"]
    x = observed()
    expected = grid_networks()[0](torch.cat([x, torch.ones(len(x), 3)], 1))
    torch.testing.assert_close(policy.forward_logits(x), expected)
    assert torch.equal(policy(x)[1], torch.zeros(len(x), 2))


def test_a_grid_checkpoint_keeps_its_preference_where_asked(tmp_path):
    state, _ = read_official([grid_file(tmp_path / "params.pkl.gz")])
    policy = from_official(state, condition="preference")["policy"]
    policy.set_condition(torch.tensor([0.2, 0.8]), 4.0)
    x, condition = observed(), torch.tensor([0.2, 0.8, 4.0])
    network, z = grid_networks()
    torch.testing.assert_close(policy.forward_logits(x), network(torch.cat([x, condition.expand(len(x), 3)], 1)))
    torch.testing.assert_close(policy.log_z(), z(condition).squeeze(0))


@pytest.mark.parametrize("condition", ["ones", "preference"])
def test_a_converted_grid_is_a_run_to_sample_from(tmp_path, condition):
    path = grid_file(tmp_path / "params.pkl.gz")
    run = headwater.convert("gfn-op", [path], tmp_path / "run", overrides={"official": {"condition": condition}})
    assert run.config()["task"]["side"] == SIDE
    assert run.config()["trainer"]["hidden"] == [9, 8]
    assert len(headwater.sample(run, tmp_path / "x.csv", 5).read_text().splitlines()) == 6


class Estimator(nn.Module):
    def __init__(self, torso, outputs):
        super().__init__()
        self.torso, self.last_layer = torso, nn.Linear(12, outputs)

    def forward(self, x):
        return self.last_layer(self.torso(x))


def estimators():
    torch.manual_seed(0)
    torso = nn.Sequential(nn.Linear(30, 11), nn.ReLU(), nn.Linear(11, 12), nn.ReLU())
    return {name: Estimator(torso, n) for name, n in (("pf", 31), ("pb", 30), ("logF", 1))}


def test_estimators_of_cells_become_one_policy(tmp_path):
    paths = []
    for name, made in estimators().items():
        paths.append(tmp_path / f"{name}.pt")
        torch.save(made.state_dict(), paths[-1])
    x = torch.rand(6, 30)
    for chosen in (paths, list(reversed(paths))):
        state, _ = read_official(chosen)
        forward, backward, flow = from_official(state)["policy"](x)
        expected = [made(x) for made in estimators().values()]
        torch.testing.assert_close(torch.cat([forward, backward, flow.unsqueeze(1)], 1), torch.cat(expected, 1))
    np.savez(tmp_path / "t.npz", acc=np.random.default_rng(0).random(15625))
    overrides = {"task": {"table": str(tmp_path / "t.npz")}}
    run = headwater.convert("gfn-op", paths, tmp_path / "run", overrides=overrides)
    assert run.manifest.task == "nas-bench-201"
    assert run.config()["trainer"]["hidden"] == [11, 12]
    with pytest.raises(DataError, match="an estimator with 31 outputs"):
        read_official([paths[0], paths[0]])


def string_parts():
    torch.manual_seed(0)
    parts = {}
    for name in ("policy_fwd", "policy_back"):
        pair = []
        for widths in ((32, 8, 8), (16, 8, 1)):
            made = nn.Module()
            made.net = perceptron(*widths)
            pair.append(made)
        parts[name] = pair
    return parts


def test_a_string_policy_scores_children_and_parents(tmp_path):
    parts = string_parts()
    content = {name: tuple(m.state_dict() for m in pair) for name, pair in parts.items()} | {"logZ": torch.tensor(5.0)}
    torch.save(content, tmp_path / "strings.pt")
    state, _ = read_official([tmp_path / "strings.pt"])
    policy = from_official(state)["policy"]
    environment = Strings(StringsConfig(length=8))
    s = environment.step(environment.start(1), torch.tensor([2]))
    s = environment.step(s, torch.tensor([1]))
    encoder, scorer = (m.net for m in parts["policy_fwd"])
    own = encoder(environment.observe(s))
    logits = policy.forward_logits(environment.observe(s))
    for a in range(8):
        child = environment.step(s, torch.tensor([a]))
        torch.testing.assert_close(logits[0, a], scorer(torch.cat([own, encoder(environment.observe(child))], 1))[0, 0])
    encoder, scorer = (m.net for m in parts["policy_back"])
    backward = policy(environment.observe(s))[1]
    for b in range(2):
        parent = environment.undo(s, torch.tensor([b]))
        pair = torch.cat([encoder(environment.observe(v)) for v in (s, parent)], 1)
        torch.testing.assert_close(backward[0, b], scorer(pair)[0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:-1], "weights and biases in turn"),
        (lambda a: a[:4] + a[6:], "as many layers of the policy as of Z"),
        (lambda a: [a[0][:, :-1], *a[1:]], "no network of a two-dimensional grid"),
        (lambda a: a[:6], "as many layers of the policy as of Z"),
        (lambda a: [*a[:2], a[2][:, :-1], *a[3:]], "model.2.weight does not fit the layer before"),
    ],
)
def test_a_grid_of_another_layout_is_refused(tmp_path, change, message):
    path = grid_file(tmp_path / "params.pkl.gz", change)
    with pytest.raises(DataError, match=message):
        from_official(read_official([path])[0])


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(DataError, match=r"other\.pt is no checkpoint of OP-GFN"):
        read_official([tmp_path / "other.pt"])
    path = grid_file(tmp_path / "params.pkl.gz")
    with pytest.raises(DataError, match="one file a checkpoint"):
        read_official([path, path])
    with pytest.raises(DataError, match="condition = 'ones' or 'preference'"):
        from_official(read_official([path])[0], condition="none")
    content = path.read_bytes()
    (tmp_path / "half.pkl.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"half\.pkl\.gz"):
        read_official([tmp_path / "half.pkl.gz"])


def test_a_string_policy_of_another_size_is_refused():
    state = {"policy_fwd.0.net.0.weight": torch.zeros(8, 33)}
    with pytest.raises(DataError, match="33 features"):
        from_official(state)
