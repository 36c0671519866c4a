"""Two processes for one training: the same weights as one process, one message where something goes wrong."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from fakes import command, install
from headwater.run import Run
from headwater.testing.suite import same

PARTS = """\
import os
import signal

import torch
from headwater import Config, Sampler, Task, Trainer
from torch import nn


class FakeConfig(Config):
    block_size: int = 2
    fault: str = ""


class FakeTask(Task):
    kind = "fake.kind"
    suffixes = (".txt",)

    def write(self, samples, path, start=0):
        path.write_text(str(samples))


class FakeTrainer(Trainer):
    '''Two modules and bare parameters under two optimisers, on a fixed joint batch in unequal shares.'''

    clip_norm = 0.5

    @classmethod
    def build(cls, config, task, facts):
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        bare = {"log_z": nn.Parameter(torch.zeros(())), "first": nn.Parameter(torch.ones(3)),
                "never": nn.Parameter(torch.ones(2))}
        return {"net": net, "other": nn.Linear(3, 1), "bare": nn.ParameterDict(bare)}

    def setup(self):
        net, other, bare = (list(self.modules[n].parameters()) for n in ("net", "other", "bare"))
        self.optimisers = {"one": torch.optim.Adam([*net, *bare], 0.01), "two": torch.optim.SGD(other, 0.1, 0.9)}

    def draw(self, k, generator):
        x = torch.randn(7, 3, generator=torch.Generator().manual_seed(k))
        first = torch.zeros(7)
        first[0] = 1.0
        share = slice(None)
        if self.place.world == 2:
            share = slice(0, 5) if self.place.rank == 0 else slice(5, 7)
        return k, x[share], first[share]

    def step(self, batch):
        k, x, first = batch
        if k == 6 and self.place.rank == 1:
            if self.config.fault == "raise":
                raise ValueError("a fault of one rank")
            if self.config.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        net, other, bare = (self.modules[n] for n in ("net", "other", "bare"))
        loss = (net(x).squeeze(1) + bare["log_z"] - x.prod(1)).square()
        if first.any():  # this parameter is used on one rank alone
            loss = loss + first * (bare["first"] * x).sum(1).square()
        loss = loss.mean()
        if k == 6 and self.place.rank == 1 and self.config.fault == "nan":
            loss = loss * float("nan")
        self.update(loss, "one", weight=len(x))
        second = (other(x).squeeze(1) - net(x).squeeze(1).detach()).square().mean()
        self.update(second, "two", weight=len(x))
        return {"loss": loss.detach()}


class FakeSampler(Sampler):
    def block(self, k, generator, condition):
        return [0] * self.block_size
"""

FIT = ("--set", "fit.accelerator=cpu", "--set", "fit.checkpoint_every=4", "--set", "fit.log_every=3")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    install(folder, "shares", parts=PARTS)
    return folder


def train(site, out, *words, **environment):
    return command("train", "shares", "--out", out, *FIT, *words, path=site, **environment)


@pytest.fixture(scope="module")
def one(site, tmp_path_factory):
    """The run of one process."""
    path = tmp_path_factory.mktemp("one") / "run"
    done = train(site, path, "--max-steps", 12)
    assert done.returncode == 0, done.stderr
    return Run(path)


@pytest.fixture(scope="module")
def two(site, tmp_path_factory):
    """The run of two processes under torchrun."""
    path = tmp_path_factory.mktemp("two") / "run"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "headwater", "train", "shares", "--out", str(path), *FIT, "--max-steps", "12"]
    paths = os.pathsep.join([str(site), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([*start, *words], capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained to step 12") == 1
    return Run(path)


def weights(run):
    return {
        f"{name}.{key}": value
        for name, module in run.load(12, "model")["modules"].items()
        for key, value in module.items()
    }


def test_two_processes_end_with_the_weights_of_one(one, two):
    assert (one.manifest.processes, two.manifest.processes) == (1, 2)
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)
    assert torch.equal(found["bare.never"], torch.ones(2))
    assert not torch.equal(found["bare.first"], torch.ones(3))


def test_metrics_and_checkpoints_are_written_once(two):
    assert [line["step"] for line in two.metrics()] == [3, 6, 9, 12]
    assert two.checkpoints() == [8, 12]
    names = {p.name for p in two.checkpoint_path(12).iterdir()}
    states = ("model", "training", "rank-0", "rank-1")
    assert names == {"checksums.json", *(f"{s}.{e}" for s in states for e in ("json", "safetensors"))}


def test_two_processes_stopped_and_resumed_equal_those_that_ran_through(site, two, tmp_path):
    done = train(site, tmp_path / "run", "--max-steps", 6, "--devices", 2)
    assert done.returncode == 0, done.stderr
    done = command("resume", tmp_path / "run", "--max-steps", 12, path=site)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "run")
    for name in ("model", "training", "rank-0", "rank-1"):
        assert same(run.load(12, name), two.load(12, name)), name


def test_a_run_of_two_processes_is_not_resumed_by_one(site, two):
    done = command("resume", two.path, "--max-steps", 13, path=site)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {two.path} was trained by 2 processes; resume it with as many, not 1\n",
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise", "error on rank 1: ValueError: a fault of one rank (headwater --debug shows where)\n"),
        (
            "nan",
            "error: loss became nan between steps 7 and 8; training stopped and the checkpoint of step 4",
        ),
        ("kill", "error: another process of this training ended before its time; go on with: headwater resu"),
    ],
)
def test_a_fault_of_one_process_ends_both_with_a_message(site, two, tmp_path, fault, said):
    began = time.monotonic()
    done = train(site, tmp_path / "run", "--max-steps", 12, "--devices", 2, "--set", f'trainer.fault="{fault}"')
    assert done.returncode != 0
    assert time.monotonic() - began < 300, "it hung"
    assert "Traceback" not in done.stderr
    assert done.stderr.count(said) == 1, done.stderr
    run = Run(tmp_path / "run")
    assert run.checkpoints() == [4]
    config = run.path / "config.toml"
    config.write_text(config.read_text().replace(f'fault = "{fault}"', 'fault = ""'))
    if fault != "kill":
        return
    done = command("resume", run.path, path=site)
    assert done.returncode == 0, done.stderr
    assert same(run.load(12, "model"), two.load(12, "model"))


def test_what_one_rank_finds_wrong_is_said_once(site, two, tmp_path):
    done = train(site, two.path, "--devices", 2)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {two.path} exists; choose another --out, continue it with 'headwater resume', or pass --force\n"
    )


def test_ctrl_c_in_a_script_that_trains_on_two_devices_saves(site, two, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import headwater

print("once", flush=True)
tables = {{"fit": {{"max_steps": 1000000, "accelerator": "cpu", "log_every": 1}}}}
run = headwater.train("shares", {str(tmp_path / "run")!r}, overrides=tables, devices=2)
print(run.reason, run.checkpoints() != [], flush=True)
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ["PYTHONPATH"]])}
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.splitlines()) == (0, ["once", "interrupted True"]), err
    assert "go on with: headwater resume" in err
    assert "Traceback" not in err
