"""Training steps: what is learned, what is frozen, what several processes share, and which data are refused."""

import os

import headwater
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from headwater import DataError, UsageError
from headwater.trainer import Place
from headwater_vision_lzn.config import LznConfig
from headwater_vision_lzn.tasks.images import Digits, EmbeddedConfig, ImageSetConfig, ImageSetTask
from headwater_vision_lzn.trainer import AlignTrainer, FlowTrainer, JointTrainer

TINY = {
    "latent": 32, "width": 8, "narrow": 4, "units": 8, "conv_width": 8, "steps": 4, "label_steps": 6, "batch_size": 8,
    "bank": 12, "judged": 6, "warm_up": 0,
}  # fmt: skip


def made(kind, task=None, **settings):
    task, config = task or Digits(EmbeddedConfig()), LznConfig(**{**TINY, **settings})
    facts = kind.facts(config, task)
    torch.manual_seed(0)
    trainer = kind(config, task, kind.build(config, task, facts), facts)
    trainer.setup()
    return trainer


def batch(trainer, k=0):
    return trainer.draw(k, torch.Generator().manual_seed(k))


@pytest.mark.parametrize("kind", [FlowTrainer, AlignTrainer, JointTrainer])
def test_every_parameter_has_a_gradient(kind):
    trainer = made(kind, encoder="conv" if kind is AlignTrainer else "ncsnpp")
    seen = {}
    trainer.learn = lambda loss, _: (loss.backward(), seen.update(done=True))
    trainer.step(batch(trainer))
    assert seen["done"]
    for name in trainer.parts:
        for key, p in trainer.networks[name].named_parameters():
            assert p.grad is not None, f"{name}.{key}"


def test_loss_of_the_images_reaches_the_encoder_through_the_latent_alone():
    trainer = made(FlowTrainer)
    with torch.no_grad():  # a fresh decoder's last layers are shut
        for p in trainer.networks["decoder"].parameters():
            p.add_(0.05 * torch.randn(p.shape))
    trainer.learn = lambda loss, _: loss.backward()
    trainer.step(batch(trainer))
    assert max(float(p.grad.abs().max()) for p in trainer.networks["encoder"].parameters()) > 0


def test_two_view_loss_falls():
    trainer = made(AlignTrainer, encoder="conv", batch_size=32, lr_encoder=1e-3, solver="euler", prior=0.45, steps=20)
    same = batch(trainer)
    losses = [float(trainer.step({**same, "k": k})["loss"]) for k in range(40)]
    assert losses[-1] < 0.85 * losses[0]


def test_a_frozen_decoder_stays_and_the_encoder_goes_on():
    trainer = made(JointTrainer, decoder_steps=1)
    trainer.step(batch(trainer, 0))
    before = {n: [p.clone() for p in trainer.networks[n].parameters()] for n in trainer.parts}
    trainer.step(batch(trainer, 1))
    moved = {
        n: any(not torch.equal(a, b) for a, b in zip(before[n], trainer.networks[n].parameters(), strict=True))
        for n in trainer.parts
    }
    assert moved == {"encoder": True, "decoder": False, "labels": True}


def test_an_image_is_in_a_batch_once():
    trainer = made(FlowTrainer, batch_size=200)
    rows = trainer.rows(torch.Generator().manual_seed(1))
    assert len(rows.unique()) == 200


def test_ranks_draw_from_different_images():
    trainer = made(FlowTrainer)
    drawn = []
    for rank in range(3):
        trainer.place = Place(rank=rank, world=3)
        drawn.append(set(trainer.rows(torch.Generator().manual_seed(rank)).tolist()))
    assert len(set.union(*drawn)) == sum(map(len, drawn))


def _gradient(trainer, rows, joint):
    """The gradient of the joint loss of a fixed batch, of which this process has the rows."""
    x = trainer.images[:8]
    fixed = torch.Generator().manual_seed(5)
    whole = {
        "k": 0, "x": x, "prior": torch.randn(8, 32, generator=fixed), "noise": torch.randn(x.shape, generator=fixed),
        "t": torch.rand(8, generator=fixed), "labels": trainer.labels[:8],
        "first": x.float() / 255, "second": x.flip(2).float() / 255,
    }  # fmt: skip
    mine = {k: v if k == "k" else v[rows] for k, v in whole.items()}
    found = {}

    def learn(loss, _):
        loss.backward()
        parameters = [p for n in trainer.parts for p in trainer.networks[n].parameters()]
        if not joint:
            from headwater.trainer import reduce_gradients

            reduce_gradients(parameters, float(len(mine["prior"])))
        found["gradient"] = torch.cat([p.grad.flatten() for p in parameters])

    trainer.learn = learn
    trainer.step(mine)
    return found["gradient"]


def _rank(rank, port, folder, kind, encoder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    trainer = made(kind, encoder=encoder, steps=12, prior=0.45)
    trainer.place = Place(rank=rank, world=2)
    trainer.modules["encoder"].double()
    trainer.modules.get("decoder", torch.nn.Identity()).double()
    trainer.modules.get("labels", torch.nn.Identity()).double()
    torch.save(_gradient(trainer, slice(4 * rank, 4 * rank + 4), False), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("kind", "encoder"), [(AlignTrainer, "conv"), (JointTrainer, "conv")])
def test_two_processes_have_the_gradient_of_one(tmp_path, kind, encoder):
    port = 29500 + os.getpid() % 2000
    mp.spawn(_rank, (port, tmp_path, kind, encoder), nprocs=2)
    trainer = made(kind, encoder=encoder, steps=12, prior=0.45)
    for name in trainer.parts:
        trainer.modules[name].double()
    wanted = _gradient(trainer, slice(None), True)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6


# Bad input


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def images(n=12, edge=8, channels=1):
    return np.random.default_rng(0).integers(0, 256, (n, edge, edge, channels), dtype=np.uint8)


def train(stage, out, task=None, **trainer):
    overrides = {"trainer": {**TINY, **trainer}, "fit": {"max_steps": 1, "accelerator": "cpu"}}
    if task is not None:
        overrides["task"] = task
    return headwater.train(
        "vision-lzn", out, task="image-set" if task is not None else None, stage=stage, overrides=overrides
    )


def test_data_that_do_not_fit_are_refused(tmp_path):
    few = npz(tmp_path / "few.npz", images=images(4))
    odd = npz(tmp_path / "odd.npz", images=images(12, 9))
    flat = npz(tmp_path / "flat.npz", images=images()[:, :6])
    plain = npz(tmp_path / "plain.npz", images=images())
    short = npz(tmp_path / "short.npz", images=images(), labels=np.arange(5))
    large = npz(tmp_path / "large.npz", images=images(), labels=np.arange(12))
    out = tmp_path / "run"
    for kind, stage, task, trainer, said in (
        (DataError, "generate", {"path": str(few)}, {}, "4 images are too few"),
        (UsageError, "generate", {"path": str(odd)}, {}, "multiples of 2"),
        (UsageError, "generate", {"path": str(flat)}, {}, "task.size"),
        (UsageError, "joint", {"path": str(plain)}, {}, "needs labels"),
        (DataError, "joint", {"path": str(short)}, {}, "labels are"),
        (DataError, "joint", {"path": str(large)}, {"classes": 3}, "labels go up to 11"),
        (UsageError, "generate", {}, {}, "task.path is needed"),
        (UsageError, "generate", {"path": str(plain)}, {"size": 16}, "the images have 8"),
        (DataError, "generate", {"path": str(tmp_path / "none")}, {}, "none does not exist"),
    ):
        with pytest.raises(kind, match=said):
            train(stage, out, task, **trainer)
        assert not out.exists(), said


def test_test_images_with_an_unknown_class_are_refused(tmp_path):
    for folder, names in (("train", "ab"), ("test", "ac")):
        for name in names:
            path = tmp_path / folder / name
            path.mkdir(parents=True)
            from headwater_vision.files import write_png

            write_png(path / "0.png", images(1)[0])
    task = ImageSetTask(ImageSetConfig(path=tmp_path / "train", test_path=tmp_path / "test", channels=1))
    assert task.training().classes == ("a", "b")
    with pytest.raises(DataError, match="class 'c'"):
        task.testing()


@pytest.mark.parametrize("stage", ["generate", "represent", "joint"])
def test_half_precision_leaves_the_latent_flow_alone(tmp_path, stage):
    overrides = {"trainer": TINY, "fit": {"max_steps": 2, "accelerator": "cpu", "precision": "bf16-mixed"}}
    run = headwater.train("vision-lzn", tmp_path / "run", stage=stage, overrides=overrides)
    losses = [v for line in run.metrics() for k, v in line.items() if k.startswith("loss")]
    assert losses
    assert np.isfinite(losses).all()
