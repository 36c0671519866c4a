"""Official checkpoints: both layouts, what is inferred, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from headwater import DataError, convert, load
from headwater_bfn_crys.convert import config_of, from_official, read_official
from headwater_bfn_crys.networks import CSPNet

SIZES = {"types": 89, "width": 16, "layers": 2, "frequencies": 5, "time_width": 8}


def weights(given_types=False, **changes):
    torch.manual_seed(int(given_types))
    return CSPNet(**{**SIZES, **changes}, given_types=given_types).state_dict()


def prefixed(state):
    return {f"BFN.net.{k}": v for k, v in state.items()}


LIGHTNING = """
import sys, types, torch
module = types.ModuleType("crysbfn.ema")
class EMACallback: pass
EMACallback.__module__ = "crysbfn.ema"
module.EMACallback = EMACallback
sys.modules["crysbfn"] = types.ModuleType("crysbfn"); sys.modules["crysbfn.ema"] = module
state = torch.load(sys.argv[1], weights_only=True)
average = {"BFN.net." + k: v for k, v in state.items()}
plain = {k: v + 1 for k, v in average.items()}
key = EMACallback if sys.argv[3] == "class" else "EMACallback{'decay': 0.995}"
callbacks = {"Checkpoint": {"best": 1}, key: {"ema_state_dict": average}}
torch.save({"state_dict": plain, "callbacks": callbacks}, sys.argv[2])
"""


@pytest.mark.parametrize("key", ["class", "name"])
def test_a_lightning_checkpoint_gives_its_averaged_weights(key, tmp_path):
    """The callback's class is made and pickled in another process, so that here it is unknown."""
    torch.save(weights(), tmp_path / "state.pt")
    path = tmp_path / "mp20_gen_s1000.ckpt"
    subprocess.run([sys.executable, "-c", LIGHTNING, tmp_path / "state.pt", path, key], check=True)
    state, found = read_official([path])
    assert found == {"steps": 1000}
    assert state.keys() == weights().keys()
    for name, value in weights().items():
        assert torch.equal(state[name], value), name


def test_a_checkpoint_without_averages_and_a_plain_state_dict(tmp_path):
    torch.save({"state_dict": prefixed(weights()), "callbacks": {}}, tmp_path / "a.ckpt")
    torch.save(weights(), tmp_path / "b.pt")
    for name in ("a.ckpt", "b.pt"):
        state, found = read_official([tmp_path / name])
        assert state.keys() == weights().keys()
        assert found == {}


@pytest.mark.parametrize("given_types", [False, True])
def test_a_converted_run_gives_the_official_outputs_and_samples(given_types, tmp_path):
    path = tmp_path / "model_s4.ckpt"
    torch.save({"state_dict": prefixed(weights(given_types))}, path)
    run = convert("bfn-crys", [path], tmp_path / "run")
    model = load(run.path)
    for name, value in weights(given_types).items():
        assert torch.equal(model.modules["network"].state_dict()[name], value)
    assert model.facts["flow"]["target"] == ("csp" if given_types else "gen")
    assert model.facts["lattice_std"] == 3.866470446562982
    assert model.facts["flow"]["standardise"] == "scalar"
    overrides = {"sampler": {"block_size": 2}}
    (crystals,) = list(model.sample(2, condition={"formula": "NaCl"}, overrides=overrides))
    assert set(crystals.formulas) == {"Na1 Cl1"}


def test_sizes_are_inferred_and_the_options_taken():
    config = config_of(weights(True, types=56), {"steps": 10, "beta1_types": 3.0})["trainer"]
    assert (config["width"], config["layers"], config["frequencies"], config["time_width"]) == (16, 2, 5, 8)
    assert (config["target"], config["steps"], config["beta1_types"]) == ("csp", 10, 3.0)
    assert config["elements"][:3] == [3, 4, 5]
    assert config["standardise"] == config_of(weights(types=7), {"steps": 10})["trainer"]["standardise"] == "scalar"
    assert config_of(weights(), {"steps": 500, "dataset": "mpts-52"})["trainer"]["lattice_std"] == 4.824758778702219


def test_a_noisy_schedule_is_attached(tmp_path):
    path, schedule = tmp_path / "model.pt", tmp_path / "schedules.npz"
    torch.save(weights(), path)
    np.savez(schedule, **{"s3_1000.0": np.array([1.5, 2.5, 900.0])})
    run = convert("bfn-crys", [path], tmp_path / "run", overrides={"official": {"steps": 3, "schedule": str(schedule)}})
    assert load(run.path).facts["alpha"].tolist() == [1.5, 2.5, 900.0]


def _lose(state):
    del state["csp_layer_1.node_mlp.2.bias"]


def _add(state):
    state["csp_layer_1.extra"] = torch.zeros(1)


def _reshape(state):
    state["coord_out.weight"] = torch.zeros(4, 16)


def _widen(state):
    state["csp_layer_0.edge_mlp.0.weight"] = torch.zeros(16, 78)


def _empty(state):
    del state["type_out.weight"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_lose, r"node_mlp\.2\.bias"),
        (_add, r"csp_layer_1\.extra"),
        (_reshape, r"coord_out.weight has the shape \(4, 16\), expected is \(3, 16\)"),
        (_widen, "of another variant"),
        (_empty, r"no CrysBFN network: type_out\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, words):
    state = dict(weights())
    change(state)
    with pytest.raises(DataError, match=words):
        from_official(state)


def test_what_is_not_known_is_asked_for():
    with pytest.raises(DataError, match=r"--set official\.steps="):
        config_of(weights(), {})
    with pytest.raises(DataError, match=r"89 types, which official\.dataset=perov-5 has not"):
        config_of(weights(), {"steps": 10, "dataset": "perov-5"})
    with pytest.raises(DataError, match=r"official\.step is no option"):
        config_of(weights(), {"step": 10})


def test_files_that_are_no_checkpoint(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.ckpt")
    with pytest.raises(DataError, match="holds a Tensor"):
        read_official([tmp_path / "tensor.pt"])
    with pytest.raises(DataError, match="holds no weights; keys: epoch"):
        read_official([tmp_path / "empty.ckpt"])
    with pytest.raises(DataError, match="one file a checkpoint, not 2"):
        read_official([tmp_path / "a", tmp_path / "b"])
