"""The metrics: parity with the published code's numbers, closed forms, and what happens on bad input."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from headwater import ConfigError
from headwater_bfn.pool import Failure
from headwater_bfn_crys.crystals import Crystals, cell_matrix, cell_parameters, wrap_unit
from headwater_bfn_crys.tasks import scoring
from headwater_bfn_crys.tasks.config import CrystalTaskConfig, PrototypesConfig
from headwater_bfn_crys.tasks.coverage import coverage
from headwater_bfn_crys.tasks.embedded import Prototypes, aflow_prototypes
from headwater_bfn_crys.tasks.matching import Matching, displacement, first_match
from headwater_bfn_crys.tasks.scoring import pairs, score
from headwater_bfn_crys.tasks.task import CrystalTask
from headwater_bfn_crys.tasks.validity import composition_is_valid, structural_validity

SHARED = next(
    (p / "shared/data/bfn-crys" for p in Path(__file__).resolve().parents if (p / "shared/data/bfn-crys").is_dir()),
    None,
)
needs_shared = pytest.mark.skipif(SHARED is None, reason="the reference data are not here")


def reference(name):
    return dict(np.load(SHARED / "parity" / f"{name}.npz"))


@needs_shared
def test_cells_equal_the_published_codes():
    z = reference("maths")
    np.testing.assert_allclose(cell_matrix(z["lengths"], z["angles"]), z["matrix"], atol=2e-6)
    lengths, angles = cell_parameters(z["matrix"])
    np.testing.assert_allclose(lengths, z["lengths_back"], atol=2e-6)
    np.testing.assert_allclose(angles, z["angles_back"], atol=1e-4)


@needs_shared
def test_validity_match_rate_and_rmse_equal_the_published_codes():
    z = reference("metrics")
    truth, guess = (
        Crystals(
            z["Z"],
            wrap_unit(z[f"{which}_frac"]),
            z[f"{which}_lattice"][:, :3],
            z[f"{which}_lattice"][:, 3:],
            z["natoms"],
        )
        for which in ("gt", "pred")
    )
    valid = structural_validity(guess)
    np.testing.assert_array_equal(valid, z["valid"])
    matching = Matching(guess, truth)
    found = [displacement(matching, (i, i)) if valid[i] else None for i in range(len(guess))]
    np.testing.assert_allclose([np.nan if v is None else v for v in found], z["rms"], atol=1e-7)
    names = [f"t{i}" for i in range(len(truth))]
    scores = score(guess.named(names), Fixed(truth.named(names)), ["match"])
    assert scores["match_rate"] == z["match_rate"]
    assert scores["rmse"] == pytest.approx(float(z["rmse"]), abs=1e-8)


@needs_shared
def test_coverage_equals_the_published_codes():
    z = reference("metrics")
    scaler = np.load(SHARED / "comp_scaler.npz")

    def prints(which):
        return z[f"cov/{which}_struct"], (z[f"cov/{which}_comp"] - scaler["means"]) / scaler["stds"]

    for name, value in coverage(prints("gen"), prints("gt"), (0.4, 10.0)).items():
        assert value == pytest.approx(float(z[f"cov/{name}"]), abs=1e-12), name


class Fixed(CrystalTask):
    """A task whose crystals are given."""

    def __init__(self, test, train=None, **config):
        super().__init__(CrystalTaskConfig(processes=1, **config))
        self.parts = (test[:0] if train is None else train, test[:0], test)


def brute_force_validity(crystal, reach=6):
    """Least distance between different atoms over many images, in a plain loop."""
    matrix, n = crystal.matrices[0], len(crystal.numbers)
    shifts = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3), -1).reshape(-1, 3)
    least = min(
        (
            np.linalg.norm((crystal.frac[i] - crystal.frac[j] + shifts) @ matrix, axis=1).min()
            for i in range(n)
            for j in range(i)
        ),
        default=np.inf,
    )
    return least >= 0.5 and abs(np.linalg.det(matrix)) >= 0.1


def test_structural_validity_is_that_of_a_plain_loop_in_skew_and_thin_cells_too():
    rng = np.random.default_rng(0)
    made = []
    for i in range(120):
        n = int(rng.integers(1, 6))
        matrix = np.diag(rng.uniform(0.7, 4.0, 3))
        if i % 2:  # the same lattice in a far from reduced cell
            matrix = np.array([[1, 0, 0], [2, 1, 0], [1, -2, 1]]) @ matrix
        lengths, angles = cell_parameters(matrix)
        made.append(Crystals.of(np.full(n, 6), rng.random((n, 3)), lengths, angles))
    expected = [brute_force_validity(crystal) for crystal in made]
    assert 20 < sum(expected) < 100
    np.testing.assert_array_equal(structural_validity(Crystals.concatenate(made)), expected)


def test_cells_that_are_none_are_invalid_and_one_atom_is_enough():
    one, far = [[0.0, 0, 0]], [[0.0, 0, 0], [0.5, 0.5, 0.5]]
    cases = [
        (Crystals.of([6], one, [2, 2, 2], [90, 90, 90]), True),
        (Crystals.of([6, 6], far, [2, 2, 0], [90, 90, 90]), False),
        (Crystals.of([6, 6], far, [2, 2, 2], [30, 30, 120]), False),
        (Crystals.of([6, 6], far, [np.nan, 2, 2], [90, 90, 90]), False),
        (Crystals.of([6, 6], [[np.nan, 0, 0], [0.5, 0, 0]], [2, 2, 2], [90, 90, 90]), False),
        (Crystals.of([6, 6], far, [1e4, 1e4, 1e-6], [90, 90, 90]), False),
        (Crystals.of([6, 6], [[0, 0, 0], [0.999, 0, 0]], [5, 5, 5], [90, 90, 90]), False),
    ]
    found = structural_validity(Crystals.concatenate([crystal for crystal, _ in cases]))
    assert found.tolist() == [expected for _, expected in cases]


@pytest.mark.parametrize(
    ("composition", "valid"),
    [
        (((11, 1), (17, 1)), True),  # NaCl
        (((11, 1), (17, 2)), False),  # NaCl2
        (((14, 3),), True),  # an element
        (((26, 1), (29, 2)), True),  # an alloy
        (((8, 3), (22, 1), (38, 1)), True),  # SrTiO3
        (tuple((z, 1) for z in (3, 8, 9, 11, 12, 13, 14, 17, 19)), False),  # more than eight elements
    ],
)
def test_compositional_validity(composition, valid):
    pytest.importorskip("smact")
    assert composition_is_valid(("smact14", 8), composition) is valid


def test_coverage_of_points_on_a_line():
    def at(*xs):
        prints = np.full((len(xs), 1), 0.0)
        prints[:, 0] = xs
        return prints, prints.copy()

    scores = coverage(at(0.0, 1.0, 10.0, np.nan), at(0.1, 5.0), (0.2, 0.2))
    assert scores["cov_recall"] == 0.5
    assert scores["cov_precision"] == 0.25  # one of four, the one without fingerprint included
    assert scores["amsd_recall"] == pytest.approx((0.1 + 4.0) / 2)
    assert scores["amcd_precision"] == pytest.approx((0.1 + 0.9 + 5.0) / 3)
    assert coverage(at(np.nan), at(1.0), (1, 1)) == {"cov_recall": 0.0, "cov_precision": 0.0}


def test_samples_are_paired_by_name_or_by_order():
    test = aflow_prototypes()[:4]
    assert pairs(test[[2, 0, 2]], test, "ids").tolist() == [2, 0, 2]
    assert pairs(test.named(["a", "b", "c", "d"]), test, "ids") is None
    assert pairs(test.named(()), test, "ids") is None
    assert pairs(test[[0, 1]].named([test.ids[1], test.ids[0]]), test, "ids") is None  # other atoms
    assert pairs(Crystals.concatenate([test, test]).named(()), test, "order").tolist() == [0, 1, 2, 3] * 2
    assert pairs(test, test, "none") is None
    with pytest.raises(ConfigError, match="sample 0 is"):
        pairs(test[[1, 0]], test, "order")


def shaken(crystals, size, seed=0):
    noise = np.random.default_rng(seed).standard_normal(crystals.frac.shape)
    return Crystals(
        crystals.numbers, wrap_unit(crystals.frac + size * noise), crystals.lengths, crystals.angles,
        crystals.num_atoms, crystals.ids,
    )  # fmt: skip


def test_the_best_of_several_predictions_counts_and_what_is_invalid_matches_nothing():
    test = aflow_prototypes()[[0, 1, 11]]
    good, close = shaken(test, 1e-3), shaken(test, 3e-3)
    bad = Crystals(test.numbers, np.zeros_like(test.frac), test.lengths, test.angles, test.num_atoms, test.ids)
    alone = score(close, Fixed(test), ["match"])
    best = score(Crystals.concatenate([close, bad, good]), Fixed(test), ["match"])
    assert alone["match_rate"] == best["match_rate"] == 1.0
    assert 0 < best["rmse"] < alone["rmse"]
    none = score(bad, Fixed(test), ["match", "metre"])
    assert none == {"match_rate": 0.0, "metre": 0.0, "crmse": 0.5, "timed_out": 0.0}


def polymorphs():
    """Two crystals of one composition: rock salt and caesium chloride."""
    cubic = [90.0] * 3
    a = Crystals.of([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [3.4] * 3, cubic, "cesium-chloride")
    b = Crystals.of([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [4.0] * 3, [60.0] * 3, "rock-salt")
    return Crystals.concatenate([a, b])


def test_metre_finds_a_polymorph_that_the_paired_match_rate_misses():
    test = polymorphs()
    swapped = test[[1, 0]].named(test.ids)
    scores = score(swapped, Fixed(test), ["match", "metre"])
    assert scores["match_rate"] == 0.0
    assert "rmse" not in scores
    assert scores["metre"] == 1.0
    assert scores["crmse"] == pytest.approx(0.0, abs=1e-6)
    one = score(test[[0, 0]].named(test.ids), Fixed(test), ["metre"])
    assert one["metre"] == 0.5
    assert one["crmse"] == pytest.approx(0.25, abs=1e-6)  # one at 0, one at the tolerance 0.5


def test_uniqueness_and_novelty_count_matches_whatever_the_cell():
    salt = polymorphs()
    supercell = salt.structures()[0]
    supercell.make_supercell([2, 1, 1])
    samples = Crystals.concatenate([salt.named(()), Crystals.from_structures([supercell]), salt[:1].named(())])
    scores = score(samples, Fixed(salt, train=salt[1:]), ["unique", "novel"])
    assert scores["unique"] == 0.5  # two kinds among four
    assert scores["novel"] == 0.75  # all but the rock salt
    assert scores["valid_unique_novel"] == 0.25
    matching = Matching(samples, salt)
    assert first_match(matching, (2, (1, 0))) == 0
    assert first_match(matching, (2, (1,))) is None


def test_wasserstein_distances_are_those_of_shifted_laws():
    test = aflow_prototypes()[:30]
    scaled = Crystals(
        test.numbers, test.frac, test.lengths * 2 ** (1 / 3), test.angles, test.num_atoms, test.ids
    )  # fmt: skip
    found = scoring._distances(scaled, test)
    assert found["wdist_volume"] == pytest.approx(test.volumes.mean())
    assert found["wdist_density"] == pytest.approx(scoring.densities(test).mean() / 2)
    assert found["wdist_elements"] == 0.0
    assert scoring._distances(test[:0], test) == {}


def test_a_structure_that_takes_too_long_is_counted_and_named_and_the_rest_is_scored(monkeypatch, capsys):
    class Slow:
        def __init__(self, *options):
            pass

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *exception: None  # noqa: E731

        def each(self, function, items, shared, label, unit):
            return [
                Failure("took more than 1 s", stuck=True) if i == 0 else function(shared, item)
                for i, item in enumerate(items)
            ]

    monkeypatch.setattr(scoring, "Pool", Slow)
    test = polymorphs()
    scores = score(test, Fixed(test), ["match"])
    assert scores["timed_out"] == 1.0
    assert scores["match_rate"] == 0.5
    assert "match: 1 of 2 gave no result (took more than 1 s): cesium-chloride" in capsys.readouterr().err


@pytest.mark.parametrize(("group", "package"), [("validity", "smact"), ("coverage", "matminer")])
def test_a_metric_without_its_package_is_left_out_with_one_line(monkeypatch, capsys, group, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(scoring, "find_spec", lambda name: None if name == package else found(name))
    assert score(polymorphs(), Fixed(polymorphs()), [group]) == {"timed_out": 0.0}
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{group} is left out: it needs {package} (pip install 'headwater-bfn-crys[metrics]')"]


def test_all_metrics_of_the_embedded_data_are_finite_and_perfect_copies_score_perfectly():
    pytest.importorskip("smact")
    pytest.importorskip("matminer")
    task = Prototypes(PrototypesConfig(max_atoms=3, processes=1))
    scores = task.metrics(task.test())
    assert all(np.isfinite(value) for value in scores.values())
    for name in ("match_rate", "metre", "valid_structure", "cov_recall", "cov_precision"):
        assert scores[name] == 1.0
    for name in ("rmse", "crmse", "amsd_recall", "amcd_precision"):
        assert scores[name] == pytest.approx(0.0, abs=1e-6)
    if scores["valid_composition"] == 1.0:
        assert scores["wdist_volume"] == 0.0
    assert scores["timed_out"] == 0.0
    assert task.metrics(task.test()[:0]) == {}


def test_fingerprints_of_one_site_of_each_kind_are_those_of_all_sites():
    matminer = pytest.importorskip("matminer.featurizers.site.fingerprint")
    from headwater_bfn_crys.tasks.coverage import structure_fingerprint

    crystals = aflow_prototypes()[[1, 5, 11]]
    every = matminer.CrystalNNFingerprint.from_preset("ops")
    for i, structure in enumerate(crystals.structures()):
        expected = np.mean([every.featurize(structure, k) for k in range(len(structure))], axis=0)
        np.testing.assert_allclose(structure_fingerprint(crystals, i), expected, atol=1e-6)


@needs_shared
def test_the_published_scaler_is_read_and_a_wrong_one_refused(tmp_path):
    means, stds = scoring.read_scaler(SHARED / "comp_scaler.npz")
    assert means.shape == stds.shape == (132,)
    np.savez(tmp_path / "small.npz", means=np.zeros(3), stds=np.ones(3))
    with pytest.raises(ConfigError, match=r"shape \(132,\)"):
        scoring.read_scaler(tmp_path / "small.npz")
    (tmp_path / "text.npz").write_text("x")
    with pytest.raises(ConfigError, match="cannot be read"):
        scoring.read_scaler(tmp_path / "text.npz")


def test_metrics_load_no_torch():
    import subprocess

    code = (
        "import sys, headwater_bfn_crys.tasks.scoring, headwater_bfn_crys.tasks.matching; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"  # the processes that score need none of it
