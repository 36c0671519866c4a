import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the toy method is imported by name, as a user's module is

import toy
from headwater import registry


@pytest.fixture(autouse=True, scope="session")
def _toy_method():
    registry.register(toy)
