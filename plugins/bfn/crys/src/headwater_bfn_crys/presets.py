"""The published configurations of four data sets; plain numbers, so that importing them is free."""

import math
from typing import Any

__all__ = ["ATOM_COUNTS", "ELEMENTS", "LATTICE_STD", "PRESETS", "dataset_trainer"]

_MP = [*range(1, 84), *range(89, 95)]

ELEMENTS: dict[str, list[int]] = {
    "mp-20": _MP,
    "perov-5": [3, 4, 5, 7, 8, 9, 11, 12, 13, 14, 16, *range(19, 34), *range(37, 43), *range(44, 53), *range(55, 58),
                *range(72, 84)],
    "carbon-24": [6],
    "mpts-52": _MP,
}  # fmt: skip
"""Atomic numbers of the types, in the order of the official networks' inputs."""

LATTICE_STD = {
    "mp-20": 3.866470446562982,
    "perov-5": 1.9612357847506667,
    "carbon-24": 2.5647114744167174,
    "mpts-52": 4.824758778702219,
}
"""Standard deviation of the cells' entries in the official training sets, angstrom."""

ATOM_COUNTS: dict[str, list[int]] = {
    "mp-20": [110, 961, 924, 6964, 2130, 3795, 991, 3563, 1527, 4395, 590, 4396, 979, 2959, 666, 3026, 418, 2418, 468,
              3949],
    "perov-5": [0, 0, 0, 0, 1],
    "carbon-24": [0, 0, 0, 0, 0, 3356, 0, 2778, 0, 1563, 0, 1116, 0, 507, 0, 396, 0, 203, 0, 104, 0, 76, 0, 54],
}  # fmt: skip
"""How many crystals of the official training sets have 1, 2, 3, ... atoms; that of MPTS-52 is not published."""

_NETWORK = {"width": 512, "layers": 6, "frequencies": 128, "time_width": 128}
_STEPS = {"mp-20": 1000, "perov-5": 1000, "carbon-24": 1000, "mpts-52": 200}
_BATCH = {"mp-20": 256, "perov-5": 1024, "carbon-24": 512, "mpts-52": 128}
_TRAINING_SET = {"mp-20": 27136, "perov-5": 11356, "carbon-24": 6091, "mpts-52": 27380}
_EPOCHS = {"mp-20": 5000, "perov-5": 20000, "carbon-24": 10000, "mpts-52": 10000}
_BETA_TYPES = {"mp-20": 0.5, "perov-5": 3.0, "carbon-24": 0.5, "mpts-52": 0.5}


def dataset_trainer(name: str) -> dict[str, Any]:
    """The trainer's settings that describe a data set: elements, scale of the cells, sizes."""
    found = {"standardise": "scalar", "elements": ELEMENTS[name], "lattice_std": LATTICE_STD[name]}
    return found | ({"atom_counts": ATOM_COUNTS[name]} if name in ATOM_COUNTS else {})


def _preset(name: str) -> dict[str, dict[str, Any]]:
    trainer = {**_NETWORK, **dataset_trainer(name), "steps": _STEPS[name], "batch_size": _BATCH[name]}
    trainer |= {"beta1_types": _BETA_TYPES[name], "beta1_coordinates": 1000.0, "sigma1_lattice": 0.0316228}
    # As many steps as the published epochs have at most; the rate falls over all of them.
    trainer["decay_steps"] = steps = _EPOCHS[name] * math.ceil(_TRAINING_SET[name] / _BATCH[name])
    return {
        "task": {"published": name},
        "trainer": trainer,
        "fit": {"ema": 0.995, "max_steps": steps, "checkpoint_every": 2000, "validate_every": 2000},
    }


PRESETS = {name: _preset(name) for name in ELEMENTS}
