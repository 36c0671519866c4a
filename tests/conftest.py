"""New environments outside this checkout, for what only they can show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # this module is imported by name

ROOT = Path(__file__).parent.parent


def call(*words, cwd=None):
    """Run a command without this process's settings of Python and headwater; ``both`` is all it printed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HEADWATER", "COV"))}
    done = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, check=False, cwd=cwd, env=clean, timeout=900
    )
    done.both = done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Build the wheels of packages of this checkout; each is built once."""
    folder = tmp_path_factory.mktemp("wheels")
    built = {}

    def build(*packages):
        for package in packages:
            if package not in built:
                before = set(folder.iterdir())
                words = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
                done = call(*words, ROOT / package)
                assert done.returncode == 0, done.both
                (built[package],) = set(folder.iterdir()) - before
        return [built[package] for package in packages]

    return build


@pytest.fixture(scope="session")
def new_environment(tmp_path_factory):
    """Make an environment, install what is named into it, and return the folder of its commands."""

    def make(*requirements):
        folder = tmp_path_factory.mktemp("new")
        assert call(sys.executable, "-m", "venv", folder).returncode == 0
        install = (
            folder / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "-c",
            ROOT / "constraints.txt",
        )
        done = call(*install, *requirements)
        assert done.returncode == 0, done.both
        return folder / "bin"

    return make
