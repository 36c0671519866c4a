"""The examples in the docstrings."""

import doctest
import importlib
import pkgutil

import headwater_bfn
import pytest

MODULES = [m.name for m in pkgutil.iter_modules(headwater_bfn.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(f"headwater_bfn.{name}"))
    assert failed == 0
