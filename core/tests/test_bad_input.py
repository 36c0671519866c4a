"""Full and forbidden disks, strange paths, and runs of other versions: one line that says what would do."""

import json
import os
import shutil
import subprocess

import headwater
import pytest
from headwater.errors import HeadwaterError, RunError, UsageError
from headwater.run import Run
from toy import Numbers

FIT = {"max_steps": 2, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return headwater.train("toy", tmp_path_factory.mktemp("run") / "run", overrides={"fit": FIT}).path


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def tiny(tmp_path):
    """A real disk of 200 kB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "headwater-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def train(path, **fit):
    return headwater.train("toy", path, overrides={"fit": {**FIT, **fit}})


def fill(folder, leave=0):
    """Write until the disk is full, then give ``leave`` bytes back."""
    file = folder / "ballast"
    with file.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(4096))
        except OSError:
            pass
    os.truncate(file, max(0, file.stat().st_size - leave))


@pytest.mark.parametrize("where", ["file.txt/run", "/proc/run"])
def test_a_run_where_nothing_can_be_written_is_refused_in_one_line(tmp_path, where):
    (tmp_path / "file.txt").write_text("a file")
    with pytest.raises(RunError, match=r"cannot make the run .*(Not a directory|No such file|not permitted)") as raised:
        train(tmp_path / where)
    assert "\n" not in str(raised.value)


def test_a_folder_without_write_permission_is_refused_in_one_line(run, tmp_path, monkeypatch):
    def forbidden(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", forbidden)
    with pytest.raises(RunError, match=r"cannot make the run .*: Permission denied"):
        train(tmp_path / "new")
    with pytest.raises(RunError, match=f"cannot write in {tmp_path}: Permission denied"):
        headwater.sample(run, tmp_path / "a.jsonl", 1)
    monkeypatch.undo()
    monkeypatch.setattr("headwater.state.os.fsync", forbidden)
    with pytest.raises(HeadwaterError, match="Permission denied"):
        train(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_samples_and_reports_where_nothing_can_be_written_are_refused_in_one_line(run, tmp_path):
    (tmp_path / "file.txt").write_text("a file")
    for call in (
        lambda: headwater.sample(run, tmp_path / "file.txt" / "a.jsonl", 1),
        lambda: headwater.report(run, tmp_path / "file.txt" / "r.html"),
    ):
        with pytest.raises(HeadwaterError, match=r"cannot write .*(Not a directory|File exists)") as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_full_disk_while_sampling_keeps_the_blocks_and_the_same_command_goes_on(run, tiny):
    fill(tiny, leave=12_000)
    with pytest.raises(RunError, match=r"No space left on device; .*make room and give the same command"):
        headwater.sample(run, tiny / "a.jsonl", 3000, overrides={"sampler": {"block_size": 100}})
    assert not (tiny / "a.jsonl").exists()
    (tiny / "ballast").unlink()
    path = headwater.sample(run, tiny / "a.jsonl", 3000, overrides={"sampler": {"block_size": 100}})
    assert len(path.read_text().splitlines()) == 3000


def test_a_full_disk_while_training_keeps_the_latest_checkpoint(tiny):
    train(tiny / "run", max_steps=1)
    fill(tiny)
    with pytest.raises(RunError, match=r"No space left on device"):
        headwater.resume(tiny / "run", max_steps=9)
    (tiny / "ballast").unlink()
    assert Run(tiny / "run").latest() == 1
    assert headwater.resume(tiny / "run", max_steps=9).latest() == 9


def test_a_full_disk_before_a_run_is_made_leaves_nothing(tiny):
    fill(tiny)
    with pytest.raises(RunError, match=r"cannot make the run .*No space left on device"):
        train(tiny / "run")
    assert [p.name for p in tiny.iterdir()] == ["ballast"]


def test_a_full_disk_while_metrics_are_written_says_how_to_go_on(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        if self.name == "metrics.jsonl" and args[:1] == ("ab",):
            raise OSError(28, "No space left on device")
        return opened(self, *args, **kwargs)

    from pathlib import Path

    opened = Path.open
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RunError, match=r"No space left on device; no checkpoint .*headwater resume"):
        train(tmp_path / "run")


def test_a_run_of_a_newer_headwater_says_to_upgrade(cli, run):
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 2, "novelty": 1}))
    for verb in ("resume", "sample", "report", "evaluate"):
        code, _, err = cli(verb, run.path)
        assert code == 1
        assert "written by a newer headwater (run schema 2, this one reads 1)" in err
        assert "pip install -U headwater" in err


def test_a_run_whose_plugin_is_gone_names_what_to_install(cli, run):
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest |= {"method": "their-method", "plugin": "headwater-their-method", "plugin_version": "3.1"}
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    for verb in ("resume", "sample", "evaluate", "report"):
        code, _, err = cli(verb, run.path)
        assert code == 1, verb
        assert "needs method 'their-method', which is not installed" in err
        assert "pip install headwater-their-method==3.1" in err


def test_a_run_whose_plugin_is_disabled_says_so(run):
    from fakes import command

    done = command("sample", run.path, HEADWATER_DISABLE="toy," + os.environ["HEADWATER_DISABLE"])
    assert done.returncode == 1
    assert "'toy' (headwater-toy 1.0) is disabled" in done.stderr


def test_a_run_without_checkpoint_says_how_to_get_one(run):
    shutil.rmtree(run.checkpoint_path(2))
    with pytest.raises(RunError, match="has no checkpoint yet; go on with: headwater resume"):
        headwater.load(run.path)


def test_a_file_in_place_of_a_run_is_refused(cli, tmp_path):
    (tmp_path / "run").write_text("a file")
    for words in (("resume", tmp_path / "run"), ("train", "toy", "--out", tmp_path / "run", "--force")):
        code, _, err = cli(*words)
        assert code == 1
        assert len(err.splitlines()) == 1
    assert (tmp_path / "run").read_text() == "a file"


def test_fewer_steps_than_were_made_are_refused(run):
    with pytest.raises(UsageError, match="has reached step 2; --max-steps 1 is behind that"):
        headwater.resume(run.path, max_steps=1)


def test_a_finished_run_can_be_resumed_without_harm(tmp_path):
    run = train(tmp_path / "run")
    before = run.metrics()
    assert headwater.resume(run.path).metrics() == before
    assert headwater.resume(run.path, max_steps=2).metrics() == before


def test_runs_of_another_method_are_no_start(run, tmp_path):
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "method": "other"}))
    with pytest.raises(UsageError, match="is a run of other, not of toy"):
        headwater.train("toy", tmp_path / "new", stage="refine", from_runs=[run.path])


def test_samples_of_the_wrong_form_cannot_be_evaluated(tmp_path):
    (tmp_path / "a.jsonl").write_text("words\n")
    (tmp_path / "a.cif").write_text("1\n")
    with pytest.raises(HeadwaterError, match=r"a\.jsonl holds no numbers"):
        headwater.evaluate(task="toy-numbers", samples=tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match=r"cannot read 'a\.cif': Numbers reads \.jsonl, a directory$"):
        headwater.evaluate(task="toy-numbers", samples=tmp_path / "a.cif")


def test_samples_may_be_in_a_form_that_is_read_and_not_written(tmp_path, monkeypatch):
    (tmp_path / "a.numbers").write_text("1\n")
    with pytest.raises(UsageError, match="cannot read"):
        headwater.evaluate(task="toy-numbers", samples=tmp_path / "a.numbers")
    monkeypatch.setattr(Numbers, "readable", (".numbers",))
    assert headwater.evaluate(task="toy-numbers", samples=tmp_path / "a.numbers")
