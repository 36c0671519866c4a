"""Volumes out of a run: exact seams, periods, the published way, formats, workers, memory, a killed job."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import headwater
import numpy as np
import pytest
import torch
from headwater import DataError, RunError, UsageError
from headwater_porous_gan.networks import Generator
from headwater_porous_gan.postprocess import quantised
from headwater_porous_gan.sampler import PorousSampler
from headwater_porous_gan.tiling import statistics
from scipy.ndimage import median_filter
from skimage.filters import threshold_otsu

TASK = {"edge": 32, "permeability": False}
SMALL = {"side": 16, "nz": 4, "ngf": 4, "ndf": 2, "batch_size": 2, "select_every": 2, "judged_cells": 5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    fit = {"max_steps": 4, "validate_every": 2, "accelerator": "cpu", "ema": 0.5}
    overrides = {"task": TASK, "trainer": SMALL, "fit": fit, "sampler": {"shape": [24, 20, 28], "tile": 16}}
    return headwater.train("porous-gan", tmp_path_factory.mktemp("run") / "run", overrides=overrides).path


@pytest.fixture(scope="module")
def model(run):
    """The run with weights whose volumes have both phases everywhere."""
    made = headwater.load(run, device="cpu")
    torch.manual_seed(1)
    best = made.modules["best"]
    for conv in best.generator.convs:
        conv.weight.data.normal_(0, 0.2)
    with torch.no_grad():
        sampler = made.sampler()
        from headwater_porous_gan.selection import pilot_latents

        found = statistics(best.generator, pilot_latents(best.generator, sampler.place.device), (0, 0, 0), (6, 6, 6))
        for own, new in zip(best.statistics, found, strict=True):
            own[0].copy_(new[0]), own[1].copy_(new[1])
    return made


def volumes(model, n=1, seed=0, **settings):
    """The volumes of a job, put together from its tiles in reverse order."""
    sampler = model.sampler(overrides={"sampler": settings})
    made = [np.full(sampler.config.shape, 255, np.uint8) for _ in range(n)]
    sampler.seed = seed
    with torch.no_grad():
        for k in reversed(range(sampler.blocks(n))):
            tile = sampler.block(k, torch.Generator(), None)
            where = tuple(slice(a, a + d) for a, d in zip(tile.start, tile.phase.shape, strict=True))
            assert (made[tile.number][where] == 255).all()
            made[tile.number][where] = tile.phase
    assert all(volume.max() == 1 for volume in made)
    return made if n > 1 else made[0]


@pytest.mark.parametrize("postprocess", ["none", "paper"])
def test_tiles_do_not_change_the_volume(model, postprocess):
    whole = volumes(model, tile=32, postprocess=postprocess)
    assert 0.05 < whole.mean() < 0.95
    for tile in (4, 8, 20):
        assert np.array_equal(volumes(model, tile=tile, postprocess=postprocess), whole)
    assert not np.array_equal(volumes(model, tile=32, seed=1), volumes(model, tile=32))


def test_origin_goes_on_beside_a_finished_volume(model):
    whole = volumes(model, shape=[24, 20, 40])
    assert np.array_equal(volumes(model, shape=[24, 20, 16], origin=[0, 0, 24]), whole[:, :, 24:])
    assert np.array_equal(volumes(model, shape=[10, 20, 16], origin=[3, 0, 5]), whole[3:13, :, 5:21])


@pytest.mark.parametrize("latent", ["indexed", "torch"])
@pytest.mark.parametrize("postprocess", ["none", "paper"])
def test_a_periodic_volume_fits_itself(model, latent, postprocess):
    """Rolled by half a period, the seam lies inside, and is what an unbroken field would have there."""
    one = volumes(model, shape=[16, 20, 24], periodic=True, tile=8, latent=latent, postprocess=postprocess)
    assert np.array_equal(
        volumes(model, shape=[16, 20, 24], periodic=True, tile=24, latent=latent, postprocess=postprocess), one
    )
    if latent == "indexed":
        moved = volumes(model, shape=[16, 20, 24], periodic=True, origin=[5, 0, 9], postprocess=postprocess)
        assert np.array_equal(moved, np.roll(one, (-5, -9), (0, 2)))


def test_realisations_differ_and_are_the_same_alone(model):
    three = volumes(model, 3)
    assert not np.array_equal(three[0], three[1])
    assert np.array_equal(volumes(model, 2)[1], three[1])


@pytest.mark.parametrize("margin", ["none", "paper"])
def test_the_published_way(model, margin):
    """Statistics of the volume itself, latents drawn at once, floor, median, Otsu: all as in one piece."""
    cut = 40 if margin == "paper" else 0
    shape = [20, 24, 28] if margin == "none" else [8, 12, 8]
    generator = model.modules["generator"]
    generator.load_state_dict(model.modules["best"].generator.state_dict())
    sampler = model.sampler(
        overrides={
            "sampler": {
                "shape": shape,
                "margin": margin,
                "latent": "torch",
                "bn": "batch",
                "weights": "last",
                "postprocess": "paper",
                "tile": 8,
            }
        }
    )
    n = [(s + 2 * cut) // 4 - 3 for s in shape]
    z = torch.randn(1, generator.nz, *n, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        y = Generator.forward(generator.train(), z)[0, 0].numpy()
        generator.eval()
    sampler.seed = 7
    with torch.no_grad():
        tiles = [sampler.block(k, torch.Generator(), None) for k in range(sampler.tiles)]
    made = np.empty(shape, np.uint8)
    for tile in tiles:
        made[tuple(slice(a, a + d) for a, d in zip(tile.start, tile.phase.shape, strict=True))] = tile.phase
    kept = median_filter(quantised(y), 3)[tuple(slice(cut, cut + d) for d in shape)]
    wanted = kept / 255 >= threshold_otsu(kept / 255)
    assert (made != wanted).mean() < 1e-3  # values that float32 stores one apart
    assert 0.02 < made.mean() < 0.98


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tile": 10}, "sampler.tile = 10"),
        ({"shape": [24, 20, 30], "periodic": True}, "whole cells of 4 voxels"),
        ({"margin": "paper", "origin": [4, 0, 0]}, "sampler.origin"),
        ({"margin": "none", "shape": [8, 20, 20]}, "one latent makes 16 voxels"),
        ({"latent": "torch", "origin": [4, 0, 0]}, "sampler.origin"),
        ({"margin": "paper", "periodic": True}, "sampler.periodic"),
    ],
)
def test_what_cannot_be_is_refused(model, settings, said):
    with pytest.raises(UsageError, match=said):
        model.sampler(overrides={"sampler": settings})


def test_a_finished_file_is_extended_without_computing_it_again(run, tmp_path, monkeypatch):
    model = headwater.load(run, device="cpu")
    first = model.sample_to(tmp_path / "first.zarr", 1, overrides={"sampler": {"shape": [16, 32, 16]}}, seed=3)
    whole = model.sample_to(tmp_path / "whole.npy", 1, overrides={"sampler": {"shape": [32, 32, 16]}}, seed=3)
    computed = []
    compute = PorousSampler._computed
    monkeypatch.setattr(PorousSampler, "_computed", lambda s, *a: (computed.append(a[1]), compute(s, *a))[1])
    settings = {"sampler": {"shape": [32, 32, 16], "extend": str(first)}}
    more = model.sample_to(tmp_path / "more.npy", 1, overrides=settings, seed=3)
    assert computed == [(16, 0, 0), (16, 16, 0)]
    assert np.array_equal(np.load(more), np.load(whole))
    with pytest.raises(DataError, match="made with seed = 3"):
        model.sample_to(tmp_path / "other.npy", 1, overrides=settings, seed=4)


def test_the_disk_is_checked_before_the_start(model, tmp_path):
    huge = {"sampler": {"shape": [200000, 200000, 200000], "tile": 40000}}
    for name in ("a.raw", "a.zarr"):
        with pytest.raises(RunError, match="GB are free"):
            model.sample_to(tmp_path / name, 1, overrides=huge)
    assert not list(tmp_path.glob("*.parts/block-*"))


def test_memory_does_not_grow_with_the_volume(model):
    def peak(shape):
        sampler = model.sampler(overrides={"sampler": {"shape": shape, "tile": 32}})
        sampler.seed = 0
        with torch.no_grad():
            sampler.block(0, torch.Generator(), None)
            tracemalloc.start()
            kept = [
                sampler.block(k, torch.Generator(), None).phase.mean() for k in (sampler.tiles // 2, sampler.tiles - 1)
            ]
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert len(kept) == 2
        return found

    small, large = peak([64, 64, 64]), peak([4096, 4096, 4096])
    assert large < 1.5 * small + 100_000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not reset the peak")
def test_a_tile_takes_less_than_30_bytes_a_voxel(tmp_path):
    """In a process of its own: the growth of the resident set over one tile of the published network's shape."""
    code = (
        "import re, torch\n"
        "from headwater_porous_gan.latents import Latents\n"
        "from headwater_porous_gan.networks import Generator\n"
        "from headwater_porous_gan.tiling import Folded, running_statistics\n"
        "torch.set_num_threads(1)\n"
        "g = Generator(64, 16, 32).eval()\n"
        "f = Folded(g, running_statistics(g))\n"
        "field = Latents(16, 1)\n"
        "status = lambda name: int(re.search(name + r':\\s+(\\d+) kB', open('/proc/self/status').read())[1]) * 1024\n"
        "to = lambda y: (y > 0).to(torch.uint8)\n"
        "with torch.no_grad():\n"
        "    f.tile(field, (0, 0, 0), (2, 2, 2), to)\n"
        "    open('/proc/self/clear_refs', 'w').write('5')\n"
        "    before = status('VmRSS'); f.tile(field, (0, 0, 0), (12, 12, 12), to)\n"
        "    print((status('VmHWM') - before) / 192**3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 30


def test_a_killed_job_goes_on_and_gives_the_same_file(run, tmp_path):
    words = [sys.executable, "-m", "headwater", "sample", str(run), "-n", "1", "--seed", "5"]
    words += ["--set", "sampler.shape=[256,192,192]", "--set", "sampler.tile=64"]
    straight, killed = tmp_path / "straight.zarr", tmp_path / "killed.zarr"
    subprocess.run([*words, "-o", str(straight)], capture_output=True, check=True)
    job = subprocess.Popen([*words, "-o", str(killed)], stderr=subprocess.PIPE)
    parts = tmp_path / "killed.zarr.parts"
    until = time.monotonic() + 120
    while len(list(parts.glob("block-*"))) < 3 and time.monotonic() < until and job.poll() is None:
        time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    done = {p.name: p.stat().st_mtime_ns for p in parts.glob("block-*")}
    assert 3 <= len(done) < 36
    assert not killed.exists()
    subprocess.run([*words, "-o", str(killed), "--workers", "2"], capture_output=True, check=True)
    for file in straight.rglob("*"):
        if file.is_file():
            assert (killed / file.relative_to(straight)).read_bytes() == file.read_bytes()


def test_files_say_what_made_them(model, tmp_path):
    path = model.sample_to(tmp_path / "rock.npy", 1, seed=11)
    (volume,) = model.task.read(path)
    assert volume.provenance["seed"] == 11
    assert volume.provenance["bn"] == "global"
    assert len(volume.provenance["weights"]) == 16


def test_two_ranks_write_the_file_of_one_process(run, tmp_path):
    words = ["-m", "headwater", "sample", str(run), "-n", "1", "--seed", "2"]
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one, two = tmp_path / "one.zarr", tmp_path / "two.zarr"
    subprocess.run([sys.executable, *words, "-o", str(one)], capture_output=True, check=True)
    done = subprocess.run(
        [sys.executable, *start, *words, "-o", str(two)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 samples: ") == 1
    files = [file.relative_to(one) for file in one.rglob("*") if file.is_file()]
    assert len(files) == 9  # 2 x 2 x 2 chunks and their note
    for file in files:
        assert (two / file).read_bytes() == (one / file).read_bytes()
