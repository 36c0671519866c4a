"""Speed of set generation: headwater beside the published training loop. See ../README.md."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import HERE, Contestant, add_arguments, interleave, run, table, write_results

SCRIPTS = HERE / "gfn" / "contestants"
SIZES = {"small": (60, 1.0), "medium": (20, 0.5)}
"""Steps on the clock, and the weight of the uniform policy, which is the preset's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--energies", required=True, metavar="FILE", help="CSV or JSON with the item energies")
    parser.add_argument("--official", metavar="DIR", help="a checkout of the authors' repository, which is run too")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has headwater-gfn-fl")
    add_arguments(parser, 5)
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    energies = ("--energies", options.energies)
    official = ("--official", options.official) if options.official else ()
    own = Contestant("headwater", options.python, SCRIPTS / "headwater_sets.py", energies)
    checks, jobs = {}, []
    for size, (steps, uniform) in SIZES.items():
        found = run(own, ["--size", size, "--check", *official], options.core)
        checks[size] = {name: found[name] for name in ("losses", "largest_difference")}
        print(f"set-{size}: the losses differ by {found['largest_difference']:.1e} at most", file=sys.stderr)
        plain = Contestant("plain", options.python, SCRIPTS / "plain_sets.py", (*energies, "--uniform", str(uniform)))
        contestants = [own, plain]
        if official:
            contestants.append(Contestant("official", options.python, SCRIPTS / "official_sets.py", official))
        words = ["--size", size, "--steps", str(3 if options.quick else steps)]
        jobs += [(f"set-{size}", contestant, words) for contestant in contestants]
    measured = interleave(jobs, repeats, options.core)
    print(table(measured, "headwater"))
    if not options.quick:
        path = write_results("gfn-sets", measured, core=options.core, same_loss=checks)
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
