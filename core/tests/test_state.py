import json
import math

import pytest
import torch
from headwater.errors import RunError
from headwater.state import load_state, save_state, verify_checksums, write_checksums, write_text
from headwater.testing.suite import same


def test_any_tree_of_tensors_and_scalars_comes_back_bit_for_bit(tmp_path):
    tied = torch.randn(3)
    state = {
        "a": [1, 2.5, None, True, "x", (1, (2,), [])],
        "big": 2**200,
        3: {"nested": {0: torch.arange(4), 1.5: "float key"}},
        ("tuple", 1): "key",
        "$tag": {"$tensor": "not a tensor"},
        "floats": [math.inf, -math.inf, math.nan, 0.1 + 0.2, -0.0],
        "tied": [tied, tied],
        "kinds": [
            torch.zeros(()),
            torch.empty(0, 3),
            torch.ones(2, dtype=torch.bfloat16),
            torch.tensor([True]),
        ],
        "transposed": torch.randn(3, 4).T,
    }
    save_state(tmp_path, "s", state)
    assert same(load_state(tmp_path, "s"), state)


def test_generators_and_adam_fit_into_a_state(tmp_path):
    net = torch.nn.Linear(2, 2)
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    adam.step()
    state = {"rng": torch.Generator().manual_seed(3).get_state(), "adam": adam.state_dict()}
    save_state(tmp_path, "s", state)
    assert same(load_state(tmp_path, "s"), state)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, torch.float32, lambda: 0])
def test_what_is_no_tensor_container_or_scalar_is_refused_by_name(tmp_path, value):
    with pytest.raises(RunError, match=r"s/inner/0"):
        save_state(tmp_path, "s", {"inner": [value]})


def test_overlapping_memory_is_refused(tmp_path):
    base = torch.arange(6.0)
    with pytest.raises(RunError, match="shares memory"):
        save_state(tmp_path, "s", {"a": base[:4], "b": base[2:]})


@pytest.mark.parametrize("file", ["s.json", "s.safetensors"])
@pytest.mark.parametrize("damage", ["truncate", "delete", "garbage", "flip"])
def test_a_damaged_state_is_refused_by_file_name(tmp_path, file, damage):
    names = save_state(tmp_path, "s", {"a": torch.arange(100.0), "b": [1, 2]})
    write_checksums(tmp_path, names)
    path = tmp_path / file
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "delete":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    else:
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(RunError, match=r"s\.(json|safetensors)"):
        verify_checksums(tmp_path)
    if damage != "flip":
        with pytest.raises(RunError, match="cannot read the state"):
            load_state(tmp_path, "s")


def test_a_checksum_list_cannot_name_a_file_elsewhere(tmp_path):
    (tmp_path / "checksums.json").write_text(json.dumps({"../secret": "0"}))
    with pytest.raises(RunError, match="outside its folder"):
        verify_checksums(tmp_path)


def test_a_newer_state_schema_is_refused(tmp_path):
    save_state(tmp_path, "s", {"a": 1})
    (tmp_path / "s.json").write_text(json.dumps({"schema": 2, "state": {}}))
    with pytest.raises(RunError, match="schema 2"):
        load_state(tmp_path, "s")


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "f.json"
    write_text(path, "old")
    monkeypatch.setattr("headwater.state.os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]
