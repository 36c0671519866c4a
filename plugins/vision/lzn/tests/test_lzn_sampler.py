"""A small joint run, sampled and asked in Python and by the command line."""

import csv
import json
import sys

import headwater
import numpy as np
import pytest
import torch
from headwater import DataError, UsageError
from headwater.cli import main
from headwater_vision.files import write_png
from headwater_vision_lzn.sampler import Arrays, Rows
from headwater_vision_lzn.tasks.images import Digits, EmbeddedConfig

TINY = {
    "latent": 16, "width": 8, "narrow": 4, "units": 8, "conv_width": 8, "steps": 4, "label_steps": 6, "batch_size": 8,
    "bank": 12, "judged": 6,
}  # fmt: skip
FEW = {"operation": {"steps": 3, "block_size": 4}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("joint") / "run"
    overrides = {
        "trainer": TINY, "sampler": {"block_size": 4, "steps": 3}, "fit": {"max_steps": 3, "accelerator": "cpu"},
    }  # fmt: skip
    return headwater.train("vision-lzn", out, stage="joint", overrides=overrides).path


@pytest.fixture(scope="module")
def model(run):
    return headwater.load(run, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("images")
    for i, image in enumerate(Digits(EmbeddedConfig()).testing().images[:6]):
        write_png(out / f"d{i}.png", image)
    return out


def test_a_label_by_name_is_kept(model):
    images = next(iter(model.sample(3, condition={"label": "7"})))
    assert images.labels.tolist() == [7, 7, 7]
    with pytest.raises(UsageError, match="no class of this run"):
        next(iter(model.sample(3, condition={"label": "x"})))


def test_samples_by_runge_kutta(model):
    images = next(iter(model.sample(2, overrides={"sampler": {"method": "rk45", "tolerance": 1e-2}})))
    assert images.images.dtype == np.uint8


def test_a_latent_depends_on_the_image_alone(model, folder, tmp_path):
    one = Arrays().read(model.apply("encode", folder, tmp_path / "a.npz", overrides={"operation": {"block_size": 2}}))
    write_png(tmp_path / "other" / "d3.png", Digits(EmbeddedConfig()).testing().images[3])
    two = Arrays().read(model.apply("encode", tmp_path / "other", tmp_path / "b.npz"))
    assert one["latents"].shape == (6, 16)
    np.testing.assert_allclose(one["latents"][3], two["latents"][0], atol=1e-5)
    assert one["files"].tolist() == [f"d{i}.png" for i in range(6)]
    again = Arrays().read(model.apply("encode", folder, tmp_path / "c.npz", seed=1))
    assert np.abs(again["latents"] - one["latents"]).max() > 0.1
    np.testing.assert_allclose(again["anchors"], one["anchors"], atol=1e-5)


def test_workers_write_the_same_latents(model, folder, tmp_path):
    settings = {"operation": {"block_size": 2}}
    one = model.apply("encode", folder, tmp_path / "one.npz", overrides=settings)
    two = model.apply("encode", folder, tmp_path / "two.npz", overrides=settings, workers=2)
    assert one.read_bytes() == two.read_bytes()


def test_latents_are_decoded(model, folder, tmp_path):
    latents = model.apply("encode", folder, tmp_path / "a.npz")
    out = model.apply("decode", latents, tmp_path / "images", overrides=FEW)
    assert len(list(out.iterdir())) == 6
    named = model.apply("decode", latents, tmp_path / "named", overrides={"operation": {"steps": 3, "label": "4"}})
    assert model.task.read(named).classes == ("4",)


def test_images_are_reconstructed(model, folder, tmp_path):
    out = model.apply("reconstruct", folder, tmp_path / "again.npz", overrides={"operation": {"steps": 60}})
    found = model.task.read(out)
    truth = Digits(EmbeddedConfig()).testing().images[:6]
    # Whatever the weights, up and down one path comes near where it began.
    assert np.abs(found.images.astype(float) - truth).mean() < 30


def test_features_are_those_of_the_encoder(model, folder, tmp_path):
    found = Arrays().read(model.apply("embed", folder, tmp_path / "f.npz"))
    images = torch.from_numpy(Digits(EmbeddedConfig()).testing().images[:6]).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = model.modules["encoder_average"].module.features(images.float() / 127.5 - 1)
    np.testing.assert_allclose(found["features"], wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_classes_are_written_as_a_table(model, folder, tmp_path, suffix):
    out = model.apply("classify", folder, tmp_path / f"c{suffix}", overrides={"operation": {"block_size": 4}})
    rows = Rows().read(out)
    assert [row["file"] for row in rows] == [f"d{i}.png" for i in range(6)]
    assert all(row["label"] in "0123456789" and 0 <= float(row["probability"]) <= 1 for row in rows)


def test_class_weights_of_the_reference(model, folder, tmp_path):
    out = model.apply("classify", folder, tmp_path / "c.csv", overrides={"operation": {"weights": "reference"}})
    present = {int(k) for k in model.facts["reference_labels"]}
    assert {int(row["label"]) for row in Rows().read(out)} <= present


@pytest.fixture
def call(monkeypatch):
    """Call the command line in this process; its exit code."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["headwater", *map(str, words)])
        monkeypatch.setattr(sys, "_headwater_cli", False, raising=False)
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0

    return run


def test_command_line(call, run, folder, tmp_path, capsys):
    assert call("apply", run, "classify", "--input", folder, "-o", tmp_path / "c.csv") == 0
    with (tmp_path / "c.csv").open() as source:
        assert len(list(csv.DictReader(source))) == 6
    assert call("sample", run, "-n", "3", "-o", tmp_path / "s", "--condition", "label=3") == 0
    assert len(list((tmp_path / "s").iterdir())) == 3
    assert call("evaluate", run, "--json") == 0
    said = capsys.readouterr().out
    scores = json.loads(said[said.index("{") :])
    assert {"random_feature_distance", "read_as_their_label"} <= set(scores)


def test_bad_files_are_named_and_can_be_left_out(call, run, folder, tmp_path, capsys):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes((folder / "d0.png").read_bytes())
    (bad / "cut.png").write_bytes((folder / "d1.png").read_bytes()[:60])
    (bad / "text.png").write_text("no image")
    assert call("apply", run, "embed", "--input", bad, "-o", tmp_path / "e.npz") == 1
    assert "cut.png" in capsys.readouterr().err
    assert call("apply", run, "embed", "--input", bad, "-o", tmp_path / "e.npz", "--skip-bad") == 0
    said = capsys.readouterr().err
    assert "cut.png" in said
    assert "text.png" in said
    assert Arrays().read(tmp_path / "e.npz")["files"].tolist() == ["a.png"]


def test_images_of_all_kinds_are_fitted(model, tmp_path):
    from PIL import Image

    folder = tmp_path / "kinds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 65536, (9, 12), dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.integers(0, 256, (7, 5, 4), dtype=np.uint8), "RGBA").save(folder / "clear.png")
    Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8), "CMYK").save(folder / "print.jpg")
    Image.fromarray(rng.integers(0, 256, (1, 1), dtype=np.uint8)).save(folder / "dot.png")
    found = Arrays().read(model.apply("embed", folder, tmp_path / "e.npz"))
    assert found["files"].tolist() == ["clear.png", "deep.png", "dot.png", "print.jpg"]
    assert np.isfinite(found["features"]).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"other": np.zeros((2, 16), np.float32)}, "no array 'latents'"),
        ({"latents": np.zeros((2, 7), np.float32)}, r"floats \(N, 16\)"),
        ({"latents": np.full((2, 16), np.nan, np.float32)}, "row 0 is not finite"),
    ],
)
def test_latents_that_do_not_fit_are_refused(model, tmp_path, content, said):
    np.savez(tmp_path / "l.npz", **content)
    with pytest.raises(DataError, match=said):
        model.apply("decode", tmp_path / "l.npz", tmp_path / "out")


def test_operations_say_which_stage_they_need(tmp_path, folder):
    overrides = {"trainer": TINY, "fit": {"max_steps": 1, "accelerator": "cpu"}}
    run = headwater.train("vision-lzn", tmp_path / "run", stage="represent", overrides=overrides)
    model = headwater.load(run, device="cpu")
    with pytest.raises(UsageError, match="stage joint"):
        model.apply("classify", folder, tmp_path / "c.csv")
    with pytest.raises(UsageError, match="no decoder"):
        model.apply("reconstruct", folder, tmp_path / "r")
    with pytest.raises(UsageError, match="knows no classes"):
        model.apply("reconstruct", folder, tmp_path / "r", overrides={"operation": {"label": "3"}})


def test_report_shows_samples_reconstructions_and_anchors(run):
    page = headwater.report(run).read_text()
    for title in ("Samples", "Images and their latents", "Anchors"):
        assert title in page
