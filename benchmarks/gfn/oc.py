"""Speed of outcome-conditioned pre-training on a grid, beside a plain loop, state by state. See ../README.md."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import HERE, Contestant, interleave, last_core, run, table, write_results

SCRIPTS = HERE / "gfn" / "contestants"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter that has headwater-gfn-oc")
    parser.add_argument("--core", type=int, default=last_core(), help="the core that both run on")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="one round of a few steps: does everything run?")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    own = Contestant("headwater", options.python, SCRIPTS / "headwater_outcomes.py")
    plain = Contestant("plain", options.python, SCRIPTS / "plain_outcomes.py")
    batch = ["--batch", str(options.batch)]
    same = run(own, [*batch, "--check"], options.core)
    print(f"the losses differ by {same['largest_difference']:.1e}", file=sys.stderr)
    jobs = [
        ("outcomes 8x8", own, [*batch, "--steps", "10" if options.quick else "200"]),
        ("outcomes 8x8", plain, [*batch, "--steps", "2" if options.quick else "20", "--warmup", "1"]),
    ]
    measured = interleave(jobs, repeats, options.core)
    print(table(measured, "headwater"))
    if not options.quick:
        path = write_results("gfn-oc", measured, core=options.core, same_loss=same["losses"])
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
