"""State on disk: safetensors for the tensors, tagged JSON for the tree around them. Never pickle.

A state is a tree of ``dict``, ``list``, ``tuple``, ``str``, ``int``, ``float``, ``bool``, ``None`` and
tensors; the states of modules, optimisers, schedulers, random generators and replay buffers are such trees.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from headwater.errors import RunError

__all__ = [
    "fsync",
    "load_state",
    "remove",
    "save_state",
    "sha256",
    "sync",
    "verify_checksums",
    "write_checksums",
    "write_text",
]

CHECKSUMS = "checksums.json"


def fsync(path: Path) -> None:
    """Have the system put a file, or a folder's list of names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Put a file, or a folder with all that is in it, on the disk."""
    for inner in sorted(path.rglob("*")) if path.is_dir() else ():
        fsync(inner)
    fsync(path)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` beside ``path``, sync it, and put it in place: a reader sees the old file or the new."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(path)
        fsync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._storages: dict[int, tuple[Any, ...]] = {}

    def __call__(self, value: Any, where: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, torch.Tensor):
            return {"$tensor": self._tensor(value.detach(), where)}
        if isinstance(value, Mapping):
            plain = all(type(k) is str and not k.startswith("$") for k in value)
            if plain:
                return {k: self(v, f"{where}/{k}") for k, v in value.items()}
            return {"$dict": [[self(k, where), self(v, f"{where}/{k}")] for k, v in value.items()]}
        if type(value) is list:
            return [self(v, f"{where}/{i}") for i, v in enumerate(value)]
        if type(value) is tuple:
            return {"$tuple": [self(v, f"{where}/{i}") for i, v in enumerate(value)]}
        raise RunError(f"cannot save {where}: a {type(value).__name__} is neither tensor, container nor scalar")

    def _tensor(self, tensor: torch.Tensor, where: str) -> str:
        storage = tensor.untyped_storage().data_ptr()
        view = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if storage and view in self._names:  # tied weights: kept once, named twice
            return self._names[view]
        if storage and self._storages.setdefault(storage, view) != view:
            raise RunError(f"cannot save {where}: it shares memory with another tensor that it does not equal")
        name = str(len(self.tensors))
        self._names[view] = name
        self.tensors[name] = tensor.contiguous()
        return name


def _decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(v, tensors) for v in value]
    if isinstance(value, dict):
        if len(value) == 1:
            ((tag, content),) = value.items()
            if tag == "$tensor":
                return tensors[content]
            if tag == "$float":
                return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
            if tag == "$tuple":
                return tuple(_decode(v, tensors) for v in content)
            if tag == "$dict":
                return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
        return {k: _decode(v, tensors) for k, v in value.items()}
    return value


def save_state(folder: Path, name: str, state: Any) -> list[str]:
    """Write ``state`` as ``name.safetensors`` and ``name.json`` in ``folder``, synced; return the file names.

    Raises:
        RunError: something in the state is no tensor, container or scalar, or shares memory unequally.
    """
    encode = _Encoder()
    tree = encode(state, name)
    tensors, text = folder / f"{name}.safetensors", folder / f"{name}.json"
    try:
        save_file(encode.tensors, tensors)
    except SafetensorError as error:  # its text alone tells a full disk from another fault
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(tensors)) from error
    text.write_text(json.dumps({"schema": 1, "state": tree}, allow_nan=False), encoding="utf-8")
    fsync(tensors)
    fsync(text)
    return [tensors.name, text.name]


def load_state(folder: Path, name: str, device: torch.device | str = "cpu") -> Any:
    """Read what :func:`save_state` wrote, the tensors onto ``device``.

    Raises:
        RunError: a file is missing, damaged, or of a newer schema.
    """
    tensors, text = folder / f"{name}.safetensors", folder / f"{name}.json"
    try:
        content = json.loads(text.read_text(encoding="utf-8"))
        if content["schema"] != 1:
            raise RunError(f"{text} has state schema {content['schema']}; upgrade headwater to read it")
        return _decode(content["state"], load_file(tensors, device=str(device)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise RunError(f"cannot read the state {folder / name}: {type(error).__name__}: {error}") from error


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write the SHA-256 of each named file of ``folder`` into its ``checksums.json``, synced."""
    sums = {name: sha256(folder / name) for name in sorted(names)}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    fsync(folder / CHECKSUMS)
    fsync(folder)


def verify_checksums(folder: Path) -> None:
    """Compare the files of ``folder`` with its ``checksums.json``.

    Raises:
        RunError: the list or a file is missing, altered, or not a plain file of this folder.
    """
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        items = list(sums.items())
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"cannot read {folder / CHECKSUMS}: {type(error).__name__}: {error}") from error
    for name, expected in items:
        if Path(name).name != name:
            raise RunError(f"{folder / CHECKSUMS} names {name!r}, which lies outside its folder")
        try:
            actual = sha256(folder / name)
        except OSError as error:
            raise RunError(f"cannot read {folder / name}: {error.strerror}") from error
        if actual != expected:
            raise RunError(f"{folder / name} is damaged: its SHA-256 is not the one in {CHECKSUMS}")
