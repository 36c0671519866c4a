import json
import os
import subprocess
import sys

import click
import headwater
import pytest
import torch
from fakes import command, install
from headwater import cli as module
from headwater import registry
from headwater.run import Run

TRAIN = ("train", "toy", "--set", "fit.accelerator=cpu", "--max-steps", 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    fit = {"max_steps": 2, "accelerator": "cpu"}
    return headwater.train("toy", tmp_path_factory.mktemp("run") / "run", overrides={"fit": fit}).path


def commands():
    found = dict(module.cli.commands)
    found |= {f"data {name}": c for name, c in found.pop("data").commands.items()}
    return found


# Each verb does its work and exits 0


def test_the_verbs_and_flags_of_the_contract_are_there():
    contract = {
        "list": "--json",
        "describe": "--schema --json",
        "train": "--out --task --stage --preset --config --set --max-steps --seed --devices --nodes "
        "--precision --compile --from --skip-bad --force",
        "resume": "--max-steps",
        "sample": "-n -o --seed --condition --sampler --set --workers",
        "apply": "--input -o --set --skip-bad",
        "evaluate": "--json --task --samples --set",
        "data check": "",
        "data make": "-o --set",
        "report": "-o",
        "convert": "--out --stage --set",
        "check": "",
        "new-plugin": "",
        "doctor": "",
        "demo": "",
    }
    found = commands()
    assert set(found) == set(contract)
    for name, flags in contract.items():
        known = {flag for parameter in found[name].params for flag in parameter.opts}
        assert set(flags.split()) <= known, name


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_verb_explains_itself(cli, name):
    code, out, _ = cli(*name.split(), "--help")
    assert code == 0
    assert "Usage: " in out


def test_train_resume_sample_evaluate_and_report(cli, tmp_path):
    run = tmp_path / "run"
    code, out, err = cli(*TRAIN, "--out", run, "--seed", 3, "--set", "trainer.width=7")
    assert (code, out.splitlines()[0]) == (0, f"trained to step 2: {run}"), err
    assert (run / "report.html").exists()
    assert Run(run).config()["trainer"]["width"] == 7
    assert Run(run).manifest.seed == 3
    code, out, _ = cli("resume", run, "--max-steps", 4)
    assert (code, out.splitlines()[0]) == (0, f"trained to step 4: {run}")
    code, out, _ = cli("sample", run, "-n", 4, "-o", tmp_path / "a.jsonl", "--condition", "scale=2.0")
    assert (code, out) == (0, f"4 samples: {tmp_path / 'a.jsonl'}\n")
    code, out, _ = cli("sample", run, "-n", 2, "--seed", 5)
    assert (code, out) == (0, f"2 samples: {run / 'samples' / 'samples-seed5.jsonl'}\n")
    code, out, _ = cli("evaluate", run)
    assert (code, out.split()[0]) == (0, "mean")
    code, out, _ = cli("evaluate", "--task", "toy-numbers", "--samples", tmp_path / "a.jsonl", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"mean"}
    code, out, _ = cli("report", run, "-o", tmp_path / "r.html")
    assert (code, out) == (0, f"{tmp_path / 'r.html'}\n")


def test_train_on_top_of_another_run(cli, run, tmp_path):
    words = (*TRAIN, "--stage", "refine", "--out", tmp_path / "run")
    code, _, err = cli(*words)
    assert code == 2
    assert "the stage 'refine' builds on 'fit': pass --from RUN" in err
    assert cli(*words, "--from", run)[0] == 0


def test_apply(cli, run, tmp_path):
    (tmp_path / "in.jsonl").write_text("1\n2\n")
    code, out, _ = cli("apply", run, "double", "--input", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    assert (code, out) == (0, f"double: {tmp_path / 'out.jsonl'}\n")
    assert (tmp_path / "out.jsonl").read_text() == "2.0\n4.0\n"


@pytest.mark.parametrize("name", ["block_size", "operation.block_size"])
def test_a_setting_of_an_operation_needs_no_part_before_its_name(cli, run, tmp_path, name):
    (tmp_path / "in.jsonl").write_text("1\n2\n")
    words = ("apply", run, "double", "--input", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "--set")
    assert cli(*words, f"{name}=1")[0] == 0
    code, _, err = cli(*words, f"{name}s=1", "--force")
    assert code == 2
    assert "operation.block_sizes is no setting; did you mean 'block_size'?" in err


def test_describe(cli):
    code, out, _ = cli("describe", "toy")
    assert code == 0
    for shown in (
        "toy: a method for tests",
        "headwater-toy 1.0",
        "refine",
        "double",
        "wide",
        "learning_rate = 0.05",
    ):
        assert shown in out
    found = json.loads(cli("describe", "toy", "--json")[1])
    assert (found["distribution"], found["tasks"]) == ("headwater-toy", ["toy-numbers"])
    schema = json.loads(cli("describe", "toy", "--schema")[1])
    assert set(schema["properties"]) == {"task", "trainer", "sampler", "fit"}


def test_convert(cli, tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(), torch.nn.Linear(6, 1))
    torch.save({**net.state_dict(), "log_z": torch.tensor(2.0)}, tmp_path / "official.pt")
    code, out, err = cli("convert", "toy", tmp_path / "official.pt", "--out", tmp_path / "run")
    assert (code, out) == (0, f"converted: {tmp_path / 'run'}\n"), err
    model = headwater.load(tmp_path / "run", device="cpu")
    assert float(model.modules["scale"]["log_z"]) == 2.0
    assert torch.equal(model.modules["net"][0].weight, net[0].weight)
    assert Run(tmp_path / "run").manifest.converted_from[0]["path"].endswith("official.pt")


def test_the_weights_may_say_which_stage_they_are_of(cli, tmp_path, monkeypatch):
    net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(), torch.nn.Linear(6, 1))
    torch.save(net.state_dict(), tmp_path / "official.pt")
    monkeypatch.setattr("toy.stage_of", lambda state, hyperparameters: "refine", raising=False)
    assert cli("convert", "toy", tmp_path / "official.pt", "--out", tmp_path / "a")[0] == 0
    assert cli("convert", "toy", tmp_path / "official.pt", "--out", tmp_path / "b", "--stage", "fit")[0] == 0
    assert [Run(tmp_path / name).manifest.stage for name in "ab"] == ["refine", "fit"]


def test_check_says_how_each_check_went(cli):
    code, out, _ = cli("check", "toy")
    assert code == 0
    assert all(line.startswith("ok ") for line in out.splitlines())


def test_version(cli):
    code, out, _ = cli("--version")
    assert code == 0
    assert "0.1.0" in out


# Usage errors exit 2, failures 1, in one or two lines without a traceback


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["trian"], "there is no command 'trian'; did you mean 'train'?"),
        (["train", "toyy", "--out", "x"], "method 'toyy' is unknown; did you mean 'toy'?"),
        (["train", "toy"], "Missing option '--out'"),
        (["train", "toy", "--out", "x", "--bogus"], "No such option"),
        (["train", "toy", "--out", "x", "--task", "toy-number"], "did you mean 'toy-numbers'?"),
        (
            ["train", "toy", "--out", "x", "--set", "fit.max_stps=1"],
            "fit.max_stps is no setting; did you mean",
        ),
        (["train", "toy", "--out", "x", "--set", "trainer.width=-1"], "trainer.width = -1: Input should be"),
        (["train", "toy", "--out", "x", "--set", "trainer.width=wide"], "trainer.width = 'wide': "),
        (["train", "toy", "--out", "x", "--max-steps", "-1"], "fit.max_steps = -1: "),
        (["train", "toy", "--out", "x", "--devices", "0"], "fit.devices = 0: "),
        (["train", "toy", "--out", "x", "--precision", "8"], "fit.precision = '8': "),
        (
            ["train", "toy", "--out", "x", "--preset", "wyde"],
            "toy has no preset 'wyde'; did you mean 'wide'?",
        ),
        (["train", "toy", "--out", "x", "--config", "none.toml"], "cannot read the config none.toml"),
        (["train", "toy", "--out", "x", "--skip-bad"], "task.skip_bad is no setting"),
        (
            ["describe", "vision-vin"],
            "method 'vision-vin' is not installed; try: pip install headwater-vision-vin",
        ),
        (["evaluate"], "say what to evaluate"),
        (["evaluate", "--task", "toy-numbers"], "say what to evaluate"),
        (["data", "check", "toy-numbers", "."], "Numbers reads no data set, so there is nothing to check"),
        (["data", "make", "toy-numbers", "-o", "x"], "Numbers cannot make a data set"),
        (["new-plugin", "../evil"], "is no plugin name; use lower-case letters"),
        (["demo", "toy"], "toy has no demo"),
        (["sample", "x", "-n", "many"], "'many' is not a valid integer"),
        (["sample", "x", "--seed", "-1"], "-1 is not in the range"),
    ],
)
def test_a_wrong_request_exits_2_and_says_what_would_do(cli, tmp_path, monkeypatch, words, error):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*words)
    assert code == 2
    assert error in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 3
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["resume", "none"], "none is no run: it has no manifest.json"),
        (["sample", "none"], "none is no run"),
        (["report", "none"], "none is no run"),
        (["evaluate", "--task", "toy-numbers", "--samples", "none.jsonl"], "none.jsonl does not exist"),
        (["convert", "toy", "none.pt", "--out", "x"], "none.pt does not exist"),
        (["data", "check", "toy-numbers", "none"], "none does not exist"),
    ],
)
def test_work_that_cannot_be_done_exits_1(cli, tmp_path, monkeypatch, words, error):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*words)
    assert (code, err) == (1, f"error: {err.removeprefix('error: ')}")
    assert error in err
    assert len(err.splitlines()) == 1


def test_existing_output_is_kept_and_force_replaces_it(cli, tmp_path):
    words = (*TRAIN, "--out", tmp_path / "run")
    cli(*words)
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    code, _, err = cli(*words)
    assert code == 1
    assert "exists; choose another --out" in err
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before
    assert cli(*words, "--force")[0] == 0
    assert (tmp_path / "run" / "manifest.json").read_bytes() != before


def test_an_unforeseen_error_is_one_line_unless_debug_asks_for_more(cli, monkeypatch, run):
    def fail(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("headwater.api.report", fail)
    code, _, err = cli("report", run)
    assert (code, err) == (1, "error: ZeroDivisionError: a bug (headwater --debug shows where)\n")
    with pytest.raises(ZeroDivisionError):
        cli("report", run, "--debug")


def test_ctrl_c_during_training_saves_and_exits_130(cli, tmp_path):
    class Interrupt:
        @headwater.hookimpl
        def headwater_step_end(self, step):
            os.kill(os.getpid(), 2)

    registry.register(Interrupt(), name="interrupt")
    try:
        code, _, err = cli(*TRAIN, "--out", tmp_path / "run")
    finally:
        registry.unregister("interrupt")
    assert code == 130
    assert err == f"interrupted at step 1; go on with: headwater resume {tmp_path / 'run'}\n"
    assert Run(tmp_path / "run").checkpoints() == [1]


def test_ctrl_c_during_sampling_says_that_the_same_command_goes_on(cli, run, tmp_path, monkeypatch):
    def interrupt(self, k, generator, condition):
        raise KeyboardInterrupt

    monkeypatch.setattr("toy.ToySampler.block", interrupt)
    code, _, err = cli("sample", run, "-o", tmp_path / "a.jsonl")
    assert code == 130
    assert err.strip() == "interrupted; what was finished is on disk, the same command goes on"


def test_a_broken_plugin_stands_in_the_way_of_no_other(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    install(site, "bad", "raise ValueError('no')")
    done = command(*TRAIN, "--out", tmp_path / "run", path=site)
    assert (done.returncode, done.stderr) == (0, "")
    done = command("train", "bad", "--out", tmp_path / "other", path=site)
    assert done.returncode == 2
    assert "headwater-bad 1.2) is broken: ValueError: no (plugin.py, line 1); try: pip install" in done.stderr
    done = command("list", path=site, HEADWATER_STRICT="1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: plugin 'bad' (headwater-bad 1.2): ValueError: no")


def test_training_on_two_devices_works_from_the_command_line(tmp_path):
    done = command(*TRAIN, "--devices", 2, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained to step 2") == 1
    assert Run(tmp_path / "run").manifest.processes == 2
    done = command("resume", tmp_path / "run", "--max-steps", 3)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    listing = [sys.executable, "-m", "headwater", "list"]
    done = subprocess.run(listing, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_error_classes_carry_their_exit_codes():
    assert (headwater.UsageError.exit_code, headwater.ConfigError.exit_code) == (2, 2)
    assert {headwater.RunError.exit_code, headwater.DataError.exit_code, headwater.PluginError.exit_code} == {1}
    assert isinstance(module.cli, click.Group)
