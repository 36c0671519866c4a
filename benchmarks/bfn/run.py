"""Speed of bfn-crys beside the published network and flow simulation, written plainly. See ../README.md.

Same weights, same inputs; the outputs and gradients of both networks are compared first, to 1e-5. Contestants take
turns in one process on one thread; what is reported is CPU seconds, medians over the rounds.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from edge_list import EdgeListNet, end_back_sample, training_loss
from harness import last_core, pin_to, write_results
from headwater.trainer import Place
from headwater_bfn import vonmises
from headwater_bfn.schedule import von_mises_schedule
from headwater_bfn_crys.config import CrysConfig
from headwater_bfn_crys.layout import Layout
from headwater_bfn_crys.networks import CSPNet
from headwater_bfn_crys.sampler import draw_crystals
from headwater_bfn_crys.trainer import CrysTrainer, Data

TYPES, WIDTH, LAYERS, FREQUENCIES, TIME = 89, 512, 6, 128, 128
SIGMA1, BETA1, BETA1_TYPES = 0.0316228, 1000.0, 0.5


def networks(given_types: bool) -> tuple[CSPNet, EdgeListNet]:
    """Both networks with the same weights."""
    torch.manual_seed(0)
    sizes = (TYPES, WIDTH, LAYERS, FREQUENCIES, TIME, given_types)
    ours, plain = CSPNet(*sizes), EdgeListNet(*sizes)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def check(num_atoms: list[int]) -> float:
    """The largest difference of outputs, and of gradients over their largest entry; must be below 1e-5."""
    worst = 0.0
    for given in (False, True):
        pair = networks(given)
        v, b = sum(num_atoms), len(num_atoms)
        types = torch.randint(TYPES, (v,)) if given else 2 * torch.randn(v, TYPES).softmax(1) - 1
        i, angles = torch.randint(1, 11, (b,)), 6.2 * torch.rand(v, 3) - 3.1
        inputs = (i, types, angles, torch.randn(b, 3, 3), torch.rand(v, 3))
        results = []
        for net, last in zip(pair, (Layout(num_atoms), torch.tensor(num_atoms)), strict=True):
            out = net(*inputs, last)
            sum(part.square().mean() for part in out).backward()
            results.append([*(part.detach() for part in out), *(p.grad for p in net.parameters())])
        for ours, plain in zip(*results, strict=True):
            worst = max(worst, float((ours - plain).abs().max() / plain.abs().max().clamp_min(1)))
    if worst > 1e-5:
        raise SystemExit(f"the two networks differ by {worst:.1e}")
    return worst


class Tiny:
    """The timed crystals as a data set."""

    def __init__(self, num_atoms: list[int]) -> None:
        g = torch.Generator().manual_seed(1)
        v, b = sum(num_atoms), len(num_atoms)
        self.types = torch.randint(TYPES, (v,), generator=g)
        self.angles = 6.2 * torch.rand(v, 3, generator=g) - 3.1
        self.lattice = torch.randn(b, 3, 3, generator=g)
        self.num_atoms = torch.tensor(num_atoms)
        self.start = self.num_atoms.cumsum(0) - self.num_atoms

    pick = Data.pick


def trainer(num_atoms: list[int], target: str, n: int, net: CSPNet) -> CrysTrainer:
    """A trainer of bfn-crys on the timed crystals."""
    config = CrysConfig(
        target=target, steps=n, standardise="scalar", batch_size=len(num_atoms), width=WIDTH, layers=LAYERS,
        frequencies=FREQUENCIES, time_width=TIME, beta1_types=BETA1_TYPES, sigma1_lattice=SIGMA1,
        beta1_coordinates=BETA1,
    )  # fmt: skip
    facts = {"alpha": von_mises_schedule(n, BETA1)[0], "elements": torch.arange(1, TYPES + 1), "lattice_std": 1.0}
    made = CrysTrainer(config, None, {"network": net}, facts, None, Place())
    made.setup()
    made.__dict__["data"] = Tiny(num_atoms)
    return made


def workloads(num_atoms: list[int], quick: bool) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """For each workload what ours does once, and what the plain code does."""
    found: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
    for target, n in (("gen", 10), ("gen", 1000), ("csp", 10), ("csp", 1000)):
        ours, plain = networks(target == "csp")
        own = trainer(num_atoms, target, n, ours)
        settings = {"target": target, "types": TYPES, "sigma1": SIGMA1, "beta1": BETA1, "beta1_types": BETA1_TYPES}
        data = {name: getattr(own.data, name) for name in ("types", "angles", "lattice", "num_atoms")}
        adam = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
        generator = torch.Generator().manual_seed(0)

        def train_ours(own: CrysTrainer = own, generator: torch.Generator = generator) -> None:
            own.step(own.draw(0, generator))

        def train_plain(
            plain: Any = plain, data: Any = data, adam: Any = adam, own: Any = own, s: Any = settings
        ) -> None:
            training_loss(plain, data, own.alpha, s).backward()
            adam.step()
            adam.zero_grad(set_to_none=True)

        found[f"{target}, n={n}: training step"] = train_ours, train_plain
        if (target, n) == ("gen", 1000):
            continue
        # The cost of a step does not depend on its number: a stretch of the thousand steps stands for all.
        steps = n if n == 10 else (2 if quick else 20)
        alpha = own.alpha
        scale, angles, bank = own.scale, own.angles, vonmises.Bank(own.angles)
        types = data["types"] if target == "csp" else None
        net_ours, net_plain = networks(target == "csp")

        def sample_ours(
            config=own.config, net=net_ours, angles=angles, bank=bank, types=types, steps=steps, scale=scale
        ) -> None:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                some = config.model_copy(update={"steps": steps})
                draw_crystals(
                    some, net, angles, bank, tuple(num_atoms), TYPES, types, scale, torch.Generator().manual_seed(0)
                )

        def sample_plain(net=net_plain, types=types, alpha=alpha, s=settings, steps=steps) -> None:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                stretch(net, torch.tensor(num_atoms), types, alpha, s, steps)

        found[f"{target}, n={n}: {steps} sampling steps"] = sample_ours, sample_plain
    return found


def stretch(net: Any, num_atoms: Any, types: Any, alpha: Any, settings: Any, steps: int) -> None:
    """The plain sampler, stopped after ``steps`` of its n steps."""
    calls = 0

    class Stop(Exception):
        pass

    def counted(*inputs: Any) -> Any:
        nonlocal calls
        if calls == steps:
            raise Stop
        calls += 1
        return net(*inputs)

    with contextlib.suppress(Stop):
        end_back_sample(counted, num_atoms, types, alpha, settings)


def gemm_rate() -> float:
    """GFLOP per CPU second of the products that the network is made of: (1000, 512) by (512, 512)."""
    a, b = torch.randn(1000, WIDTH), torch.randn(WIDTH, WIDTH)
    out = torch.empty(1000, WIDTH)
    best = 0.0
    for _ in range(20):
        began = time.process_time()
        for _ in range(10):
            torch.mm(a, b.t(), out=out)
        best = max(best, 10 * 2 * 1000 * WIDTH**2 / (time.process_time() - began) / 1e9)
    return best


def products(num_atoms: list[int]) -> float:
    """GFLOP of the matrix products of one network call as bfn-crys makes it."""
    edges = sum(n * n for n in num_atoms)
    pairs, atoms = sum(n * (n - 1) // 2 for n in num_atoms), sum(num_atoms)
    layer = edges * WIDTH**2 + pairs * 6 * FREQUENCIES * WIDTH + atoms * (2 + 3) * WIDTH**2
    return 2 * (LAYERS * layer + atoms * (TYPES * 2 + WIDTH + TIME) * WIDTH) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--crystals", type=int, default=32)
    parser.add_argument("--atoms", type=int, default=10)
    parser.add_argument("--core", type=int, default=last_core(), help="the core that all run on")
    parser.add_argument("--quick", action="store_true", help="one round: does everything run?")
    options = parser.parse_args()
    pin_to(options.core)()
    torch.set_num_threads(1)
    num_atoms = [options.atoms] * options.crystals
    difference = max(check([1, 2, 5, 5, 9]), check(num_atoms[:4]))
    print(f"largest difference of outputs and gradients: {difference:.1e}")
    jobs = workloads(num_atoms, options.quick)
    measured: list[dict[str, Any]] = []
    for repeat in range(-1, 1 if options.quick else options.repeats):
        for workload, pair in jobs.items():
            both = list(zip(("headwater", "plain"), pair, strict=True))
            for name, work in both if repeat % 2 else reversed(both):
                cpu, wall = time.process_time(), time.perf_counter()
                work()
                line = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
                if repeat >= 0:  # the round before warms up
                    measured.append({"workload": workload, "repeat": repeat, "contestant": name, **line})
    rate, work = gemm_rate(), products(num_atoms)
    print(
        f"matrix products: {rate:.0f} GFLOP/CPU s; a network call has {work:.2f} GFLOP, so {work / rate:.3f} s at least"
    )
    print("| workload | headwater, CPU s | plain, CPU s | times as fast |\n| --- | ---: | ---: | ---: |")
    for workload in jobs:
        median = {
            name: statistics.median(
                m["cpu_seconds"] for m in measured if m["workload"] == workload and m["contestant"] == name
            )
            for name in ("headwater", "plain")
        }
        print(f"| {workload} | {median['headwater']:.3f} | {median['plain']:.3f} "
              f"| {median['plain'] / median['headwater']:.2f} |")  # fmt: skip
    if not options.quick:
        facts = {"gemm_gflops": rate, "network_gflop": work, "difference": difference, "core": options.core}
        path = write_results("bfn", measured, crystals=options.crystals, atoms=options.atoms, **facts)
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
