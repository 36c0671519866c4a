"""Speed of the physics of segmented volumes: S2 beside porespy's, Minkowski functionals, permeability.

python benchmarks/porous/physics.py [--quick] [--repeats N]

S2 is timed on one cube by both in the same process, in turn, and checked at its borders against a plain count of pairs.
Permeability counts cell updates per CPU second of one core, in a bead pack at half resolution with free layers.
"""

import argparse
import importlib.metadata
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness
import numpy as np
import porespy
from headwater_porous_gan.physics.correlation import s2_directional, s2_radial
from headwater_porous_gan.physics.minkowski import minkowski
from headwater_porous_gan.physics.permeability import lattice, stepper
from headwater_porous_gan.physics.pores import percolating
from headwater_porous_gan.tasks.media import field, pack, voxelise

WANTED = {"S2 against porespy": 10.0, "million cell updates per CPU second": 40.0}


def seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def border_error(phase: np.ndarray) -> float:
    """Largest difference of directional S2 from a count of pairs inside the volume, over lags to half the edge."""
    worst = 0.0
    for axis, curve in enumerate(s2_directional(phase, len(phase) // 2)):
        pores = np.moveaxis(phase == 0, axis, 0)
        counted = [(pores[r:] & pores[: len(pores) - r]).mean() for r in range(len(curve))]
        worst = max(worst, float(np.abs(curve - counted).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="does everything run? small volumes, nothing is written")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    harness.pin_to(harness.last_core())()
    porespy.settings.tqdm["disable"] = True

    edge = 48 if chosen.quick else 200
    phase = field(edge, 4.0, 0.2, seed=0)
    contestants: dict[str, Callable[[], Any]] = {
        "headwater": lambda: s2_directional(phase),
        "headwater-radial": lambda: s2_radial(phase, edge // 2),
        "porespy": lambda: porespy.metrics.two_point_correlation(phase == 0),
        "headwater-minkowski": lambda: minkowski(phase),
    }
    minkowski(phase[:8])  # its tables are made once
    measured: list[dict[str, Any]] = []
    for repeat in range(1 if chosen.quick else chosen.repeats):
        for name, work in contestants.items():
            measured.append(
                {"workload": f"S2 {edge}^3", "contestant": name, "repeat": repeat, "cpu_seconds": seconds(work)}
            )

    beads = voxelise(pack(), 48 if chosen.quick else 128, 0.5)
    fluid = np.pad(percolating(beads, 0), ((4, 4), (0, 0), (0, 0)), constant_values=True)
    cells = int(fluid.sum())
    advance = stepper(lattice(fluid), 0.6)
    advance(2)  # compiles
    for repeat in range(1 if chosen.quick else 3 * chosen.repeats):
        spent = seconds(lambda: advance(40))
        rate = 40 * cells / spent / 1e6
        measured.append(
            {
                "workload": f"permeability {cells} cells",
                "contestant": "headwater",
                "repeat": repeat,
                "million_updates": rate,
            }
        )

    def median(key: str, name: str) -> float:
        return statistics.median(m[key] for m in measured if m["contestant"] == name and key in m)

    ratio = median("cpu_seconds", "porespy") / median("cpu_seconds", "headwater")
    updates = median("million_updates", "headwater")
    found = {"S2 against porespy": ratio, "million cell updates per CPU second": updates}
    error = border_error(phase)
    for name in contestants:
        print(f"{name}: {median('cpu_seconds', name):.3f} CPU s")
    for name, value in found.items():
        print(f"{name}: {value:.1f} (wanted: {WANTED[name]:g})")
    print(f"largest difference of S2 from a count of pairs: {error:.1e}")
    if not chosen.quick:
        versions = {name: importlib.metadata.version(name) for name in ("porespy", "numpy", "numba")}
        path = harness.write_results(
            "porous-physics", measured, summary={**found, "S2 border error": error}, wanted=WANTED, versions=versions
        )
        print(path)


if __name__ == "__main__":
    main()
