"""Facts, batches, training on a task, and samples under all settings."""

import numpy as np
import pytest
import torch
from headwater import ConfigError, DataError, UsageError, load, train
from headwater.resolve import plan
from headwater.trainer import Place
from headwater_bfn import vonmises
from headwater_bfn.schedule import von_mises_schedule
from headwater_bfn_crys.config import CrysConfig
from headwater_bfn_crys.crystals import Crystals
from headwater_bfn_crys.flow import Inputs, Scale, accuracies, angles_of, batches, estimate, frac_of
from headwater_bfn_crys.layout import Layout
from headwater_bfn_crys.objective import lattice_loss
from headwater_bfn_crys.presets import ATOM_COUNTS, ELEMENTS, LATTICE_STD, PRESETS
from headwater_bfn_crys.trainer import CrysTrainer, Data

TINY = {"width": 16, "layers": 2, "frequencies": 4, "time_width": 16, "batch_size": 8, "steps": 4}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def trainer(**changes):
    made = plan("bfn-crys", overrides={"trainer": {**TINY, "decay_steps": 10, **changes}})
    config = made.config["trainer"]
    facts = CrysTrainer.facts(config, made.task)
    found = CrysTrainer(config, made.task, CrysTrainer.build(config, made.task, facts), facts, None, Place())
    found.setup()
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("crys") / "gen"
    return train("bfn-crys", out, overrides={"trainer": TINY, "fit": {"max_steps": 3, "log_every": 1, "threads": 1}})


@pytest.fixture(scope="module")
def csp(tmp_path_factory):
    out = tmp_path_factory.mktemp("crys") / "csp"
    tables = {"trainer": {**TINY, "target": "csp"}, "fit": {"max_steps": 3, "threads": 1}}
    return train("bfn-crys", out, overrides=tables)


class TestFacts:
    def test_they_describe_the_training_set(self):
        made = trainer()
        crystals, facts = made.task.train(), made.facts_found
        matrices = crystals.matrices
        for p, q in np.ndindex(3, 3):
            entry = [float(cell[p, q]) for cell in matrices]
            mean = sum(entry) / len(entry)
            assert float(facts["lattice_mean"][p, q]) == pytest.approx(mean, abs=1e-12)
            deviation = (sum((x - mean) ** 2 for x in entry) / len(entry)) ** 0.5
            assert float(facts["lattice_std"][p, q]) == pytest.approx(deviation, abs=1e-12)
        scalar = trainer(standardise="scalar").facts_found
        assert scalar["lattice_std"] == pytest.approx(float(np.std(matrices)))
        assert "lattice_mean" not in scalar
        assert int(facts["atom_counts"].sum()) == len(crystals)
        assert int(facts["atom_counts"][1]) == int((crystals.num_atoms == 2).sum())
        assert set(crystals.numbers) <= set(facts["elements"].tolist())
        torch.testing.assert_close(facts["alpha"], von_mises_schedule(4)[0])

    def test_settings_need_no_data(self):
        class NoData:
            def __getattr__(self, name):
                raise AssertionError(f"the task was asked for {name}")

        config = CrysConfig(**{**TINY, **PRESETS["mp-20"]["trainer"], "steps": 10})
        facts = CrysTrainer.facts(config, NoData())
        assert len(facts["elements"]) == 89
        assert facts["atom_counts"].tolist() == ATOM_COUNTS["mp-20"]

    def test_presets_are_valid_and_have_the_published_sizes(self):
        assert {name: len(numbers) for name, numbers in ELEMENTS.items()} == {
            "mp-20": 89, "perov-5": 56, "carbon-24": 1, "mpts-52": 89,
        }  # fmt: skip
        steps = {"mp-20": 530_000, "perov-5": 240_000, "carbon-24": 120_000, "mpts-52": 2_140_000}
        for name in PRESETS:
            made = plan("bfn-crys", preset=name).config
            config = made["trainer"]
            assert (made["fit"].max_steps, config.decay_steps) == (steps[name], steps[name])
            assert (config.width, config.layers, config.frequencies) == (512, 6, 128)
            assert (config.standardise, config.lattice_std) == ("scalar", LATTICE_STD[name])

    def test_a_schedule_of_the_user(self, tmp_path):
        path = tmp_path / "alpha.npz"
        np.savez(path, **{"s3_1000.0": np.array([1.0, 2.0, 3.0]), "s2_1000.0": np.array([1.0, -2.0])})
        assert accuracies(3, 1000, path).tolist() == [1, 2, 3]
        with pytest.raises(DataError, match=r"has no s5_1000\.0.*s2_1000\.0, s3_1000\.0"):
            accuracies(5, 1000, path)
        with pytest.raises(DataError, match="must be 2 positive numbers"):
            accuracies(2, 1000, path)
        with pytest.raises(DataError, match="cannot read"):
            accuracies(3, 1000, tmp_path / "none.npz")

    @pytest.mark.parametrize(
        ("setting", "words"),
        [({"lattice_std": 2.0}, "needs standardise=scalar"),
         ({"elements": [6, 6]}, "different"), ({"atom_counts": [0, 0]}, "not all of them 0"), ({"steps": 0}, "steps")],
    )  # fmt: skip
    def test_bad_settings_are_named(self, setting, words):
        with pytest.raises(ConfigError, match=words):
            plan("bfn-crys", overrides={"trainer": setting})


class TestScale:
    def cells(self):
        g = np.random.default_rng(0)
        made = np.array([4.0, 0, 0.5, -1, 5, 0, 0, 0, 6]).reshape(3, 3) + g.standard_normal((50, 3, 3))
        made[:, [0, 2, 2], [1, 0, 1]] = 0
        return made

    @pytest.mark.parametrize("standardise", ["entries", "scalar"])
    def test_there_and_back(self, standardise):
        cells = self.cells()
        scale = Scale.measured(cells) if standardise == "entries" else Scale.of({"lattice_std": 2.5})
        inside = scale.standardised(torch.from_numpy(cells))
        np.testing.assert_allclose(scale.cells(inside).numpy(), cells, atol=1e-13, rtol=0)
        if standardise == "scalar":
            np.testing.assert_allclose(inside.numpy(), cells / 2.5, atol=1e-15, rtol=0)

    def test_entries_have_mean_0_and_deviation_1_and_those_that_are_always_0_stay_0(self):
        cells = self.cells()
        scale = Scale.measured(cells)
        inside = scale.standardised(torch.from_numpy(cells)).numpy()
        np.testing.assert_allclose(inside.mean(0), 0, atol=1e-12)
        expected = np.ones((3, 3))
        expected[[0, 2, 2], [1, 0, 1]] = 0
        np.testing.assert_allclose(inside.std(0), expected, atol=1e-12)
        made = scale.cells(torch.randn(4, 3, 3, dtype=torch.float64))
        assert float(made[:, [0, 2, 2], [1, 0, 1]].abs().max()) == 0
        assert scale.unit() == pytest.approx(float(np.sqrt((cells**2).mean())))

    def test_an_untrained_network_says_the_mean_cell(self):
        """At the first message for every crystal, and on average over beliefs later on."""
        made = trainer(batch_size=4096, flow="exact")
        batch = made.draw(0, generator())
        layout = Layout(batch.num_atoms)
        first = torch.ones_like(batch.i)
        start = Inputs(batch.inputs.types, batch.angles, torch.zeros_like(batch.lattice), batch.inputs.log_accuracy)
        with torch.no_grad():
            found = estimate(made.config, made.network, first, start, layout, made.scale)[0]
            later = estimate(made.config, made.network, batch.i, batch.inputs, layout, made.scale)[0]
        mean = torch.from_numpy(made.task.train().matrices.mean(0)).float()
        torch.testing.assert_close(made.scale.cells(found), mean.expand(len(found), 3, 3), atol=1e-5, rtol=0)
        assert float((made.scale.cells(later).mean(0) - mean).abs().max()) < 5 * float(made.scale.std.max()) / 64

    @pytest.mark.parametrize("coordinates", ["torus", "interval"])
    def test_an_untrained_network_leaves_coordinates_at_the_belief(self, coordinates):
        made = trainer(coordinates=coordinates)
        batch = made.draw(0, generator())
        with torch.no_grad():
            found = estimate(made.config, made.network, batch.i, batch.inputs, Layout(batch.num_atoms), made.scale)[1]
        assert float(vonmises.wrap(found - batch.inputs.angles).abs().max()) < 1e-5

    def test_the_correction_weighs_the_same_in_the_loss_of_every_message(self):
        """n alpha_i sigma1^(2 t) / 2 with t = (i - 1)/n is n (sigma1^(-2/n) - 1) / 2."""
        n, sigma1 = 7, 0.05
        i = torch.arange(1, n + 1)
        left = (sigma1 ** ((i - 1) / n)).view(-1, 1, 1).double()
        for k in range(n):
            found = lattice_loss(torch.zeros(1, 3, 3), left[k].expand(1, 3, 3), i[k : k + 1], n, sigma1)
            assert float(found) == pytest.approx(n * (sigma1 ** (-2 / n) - 1) / 2, rel=1e-5)

    def test_the_estimate_is_the_belief_corrected(self):
        """Against a network that gives a set correction: Lhat = mu + sigma1^t r, and it reads the cell in its unit."""
        made = trainer()
        batch = made.draw(0, generator())
        read, r = [], torch.randn(len(batch.num_atoms), 3, 3, generator=generator())

        class Network(torch.nn.Module):
            def forward(self, i, types, angles, lattice, log_accuracy, layout):
                read.append(lattice)
                return r, torch.zeros_like(angles), torch.zeros(len(angles), 1)

        found = estimate(made.config, Network(), batch.i, batch.inputs, Layout(batch.num_atoms), made.scale)[0]
        scale = made.scale
        for b in range(len(r)):
            left = made.config.sigma1_lattice ** ((int(batch.i[b]) - 1) / made.config.steps)
            for p, q in np.ndindex(3, 3):
                mu, mean, std = float(batch.inputs.lattice[b, p, q]), float(scale.mean[p, q]), float(scale.std[p, q])
                expected = mu + left * float(r[b, p, q]) if std > 0 else 0.0
                assert float(found[b, p, q]) == pytest.approx(expected, abs=1e-5)
                assert float(read[0][b, p, q]) == pytest.approx((mean + std * mu) / scale.unit(), abs=1e-5)


class TestBatches:
    def test_an_unknown_element_names_the_crystal(self):
        salt = Crystals.of([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [3, 3, 3], [90, 90, 90], "salt")
        with pytest.raises(DataError, match="salt has the element of atomic number 17"):
            Data(salt, torch.tensor([11]), Scale.of({"lattice_std": 1.0}))

    def test_atoms_stay_with_their_crystals(self):
        made = trainer(translate=False)
        crystals = made.task.train()
        chosen = torch.tensor([5, 2, 9, 2])
        types, angles, lattice, sizes = made.data.pick(chosen)
        order = chosen[made.data.num_atoms[chosen].argsort(stable=True)].tolist()
        expected = crystals[order]
        assert list(sizes) == expected.num_atoms.tolist()
        assert made.facts_found["elements"][types].tolist() == expected.numbers.tolist()
        apart = vonmises.wrap(angles.double() - angles_of(torch.from_numpy(expected.frac)))
        assert float(apart.abs().max()) < 1e-5
        torch.testing.assert_close(
            made.scale.cells(lattice.double()), torch.from_numpy(expected.matrices), atol=1e-5, rtol=0
        )

    def test_a_batch_depends_on_its_key_alone(self):
        made = trainer()
        first, _, again = made.draw(0, generator(3)), made.draw(600, generator(4)), made.draw(0, generator(3))
        assert all(torch.equal(a, b) for a, b in zip(first.inputs, again.inputs, strict=True))

    def test_banks_change_from_time_to_time(self):
        made = trainer()
        assert made.source(0) is made.source(499)
        assert not torch.equal(made.source(0).deviation, made.source(500).deviation)

    @pytest.mark.parametrize(
        "changes",
        [{"flow": "exact"}, {"coordinates": "interval"}, {"conditioning": "time"}, {"target": "csp"},
         {"standardise": "scalar"}, {"coordinate_loss": "cosine", "normalise_weights": True}],
    )  # fmt: skip
    def test_every_variant_learns(self, changes):
        """The loss on one batch falls by half in 120 steps."""
        made = trainer(learning_rate=3e-3, decay_steps=None, **changes)
        batch = made.draw(0, generator())
        losses = [float(made.step(batch)["loss"]) for _ in range(120)]
        assert losses[-1] < 0.5 * losses[0]

    def test_the_bank_and_the_exact_flow_give_losses_of_one_law(self):
        bank, exact = trainer(batch_size=64), trainer(batch_size=64, flow="exact")
        exact.network.load_state_dict(bank.network.state_dict())
        with torch.no_grad():
            found = [
                [float(made.losses(made.draw(0, generator(k)))["coordinates"]) for k in range(40)]
                for made in (bank, exact)
            ]
        a, b = np.array(found)
        assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std(), b.std()) / 40**0.5

    def test_the_network_is_told_the_accuracy_or_not(self):
        told, not_told = trainer().draw(0, generator()).inputs, trainer(conditioning="time").draw(0, generator()).inputs
        assert float(told.log_accuracy.max()) > 0.5
        assert float(not_told.log_accuracy.abs().max()) == 0

    def test_angles_and_fractions_are_inverse_and_within_the_cell(self):
        frac = torch.tensor([-1e-18, 0.0, 0.3, 0.999, 1.0, 1.2], dtype=torch.float64)
        again = frac_of(angles_of(frac))
        torch.testing.assert_close(
            again, torch.tensor([0, 0, 0.3, 0.999, 0, 0.2], dtype=torch.float64), atol=1e-12, rtol=0
        )
        assert float(again.max()) < 1

    def test_calls_hold_at_most_so_many_pairs(self):
        sizes = [2, 2, 3, 9, 9, 20]
        runs = batches(sizes, 50)
        assert [k for first, last in runs for k in range(first, last)] == list(range(6))
        assert all(sum(n * n for n in sizes[a:b]) <= 50 or b - a == 1 for a, b in runs)


class TestSamples:
    def one(self, run, n=8, seed=0, condition=None, **sampler):
        overrides = {"sampler": {"block_size": 8, **sampler}}
        return Crystals.concatenate(list(load(run.path).sample(n, seed=seed, condition=condition, overrides=overrides)))

    @pytest.mark.parametrize("method", ["end-back", "ancestral", "mix"])
    @pytest.mark.parametrize("target", ["gen", "csp"])
    def test_all_samplers_do_both_targets(self, run, csp, method, target):
        found = self.one(run if target == "gen" else csp, method=method)
        assert len(found) == 8
        assert np.isfinite(found.lengths).all()
        assert ((found.frac >= 0) & (found.frac < 1)).all()

    def test_sizes_follow_the_training_set_or_the_setting(self, run):
        counts = load(run.path).facts["atom_counts"]
        assert all(int(counts[n - 1]) > 0 for n in self.one(run).num_atoms)
        assert self.one(run, atoms=3).num_atoms.tolist() == [3] * 8

    @pytest.mark.parametrize("target", ["gen", "csp"])
    def test_a_formula_is_kept_by_both_targets(self, run, csp, target):
        found = self.one(run if target == "gen" else csp, condition={"formula": "SrTiO3"})
        assert set(found.formulas) == {"O3 Ti1 Sr1"}

    def test_strange_formulas_are_refused(self, run):
        with pytest.raises(UsageError, match="not trained on Og"):
            self.one(run, condition={"formula": "OgO2"})
        with pytest.raises(UsageError, match="no chemical formula"):
            self.one(run, condition={"formula": "Xx2"})

    def test_predictions_carry_the_names_and_the_contents_of_the_test_set(self, csp):
        test = load(csp.path).task.test()
        found = self.one(csp, n=len(test) + 2)
        assert found.ids[: len(test)] == tuple(test.ids)
        assert found.formulas[: len(test)] == test.formulas
        assert found.ids[len(test) :] == tuple(test.ids[:2])

    def test_compositions_from_a_file(self, csp, tmp_path):
        model = load(csp.path)
        model.task.write(model.task.train()[:3], tmp_path / "wanted.csv")
        found = self.one(csp, compositions=str(tmp_path / "wanted.csv"))
        assert found.formulas[:3] == model.task.train()[:3].formulas
        assert found.formulas[3] == found.formulas[0]

    def test_the_order_of_sizes_does_not_mix_crystals(self, csp):
        """The wanted compositions come in any order of sizes, and come out in that order."""
        test = load(csp.path).task.test()
        assert (np.diff(test.num_atoms) < 0).any()
        found = self.one(csp, n=len(test))
        assert found.num_atoms.tolist() == test.num_atoms.tolist()

    def test_calls_of_few_pairs_give_the_same_crystals(self, run):
        whole, cut = self.one(run), self.one(run, pairs_at_once=20)
        assert np.array_equal(whole.numbers, cut.numbers)
        np.testing.assert_allclose(whole.lengths, cut.lengths, rtol=1e-3, atol=1e-4)

    def test_the_likeliest_types_are_taken_if_asked(self, run):
        a, b = self.one(run, types="argmax"), self.one(run, types="argmax")
        assert np.array_equal(a.numbers, b.numbers)


def test_one_atom_and_five_hundred_atoms():
    """One atom has no pair; the features of 500 atoms are 125,000 pairs."""
    from headwater_bfn_crys.sampler import draw_crystals

    config = CrysConfig(**{**TINY, "steps": 2})
    torch.manual_seed(0)
    made = trainer()
    angles = vonmises.Angles(von_mises_schedule(2)[0])
    with torch.no_grad():
        found = draw_crystals(
            config, made.network, angles, None, (1, 500), len(made.facts_found["elements"]), None, made.scale,
            generator(),
        )  # fmt: skip
    assert found["coordinates"].shape == (501, 3)
    assert torch.isfinite(found["coordinates"]).all()
    assert Layout([1, 500]).pairs == 500 * 499 // 2
