"""Image files of every kind, whole and broken."""

import io

import numpy as np
import pytest
from headwater.errors import DataError
from headwater_vision.files import find_images, image_text, keep_readable, natural, png_bytes, read_image, write_png
from PIL import Image

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def test_colours_are_read_as_they_are(tmp_path):
    write_png(tmp_path / "deep" / "a.png", RGB, {"size": "9x6"})
    assert np.array_equal(read_image(tmp_path / "deep" / "a.png", strict=True), RGB)
    assert image_text(tmp_path / "deep" / "a.png") == {"size": "9x6"}
    assert np.array_equal(read_image(io.BytesIO(png_bytes(RGB)), name="a member"), RGB)


def test_grey_palettes_and_two_levels_become_colours(tmp_path):
    grey = saved(Image.fromarray(RGB[..., 0]), tmp_path / "grey.png")
    assert np.array_equal(read_image(grey, strict=True), np.repeat(RGB[..., :1], 3, 2))
    palette = Image.fromarray(RGB).quantize(256)
    assert np.array_equal(
        read_image(saved(palette, tmp_path / "p.png"), strict=True), np.asarray(palette.convert("RGB"))
    )
    two = Image.fromarray(RGB[..., 0] > 100)
    assert set(np.unique(read_image(saved(two, tmp_path / "two.png")))) == {0, 255}


def test_the_orientation_of_the_camera_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = saved(Image.fromarray(RGB), tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(path), np.rot90(RGB, -1))


def test_sixteen_bits_are_rounded_to_eight(tmp_path):
    values = np.array([[0, 128, 129], [257, 65535, 32896]], np.uint16)
    path = saved(Image.fromarray(values), tmp_path / "deep.png")
    assert read_image(path)[..., 0].tolist() == [[0, 0, 1], [1, 255, 128]]
    with pytest.raises(DataError, match=r"deep\.png has more than 8 bits a value"):
        read_image(path, strict=True)


def test_sixteen_bit_colours_are_refused_where_they_would_lose(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">3H", 65535, 0, 257)
    path = tmp_path / "rgb16.png"
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    )
    assert read_image(path).tolist() == [[[255, 0, 1]]]
    with pytest.raises(DataError, match="more than 8 bits"):
        read_image(path, strict=True)


def test_floats_of_unknown_range_are_refused(tmp_path):
    path = saved(Image.fromarray(np.array([[0.0, 7.5]], np.float32)), tmp_path / "f.tiff")
    with pytest.raises(DataError, match="outside 0 to 1"):
        read_image(path)
    inside = saved(Image.fromarray(np.array([[0.0, 0.5]], np.float32)), tmp_path / "g.tiff")
    assert read_image(inside)[0, :, 0].tolist() == [0, 128]


def test_what_is_transparent_lies_on_white(tmp_path):
    alpha = np.full((6, 9, 1), 255, np.uint8)
    opaque = saved(Image.fromarray(np.concatenate([RGB, alpha], 2)), tmp_path / "opaque.png")
    assert np.array_equal(read_image(opaque, strict=True), RGB)
    alpha[:, 4:] = 0
    path = saved(Image.fromarray(np.concatenate([RGB, alpha], 2)), tmp_path / "clear.png")
    read = read_image(path)
    assert np.array_equal(read[:, :4], RGB[:, :4])
    assert (read[:, 4:] == 255).all()
    with pytest.raises(DataError, match=r"clear\.png is transparent in places"):
        read_image(path, strict=True)


def test_printing_colours_are_converted(tmp_path):
    path = saved(Image.fromarray(np.zeros((2, 2, 4), np.uint8), "CMYK"), tmp_path / "print.jpg")
    assert (read_image(path) == 255).all()
    with pytest.raises(DataError, match="CMYK"):
        read_image(path, strict=True)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".bmp"])
def test_a_file_cut_short_anywhere_is_one_error(tmp_path, suffix):
    path = saved(Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), np.uint8))), tmp_path / f"whole{suffix}")
    data = path.read_bytes()
    for n in range(0, int(0.9 * len(data)), max(1, len(data) // 40)):
        path.write_bytes(data[:n])
        with pytest.raises(DataError, match="whole"):
            read_image(path)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(DataError, match=r"a\.png is no image"):
        read_image(tmp_path / "a.png")


def test_large_pictures_are_no_attack(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    write_png(tmp_path / "a.png", RGB)
    assert read_image(tmp_path / "a.png").shape == RGB.shape
    assert Image.MAX_IMAGE_PIXELS == 4


def test_folders_are_searched_in_natural_order(tmp_path):
    for name in ("b/img_10.png", "b/img_9.PNG", "a.jpg", ".hidden.png"):
        write_png(tmp_path / name, RGB)
    (tmp_path / "notes.txt").touch()
    assert [p.name for p in find_images(tmp_path)] == ["a.jpg", "img_9.PNG", "img_10.png"]
    assert sorted([tmp_path / "10", tmp_path / "9"], key=natural)[0].name == "9"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        find_images(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        find_images(tmp_path / "none")


def test_bad_files_are_left_out_and_listed_on_request(tmp_path, capsys):
    write_png(tmp_path / "a.png", RGB)
    (tmp_path / "b.png").write_text("hello")
    paths = find_images(tmp_path)
    with pytest.raises(DataError, match=r"b\.png.*--skip-bad"):
        keep_readable(paths, read_image, skip_bad=False)
    good, problems = keep_readable(paths, read_image, skip_bad=True)
    assert [p.name for p in good] == ["a.png"]
    assert len(problems) == 1
    assert "b.png" in capsys.readouterr().err
    with pytest.raises(DataError, match="none of 1 images"):
        keep_readable(paths[1:], read_image, skip_bad=True)
