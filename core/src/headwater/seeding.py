"""Randomness that is keyed, not passed along: what block 7 of seed 3 draws depends on nothing else."""

import random
from typing import Any

import numpy as np
import torch

__all__ = ["generator", "global_state", "key", "restore_global_state", "seed_all"]

_MASK = (1 << 64) - 1


def key(*parts: int) -> int:
    """Mix integers into one 63-bit seed (the finaliser of SplitMix64 over each part in turn)."""
    z = 0x9E3779B97F4A7C15
    for part in parts:
        z = (z + 0x9E3779B97F4A7C15 + (part & _MASK)) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z >> 1


def generator(*parts: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` seeded by ``key(*parts)``."""
    return torch.Generator(device=device).manual_seed(key(*parts))


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - third-party code reads the legacy global state
    torch.manual_seed(seed)


def global_state() -> dict[str, Any]:
    """The state of all global generators, as tensors and scalars."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
        "cuda": [s.clone() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_global_state(state: dict[str, Any]) -> None:
    """Put back what :func:`global_state` returned."""
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
