import os
import sys
from pathlib import Path

import importlib_metadata
import pytest

HERE = str(Path(__file__).parent)

# The toy method counts as installed, here and in child processes: its metadata lie beside this file.
sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH"))))
os.environ.pop("HEADWATER_STRICT", None)
# Whatever else is installed here is no concern of these tests.
others = {point.name for point in importlib_metadata.entry_points(group="headwater")} - {"toy"}
os.environ["HEADWATER_DISABLE"] = ",".join(sorted(others))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path into which a test installs fakes; what was imported from it is forgotten."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0].startswith("fake_")]:
        del sys.modules[name]


@pytest.fixture
def cli(capsys, monkeypatch):
    """Call the command line in this process: ``cli("list")`` returns exit code, output and errors."""
    from headwater.cli import main

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["headwater", *map(str, words)])
        monkeypatch.setattr(sys, "_headwater_cli", False, raising=False)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call
