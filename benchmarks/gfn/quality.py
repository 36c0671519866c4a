"""What equally many trajectories teach each contestant: exact distance to the target. See ../README.md."""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "contestants"))

from clock import REWARDS
from harness import Contestant, add_arguments, run, write_results
from run import SCRIPTS, add_interpreters, peers
from scoring import score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_interpreters(parser)
    add_arguments(parser, 3)
    parser.add_argument("--rewards", nargs="+", choices=tuple(REWARDS), default=list(REWARDS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2500)
    options = parser.parse_args()
    repeats, steps = (1, 5) if options.quick else (options.repeats, options.steps)
    d, h = 4, 8
    interpreters = {"headwater": options.headwater, **peers(options)}
    measured = []
    for repeat in range(repeats):
        for reward in options.rewards:
            for name, python in interpreters.items():
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "policy.npz"
                    words = ["--dimensions", d, "--side", h, "--batch", options.batch, "--steps", steps]
                    words += ["--warmup", 0, "--reward", reward, "--seed", repeat, "--export", file]
                    contestant = Contestant(name, python, SCRIPTS / f"{name}_grid.py")
                    found = run(contestant, [str(w) for w in words], options.core)
                    with np.load(file) as exported:
                        quality = score(exported["log_pf"], float(exported["log_z"]), d, h, REWARDS[reward])
                measured.append({"workload": reward, "repeat": repeat, **found, **quality})
                shown = ", ".join(f"{k} {v:.4f}" for k, v in quality.items())
                print(f"{repeat + 1}/{repeats} {reward} {name}: {shown}", file=sys.stderr)
    print(f"{d} coordinates of {h} values, {steps} steps of {options.batch} trajectories, {repeats} seeds\n")
    print("| reward | contestant | L1 | range | TV | JSD | log Z error | CPU s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for reward in options.rewards:
        for name in interpreters:
            own = [m for m in measured if m["workload"] == reward and m["contestant"] == name]
            middle = {k: statistics.median(m[k] for m in own) for k in ("l1", "tv", "jsd", "cpu_seconds")}
            error = statistics.median(abs(m["log_z_error"]) for m in own)
            lowest, highest = min(m["l1"] for m in own), max(m["l1"] for m in own)
            print(
                f"| {reward} | {name} | {middle['l1']:.4f} | {lowest:.4f}-{highest:.4f} | {middle['tv']:.4f} "
                f"| {middle['jsd']:.5f} | {error:.4f} | {middle['cpu_seconds']:.1f} |"
            )
    if not options.quick:
        print(f"\nwritten to {write_results('gfn-quality', measured, core=options.core)}")


if __name__ == "__main__":
    main()
