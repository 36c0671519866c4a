"""What starting processes needs beside the standard library."""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hidden_main"]


@contextmanager
def hidden_main() -> Iterator[None]:
    """Keep processes that are started inside (by the method ``spawn``) from running the caller's script again.

    A new process imports the script that started its parent, so that it finds what the script defines. A script
    without ``if __name__ == "__main__"`` would then do all its work once more. Inside, ``__main__`` is an empty
    module: what the processes are given must live in modules that can be imported.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
