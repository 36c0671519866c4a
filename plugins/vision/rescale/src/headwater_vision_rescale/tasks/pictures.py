"""The report's pictures: pieces of test images enlarged, beside bicubic; the table beside the published ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from headwater import Run
from headwater.reporting import Images, Panel, Table
from headwater_vision.files import png_bytes
from headwater_vision.grids import enlarged
from headwater_vision.metrics import luma, psnr

from headwater_vision_rescale.inference import Runner
from headwater_vision_rescale.networks import HidingNet, Rescaler
from headwater_vision_rescale.tasks.scoring import (
    COLUMNS,
    PUBLISHED,
    bicubic_bytes,
    cropped,
    restored_scores,
    small_scores,
)

__all__ = ["detailed", "panels"]

SHOWN = 4
PIECE = 384
CROP = 64
TIMES = 4


def detailed(image: np.ndarray, edge: int) -> tuple[int, int]:
    """The upper left corner of the square of ``edge`` pixels, out of a coarse grid, that has the most detail."""
    y = luma(image)
    steps = np.abs(np.diff(y, axis=0))[:, :-1] + np.abs(np.diff(y, axis=1))[:-1]
    height, width = steps.shape
    corners = [
        (i, j) for i in range(0, max(1, height - edge), edge // 2) for j in range(0, max(1, width - edge), edge // 2)
    ]
    return max(corners, key=lambda c: float(steps[c[0] : c[0] + edge, c[1] : c[1] + edge].sum()))


def panels(task: Any, run: Run) -> list[Panel]:
    """What the run does with pieces of the test images, and how it compares."""
    from headwater.sampling import Model

    model = Model(run, device="cpu")
    sampler: Any = model.sampler()
    pieces = [(p.name, _middle(p.image())) for p in task.tested[:SHOWN]]
    generator = torch.Generator().manual_seed(0)
    if isinstance(sampler.network, HidingNet):
        return [_hidden(sampler.runner, pieces, generator)]
    return _restored(sampler.runner, sampler.network, pieces, generator)


def _middle(image: np.ndarray) -> np.ndarray:
    top, left = (max(0, (n - PIECE) // 2) for n in image.shape[:2])
    return cropped(image[top : top + PIECE, left : left + PIECE], 8)


def _zoom(image: np.ndarray, corner: tuple[int, int], edge: int, times: int) -> bytes:
    i, j = corner
    return png_bytes(enlarged(image[i : i + edge, j : j + edge], times))


def _restored(
    runner: Runner, network: Rescaler, pieces: Sequence[tuple[str, np.ndarray]], generator: torch.Generator
) -> list[Panel]:
    scale = network.scale
    images, labels, rows = [], [], []
    for name, truth in pieces:
        small = runner.downscale(truth, generator)
        restored = runner.upscale(small, None, generator)
        guide = bicubic_bytes(truth, 1 / scale)
        plain = bicubic_bytes(guide, scale)
        corner = detailed(truth, CROP)
        found = {k: restored_scores(truth, v, scale) for k, v in (("bicubic", plain), ("restored", restored))}
        near = small_scores(guide, small)["lr_psnr_y"]
        down = (corner[0] // scale, corner[1] // scale)
        images += [
            png_bytes(truth), _zoom(truth, corner, CROP, TIMES), _zoom(plain, corner, CROP, TIMES),
            _zoom(restored, corner, CROP, TIMES), _zoom(small, down, CROP // scale, TIMES * scale),
        ]  # fmt: skip
        labels += [
            name, "true", f"bicubic, {found['bicubic']['psnr_y']:.2f} dB",
            f"restored, {found['restored']['psnr_y']:.2f} dB", f"small, {near:.2f} dB to bicubic",
        ]  # fmt: skip
        for kind, value in found.items():
            rows.append([name, kind, value["psnr_y"], value["ssim_y"], near if kind == "restored" else "-"])
    table = Table(
        f"Pieces of test images, x{scale}", ["image", "what", "PSNR of Y", "SSIM of Y", "PSNR of the small one"], rows,
        caption="After rounding to 8 bits, a border of the scale left out; the small image beside the bicubic one.",
    )  # fmt: skip
    made: list[Panel] = [
        Images(
            "There and back", images, labels,
            caption=f"A piece of {CROP} pixels, enlarged: true; bicubic down and up; restored from the run's own small "
            "image with 8 bits and zero latents; that small image.",
        ),
        table,
    ]  # fmt: skip
    if scale in PUBLISHED:
        claims = [[name, *values] for name, values in PUBLISHED[scale].items()]
        made.append(
            Table(
                f"Published, x{scale}: PSNR and SSIM of Y", ["down, up", *COLUMNS], claims,
                caption="IRN's authors, trained on DIV2K for 500,000 steps. `headwater evaluate RUN "
                "--set task.test.Set5=FOLDER` measures this run by the same protocol.",
            )
        )  # fmt: skip
    return made


def _hidden(runner: Runner, pieces: Sequence[tuple[str, np.ndarray]], generator: torch.Generator) -> Images:
    images, labels = [], []
    for (name, cover), (other, secret) in zip(pieces, [*pieces[1:], *pieces[:1]], strict=True):
        height, width = (min(a, b) for a, b in zip(cover.shape[:2], secret.shape[:2], strict=True))
        cover, secret = cover[:height, :width], secret[:height, :width]
        stego = runner.hide(cover, secret)
        revealed = runner.reveal(stego, None, generator)
        difference = np.clip(10 * np.abs(stego.astype(int) - cover.astype(int)), 0, 255).astype(np.uint8)
        images += [png_bytes(p) for p in (cover, stego, difference, secret, revealed)]
        labels += [
            f"{name}: cover", f"with the secret, {psnr(luma(cover), luma(stego)):.2f} dB", "difference x 10",
            f"{other}: secret", f"revealed, {psnr(luma(secret), luma(revealed)):.2f} dB",
        ]  # fmt: skip
    return Images(
        "Hidden and revealed", images, labels,
        caption="The picture with the secret is stored with 8 bits; zeros stand for what was left out.",
    )  # fmt: skip
