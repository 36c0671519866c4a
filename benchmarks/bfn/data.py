"""Seconds that reading and scoring a data set of crystals takes: wall clock, and CPU of all processes.

python benchmarks/bfn/data.py --train perov_5/val.csv --test perov_5/test.csv [--samples 3785] [--out data.json]

Samples are the test crystals with Gaussian noise: 0.03 on fractional coordinates, 2 % on cell edges.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from headwater_bfn_crys.crystals import Crystals, wrap_unit
from headwater_bfn_crys.tasks.config import METRICS, CrystalsConfig
from headwater_bfn_crys.tasks.scoring import score
from headwater_bfn_crys.tasks.task import UserCrystals


def cpu() -> float:
    """CPU seconds of this process and of those that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, used = time.perf_counter(), cpu()
    result = work()
    return result, {"seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(cpu() - used, 2)}


def shaken(crystals: Crystals) -> Crystals:
    noise = np.random.default_rng(0)
    return Crystals(
        crystals.numbers,
        wrap_unit(crystals.frac + 0.03 * noise.standard_normal(crystals.frac.shape)),
        crystals.lengths * (1.0 + 0.02 * noise.standard_normal(crystals.lengths.shape)),
        crystals.angles,
        crystals.num_atoms,
        crystals.ids,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--samples", type=int, help="of so many test crystals; of all without")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    task = UserCrystals(
        CrystalsConfig(
            path=given.train, test_path=given.test, cache="off", validation_fraction=0.0, processes=given.processes
        )
    )
    _, spent = timed(lambda: task.parts)
    rows: dict[str, Any] = {"read": {"crystals": sum(map(len, task.parts)), **spent}}
    train, validation, test = task.parts
    test = test[: given.samples]
    task.parts = (train, validation, test)
    samples = shaken(test)
    for group in METRICS:
        scores, spent = timed(lambda group=group: score(samples, task, [group]))  # type: ignore[misc]
        rows[group] = {"crystals": len(samples), **spent, **scores}
        print(group, rows[group], flush=True)
    text = json.dumps(rows, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
