"""Reading pockets and ligands, molecules from bare atoms, files, metrics: with what goes wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from headwater import DataError, UsageError
from headwater_bfn_moljo.tasks import docking, reading, scoring
from headwater_bfn_moljo.tasks.chemistry import TYPES, reconstruct, scaffold_atoms, type_of_atoms
from headwater_bfn_moljo.tasks.config import ComplexTaskConfig, UserComplexesConfig
from headwater_bfn_moljo.tasks.poses import Pose, PoseWriter, pose_of_atoms, sound
from headwater_bfn_moljo.tasks.task import PoseBustersComplexes, UserComplexes, sources
from rdkit import Chem
from rdkit.Chem import AllChem

DATA = next(
    (p / "shared/data/bfn-moljo" for p in Path(__file__).resolve().parents if (p / "shared/data/bfn-moljo").is_dir()),
    Path("shared/data/bfn-moljo"),
)
shared = pytest.mark.skipif(not DATA.is_dir(), reason="the reference ligands are not here")


@pytest.fixture(scope="module")
def babel():
    return pytest.importorskip("openbabel", reason="Open Babel is not installed")


@pytest.fixture(scope="module")
def default():
    return PoseBustersComplexes(ComplexTaskConfig(vina="off"))


def conformer(smiles, seed=7):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=seed) == 0
    return Chem.RemoveHs(mol)


def bare(mol):
    return [a.GetAtomicNum() for a in mol.GetAtoms()], mol.GetConformer().GetPositions()


def flat(mol):
    return Chem.CanonSmiles(Chem.MolToSmiles(mol, isomericSmiles=False))


@pytest.mark.parametrize(
    "smiles",
    [
        "c1ccccc1CCO", "CC(=O)Nc1ccco1", "N#Cc1ccc(O)cc1", "OP(=O)(O)OC", "CS(=O)(=O)c1ccncc1", "Clc1ccc(F)cc1",
        "Cc1ccc(cc1)[N+](=O)[O-]",
    ],
)  # fmt: skip
def test_molecules_come_back_from_their_atoms(smiles, babel):
    mol = conformer(smiles)
    assert flat(reconstruct(*bare(mol))) == flat(mol)


@shared
def test_reference_ligands_come_back_from_their_atoms(babel):
    files = sorted(DATA.glob("crossdocked_test/*/*.sdf"))
    assert len(files) == 100
    same = 0
    for file in files:
        mol = reading.read_ligand(file)
        made = reconstruct(*bare(mol))
        same += made is not None and flat(made) == flat(mol)
    assert same >= 95, f"{same} of 100"


def test_what_is_no_molecule_gives_none_and_is_kept_as_atoms(babel, tmp_path):
    numbers, positions = [6, 6], np.array([[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0]])
    assert reconstruct(numbers, positions) is None
    pose = pose_of_atoms("bad", numbers, positions, "target")
    assert sound(pose) is None
    PoseWriter().write([pose], tmp_path / "bad.sdf")
    (again,) = PoseWriter().read(tmp_path / "bad.sdf")
    assert sound(again) is None
    assert again.target == "target"


def test_types_and_their_errors():
    mol = conformer("c1ccoc1C(F)Cl")
    kinds = [TYPES[k] for k in type_of_atoms(mol, "x")]
    assert kinds == [(a.GetAtomicNum(), a.GetIsAromatic()) for a in mol.GetAtoms()]
    with pytest.raises(DataError, match=r"x\.sdf: atom 3 is Br, .*knows C Cl F H N O P S"):
        type_of_atoms(conformer("CCBr"), "x.sdf")


def test_the_scaffold_is_rings_and_linkers():
    mol = Chem.MolFromSmiles("CCc1ccc(Cc2ccncc2)cc1")
    assert scaffold_atoms(mol).tolist() == [False, False, *[True] * 13]
    assert not scaffold_atoms(Chem.MolFromSmiles("CCO")).any()


RECORD = (
    "ATOM  {n:5d}  {name:<3s}{alt}{res:>3s} A{seq:4d}    {x:8.3f}{y:8.3f}{z:8.3f}{occ:6.2f}  0.00          {el:>2s}"
)


def record(n, name, x, res="GLY", seq=1, alt=" ", occ=1.0, el=None, y=0.0, z=0.0):
    return RECORD.format(n=n, name=name, alt=alt, res=res, seq=seq, x=x, y=y, z=z, occ=occ, el=el or name[0])


def pdb(tmp_path, *lines):
    path = tmp_path / "p.pdb"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_alternate_locations_hydrogens_waters_and_metals(tmp_path, capsys):
    path = pdb(
        tmp_path,
        record(1, "N", 0.0),
        record(2, "CA", 1.0, alt="A", occ=0.4),
        record(3, "CA", 2.0, alt="B", occ=0.6),
        record(4, "HA", 3.0, el="H"),
        record(5, "O", 4.0, res="HOH", seq=7),
        record(6, "ZN", 5.0, res="ZN", seq=8, el="ZN"),
        record(7, "ZN", 5.0, res="ZN", seq=9, el="ZN").replace("ATOM  ", "HETATM"),
        record(8, "SD", 6.0, res="MET", seq=2),
        "ENDMDL",
        record(9, "N", 9.0),
    )
    pocket = reading.read_pdb(path)
    assert pocket.positions[:, 0].tolist() == [0.0, 2.0, 6.0]
    assert pocket.numbers.tolist() == [7, 6, 16]
    assert pocket.group.tolist() == [0, 0, 1]
    assert pocket.backbone.tolist() == [True, True, False]
    assert all(line[16] == " " for line in pocket.lines)
    said = capsys.readouterr().err
    assert "1 atoms of water" in said
    assert "ZN A   8" in said
    features = reading.protein_features(pocket)
    assert features.shape == (3, 27)
    assert features.sum(1).tolist() == [3.0, 3.0, 2.0]
    assert features[2, 4] == 1.0
    assert features[2, 6 + reading.RESIDUES.index("MET")] == 1.0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([record(1, "N", 0.0), record(2, "XX", 1.0, el="Xx")], r"p\.pdb, line 2: element Xx in residue GLY A   1"),
        ([record(1, "N", 0.0).replace("   0.000", "   bad  ", 1)], r"line 1: columns 31-60 are no coordinates"),
        ([record(1, "O", 0.0, res="HOH")], "has no heavy protein atom"),
        ([], "has no heavy protein atom"),
    ],
)
def test_damaged_pdb_files(tmp_path, lines, said):
    with pytest.raises(DataError, match=said):
        reading.read_pdb(pdb(tmp_path, *lines))


def test_a_ligand_outside_of_the_pocket_and_damaged_ligands(tmp_path):
    path = pdb(tmp_path, record(1, "N", 0.0), record(2, "CA", 1.0))
    sdf = tmp_path / "l.sdf"
    sdf.write_text(Chem.MolToMolBlock(conformer("CCO")) + "$$$$\n")
    assert len(reading.pair("near", path, sdf).pocket) == 2
    far = conformer("CCO")
    for i in range(3):
        far.GetConformer().SetAtomPosition(i, (100.0 + i, 0.0, 0.0))
    sdf.write_text(Chem.MolToMolBlock(far) + "$$$$\n")
    with pytest.raises(DataError, match=r"pocket is empty.*99\.0 angstrom away"):
        reading.pair("far", path, sdf)
    sdf.write_text("no molecule\n")
    with pytest.raises(DataError, match="is no SDF molecule"):
        reading.read_ligand(sdf)
    five = Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False)
    AllChem.Compute2DCoords(five)
    sdf.write_text(Chem.MolToMolBlock(five, kekulize=False) + "$$$$\n")
    with pytest.raises(DataError, match="valence"):
        reading.read_ligand(sdf)
    with pytest.raises(DataError, match="cannot read"):
        reading.read_ligand(tmp_path / "missing.sdf")


def test_the_pocket_is_whole_residues_by_their_centres_of_mass(default):
    source = default.train()[0]
    pocket, ligand = source.pocket, source.positions
    weight = {z: Chem.GetPeriodicTable().GetAtomicWeight(z) for z in (6, 7, 8, 16)}
    for group in np.unique(pocket.group):
        mine = pocket.group == group
        mass = np.array([weight[z] for z in pocket.numbers[mine]])
        centre = (mass[:, None] * pocket.positions[mine]).sum(0) / mass.sum()
        assert np.linalg.norm(ligand - centre, axis=1).min() < 10.0


@shared
def test_the_cut_of_a_receptor_is_the_pocket_that_the_field_uses():
    checked = 0
    for source in sources(DATA / "crossdocked_test"):
        if source.receptor is None or checked == 5:
            continue
        checked += 1
        ours = reading.pair(source.name, source.receptor, source.ligand).pocket
        theirs = reading.read_pdb(source.protein)
        a, b = ({tuple(np.round(p, 3)) for p in pocket.positions.tolist()} for pocket in (ours, theirs))
        assert len(a & b) / len(a | b) > 0.97, source.name
    assert checked == 5


@shared
def test_the_crossdocked_folder_and_a_split(tmp_path):
    found = sources(DATA / "crossdocked_test")
    assert len(found) == 100
    assert sum(s.receptor is not None for s in found) == 36
    root = DATA / "crossdocked_test"
    pairs = [[str(s.protein.relative_to(root)), str(s.ligand.relative_to(root))] for s in found[:3]]
    (tmp_path / "split.json").write_text(json.dumps({"train": pairs[:2], "test": pairs[2:]}))
    task = UserComplexes(UserComplexesConfig(path=root, split=tmp_path / "split.json"))
    assert [c.name for c in task.train()] == [s.name for s in found[:2]]
    assert [c.name for c in task.targets()] == [found[2].name]
    (tmp_path / "split.json").write_text("{}")
    with pytest.raises(DataError, match="lists train and test"):
        UserComplexes(UserComplexesConfig(path=root, split=tmp_path / "split.json")).train()


@shared
def test_reference_values_of_the_hundred_ligands():
    values = [scoring.chemistry(reading.read_ligand(f)) for f in sorted(DATA.glob("crossdocked_test/*/*.sdf"))]
    assert np.mean([v["qed"] for v in values]) == pytest.approx(0.476, abs=1e-3)
    assert np.mean([v["sa"] for v in values]) == pytest.approx(0.728, abs=1e-3)


def test_a_csv_of_pairs(tmp_path):
    pdb(tmp_path, record(1, "N", 0.0), record(2, "CA", 1.0))
    (tmp_path / "l.sdf").write_text(Chem.MolToMolBlock(conformer("CCO")) + "$$$$\n")
    table = tmp_path / "t.csv"
    table.write_text("protein,ligand,vina\np.pdb,l.sdf,-4.5\n")
    (only,) = UserComplexes(UserComplexesConfig(path=table)).train()
    assert only.name == "l"
    assert only.labels == {"vina": -4.5}
    assert UserComplexes.check(table) == []
    table.write_text("protein,ligand,vina\np.pdb,l.sdf,good\n")
    with pytest.raises(DataError, match="line 2: a label is no number"):
        sources(table)
    table.write_text("protein,ligand\np.pdb,none.sdf\n")
    with pytest.raises(DataError, match=r"line 2: .*none\.sdf is missing"):
        sources(table)
    table.write_text("pocket\nx\n")
    with pytest.raises(DataError, match="no column 'protein'"):
        sources(table)


def test_lipinski_and_diversity():
    assert scoring.lipinski(Chem.MolFromSmiles("C" * 40)) == 2  # too heavy, too fat, too floppy
    same = [Chem.MolFromSmiles("c1ccccc1CCO")] * 2
    assert scoring.diversity(same) == 0.0
    assert scoring.diversity(same[:1]) is None
    mols = [Chem.MolFromSmiles(s) for s in ("c1ccccc1CCO", "CCCCN", "N#Cc1ccncc1")]
    prints = [Chem.RDKFingerprint(m) for m in mols]
    pairs = [
        1 - Chem.DataStructs.TanimotoSimilarity(prints[i], prints[j]) for i in range(3) for j in range(3) if i != j
    ]
    assert scoring.diversity(mols) == pytest.approx(np.mean(pairs))


def test_success_and_me_better():
    good = {"qed": 0.3, "sa": 0.6, "dock": -8.2, "score": -7.0, "minimize": -7.5}
    assert scoring.success(good)
    for name, value in (("qed", 0.25), ("sa", 0.59), ("dock", -8.18)):
        assert not scoring.success({**good, name: value})
    better = scoring.me_better(good, {"qed": 0.2, "sa": 0.7, "dock": -8.0, "score": -7.2, "minimize": -7.0})
    assert better == {"score": False, "minimize": True, "dock": True, "qed": True, "sa": False}


def test_metrics_of_given_molecules(default):
    refs = [scoring.reference_pose(c.name, c.ligand) for c in default.targets()]
    broken = Pose("broken", refs[0].mol, {**refs[0].properties, "reconstruction": "failed"})
    two = Chem.MolFromMolBlock(Chem.MolToMolBlock(Chem.CombineMols(refs[0].mol, refs[0].mol)), sanitize=False)
    found = default.metrics([*refs, broken, Pose("two", two, {})])
    assert found["valid"] == pytest.approx(5 / 6)
    assert found["complete"] == pytest.approx(4 / 6)
    assert found["novel"] == 0.0
    assert found["unique"] == 1.0
    expected = [scoring.chemistry(c.ligand)["qed"] for c in default.targets()]
    assert found["qed"] == pytest.approx(np.mean(expected))
    assert default.metrics([]) == {}


def test_files_come_back(default, tmp_path):
    refs = [scoring.reference_pose(c.name, c.ligand).with_properties(qed=0.5) for c in default.targets()]
    writer, path = PoseWriter(), tmp_path / "a.sdf"
    writer.write(refs, path)
    again = writer.read(path)
    assert [p.name for p in again] == [p.name for p in refs]
    assert [p.properties for p in again] == [p.properties for p in refs]
    writer.write(again, tmp_path / "b.sdf")
    assert path.read_bytes() == (tmp_path / "b.sdf").read_bytes()
    path.write_text(path.read_text().replace("V2000", "V9000", 1))
    with pytest.raises(DataError, match="record 1 is no SDF molecule"):
        writer.read(path)
    path.write_text("")
    with pytest.raises(DataError, match="holds no SDF record"):
        writer.read(path)


class TestVina:
    @pytest.fixture(autouse=True)
    def _needs(self):
        for package in docking.NEEDED:
            pytest.importorskip(package, reason=f"{package} is not installed")

    def test_missing_packages_are_named(self, monkeypatch):
        monkeypatch.setattr(docking, "find_spec", lambda name: None if name == "vina" else 1)
        with pytest.raises(UsageError, match=r"need vina: pip install 'headwater-bfn-moljo\[dock\]'"):
            docking.check_installed()

    def test_energies_are_kept_and_a_bad_pose_stops_nothing(self, default, tmp_path, monkeypatch):
        source = next(c for c in default.targets() if c.name == "1s3v")
        good = scoring.reference_pose(source.name, source.ligand)
        bad = Pose("bad", good.mol, {**good.properties, "reconstruction": "failed"})
        lost = Pose("lost", good.mol, {"target": "nowhere"})
        arguments = (default.receptors(), {source.name: source.positions}, "minimize", tmp_path, 1)
        found = docking.run([bad, good, lost], *arguments)
        assert "no sound molecule" in found[0].reason
        assert "no receptor" in found[2].reason
        assert found[1].score == pytest.approx(-8.97, abs=0.05)
        assert found[1].minimize == pytest.approx(-9.45, abs=0.05)
        moved = Chem.MolFromMolBlock(found[1].block)
        assert flat(moved) == flat(source.ligand)
        shift = moved.GetConformer().GetPositions() - source.positions
        assert 0 < np.sqrt((shift**2).sum(1).mean()) < 2.0
        # Again, in processes that could not do it: the result is on disk.
        assert len(list(tmp_path.glob("*.json"))) == 1
        monkeypatch.setattr(docking, "_compute", None)
        assert docking.run([bad, good, lost], *arguments) == found
        # A result that a crash cut off counts as none.
        file = next(tmp_path.glob("*.json"))
        file.write_text(file.read_text()[:20])
        assert docking._kept(tmp_path, file.stem) is None


def test_posebusters_passes_a_crystal_pose_and_refuses_one_that_clashes(default, tmp_path):
    source = next(c for c in default.targets() if c.name == "1s3v")
    receptor = tmp_path / "receptor.pdb"
    receptor.write_text(source.receptor)
    pose = scoring.reference_pose(source.name, source.ligand)
    passed, strain = scoring._bust(None, (pose.block, str(receptor)))
    assert passed
    assert strain > 0
    moved = Chem.Mol(pose.mol)
    shift = source.pocket.positions[0] - source.positions[0]
    for i, where in enumerate(source.positions + shift):
        moved.GetConformer().SetAtomPosition(i, where.tolist())
    assert not scoring._bust(None, (Pose("clash", moved).block, str(receptor)))[0]
