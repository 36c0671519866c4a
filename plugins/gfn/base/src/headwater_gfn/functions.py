"""Functions of the user, named by import string in a config."""

import importlib
from collections.abc import Callable
from functools import reduce
from typing import Any

from headwater import PluginError

__all__ = ["imported"]


def imported(string: str, setting: str) -> Callable[..., Any]:
    """The function ``"package.module:function"`` that ``setting`` names.

    Raises:
        PluginError: it cannot be imported, or is no function.
    """
    module, colon, name = string.partition(":")
    try:
        if not colon:
            raise ValueError("write it as 'package.module:function'")
        found = reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as error:  # the user's module may raise anything
        raise PluginError(f"{setting} = {string!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise PluginError(f"{setting} = {string!r} is no function but {type(found).__name__}")
    function: Callable[..., Any] = found
    return function
