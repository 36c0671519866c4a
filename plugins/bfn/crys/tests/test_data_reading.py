"""Files of all kinds to crystals, and what is said about bad ones."""

import csv
import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from headwater import DataError
from headwater_bfn.pool import Failure
from headwater_bfn_crys.crystals import Crystals
from headwater_bfn_crys.tasks.config import CrystalsConfig
from headwater_bfn_crys.tasks.embedded import aflow_prototypes
from headwater_bfn_crys.tasks.reading import cached, items_of, parse, read_file, unique_ids
from headwater_bfn_crys.tasks.task import UserCrystals
from headwater_bfn_crys.tasks.writing import CrystalWriter, cif_text

HOMES = (parent / "shared/data/bfn-crys" for parent in Path(__file__).resolve().parents)
SHARED = next((home for home in HOMES if home.is_dir()), None)
needs_shared = pytest.mark.skipif(SHARED is None, reason="the reference data are not here")

SALT = (np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), np.array([3.0, 3, 3]), np.array([90.0, 90, 90]))


def cif(**change):
    values = dict(zip(("numbers", "frac", "lengths", "angles"), SALT, strict=True)) | change
    return cif_text("salt", values["numbers"], values["frac"], values["lengths"], values["angles"])


BAD = {
    "no CIF": ("hello", "no data_ block"),
    "empty": ("", "the CIF is empty"),
    "cut off": (cif()[:120], "cannot be read|has no"),
    "word for number": (cif().replace("0.50000000", "half"), "cannot be read.*half"),
    "disordered": (cif().replace("0.50000000 1\n", "0.50000000 0.5\n"), "disordered: site 2 .*0.5"),
    "flat cell": (cif(lengths=np.array([3.0, 3.0, 0.0])), "volume of 0 cubic"),
    "angles that close no cell": (cif(angles=np.array([30.0, 30.0, 120.0])), "volume of .*e-|volume of 0|not finite"),
    "unknown element": (cif().replace("Cl Cl2", "Qq Qq2"), "unknown element 'Qq'"),
    "NaN coordinate": (cif().replace("0.50000000 0.5", "nan 0.5"), "coordinates of atom 2 are not finite"),
    "NaN edge": (cif().replace("_cell_length_a 3.000000", "_cell_length_a nan"), "cell is not finite"),
}


def table(path, cifs, column="cif"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", column])
        writer.writerows([f"m-{i}", text] for i, text in enumerate(cifs, 1))
    return path


@pytest.mark.parametrize("case", BAD)
def test_a_bad_crystal_is_named_with_file_row_and_reason_and_can_be_left_out(tmp_path, case, capsys):
    text, reason = BAD[case]
    path = table(tmp_path / "mine.csv", [cif(), text, cif()])
    with pytest.raises(DataError, match=rf"(?s)mine.csv row 2 \(m-2\): .*({reason}).*--skip-bad") as error:
        UserCrystals(CrystalsConfig(path=path, cache="off")).train()
    assert "\n" not in str(error.value)
    assert [line.startswith(f"{path} row 2") for line in UserCrystals.check(path)] == [True]
    task = UserCrystals(CrystalsConfig(path=path, cache="off", skip_bad=True, validation_fraction=0, test_fraction=0))
    assert task.train().ids == ("m-1", "m-3")
    assert f"left out: {path} row 2 (m-2)" in capsys.readouterr().err


def test_one_atom_is_a_crystal_and_too_many_are_named(tmp_path):
    rng = np.random.default_rng(0)
    many = cif(numbers=np.full(500, 6), frac=rng.random((500, 3)), lengths=np.full(3, 30.0))
    one = cif(numbers=np.array([6]), frac=np.zeros((1, 3)))
    path = table(tmp_path / "mine.csv", [one, many])
    with pytest.raises(DataError, match=r"mine.csv row 2 \(m-2\): has 500 atoms, more than task.max_atoms = 128"):
        UserCrystals(CrystalsConfig(path=path, cache="off")).train()
    settings = {"path": path, "cache": "off", "validation_fraction": 0.0, "test_fraction": 0.0}
    assert UserCrystals(CrystalsConfig(**settings, max_atoms=500)).train().num_atoms.tolist() == [1, 500]
    assert UserCrystals(CrystalsConfig(**settings, skip_bad=True)).train().num_atoms.tolist() == [1]


def test_what_is_wrong_with_a_whole_file_is_said_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "broken.parquet").write_text("PAR?")
    (tmp_path / "only-val").mkdir()
    table(tmp_path / "only-val/val.csv", [cif()])
    for name, said in {
        "empty": "holds no crystal",
        "notes.txt": r"cannot read .*\.cif",
        "broken.json": "is no JSON",
        "broken.parquet": "is no Parquet table",
        "missing.csv": "does not exist",
        "only-val": r"no train\.csv; name the files: task.path=",
    }.items():
        with pytest.raises(DataError, match=said) as error:
            UserCrystals(CrystalsConfig(path=tmp_path / name, cache="off")).train()
        assert "\n" not in str(error.value)
        assert UserCrystals.check(tmp_path / name)
    table(tmp_path / "mine.csv", [cif()], column="structure")
    with pytest.raises(DataError, match=r"mine.csv has no column 'cif'.* material_id, structure"):
        read_file(tmp_path / "mine.csv")
    table(tmp_path / "mine.csv", ["x"])
    with pytest.raises(DataError, match="no crystal that can be used"):
        UserCrystals(CrystalsConfig(path=tmp_path / "mine.csv", cache="off", skip_bad=True)).train()


def test_other_files_say_which_crystal_is_bad(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"sites": []}, 3]))
    (tmp_path / "b.extxyz").write_text('1\nLattice="3 0 0 0 3 0 0 0 3"\nC 0 0 0\n1\nfree\nC 0 0 0\n2\nx\nC 0 0 0\n')
    (tmp_path / "c.vasp").write_text("x\n1.0\n3 0 0\n0 3 0\n0 0 3\n1\ndirect\n0 0 0\n")
    lines = [str(bad) for bad in read_file(tmp_path).bad]
    assert [line.split(":")[0].rpartition("/")[2] for line in lines] == [
        "a.json row 1", "a.json row 2", "b.extxyz frame 2", "b.extxyz frame 3", "c.vasp",
    ]  # fmt: skip
    for said, line in zip(
        ["no lattice", "no lattice", "not periodic", "ends before", "no elements"], lines, strict=True
    ):
        assert said in line


@pytest.mark.parametrize("head", ["-3", "2.0", "two"])
def test_a_frame_that_says_no_number_of_atoms_ends_the_file(tmp_path, head):
    (tmp_path / "a.extxyz").write_text(f"{head}\nfree\nC 0 0 0\n")
    (bad,) = read_file(tmp_path / "a.extxyz").bad
    assert bad.reason == f"line 1 must be a number of atoms, and is '{head}'"


def same(a: Crystals, b: Crystals, atol=1e-6):
    assert a.num_atoms.tolist() == b.num_atoms.tolist()
    assert a.numbers.tolist() == b.numbers.tolist()
    np.testing.assert_allclose((a.frac - b.frac + 0.5) % 1.0, 0.5, atol=atol)
    np.testing.assert_allclose(a.lengths, b.lengths, atol=atol)
    np.testing.assert_allclose(a.angles, b.angles, atol=10 * atol)


def test_every_kind_of_file_gives_the_same_crystals(tmp_path):
    expected = aflow_prototypes()[20:32]
    structures = expected.structures()
    records = [{"material_id": name, **s.as_dict()} for name, s in zip(expected.ids, structures, strict=True)]
    (tmp_path / "list.json").write_text(json.dumps(records))
    (tmp_path / "list.json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
    by_id = dict(zip(expected.ids, [{"structure": s.as_dict()} for s in structures], strict=True))
    (tmp_path / "by-id.json").write_text(json.dumps(by_id))
    for suffix in CrystalWriter.suffixes:
        CrystalWriter().write(expected, tmp_path / f"written{suffix}")
    for path in sorted(tmp_path.iterdir()):
        parsed = read_file(path, reduce=False)
        assert parsed.bad == []
        assert parsed.crystals.ids == expected.ids
        same(parsed.crystals, expected)


def test_symmetry_is_expanded_and_written_out_cells_are_taken_as_they_stand():
    from headwater_bfn_crys.tasks.reading import Item, parse
    from pymatgen.core import Lattice, Structure
    from pymatgen.io.cif import CifWriter

    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    text = str(CifWriter(salt, symprec=0.01))
    assert "F m -3 m" in text or "Fm-3m" in text
    found = parse(Item("x", "", "cif", text), reduce=False)
    assert sorted(found.numbers.tolist()) == [11] * 4 + [17] * 4
    written_out = parse(Item("x", "", "cif", str(CifWriter(salt))), reduce=False)
    assert written_out.numbers.tolist() == [site.specie.Z for site in salt]
    reduced = parse(Item("x", "", "cif", text), reduce=True)
    np.testing.assert_allclose(reduced.lengths, 5.64)  # Niggli, and not primitive


def test_reduction_gives_the_cell_and_the_crystal_of_pymatgen():
    from headwater_bfn_crys.tasks.reading import Item, parse
    from pymatgen.analysis.structure_matcher import StructureMatcher

    for structure in aflow_prototypes()[::40].structures():
        structure.make_supercell([[1, 1, 0], [0, 1, 2], [0, 0, 1]], to_unit_cell=False)
        found = parse(Item("x", "", "json", structure.as_dict()), reduce=True)
        theirs = structure.get_reduced_structure()
        np.testing.assert_allclose(found.lengths[0], theirs.lattice.abc, atol=1e-9)
        np.testing.assert_allclose(found.angles[0], theirs.lattice.angles, atol=1e-8)
        assert StructureMatcher(primitive_cell=False, scale=False).fit(found.structures()[0], theirs)
        assert ((found.frac >= 0) & (found.frac < 1)).all()


def test_labels_charges_and_isotopes_are_understood():
    from headwater_bfn_crys.tasks.reading import Item, parse

    text = cif().replace("Na Na1", "Na1+ Na1").replace("Cl Cl2", "D D2")
    assert parse(Item("x", "", "cif", text), reduce=False).numbers.tolist() == [11, 1]
    lines = [line for line in cif().splitlines() if line != "_atom_site_type_symbol"]
    text = "\n".join(line.removeprefix("Na ").removeprefix("Cl ") for line in lines)
    assert parse(Item("x", "", "cif", text), reduce=False).numbers.tolist() == [11, 17]


def test_a_cache_is_used_while_the_content_is_the_same_and_may_be_damaged_or_moved(tmp_path, monkeypatch):
    from headwater_bfn_crys.tasks import reading

    folder = tmp_path / "a"
    folder.mkdir()
    path = table(folder / "mine.csv", [cif(), "x"])
    options = {"reduce": True, "processes": 1, "limit": 60.0}
    first = cached(path, folder / "cache", **options)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_file", lambda *a, **k: pytest.fail("parsed again"))
        moved = tmp_path / "b"
        folder.rename(moved)
        again = cached(moved / "mine.csv", moved / "cache", **options)
    same(again.crystals, first.crystals)
    assert again.crystals.ids == first.crystals.ids
    assert again.bad[0].where == f"{moved / 'mine.csv'} row 2 (m-2)"
    (stored,) = (moved / "cache").iterdir()
    stored.write_bytes(stored.read_bytes()[:100])
    same(cached(moved / "mine.csv", moved / "cache", **options).crystals, first.crystals)
    table(moved / "mine.csv", [cif(), cif()])
    assert len(cached(moved / "mine.csv", moved / "cache", **options).crystals) == 2


def test_a_crystal_that_ran_out_of_time_is_tried_again_and_not_kept_as_bad(tmp_path, monkeypatch):
    from headwater_bfn_crys.tasks import reading

    path = table(tmp_path / "mine.csv", [cif(), cif()])
    options = {"reduce": True, "processes": 1, "limit": 60.0}
    with monkeypatch.context() as patch:
        patch.setattr(reading, "ALONE", 1)
        found = [parse(item, reduce=True) for item in items_of(path)]
        late = [found[0], Failure("took more than 60 s", stuck=True)]
        patch.setattr(reading.Pool, "each", lambda *a, **k: late)
        parsed = cached(path, tmp_path / "cache", **options)
        assert [str(bad) for bad in parsed.bad] == [f"{path} row 2 (m-2): took more than 60 s"]
    assert len(cached(path, tmp_path / "cache", **options).crystals) == 2


def test_the_cache_lies_beside_the_files_unless_the_settings_say_otherwise(tmp_path):
    path = table(tmp_path / "mine.csv", [cif()] * 3)
    UserCrystals(CrystalsConfig(path=path, cache="off")).train()
    assert not (tmp_path / ".headwater-cache").exists()
    UserCrystals(CrystalsConfig(path=path, cache=tmp_path / "elsewhere")).train()
    assert (tmp_path / "elsewhere").exists()
    UserCrystals(CrystalsConfig(path=path)).train()
    assert (tmp_path / ".headwater-cache").exists()


def test_names_are_made_unique():
    assert unique_ids(["a", "b", "a", "a"]) == ("a", "b", "a#2", "a#3")


@needs_shared
def test_published_files_are_read_whole():
    for name, count, atoms in (("mp_20_64/all.csv", 64, 20), ("mp_20_64/with_metadata.csv", 6, 20)):
        parsed = read_file(SHARED / name)
        assert parsed.bad == []
        assert len(parsed.crystals) == count
        assert parsed.crystals.num_atoms.max() <= atoms
        assert ((parsed.crystals.frac >= 0) & (parsed.crystals.frac < 1)).all()


@needs_shared
def test_parsing_in_processes_gives_what_parsing_alone_gives(monkeypatch):
    from headwater_bfn_crys.tasks import reading

    path = SHARED / "mp_20_64/all.csv"
    alone = read_file(path)
    monkeypatch.setattr(reading, "ALONE", 10)
    pooled = read_file(path, processes=2)
    np.testing.assert_array_equal(pooled.crystals.frac, alone.crystals.frac)
    assert pooled.where == alone.where


@needs_shared
def test_a_folder_of_cifs_of_relaxed_structures_is_read(tmp_path):
    with zipfile.ZipFile(SHARED / "mattergen_cifs.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".cif")][:40]
        for name in names:
            (tmp_path / Path(name).name).write_bytes(archive.read(name))
    parsed = read_file(tmp_path)
    assert len(parsed.crystals) + len(parsed.bad) == len({Path(name).name for name in names})
    assert all("disordered" in bad.reason for bad in parsed.bad)
