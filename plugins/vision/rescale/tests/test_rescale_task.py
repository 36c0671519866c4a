"""The task: the user's folders, the published protocol, samples on disk, and the table that evaluate prints."""

import json

import headwater
import numpy as np
import pytest
from headwater import ConfigError, DataError
from headwater.api import task_of
from headwater.sampling import Model
from headwater_vision.embedded import photograph
from headwater_vision.files import write_png
from headwater_vision.metrics import luma, psnr, ssim
from headwater_vision_rescale.tasks.photographs import TEST, TRAIN, Photographs, PhotographsConfig, Sample
from headwater_vision_rescale.tasks.pictures import detailed
from headwater_vision_rescale.tasks.scoring import bicubic_bytes, restored_scores

CAT = photograph("cat")[60:124, 120:220]


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        write_png(tmp_path / "HR" / f"img_{i}.png", np.roll(CAT, 9 * i, 1))
    return tmp_path / "HR"


def task(**settings):
    return Photographs(PhotographsConfig.model_validate(settings))


def test_training_and_test_photographs_differ():
    assert not set(TRAIN) & set(TEST)
    made = task()
    assert [p.image().shape for p in made.tested] == [(512, 512, 3)] * 2
    assert len(made.training_images(144)) == len(TRAIN)


def test_scores_follow_the_published_protocol(folder):
    made = task(test={"Own": folder})
    truth = np.roll(CAT, 9, 1)
    restored = np.clip(truth.astype(int) + 3, 0, 255).astype(np.uint8)
    small = bicubic_bytes(truth, 0.5)
    scores = made.metrics([Sample("Own/img_1", {"hr": restored, "lr": small})])
    y, z = luma(truth)[2:-2, 2:-2], luma(restored)[2:-2, 2:-2]
    assert scores["Own/psnr_y"] == pytest.approx(psnr(y, z))
    assert scores["Own/ssim_y"] == pytest.approx(ssim(y, z))
    assert scores["Own/psnr_rgb"] == pytest.approx(psnr(truth[2:-2, 2:-2], restored[2:-2, 2:-2]))
    assert scores["Own/lr_psnr_y"] == float("inf")
    assert 0 < scores["Own/bits"] < 1
    assert scores["Own/images"] == 1


def test_small_images_of_the_user_are_compared_with(folder, tmp_path):
    for i in range(3):
        write_png(tmp_path / "LR" / f"img_{i}x2.png", np.full((32, 50, 3), 100, np.uint8))
    made = task(test={"Own": folder}, test_small={"Own": tmp_path / "LR"})
    small = np.full((32, 50, 3), 90, np.uint8)
    scores = made.metrics([Sample("Own/img_0", {"hr": CAT, "lr": small})])
    assert scores["Own/lr_psnr_y"] == pytest.approx(psnr(luma(small), luma(small + np.uint8(10))))
    with pytest.raises(DataError, match="names 'Other'"):
        _ = task(test={"Own": folder}, test_small={"Other": folder}).test_sets
    (tmp_path / "LR" / "img_2x2.png").unlink()
    with pytest.raises(DataError, match=r"img_2\.png has no small image"):
        _ = task(test={"Own": folder}, test_small={"Own": tmp_path / "LR"}).test_sets


def test_bad_images_are_named_or_left_out(folder):
    (folder / "img_3.png").write_text("no image")
    write_png(folder / "img_4.png", CAT[:20])
    with pytest.raises(DataError, match=r"img_3\.png is no image"):
        task(train=folder).training_images(48)
    (folder / "img_3.png").unlink()
    with pytest.raises(DataError, match=r"img_4\.png is 100x20; 48x48 is the least"):
        task(train=folder).training_images(48)
    assert len(task(train=folder, skip_bad=True).training_images(48)) == 3
    write_png(folder / "img_5.png", CAT[:1, :1])
    with pytest.raises(DataError, match="1x1"):
        _ = task(test={"Own": folder}).test_sets
    (folder / "img_6.png").write_text("x")
    assert len(Photographs.check(folder)) == 1


def test_scoring_says_what_does_not_match(folder):
    made = task(test={"Own": folder})
    with pytest.raises(DataError, match="Own/none is no image of the test sets: Own"):
        made.metrics([Sample("Own/none", {"hr": CAT})])
    with pytest.raises(DataError, match="larger than the true one"):
        made.metrics([Sample("Own/img_0", {"hr": np.concatenate([CAT, CAT])})])
    with pytest.raises(DataError, match="SSIM needs 11 pixels"):
        restored_scores(CAT[:12], CAT[:12], 2)


def test_files_of_another_method_can_be_scored(folder, tmp_path):
    for i in range(3):
        write_png(tmp_path / "other" / "Own" / f"img_{i}.png", np.roll(CAT, 9 * i, 1))
    settings = {"task": {"test": {"Own": str(folder)}}}
    scores = headwater.evaluate(task="photographs", samples=tmp_path / "other", overrides=settings)
    assert scores["Own/ssim_y"] == 1.0
    assert scores["Own/images"] == 3


def test_the_data_set_can_be_made_and_checked(tmp_path):
    task_of("photographs").make(tmp_path / "made")
    assert Photographs.check(tmp_path / "made") == []
    assert len(list((tmp_path / "made" / "train").iterdir())) == len(TRAIN)


def test_evaluate_goes_through_every_set_of_the_user(folder, tmp_path):
    small = {"couplings": 1, "growth": 2, "batch_size": 1, "patch": 16}
    overrides = {
        "task": {"train": str(folder), "test": {"Own": str(folder)}},
        "trainer": small,
        "fit": {"max_steps": 1},
    }
    run = headwater.train("vision-rescale", tmp_path / "run", overrides=overrides)
    assert headwater.evaluate(run)["Own/images"] == 3
    other = {"task": {"test": {"Two": str(folder), "Three": str(folder)}}}
    scores = headwater.evaluate(run, overrides=other)
    assert [k for k in scores if k.endswith("/images")] == ["Own/images", "Two/images", "Three/images"]
    assert scores["Two/psnr_y"] == scores["Three/psnr_y"] == headwater.evaluate(run)["Own/psnr_y"]
    assert "Own/psnr_y" in json.loads((run.path / "evaluation.json").read_text())
    with pytest.raises(ConfigError, match="no_such"):
        headwater.evaluate(run, overrides={"task": {"no_such": 1}})
    drawn = list(Model(run, device="cpu").sample(4))
    assert [s.file for block in drawn for s in block][-1] == "Own/img_0~1.png"


def test_the_piece_with_most_detail_is_found():
    image = np.full((200, 200, 3), 50, np.uint8)
    image[100:130, 64:96] = np.random.default_rng(0).integers(0, 256, (30, 32, 3))
    i, j = detailed(image, 64)
    assert i <= 100 <= i + 64
    assert j <= 64 <= j + 64
