"""Libraries of fragments: the embedded one, the user's, and what is wrong with them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rdkit")

from headwater import ConfigError, DataError, UsageError
from headwater.config import validate
from headwater_gfn.tasks.fragments import Fragments, FragmentsConfig
from headwater_gfn.tasks.fragments.library import default_library, problem_of, read_library
from headwater_gfn.tasks.fragments.molecules import join
from headwater_gfn.tasks.fragments.policy import GraphPolicy
from headwater_gfn.tasks.fragments.tables import make_tables, random_words, symmetries
from rdkit import Chem

DATA = next(
    (p / "shared/data/gfn-fl" for p in Path(__file__).resolve().parents if (p / "shared/data/gfn-fl").is_dir()),
    Path("shared/data/gfn-fl"),
)
LIBRARY = DATA / "blocks_PDB_105.json"
needs_data = pytest.mark.skipif(not LIBRARY.exists(), reason="the 105-block library is not at hand")


def write(path: Path, blocks: Sequence[tuple[Any, Any]], **more: Any) -> Path:
    path.write_text(json.dumps({"block_smi": [b[0] for b in blocks], "block_r": [b[1] for b in blocks], **more}))
    return path


def test_every_embedded_block_can_be_joined_at_each_of_its_stems() -> None:
    blocks = default_library()
    assert 20 <= len(blocks) <= 40
    assert len({b.name for b in blocks}) == len({(b.smiles, b.stems) for b in blocks}) == len(blocks)
    assert [problem_of(b) for b in blocks] == [None] * len(blocks)


def test_columns_are_lists_or_objects(tmp_path: Path) -> None:
    blocks = [("c1ccccc1", [0, 3]), ("F", [0])]
    lists = read_library(write(tmp_path / "lists.json", blocks, block_name=["a", "b"]))
    numbered = {name: {str(i): v for i, v in enumerate(column)} for name, column in (
        ("block_smi", [b[0] for b in blocks]), ("block_r", [b[1] for b in blocks]), ("block_name", ["a", "b"])
    )}  # fmt: skip
    (tmp_path / "objects.json").write_text(json.dumps(numbered))
    assert lists == read_library(tmp_path / "objects.json")
    assert [b.name for b in read_library(write(tmp_path / "nameless.json", blocks))] == ["block 0", "block 1"]


@pytest.mark.parametrize(
    ("smiles", "stems", "says"),
    [
        ("C[Xq]", [0], "unknown element 'Xq'"),
        ("C*", [0], "open atom"),
        ("c1cccc1(", [0], "no SMILES"),
        ("C(C)(C)(C)(C)C", [1], "no molecule"),
        ("CC", [2], "stem 2 is no atom"),
        ("CC", [-1], "stem -1 is no atom"),
        ("CC", [], "no stem"),
        ("CC", ["0"], "not a list of atom indices"),
        (7, [0], "not a SMILES"),
        ("C.C", [0], "more than one molecule"),
        ("F", [0, 0], "no room for a bond"),
        ("", [0], "no SMILES"),
    ],
)
def test_a_bad_block_is_named(tmp_path: Path, smiles: Any, stems: Any, says: str) -> None:
    path = write(tmp_path / "bad.json", [("C", [0]), (smiles, stems)])
    with pytest.raises(DataError, match=rf"bad\.json: block 'block 1'.*{says}"):
        read_library(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot read the fragments"),
        ('{"block_smi": ["C"', "truncated"),
        ("[]", "holds no table"),
        ('{"block_smi": ["C"]}', "no column 'block_r'"),
        ('{"block_smi": [], "block_r": []}', "holds no block"),
        ('{"block_smi": ["C"], "block_r": []}', "unequal lengths"),
        ('{"block_smi": {"a": "C"}, "block_r": [[0]]}', "no numbers"),
        ('{"block_smi": "C", "block_r": [[0]]}', "neither a list nor an object"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "blocks.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_library(path)


def test_the_embedded_library_is_written_and_read_back(tmp_path: Path) -> None:
    Fragments(FragmentsConfig()).make(tmp_path / "out")
    path = tmp_path / "out" / "blocks.json"
    assert read_library(path) == default_library()
    assert Fragments.check(path) == []
    assert "cannot read" in Fragments.check(tmp_path / "absent.json")[0]


def test_without_rdkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] == "rdkit"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(UsageError, match=r"pip install 'headwater-gfn\[mol\]'"):
        Fragments(FragmentsConfig())


def test_config_says_what_does_not_fit() -> None:
    for values, says in (
        ({"min_blocks": 5, "max_blocks": 3}, "min_blocks = 5 is more"),
        ({"reward": "seh"}, "needs the proxy"),
        ({"proxy": "x.npz"}, "needs the proxy"),
        ({"max_blocks": 40}, "max_blocks"),
    ):
        with pytest.raises(ConfigError, match=says):
            validate(FragmentsConfig, values, "task")


def test_symmetries_keep_the_molecule_that_a_bond_makes() -> None:
    """Every symmetry is confirmed by joining iodine at both of a pair of atoms: the molecules must be the same."""
    iodine = Chem.MolFromSmiles("I")
    for block in default_library():
        mol = Chem.MolFromSmiles(block.smiles)
        for g in symmetries(mol, block.stems):
            for a in set(block.stems):
                one, other = (Chem.MolToSmiles(join([mol, iodine], [(0, i, 1, 0)])) for i in (a, g[a]))
                assert one == other
    benzene, pyrazole = Chem.MolFromSmiles("c1ccccc1"), Chem.MolFromSmiles("c1cn[nH]c1")
    assert len(symmetries(benzene, range(6))) == 12
    assert len(symmetries(pyrazole, (0, 1, 4))) == 1, "the hydrogen is at one of the nitrogens"
    assert len(symmetries(Chem.MolFromSmiles("CC(C)(C)C"), (0, 2, 3, 4))) == 24


def test_blocks_that_differ_in_their_first_stem_are_one_kind() -> None:
    tables = make_tables(default_library())
    names = [b.name for b in default_library()]
    a, b, c = (names.index(f"pyridin-{i}-yl") for i in (4, 3, 2))
    assert tables.kind[[a, b, c]].tolist() == [a, a, a]
    assert len(set(tables.own[[a, b, c]].tolist())) == 3
    assert tables.kind[names.index("methyl")] != tables.kind[names.index("methylene")]


def test_random_words_are_the_same_everywhere() -> None:
    assert random_words(2, seed=0) == [-2152535657050944081, 7960286522194355701]


@needs_data
def test_the_105_block_library_fits() -> None:
    environment = Fragments(FragmentsConfig(blocks=LIBRARY))
    assert len(environment.blocks) == 105
    assert environment.n_actions == 7 * 6 * 105 + 1
    policy = GraphPolicy(environment.blocks, shared_types=True)
    # The first block of each SMILES fixes the official stem types.
    first: dict[str, int] = {}
    for block in environment.blocks:
        first.setdefault(block.smiles, max(block.stems) + 1)
    assert policy.n_types == sum(first.values())
    assert policy.blockemb.num_embeddings == len(first) + 1
    generator = torch.Generator().manual_seed(0)
    s = environment.start(200)
    for _ in range(8):
        mask = environment.forward_mask(s)
        mask[:, -1] = ~mask[:, :-1].any(1)
        s = environment.step(s, torch.multinomial(mask.float(), 1, generator=generator).squeeze(1))
    x = s[~environment.terminal(s)]
    assert all(Chem.MolFromSmiles(smiles) is not None for smiles in environment.smiles(x))
