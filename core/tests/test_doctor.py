from fakes import PARTS, install, source
from headwater.doctor import as_text, examine

SLEEP = "import time\ntime.sleep(60)\n"


def of(name, findings):
    return [finding.what for finding in findings if finding.plugin == name]


def test_what_ends_or_stops_the_process_costs_one_finding_and_nothing_more(site):
    install(site, "aborts", "import os\nos.abort()\n")
    install(site, "leaves", parts="import os\nos._exit(7)\n")
    install(site, "hangs", SLEEP)
    install(site, "hangs-late", parts=SLEEP)
    install(site, "well")
    findings = examine(timeout=2)
    assert of("aborts", findings) == ["importing it crashes the process with SIGABRT"]
    assert of("hangs", findings) == ["importing it does not end within 2 seconds"]
    late = "importing 'fake_hangs_late.parts:FakeTask' does not end within 2 seconds"
    assert f"task of task 'hangs-late-task': {late}" in of("hangs-late", findings)
    assert "ends the process with exit code 7" in of("leaves", findings)[0]
    assert of("well", findings) == []
    assert {(f.version, f.remedy) for f in findings if f.plugin == "hangs"} == {
        ("1.2", "pip install --upgrade headwater-hangs")
    }


def test_a_class_of_the_wrong_kind_is_found(site):
    swapped = source("swapped", trainer="fake_swapped.parts:FakeSampler", config="fake_swapped.parts:FakeTask")
    install(site, "swapped", swapped)
    found = of("swapped", examine())
    assert (
        "trainer of stage 'swapped/fit': 'fake_swapped.parts:FakeSampler' is no subclass of headwater.Trainer" in found
    )
    assert "config of task 'swapped-task': 'fake_swapped.parts:FakeTask' is no subclass of pydantic.BaseModel" in found


def test_a_class_that_lacks_a_method_is_found(site):
    install(site, "half", parts=PARTS.replace("def block", "def blok"))
    assert of("half", examine()) == ["sampler of sampler 'half/plain': 'fake_half.parts:FakeSampler' lacks block"]


def test_a_config_without_a_json_schema_is_found(site):
    parts = "from collections.abc import Callable\n" + PARTS.replace("block_size: int", "block_size: Callable")
    install(site, "callable", parts=parts)
    assert "config of stage 'callable/fit': its JSON schema cannot be built: " in " ".join(of("callable", examine()))


def test_a_kind_that_entry_and_class_disagree_on_is_found(site):
    install(site, "kind", parts=PARTS.replace('kind = "fake.kind"', 'kind = "other"'))
    assert of("kind", examine()) == ["task of task 'kind-task': its entry says kind 'fake.kind', the class 'other'"]


def test_a_default_task_that_is_not_registered_is_found(site):
    install(site, "taskless", source("taskless").replace('task="taskless-task"', 'task="nowhere"'))
    assert of("taskless", examine())[0].startswith("the default task 'nowhere' of 'taskless' is not registered")


def test_a_stage_that_builds_on_an_unknown_one_is_found(site):
    install(site, "stairs", source("stairs").replace('name="fit"', 'name="fit", after=("fitt",)'))
    assert of("stairs", examine()) == ["stage 'stairs/fit' builds on 'fitt'; did you mean 'fit'?"]


def test_a_heavy_plugin_module_is_a_warning(site):
    install(site, "heavy", "import numpy\n" + source("heavy"))
    (found,) = [f for f in examine() if f.plugin == "heavy"]
    assert found.level == "warning"
    assert found.what.startswith("importing its plugin module loads numpy")


def test_a_plugin_for_another_core_says_which_to_install(site):
    install(site, "newer", requires=["headwater>=7.1"])
    (found,) = [f for f in examine() if f.plugin == "newer"]
    assert "it needs headwater>=7.1, but headwater" in found.what
    assert found.remedy == "pip install 'headwater>=7.1'"


def test_disabled_plugins_are_left_alone(site, monkeypatch):
    install(site, "off", "raise ValueError('touched')")
    monkeypatch.setenv("HEADWATER_DISABLE", "off")
    assert of("off", examine()) == []


def test_strict_does_not_keep_doctor_from_examining(site, monkeypatch):
    install(site, "bad", "raise ValueError('no')")
    monkeypatch.setenv("HEADWATER_STRICT", "1")
    assert of("bad", examine()) == ["ValueError: no (plugin.py, line 1)"]


def test_no_finding_is_said_in_words():
    assert as_text([]) == "no problem found"
