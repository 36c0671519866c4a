"""DLV-IRN beside IRN at the same number of parameters: small, several seeds, Set5 and Set14.

``python benchmarks/vision/rescale_evidence.py --data FOLDER`` wants ``BSD100_first24/HR``, ``Set5/HR`` and ``Set14/HR``
in FOLDER with MATLAB's bicubic images (``LR_matlab_bicubic_x2``) beside. It trains on the first, a run for each arm and
seed under ``build/vision-rescale-evidence``, goes on with those that were interrupted, and stops between runs after
``--minutes``. Every network then makes the test images small and restores them from 8 bits: with latents of zeros, with
the latents that its own forward pass gave (``real``), and with normal ones. Results go to
``results/vision-rescale-evidence.json``, the picture to ``docs/figures/vision-rescale-evidence.png``.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import headwater
import numpy as np
import torch
from headwater import Run
from headwater.sampling import Model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import HERE, ROOT, about
from headwater_vision.files import find_images, read_image, write_png
from headwater_vision.grids import enlarged, grid
from headwater_vision_rescale.flow import quantise, to_bytes
from headwater_vision_rescale.inference import as_array, as_tensor
from headwater_vision_rescale.tasks.pictures import detailed
from headwater_vision_rescale.tasks.scoring import bicubic_bytes, cropped, restored_scores, small_scores

ARMS = {
    "IRN": {"zd_channels": 0, "growth": 12},
    "IRN, as large as DLV": {"zd_channels": 0, "growth": 13},
    "DLV": {"zd_channels": 1, "growth": 12},
}
LATENTS = ("zero", "real", "normal")
SETS = ("Set5", "Set14")
SCALE = 2


def trained(arm: str, seed: int, data: Path, steps: int, folder: Path) -> Run:
    """The finished run of one arm and seed."""
    path = folder / f"{arm.replace(', ', '-').replace(' ', '-')}-{steps}-seed{seed}"
    if path.exists() and Run(path).checkpoints():
        return Run(path) if Run(path).checkpoints()[-1] >= steps else headwater.resume(path)
    overrides = {
        "task": {"train": str(data / "BSD100_first24" / "HR")},
        "trainer": {
            "scale": SCALE, "couplings": 3, "batch_size": 8, "patch": 48, "lr": 1e-3,
            "halve_at": [int(0.75 * steps), int(0.9 * steps)], "recompute": False, **ARMS[arm],
        },
        "fit": {"max_steps": steps, "seed": seed, "checkpoint_every": 50, "validate_every": 0, "threads": 1},
    }  # fmt: skip
    return headwater.train("vision-rescale", path, overrides=overrides, force=True)


@torch.no_grad()
def there_and_back(net: Any, image: np.ndarray, latents: tuple[str, ...]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The small image and the restored ones, by the latent that they were restored with."""
    out = net(as_tensor(image).float() / 255)
    y, z = quantise(out[:, :3]), out[:, 3:]
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    given = {"zero": torch.zeros_like(z), "real": z, "normal": noise}
    return as_array(to_bytes(y)), {k: as_array(to_bytes(net.restore(y, given[k]))) for k in latents}


def scored(net: Any, data: Path) -> dict[str, dict[str, float]]:
    """Means over each set: PSNR and SSIM of Y with each latent, PSNR of the small image."""
    found = {}
    for name in SETS:
        rows = []
        for path in find_images(data / name / "HR"):
            truth = cropped(read_image(path), SCALE)
            small, restored = there_and_back(net, truth, LATENTS)
            given = read_image(data / name / f"LR_matlab_bicubic_x{SCALE}" / path.name)
            row = small_scores(given[: small.shape[0], : small.shape[1]], small)
            for latent, image in restored.items():
                s = restored_scores(truth, image, SCALE)
                row |= {f"{latent}_psnr_y": s["psnr_y"], f"{latent}_ssim_y": s["ssim_y"]}
            rows.append(row)
        found[name] = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
    return found


def bicubic_scores(data: Path) -> dict[str, dict[str, float]]:
    """Bicubic there (MATLAB's own file) and back."""
    found = {}
    for name in SETS:
        rows = []
        for path in find_images(data / name / "HR"):
            truth = cropped(read_image(path), SCALE)
            small = read_image(data / name / f"LR_matlab_bicubic_x{SCALE}" / path.name)
            small = small[: truth.shape[0] // SCALE, : truth.shape[1] // SCALE]
            rows.append(restored_scores(truth, bicubic_bytes(small, SCALE), SCALE))
        found[name] = {k: float(np.mean([row[k] for row in rows])) for k in ("psnr_y", "ssim_y")}
    return found


def picture(runs: dict[str, Run], data: Path) -> None:
    """Enlarged pieces of four test images: true, bicubic, and restored by each arm with zero and with real latents."""
    nets = {arm: Model(run, device="cpu").modules["rescaler"] for arm, run in runs.items()}
    cells = []
    for name, number in (("Set5", 2), ("Set5", 4), ("Set14", 1), ("Set14", 12)):
        truth = cropped(read_image(find_images(data / name / "HR")[number]), SCALE)[:512, :512]
        i, j = detailed(truth, 48)
        made = [truth, bicubic_bytes(bicubic_bytes(truth, 1 / SCALE), SCALE)]
        for net in nets.values():
            made += there_and_back(net, truth, ("zero", "real"))[1].values()
        cells += [enlarged(image[i : i + 48, j : j + 48], 4) for image in made]
    write_png(ROOT / "docs" / "figures" / "vision-rescale-evidence.png", grid(cells, 2 + 2 * len(nets), gap=4))
    print("columns:", "true, bicubic,", ", ".join(f"{arm} ({z} latents)" for arm in nets for z in ("zero", "real")))


def table(results: dict[str, Any], bicubic: dict[str, dict[str, float]]) -> str:
    """Markdown: mean and spread over seeds."""

    def cell(arm: str, name: str, key: str) -> str:
        values = [r["scores"][name][key] for r in results.values() if r["arm"] == arm]
        digits = 4 if "ssim" in key else 2
        spread = f" ± {np.std(values):.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"

    lines = []
    for name in SETS:
        lines += [
            f"| {name}, x{SCALE} | parameters | seeds | PSNR of Y, zero latents | SSIM | real latents | normal latents "
            "| small image to bicubic |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            f"| bicubic there and back | | | {bicubic[name]['psnr_y']:.2f} | {bicubic[name]['ssim_y']:.4f} | | | |",
        ]
        for arm in ARMS:
            own = [r for r in results.values() if r["arm"] == arm]
            if own:
                keys = ("zero_psnr_y", "zero_ssim_y", "real_psnr_y", "normal_psnr_y", "lr_psnr_y")
                cells = " | ".join(cell(arm, name, key) for key in keys)
                lines.append(f"| {arm} | {own[0]['parameters']:,} | {len(own)} | {cells} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with BSD100_first24, Set5 and Set14")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further run after that long")
    arguments = parser.parse_args()
    began, folder = time.monotonic(), ROOT / "build" / "vision-rescale-evidence"
    kept = HERE / "results" / "vision-rescale-evidence.json"
    results: dict[str, Any] = json.loads(kept.read_text())["runs"] if kept.exists() else {}
    results = {k: v for k, v in results.items() if v["steps"] == arguments.steps}
    bicubic, shown = bicubic_scores(arguments.data), {}
    for seed in arguments.seeds:  # whatever time there is, all arms have equally many seeds
        for arm in arguments.arms:
            key = f"{arm}, seed {seed}"
            if time.monotonic() - began > 60 * arguments.minutes:
                break
            if key in results and seed != arguments.seeds[0]:
                continue
            run = trained(arm, seed, arguments.data, arguments.steps, folder)
            if run.checkpoints()[-1] < arguments.steps:
                raise SystemExit("interrupted; the same command goes on")
            shown.setdefault(arm, run)
            if key in results:
                continue
            net = Model(run, device="cpu").modules["rescaler"]
            results[key] = {
                "arm": arm, "seed": seed, "steps": arguments.steps, "scores": scored(net, arguments.data),
                "parameters": sum(p.numel() for p in net.parameters()), "seconds": run.metrics()[-1]["seconds"],
            }  # fmt: skip
            kept.write_text(json.dumps({**about(), "bicubic": bicubic, "runs": results}, indent=1) + "\n")
            print(key, results[key]["scores"]["Set5"], flush=True)
    picture(shown, arguments.data)
    print(table(results, bicubic))


if __name__ == "__main__":
    main()
