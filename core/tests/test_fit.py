import ast
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import headwater
import pytest
import torch
from headwater import registry
from headwater.errors import HeadwaterError, NonFinite, PluginError, RunError, UsageError
from headwater.run import Run
from headwater.testing.suite import same
from toy import ToyTrainer

FIT = {"max_steps": 12, "log_every": 5, "checkpoint_every": 4, "ema": 0.9, "accelerator": "cpu", "keep": 20}


def train(path, *, trainer=None, **fit):
    return headwater.train("toy", path, overrides={"fit": {**FIT, **fit}, "trainer": trainer or {}})


def states(run, step):
    return [run.load(step, name) for name in ("model", "training", "rank-0")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("k", range(1, 12))
def test_stop_and_resume_equals_the_uninterrupted_run_for_any_step(whole, tmp_path, k):
    run = train(tmp_path / "run", max_steps=k)
    torch.manual_seed(99)  # whatever the process did in between does not matter
    resumed = headwater.resume(run.path, max_steps=12)
    assert same(states(resumed, 12), states(whole, 12))


def test_a_crash_between_checkpoints_loses_nothing_but_time(whole, tmp_path, monkeypatch):
    step = ToyTrainer.step

    def crash(self, batch):
        if batch[0] == 10:
            raise RuntimeError("power cut")
        return step(self, batch)

    monkeypatch.setattr(ToyTrainer, "step", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "run")
    monkeypatch.setattr(ToyTrainer, "step", step)
    resumed = headwater.resume(tmp_path / "run")
    assert same(states(resumed, 12), states(whole, 12))

    assert metrics(resumed) == metrics(whole)


def metrics(run):
    return [{k: v for k, v in m.items() if k not in ("seconds", "steps_per_second")} for m in run.metrics()]


def test_training_depends_on_the_seed_and_on_nothing_else(whole, tmp_path):
    torch.manual_seed(4)
    assert same(states(train(tmp_path / "again"), 12), states(whole, 12))
    other = train(tmp_path / "other", seed=1)
    assert not same(other.load(12, "model")["modules"], whole.load(12, "model")["modules"])


def test_ema_is_the_moving_average_of_the_weights(tmp_path):
    seen = []

    class Spy:
        @headwater.hookimpl
        def headwater_step_end(self, fit, step, metrics):
            seen.append(fit.trainer.modules["scale"]["log_z"].item())

    registry.register(Spy(), name="spy-ema")
    try:
        run = train(tmp_path / "run", max_steps=5, ema=0.5)
    finally:
        registry.unregister("spy-ema")
    expected = seen[0]
    for value in seen[1:]:
        expected = 0.5 * expected + 0.5 * value
    assert float(run.load(5, "model")["ema"]["scale"]["log_z"]) == pytest.approx(expected, rel=1e-6)


def test_a_nan_loss_stops_the_run_before_it_is_saved(tmp_path):
    with pytest.raises(NonFinite, match=r"loss became nan between steps 6 and 8.*checkpoint of step 4"):
        train(tmp_path / "run", trainer={"nan_at": 6})
    run = Run(tmp_path / "run")
    assert run.checkpoints() == [4]
    assert all(torch.isfinite(v).all() for v in run.load(4, "model")["modules"]["net"].values())


def test_an_existing_run_is_not_overwritten(whole):
    with pytest.raises(RunError, match=r"exists.*--force"):
        train(whole.path)
    assert whole.checkpoints()


def test_force_does_not_replace_what_is_no_run(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(RunError, match="no run"):
        headwater.train("toy", tmp_path, force=True)
    assert (tmp_path / "precious.txt").exists()


def test_two_processes_cannot_train_one_run(whole):
    holder = Run(whole.path)
    holder.lock()
    try:
        with pytest.raises(RunError, match="in use by another process"):
            headwater.resume(whole.path)
    finally:
        holder.unlock()


@pytest.mark.parametrize("name", ["model.safetensors", "training.json", "rank-0.json", "checksums.json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, tmp_path, name):
    run = train(tmp_path / "run", max_steps=10)
    path = run.checkpoint_path(10) / name
    path.write_bytes(path.read_bytes()[:-20])
    assert run.latest() == 8
    assert same(states(headwater.resume(run.path, max_steps=12), 12), states(whole, 12))


def test_a_run_whose_checkpoints_are_all_damaged_says_so(tmp_path):
    run = train(tmp_path / "run", max_steps=2)
    (run.checkpoint_path(2) / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        headwater.resume(run.path)


def test_a_newer_run_and_a_damaged_manifest_are_refused(tmp_path):
    run = train(tmp_path / "run", max_steps=1)
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(RunError, match=r"newer headwater.*pip install -U headwater"):
        Run(run.path)
    (run.path / "manifest.json").write_text('{"schema_version": 1}')
    with pytest.raises(RunError, match="damaged"):
        Run(run.path)
    (run.path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="cannot read"):
        Run(run.path)
    with pytest.raises(RunError, match="is no run"):
        Run(tmp_path)


def test_a_run_of_a_missing_plugin_names_the_package(tmp_path):
    run = train(tmp_path / "run", max_steps=1)
    text = (run.path / "manifest.json").read_text().replace('"toy"', '"vision-vin"')
    text = text.replace("headwater-toy", "headwater-vision-vin")
    (run.path / "manifest.json").write_text(text)
    with pytest.raises(PluginError, match=r"pip install headwater-vision-vin==1\.0"):
        headwater.load(run.path)


def test_a_full_disk_says_what_is_safe_and_how_to_go_on(whole, tmp_path, monkeypatch):
    def full(tensors, path):
        if "step-8" in str(path):
            raise OSError(28, "No space left on device")
        return save(tensors, path)

    from headwater import state

    save = state.save_file
    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(RunError, match=r"No space left on device; the checkpoint of step 4 is whole.*headwater resume"):
        train(tmp_path / "run")
    monkeypatch.setattr(state, "save_file", save)
    assert same(states(headwater.resume(tmp_path / "run"), 12), states(whole, 12))


def test_from_another_run_starts_from_its_weights_and_records_it(whole, tmp_path):
    with pytest.raises(UsageError, match="pass --from RUN"):
        headwater.train("toy", tmp_path / "no", stage="refine", overrides={"fit": FIT})
    run = headwater.train(
        "toy",
        tmp_path / "yes",
        stage="refine",
        overrides={"fit": {**FIT, "max_steps": 0}},
        from_runs=[whole.path],
    )
    assert run.manifest.lineage == [{"path": str(whole.path), "id": whole.manifest.id, "stage": "fit", "step": 12}]
    assert same(run.load(0, "model")["modules"], whole.load(12, "model")["modules"])


def test_a_resumed_stage_keeps_the_modules_and_facts_that_it_carries_along(whole, tmp_path):
    def polish(name, max_steps):
        tables = {"fit": {**FIT, "max_steps": max_steps}}
        return headwater.train("toy", tmp_path / name, stage="polish", overrides=tables, from_runs=[whole.path])

    straight = polish("straight", 12)
    resumed = headwater.resume(polish("stopped", 5).path, max_steps=12)
    assert same(states(resumed, 12), states(straight, 12))
    model = resumed.load(12, "model")
    assert model["facts"] == {"offset": 0.5, "level": 2.0}
    assert same(model["modules"]["net"], whole.load(12, "model")["ema"]["net"])
    assert len(torch.cat(list(headwater.load(resumed).sample(5)))) == 5


class Recorder:
    def __init__(self, fail_in=None):
        self.calls, self.fail_in = [], fail_in

    def _note(self, name):
        self.calls.append(name)
        if name == self.fail_in:
            raise ValueError("a broken logger")

    @headwater.hookimpl
    def headwater_fit_start(self, fit):
        self._note("start")

    @headwater.hookimpl
    def headwater_step_end(self, fit, step):
        fit.state.setdefault("recorder", {"steps": 0})["steps"] += 1
        self._note("step")
        if step == 9:
            fit.stop("early enough")

    @headwater.hookimpl
    def headwater_checkpoint_saved(self, step, path):
        assert (path / "checksums.json").exists()
        self._note(f"saved {step}")

    @headwater.hookimpl
    def headwater_fit_end(self, reason):
        self._note(f"end {reason}")


def with_hook(hook, call):
    registry.register(hook, name="recorder")
    try:
        return call()
    finally:
        registry.unregister("recorder")


def test_fit_hooks_are_called_in_order_and_can_stop(tmp_path):
    recorder = Recorder()
    run = with_hook(recorder, lambda: train(tmp_path / "run"))
    assert run.checkpoints()[-1] == 9
    assert recorder.calls == [
        "start", *["step"] * 4, "saved 4", *["step"] * 4, "saved 8", "step", "saved 9", "end early enough",
    ]  # fmt: skip
    assert run.load(9, "training")["hooks"] == {"recorder": {"steps": 9}}


def test_a_fit_hook_that_raises_is_reported_once_and_switched_off(whole, tmp_path, capsys):
    recorder = Recorder(fail_in="step")
    run = with_hook(recorder, lambda: train(tmp_path / "run"))
    assert recorder.calls == ["start", "step"]
    assert capsys.readouterr().err.count("a broken logger") == 1
    assert same(run.load(12, "model")["modules"], whole.load(12, "model")["modules"])


def test_a_fit_hook_that_raises_is_an_error_under_strict(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWATER_STRICT", "1")
    with pytest.raises(HeadwaterError, match="a broken logger"):
        with_hook(Recorder(fail_in="step"), lambda: train(tmp_path / "run"))


def test_ctrl_c_saves_and_says_how_to_go_on(whole, tmp_path):
    class Interrupt:
        @headwater.hookimpl
        def headwater_step_end(self, step):
            if step == 7:
                os.kill(os.getpid(), signal.SIGINT)

    run = with_hook(Interrupt(), lambda: train(tmp_path / "run"))
    assert (run.reason, run.checkpoints()[-1]) == ("interrupted", 7)
    resumed = headwater.resume(run.path)
    assert same(states(resumed, 12), states(whole, 12))
    assert metrics(resumed) == metrics(whole)


def test_loader_processes_draw_what_the_training_process_would(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyTrainer, "on_policy", False)
    monkeypatch.setattr(ToyTrainer, "draw", lambda self, k, g: (k, torch.randn(4, 2, generator=g)))
    monkeypatch.setattr(ToyTrainer, "setup", setup_with_replay)
    inline, ahead = train(tmp_path / "inline"), train(tmp_path / "ahead", workers=2)
    assert same(inline.load(12, "model"), ahead.load(12, "model"))


original_setup = ToyTrainer.setup


def setup_with_replay(self):
    original_setup(self)
    self.replay.values = torch.ones(3)


def test_weights_that_lie_otherwise_in_memory_resume_bit_for_bit_too(tmp_path, monkeypatch):
    def set_up(self):
        original_setup(self)
        weight = self.modules["net"][0].weight
        weight.data = weight.data.t().contiguous().t()
        self.optimisers["net"] = torch.optim.Adam(self.modules["net"].parameters(), 0.05, fused=True)
        self.schedulers.clear()

    monkeypatch.setattr(ToyTrainer, "setup", set_up)
    whole = train(tmp_path / "whole")
    resumed = headwater.resume(train(tmp_path / "part", max_steps=5).path, max_steps=12)
    assert same(states(resumed, 12), states(whole, 12))


def test_double_precision_is_double_throughout(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyTrainer, "draw", lambda self, k, g: (k, torch.randn(4, 2, generator=g, dtype=torch.float64)))
    monkeypatch.setattr(ToyTrainer, "setup", setup_with_replay)
    run = train(tmp_path / "run", precision="64-true")
    weights = run.load(12, "model")["modules"]["net"]
    assert {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.float64}


def test_kernel_stays_small():
    names = (
        "hookspecs",
        "registry",
        "loading",
        "remedies",
        "entries",
        "task",
        "trainer",
        "sampler",
        "fit",
        "run",
    )
    folder = Path(headwater.__file__).parent
    assert sum(code_lines((folder / f"{name}.py").read_text()) for name in names) < 1500


def code_lines(text):
    """Lines that hold code: no blank line, comment or docstring."""
    tree = ast.parse(text)
    docs = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for i, line in lines if i not in docs and line.strip() and not line.strip().startswith("#"))


def test_import_is_light():
    code = "import sys, headwater; headwater.MethodEntry; print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_loads():
    for name in headwater.__all__:
        value = getattr(headwater, name)
        assert isinstance(value, types.ModuleType) or value is not None


def test_the_number_of_threads_is_set_for_the_fit_and_put_back(tmp_path):
    seen = []

    class Spy:
        @headwater.hookimpl
        def headwater_step_end(self):
            seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    with_hook(Spy(), lambda: train(tmp_path / "run", max_steps=1, threads=before + 1))
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_a_trainer_says_which_modules_are_averaged_and_sees_the_averages(tmp_path, monkeypatch):
    seen = []

    def validate(self):
        seen.append(dict(self.averages))
        return {}

    monkeypatch.setattr(ToyTrainer, "validate", validate)
    for averaged, names in ((None, {"net"}), (("net",), {"net"}), ((), set())):
        monkeypatch.setattr(ToyTrainer, "averaged", averaged)
        fit = {"max_steps": 2, "accelerator": "cpu", "ema": 0.5}
        run = headwater.train("toy", tmp_path / f"{averaged}", overrides={"fit": fit})
        assert names <= set(seen[-1]) if averaged is None else set(seen[-1]) == names
        state = run.load(2, "model")
        assert set(state["ema"]) == set(seen[-1])
        for name, module in seen[-1].items():
            assert all(torch.equal(v, state["ema"][name][k]) for k, v in module.state_dict().items())
