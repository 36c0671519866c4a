"""Checkpoints of the published explorer; there are no reference weights, so the layout alone is tested."""

from itertools import pairwise

import headwater
import pytest
import torch
from headwater.errors import DataError
from headwater_gfn_oc.convert import config_of, from_official, read_official
from torch import nn


def layers(*widths):
    parts = []
    for i, o in pairwise(widths):
        parts += [nn.Linear(i, o), nn.LeakyReLU()]
    return nn.Sequential(*parts[:-1])


@pytest.fixture
def state():
    torch.manual_seed(0)
    found = dict(layers(16, 256, 256, 6).state_dict())
    for name in ("random_target_network", "predictor_network"):
        found |= {f"{name}.{k}": v for k, v in layers(16, 256, 256, 128).state_dict().items()}
    return {**found, "Z": torch.tensor(0.25)}


def test_outputs_are_those_of_the_layout(state):
    modules = from_official(state)
    network = layers(16, 256, 256, 6)
    network.load_state_dict({k: v for k, v in state.items() if k[0].isdigit()})
    observed = torch.rand(5, 16)
    forward, backward, flow = modules["explorer"](observed)
    expected = network(observed)
    assert torch.allclose(torch.cat([forward, backward, flow.unsqueeze(1)], 1), expected, atol=1e-6)
    random = layers(16, 256, 256, 128)
    random.load_state_dict({k.partition(".")[2]: v for k, v in state.items() if k.startswith("random")})
    assert torch.allclose(modules["curiosity"](observed)[1], random(observed), atol=1e-6)
    assert float(modules["scalars"]["log_z"].detach()) == 0.25
    assert config_of(state, {})["task"] == {"dimensions": 2, "side": 8}


def test_converted_and_then_sampled_and_trained_on(state, tmp_path):
    torch.save({"policy": {k: v for k, v in state.items() if k[0].isdigit()}}, tmp_path / "policy.pt")
    torch.save({k: v for k, v in state.items() if not k[0].isdigit()}, tmp_path / "rest.pt")
    run = headwater.convert("gfn-oc", [tmp_path / "policy.pt", tmp_path / "rest.pt"], tmp_path / "run")
    [block] = headwater.load(run.path, device="cpu").sample(256)
    assert block.x.shape == (256, 3)
    further = headwater.train(
        "gfn-oc", tmp_path / "on", from_runs=[run.path],
        overrides={
            "task": {"side": 8}, "trainer": {"mode": "paper", "hidden": [8], "batch_size": 2},
            "fit": {"max_steps": 0, "accelerator": "cpu"},
        },
    )  # fmt: skip
    kept = further.load(0, "model")["modules"]["explorer"]
    assert torch.equal(kept["head.bias"], state["4.bias"])


def test_what_is_no_explorer_is_refused(state, tmp_path):
    with pytest.raises(DataError, match=r"no explorer of the published layout .*: 4.bias"):
        from_official({k: v for k, v in state.items() if k != "4.bias"})
    with pytest.raises(DataError, match=r"odd\.weight"):
        from_official({**state, "odd.weight": torch.zeros(1)})
    with pytest.raises(DataError, match="16 inputs and 8 outputs"):
        from_official({**{k: v for k, v in state.items() if k[0].isdigit()},
                       "4.weight": torch.zeros(8, 256), "4.bias": torch.zeros(8)})  # fmt: skip
    with pytest.raises(DataError, match=r"2.weight has the shape \(256, 5\)"):
        from_official({**state, "2.weight": torch.zeros(256, 5)})
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="holds a list"):
        read_official([tmp_path / "list.pt"])
    torch.save({"Z": 3}, tmp_path / "number.pt")
    with pytest.raises(DataError, match="Z is a int"):
        read_official([tmp_path / "number.pt"])
    torch.save({"Z": torch.zeros(())}, tmp_path / "z.pt")
    with pytest.raises(DataError, match="Z is given twice"):
        read_official([tmp_path / "z.pt", tmp_path / "z.pt"])
