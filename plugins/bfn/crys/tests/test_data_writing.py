"""Crystals to files and back, in every format."""

import csv
import hashlib

import numpy as np
import pytest
from headwater import DataError, UsageError
from headwater_bfn_crys.crystals import Crystals, cell_parameters
from headwater_bfn_crys.tasks.embedded import aflow_prototypes
from headwater_bfn_crys.tasks.writing import CrystalWriter, rounded

WRITER = CrystalWriter()


def digest(path):
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return [(file.name, digest(file)) for file in sorted(path.iterdir())]


def wild(n=40):
    """What an untrained network makes: any cell, atoms anywhere and on top of each other, elements in any order."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 9, n)
    frac = rng.random((sizes.sum(), 3))
    frac[::5] = rng.choice([0.0, 1.0 - 1e-12, 1e-12, 0.5, 0.999999995], (len(frac[::5]), 3))
    frac[1::7] = frac[:-1:7][: len(frac[1::7])]
    lengths, angles = cell_parameters(3.0 * rng.standard_normal((n, 3, 3)))
    return Crystals(rng.integers(1, 95, sizes.sum()), frac, lengths, angles, sizes.astype(np.int64))


@pytest.mark.parametrize("make", [wild, lambda: aflow_prototypes()[:60]], ids=["wild", "real"])
@pytest.mark.parametrize("suffix", WRITER.suffixes)
def test_what_is_written_reads_as_it_was_to_the_stated_digits_and_writes_the_same_bytes(tmp_path, suffix, make):
    crystals = make()
    WRITER.write(crystals, tmp_path / f"a{suffix}")
    again = WRITER.read(tmp_path / f"a{suffix}")
    expected = rounded(crystals)
    assert again.ids == expected.ids
    assert again.numbers.tolist() == crystals.numbers.tolist()
    np.testing.assert_array_equal(again.frac, expected.frac)
    np.testing.assert_array_equal(again.lengths, expected.lengths)
    np.testing.assert_array_equal(again.angles, expected.angles)
    assert np.abs(again.lengths - crystals.lengths).max() <= 0.5000001e-6
    assert np.abs((again.frac - crystals.frac + 0.5) % 1.0 - 0.5).max() <= 0.5000001e-8
    WRITER.write(again, tmp_path / f"b{suffix}")
    assert digest(tmp_path / f"a{suffix}") == digest(tmp_path / f"b{suffix}")


@pytest.mark.parametrize("suffix", WRITER.suffixes)
def test_parts_joined_are_the_file_written_at_once(tmp_path, suffix):
    crystals = aflow_prototypes()[:10].named(())
    starts = [0, 4, 9]
    for k, start in enumerate(starts):
        end = [*starts, 10][k + 1]
        WRITER.write(crystals[start:end], tmp_path / f".1-block-{k}{suffix}", start)
    WRITER.join([tmp_path / f".1-block-{k}{suffix}" for k in range(3)], tmp_path / f"whole{suffix}")
    WRITER.write(crystals, tmp_path / f"once{suffix}")
    assert digest(tmp_path / f"whole{suffix}") == digest(tmp_path / f"once{suffix}")
    assert WRITER.read(tmp_path / f"whole{suffix}").ids[9] == "crystal-000009"


@pytest.mark.parametrize("name", ["mp-1", "it's a name", "a#2 b", "two\nlines", "Å 'q' \"d\"", "x" * 100])
@pytest.mark.parametrize("suffix", WRITER.suffixes)
def test_any_name_survives_or_stays_as_it_was_first_read(tmp_path, suffix, name):
    crystals = aflow_prototypes()[:2].named([name, name])
    WRITER.write(crystals, tmp_path / f"a{suffix}")
    again = WRITER.read(tmp_path / f"a{suffix}")
    assert len(again) == 2
    WRITER.write(again, tmp_path / f"b{suffix}")
    assert WRITER.read(tmp_path / f"b{suffix}").ids == again.ids
    if name in ("mp-1", "it's a name", "a#2 b", "x" * 100):
        assert again.ids == (name, name)


def test_other_programs_read_what_is_written(tmp_path):
    from ase.io import read
    from pymatgen.core import Structure

    crystals = rounded(aflow_prototypes()[:6])
    expected = crystals.structures()
    for suffix in ("", ".poscar", ".extxyz"):
        WRITER.write(crystals, tmp_path / f"a{suffix}")
    for folder in ("a", "a.poscar"):
        for file, structure in zip(sorted((tmp_path / folder).iterdir()), expected, strict=True):
            for found in (Structure.from_file(file), Crystals.from_atoms([read(file)]).structures()[0]):
                assert found.composition == structure.composition
                assert found.volume == pytest.approx(structure.volume, rel=1e-5)
    for atoms, structure in zip(read(tmp_path / "a.extxyz", ":"), expected, strict=True):
        np.testing.assert_allclose(atoms.positions, structure.cart_coords, atol=1e-5)
        assert atoms.pbc.all()


def test_a_table_has_columns_to_filter_by_and_trains_as_it_is(tmp_path):
    crystals = aflow_prototypes()[:3]
    WRITER.write(crystals, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["material_id"] for row in rows] == list(crystals.ids)
    assert float(rows[1]["volume"]) == pytest.approx(crystals.volumes[1], rel=1e-5)
    assert int(rows[2]["num_atoms"]) == crystals.num_atoms[2]


def test_a_bad_sample_and_an_unknown_suffix_are_named(tmp_path):
    WRITER.write(aflow_prototypes()[:3], tmp_path / "a")
    (tmp_path / "a/000001.cif").write_text("nothing")
    with pytest.raises(DataError, match=r"000001\.cif: no data_ block"):
        WRITER.read(tmp_path / "a")
    with pytest.raises(UsageError, match=r"\.cif, \.extxyz"):
        WRITER.suffix_of(tmp_path / "a.docx")
    with pytest.raises(UsageError, match=r"cannot read 'a\.docx'.*a directory, \.json, \.json\.gz, \.xyz, \.vasp"):
        WRITER.check_readable(tmp_path / "a.docx")
    for name in ("a.json.gz", "a.vasp", "POSCAR", "a.cif"):
        WRITER.check_readable(tmp_path / name)
