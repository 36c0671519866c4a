import os
import subprocess
import sys

import pytest
from fakes import command
from headwater.errors import RunError, UsageError
from headwater.scaffold import make


@pytest.mark.parametrize("name", ["Upper", "a_b", "../evil", "a b", "a--b", "", ".hidden", "a/b", "ä"])
def test_a_name_that_is_no_plugin_name_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="use lower-case letters and digits joined by single hyphens"):
        make(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_kept(tmp_path):
    folder = make("mine", tmp_path)
    (folder / "README.md").write_text("precious")
    with pytest.raises(RunError, match=r"headwater-mine exists; choose another name or -o"):
        make("headwater-mine", tmp_path)
    assert (folder / "README.md").read_text() == "precious"


def test_names_may_hold_numbers_and_nothing_is_left_to_fill_in(tmp_path):
    folder = make("flow-2", tmp_path)
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert len(texts) >= 12
    assert not any("$" in text for text in texts)
    assert (folder / "src" / "headwater_flow_2" / "plugin.py").exists()


def test_a_new_plugin_installs_and_passes_its_own_tests(tmp_path):
    done = command("new-plugin", "my-first", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    folder, site = tmp_path / "headwater-my-first", tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    install += ["--no-index", "--disable-pip-version-check", "--target", str(site), str(folder)]
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join([str(site), os.environ["PYTHONPATH"]])
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(
        test,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout
    assert "13 passed" in done.stdout
    done = command("describe", "my-first", path=site)
    assert "package headwater-my-first 0.1.0" in done.stdout
