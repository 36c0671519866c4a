"""Files and words from elsewhere are data: damaged or foreign ones are refused by name, none is evaluated."""

import json
import pickle
import shutil

import headwater
import pytest
import torch
from headwater.errors import ConfigError, HeadwaterError, RunError, UsageError
from headwater.run import Run, safe_name
from headwater.state import save_state, write_checksums

FIT = {"max_steps": 2, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return headwater.train("toy", tmp_path_factory.mktemp("run") / "run", overrides={"fit": FIT}).path


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained, tmp_path / "run"))


class Touch:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_checkpoint_that_was_tampered_with_is_refused_by_file_name(run, name, how):
    path = run.checkpoint_path(2) / name
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "truncated":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    for use in (headwater.load, headwater.resume):
        with pytest.raises(RunError, match=name.replace(".", r"\.")):
            use(run.path)


def test_a_pickle_in_place_of_a_checkpoint_is_not_executed_even_with_right_checksums(run, tmp_path):
    folder = run.checkpoint_path(2)
    target = tmp_path / "touched"
    for name in ("model.safetensors", "model.json"):
        (folder / name).write_bytes(pickle.dumps(Touch(target)))
    write_checksums(folder, [p.name for p in folder.iterdir() if p.name != "checksums.json"])
    with pytest.raises(RunError, match=r"cannot read the state .*model"):
        headwater.load(run.path)
    assert not target.exists()


def test_the_checkpoint_of_another_model_is_refused_by_module_name(run, tmp_path):
    other = headwater.train("toy", tmp_path / "other", overrides={"fit": FIT, "trainer": {"width": 9}})
    shutil.rmtree(run.checkpoint_path(2))
    shutil.copytree(other.checkpoint_path(2), run.checkpoint_path(2))
    for use in (headwater.load, headwater.resume):
        with pytest.raises(RunError, match="'net' do not fit this config") as raised:
            use(run.path)
        assert len(str(raised.value).splitlines()) <= 2


def test_a_checkpoint_without_a_module_is_refused_by_module_name(run):
    folder = run.checkpoint_path(2)
    state = run.load(2, "model")
    del state["modules"]["scale"]
    save_state(folder, "model", state)
    write_checksums(folder, [p.name for p in folder.iterdir() if p.name != "checksums.json"])
    for use in (headwater.load, headwater.resume):
        with pytest.raises(RunError, match="'scale'"):
            use(run.path)


def test_a_state_that_is_no_checkpoint_is_refused(run):
    folder = run.checkpoint_path(2)
    save_state(folder, "model", {"weights": torch.zeros(3)})
    write_checksums(folder, [p.name for p in folder.iterdir() if p.name != "checksums.json"])
    for use in (headwater.load, headwater.resume):
        with pytest.raises(RunError, match="step-2"):
            use(run.path)


@pytest.mark.parametrize(
    "name", ["../up", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "a\0b", "a\nb", "~", "x" * 200]
)
def test_a_name_that_leads_elsewhere_is_no_file_name(name):
    with pytest.raises(UsageError, match="cannot be a file name here"):
        safe_name(name)


def test_a_plain_name_is_a_file_name():
    assert safe_name("step-1_a.B") == "step-1_a.B"


@pytest.mark.parametrize("field", ["method", "stage", "task", "sampler"])
def test_a_manifest_cannot_name_a_path_or_a_module(run, field):
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest[field] = "../../../os:system"
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(HeadwaterError, match=r"'\.\./\.\./\.\./os:system'"):
        headwater.load(run.path)


EVIL = "__import__('pathlib').Path('touched').touch()"


@pytest.mark.parametrize(
    "words",
    [
        ("train", "toy", "--out", "x", "--set", f"trainer.width={EVIL}"),
        ("train", "toy", "--out", "x", "--set", f"{EVIL}=1"),
        ("train", "toy", "--out", "x", "--preset", EVIL),
        ("train", EVIL, "--out", "x"),
        ("train", "toy", "--out", "x", "--task", EVIL),
        ("train", "toy", "--out", "x", "--precision", EVIL),
        ("describe", "headwater.registry:default"),
        ("new-plugin", EVIL),
    ],
)
def test_nothing_on_the_command_line_is_evaluated(cli, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert cli(*words)[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_a_config_or_condition_is_evaluated(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(f'[trainer]\nwidth = "{EVIL}"\n')
    with pytest.raises(ConfigError, match=r"trainer\.width"):
        headwater.train("toy", tmp_path / "x", config=tmp_path / "c.toml")
    with pytest.raises(ConfigError, match=r"condition\.scale"):
        list(headwater.load(run.path).sample(1, condition={"scale": EVIL}))
    (run.path / "config.toml").write_text(f'[trainer]\nwidth = "{EVIL}"\n')
    with pytest.raises(ConfigError, match=r"trainer\.width"):
        headwater.load(run.path)
    assert not (tmp_path / "touched").exists()


def test_a_damaged_config_of_a_run_is_named(run):
    (run.path / "config.toml").write_text("[trainer")
    with pytest.raises(HeadwaterError, match=r"config\.toml is no valid TOML"):
        headwater.load(run.path)


def test_metrics_that_were_cut_short_or_garbled_do_no_harm(run):
    with run.metrics_path.open("ab") as out:
        out.write(b'{"step": 99, "loss": 0.1}\n"text"\n[1]\n\xff\xfe\n{"step"')
    assert [line["step"] for line in run.metrics()] == [2, 2, 99]
    headwater.report(run)
    assert headwater.resume(run.path, max_steps=3).metrics()[-1]["step"] == 3


def test_the_project_never_loads_a_pickle_but_through_the_list(run):
    """A source scan: ``torch.load``, ``pickle.load`` and friends stand in the unpickling module alone."""
    import re
    from pathlib import Path

    sources = [p for p in Path(headwater.__file__).parent.rglob("*.py") if p.name != "unpickling.py"]
    calls = re.compile(r"\btorch\.load\(|\bpickle\.loads?\(|\beval\(|\bexec\(|allow_pickle=True|shell=True|yaml\.load")
    found = [p.name for p in sources if calls.search(p.read_text().replace(".eval()", ""))]
    assert found == []
