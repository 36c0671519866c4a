"""Twelve ways in which a plugin can be broken. Each is set aside and explained, and all others work."""

import json
import re

import pytest
from fakes import PARTS, command, install, source
from headwater.doctor import as_text, examine
from headwater.errors import PluginError, UsageError
from headwater.registry import Registry

UPGRADE = "pip install --upgrade headwater-{name}"
WELL = "this is the healthy one"

# name: how it is installed, what the registry and `list` say of it, the remedy
SEEN_ON_IMPORT = {
    "import-error": (
        {"plugin": "raise ImportError('the C library is too old')"},
        r"ImportError: the C library is too old \(plugin.py, line 1\)",
        UPGRADE,
    ),
    "syntax-error": ({"plugin": "def broken(:\n"}, r"SyntaxError: .*plugin\.py, line 1", UPGRADE),
    "missing-dependency": (
        {"plugin": "import no_such_thing.inside", "requires": ["no-such-thing[all]>=2"]},
        "module 'no_such_thing' is missing",
        "pip install 'no-such-thing>=2'",
    ),
    "hook-raises": (
        {
            "plugin": """
            from headwater import hookimpl
            API = 1

            @hookimpl
            def headwater_methods():
                raise ValueError("nothing to offer")
            """
        },
        r"ValueError: nothing to offer \(plugin.py, line 7\)",
        UPGRADE,
    ),
    "wrong-type": (
        {
            "plugin": """
            from headwater import hookimpl
            API = 1

            @hookimpl
            def headwater_tasks():
                return {"a": 1}
            """
        },
        "headwater_tasks returns dict, not a list of TaskEntry",
        UPGRADE,
    ),
    "wrong-api": (
        {"plugin": "API = 2"},
        "written for plugin API 2; this headwater has API 1",
        "pip install --upgrade headwater",
    ),
    "stale": (
        {"entry": "gone_with_its_folder.plugin"},
        "its module 'gone_with_its_folder' is gone",
        "pip uninstall headwater-stale",
    ),
    "exits": (
        {"plugin": "import sys; sys.exit(3)"},
        r"it calls sys.exit\(3\) when it is imported",
        UPGRADE,
    ),
}

# These load, and what is wrong shows only when what they name is resolved.
SEEN_BY_DOCTOR = {
    "unresolved": (
        {"plugin": source("unresolved", trainer="fake_unresolved.parts:NoSuchTrainer")},
        r"trainer of stage 'unresolved/fit': cannot import 'fake_unresolved.parts:NoSuchTrainer': "
        r".*no attribute 'NoSuchTrainer'",
        UPGRADE,
    ),
    "bad-config": (
        {"parts": PARTS + "\n\nclass FakeConfig(Config):\n    field: object()\n"},
        r"config of task 'bad-config-task': cannot import 'fake_bad_config.parts:FakeConfig': "
        r"PydanticSchemaGenerationError",
        UPGRADE,
    ),
}


def install_all(folder):
    install(folder, "healthy")
    for name, (how, _, _) in (SEEN_ON_IMPORT | SEEN_BY_DOCTOR).items():
        install(folder, name, **how)
    install(folder, "double", source("double", method="healthy"))
    install(folder, "noisy", f"import warnings\nprint('hello')\nwarnings.warn('beware')\n{source('noisy')}")


def healthy(registry):
    """Whether the healthy plugin can be used next to whatever else there is."""
    method = registry.find_method("healthy")
    assert registry.owner("method", "healthy").distribution == "headwater-healthy"
    assert registry.resolve(method.stages[0].trainer).__name__ == "FakeTrainer"
    assert registry.resolve(registry.find_task("healthy-task").task).__name__ == "FakeTask"
    return registry.plugins()["healthy"].state == "loaded"


@pytest.mark.parametrize("name", SEEN_ON_IMPORT)
def test_a_plugin_that_fails_on_import_is_set_aside_with_error_and_remedy(site, name):
    how, error, remedy = SEEN_ON_IMPORT[name]
    install(site, "healthy")
    install(site, name, **how)
    registry = Registry()
    assert healthy(registry)
    record = registry.plugins()[name]
    assert (record.state, record.distribution, record.version) == ("broken", f"headwater-{name}", "1.2")
    assert re.search(error, record.error)
    assert "\n" not in record.error
    assert record.remedy == remedy.format(name=name)
    with pytest.raises(UsageError) as raised:
        registry.find_method(name)
    assert f"headwater-{name} 1.2" in str(raised.value)
    assert record.remedy in str(raised.value)


@pytest.mark.parametrize("name", SEEN_ON_IMPORT)
def test_under_strict_a_plugin_that_fails_on_import_is_an_error(site, monkeypatch, name):
    how, error, remedy = SEEN_ON_IMPORT[name]
    install(site, name, **how)
    monkeypatch.setenv("HEADWATER_STRICT", "1")
    with pytest.raises(PluginError, match=error) as raised:
        Registry().methods()
    assert f"headwater-{name} 1.2" in str(raised.value)
    assert remedy.format(name=name) in str(raised.value)


@pytest.mark.parametrize("name", SEEN_BY_DOCTOR)
def test_a_plugin_whose_classes_cannot_be_had_fails_when_they_are_used(site, name):
    install(site, "healthy")
    install(site, name, **SEEN_BY_DOCTOR[name][0])
    registry = Registry()
    assert healthy(registry)
    assert registry.plugins()[name].state == "loaded"
    string = registry.find_method(name).stages[0].trainer
    with pytest.raises(PluginError) as raised:
        registry.resolve(string)
    assert f"headwater-{name} 1.2" in str(raised.value)
    assert f"try: pip install --upgrade headwater-{name}" in str(raised.value)


def test_of_two_claims_to_a_name_the_distribution_of_that_name_wins(site):
    install(site, "double", source("double", method="healthy"), dist="a-comes-first")
    install(site, "healthy")
    registry = Registry()
    assert healthy(registry)
    record = registry.plugins()["double"]
    assert (record.state, record.methods, record.tasks) == ("loaded", (), ("double-task",))
    ((text, remedy),) = record.clashes
    assert text == "method 'healthy' belongs to plugin 'healthy' (headwater-healthy 1.2)"
    assert remedy == "pip uninstall a-comes-first"


def test_what_a_plugin_prints_and_warns_on_import_is_kept_from_the_terminal(site, capfd):
    install(site, "healthy")
    install(site, "noisy", f"import warnings\nprint('hello')\nwarnings.warn('beware')\n{source('noisy')}")
    registry = Registry()
    assert healthy(registry)
    assert registry.plugins()["noisy"].output.split("\n")[0] == "hello"
    assert "UserWarning: beware" in registry.plugins()["noisy"].output
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def broken_site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    install_all(folder)
    return folder


@pytest.fixture(scope="module")
def findings(broken_site):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(broken_site))
        return examine()


def test_the_list_shows_every_plugin_and_imports_nothing_heavy(broken_site):
    code = (
        "import sys; from headwater import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'numpy', 'rich', 'fake_healthy.parts'} & set(sys.modules)), file=sys.stderr)"
    )
    done = command("list", code=code, path=broken_site)
    assert done.stderr == "[]\n"
    for name, (_, error, remedy) in SEEN_ON_IMPORT.items():
        assert re.search(
            rf"  {name} \(headwater-{name} 1\.2(, API \d)?\): broken\n"
            rf"    .*{error}.*\n    try: {re.escape(remedy.format(name=name))}\n",
            done.stdout,
        ), name
    assert "  healthy (headwater-healthy 1.2, API 1)\n" in done.stdout
    assert "    says on import: hello\n" in done.stdout
    assert "  healthy (fake.kind): a fake method\n" in done.stdout
    assert "  healthy-task (fake.kind): s\n" in done.stdout


def test_the_list_as_json_holds_the_same(broken_site):
    found = json.loads(command("list", "--json", path=broken_site).stdout)
    plugins = {plugin["name"]: plugin for plugin in found["plugins"]}
    assert {name for name, plugin in plugins.items() if plugin["state"] == "broken"} >= set(SEEN_ON_IMPORT)
    assert plugins["healthy"]["methods"] == ["healthy"]
    assert plugins["double"]["clashes"] or plugins["double"]["methods"] == []
    healthy = next(method for method in found["methods"] if method["name"] == "healthy")
    assert healthy["kinds"] == ["fake.kind"]
    assert (healthy["stages"], healthy["samplers"], healthy["plugin"]) == (["fit"], ["plain"], "healthy")


@pytest.mark.parametrize("name", [*SEEN_ON_IMPORT, *SEEN_BY_DOCTOR])
def test_doctor_names_distribution_version_fault_and_remedy(findings, name):
    _, error, remedy = (SEEN_ON_IMPORT | SEEN_BY_DOCTOR)[name]
    own = [f for f in findings if f.plugin == name]
    assert {(f.distribution, f.version, f.level) for f in own} == {(f"headwater-{name}", "1.2", "error")}
    assert any(re.search(error, f.what) for f in own)
    assert {f.remedy for f in own} == {remedy.format(name=name)}


def test_doctor_reports_clashes_and_noise_and_nothing_of_the_healthy(findings):
    assert [f for f in findings if f.plugin == "healthy"] == []
    (double,) = [f for f in findings if f.plugin == "double"]
    assert double.what.startswith("method 'healthy' belongs to plugin 'healthy'")
    assert double.remedy == "pip uninstall headwater-double"
    (noisy,) = [f for f in findings if f.plugin == "noisy"]
    assert (noisy.level, noisy.what) == ("warning", "importing it prints or warns: hello")
    text = as_text(findings)
    assert "error: headwater-stale 1.2: its module" in text
    assert "\n  try: pip uninstall headwater-stale\n" in text


def test_doctor_on_the_command_line_exits_1_when_something_is_broken(broken_site):
    done = command("doctor", "--json", path=broken_site)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert {"headwater-stale", "headwater-unresolved"} <= {f["distribution"] for f in json.loads(done.stdout)}
