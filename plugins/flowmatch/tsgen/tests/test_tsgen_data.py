"""Files of reactions, and what is said of bad ones."""

import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from headwater.errors import ConfigError, DataError
from headwater_flow_tsgen.batch import collate, elements_of
from headwater_flow_tsgen.config import ReactionCondition
from headwater_flow_tsgen.sampler import reaction_of_condition
from headwater_flow_tsgen.tasks.formats import read, read_xyz, write_xyz
from headwater_flow_tsgen.tasks.guess import Guess, read_guesses, write_guesses
from headwater_flow_tsgen.tasks.reactions import Reactions, ReactionsConfig, XtbReactions, XtbReactionsConfig, part_of
from headwater_flow_tsgen.tasks.smiles import reaction_of

RNG = np.random.default_rng(0)
Z = [6, 8, 1, 1]
X = np.array([[0.0, 0, 0], [1.2, 0, 0], [-0.6, 0.9, 0], [-0.6, -0.9, 0]])


def frames(z=Z, roles=("R", "TS", "P"), **info):
    return [Atoms(z, X + 0.05 * k, info={"role": role, **info}) for k, role in enumerate(roles)]


def written(path, structures):
    write(path, structures, format="extxyz")
    return path


def test_triples_with_and_without_roles(tmp_path):
    both = frames(rxn=7, barrier_kcal=12.5) + frames(rxn=8)
    found = read(written(tmp_path / "a.xyz", both))
    assert [(r.name, r.barrier) for r in found] == [("7", 12.5), ("8", None)]
    np.testing.assert_allclose(found[0].ts, X + 0.05, atol=1e-8)
    bare = [Atoms(Z, X + 0.05 * k) for k in range(6)]
    assert [r.name for r in read(written(tmp_path / "b.xyz", bare))] == ["b-0", "b-1"]
    unnamed = frames() + frames(roles=("R", "P"))
    assert [r.ts is None for r in read(written(tmp_path / "c.xyz", unnamed))] == [False, True]


def test_what_is_written_reads_as_it_was(tmp_path):
    reactions = XtbReactions(XtbReactionsConfig()).reactions()[:3]
    write_xyz(reactions, tmp_path / "a.xyz")
    again = read_xyz(tmp_path / "a.xyz")
    assert [(r.name, r.group, r.info) for r in again] == [(r.name, r.group, r.info) for r in reactions]
    for a, b in zip(again, reactions, strict=True):
        np.testing.assert_allclose(a.ts, b.ts, atol=1e-8)
    guesses = [Guess(r, r.ts + 0.1, np.full(len(r), 0.25), 0.125, {"steps": 3, "converged": True}) for r in reactions]
    write_guesses(guesses, tmp_path / "g.xyz", 5)
    back = read_guesses(tmp_path / "g.xyz")
    assert [(g.spread, g.info) for g in back] == [(0.125, {"steps": 3, "converged": True})] * 3
    np.testing.assert_allclose(back[0].uncertainty, 0.25)
    np.testing.assert_allclose(back[1].reaction.ts, reactions[1].ts, atol=1e-8)


def test_folders(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for role, atoms in zip(("r", "ts", "p"), frames(), strict=True):
            write(tmp_path / name / f"{role}.xyz", atoms)
    (tmp_path / "two" / "ts.xyz").unlink()
    assert [(r.name, r.ts is None) for r in read(tmp_path)] == [("one", False), ("two", True)]
    assert read(tmp_path / "one")[0].name == "one"
    (tmp_path / "two" / "p.xyz").unlink()
    with pytest.raises(DataError, match=r"two has no p\.xyz"):
        read(tmp_path)


def transition1x(path, splits=("train", "test"), spoil=None):
    with h5py.File(path, "w") as file:
        for k, split in enumerate(splits):
            rxn = file.create_group(f"{split}/CH2O/rxn{k:04d}")
            for j, part in enumerate(("reactant", "transition_state", "product")):
                group = rxn.create_group(part)
                group["atomic_numbers"] = Z
                group["positions"] = (X + 0.05 * j)[None]
                group["wB97x_6-31G(d).energy"] = [-100.0 + (2.0 if part == "transition_state" else 0.0)]
            if spoil:
                spoil(rxn)
    return path


def test_transition1x(tmp_path):
    found = read(transition1x(tmp_path / "t1x.h5"))
    assert [(r.name, r.part) for r in found] == [("CH2O/rxn0000", "train"), ("CH2O/rxn0001", "test")]
    assert found[0].barrier == pytest.approx(2 * 23.060548, rel=1e-6)
    task = Reactions(ReactionsConfig(path=str(tmp_path / "t1x.h5")))
    assert {part: len(rs) for part, rs in task.parts().items()} == {"train": 1, "val": 0, "test": 1}
    whole = read(transition1x(tmp_path / "all.h5", splits=("data",)))
    assert whole[0].part == ""
    with pytest.raises(DataError, match="has no group product"):
        read(transition1x(tmp_path / "bad.h5", spoil=lambda rxn: rxn.pop("product")))
    (tmp_path / "no.h5").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"no\.h5 as HDF5"):
        read(tmp_path / "no.h5")


def rdb7(path, **spoil):
    arrays = {
        "index": np.array([3, 5]), "natoms": np.array([4, 4]), "z": np.array(Z + Z),
        "pos": np.concatenate([np.stack([X, X + 0.1, X + 0.2], 1)] * 2).astype(np.float32),
        "barrier_kcal": np.array([10.0, 20.0]), "smiles": np.array(["A>>B", "C>>D"]), "split_grouped": np.array([0, 2]),
    }  # fmt: skip
    np.savez(path, **{k: v for k, v in {**arrays, **spoil}.items() if v is not None})
    return path


def test_rdb7_tables(tmp_path):
    found = read(rdb7(tmp_path / "t.npz"))
    assert [(r.name, r.group, r.barrier, r.part) for r in found] == [
        ("3", "A", 10.0, "train"),
        ("5", "C", 20.0, "test"),
    ]
    np.testing.assert_allclose(found[1].ts, X + 0.1, atol=1e-6)
    with pytest.raises(DataError, match="has no split 'source'; it has grouped"):
        read(tmp_path / "t.npz", split="source")
    with pytest.raises(DataError, match="has no array z"):
        read(rdb7(tmp_path / "u.npz", z=None))
    with pytest.raises(DataError, match="natoms adds up to 8"):
        read(rdb7(tmp_path / "v.npz", pos=np.zeros((7, 3, 3))))
    with pytest.raises(DataError, match=r"w\.npz, reaction .*: split_grouped is 3; 0 is train"):
        read(rdb7(tmp_path / "w.npz", split_grouped=np.array([0, 3])))
    with pytest.raises(DataError, match=r"x\.npz, reaction .*: atom 2 has the atomic number 119, which is no element"):
        read(rdb7(tmp_path / "x.npz", z=np.array([1, 119, *[1] * 6])))
    (tmp_path / "y.npz").write_bytes((tmp_path / "t.npz").read_bytes()[:300])
    with pytest.raises(DataError, match=r"cannot read .*y\.npz as NPZ"):
        read(tmp_path / "y.npz")


def test_a_group_is_never_on_two_sides():
    parts = [part_of(f"molecule {k}", 0.2) for k in range(2000)]
    assert part_of("molecule 7", 0.2) == parts[7]
    assert parts.count("test") / 2000 == pytest.approx(0.1, abs=0.02)
    assert parts.count("val") / 2000 == pytest.approx(0.1, abs=0.02)
    split = XtbReactions(XtbReactionsConfig()).parts()
    groups = [{r.group for r in split[part]} for part in ("train", "val", "test")]
    assert all(groups)
    assert not any(a & b for a, b in itertools.combinations(groups, 2))


def test_mapped_smiles_in_three_dimensions():
    pytest.importorskip("rdkit")
    text = "[CH3:1][C:2](=[O:3])[H:4]>>[CH2:1]=[C:2]([O:3][H:5])[H:4]"
    with pytest.raises(DataError, match="atom 1 has another number of hydrogens in the product"):
        reaction_of("[CH3:1][CH:2]=[O:3]>>[CH2:1]=[CH:2][OH:3]")
    with pytest.raises(DataError, match="another number of hydrogens"):
        reaction_of(text)
    moves = "[H:5][C:1]([H:6])([H:7])[C:2](=[O:3])[H:4]>>[C:1]([H:6])([H:7])=[C:2]([O:3][H:5])[H:4]"
    made = reaction_of(moves)
    assert made.numbers.tolist() == [1, 6, 1, 1, 6, 8, 1]
    d = [np.linalg.norm(x[0] - x[1]) for x in (made.reactant, made.product)]
    assert d[0] < 1.2 < d[1]
    assert np.linalg.norm(made.product[0] - made.product[5]) < 1.1
    assert made.group == "CC=O"
    kept = reaction_of("[CH3:1][NH:2][CH3:3]>>[CH3:1][NH:2][CH3:3]")
    assert len(kept) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CC=O>>C=CO", "has no map number"),
        ("[CH3:1][OH:2]", "no reaction SMILES"),
        ("[CH3:1][OH:2]>>[CH3:1][SH:2]", "map number 2 is on two different elements"),
        ("[CH3:1][OH:1]>>[CH3:1][OH:1]", "map number 1 comes twice"),
        ("[CH3:1][O-:2]>>[CH3:1][O-:2]", "charge -1; only neutral"),
        ("[CH2:1][CH3:2]>>[CH2:1][CH3:2]", "unpaired electrons"),
        ("[CH3:1]Q>>C", "cannot read the SMILES"),
    ],
)
def test_bad_smiles(text, message, tmp_path):
    pytest.importorskip("rdkit")
    with pytest.raises(DataError, match=message):
        reaction_of(text)
    (tmp_path / "r.smi").write_text(f"# comment\n{text} name\n")
    with pytest.raises(DataError, match=rf"r\.smi, line 2.*{message}"):
        read(tmp_path / "r.smi")


def spoiled(change):
    out = frames(rxn=1)
    change(out)
    return out


BAD = {
    "another order": (
        lambda f: f.__setitem__(2, Atoms([8, 6, 1, 1], X, info=f[2].info)),
        "atom 1 is C in the reactant and O in the product; the atoms are the same in another order",
    ),
    "other atoms": (
        lambda f: f.__setitem__(2, Atoms([7, 8, 1, 1], X, info=f[2].info)),
        "atom 1 is C .* N in the product; they are not the same atoms",
    ),
    "an atom lost": (
        lambda f: f.__setitem__(2, Atoms(Z[:3], X[:3], info=f[2].info)),
        "the reactant has 4 atoms and the product 3",
    ),
    "the TS in another order": (
        lambda f: f.__setitem__(1, Atoms(Z[::-1], X, info=f[1].info)),
        "atom 1 is C .* H in the transition state",
    ),
    "overlap": (
        lambda f: f[0].positions.__setitem__(3, X[2] + 0.1),
        r"reactant: atoms 3 \(H\) and 4 \(H\) overlap, 0.1\d A apart",
    ),
    "not finite": (
        lambda f: f[1].positions.__setitem__((2, 0), np.nan),
        "transition state: the coordinates of atom 3 are not finite",
    ),
    "charged": (lambda f: f[0].info.update(charge=1), "reactant: its charge is 1"),
    "twice": (lambda f: f[2].info.update(role="R"), "frame 3: a second role=R in reaction 1"),
    "no role": (lambda f: f[2].info.update(role="X"), "frame 3: role=X; it should be R, TS or P"),
    "no product": (lambda f: f.pop(), "reaction 1: no frame with role=P"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_reactions_are_refused_by_name(tmp_path, change, message):
    path = written(tmp_path / "bad.xyz", spoiled(change))
    with pytest.raises(DataError, match=rf"bad\.xyz.*{message}"):
        read(path)
    problems = Reactions.check(path)
    assert len(problems) == 1
    assert "bad.xyz" in problems[0]


def test_bad_reactions_can_be_left_out(tmp_path, capsys):
    good, bad = frames(rxn=1), frames(rxn=2)
    bad[0].positions[3] = bad[0].positions[2] + 0.1
    path = written(tmp_path / "mixed.xyz", good + bad)
    with pytest.raises(DataError, match="reaction 2, reactant: atoms 3"):
        Reactions(ReactionsConfig(path=str(path))).reactions()
    task = Reactions(ReactionsConfig(path=str(path), skip_bad=True))
    assert [r.name for r in task.reactions()] == ["1"]
    assert "left out" in capsys.readouterr().err
    assert len(Reactions.check(path)) == 1


@pytest.mark.parametrize("name", ["none.xyz", "odd.xyz", "two.xyz", "file.pdb"])
def test_bad_files_are_refused(tmp_path, name):
    (tmp_path / "odd.xyz").write_text("this is\nno structure\n")
    written(tmp_path / "two.xyz", [Atoms(Z, X)] * 2)
    (tmp_path / "file.pdb").write_text("")
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


def test_conditions_name_their_files(tmp_path):
    r, _, p = frames()
    files = [str(written(tmp_path / f"{n}.xyz", [a])) for n, a in (("r", r), ("p", p))]
    reaction = reaction_of_condition(ReactionCondition(reactants=files[0], products=files[1]))
    assert reaction.name == "r to p"
    assert reaction_of_condition(ReactionCondition()) is None
    other = str(written(tmp_path / "o.xyz", [Atoms(Z[::-1], X)]))
    with pytest.raises(DataError, match=r"r\.xyz and .*o\.xyz: atom 1 is C"):
        reaction_of_condition(ReactionCondition(reactants=files[0], products=other))
    with pytest.raises(DataError, match=r"gone\.xyz"):
        reaction_of_condition(ReactionCondition(reactants=files[0], products=str(tmp_path / "gone.xyz")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reactants": "r.xyz"}, "reactants needs products"),
        ({"reactants": "a", "products": "b", "smiles": "c"}, "either"),
    ],
)
def test_half_a_condition_is_refused(values, message):
    from headwater.config import validate

    with pytest.raises(ConfigError, match=message):
        validate(ReactionCondition, values, "condition")


def test_an_element_that_was_not_trained_on_is_refused():
    reaction = XtbReactions(XtbReactionsConfig()).reactions()[0]
    sulphur = read_like(reaction, 16)
    with pytest.raises(DataError, match="has S, which this model was not trained on; it knows H C N O"):
        collate([sulphur], [1, 6, 7, 8])
    assert elements_of([reaction, sulphur]) == [1, 6, 7, 8, 16]
    assert int(collate([sulphur], elements_of([sulphur])).species.max()) == 4


def read_like(reaction, z):
    from dataclasses import replace

    return replace(reaction, numbers=np.array([z, *reaction.numbers[1:]]))


def test_the_embedded_reactions_are_what_they_say():
    reactions = XtbReactions(XtbReactionsConfig()).reactions()
    assert len(reactions) >= 60
    assert all(r.info["imaginary_cm1"] < -80 and 0.5 < r.barrier < 150 for r in reactions)
    assert len({r.name for r in reactions}) == len(reactions)


def test_shared_table_is_split_by_reactant():
    name = "shared/data/flow-tsgen/rdb7_r_ts_p.npz"
    file = next((p / name for p in Path(__file__).resolve().parents if (p / name).exists()), None)
    if file is None:
        pytest.skip("the RDB7 table is not here")
    task = Reactions(ReactionsConfig(path=str(file), max_atoms=9))
    parts = task.parts()
    assert all(parts.values())
    groups = [{r.group for r in parts[part]} for part in ("train", "val", "test")]
    assert not (groups[0] & groups[2])
