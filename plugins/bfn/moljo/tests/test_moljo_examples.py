"""The examples in the docstrings."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["flow", "layout", "guidance", "chains", "tasks.scoring"])
def test_examples(name):
    failed, tried = doctest.testmod(importlib.import_module(f"headwater_bfn_moljo.{name}"))
    assert tried > 0
    assert failed == 0
