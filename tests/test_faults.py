"""Kills, full and forbidden disks, Ctrl-C: a run goes on bit for bit, or one line says what to do.

Every process that trains is forked from this one, which has imported all and never trains: a kill costs a tenth of a
second. A few kills go through the command line from its start.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import headwater
import lightning_fabric  # noqa: F401 - loaded once, here
import pytest
from headwater import registry
from headwater.cli import main
from headwater.errors import HeadwaterError, RunError
from headwater.run import Run
from headwater.testing.suite import same

STEPS = 60
TABLES = {
    "trainer": {
        "objective": "tb", "hidden": [16], "batch_size": 4, "decay_steps": 50, "replay": "prioritised",
        "replay_size": 64, "replay_batch": 4,
    },
    "sampler": {"block_size": 8},
    "fit": {
        "max_steps": STEPS, "checkpoint_every": 2, "log_every": 3, "validate_every": 7, "ema": 0.5,
        "accelerator": "cpu",
    },
}  # fmt: skip
SAMPLES = 200


def train(path, **fit):
    tables = {**TABLES, "fit": {**TABLES["fit"], **fit}}
    return headwater.train("gfn-fl", path, task="hypergrid", overrides=tables)


def go_on(path):
    """What a user does after a crash: resume, or, where no run was made, start again."""
    return headwater.resume(path) if path.exists() else train(path)


def call(*words):
    """The command line, in this process."""
    sys.argv = ["headwater", *map(str, words)]
    main()


def fork(work, log):
    """Start ``work`` in a forked process whose output goes into the file ``log``; return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def code_of(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def done(process):
    """Whether the process has ended; it can still be waited for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(process, seconds, seen=lambda: True):
    """Kill the process ``seconds`` after ``seen``; whether that ended it. A fault of its own fails the test."""
    while not seen() and not done(process):
        time.sleep(0.0002)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    code = code_of(process)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def lines(log):
    """What was said, without the lines of progress that a slow machine adds."""
    found = log.read_text().splitlines()
    return [line for line in found if line and not re.match(r"[a-z-]+: \d+/\d+ ", line)]


def in_child(work, log):
    code = code_of(fork(work, log))
    assert code == 0, log.read_text()


def result(path, step=STEPS):
    """All that a run leaves, but for times: modules, averages, optimisers, generators, replay, archive, metrics."""
    run = Run(path)
    states = [run.load(step, name) for name in ("model", "training", "rank-0")]
    times = ("seconds", "steps_per_second")
    return [*states, [{k: v for k, v in line.items() if k not in times} for line in run.metrics()]]


def litter(folder):
    """Names of what is half-written in a run or beside it."""
    return [p.name for p in folder.rglob(".*") if p.name.endswith((".new", ".tmp", ".old"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run"
    in_child(lambda: train(path), path.parent / "log")
    return path


@pytest.fixture(scope="module")
def samples(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("samples") / "whole.csv"
    in_child(lambda: headwater.sample(whole, path, SAMPLES), path.parent / "log")
    return path.read_bytes()


# Kills


def unfinished(path):
    """The folders of half-written checkpoints, told apart by inode; one may be published while we look."""
    with suppress(FileNotFoundError):
        return {p.stat().st_ino for p in path.glob("checkpoints/.step-*.new")}
    return set()


def test_200_kills_at_random_moments_never_cost_a_run(whole, tmp_path):
    expected, chance, log = result(whole), random.Random(0), tmp_path / "log"
    kills = inside = early = compared = since = 0
    run = tmp_path / "0" / "run"
    run.parent.mkdir()
    while kills < 200 or since:
        before = unfinished(run)
        process = fork(lambda run=run: go_on(run), log)
        if kills < 200 and since < 19:
            # Two of four while a checkpoint is written, one at any moment, one among the first.
            longest = (0.004, 0.004, 0.4, 0.05)[kills % 4]
            writing = lambda run=run, before=before: unfinished(run) - before  # noqa: E731
            killed = kill(process, chance.uniform(0, longest), writing if kills % 4 < 2 else lambda: True)
        else:
            killed = False
            assert code_of(process) == 0, log.read_text()
        if killed:
            kills, since = kills + 1, since + 1
            inside += bool(unfinished(run) - before)
            early += not run.exists() or not Run(run).checkpoints()
        else:
            assert same(result(run), expected), f"after {kills} kills"
            assert litter(run) == []
            compared, since, run = compared + 1, 0, tmp_path / str(compared + 1) / "run"
            run.parent.mkdir()
    print(f"{kills} kills: {inside} inside a checkpoint, {early} before the first; {compared} compared")
    assert inside >= 40
    assert early >= 8
    assert "Traceback" not in log.read_text(), log.read_text()


def test_sampling_that_is_killed_at_random_moments_writes_the_same_file(whole, samples, tmp_path):
    chance, log = random.Random(1), tmp_path / "log"
    kills = resumed = compared = 0
    out = tmp_path / "0.csv"
    while kills < 40:
        blocks = lambda out=out: len(list(tmp_path.glob(f"{out.name}.parts/block-*")))  # noqa: E731
        before = blocks()
        process = fork(lambda out=out: headwater.sample(whole, out, SAMPLES), log)
        more = lambda blocks=blocks, before=before: blocks() > before  # noqa: E731
        killed = kill(process, chance.uniform(0, 0.03), more if kills % 4 else lambda: True)
        kills += killed
        resumed += before > 0
        if out.exists():  # a kill may come after the file is in place
            assert out.read_bytes() == samples
            compared, out = compared + 1, tmp_path / f"{compared + 1}.csv"
    print(f"{kills} kills, {resumed} jobs went on, {compared} compared")
    assert resumed >= 10
    assert compared >= 2
    assert "Traceback" not in log.read_text(), log.read_text()


def test_blocks_that_a_killed_removal_left_are_not_taken_for_those_of_the_next_job(whole, samples, tmp_path):
    def work():
        parts = tmp_path / "a.csv.parts"
        headwater.sample(whole, tmp_path / "other.csv", SAMPLES, seed=1)
        parts.mkdir()
        shutil.copy(tmp_path / "other.csv", parts / "block-0000003.csv")
        headwater.sample(whole, tmp_path / "a.csv", SAMPLES)

    in_child(work, tmp_path / "log")
    assert (tmp_path / "a.csv").read_bytes() == samples


def children(process):
    """The process ids of its children, where the system lists them."""
    try:
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:
        return []


def command(*words):
    words = [sys.executable, "-m", "headwater", *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_five_kills_through_the_command_line(whole, samples, tmp_path):
    config, run, out = whole / "config.toml", tmp_path / "run", tmp_path / "a.csv"
    words = ("train", "gfn-fl", "--task", "hypergrid", "--config", config, "--out", run)

    def killed(words, seen):
        process = command(*words)
        while not seen():
            assert process.poll() is None, process.communicate()
            time.sleep(0.0002)
        workers = [Path("/proc", word) for word in children(process.pid)]
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 20
        while any(worker.exists() for worker in workers):  # they end with their parent
            assert time.monotonic() < deadline, workers
            time.sleep(0.05)

    began = time.monotonic()
    killed(words, lambda: time.monotonic() > began + 0.5)
    assert not run.exists()
    killed(words, lambda: list(run.glob("checkpoints/.step-*")))
    killed(("resume", run), lambda: Run(run).checkpoints()[-1:] > [20])
    process = command("resume", run)
    assert process.wait() == 0, process.communicate()
    assert same(result(run), result(whole))
    sample = ("sample", run, "-n", SAMPLES, "-o", out)
    killed(sample, lambda: (tmp_path / "a.csv.parts" / "block-0000003.csv").exists())
    killed((*sample, "--workers", 2), lambda: len(list(tmp_path.glob("a.csv.parts/block-*"))) > 8)
    assert not out.exists()
    process = command(*sample)
    assert process.wait() == 0, process.communicate()
    assert out.read_bytes() == samples


# Ctrl-C


@pytest.mark.parametrize("numbers", [("SIGINT",), ("SIGTERM",), ("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT")])
def test_ctrl_c_and_sigterm_end_training_with_one_line_and_it_goes_on(whole, tmp_path, numbers):
    run, log = tmp_path / "run", tmp_path / "log"
    process = fork(
        lambda: call("train", "gfn-fl", "--task", "hypergrid", "--config", whole / "config.toml", "--out", run),
        log,
    )
    while not (run / "checkpoints" / "step-10").exists():
        assert not done(process), log.read_text()
        time.sleep(0.0002)
    for number in numbers:
        os.kill(process, getattr(signal, number))
    assert code_of(process) == 130
    (line,) = lines(log)
    at = "" if len(numbers) == 2 and "at step" not in line else r" at step \d+"
    assert re.fullmatch(f"interrupted{at}; go on with: headwater resume {run}", line)
    in_child(lambda: headwater.resume(run), log)
    assert same(result(run), result(whole))


def test_ctrl_c_before_the_run_is_made_says_to_give_the_same_command(whole, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"

    def work():
        Run.create = lambda *_, **__: signal.raise_signal(signal.SIGINT)
        call("train", "gfn-fl", "--task", "hypergrid", "--out", run)

    assert code_of(fork(work, log)) == 130
    assert lines(log) == ["interrupted; what was finished is on disk, the same command goes on"]
    assert not run.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_and_sigterm_end_sampling_with_one_line_and_it_goes_on(whole, samples, tmp_path, number, workers):
    out, log = tmp_path / "a.csv", tmp_path / "log"
    words = ("sample", whole, "-n", SAMPLES, "-o", out)

    def work():
        os.setpgid(0, 0)
        call(*words, "--workers", workers)

    process = fork(work, log)
    while len(list(tmp_path.glob("a.csv.parts/block-*"))) < 3:
        assert not done(process), log.read_text()
        time.sleep(0.0002)
    # A terminal sends Ctrl-C to all processes of the group, a job scheduler its signal to the first.
    (os.killpg if number == signal.SIGINT else os.kill)(process, number)
    assert code_of(process) == 130
    assert lines(log) == ["interrupted; what was finished is on disk, the same command goes on"]
    in_child(lambda: call(*words), log)
    assert out.read_bytes() == samples


# Disks


class Disk:
    """Counts the calls that write; from the k-th on, or at the k-th alone, they fail as on a full disk."""

    def __init__(self, k, lasting):
        self.calls, self.k, self.lasting = 0, k, lasting

    def check(self):
        self.calls += 1
        if self.calls == self.k or (self.lasting and self.calls > self.k):
            raise OSError(28, "No space left on device")

    def __enter__(self):
        from headwater import state

        self.places = [(os, n) for n in ("fsync", "rename", "replace", "mkdir")]
        self.places += [(state, "save_file"), (Path, "write_text"), (Path, "open")]
        self.before = [getattr(owner, name) for owner, name in self.places]
        for (owner, name), original in zip(self.places, self.before, strict=True):
            setattr(owner, name, self.opening(original) if name == "open" else self.failing(original))
        return self

    def __exit__(self, *exception):
        for (owner, name), original in zip(self.places, self.before, strict=True):
            setattr(owner, name, original)

    def failing(self, original):
        def call(*args, **kwargs):
            self.check()
            return original(*args, **kwargs)

        return call

    def opening(self, original):
        def opened(path, mode="r", *args, **kwargs):
            file = original(path, mode, *args, **kwargs)
            return file if mode.startswith("r") or "+" in mode else Writing(file, self)

        return opened


class Writing:
    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def write(self, data):
        self.disk.check()
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


def said(work):
    """What went wrong, in one line; ``None`` where nothing did."""
    try:
        work()
    except RunError as error:
        return str(error)
    return None


@pytest.mark.parametrize("lasting", [False, True])
def test_training_survives_that_any_call_that_writes_finds_the_disk_full(tmp_path, lasting):
    short = {"max_steps": 5, "validate_every": 0}

    def work():
        train(tmp_path / "straight", **short)
        for k in range(1, 1000):
            run = tmp_path / str(k)
            with Disk(k, lasting) as disk:
                text = said(lambda run=run: train(run, **short))
            if disk.calls < k:
                break
            assert text is None or re.match("cannot .*: No space left on device", text), text
            assert text is None or ("headwater resume" in text) == run.exists(), text
            headwater.resume(run) if run.exists() else train(run, **short)
            assert same(result(run, 5), result(tmp_path / "straight", 5)), k
            assert litter(run) == []
        assert k > 50

    in_child(work, tmp_path / "log")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("lasting", [False, True])
def test_sampling_survives_that_any_call_that_writes_finds_the_disk_full(whole, tmp_path, lasting):
    def work():
        headwater.sample(whole, tmp_path / "straight.csv", 30)
        for k in range(1, 1000):
            out = tmp_path / f"{k}.csv"
            with Disk(k, lasting) as disk:
                text = said(lambda out=out: headwater.sample(whole, out, 30))
            if disk.calls < k:
                break
            assert text is None or re.match("cannot .*: No space left on device", text), text
            if not out.exists():  # else the file was in place before the disk was full
                headwater.sample(whole, out, 30)
            assert out.read_bytes() == (tmp_path / "straight.csv").read_bytes(), k
        assert k > 15

    in_child(work, tmp_path / "log")


@pytest.fixture
def disk(tmp_path):
    """Mount a small disk of its own, writable or not, under a folder: ``disk("size=1m")``."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        words = ["mount", "-t", "tmpfs", "-o", options, "headwater-test", str(folder)]
        made = subprocess.run(words, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"cannot mount a disk here: {made.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def test_a_real_full_disk_inside_a_checkpoint_is_said_and_training_goes_on(whole, tmp_path, disk):
    folder, log = disk("size=1m"), tmp_path / "log"
    run, ballast = folder / "run", folder / "ballast"
    config = ("--config", whole / "config.toml", "--task", "hypergrid")
    for leave in (150_000, 110_000, 90_000, 40_000, 12_000):  # full in one file of the checkpoint or another
        ballast.write_bytes(bytes(2**20 - leave - 4096))
        assert code_of(fork(lambda: call("train", "gfn-fl", *config, "--out", run), log)) == 1
        assert re.search(
            r"^error: cannot (write in|make the run) .*: No space left on device.*$", log.read_text(), re.M
        ), log.read_text()
        assert len(lines(log)) == 1, log.read_text()
        assert litter(folder) == []
        ballast.unlink()
        in_child(lambda: go_on_with(run, whole), log)
        assert same(result(run), result(whole))
        shutil.rmtree(run)
        log.unlink()


def go_on_with(run, whole):
    headwater.resume(run) if run.exists() else headwater.train(
        "gfn-fl", run, task="hypergrid", config=whole / "config.toml"
    )


def test_a_read_only_folder_is_said_in_one_line_and_nothing_in_it_changes(whole, tmp_path, disk):
    if os.geteuid() == 0:
        folder = disk("size=4m")
        lock = lambda: subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)  # noqa: E731
    else:
        folder = tmp_path / "folder"
        folder.mkdir()
        lock = lambda: [p.chmod(0o555 if p.is_dir() else 0o444) for p in (folder, *folder.rglob("*"))]  # noqa: E731
    run = shutil.copytree(whole, folder / "run")
    lock()
    words = (
        "train",
        "gfn-fl",
        "--task",
        "hypergrid",
        "--config",
        whole / "config.toml",
        "--out",
        folder / "new",
    )
    for given in (words, ("resume", run, "--max-steps", 90), ("sample", run, "-o", folder / "a.csv")):
        log = tmp_path / f"{given[0]}.log"
        assert code_of(fork(lambda given=given: call(*given), log)) == 1
        (line,) = lines(log)
        assert re.match(
            r"error: cannot (write in|make the run) .*: (Read-only file system|Permission denied)$", line
        ), line
    assert same(result(run), result(whole))
    in_child(lambda: call("sample", run, "-n", 3, "-o", tmp_path / "a.csv"), tmp_path / "log")  # reading is fine


# Two processes at once


def test_a_run_and_an_output_have_one_process_at_a_time(whole, samples, tmp_path):
    run, out, log = tmp_path / "run", tmp_path / "a.csv", tmp_path / "log"

    def pause(module, name):
        """Stop this process, once, where it would call ``name``."""
        original = getattr(module, name)

        def stopped(*args, **kwargs):
            setattr(module, name, original)
            os.kill(os.getpid(), signal.SIGSTOP)
            return original(*args, **kwargs)

        setattr(module, name, stopped)

    def stopped_in(work, module, name):
        def held():
            pause(module, name)
            work()

        process = fork(held, log)
        assert os.WIFSTOPPED(os.waitpid(process, os.WUNTRACED)[1]), log.read_text()
        return process

    def refused(text, *words):
        assert code_of(fork(lambda: call(*words), tmp_path / "refused")) == 1
        assert text in (tmp_path / "refused").read_text()

    from headwater import fit, sampling

    process = stopped_in(lambda: train(run), fit, "save_state")
    refused("is in use by another process; wait for it to end", "resume", run)
    again = ("train", "gfn-fl", "--task", "hypergrid", "--out", run)
    refused("exists; choose another --out", *again)
    refused("is in use by another process; wait for it to end", *again, "--force")
    os.kill(process, signal.SIGCONT)
    assert code_of(process) == 0, log.read_text()
    assert same(result(run), result(whole))

    process = stopped_in(lambda: headwater.sample(whole, out, SAMPLES), sampling, "_write_block")
    refused(f"{out} is in use by another process", "sample", whole, "-n", SAMPLES, "-o", out)
    refused(f"{out} is in use by another process", "sample", whole, "-n", SAMPLES, "-o", out, "--force")
    os.kill(process, signal.SIGCONT)
    assert code_of(process) == 0, log.read_text()
    assert out.read_bytes() == samples


# Damage and hooks


def test_a_damaged_last_checkpoint_is_written_anew(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "checkpoints" / f"step-{STEPS}" / "rank-0.json").write_text("{")
    in_child(lambda: headwater.resume(run), tmp_path / "log")
    assert Run(run).latest() == STEPS
    assert same(result(run)[:3], result(whole)[:3])


def test_damaged_checkpoints_do_not_push_the_whole_ones_out(whole, tmp_path):
    """With ``keep = 1`` the next checkpoint would leave the damaged one, which is later, alone on disk."""
    run, log = tmp_path / "run", tmp_path / "log"

    def damage():
        train(run, keep=2, max_steps=8)
        (run / "checkpoints" / "step-8" / "model.json").write_text("{")
        config = (run / "config.toml").read_text()
        (run / "config.toml").write_text(config.replace("keep = 2", "keep = 1"))

    class Stop:
        @headwater.hookimpl
        def headwater_step_end(self, fit, step):
            fit.stop("enough")

    def one_step():
        registry.register(Stop(), name="stop")
        headwater.resume(run)

    in_child(damage, log)
    in_child(one_step, log)
    assert (Run(run).checkpoints(), Run(run).latest()) == ([7], 7)


@pytest.mark.parametrize("error", [ValueError("broken"), HeadwaterError("broken"), SystemExit("broken")])
def test_hooks_that_raise_are_said_once_and_change_nothing(whole, samples, tmp_path, error):
    class Broken:
        @headwater.hookimpl
        def headwater_checkpoint_saved(self):
            raise error

        @headwater.hookimpl
        def headwater_sample_start(self):
            raise error

    def work():
        registry.register(Broken(), name="broken")
        train(tmp_path / "run")
        headwater.sample(tmp_path / "run", tmp_path / "a.csv", SAMPLES)

    log = tmp_path / "log"
    in_child(work, log)
    assert [line.partition(":")[0] for line in lines(log)] == [
        "headwater_checkpoint_saved of the plugin broken failed and is off for this run",
        "headwater_sample_start of the plugin broken failed and is off for this job",
    ]
    assert same(result(tmp_path / "run"), result(whole))
    assert (tmp_path / "a.csv").read_bytes() == samples


def test_nan_in_one_step_keeps_the_checkpoint_before_it(whole, tmp_path):
    def work():
        from headwater_gfn_fl.trainer import FLTrainer

        loss = FLTrainer.loss
        calls = []

        def poisoned(self, batch):
            calls.append(1)
            return loss(self, batch) * (float("nan") if len(calls) == 25 else 1.0)

        FLTrainer.loss = poisoned
        call(
            "train",
            "gfn-fl",
            "--task",
            "hypergrid",
            "--config",
            whole / "config.toml",
            "--out",
            tmp_path / "run",
        )

    log = tmp_path / "log"
    assert code_of(fork(work, log)) == 1
    (line,) = lines(log)
    assert re.match(r"error: loss became nan .*the checkpoint of step 24 is whole\.", line)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] <= 24
    in_child(lambda: headwater.resume(tmp_path / "run"), log)
    assert same(result(tmp_path / "run"), result(whole))
