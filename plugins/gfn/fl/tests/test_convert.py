import headwater
import pytest
import torch
from headwater.errors import DataError
from headwater_gfn_fl.convert import from_official, read_official
from torch import nn

ITEMS = 7


def official():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(ITEMS, 9),
        nn.LeakyReLU(0.01),
        nn.Linear(9, 11),
        nn.LeakyReLU(0.01),
        nn.Linear(11, 2 * ITEMS + 1),
    )


def test_converted_weights_give_the_same_outputs(tmp_path):
    net = official()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    state, hyperparameters = read_official([tmp_path / "net.pt"])
    policy = from_official(state, **hyperparameters)["policy"]
    x = torch.randint(2, (5, ITEMS)).float()
    forward, backward, flow = policy(x)
    torch.testing.assert_close(torch.cat([forward, backward, flow.unsqueeze(1)], 1), net(x))


def test_a_converted_checkpoint_is_a_run_to_sample_from(tmp_path):
    torch.save({"state_dict": official().state_dict()}, tmp_path / "net.pt")
    run = headwater.convert("gfn-fl", [tmp_path / "net.pt"], tmp_path / "run", overrides={"task": {"set_size": 3}})
    assert run.config()["trainer"]["hidden"] == [9, 11]
    path = headwater.sample(run, tmp_path / "sets.csv", 5)
    assert len(path.read_text().splitlines()) == 6
    assert run.manifest.converted_from[0]["path"].endswith("net.pt")


def test_log_z_of_trajectory_balance_comes_along():
    modules = from_official({**official().state_dict(), "Z": torch.tensor([2.5])})
    assert float(modules["scalars"]["log_z"]) == 2.5


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("2.bias"), "2.bias"),
        (lambda s: s.update({"0.weight": torch.zeros(9, 4)}), "15 outputs; with 4 items"),
        (lambda s: s.update({"2.weight": torch.zeros(11, 8)}), "2.weight"),
        (lambda s: s.clear(), "no official set network"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused(spoil, message):
    state = dict(official().state_dict())
    spoil(state)
    with pytest.raises(DataError, match=message):
        from_official(state)


def test_a_truncated_file_is_refused_by_name(tmp_path):
    torch.save(official().state_dict(), tmp_path / "net.pt")
    content = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"half\.pt"):
        read_official([tmp_path / "half.pt"])
