"""The small experiment: Ketton at half resolution, several seeds, beside a Gaussian field and overlapping spheres.

``python benchmarks/porous/evidence.py --volume ketton_full_uint8.tif [--seeds 0 1 2] [--steps N]`` trains one run a
seed under ``build/porous-evidence``, goes on with those that were interrupted, and
writes ``results/porous-evidence-<time>.json`` and a figure beside it. What is trained is the method's default.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import headwater
import numpy as np
import torch
from headwater import Run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import ROOT, write_results
from headwater_porous_gan.physics import correlation
from headwater_porous_gan.physics.minkowski import minkowski
from headwater_porous_gan.tasks import media
from headwater_porous_gan.tasks.volume import PorousVolume, PorousVolumeConfig

EDGE, VOLUMES, LAGS = 96, 4, 40
FIELDS = ("porosity", "surface", "faces", "euler")


def measure(phases: list[np.ndarray]) -> dict[str, Any]:
    """Means over volumes of porosity, Crofton surface, faces and Euler number per voxel, and S2 of the pores."""
    rows, curves = [], []
    for phase in phases:
        found = minkowski(phase)
        surface, euler = found.surface / found.cells, found.euler6 / found.cells
        faces = sum(np.count_nonzero(np.diff(phase.view(np.int8), axis=axis)) for axis in range(3))
        rows.append((1 - phase.mean(), surface, faces / phase.size, euler))
        curves.append(correlation.s2_mean(correlation.s2_directional(phase, LAGS)))
    mean, spread = np.mean(rows, 0), np.std(rows, 0)
    return {
        "mean": dict(zip(FIELDS, map(float, mean), strict=True)),
        "std": dict(zip(FIELDS, map(float, spread), strict=True)),
        "s2": [float(v) for v in np.mean(curves, 0)],
    }  # fmt: skip


def beside(found: dict[str, Any], real: dict[str, Any]) -> dict[str, float]:
    """Relative errors of the functionals, the mean absolute one of S2 over lags 0..39."""
    errors = {name: abs(found["mean"][name] / real["mean"][name] - 1) for name in FIELDS}
    return {**errors, "s2": float(np.abs(np.subtract(found["s2"], real["s2"]))[:LAGS].mean())}


def trained(volume: Path, seed: int, steps: int) -> Run:
    """The run of ``seed`` after ``steps`` steps."""
    path = ROOT / "build" / "porous-evidence" / f"seed-{seed}"
    if path.exists() and Run(path).checkpoints():
        return Run(path) if Run(path).checkpoints()[-1] >= steps else headwater.resume(path)
    overrides = {
        "task": {"path": str(volume), "coarsen": 2, "isotropic": True, "permeability": False},
        "trainer": {"decay_steps": steps},
        "fit": {"seed": seed, "max_steps": steps, "checkpoint_every": 100},
    }
    return headwater.train("porous-gan", path, task="porous-volume", overrides=overrides, force=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volume", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    whole = PorousVolume(PorousVolumeConfig(path=arguments.volume, coarsen=2)).volume().phase
    corners = [(i, j, k) for i in (0, 32) for j in (0, 32) for k in (0, 32)]
    real = measure([np.asarray(whole[i : i + EDGE, j : j + EDGE, k : k + EDGE]) for i, j, k in corners])
    porosity = 1 - float(whole.mean())
    curve = correlation.s2_mean(correlation.s2_directional(whole, LAGS))
    sigma = media.fitted_sigma(curve, LAGS)
    radius = radius_of_spheres(curve, porosity)
    rows = {
        "real": real,
        f"Gaussian field, sigma {sigma:.2f}": measure([media.field(EDGE, sigma, porosity, s) for s in range(VOLUMES)]),
        f"overlapping spheres, radius {radius}": measure(
            [media.overlapping_spheres(EDGE, radius, porosity, s) for s in range(VOLUMES)]
        ),
    }
    for seed in arguments.seeds:
        run = trained(arguments.volume, seed, arguments.steps)
        model = headwater.load(run.path, device="cpu")
        for name in ("none", "paper"):
            settings = {"sampler": {"shape": [EDGE] * 3, "postprocess": name}}
            made = [tile.phase for tile in model.sample(VOLUMES, seed=seed, overrides=settings)]
            last = run.metrics()[-1]
            rows[f"GAN, seed {seed}, {name}"] = {
                **measure(made), "steps": int(last["step"]), "seconds": last["seconds"],
                "best_step": int(model.modules["best"].step),
            }  # fmt: skip
    for name, row in rows.items():
        row["errors"] = beside(row, real)
        m = row["mean"]
        print(
            f"{name}: porosity {m['porosity']:.3f}, surface {m['surface']:.4f}, faces {m['faces']:.4f}, "
            f"Euler {m['euler'] * 1e4:.2f}e-4, S2 error {row['errors']['s2']:.4f}"
        )
    path = write_results(
        "porous-evidence", [{"name": name, **row} for name, row in rows.items()],
        seeds=arguments.seeds, steps=arguments.steps, threads=torch.get_num_threads(),
    )  # fmt: skip
    figure(rows, path.with_suffix(".svg"))
    print(path)


def radius_of_spheres(curve: np.ndarray, porosity: float) -> int:
    """The radius of overlapping spheres of grain whose surface is that of the curve: S_V = 3 phi ln(1 / phi) / R."""
    return max(2, round(3 * porosity * np.log(1 / porosity) / correlation.specific_surface(curve)))


def figure(rows: dict[str, Any], path: Path) -> None:
    """S2 of all rows, and their errors as bars."""
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for name, row in rows.items():
        left.plot(row["s2"], label=name, lw=2 if name == "real" else 1, color="black" if name == "real" else None)
    left.set(xlabel="lag in voxels", ylabel="S2 of the pores")
    left.legend(fontsize=6)
    others = [name for name in rows if name != "real"]
    for i, name in enumerate(others):
        errors = rows[name]["errors"]
        right.bar(np.arange(4) + i * 0.8 / len(others), [errors[f] for f in FIELDS], 0.8 / len(others), label=name)
    right.set_xticks(np.arange(4) + 0.3, FIELDS)
    right.set_ylabel("relative error")
    fig.tight_layout()
    fig.savefig(path)


if __name__ == "__main__":
    main()
