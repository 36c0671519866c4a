"""The one place that reads pickled files of others: an allow-list, and stubs for everything else.

Only what builds tensors, arrays and plain containers is let through. Any other class becomes a :class:`Stub`,
which remembers its name and arguments and does nothing, so a file can hold no code that runs.
"""

import gzip
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from headwater.errors import DataError

__all__ = ["Stub", "load_official"]

_ALLOWED: dict[str, frozenset[str]] = {
    "collections": frozenset({"OrderedDict", "defaultdict", "Counter", "deque"}),
    "builtins": frozenset({"dict", "list", "tuple", "set", "frozenset", "int", "float", "bool", "str",
                           "bytes", "bytearray", "complex", "slice", "range"}),
    "_codecs": frozenset({"encode"}),
    "torch": frozenset({"Size", "device", "dtype", "Tensor", "FloatStorage", "DoubleStorage", "HalfStorage",
                        "BFloat16Storage", "LongStorage", "IntStorage", "ShortStorage", "CharStorage",
                        "ByteStorage", "BoolStorage", "ComplexFloatStorage", "ComplexDoubleStorage",
                        "float32", "float64", "float16", "bfloat16",
                        "int64", "int32", "int16", "int8", "uint8", "bool"}),
    "torch.storage": frozenset({"UntypedStorage", "TypedStorage"}),
    "torch._utils": frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter",
                               "_rebuild_parameter_with_state"}),
    "torch.nn.parameter": frozenset({"Parameter"}),
    "numpy": frozenset({"ndarray", "dtype"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.core.numeric": frozenset({"_frombuffer"}),
    "numpy._core.numeric": frozenset({"_frombuffer"}),
}  # fmt: skip


LEGACY = 0x1950A86A20F9469CFC6C
"""The number with which every file of torch's older format begins."""


class Stub:
    """Stands for an object of a class that is not let through; ``qualified_name`` says which."""

    qualified_name = ""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments, self.keywords = arguments, keywords
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, name: Any, value: Any) -> None:
        self.entries[name] = value

    def append(self, value: Any) -> None:
        """Remember an item of what would have been a list."""
        self.items.append(value)

    def extend(self, values: Any) -> None:
        """Remember items of what would have been a list."""
        self.items.extend(values)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage  # torch's own would load the inner bytes without any list
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        qualified = f"{module}.{name}"
        return type(name.rpartition(".")[2], (Stub,), {"qualified_name": qualified, "__new__": _new_stub})


def _new_stub(cls: type[Stub], *arguments: Any, **keywords: Any) -> Stub:
    made = object.__new__(cls)
    Stub.__init__(made, *arguments, **keywords)
    return made


class _AllowList:
    """What ``torch.load`` takes as its pickle module."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Unpickler(file, **options).load()


def load_official(path: Path) -> Any:
    """Read a checkpoint written by ``torch.save`` or ``pickle`` (gzipped or not), or a safetensors or NPZ
    file.

    Tensors come onto the CPU. ``weights_only`` is tried first; a file that holds other classes is read with
    stubs in their place.

    Raises:
        DataError: the file is missing, truncated, or of no known format.
    """
    path = Path(path)
    try:
        head = path.open("rb").read(8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return _guarded(path, lambda: load_file(path))
    if path.suffix == ".npz":
        import numpy as np

        return _guarded(path, lambda: {k: torch.from_numpy(v) for k, v in np.load(path, allow_pickle=False).items()})
    if head[:2] == b"\x1f\x8b":
        return _guarded(path, lambda: _AllowList.load(io.BytesIO(gzip.decompress(path.read_bytes()))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on the age of the file
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # not plain tensors: read it again through the allow-list
            return _guarded(path, lambda: _through_allow_list(path, head))


def _through_allow_list(path: Path, head: bytes) -> Any:
    with path.open("rb") as source:
        if head[:2] == b"PK":
            return _torch_load(source)
        try:
            return _torch_load(source)
        except Exception:
            source.seek(0)
            value = _AllowList.load(source)
            if value == LEGACY:  # the first of several pickles of torch, which says that this is one of its files
                raise
            return value


def _storage(content: bytes) -> Any:
    """The storage of a tensor that was pickled without ``torch.save``, which wraps a small legacy file."""
    return _torch_load(io.BytesIO(content))


def _torch_load(source: Any) -> Any:
    """``torch.load`` with the allow-list in the place of ``weights_only``: find_class lets nothing else through.

    Raises:
        ValueError: it is a TorchScript archive. Those torch would hand to its compiler, which runs code of the file.
    """
    zipped = source.read(2) == b"PK"
    source.seek(0)
    if zipped:
        # torch's own reader, so that the two cannot disagree about what is in the archive.
        if "constants.pkl" in torch._C.PyTorchFileReader(source).get_all_records():
            raise ValueError("it is a TorchScript archive, which holds code; save the module's state_dict() instead")
        source.seek(0)
    return torch.load(source, map_location="cpu", weights_only=False, pickle_module=_AllowList)


def _guarded(path: Path, read: Any) -> Any:
    try:
        return read()
    except Exception as error:
        raise DataError(f"{path} is damaged or no checkpoint: {type(error).__name__}: {error}") from error
