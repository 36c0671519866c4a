"""Packages of somebody else: built, installed into a new environment, and used outside this checkout."""

import json
import sys

import pytest
from conftest import call

PACKAGES = ("core", "tests/third_party/gauss", "tests/third_party/corridor", "tests/third_party/steplog")
TRAIN = ("train", "gauss", "--max-steps", 200)


@pytest.fixture(scope="session")
def wheels(build):
    return build(*PACKAGES)


@pytest.fixture(scope="session")
def bin(new_environment, wheels):
    """The folder with the commands of a new environment, into which the wheels are installed."""
    return new_environment(*wheels)


@pytest.fixture
def headwater(bin, tmp_path):
    """Call the installed command in an empty folder."""
    return lambda *words: call(bin / "headwater", *words, cwd=tmp_path)


@pytest.fixture
def script(bin, tmp_path):
    """Run a script with the new environment's Python in an empty folder."""

    def run(text):
        (tmp_path / "script.py").write_text(text)
        return call(bin / "python", tmp_path / "script.py", cwd=tmp_path)

    return run


def test_the_wheels_hold_what_the_packages_need_and_no_tests(wheels):
    import zipfile

    names = zipfile.ZipFile(next(w for w in wheels if w.name.startswith("headwater-"))).namelist()
    assert "headwater/reporting/page.html" in names
    assert "headwater/scaffold/template/pyproject.toml.txt" in names
    assert "headwater/py.typed" in names
    assert not any("test_" in name and not name.endswith(".txt") for name in names)


def test_list_shows_plugins_methods_and_tasks_with_their_distributions(headwater):
    found = json.loads(headwater("list", "--json").stdout)
    plugins = {p["name"]: (p["distribution"], p["version"], p["state"]) for p in found["plugins"]}
    assert plugins == {
        "gauss": ("headwater-gauss", "2.1.0", "loaded"),
        "corridor": ("corridor-task", "0.3", "loaded"),
        "steplog": ("steplog", "1.0", "loaded"),
    }
    assert [m["name"] for m in found["methods"]] == ["gauss"]
    assert [t["name"] for t in found["tasks"]] == ["corridor", "gauss-cloud"]
    assert "  corridor (corridor-task 0.3, API 1)\n" in headwater("list").stdout


def test_doctor_finds_nothing_wrong(headwater):
    done = headwater("doctor")
    assert (done.returncode, done.both) == (0, "no problem found\n")


def test_train_resume_sample_and_evaluate_from_the_command_line(headwater, tmp_path):
    done = headwater(*TRAIN, "--out", "run", "--task", "corridor", "--set", "task.length=6.0")
    assert done.returncode == 0, done.both
    assert done.stdout.splitlines() == [
        "trained to step 200: run",
        "no report: it needs pip install 'headwater[report]'",
    ]
    done = headwater("resume", "run", "--max-steps", 600)
    assert done.returncode == 0, done.both
    assert (tmp_path / "run" / "steps.log").read_text().splitlines() == [
        "start at 0",
        "saved 200",
        "end at 200 after 200 steps: done",
        "start at 200",
        "saved 500",
        "saved 600",
        "end at 600 after 600 steps: done",
    ]
    done = headwater("sample", "run", "-n", 1000, "-o", "points.csv", "--condition", "temperature=0.1")
    assert done.returncode == 0, done.both
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 1000
    task = ("--task", "corridor", "--set", "task.length=6.0")
    done = headwater("evaluate", *task, "--samples", "points.csv", "--json")
    assert json.loads(done.stdout)["mean_error"] < 0.3


def test_workers_of_an_installed_plugin_write_the_same_file(headwater, tmp_path):
    assert headwater(*TRAIN, "--out", "run").returncode == 0
    for n, workers in (("one", 1), ("two", 2)):
        done = headwater("sample", "run", "-n", 200, "-o", f"{n}.csv", "--workers", workers)
        assert done.returncode == 0, done.both
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_the_conformance_suite_passes(headwater):
    done = headwater("check", "gauss")
    assert done.returncode == 0, done.both


def test_a_method_that_does_not_accept_a_task_says_which_fit(headwater):
    done = headwater("train", "gauss", "--out", "run", "--task", "coridor")
    assert done.returncode == 2
    assert "did you mean 'corridor'?" in done.stderr


def test_the_same_from_python(script, tmp_path):
    done = script("""
import headwater

run = headwater.train("gauss", "run", overrides={"fit": {"max_steps": 400}})
model = headwater.load(run)
print(sum(len(block) for block in model.sample(100, seed=1)))
print(model.evaluate(2000)["mean_error"] < 0.1)
headwater.resume("run", max_steps=401)
print(headwater.sample("run", "points.csv", 10))
try:
    headwater.train("gauss", "run")
except headwater.RunError as error:
    print(error)
""")
    assert done.returncode == 0, done.both
    assert done.stdout.splitlines()[:3] == ["100", "True", "points.csv"]
    assert "run exists" in done.stdout.splitlines()[3]
    assert (tmp_path / "run" / "steps.log").exists()


def test_a_script_registers_a_task_and_a_hook_without_packaging(script, tmp_path):
    done = script("""
import headwater
import torch
from headwater import registry
from headwater_gauss.tasks import Points


class Square(Points):
    "The corners of a square."

    def points(self):
        return torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


registry.task("square")(Square)


class Stop:
    @headwater.hookimpl
    def headwater_step_end(self, fit, step):
        if step == 30:
            fit.stop("enough")


registry.register(Stop(), name="stop")
run = headwater.train("gauss", "run", task="square", overrides={"trainer": {"learning_rate": 0.1}})
print(run.reason, run.checkpoints())
print(headwater.load(run).evaluate(4000)["mean_error"] < 0.2)
""")
    assert done.returncode == 0, done.both
    assert done.stdout.splitlines() == ["enough [30]", "True"]
    done = call(sys.executable, "-m", "headwater", "sample", tmp_path / "run")
    assert done.returncode != 0


def test_training_on_two_devices_from_python_does_not_run_the_script_again(script):
    done = script("""
import headwater

print("once", flush=True)
run = headwater.train("gauss", "run", devices=2, overrides={"fit": {"max_steps": 3}})
print(run.manifest.processes, run.checkpoints())
""")
    assert done.returncode == 0, done.both
    assert done.stdout.count("once") == 1
    assert done.stdout.splitlines()[-1] == "2 [3]"


def test_a_plugin_that_is_broken_after_an_upgrade_leaves_the_others_working(bin, headwater):
    (source,) = bin.parent.glob("lib/*/site-packages/steplog/__init__.py")
    before = source.read_text()
    source.write_text("import a_module_that_is_gone\n")
    try:
        assert headwater(*TRAIN, "--out", "run").returncode == 0
        done = headwater("doctor")
        assert done.returncode == 1
        assert "error: steplog 1.0: module 'a_module_that_is_gone' is missing" in done.stdout
        assert "try: pip install --upgrade steplog" in done.stdout
    finally:
        source.write_text(before)
