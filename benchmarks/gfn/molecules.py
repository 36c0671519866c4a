"""Speed of molecules by fragments: headwater beside a plain loop over objects. See ../README.md."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import HERE, Contestant, add_arguments, interleave, run, table, write_results

SCRIPTS = HERE / "gfn" / "contestants"
WIDTHS, BATCHES = (64, 256), (16, 64)
STEPS = {"headwater": {16: 8, 64: 3}, "plain": {16: 2, 64: 1}}
"""Steps on the clock, after one that is not; sampling is quicker and runs twice as many."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", required=True, metavar="FILE", help="JSON with the library of blocks")
    parser.add_argument("--proxy", required=True, metavar="FILE", help="NPZ with the weights of the sEH proxy")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has headwater-gfn-fl")
    add_arguments(parser, 3)
    parser.add_argument("--modes", nargs="+", choices=("train", "sample"), default=["train", "sample"])
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    data = ("--blocks", options.blocks, "--proxy", options.proxy)

    def contestant(name: str, *arguments: str) -> Contestant:
        script = SCRIPTS / f"{name.partition('-')[0]}_molecules.py"
        return Contestant(name, options.python, script, (*data, *arguments))

    own = contestant("headwater")
    checks, jobs = {}, []
    for width in WIDTHS:
        found = run(own, ["--width", str(width), "--batch", "4", "--check"], options.core)
        checks[str(width)] = {name: found[name] for name in ("losses", "largest_difference")}
        print(f"width {width}: the losses differ by {found['largest_difference']:.1e} at most", file=sys.stderr)
    for mode in options.modes:
        for width in WIDTHS:
            for batch in BATCHES:
                contestants = [own, contestant("plain")]
                if mode == "train" and batch == min(BATCHES):  # the other size costs it as much an object
                    contestants += [
                        contestant("plain-apart", "--apart"),
                        contestant("plain-double", "--double"),
                    ]
                for c in contestants:
                    steps = STEPS["headwater" if c is own else "plain"][batch] * (2 if mode == "sample" else 1)
                    words = ["--mode", mode, "--width", width, "--batch", batch, "--warmup", 1]
                    words += ["--steps", 1 if options.quick else steps]
                    jobs.append((f"{mode}, width {width}, batch {batch}", c, [str(w) for w in words]))
    measured = interleave(jobs, repeats, options.core)
    print(table(measured, "headwater", "objects"))
    if not options.quick:
        path = write_results("gfn-molecules", measured, core=options.core, same_loss=checks)
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
