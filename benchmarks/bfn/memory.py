"""Peak memory of sampling many crystals at once, by number of crystals. See ../README.md.

Each measurement is a process of its own: crystals of 10 atoms, 2 network calls, a small network (what is measured is
how memory grows, not the network). Peak resident memory less that of the same process sampling one crystal. *plain* is
the published form, which finds edges in a block-diagonal matrix of all atoms by all atoms, up to ``--plain`` crystals.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ATOMS, TYPES, STEPS = 10, 89, 2
SIZES = (TYPES, 64, 2, 16, 16, True)


def sample(crystals: int, plain: bool) -> None:
    """Predict so many structures once."""
    import torch
    from edge_list import EdgeListNet, end_back_sample
    from headwater_bfn import vonmises
    from headwater_bfn.schedule import von_mises_schedule
    from headwater_bfn_crys.config import CrysConfig
    from headwater_bfn_crys.flow import Scale
    from headwater_bfn_crys.networks import CSPNet
    from headwater_bfn_crys.sampler import draw_crystals

    torch.set_num_threads(1)
    alpha = von_mises_schedule(STEPS)[0]
    types = torch.randint(TYPES, (crystals * ATOMS,))
    if plain:
        settings = {"sigma1": 0.0316228, "types": TYPES, "beta1": 1000.0}
        with torch.no_grad():
            end_back_sample(EdgeListNet(*SIZES), torch.full((crystals,), ATOMS), types, alpha, settings)
        return
    config = CrysConfig(target="csp", steps=STEPS, standardise="scalar")
    angles = vonmises.Angles(alpha)
    scale = Scale.of({"lattice_std": 1.0})
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draw_crystals(
            config, CSPNet(*SIZES), angles, vonmises.Bank(angles), (ATOMS,) * crystals, TYPES, types, scale, source
        )


def peak(crystals: int, contestant: str) -> int:
    """Peak resident memory in bytes of a process that samples so many crystals."""
    command = [sys.executable, __file__, "--child", str(crystals), contestant]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crystals", type=int, nargs="+", default=[1000, 2000, 4000, 8000, 16000])
    parser.add_argument("--plain", type=int, default=2000, help="the most crystals for the plain form")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few crystals: does everything run?")
    options = parser.parse_args()
    if options.child:
        sample(int(options.child[0]), options.child[1] == "plain")
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
        print(kibibytes * (1 if sys.platform == "darwin" else 1024))
        return
    from harness import write_results

    counts = [10, 20] if options.quick else options.crystals
    rows: list[dict[str, Any]] = []
    for contestant in ("headwater", "plain"):
        alone = peak(1, contestant)
        for crystals in counts:
            if contestant == "plain" and crystals > options.plain:
                continue
            more = peak(crystals, contestant) - alone
            rows.append({"contestant": contestant, "crystals": crystals, "bytes": more, "bytes_of_one": alone})
            print(f"{contestant:10} {crystals:6} crystals: {more / 2**20:8.1f} MiB more than one, "
                  f"{more / crystals / ATOMS / 1024:.2f} KiB an atom", flush=True)  # fmt: skip
    if not options.quick:
        print(f"written to {write_results('bfn-memory', rows, atoms=ATOMS)}")


if __name__ == "__main__":
    main()
