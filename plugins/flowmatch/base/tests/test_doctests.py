import doctest
import importlib
import pkgutil

import headwater_flow
import pytest

MODULES = [f"headwater_flow.{m.name}" for m in pkgutil.iter_modules(headwater_flow.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_documentation_hold(name):
    if name == "headwater_flow.metrics":
        pytest.importorskip("ot", reason="distances between clouds go through POT")
        pytest.importorskip("sklearn", reason="kernels come from scikit-learn")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_no_module_is_left_out():
    assert {"headwater_flow.solvers", "headwater_flow.couplings", "headwater_flow.likelihood"} <= set(MODULES)
