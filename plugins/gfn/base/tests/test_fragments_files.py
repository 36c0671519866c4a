"""Molecules out: words, files, metrics and pictures."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from headwater import DataError
from headwater_gfn.environment import Samples
from headwater_gfn.tasks.fragments import Fragments, FragmentsConfig
from headwater_gfn.tasks.fragments.metrics import modes, top_k
from headwater_gfn.tasks.fragments.pictures import best_molecules, draw
from rdkit import Chem
from rdkit.Chem import AllChem, DataStructs


@pytest.fixture(scope="module")
def environment() -> Fragments:
    return Fragments(FragmentsConfig())


@pytest.fixture(scope="module")
def samples(environment: Fragments) -> Samples:
    generator = torch.Generator().manual_seed(0)
    s, out = environment.start(60), []
    while len(s):
        weight = environment.forward_mask(s).float()
        weight[:, -1] *= 0.2 * weight.sum(1)
        s = environment.step(s, torch.multinomial(weight, 1, generator=generator).squeeze(1))
        over = environment.terminal(s)
        out.append(s[over])
        s = s[~over]
    x = torch.cat(out)
    return Samples(x, environment.log_reward(x))


@pytest.mark.parametrize("suffix", Fragments.suffixes)
def test_reading_back_is_exact(environment: Fragments, samples: Samples, tmp_path: Path, suffix: str) -> None:
    whole, parts = tmp_path / f"whole{suffix}", [tmp_path / f"{i}{suffix}" for i in (0, 1)]
    environment.write(samples, whole)
    environment.write(samples[:25], parts[0])
    environment.write(samples[25:60], parts[1], start=25)
    environment.join(parts, tmp_path / f"joined{suffix}")
    assert whole.read_bytes() == (tmp_path / f"joined{suffix}").read_bytes()
    back = environment.read(whole)
    assert torch.equal(back.x, samples.x)
    assert torch.equal(back.log_reward, samples.log_reward)


def test_files_hold_the_molecules(environment: Fragments, samples: Samples, tmp_path: Path) -> None:
    smiles = environment.smiles(samples.x)
    for suffix in (".sdf", ".smi", ".csv"):
        environment.write(samples, tmp_path / f"a{suffix}")
    mols = list(Chem.SDMolSupplier(str(tmp_path / "a.sdf")))
    assert [Chem.CanonSmiles(Chem.MolToSmiles(m)) for m in mols] == [Chem.CanonSmiles(s) for s in smiles]
    assert [float(m.GetProp("log_reward")) for m in mols] == pytest.approx(samples.log_reward.tolist())
    assert mols[3].GetProp("_Name") == "molecule-3"
    assert [line.split("\t")[0] for line in (tmp_path / "a.smi").read_text().splitlines()] == smiles
    with (tmp_path / "a.csv").open() as file:
        assert [row["smiles"] for row in csv.DictReader(file)] == smiles


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("", "no block tree"),
        ("c1ccccc1", "no block tree"),
        ("0 1@0.0:0 nonsense", "no block tree"),
        ("0 99@0.0:0", "has the block 99"),
        ("0 30@0.6:0", "6 stems, and none is 6"),
        ("0 30@0.0:1", "1 stems, and none is 1"),
        ("0 30@0.0:0 31@0.0:0", "two bonds"),
        ("0 30@1.0:0", "does not come before"),
        ("0 30", "each further one has one"),
        ("0@0.0:0 30@0.0:0", "each further one has one"),
        ("0", "fewer than 2 blocks"),
        (" ".join(["0"] + ["30@0.0:0"] * 8), "8 is the most"),
        ("10 10@0.0:0 30@1.1:0", "cannot be built"),
    ],
)
def test_what_is_no_tree_is_refused(environment: Fragments, tmp_path: Path, word: str, says: str) -> None:
    if "cannot be built" in says:
        # indol-3-yl is only ever added by its atom 6, so two of them cannot be joined at their atoms 0
        tables = environment.tables
        indole = next(i for i, b in enumerate(environment.blocks) if b.name == "indol-3-yl")
        other = 1 - int(tables.own[indole])
        word = f"{indole} {indole}@0.{other}:{other}"
    with pytest.raises(ValueError, match=says):
        environment.parse([word])
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"x": "{word}"}}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        environment.read(path)


def test_files_without_trees_are_refused(environment: Fragments, tmp_path: Path) -> None:
    for name, text, says in (
        ("a.smi", "c1ccccc1\n", "no block tree after its SMILES"),
        ("a.sdf", "$$$$\n", "no property x"),
        ("a.csv", "smiles\nC\n", "it needs 'x'"),
        ("b.csv", "x\n", "holds no molecule"),
        ("a.jsonl", "{", "a.jsonl"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=says):
            environment.read(tmp_path / name)
    with pytest.raises(DataError, match="cannot read"):
        environment.read(tmp_path / "absent.smi")


def test_a_molecule_is_its_blocks_joined(environment: Fragments) -> None:
    number = {b.name: i for i, b in enumerate(environment.blocks)}

    def smiles(words: str) -> str:
        return environment.smiles(environment.parse([words.format(**number)]))[0]

    assert smiles("{phenyl} {cyano}@0.0:0") == "N#Cc1ccccc1"
    assert smiles("{carbonyl} {phenyl}@0.0:0 {amine}@0.1:0") == "NC(=O)c1ccccc1"
    assert (
        smiles("{phenyl} {nitrogen}@0.0:0".replace("{nitrogen}", str(number["morpholin-4-yl"]))) == "c1ccc(N2CCOCC2)cc1"
    )
    sulfonamide = number["sulfonamide, by sulfur"]
    assert smiles(f"{{phenyl}} {sulfonamide}@0.0:1 {{methyl}}@1.0:0") == "CNS(=O)(=O)c1ccccc1"


def test_top_k_and_modes_follow_their_definitions(environment: Fragments, samples: Samples) -> None:
    mols = [m.mol for m in environment.molecules(samples.x)]
    values = environment.values(samples.x).numpy()
    prints = [AllChem.GetMorganFingerprintAsBitVect(m, 2, nBits=2048) for m in mols]
    similarity = np.array([[DataStructs.TanimotoSimilarity(a, b) for b in prints] for a in prints])
    best = np.argsort(-values, kind="stable")[:10]
    mean, distance = top_k(mols, values, 10)
    assert mean == pytest.approx(values[best].mean())
    assert distance == pytest.approx(np.mean([1 - similarity[i, j] for i, j in itertools.combinations(best, 2)]))
    assert np.isnan(top_k(mols[:1], values[:1])[1])

    threshold, opened = float(np.median(values)), []
    for i in np.argsort(-values, kind="stable"):
        if values[i] >= threshold and all(similarity[i, j] < 0.4 for j in opened):
            opened.append(i)
    found = modes(mols, values, threshold, 0.4)
    assert found.max() + 1 == len(opened) > 3
    assert found[opened].tolist() == list(range(len(opened)))
    assert ((found >= 0) == (values >= threshold)).all()


def test_metrics_count_molecules_once(environment: Fragments, samples: Samples) -> None:
    twice = Samples(samples.x.repeat(2, 1), samples.log_reward.repeat(2))
    once, both = environment.metrics(samples), environment.metrics(twice)
    assert both["unique"] == pytest.approx(once["unique"] / 2)
    assert once["valid"] == 1.0
    for name in ("modes", "top_100_reward", "top_100_diversity", "reward", "blocks"):
        assert both[name] == pytest.approx(once[name]), name
    assert len(environment.modes(samples.x)) == len(samples)


def test_pictures_show_the_best_molecules(environment: Fragments, samples: Samples) -> None:
    panel = best_molecules(environment, samples, n=6)
    assert panel.svg.startswith("<svg")
    assert panel.svg.endswith("</svg>")
    policy = environment.make_policy((8,), "relu")
    assert [p.title for p in environment.pictures({"learned": policy})] == ["Best molecules"]
    assert draw("none", []).svg.startswith("<svg")
