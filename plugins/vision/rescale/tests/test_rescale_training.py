"""Patches, losses, schedules, and that the stages learn."""

import math

import headwater
import numpy as np
import pytest
import torch
from headwater import ConfigError, DataError
from headwater.config import validate
from headwater.sampling import Model
from headwater_vision.files import write_png
from headwater_vision_rescale.config import DlvConfig
from headwater_vision_rescale.flow import to_unit
from headwater_vision_rescale.objective import charbonnier, hcflow_loss, latent_energy, summed_squares
from headwater_vision_rescale.patches import PatchPool
from headwater_vision_rescale.tasks.photographs import Photographs, PhotographsConfig
from headwater_vision_rescale.trainer import DlvTrainer, HCFlowTrainer

RNG = np.random.default_rng(0)
NOISE = [RNG.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((40, 52), (37, 61))]


def turned(square, turn):
    """The square in position ``turn``: transposed by bit 2, then mirrored by bits 0 (rows) and 1 (columns)."""
    first, second, swap = (turn >> bit & 1 for bit in range(3))
    if first:
        square = square[::-1]
    if second:
        square = square[:, ::-1]
    return square.transpose(1, 0, 2) if swap else square


def test_patches_are_pieces_of_the_images_and_of_their_small_ones():
    images = [NOISE[0][:20, :26], NOISE[1][:19, :31]]
    pool = PatchPool([(image, None) for image in images], 2, 8)
    generator = torch.Generator().manual_seed(0)
    large, small = pool.draw(160, generator)
    assert large.shape == (160, 3, 8, 8)
    assert small.shape == (160, 3, 4, 4)
    which = set()
    for a, b in zip(large.permute(0, 2, 3, 1).numpy(), small.permute(0, 2, 3, 1).numpy(), strict=True):
        found = [
            (k, i, j, t)
            for t in range(8)
            for k, image in enumerate(images)
            for i in range(0, image.shape[0] - 7, 2)
            for j in range(0, image.shape[1] - 7, 2)
            if np.array_equal(turned(image[i : i + 8, j : j + 8], t), a)
        ]
        assert len(found) == 1
        k, i, j, t = found[0]
        guide = pool.small.pixels[pool.small.starts[k] :].numpy()
        width = images[k].shape[1] // 2
        rows = guide[: (images[k].shape[0] // 2) * width].reshape(-1, width, 3)
        assert np.array_equal(turned(rows[i // 2 : i // 2 + 4, j // 2 : j // 2 + 4], t), b)
        which.add((k, t))
    assert len(which) == 16  # every image in every position
    again = PatchPool([(image, None) for image in images], 2, 8).draw(160, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], large)


def test_small_images_of_the_user_guide_instead():
    given = np.zeros((20, 26, 3), np.uint8)
    pool = PatchPool([(NOISE[0], given)], 2, 8)
    assert (pool.draw(4, torch.Generator().manual_seed(0))[1] == 0).all()
    with pytest.raises(DataError, match="26x20 is needed"):
        PatchPool([(NOISE[0], given[:5])], 2, 8)
    with pytest.raises(DataError, match="64x64 pixels or more"):
        PatchPool([(NOISE[0], None)], 2, 64)


def test_losses_are_sums_over_pixels_and_means_over_images():
    a, b = torch.rand(2, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    squares = energy = smooth = 0.0
    for n in range(2):
        for x, y in zip(a[n].flatten().tolist(), b[n].flatten().tolist(), strict=True):
            squares += (x - y) ** 2 / 2
            energy += x**2 / 2
            smooth += math.sqrt((x - y) ** 2 + 1e-6) / 2
    assert float(summed_squares(a, b)) == pytest.approx(squares)
    assert float(latent_energy(a)) == pytest.approx(energy)
    assert float(charbonnier(a, b)) == pytest.approx(smooth)
    found = hcflow_loss(a, b, a, a, b)
    assert float(found["loss_fit"]) == pytest.approx(0.05 * squares / 60)
    assert float(found["loss_rec"]) == pytest.approx(float((a - b).abs().mean()))


def trainer(**settings):
    task = Photographs(PhotographsConfig())
    task.__dict__["training_images"] = lambda least: [(image, None) for image in NOISE]
    small = {"couplings": 1, "growth": 3, "batch_size": 2, "patch": 16, "lr": 1e-3, **settings}
    config = validate(DlvConfig, small, "trainer")
    torch.manual_seed(0)
    made = DlvTrainer(config, task, DlvTrainer.build(config, task, {}), {})
    made.setup()
    return made


def test_the_step_adds_the_losses_with_their_weights():
    made = trainer(scale=4, zu_mode="normal", zd_mode="normal", zd_std=0.5)
    batch = made.draw(0, torch.Generator().manual_seed(0))
    assert batch["z_d"].shape == (2, 1, 16, 16)
    net = made.network
    with torch.no_grad():
        x, guide = to_unit(batch["x"]), to_unit(batch["guide"])
        out = net(x, batch["z_d"])
        y = (out[:, :3].clamp(0, 1) * 255).round() / 255
        expected = 16 * summed_squares(out[:, :3], guide) + latent_energy(out[:, 3:])
        expected = expected + charbonnier(x, net.restore(y, batch["z"]))
    assert made.step(batch)["loss"].item() == pytest.approx(float(expected), rel=1e-5)
    assert made.clip_norm == 10


def test_the_rate_is_halved_where_the_schedule_says():
    made = trainer(halve_at=[2, 3])
    rates = []
    for k in range(4):
        rates.append(made.optimisers["adam"].param_groups[0]["lr"])
        made.step(made.draw(k, torch.Generator().manual_seed(k)))
    assert rates == [1e-3, 1e-3, 5e-4, 2.5e-4]


def test_recomputing_trains_as_storing_does():
    found = []
    for recompute in (True, False):
        made = trainer(couplings=2, recompute=recompute)
        losses = [made.step(made.draw(k, torch.Generator().manual_seed(k)))["loss"].item() for k in range(6)]
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_hcflow_clips_entries_of_gradients():
    parameter = torch.nn.Parameter(torch.zeros(3))
    from headwater_vision_rescale.trainer import _clip

    parameter.register_post_accumulate_grad_hook(lambda p: _clip(p, 5.0))
    (parameter * torch.tensor([1.0, 100.0, -7.0])).sum().backward()
    assert parameter.grad.tolist() == [1, 5, -5]
    assert issubclass(HCFlowTrainer, headwater.Trainer)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": 3}, "scale"),
        ({"scale": 4, "couplings": [1, 2, 3]}, "scale 4 has 2 levels"),
        ({"scale": 8, "patch": 20}, "no multiple of the scale 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        validate(DlvConfig, settings, "trainer")


def test_the_default_learns_and_the_latent_can_enter_late(tmp_path):
    root = tmp_path / "images"
    smooth = np.cumsum(np.cumsum(RNG.normal(0, 1, (96, 96, 3)), 0), 1)
    smooth = 255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())
    for i in range(2):
        write_png(root / f"{i}.png", np.roll(smooth, 20 * i, 0).astype(np.uint8))
    overrides = {
        "task": {"train": str(root), "test": {"own": str(root)}},
        "trainer": {"couplings": 1, "growth": 6, "batch_size": 4, "patch": 32, "zd_entry": "band", "lr": 2e-3},
        "fit": {"max_steps": 40, "log_every": 10, "validate_every": 0, "accelerator": "cpu"},
    }
    run = headwater.train("vision-rescale", tmp_path / "run", overrides=overrides)
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    scores = Model(run, device="cpu").evaluate()
    assert scores["own/images"] == 2
    assert scores["own/psnr_y"] == pytest.approx(run.metrics()[-1]["valid/psnr_y"], abs=1e-6)
