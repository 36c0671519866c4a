"""Steps of all variants, crops, and which weights are kept."""

import itertools

import headwater
import numpy as np
import pytest
import torch
from headwater import ConfigError, DataError
from headwater.config import validate
from headwater.trainer import Place
from headwater_porous_gan.config import PorousConfig
from headwater_porous_gan.networks import Generator
from headwater_porous_gan.selection import Best, errors, morphology
from headwater_porous_gan.tasks.media import Medium, MediumConfig
from headwater_porous_gan.trainer import PorousTrainer, crop, windows

SMALL = {"side": 16, "nz": 4, "ngf": 4, "ndf": 2, "batch_size": 3}


@pytest.fixture(scope="module")
def task():
    return Medium(MediumConfig(edge=48, permeability=False))


def trainer(task, **settings):
    torch.manual_seed(0)
    config = PorousConfig(**{**SMALL, **settings})
    made = PorousTrainer(config, task, PorousTrainer.build(config, task, {}), {}, place=Place())
    made.setup()
    return made


VARIANTS = [
    {"variant": "both"},
    {"variant": "both", "windows": "published"},
    {"variant": "smooth", "order": "official", "windows": "published"},
    {"variant": "noise", "order": "official", "windows": "published", "dropout": 0.2},
    {"variant": "noise", "schedule": "official64", "dropout": 0.2, "dropout_of": "channels"},
    {"objective": "wgan-gp", "critic_steps": 2},
]


@pytest.mark.parametrize("settings", VARIANTS)
def test_every_variant_makes_a_step_that_depends_on_its_batch_alone(task, settings):
    found = []
    for _ in range(2):
        made = trainer(task, **settings)
        batch = made.draw(4, torch.Generator().manual_seed(1))
        before = [p.detach().clone() for m in ("generator", "discriminator") for p in made.modules[m].parameters()]
        torch.manual_seed(5)  # dropout draws from the global generator
        metrics = made.step(batch)
        after = [p for m in ("generator", "discriminator") for p in made.modules[m].parameters()]
        assert all(torch.isfinite(v) for v in metrics.values())
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(p.grad is None and p.requires_grad for p in after)
        found.append([float(v) for v in metrics.values()])
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["published", "stationary"])
def test_the_shared_batch_gives_the_gradients_of_the_formulas(task, kind):
    """Against plain autograd in float64: D on detached fakes, then G through the D that was updated."""
    settings = {"variant": "smooth", "windows": kind, "decay_steps": 0, "lr": 5e-4, "lr_discriminator": 2e-4}
    made = trainer(task, **settings)
    for name in ("generator", "discriminator"):
        made.modules[name].double()
    made.setup()
    batch = made.draw(0, torch.Generator().manual_seed(1))
    other = trainer(task, **settings)
    g, d = (other.modules[n].double() for n in ("generator", "discriminator"))
    optimisers = [torch.optim.Adam(m.parameters(), lr, (0.5, 0.999)) for m, lr in ((g, 5e-4), (d, 2e-4))]
    x, z = batch["real"][0].double() * 2 - 1, batch["z"][0].double()
    if kind == "published":
        fake = g(z)
    else:  # the first three of the eight windows of one field
        field = g.interior(z)
        assert field.shape == (1, 1, 32, 32, 32)
        fake = torch.stack([field[0, :, :16, :16, :16], field[0, :, :16, :16, 16:], field[0, :, :16, 16:, :16]])
    bce = torch.nn.BCELoss()
    loss = bce(d(x).sigmoid(), torch.full((3, 1), 0.9).double()) + bce(
        d(fake.detach()).sigmoid(), torch.zeros(3, 1).double()
    )
    loss.backward()
    optimisers[1].step()
    loss_g = bce(d(fake).sigmoid(), torch.ones(3, 1).double())
    loss_g.backward()
    optimisers[0].step()
    found = made.step(batch)
    assert float(found["loss_real"] + found["loss_fake"]) == pytest.approx(float(loss), abs=1e-6)
    assert float(found["loss_generator"]) == pytest.approx(float(loss_g), abs=1e-5)
    for name, module in (("generator", g), ("discriminator", d)):
        for p, q in zip(made.modules[name].parameters(), module.parameters(), strict=True):
            assert float((p - q).abs().median()) < 1e-6


def test_the_order_with_noise_uses_the_outputs_before_the_discriminators_step(task):
    """G's step is that of D's old weights; 64^3 makes two steps of one gradient, smaller crops one."""
    for side, steps in ((16, 1), (64, 2)):
        settings = {
            "variant": "noise", "order": "official", "windows": "published", "noise": 0.0, "side": side, "ngf": 2,
            "batch_size": 2, "lr": 5e-4,
        }  # fmt: skip
        big = task if side == 16 else Medium(MediumConfig(edge=64, permeability=False))
        made = trainer(big, **settings)
        batch = made.draw(0, torch.Generator().manual_seed(1))
        other = trainer(big, **settings)
        g, d = other.modules["generator"], other.modules["discriminator"]
        optimiser = torch.optim.Adam(g.parameters(), 5e-4, (0.5, 0.999))
        d(batch["real"][0].float() * 2 - 1)
        torch.nn.BCEWithLogitsLoss()(d(g(batch["z"][0])), torch.ones(2, 1)).backward()
        for _ in range(steps):
            optimiser.step()
        made.step(batch)
        for p, q in zip(made.modules["generator"].parameters(), g.parameters(), strict=True):
            assert float((p - q).abs().quantile(0.9)) < 1e-6


def test_noise_is_that_of_the_epoch_and_of_the_variant(task):
    settings = {"noise": 0.2, "schedule": "linear", "epochs": 4, "epoch_steps": 10}
    made = trainer(task, variant="noise", **settings)
    levels = [made.draw(k, torch.Generator().manual_seed(0))["noise"] for k in (0, 9, 10, 35)]
    assert levels == pytest.approx([0.15, 0.15, 0.1, 0.0])
    assert trainer(task, variant="smooth", **settings).draw(0, torch.Generator())["noise"] == 0


def test_both_rates_fall_along_a_cosine(task):
    made = trainer(task, lr=1e-3, lr_discriminator=2e-4, decay_steps=4)
    rates = []
    for k in range(4):
        rates.append([made.optimisers[name].param_groups[0]["lr"] for name in ("generator", "discriminator")])
        made.step(made.draw(k, torch.Generator().manual_seed(k)))
    shape = np.array([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    np.testing.assert_allclose(rates, np.outer(shape, [1e-3, 2e-4]), rtol=1e-12)


def test_windows_are_what_a_field_is_made_of():
    field = torch.arange(2 * 8**3).reshape(2, 1, 8, 8, 8)
    found = windows(field, 4)
    expected = [f[:, i : i + 4, j : j + 4, k : k + 4] for f in field for i in (0, 4) for j in (0, 4) for k in (0, 4)]
    assert torch.equal(found, torch.stack(expected))


# Crops


def test_crops_are_cut_where_they_should_be():
    phase = np.random.default_rng(0).integers(0, 2, (9, 10, 11)).astype(np.uint8)
    every = {phase[i : i + 8, j : j + 8, k : k + 8].tobytes() for i in range(2) for j in range(3) for k in range(4)}
    grid = {phase[i : i + 8, j : j + 8, k : k + 8].tobytes() for i in (0,) for j in (0, 2) for k in (0, 2)}
    found = crop(phase, 8, 400, None, False, torch.Generator().manual_seed(0))
    assert {c.numpy().tobytes() for c in found} == every
    found = crop(phase, 8, 100, 2, False, torch.Generator().manual_seed(0))
    assert {c.numpy().tobytes() for c in found} == grid


def test_crops_are_turned_only_where_the_material_is_isotropic():
    phase = np.arange(8**3).reshape(8, 8, 8).astype(np.uint8)
    assert all(
        np.array_equal(c[0], phase) for c in crop(phase, 8, 20, None, False, torch.Generator().manual_seed(0)).numpy()
    )
    turned = {
        np.flip(phase.transpose(order), [a for a in range(3) if mirror[a]]).tobytes()
        for order in itertools.permutations(range(3))
        for mirror in itertools.product((0, 1), repeat=3)
    }
    found = crop(phase, 8, 600, None, True, torch.Generator().manual_seed(0))
    assert len(turned) == 48
    assert {c.numpy().tobytes() for c in found} == turned


def test_a_volume_smaller_than_the_crops_is_refused(task):
    with pytest.raises(DataError, match=r"48 x 48 x 48 voxels is smaller than the crops of 64\^3"):
        trainer(task, side=64)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"side": 48}, "trainer.side = 48"),
        ({"order": "official", "windows": "published"}, "order = official needs objective"),
        (
            {"order": "official", "variant": "smooth", "windows": "stationary"},
            "order = official needs windows = published",
        ),
        (
            {"order": "official", "windows": "published", "variant": "smooth", "objective": "wgan-gp"},
            "order = official",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        validate(PorousConfig, settings, "trainer")


# Selection


def test_errors_are_zero_for_the_volume_itself_and_grow(task):
    phase = task.volume().phase
    real = morphology(phase)
    assert errors(real, real)["score"] == 0
    noisy = np.where(np.random.default_rng(0).random(phase.shape) < 0.02, 1 - phase, phase).astype(np.uint8)
    found = errors(morphology(noisy), real)
    assert found["surface"] > 0.1
    assert found["euler"] > 1
    assert found["score"] > 5


def test_the_best_weights_are_kept_whatever_came_last():
    generators = [Generator(8, 2, 2) for _ in range(4)]
    best = Best(Generator(8, 2, 2))
    stats = [(torch.zeros(2), torch.ones(2))]
    assert not best.found
    taken = [
        best.consider(g, stats, s, k, True)
        for k, (g, s) in enumerate(zip(generators, (3.0, 1.0, 2.0, 1.0), strict=True))
    ]
    assert taken == [True, True, False, False]
    assert int(best.step) == 1
    assert torch.equal(best.generator.convs[0].weight, generators[1].convs[0].weight)
    assert best.found


def test_a_validation_at_the_end_of_a_stopped_run_gives_way():
    best, stats = Best(Generator(8, 2, 2)), [(torch.zeros(2), torch.ones(2))]
    assert best.consider(Generator(8, 2, 2), stats, 1.0, 5, False)
    assert best.consider(Generator(8, 2, 2), stats, 9.0, 6, False)
    assert best.consider(Generator(8, 2, 2), stats, 8.0, 10, True)
    assert not best.consider(Generator(8, 2, 2), stats, 1.0, 13, False)
    assert int(best.step) == 10


def test_sampling_uses_the_best_weights_of_the_averaged_generator(tmp_path):
    fit = {"max_steps": 6, "validate_every": 2, "accelerator": "cpu", "ema": 0.7}
    overrides = {
        "task": {"edge": 32, "permeability": False}, "fit": fit,
        "trainer": {**SMALL, "select_every": 2, "judged_cells": 5, "lr": 0.01},
    }  # fmt: skip
    run = headwater.train("porous-gan", tmp_path / "run", overrides=overrides)
    scores = {m["step"]: m["valid/score"] for m in run.metrics() if "valid/score" in m}
    assert list(scores) == [2, 4, 6]
    model = headwater.load(run.path, device="cpu")
    best = model.modules["best"]
    assert int(best.step) == min(scores, key=scores.get)
    assert float(best.score) == pytest.approx(min(scores.values()))
    assert model.sampler().generator is best.generator
    assert model.sampler(overrides={"sampler": {"weights": "last"}}).generator is model.modules["generator"]
