import collections
import gzip
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from headwater.errors import DataError
from headwater.testing.suite import same
from headwater.unpickling import Stub, load_official
from safetensors.torch import save_file

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([1.5, -2.0])}


class Payload:
    """What an attacker puts into a file: unpickling it runs a command."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class Settings:
    """A harmless class of somebody else's project."""

    def __init__(self):
        self.width = 7


def legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def pickled(value, path):
    path.write_bytes(pickle.dumps(value))


def gzipped(value, path):
    path.write_bytes(gzip.compress(pickle.dumps(value)))


WRITERS = {"zip": torch.save, "legacy": legacy, "pickle": pickled, "gzip": gzipped}


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "npz"])
def test_tensors_come_back_from_every_form(tmp_path, form):
    path = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(STATE, path)
    elif form == "npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in STATE.items()})
    else:
        WRITERS[form](STATE, path)
    assert same(dict(load_official(path)), STATE)


@pytest.mark.parametrize("form", ["pickle", "gzip"])
def test_arrays_and_containers_come_back_from_plain_pickles(tmp_path, form):
    value = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.float64(2.5),
        "ordered": collections.OrderedDict(a=[1, (2, None)]),
        "set": {1, 2},
        "counts": collections.Counter("aab"),
        "bytes": b"\x00\x01",
    }
    WRITERS[form](value, tmp_path / "data.pkl")
    found = load_official(tmp_path / "data.pkl")
    assert np.array_equal(found["array"], value["array"])
    assert {k: v for k, v in found.items() if k != "array"} == {k: v for k, v in value.items() if k != "array"}


@pytest.mark.parametrize("form", WRITERS)
def test_a_malicious_file_does_nothing(tmp_path, form):
    target = tmp_path / "touched"
    WRITERS[form]({"weights": STATE, "hook": Payload(target)}, tmp_path / "evil.ckpt")
    found = load_official(tmp_path / "evil.ckpt")
    assert not target.exists()
    assert isinstance(found["hook"], Stub)
    assert found["hook"].qualified_name in ("posix.system", "nt.system")
    assert same(dict(found["weights"]), STATE)


@pytest.mark.parametrize(
    ("module", "name", "argument"),
    [
        ("builtins", "eval", "open({target!r}, 'w')"),
        ("builtins", "exec", "open({target!r}, 'w')"),
        ("builtins", "getattr", "x"),
        ("os", "system", "touch {target}"),
        ("subprocess", "getoutput", "touch {target}"),
        ("torch", "load", "{target}"),
        ("torch.hub", "load_state_dict_from_url", "file://{target}"),
        ("numpy", "fromfile", "{target}"),
        ("torch._utils", "_import_dotted_name", "os.system"),
    ],
)
def test_no_function_outside_the_list_is_called(tmp_path, module, name, argument):
    target = tmp_path / "touched"
    text = argument.format(target=str(target))
    # Protocol 0 by hand: a global, a one-tuple of a string, and the call.
    (tmp_path / "evil.pkl").write_bytes(f"c{module}\n{name}\n(S{text!r}\ntR.".encode())
    found = load_official(tmp_path / "evil.pkl")
    assert isinstance(found, Stub)
    assert found.qualified_name == f"{module}.{name}"
    assert not target.exists()


def test_the_storage_inside_a_plain_pickle_is_read_through_the_list_as_well(tmp_path):
    class Storage:
        def __reduce__(self):
            inner = io.BytesIO()
            torch.save({"hook": Payload(tmp_path / "touched")}, inner)
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Storage()))
    found = load_official(tmp_path / "evil.pkl")
    assert isinstance(found["hook"], Stub)
    assert not (tmp_path / "touched").exists()


def test_a_dotted_name_cannot_reach_through_an_allowed_module(tmp_path):
    stream = io.BytesIO()
    stream.write(b"\x80\x04\x8c\x05torch\x8c\x0bhub.os.name\x93.")
    (tmp_path / "evil.pkl").write_bytes(stream.getvalue())
    assert isinstance(load_official(tmp_path / "evil.pkl"), type(Stub))


@pytest.mark.parametrize("form", WRITERS)
def test_other_classes_become_stubs_that_remember(tmp_path, form):
    WRITERS[form]({"settings": Settings(), "state": STATE}, tmp_path / "a.ckpt")
    found = load_official(tmp_path / "a.ckpt")
    assert found["settings"].qualified_name.endswith("test_unpickling.Settings")
    assert found["settings"].state == {"width": 7}
    assert same(dict(found["state"]), STATE)


@pytest.mark.parametrize("form", [*WRITERS, "safetensors", "npz"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_a_data_error_that_names_it(tmp_path, form, keep):
    path = tmp_path / f"cut.{form}"
    if form == "safetensors":
        save_file(STATE, path)
    elif form == "npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in STATE.items()})
    else:
        WRITERS[form](STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=rf"cut\.{form} is damaged or no checkpoint"):
        load_official(path)


@pytest.mark.parametrize("content", [b"", b"hello, world\n", b"PK\x03\x04nothing", b"\x1f\x8bnothing", bytes(100)])
def test_what_is_no_checkpoint_is_a_data_error_of_one_line(tmp_path, content):
    path = tmp_path / "no.ckpt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no\.ckpt is damaged or no checkpoint") as raised:
        load_official(path)
    assert len(str(raised.value).splitlines()) <= 2


def test_an_npz_with_pickled_objects_is_refused(tmp_path):
    target = tmp_path / "touched"
    np.savez(tmp_path / "evil.npz", a=np.array([Payload(target)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"evil\.npz"):
        load_official(tmp_path / "evil.npz")
    assert not target.exists()


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.pt: No such file"):
        load_official(tmp_path / "none.pt")
    with pytest.raises(DataError, match="cannot read"):
        load_official(tmp_path)


def test_a_zip_of_something_else_is_a_data_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as out:
        out.writestr("../escape.txt", "text")
    with pytest.raises(DataError, match=r"other\.zip is damaged or no checkpoint"):
        load_official(tmp_path / "other.zip")
    assert not (tmp_path.parent / "escape.txt").exists()


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Nested:
    """Pickles as the bytes of a file that torch would load on the way."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("nested", [False, True])
def test_a_torchscript_archive_is_refused_and_never_compiled(tmp_path, monkeypatch, nested):
    path = tmp_path / "model.pt"
    torch.jit.script(Scripted()).save(str(path))
    if nested:
        path.write_bytes(pickle.dumps(Nested(path.read_bytes())))
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("the archive was handed to the compiler"))
    with pytest.raises(DataError, match="TorchScript archive, which holds code"):
        load_official(path)
