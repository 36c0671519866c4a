import re
import types

import pytest
from fakes import command, install, package, source
from headwater import Config, MethodEntry, SamplerEntry, StageEntry, Task, TaskEntry, hookimpl
from headwater.errors import PluginError, UsageError
from headwater.registry import Registry
from pydantic import ValidationError

UPGRADE = "pip install --upgrade headwater-hurt"
STAGE = """\
from headwater import SamplerEntry, StageEntry, hookimpl

API = 1


@hookimpl
def headwater_trainers():
    return [StageEntry(name="{stage}", method="{method}", summary="s", trainer="m:A", config="m:B")]


@hookimpl
def headwater_samplers():
    return [SamplerEntry(name="{sampler}", method="{method}", summary="s", sampler="m:A", config="m:B")]
"""


def test_plugins_are_found_once_and_on_first_use(site):
    registry = Registry()
    install(site, "one")
    assert "one" in registry.methods()
    install(site, "late")
    assert "late" not in registry.methods()
    assert "late" in Registry().methods()


def test_a_disabled_plugin_is_not_imported_and_says_how_to_enable_it(site, monkeypatch):
    install(site, "off", "raise ValueError('imported')")
    install(site, "on")
    monkeypatch.setenv("HEADWATER_DISABLE", " off , other")
    registry = Registry()
    assert registry.plugins()["off"].state == "disabled"
    assert "on" in registry.methods()
    with pytest.raises(UsageError, match=r"headwater-off 1\.2.* is disabled: .*unset HEADWATER_DISABLE"):
        registry.find_method("off")


def test_an_empty_list_of_disabled_plugins_disables_none(site, monkeypatch):
    install(site, "nameless")
    (site / "headwater_nameless-1.2.dist-info" / "entry_points.txt").write_text("[headwater]\n= fake_nameless\n")
    monkeypatch.setenv("HEADWATER_DISABLE", "")
    assert "disabled" not in {plugin.state for plugin in Registry().plugins().values()}


def test_strict_accepts_what_is_sound(site, monkeypatch):
    install(site, "sound")
    monkeypatch.setenv("HEADWATER_STRICT", "1")
    assert Registry().plugins()["sound"].state == "loaded"


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("smoth", "did you mean 'smooth'"),
        ("gfn-fll", "did you mean 'gfn-fl'.*pip install headwater-gfn-fl"),
        ("vision-vin", "is not installed; try: pip install headwater-vision-vin"),
        ("xyzzy", "is unknown; known: "),
    ],
)
def test_an_unknown_method_says_what_is_near_and_what_to_install(site, asked, answer):
    install(site, "smooth")
    with pytest.raises(UsageError, match=answer):
        Registry().find_method(asked)


def test_an_unknown_name_mentions_broken_plugins(site):
    install(site, "bad", "1 / 0")
    with pytest.raises(UsageError, match=r"broken plugins: bad; see headwater doctor"):
        Registry().find_method("xyzzy")


def test_stages_and_samplers_of_other_plugins_come_after_the_methods_own(site):
    install(site, "main")
    install(site, "extra", STAGE.format(stage="tune", sampler="slow", method="main"))
    registry = Registry()
    assert list(registry.stages("main")) == ["fit", "tune"]
    assert list(registry.samplers("main")) == ["plain", "slow"]
    assert registry.stage("main").name == "fit"
    assert registry.owner("stage", "main/tune").name == "extra"
    assert registry.plugins()["extra"].stages == ("main/tune",)
    with pytest.raises(UsageError, match="did you mean 'tune'"):
        registry.stage("main", "tuen")


def test_a_stage_cannot_displace_the_methods_own_nor_join_a_method_that_is_not_there(site):
    install(site, "main")
    install(site, "a-thief", STAGE.format(stage="fit", sampler="plain", method="main"))
    install(site, "orphan", STAGE.format(stage="tune", sampler="slow", method="absent"))
    registry = Registry()
    assert registry.owner("stage", "main/fit").name == "main"
    assert len(registry.plugins()["a-thief"].clashes) == 2
    clash = registry.plugins()["orphan"].clashes[0]
    assert clash == ("stage 'tune' is for 'absent', which is no method here", "pip install headwater-absent")


def test_of_two_claims_without_the_distribution_of_that_name_the_first_in_the_alphabet_wins(site):
    install(site, "later", source("later", method="shared"))
    install(site, "early", source("early", method="shared"))
    registry = Registry()
    assert registry.owner("method", "shared").name == "early"
    assert registry.plugins()["later"].clashes[0].text.startswith("method 'shared' belongs to plugin 'early'")


def test_of_two_plugins_of_one_name_the_other_goes_by_its_distribution(site):
    install(site, "same", dist="a-other")
    (site / package("same")).rename(site / "fake_moved")
    install(site, "same")
    plugins = Registry().plugins()
    assert plugins["same"].distribution == "headwater-same"
    assert plugins["a-other"].clashes[0].text == "its name 'same' belongs to headwater-same"


@pytest.mark.parametrize("line", [b"hurt \xff = a", b"hurt", b"hurt =", b"hurt = not a module", b"= fake_hurt"])
def test_damaged_metadata_of_one_distribution_hides_no_other(site, line):
    install(site, "well")
    install(site, "hurt")
    (site / "headwater_hurt-1.2.dist-info" / "entry_points.txt").write_bytes(b"[headwater]\n" + line)
    registry = Registry()
    assert "well" in registry.methods()
    (record,) = [p for p in registry.plugins().values() if p.distribution == "headwater-hurt"]
    assert (record.state, record.version, record.remedy) == ("broken", "1.2", UPGRADE)


def test_a_plugin_that_uses_the_registry_while_it_is_imported_is_broken_not_deadlocked(site):
    install(site, "eager", f"from headwater import registry\nregistry.methods()\n{source('eager')}")
    done = command("list", path=site)
    assert "eager (headwater-eager 1.2): broken\n    it uses the registry while it is imported" in done.stdout


@pytest.mark.parametrize(
    ("plugin", "error"),
    [
        ("x = 1", "does not say for which plugin API"),
        ("API = 1", "registers nothing: it has no function marked @hookimpl"),
        ("API = 1\ndef headwater_tasks():\n    return []", "headwater_tasks lacks the mark @hookimpl"),
        ("{h}@hookimpl\ndef headwater_tasks():\n    return []", "its hooks return empty lists"),
        (
            "{h}@hookimpl\ndef headwater_task():\n    return []",
            "there is no hook 'headwater_task'; did you mean",
        ),
        ("{h}@hookimpl\ndef headwater_fit_start(trainer):\n    pass", "headwater_fit_start.*trainer"),
        ("{h}@hookimpl(wrapper=True)\ndef headwater_fit_start(fit):\n    yield", "is a hook wrapper"),
        (
            "{h}@hookimpl\ndef headwater_tasks():\n    return ['x']",
            "a list with str in it, not only TaskEntry",
        ),
    ],
)
def test_hooks_are_validated_at_registration(site, plugin, error):
    install(site, "odd", plugin.format(h="from headwater import hookimpl\nAPI = 1\n"))
    record = Registry().plugins()["odd"]
    assert record.state == "broken"
    with pytest.raises(AssertionError, match=error):
        raise AssertionError(record.error)


def test_a_plugin_that_registers_a_name_twice_registers_nothing(site):
    twice = (
        source("twice")
        .replace("return [TaskEntry", "return 2 * [TaskEntry")
        .replace("return [\n        TaskEntry", "return 2 * [\n        TaskEntry")
    )
    install(site, "twice", twice)
    registry = Registry()
    assert registry.plugins()["twice"].error == "it registers task 'twice-task' twice"
    assert "twice" not in registry.methods()


# Scripts


class Plane(Task):
    """A plane without anything on it."""

    kind = "toy.numbers"


class PlaneConfig(Config):
    size: int = 3


def entry(name, **fields):
    return TaskEntry(
        name=name, kind="toy.numbers", summary="s", task=f"{__name__}:Plane", config=f"{__name__}:PlaneConfig"
    ).model_copy(update=fields)


def script(*tasks):
    class Script:
        @hookimpl
        def headwater_tasks(self):
            return list(tasks)

    return Script()


def test_a_script_registers_an_object_and_takes_it_back():
    registry = Registry()
    registry.register(script(entry("plane")), name="mine")
    assert registry.find_task("plane").summary == "s"
    assert str(registry.owner("task", "plane")) == "'mine' (this script)"
    registry.unregister("mine")
    assert "plane" not in registry.tasks()


def test_a_script_registers_a_module_that_is_nowhere_on_the_path():
    module = types.ModuleType("made_by_hand")
    module.Plane, module.PlaneConfig = Plane, PlaneConfig
    mine = entry("plane", task="made_by_hand:Plane", config="made_by_hand:PlaneConfig")
    module.headwater_tasks = hookimpl(lambda: [mine])
    registry = Registry()
    registry.register(module)
    assert registry.resolve(registry.find_task("plane").task) is Plane


def test_registering_again_replaces_what_a_script_registered():
    registry = Registry()
    registry.register(script(entry("plane")), name="mine")
    registry.register(script(entry("plain")), name="mine")
    assert "plane" not in registry.tasks()
    assert "plain" in registry.tasks()


def test_a_script_that_registers_the_wrong_thing_is_told_at_once():
    registry = Registry()
    with pytest.raises(PluginError, match=r"cannot register 'mine' \(this script\): .*returns a list with int"):
        registry.register(script(3), name="mine")
    with pytest.raises(PluginError, match=r"task 'toy-numbers' belongs to plugin 'toy'"):
        registry.register(script(entry("toy-numbers")), name="mine")
    with pytest.raises(PluginError, match=r"'toy' \(headwater-toy 1\.0\) is installed; take another name"):
        registry.register(script(entry("plane")), name="toy")
    assert "plane" not in registry.tasks()
    assert registry.owner("task", "toy-numbers").name == "toy"


def test_a_task_is_registered_by_a_decorator():
    registry = Registry()

    @registry.task("open-plane", config=PlaneConfig)
    class OpenPlane(Task):
        """An open plane.

        With more words about it.
        """

        kind = "toy.numbers"

    found = registry.find_task("open-plane")
    assert (found.summary, found.kind) == ("An open plane.", "toy.numbers")
    assert registry.resolve(found.task) is OpenPlane
    assert registry.resolve(found.config) is PlaneConfig


def test_the_decorator_takes_the_kind_of_a_class_that_has_none():
    registry = Registry()

    @registry.task("bare", kind="a.kind", summary="bare")
    class Bare(Task):
        pass

    assert Bare.kind == registry.find_task("bare").kind == "a.kind"
    with pytest.raises(UsageError, match=r"is of kind 'a.kind', not 'b.kind'; name one kind"):
        registry.task("bare-again", kind="b.kind")(Bare)


@pytest.mark.parametrize(
    ("name", "cls", "error"),
    [
        ("plane", object, "is no subclass of headwater.Task"),
        ("Bad Name", Plane, "is no name; use lower-case letters"),
    ],
)
def test_the_decorator_says_what_it_cannot_take(name, cls, error):
    with pytest.raises(UsageError, match=error):
        Registry().task(name)(cls)


def test_hooks_come_in_order_of_registration_with_tryfirst_before_and_trylast_after():
    registry = Registry()
    for name, options in (("a", {"trylast": True}), ("b", {}), ("c", {"tryfirst": True}), ("d", {})):
        hook = types.SimpleNamespace(
            __name__=name, headwater_fit_end=hookimpl(**options)(lambda reason, name=name: name)
        )
        registry.register(hook, name=name)
    found = registry.implementations("headwater_fit_end")
    assert [name for name, _ in found] == ["c", "b", "d", "a"]
    assert [call(fit=None, reason="x") for _, call in found] == ["c", "b", "d", "a"]
    with pytest.raises(UsageError, match="did you mean 'headwater_fit_end'"):
        registry.implementations("headwater_fit_ends")


# Entries


@pytest.mark.parametrize("name", ["Upper", "two words", "a--b", "-a", "a_b", "../up", ""])
def test_a_name_that_is_no_slug_is_refused(name):
    with pytest.raises(ValidationError, match="is no name"):
        StageEntry(name=name, summary="s", trainer="m:A", config="m:B")


@pytest.mark.parametrize("string", ["m", "m.A", "m:", ":A", "m:A()", "m:A;import os", "__import__('os'):system"])
def test_what_is_no_import_string_is_refused(string):
    with pytest.raises(ValidationError, match="is no import string"):
        SamplerEntry(name="a", summary="s", sampler=string, config="m:B")


def test_entries_are_frozen_and_refuse_unknown_fields():
    stage = StageEntry(name="a", summary="s", trainer="m:A", config="m:B")
    with pytest.raises(ValidationError, match="frozen"):
        stage.name = "b"
    with pytest.raises(ValidationError, match="Extra inputs"):
        StageEntry(name="a", summary="s", trainer="m:A", config="m:B", extra=1)
    with pytest.raises(ValidationError, match="samplers"):
        MethodEntry.model_validate({"name": "a", "samplers": []})


@pytest.mark.parametrize("core", ["0.1", "0.1.0", "0.1.9", "0.2", "0.2.0", "0.10.3", "1.0", "0.2.0rc1"])
@pytest.mark.parametrize(
    "bounds",
    [
        "",
        ">=0.1,<0.2",
        "<0.2, >=0.1",
        " >=0.1.0",
        ">0.1",
        "<=0.2.0",
        "~=0.1",
        "==0.1.*",
        ">=0.1; extra == 'x'",
    ],
)
def test_bounds_read_plainly_are_those_that_packaging_reads(bounds, core):
    from headwater.loading import _compare, _plainly_fits

    text = f"headwater{bounds}"
    _, fits, _ = _compare(text, core)
    assert _plainly_fits(text, core) <= fits
    if re.fullmatch(r"[<>=,. \d]+", bounds) and "rc" not in core and "==" not in bounds:
        assert _plainly_fits(text, core) == fits
