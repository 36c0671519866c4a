"""Outputs, running statistics, training steps and stored values equal those of the official code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from headwater.trainer import Place
from headwater_porous_gan.config import PorousConfig
from headwater_porous_gan.convert import from_official, to_official
from headwater_porous_gan.latents import Latents
from headwater_porous_gan.postprocess import quantised
from headwater_porous_gan.tiling import Folded, running_statistics, statistics
from headwater_porous_gan.trainer import PorousTrainer

FOLDER = next(
    (
        p / "shared/data/porous-gan/parity"
        for p in Path(__file__).resolve().parents
        if (p / "shared/data/porous-gan/parity").is_dir()
    ),
    Path("shared/data/porous-gan/parity"),
)

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the official reference numbers are not here")
CASES = ("s16", "s32", "s32_extra", "s64")


def networks(arrays, g="G", d="D"):
    state = {}
    for prefix, name in ((g, "generator"), (d, "discriminator")):
        start = f"{prefix}/sd/"
        state |= {f"{name}.{k[len(start) :]}": torch.from_numpy(v) for k, v in arrays.items() if k.startswith(start)}
    made = from_official(state)
    return made["generator"], made["discriminator"]


def unpacked(bits, shape):
    found = np.unpackbits(bits)[: int(np.prod(shape))].reshape(shape)
    return torch.from_numpy(2 * found.astype(np.float32) - 1)


class Case:
    def __init__(self, name):
        self.arrays = dict(np.load(FOLDER / f"{name}.npz", allow_pickle=False))
        self.sizes = json.loads((FOLDER / "config.json").read_text())[name]
        self.generator, self.discriminator = networks(self.arrays)
        self.x = unpacked(self.arrays["x_bits"], self.arrays["x_shape"])
        self.z = torch.from_numpy(self.arrays["z"])

    def close(self, found, name, tolerance):
        np.testing.assert_allclose(found.detach().numpy(), self.arrays[name], rtol=0, atol=tolerance)

    def strided(self, found):
        s = self.sizes["stride"]
        return found[:, :, ::s, ::s, ::s]


@pytest.fixture(params=CASES)
def case(request):
    return Case(request.param)


def test_sizes_are_read_off_the_shapes(case):
    sizes = case.sizes
    assert (4 * case.generator.factor, case.generator.nz) == (sizes["isize"], sizes["nz"])
    assert case.generator.convs[-1].in_channels == sizes["ngf"]
    assert case.generator.extra_layers == sizes["n_extra_layers"]
    assert case.discriminator.convs[0].out_channels == sizes["ndf"]


def test_train_mode_outputs_and_running_statistics(case):
    np.testing.assert_allclose(case.x.mean((1, 2, 3, 4)), case.arrays["x_mean"], atol=1e-6)
    with torch.no_grad():
        made, judged = case.generator(case.z), case.discriminator(case.x).sigmoid()
    case.close(case.strided(made), "g_train", 2e-5)
    case.close(made.mean((1, 2, 3, 4)), "g_train_mean", 1e-5)
    case.close(made.std((1, 2, 3, 4)), "g_train_std", 1e-5)
    case.close(judged, "d_train", 1e-5)
    for prefix, module in (("G", case.generator), ("D", case.discriminator)):
        for key, value in to_official(module).items():
            if "running" in key:
                np.testing.assert_allclose(value, case.arrays[f"{prefix}_after/sd/{key}"], rtol=1e-5, atol=1e-7)
            elif "tracked" in key:
                assert int(value) == int(case.arrays[f"{prefix}_after/sd/{key}"])


def test_eval_mode_outputs(case):
    with torch.no_grad():
        case.generator(case.z), case.discriminator(case.x)  # the official numbers are those after one pass
        generator, discriminator = case.generator.eval(), case.discriminator.eval()
        made = generator(case.z)
        case.close(case.strided(made)[:2], "g_eval", 2e-5)
        case.close(discriminator(case.x).sigmoid(), "d_eval", 1e-5)
        case.close(discriminator(made).sigmoid(), "d_fake", 1e-5)
        big = generator(torch.from_numpy(case.arrays["z_big"]))
    assert tuple(big.shape) == tuple(case.arrays["g_big_shape"])
    s = case.sizes["stride_big"]
    case.close(big[:, :, ::s, ::s, ::s], "g_big", 2e-5)
    case.close(big.mean(), "g_big_mean", 1e-5)


def test_tiles_equal_the_official_volume(case):
    """Running statistics give its eval mode, those of the volume itself its train mode with a batch of one."""
    z = torch.from_numpy(case.arrays["z_big"])
    with torch.no_grad():
        case.generator(case.z)
        extent = tuple(z.shape[2:])
        latents = Latents(z.shape[1], extent=extent, table=z[0])
        cells = tuple(n + 3 for n in extent)
        folded = Folded(case.generator, running_statistics(case.generator))
        made = folded.tile(latents, (0, 0, 0), cells)[1:-1, 1:-1, 1:-1]
        s = case.sizes["stride_big"]
        case.close(made[None, None, ::s, ::s, ::s], "g_big", 2e-5)
        own = Folded(case.generator, statistics(case.generator, latents, (0, 0, 0), cells))
        made = own.tile(latents, (0, 0, 0), cells)[1:-1, 1:-1, 1:-1]
        torch.testing.assert_close(made, case.generator.train()(z)[0, 0], rtol=0, atol=2e-5)


class NoTask:
    isotropic = False

    def training_volume(self):
        from headwater_porous_gan.volume import Volume

        return Volume(np.zeros((32, 32, 32), np.uint8))


def test_four_training_steps():
    arrays = dict(np.load(FOLDER / "train.npz", allow_pickle=False))
    sizes = json.loads((FOLDER / "config.json").read_text())["train"]
    generator, discriminator = networks(arrays, "G0", "D0")
    config = PorousConfig(
        side=32, nz=10, ngf=4, ndf=6, variant="smooth", order="official", windows="published",
        label=sizes["real_label"], lr=sizes["lr"], lr_discriminator=sizes["lr"], beta1=sizes["betas"][0], batch_size=3,
    )  # fmt: skip
    modules = {"generator": generator, "discriminator": discriminator}
    trainer = PorousTrainer(config, NoTask(), modules, {}, place=Place())
    trainer.setup()
    norms = {}
    update = trainer.update

    def watched(loss, optimiser=None, weight=1.0):
        def note(chosen, *_):
            norms[optimiser] = float(
                torch.stack([p.grad.norm() for g in chosen.param_groups for p in g["params"]]).norm()
            )

        handle = trainer.optimisers[optimiser].register_step_pre_hook(note)
        update(loss, optimiser, weight)
        handle.remove()

    trainer.update = watched
    for k in range(4):
        real = ((unpacked(arrays[f"real_bits_{k}"], arrays["real_shape"]) + 1) / 2).to(torch.uint8)
        z = torch.stack([torch.from_numpy(arrays[f"z_{name}_{k}"]) for name in "dg"])
        found = trainer.step({"k": k, "noise": 0.0, "seed": 0, "real": real[None], "z": z})
        names = ("loss_real", "loss_fake", "loss_generator", "d_real", "d_fake")
        tolerance = 1e-5 if k == 0 else 1e-3
        np.testing.assert_allclose([float(found[n]) for n in names], arrays["logs"][k, :5], atol=tolerance)
        np.testing.assert_allclose(
            [norms["discriminator"], norms["generator"]], arrays["logs"][k, 6:], rtol=1e-4 if k == 0 else 5e-3
        )
    for prefix, module in (("G4", generator), ("D4", discriminator)):
        for key, value in to_official(module).items():
            wanted = arrays[f"{prefix}/sd/{key}"]
            if value.is_floating_point():
                away = np.abs(value.detach().numpy() - wanted)
                assert np.quantile(away, 0.99) < 1e-4, key
                assert away.max() <= 2 * sizes["lr"] * 4, key
            else:
                assert int(value) == int(wanted), key
    with torch.no_grad():
        probe = generator.eval()(torch.from_numpy(arrays["probe_z"]))[:, :, ::2, ::2, ::2]
    np.testing.assert_allclose(probe, arrays["probe_out"], atol=2e-3)
    assert np.abs(probe.numpy() - arrays["probe_out"]).mean() < 1e-4


def test_stored_values_are_those_of_the_official_writer():
    arrays = np.load(FOLDER / "conversion.npz", allow_pickle=False)
    y = arrays["tanh"]
    exact = (y.astype(np.float64) + 1) * 127.5
    clear = np.abs(exact - exact.round()) > 1e-5
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(quantised(y)[clear], arrays["stored"][clear])
    assert np.abs(quantised(y).astype(int) - arrays["stored"]).max() <= 1
