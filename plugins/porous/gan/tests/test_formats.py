"""Every format in and out, what is asked for and never guessed, and one clear error for each bad file."""

import errno
import json
import math
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from headwater.errors import DataError, UsageError
from headwater_porous_gan.tasks import formats, parts
from headwater_porous_gan.tasks.volume import PorousVolume, PorousVolumeConfig, coarsened
from headwater_porous_gan.volume import Volume

DATA = next(
    (p / "shared/data/porous-gan" for p in Path(__file__).resolve().parents if (p / "shared/data/porous-gan").is_dir()),
    Path("shared/data/porous-gan"),
)
SHAPE, STEP = (20, 24, 18), (8, 8, 8)


def noise(shape=SHAPE, seed=0):
    return (np.random.default_rng(seed).random(shape) > 0.4).astype(np.uint8)


def task(**settings):
    return PorousVolume(PorousVolumeConfig(**settings))


def tiles(phase, number=0, step=STEP):
    for i in range(0, phase.shape[0], step[0]):
        for j in range(0, phase.shape[1], step[1]):
            for k in range(0, phase.shape[2], step[2]):
                block = phase[i : i + step[0], j : j + step[1], k : k + step[2]]
                yield Volume(block, 3e-6, (i, j, k), phase.shape, step, number, {"seed": 7, "what": "noise"})


def joined(made, folder, suffix, volumes):
    blocks = []
    for number, phase in enumerate(volumes):
        for tile in tiles(phase, number):
            blocks.append(folder / f"block-{len(blocks):03d}{suffix}")
            made.write(tile, blocks[-1], len(blocks) - 1)
    path = folder / f"rock{suffix}"
    made.join(blocks, path)
    return path, blocks


def content(path):
    files = sorted(p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
    return [(str(p.relative_to(path)), p.read_bytes()) for p in files]


# In and out


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_tiles_are_joined_read_back_and_written_alike(suffix, count, tmp_path):
    if suffix == ".nc":
        pytest.importorskip("netCDF4")
    made, volumes = task(), [noise(seed=i) for i in range(count)]
    path, _ = joined(made, tmp_path, suffix, volumes)
    found = made.read(path)
    assert [v.number for v in found] == list(range(count))
    for one, phase in zip(found, volumes, strict=True):
        assert (np.asarray(one.phase) == phase).all()
        assert one.voxel_size == pytest.approx(3e-6)
        assert one.step == STEP
        assert one.provenance == {"seed": 7, "what": "noise"}
    again = tmp_path / "again" / path.name
    again.parent.mkdir()
    made.write(found, again)
    assert content(again) == content(path)


@pytest.mark.parametrize("suffix", [s for s in formats.SUFFIXES if s not in (".nc", ".npz")])
def test_other_labels_can_be_written(suffix, tmp_path):
    phase = noise()
    made = task(labels=(1, 0))
    path, _ = joined(made, tmp_path, suffix, [phase])
    assert (np.asarray(task().read(path)[0].phase) == phase).all()  # the file says which label is the pore
    source = formats.open_source(path, formats.Reading())
    assert (np.asarray(source.array[:]) == 1 - phase).all()


def test_an_order_of_parts_does_not_matter(tmp_path):
    phase = noise()
    made = task()
    path, blocks = joined(made, tmp_path, ".raw", [phase])
    made.join(blocks[::-1], tmp_path / "other.raw")
    assert path.read_bytes() == (tmp_path / "other.raw").read_bytes()


def test_slabs_that_cut_through_tiles_give_the_same_file(tmp_path, monkeypatch):
    phase = noise((50, 8, 9))
    monkeypatch.setattr(formats, "SLAB", 1)
    path, _ = joined(task(), tmp_path, ".raw", [phase])
    assert path.read_bytes() == (phase * 255).tobytes()


def test_zarr_parts_are_the_chunks_of_the_store(tmp_path):
    path, blocks = joined(task(), tmp_path, ".zarr", [noise()])
    chunk = path / "c" / "2" / "1" / "0"
    twin = next(
        b for b in blocks if json.loads((b / "zarr.json").read_text())["attributes"]["headwater"]["start"] == [16, 8, 0]
    )
    assert chunk.samefile(twin / "c" / "0" / "0" / "0")  # one file with two names: nothing is written twice
    array = zarr.open(str(path), mode="r")
    assert array.chunks == STEP
    assert (array[:] == 255 * noise()).all()


def test_zarr_chunks_are_copied_where_links_are_not_possible(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EXDEV, "no links here")

    monkeypatch.setattr(parts.os, "link", no_links)
    path, blocks = joined(task(), tmp_path, ".zarr", [noise()])
    for block in blocks:
        shutil.rmtree(block)
    assert (zarr.open(str(path), mode="r")[:] == 255 * noise()).all()


def test_several_zarr_volumes_are_a_group(tmp_path):
    path, _ = joined(task(), tmp_path, ".zarr", [noise(seed=0), noise(seed=1)])
    group = zarr.open_group(str(path), mode="r")
    assert sorted(name for name, _ in group.arrays()) == ["0000", "0001"]


def test_a_tile_that_is_missing_is_named(tmp_path):
    _, blocks = joined(task(), tmp_path, ".raw", [noise()])
    with pytest.raises(DataError, match=r"volume 0: 26 of 27 tiles of 8x8x8 are there for 20x24x18"):
        task().join(blocks[1:], tmp_path / "part.raw")


def test_tiles_are_put_together_in_memory():
    phase = noise()
    found = parts.assemble(list(tiles(phase))[::-1])
    assert len(found) == 1
    assert (found[0].phase == phase).all()
    assert found[0].start == (0, 0, 0)
    with pytest.raises(DataError, match="only 26 of its tiles"):
        parts.assemble(list(tiles(phase))[1:])


def test_cut_keeps_tiles_whole():
    one = next(tiles(noise()))
    assert task().cut(one, -3) is one
    assert task().cut([1, 2, 3], 2) == [1, 2]


# What other programs write


def test_raw_takes_its_shape_from_the_name(tmp_path):
    phase = noise((4, 5, 6))
    path = tmp_path / "rock_6x5x4_uint16_2.5um.raw"
    path.write_bytes((phase * 255).astype("<u2").tobytes())
    found = task().read(path)[0]
    assert (found.phase == phase).all()
    assert found.voxel_size == pytest.approx(2.5e-6)


@pytest.mark.parametrize(("order", "shape"), [("C", (4, 5, 6)), ("F", (6, 5, 4))])
def test_raw_takes_its_shape_from_settings(order, shape, tmp_path):
    phase = noise((4, 5, 6))
    path = tmp_path / "rock.raw"
    path.write_bytes((phase * 255).tobytes())
    assert (task(shape=shape, order=order).read(path)[0].phase == phase).all()


def test_big_endian_raw(tmp_path):
    phase = noise((4, 5, 6))
    (tmp_path / "rock.raw").write_bytes(phase.astype(">u2").tobytes())
    made = task(shape=(4, 5, 6), dtype=">u2", pore_value=0)
    assert (made.read(tmp_path / "rock.raw")[0].phase == phase).all()


def test_slices_are_sorted_by_number(tmp_path):
    phase = noise((12, 5, 6))
    for i, page in enumerate(phase):
        tifffile.imwrite(tmp_path / f"s{i}.tif", page * 255)  # s10 comes before s2 in the alphabet
    (tmp_path / "notes.txt").write_text("by hand")
    source = formats.open_source(tmp_path, formats.Reading())
    assert (np.asarray(source.array[:]) == phase * 255).all()
    assert (source.array[3:11:2, 1:3] == phase[3:11:2, 1:3] * 255).all()
    assert (source.array[7] == phase[7] * 255).all()
    assert (task().read(tmp_path)[0].phase == phase).all()


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_pages_and_compression(compression, tmp_path):
    phase = noise((7, 16, 16))
    tifffile.imwrite(tmp_path / "rock.tif", phase * 255, compression=compression)
    source = formats.open_source(tmp_path / "rock.tif", formats.Reading())
    assert (np.asarray(source.array[2:5]) == phase[2:5] * 255).all()
    assert (np.asarray(source.array[1:6, 3:5, ::2]) == phase[1:6, 3:5, ::2] * 255).all()
    assert (task().read(tmp_path / "rock.tif")[0].phase == phase).all()


def test_imagej_stacks_have_their_unit(tmp_path):
    tifffile.imwrite(
        tmp_path / "rock.tif",
        noise() * 255,
        imagej=True,
        resolution=(1 / 3, 1 / 3),
        metadata={"unit": "um", "axes": "ZYX"},
    )
    found = task().read(tmp_path / "rock.tif")[0]
    assert found.phase.shape == SHAPE
    assert found.voxel_size == pytest.approx(3e-6, rel=1e-4)


def test_screen_resolutions_are_no_voxel_size(tmp_path):
    tifffile.imwrite(tmp_path / "rock.tif", noise() * 255, resolution=(72, 72), resolutionunit="INCH")
    assert task().read(tmp_path / "rock.tif")[0].voxel_size is None
    assert task(voxel_size=2e-6).read(tmp_path / "rock.tif")[0].voxel_size == 2e-6


def test_white_is_zero_is_not_taken_for_an_inversion(tmp_path):
    tifffile.imwrite(tmp_path / "rock.tif", noise() * 255, photometric="miniswhite")
    assert (task().read(tmp_path / "rock.tif")[0].phase == noise()).all()


def test_hdf5_data_sets_of_any_integer_type(tmp_path):
    with h5py.File(tmp_path / "rock.h5", "w") as file:
        file["data"] = noise().astype(np.int64) * 255
        file["other"] = np.zeros((3, 3, 3))
        file["data"].attrs["element_size_um"] = [3.0, 3.0, 3.0]
    found = task().read(tmp_path / "rock.h5")[0]
    assert (found.phase == noise()).all()
    assert found.voxel_size == pytest.approx(3e-6)


def test_netcdf_blocks_in_a_folder(tmp_path):
    netcdf = pytest.importorskip("netCDF4")
    for i in (0, 1):
        with netcdf.Dataset(tmp_path / f"block{i}.nc", "w") as file:
            for name, n in zip("zyx", (10, 24, 18), strict=True):
                file.createDimension(name, n)
            file.createVariable("segmented", "u1", ("z", "y", "x"))[:] = noise()[10 * i : 10 * i + 10] * 255
            file.voxel_size_xyz = [2.0, 2.0, 2.0]
            file.voxel_unit = "um"
    found = task().read(tmp_path)[0]
    assert (found.phase == noise()).all()
    assert found.voxel_size == pytest.approx(2e-6)


def test_zarr_version_2_and_ome(tmp_path):
    old = zarr.create_array(str(tmp_path / "old.zarr"), shape=SHAPE, dtype="uint8", chunks=(8, 8, 8), zarr_format=2)
    old[:] = noise() * 255
    assert (task().read(tmp_path / "old.zarr")[0].phase == noise()).all()
    for version in (2, 3):
        group = zarr.create_group(str(tmp_path / f"ome{version}.zarr"), zarr_format=version)
        array = group.create_array("0", shape=(1, 1, *SHAPE), dtype="uint8", chunks=(1, 1, 8, 8, 8))
        array[:] = noise()[None, None] * 255
        group.create_array("1", shape=(1, 1, 10, 12, 9), dtype="uint8", chunks=(1, 1, 8, 8, 8))
        scales = [
            {
                "axes": [{"name": n, "unit": "micrometer"} for n in "tczyx"],
                "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 5, 5, 5]}]}],
            }
        ]
        group.attrs.update({"multiscales": scales} if version == 2 else {"ome": {"multiscales": scales}})
        found = task().read(tmp_path / f"ome{version}.zarr")[0]
        assert (found.phase == noise()).all()
        assert found.voxel_size == pytest.approx(5e-6)


def test_metaimage_with_its_data_beside(tmp_path):
    (tmp_path / "rock.raw").write_bytes((noise((4, 5, 6)) * 255).astype(">u2").tobytes())
    (tmp_path / "rock.mhd").write_text(
        "NDims = 3\nDimSize = 6 5 4\nElementType = MET_USHORT\nElementByteOrderMSB = True\nElementDataFile = rock.raw\n"
    )
    assert (task().read(tmp_path / "rock.mhd")[0].phase == noise((4, 5, 6))).all()


def test_numpy_in_either_order(tmp_path):
    np.save(tmp_path / "c.npy", noise() * 255)
    np.save(tmp_path / "f.npy", np.asfortranarray(noise() * 255))
    for name in "cf":
        assert (task().read(tmp_path / f"{name}.npy")[0].phase == noise()).all()


def test_vtk_reads_what_is_written(tmp_path):
    """The header is XML up to the data, and the data lie where it says."""
    path, _ = joined(task(), tmp_path, ".vti", [noise()])
    data = path.read_bytes()
    head, rest = data.split(b"<AppendedData", 1)
    assert b'WholeExtent="0 18 0 24 0 20"' in head
    assert b'Spacing="3e-06 3e-06 3e-06"' in head
    body = rest[rest.index(b"_") + 1 :]
    assert int.from_bytes(body[:8], "little") == noise().size
    assert body[8 : 8 + noise().size] == (noise() * 255).tobytes()


# The user's volume


def test_labels_are_asked_for(tmp_path):
    np.save(tmp_path / "rock.npy", noise() + 1)
    with pytest.raises(DataError, match=r"labels are 1, 2; say which is the pore: task\.pore_value=1"):
        task(path=tmp_path / "rock.npy").volume()
    found = task(path=tmp_path / "rock.npy", pore_value=1).volume()
    assert (found.phase == noise()).all()
    np.save(tmp_path / "ones.npy", noise())
    with pytest.raises(DataError, match="labels are 0, 1; say which"):
        task(path=tmp_path / "ones.npy").volume()


def test_the_porosity_is_printed(tmp_path, capsys):
    np.save(tmp_path / "rock.npy", noise() * 255)
    task(path=tmp_path / "rock.npy", voxel_size=3e-6).volume()
    assert f"20x24x18, porosity {1 - noise().mean():.4f}, voxel 3e-06 m" in capsys.readouterr().err


def test_inverted_labels_are_refused(tmp_path):
    np.save(tmp_path / "rock.npy", (1 - noise(seed=1)) * 255)
    porosity = noise(seed=1).mean()
    if porosity <= 0.6:
        np.save(
            tmp_path / "rock.npy", np.where(np.arange(SHAPE[0])[:, None, None] < 14, 0, 255 * noise()).astype(np.uint8)
        )
    with pytest.raises(
        DataError, match=r"porosity 0\.\d+ with 0 as pore .* task\.pore_value .* task\.confirm_porosity"
    ):
        task(path=tmp_path / "rock.npy").volume()
    assert task(path=tmp_path / "rock.npy", confirm_porosity=True).volume().phase.shape == SHAPE


def test_grey_levels_are_refused_with_their_number(tmp_path):
    grey = np.arange(math.prod(SHAPE), dtype=np.int64).reshape(SHAPE) % 173
    np.save(tmp_path / "grey.npy", grey.astype(np.uint8))
    with pytest.raises(DataError, match=r"173 distinct values \(0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\); segment it"):
        task(path=tmp_path / "grey.npy").volume()
    found = task(path=tmp_path / "grey.npy", several_labels=True, pore_value=3).volume()
    assert ((found.phase == 0) == (grey == 3)).all()


def test_labels_are_counted_over_all_slabs(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.labels, "SLAB", 100)
    late = noise() * 255
    late[-1, -1, -1] = 7
    np.save(tmp_path / "late.npy", late)
    with pytest.raises(DataError, match="3 distinct values"):
        task(path=tmp_path / "late.npy").volume()


@pytest.mark.parametrize(("value", "said"), [(0.5, "values are float32;"), (np.nan, "1 of them NaN or infinite")])
def test_fractions_are_refused(value, said, tmp_path):
    phase = noise().astype(np.float32)
    phase[1, 2, 3] = value
    np.save(tmp_path / "rock.npy", phase)
    with pytest.raises(DataError, match=said):
        task(path=tmp_path / "rock.npy").volume()


def test_a_pore_label_that_no_voxel_has_is_refused(tmp_path):
    np.save(tmp_path / "rock.npy", noise())
    with pytest.raises(DataError, match="no voxel has the label 5 of the pores; labels are 0, 1"):
        task(path=tmp_path / "rock.npy", pore_value=5).volume()


def test_coarse_volumes_have_the_majority(tmp_path):
    phase = np.zeros((5, 4, 4), np.uint8)
    phase[0, 0, :2] = phase[1, :2, 0] = 1  # four of eight: grain
    phase[2, 2, 2] = 1  # one of eight: pore
    assert coarsened(phase, 2).tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 0]]]
    np.save(tmp_path / "rock.npy", noise() * 255)
    found = task(path=tmp_path / "rock.npy", coarsen=2, voxel_size=3e-6).volume()
    assert found.phase.shape == (10, 12, 9)
    assert found.voxel_size == 6e-6
    with pytest.raises(DataError, match="cannot be coarsened by 21"):
        task(path=tmp_path / "rock.npy", coarsen=21).volume()


def test_ketton_halved_has_the_porosity_of_the_experiment():
    if not (DATA / "ketton_full_uint8.tif").exists():
        pytest.skip("the published scan is not here")
    found = task(path=DATA / "ketton_full_uint8.tif", coarsen=2).volume()
    assert found.phase.shape == (128, 128, 128)
    assert formats.porosity_of(found) == pytest.approx(0.116, abs=0.001)


def test_pages_of_a_file_with_chunks_are_decoded_once():
    class Counted:
        shape, reads = SHAPE, 0

        def __getitem__(self, where):
            self.reads += 1
            return noise()[where] * 255

    stored = Counted()
    phase = formats.Phase(stored, 0, STEP)
    for z in range(SHAPE[0]):
        assert (phase[z : z + 1] == noise()[z : z + 1]).all()
    assert stored.reads == 3
    assert (phase[5:18] == noise()[5:18]).all()
    assert (phase[6:9, 2:5] == noise()[6:9, 2:5]).all()
    assert (phase[:, 3, ::2] == noise()[:, 3, ::2]).all()
    assert (phase[-3] == noise()[-3]).all()
    assert phase[4:4].shape == (0, *SHAPE[1:])


def test_a_large_volume_stays_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.labels, "IN_MEMORY", 1000)
    np.save(tmp_path / "rock.npy", noise() * 255)
    found = task(path=tmp_path / "rock.npy").volume()
    assert isinstance(found.phase, np.memmap)
    assert (found.phase == noise()).all()


def test_without_a_path_there_is_nothing_to_learn_from():
    with pytest.raises(UsageError, match=r"task\.path is needed"):
        task().volume()
    assert task().training_volume() is None


def test_make_writes_what_can_be_read(tmp_path):
    np.save(tmp_path / "rock.npy", noise() * 255)
    task(path=tmp_path / "rock.npy", voxel_size=3e-6).make(tmp_path / "out")
    found = task(path=tmp_path / "out" / "volume.tif").volume()
    assert (found.phase == noise()).all()
    with pytest.raises(UsageError, match=r"volume\.tif exists"):
        task(path=tmp_path / "rock.npy").make(tmp_path / "out")


def test_check_says_what_is_wrong(tmp_path):
    np.save(tmp_path / "good.npy", noise() * 255)
    np.save(tmp_path / "bad.npy", noise() + 1)
    assert PorousVolume.check(tmp_path / "good.npy") == []
    assert "say which is the pore" in PorousVolume.check(tmp_path / "bad.npy")[0]
    assert "does not exist" in PorousVolume.check(tmp_path / "absent.npy")[0]


# Bad files


def bad(path, match, **settings):
    with pytest.raises(DataError, match=match) as caught:
        task(**settings).read(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_raw(tmp_path):
    path = tmp_path / "rock_10x10x10_uint8.raw"
    path.write_bytes(bytes(999))
    bad(path, "999 bytes where 10x10x10 uint8 needs 1000: truncated, or shape or type are wrong")


def test_raw_of_another_shape(tmp_path):
    path = tmp_path / "rock.raw"
    path.write_bytes(bytes(27000))
    bad(path, "does not say its shape; set task.shape")
    bad(path, "27000 bytes where 20x30x40 uint8 needs 24000: .* a cube of edge 30 would fit", shape=(20, 30, 40))
    bad(path, "'uint7' is no type", shape=(30, 30, 30), dtype="uint7")


@pytest.mark.parametrize("suffix", [".tif", ".vti", ".mha", ".mhd", ".npy", ".h5", ".npz"])
def test_truncated_files(suffix, tmp_path):
    path, _ = joined(task(), tmp_path, suffix, [noise()])
    cut = path.with_suffix(".raw") if suffix == ".mhd" else path
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    with pytest.raises(DataError, match=r"truncated|cannot be read"):
        task().read(path)


def test_damaged_zarr(tmp_path):
    path, _ = joined(task(), tmp_path, ".zarr", [noise()])
    (path / "zarr.json").write_text("{")
    bad(path, "cannot be read")
    (path / "zarr.json").unlink()
    bad(path, "is no Zarr store")


def test_missing_data_set_is_answered_with_those_there(tmp_path):
    with h5py.File(tmp_path / "rock.h5", "w") as file:
        file["a/first"] = np.zeros((3, 4, 5), np.uint8)
        file["second"] = np.zeros((3, 4, 6), np.uint8)
    listed = r"it has a/first \(3x4x5\), second \(3x4x6\)"
    bad(tmp_path / "rock.h5", f"has no data set 'data'; {listed}", dataset="data")
    bad(tmp_path / "rock.h5", f"which data set\\? {listed}; set task.dataset")


def test_empty_file_empty_folder_unknown_suffix_and_nothing(tmp_path):
    (tmp_path / "empty.tif").touch()
    bad(tmp_path / "empty.tif", "is empty")
    (tmp_path / "folder").mkdir()
    bad(tmp_path / "folder", "no TIFF slices and no NetCDF blocks")
    (tmp_path / "rock.dat").write_bytes(b"1")
    bad(tmp_path / "rock.dat", "unknown suffix; volumes are .zarr, .tif")
    bad(tmp_path / "absent.tif", "does not exist")
    with pytest.raises(UsageError, match=r"cannot write 'rock\.xyz'"):
        task().suffix_of(Path("rock.xyz"))


def test_slices_of_different_size(tmp_path):
    for i, n in enumerate((5, 5, 6)):
        tifffile.imwrite(tmp_path / f"s{i}.tif", np.zeros((4, n), np.uint8))
    bad(tmp_path, r"slices differ in size: s0.tif is 4x5, s2.tif 4x6")


def test_colour_and_flat_images(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((3, 8, 8, 3), np.uint8), photometric="rgb")
    bad(tmp_path / "rgb.tif", "3 channels; a segmented volume has one")
    np.save(tmp_path / "flat.npy", np.zeros((8, 8), np.uint8))
    bad(tmp_path / "flat.npy", "three axes, and this has shape 8x8")


def test_vti_and_metaimage_that_cannot_be_mapped(tmp_path):
    (tmp_path / "inline.vti").write_text('<VTKFile type="ImageData"><ImageData/></VTKFile>')
    bad(tmp_path / "inline.vti", "only appended raw data can be read")
    (tmp_path / "packed.mha").write_text(
        "NDims = 3\nDimSize = 2 2 2\nCompressedData = True\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    )
    bad(tmp_path / "packed.mha", "compressed MetaImage")
    (tmp_path / "odd.mhd").write_text("NDims = 3\nElementDataFile = rock.raw\n")
    bad(tmp_path / "odd.mhd", "the header has no DimSize")


def test_a_pickle_in_a_numpy_file_is_not_loaded(tmp_path):
    np.save(tmp_path / "rock.npy", np.array([{}], dtype=object), allow_pickle=True)
    bad(tmp_path / "rock.npy", "cannot be read")


# Size and room


def test_a_disk_that_is_full_when_joining_leaves_the_parts(tmp_path, monkeypatch):
    phase = noise()
    made = task()
    blocks = []
    for i, tile in enumerate(tiles(phase)):
        blocks.append(tmp_path / f"block-{i}.raw")
        made.write(tile, blocks[-1])
    with monkeypatch.context() as patch:
        patch.setattr(parts.shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))
        with pytest.raises(OSError, match="8640 bytes are needed and 100 are free") as caught:
            made.join(blocks, tmp_path / "rock.raw")
    assert caught.value.errno == errno.ENOSPC
    with monkeypatch.context() as patch:

        def full(*arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(parts, "_write_side", full)  # the file is written, and then the disk is full
        with pytest.raises(OSError, match="No space left"):
            made.join(blocks, tmp_path / "rock.raw")
    made.join(blocks, tmp_path / "rock.raw")
    assert (np.asarray(made.read(tmp_path / "rock.raw")[0].phase) == phase).all()


def test_a_tiff_above_4_gb_is_read_in_a_fraction_of_that_memory(tmp_path):
    """A sparse BigTIFF of 4.3 GB, all pore but for one page: its labels are counted, slices come from its end."""
    code = """
        import resource, sys
        import numpy as np, tifffile
        from pathlib import Path
        from headwater_porous_gan.tasks.volume import PorousVolume, PorousVolumeConfig

        path = Path(sys.argv[1])
        shape = (1030, 2048, 2048)
        tifffile.memmap(path, shape=shape, dtype=np.uint8, bigtiff=True, photometric="minisblack")[-1] = 255
        found = PorousVolume(PorousVolumeConfig(confirm_porosity=True)).read(path)[0]
        assert found.phase.shape == shape
        assert found.phase[-2:, 5, 7].tolist() == [0, 1]
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(kilobytes // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "large.tif")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000  # megabytes
