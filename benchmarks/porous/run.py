"""Generation and training beside the plain published network, in one process, in turn: ratios of medians.

``python benchmarks/porous/run.py [--rounds N]`` writes ``results/porous-<time>.json``. One thread; CPU seconds.
"""

import argparse
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import write_results
from headwater.trainer import Place
from headwater_porous_gan.config import PorousConfig
from headwater_porous_gan.latents import Latents
from headwater_porous_gan.networks import Generator
from headwater_porous_gan.tasks.media import Medium, MediumConfig
from headwater_porous_gan.tiling import Folded, running_statistics
from headwater_porous_gan.trainer import PorousTrainer


def plain(generator: Generator, z: torch.Tensor) -> torch.Tensor:
    """The published network as published: one layer after another, transposed convolutions, tanh."""
    for k, conv in enumerate(generator.convs):
        z = conv(z)
        if k < len(generator.norms):
            z = torch.relu_(generator.norms[k](z))
    return torch.tanh(z)


def interleaved(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every job once, then of every job again; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for r in range(rounds + 1):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            if r:
                seconds[name].append(time.process_time() - began)
    return seconds


def phase(y: torch.Tensor) -> torch.Tensor:
    return (y > 0).to(torch.uint8)


def contestants(ngf: int, cells: int) -> dict[str, Callable[..., Any]]:
    """What makes ``cells`` 16-voxel cells along each axis, tile = volume.

    ``published`` and ``tile`` make the same volume, which has ends. ``tile_endless`` is one of the endless
    field, with all of its halo.
    """
    torch.manual_seed(0)
    generator = Generator(64, 512, ngf).eval()
    extent = (cells - 3,) * 3
    ended, endless = Latents(512, 1, extent), Latents(512, 1)
    z = ended.window((0, 0, 0), extent)
    low, high = (0, 0, 0), (cells,) * 3
    folded = Folded(generator, running_statistics(generator))
    jobs: dict[str, Callable[..., Any]] = {
        "published": lambda: plain(generator, z),
        "tile": lambda convert=phase: folded.tile(ended, low, high, convert),
        "tile_endless": lambda: folded.tile(endless, low, high, phase),
    }
    if cells <= 8:
        half = Folded(generator, running_statistics(generator), torch.bfloat16)
        jobs["tile_bfloat16"] = lambda: half.tile(ended, low, high, phase)
    return jobs


def generation(ngf: int, cells: int, rounds: int) -> dict[str, Any]:
    """Voxels per CPU second, how far outputs are apart, and bytes a voxel."""
    jobs = contestants(ngf, cells)
    with torch.no_grad():
        whole, made = jobs["published"]()[0, 0], jobs["tile"](None)[1:-1, 1:-1, 1:-1]
        apart, flips = float((whole - made).abs().max()), int(((whole > 0) != (made > 0)).sum())
        del whole, made
        seconds = interleaved(jobs, rounds)
    voxels = (16 * cells) ** 3
    return {
        "workload": f"generation, S = 64, nz = 512, ngf = {ngf}, {16 * cells}^3", "seconds": seconds,
        "voxels_per_cpu_second": {name: voxels / statistics.median(found) for name, found in seconds.items()},
        "largest_difference": apart, "voxels_that_change_phase": flips,
        "bytes_per_voxel": {name: peak(ngf, cells, name) / voxels for name in ("published", "tile", "tile_endless")},
    }  # fmt: skip


def peak(ngf: int, cells: int, name: str) -> float:
    """Growth of the resident set while a contestant runs for the first time, in a process of its own, in bytes.

    NaN where the system does not tell.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (ngf, cells, name))


def _grown(ngf: int, cells: int, name: str) -> float:
    def status(name: str) -> int:
        return int(re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]

    torch.set_num_threads(1)
    job = contestants(ngf, cells)[name]
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
    except OSError:
        return float("nan")
    with torch.no_grad():
        job()
    return float(status("VmHWM") - before)


def training(rounds: int) -> dict[str, Any]:
    """CPU seconds of a step: the published order on the published layers, and the shared batch on the quick ones."""
    made = {}
    task = Medium(MediumConfig(edge=96))
    for name, settings in (
        ("published", {"variant": "smooth", "windows": "published", "order": "official"}),
        ("shared", {"variant": "smooth", "windows": "published"}),
    ):
        torch.manual_seed(0)
        config = PorousConfig(side=64, nz=100, ngf=32, ndf=16, batch_size=8, **settings)
        trainer = PorousTrainer(config, task, PorousTrainer.build(config, task, {}), {}, place=Place())
        trainer.setup()
        made[name] = (trainer, trainer.draw(0, torch.Generator().manual_seed(0)))
    seconds = interleaved({name: lambda t=t, b=b: t.step(b) for name, (t, b) in made.items()}, rounds)
    return {"workload": "training step, S = 64, nz = 100, ngf = 32, ndf = 16, batch 8", "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    measured = [generation(ngf, cells, rounds) for ngf, cells in ((64, 8), (64, 16), (32, 8), (32, 16))]
    measured.append(training(rounds))
    for m in measured:
        medians = {name: statistics.median(found) for name, found in m["seconds"].items()}
        first = medians["published"]
        print(m["workload"])
        for name, value in medians.items():
            rate = m.get("voxels_per_cpu_second", {}).get(name)
            text = "" if rate is None else f", {rate / 1e6:.2f} million voxels a CPU second"
            memory = m.get("bytes_per_voxel", {}).get(name)
            text += "" if memory is None else f", {memory:.0f} bytes a voxel"
            print(f"  {name}: {value:.3f} CPU s, {first / value:.2f} times as fast as published{text}")
        if "largest_difference" in m:
            flips = m["voxels_that_change_phase"]
            print(f"  largest difference of outputs: {m['largest_difference']:.1e}; {flips} voxels change phase")
    print(write_results("porous", measured, threads=1, torch=torch.__version__))


if __name__ == "__main__":
    main()
