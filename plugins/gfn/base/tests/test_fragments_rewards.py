"""Rewards: real RDKit values, the cache, the user's scorer, and the sEH proxy against a plain loop."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from headwater import ConfigError, DataError, PluginError
from headwater_gfn.tasks.fragments import Fragments, FragmentsConfig
from headwater_gfn.tasks.fragments.molecules import Molecule
from headwater_gfn.tasks.fragments.proxy import Proxy, atoms_of, load_proxy
from rdkit import Chem
from rdkit.Chem import QED, Crippen
from rdkit.Contrib.SA_Score import sascorer

DATA = next(
    (p / "shared/data/gfn-fl" for p in Path(__file__).resolve().parents if (p / "shared/data/gfn-fl").is_dir()),
    Path("shared/data/gfn-fl"),
)
WEIGHTS, LIBRARY = DATA / "seh_proxy_params.npz", DATA / "blocks_PDB_105.json"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason="the weights of the sEH proxy are not at hand")


def some_states(environment: Fragments, n: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    s, out = environment.start(n), []
    while len(s):
        weight = environment.forward_mask(s).float()
        weight[:, -1] *= 0.3 * weight.sum(1)
        s = environment.step(s, torch.multinomial(weight, 1, generator=generator).squeeze(1))
        over = environment.terminal(s)
        out.append(s[over])
        s = s[~over]
    return torch.cat(out)


def module(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    made = types.ModuleType("my_scorers")
    for name, function in functions.items():
        setattr(made, name, function)
    monkeypatch.setitem(sys.modules, "my_scorers", made)


def test_rewards_are_those_of_rdkit() -> None:
    formulae = {
        "qed": QED.qed,
        "sa": lambda mol: (10 - sascorer.calculateScore(mol)) / 9,
        "logp": lambda mol: np.clip((Crippen.MolLogP(mol) + 2) / 10, 0, 1),
    }
    for name, value in formulae.items():
        environment = Fragments(FragmentsConfig(reward=name, beta=3.0, floor=0.1))
        x = some_states(environment)
        mols = [Chem.MolFromSmiles(s) for s in environment.smiles(x)]
        expected = torch.tensor([3 * np.log(max(value(mol), 0.1)) for mol in mols])
        assert torch.allclose(environment.log_reward(x).double(), expected, atol=1e-5), name


def test_partial_molecules_have_the_same_reward_and_the_source_has_one() -> None:
    environment = Fragments(FragmentsConfig())
    x = some_states(environment)
    assert torch.equal(environment.log_partial_reward(environment.unstop(x)), environment.log_reward(x))
    mixed = torch.cat([environment.start(2), x])
    assert environment.log_partial_reward(mixed)[:2].tolist() == [0.0, 0.0]


def test_only_new_objects_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def count(smiles: list[str]) -> list[float]:
        seen.extend(smiles)
        return [len(s) / 100 for s in smiles]

    module(monkeypatch, count=count)
    environment = Fragments(FragmentsConfig(reward="my_scorers:count", cache_size=100))
    x = some_states(environment, 30)
    first = environment.log_reward(x.repeat(3, 1))
    assert len(seen) == len(x.unique(dim=0))
    assert torch.equal(environment.log_reward(x), first[:30])
    environment.log_partial_reward(environment.unstop(x))
    assert len(seen) == len(x.unique(dim=0))
    many = some_states(environment, 150, seed=1)
    assert len(environment.log_reward(many)) == 150, "more at once than are remembered"
    assert len(environment._scores) == 100
    none = Fragments(FragmentsConfig(reward="my_scorers:count", cache_size=0))
    assert torch.equal(none.log_reward(x), first[:30])


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda s: [float("nan")] * len(s), "gave nan for '"),
        (lambda s: np.full(len(s), np.inf), "gave inf for '"),
        (lambda s: [[1.0]] * len(s), r"gave an array of shape \(30, 1\) for 30 molecules, the first '"),
        (lambda s: 1.0, r"gave an array of shape \(\) for"),
        (lambda s: ["good"] * len(s), "failed on 30 molecules, the first '.*ValueError"),
        (lambda s: s.nothing, "failed on .*AttributeError"),
    ],
)
def test_a_scorer_that_answers_wrongly_is_named(monkeypatch: pytest.MonkeyPatch, answer: Any, says: str) -> None:
    module(monkeypatch, answer=answer)
    environment = Fragments(FragmentsConfig(reward="my_scorers:answer"))
    x = some_states(environment, 60).unique(dim=0)[:30]
    with pytest.raises(PluginError, match=f"scorer 'my_scorers:answer' {says}"):
        environment.log_reward(x)


def test_a_scorer_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, number=7)
    x = some_states(Fragments(FragmentsConfig()), 2)
    for name, error, says in (
        ("my_scorers:absent", PluginError, "cannot be imported"),
        ("no_such_module:f", PluginError, "cannot be imported.*no_such_module"),
        ("my_scorers:number", PluginError, "no function but int"),
        ("drug-likeness", ConfigError, "none of qed, sa, logp, seh"),
    ):
        with pytest.raises(error, match=says):
            Fragments(FragmentsConfig(reward=name)).log_reward(x)


def molecule(smiles: str, *stems: int) -> Molecule:
    return Molecule(Chem.MolFromSmiles(smiles), smiles, stems)


def plain_score(w: dict[str, np.ndarray], molecule: Molecule, transpose_root: bool) -> float:
    """One molecule, atom by atom and bond by bond, with the matrix of every edge written out."""

    def leaky(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x, 0.01 * x)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    atoms = atoms_of([molecule])
    x = leaky(atoms.features.double().numpy() @ w["lin0.weight"].T + w["lin0.bias"])
    root = w["conv.lin.weight(root)"].T if transpose_root else w["conv.lin.weight(root)"]
    for _ in range(12):
        m = x @ root + w["conv.bias"]
        for v in range(len(x)):
            arriving = []
            for i, j, bond in zip(*(t.tolist() for t in (atoms.source, atoms.target, atoms.bond)), strict=True):
                if j == v:
                    attribute = np.eye(5, 4)[bond]
                    hidden = leaky(w["conv.nn.0.weight"] @ attribute + w["conv.nn.0.bias"])
                    matrix = (w["conv.nn.2.weight"] @ hidden + w["conv.nn.2.bias"]).reshape(64, 64)
                    arriving.append(x[i] @ matrix)
            m[v] += np.mean(arriving, 0) if arriving else 0
        m = leaky(m)
        i = m @ w["gru.weight_ih_l0"].T + w["gru.bias_ih_l0"]
        h = x @ w["gru.weight_hh_l0"].T + w["gru.bias_hh_l0"]
        r, z = sigmoid(i[:, :64] + h[:, :64]), sigmoid(i[:, 64:128] + h[:, 64:128])
        x = (1 - z) * np.tanh(i[:, 128:] + r * h[:, 128:]) + z * x
    h, c, both = np.zeros(64), np.zeros(64), np.zeros(128)
    for _ in range(3):
        gates = w["set2set.lstm.weight_ih_l0"] @ both + w["set2set.lstm.bias_ih_l0"]
        gates = gates + w["set2set.lstm.weight_hh_l0"] @ h + w["set2set.lstm.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        e = np.exp(x @ h - (x @ h).max())
        both = np.concatenate([h, (e / e.sum()) @ x])
    return float(w["lin3.weight"][0] @ both + w["lin3.bias"][0])


EXAMPLES = (
    molecule("C1CCCCC1"),
    molecule("O=C(Nc1ccccc1)c1ccccc1", 4, 11),
    molecule("C"),
    molecule("N#Cc1cncs1", 2),
    molecule("O=C(NC1CCCCC1)Nc1ccc(Br)cc1"),
)


@needs_weights
@pytest.mark.parametrize("root", ["linear", "matrix"])
def test_proxy_equals_a_plain_loop(root: str) -> None:
    with np.load(WEIGHTS) as file:
        weights = {name.partition("_")[2]: file[name].astype(np.float64) for name in file.files}
    proxy = load_proxy(WEIGHTS, root)
    together = proxy.score(EXAMPLES)
    apart = np.array([proxy.score([m])[0] for m in EXAMPLES])
    assert np.abs(together - apart).max() < 1e-5
    expected = np.array([plain_score(weights, m, root == "linear") for m in EXAMPLES])
    assert np.abs(proxy.double().score(EXAMPLES) - expected).max() < 1e-9
    assert np.abs(together - expected).max() < 1e-4


@needs_weights
def test_proxy_gives_the_scores_that_the_official_code_gave() -> None:
    """Scores recorded with FL-GFN's code for molecules of the 105-block library: r = (score / 8)^10 there.

    All have free stems: without any, the official score depends on which block was put down first.
    """
    recorded = {
        "95 97@0.0:1 1@1.0:0 46@2.1:0 21@0.1:1 97@4.0:1 36@5.0:0 58@3.2:1": 7.495381,
        "65 30@0.1:0 18@1.2:0 90@0.0:0 0@3.1:0 31@4.2:2 1@5.0:0 36@6.1:0": 7.450862,
        "81 97@0.0:1 71@0.1:2 1@1.0:0 57@3.1:0 62@4.1:2 1@2.4:0 36@6.1:0": 7.260456,
        "36 6@0.0:1 6@1.0:1 6@2.0:1 4@3.0:0 6@4.1:1 21@5.0:1 65@6.0:0": 6.709046,
        "1 6@0.0:1 46@1.0:0 6@2.3:1 24@2.1:2 1@0.1:0 6@4.0:1 38@3.0:0": 5.120739,
        "1 6@0.1:1 1@1.0:0 15@2.1:0 1@0.0:0 38@4.1:0 15@5.5:0 1@5.3:0": 2.754874,
    }
    environment = Fragments(FragmentsConfig(blocks=LIBRARY, reward="seh", proxy=WEIGHTS))
    x = environment.parse(list(recorded))
    assert environment.values(x).mul(8).tolist() == pytest.approx(list(recorded.values()), abs=2e-5)
    expected = 4 * torch.tensor(list(recorded.values())).div(8).log()
    assert torch.allclose(environment.log_reward(x), expected, atol=1e-4)
    cyclohexane = load_proxy(WEIGHTS).score(EXAMPLES[:1])
    assert cyclohexane[0] == pytest.approx(0.2, abs=0.05)


@needs_weights
def test_proxy_does_not_depend_on_the_order_of_atoms_and_blocks() -> None:
    proxy = load_proxy(WEIGHTS)
    generator = np.random.default_rng(0)
    for m in EXAMPLES[1:2] + EXAMPLES[3:]:
        n = m.mol.GetNumAtoms()
        order = [int(i) for i in generator.permutation(n)]
        stems = tuple(order.index(i) for i in m.stems or (0,))
        moved = Molecule(Chem.RenumberAtoms(m.mol, order), m.smiles, stems)
        assert proxy.score([moved])[0] == pytest.approx(proxy.score([m])[0], abs=1e-5)

    environment = Fragments(FragmentsConfig(reward="seh", proxy=WEIGHTS))
    benzene, fluoro, cyano = (
        next(i for i, b in enumerate(environment.blocks) if b.name == name) for name in ("phenyl", "fluoro", "cyano")
    )
    nb, scores = len(environment.blocks), []
    for words in (
        f"{benzene} {fluoro}@0.2:0 {cyano}@0.5:0",
        f"{cyano} {benzene}@0.0:4 {fluoro}@1.1:0",
        f"{fluoro} {benzene}@0.0:0 {cyano}@1.3:0",
    ):
        x = environment.parse([words])
        scores.append((environment.describe(x), environment.log_reward(x).item(), environment.smiles(x)))
    assert scores[0] == scores[1] == scores[2]
    assert nb > 3
    value = environment.scorer([EXAMPLES[1]])[0]
    assert value == pytest.approx(proxy.score([EXAMPLES[1]])[0] / 8, rel=1e-6)


def test_a_proxy_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    with pytest.raises(DataError, match="cannot read the proxy"):
        load_proxy(path)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match="damaged or no NPZ"):
        load_proxy(path)
    np.savez(path, **{"00_lin0.weight": np.zeros((64, 71))})
    with pytest.raises(DataError, match=r"has no array 'lin0\.bias'"):
        load_proxy(path)


def test_proxy_runs_without_weights_on_a_molecule_without_bonds() -> None:
    torch.manual_seed(0)
    assert Proxy(width=8).score([molecule("C"), molecule("CC")]).shape == (2,)
    with pytest.raises(DataError, match="up to barium"):
        atoms_of([molecule("[Pt]")])
