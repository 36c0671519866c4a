import copy

import headwater
import pytest
import torch
from headwater.config import validate
from headwater.errors import ConfigError, UsageError
from headwater_flow_meta.config import FlowConfig, ICNNConfig
from headwater_flow_meta.prediction import Predictor
from headwater_flow_meta.tasks.letters import Letters, LettersConfig
from headwater_flow_meta.tasks.populations import Data, Population, PopulationConfig, PopulationTask
from headwater_flow_meta.trainer import FlowTrainer, ICNNTrainer, draw_population

SMALL = {
    "hidden": 32, "layers": 2, "embedding_width": 8, "embedding_layers": 2, "neighbours": 4, "populations": 3,
    "points": 20, "learning_rate": 2e-3, "time_features": 8, "space_features": 8,
}  # fmt: skip


class Shifts(PopulationTask):
    """Clouds of many sizes that move by a shift of their treatment, with cell types."""

    standardise = True

    def load(self):
        splits = {"train": [], "valid": [], "test": []}
        for i in range(8):
            generator = torch.Generator().manual_seed(i)
            size = 6 + 7 * i
            source = torch.randn(size, 3, generator=generator) * 10 + 100
            target = torch.randn(size + 4, 3, generator=generator) * 10 + 100 + 20 * (i % 2)
            labels = torch.arange(size) % 2
            where = f"cloud {i}"
            population = Population(f"p{i}", source, target, labels, i % 2, group=str(i % 2), where=where)
            splits["test" if i > 5 else "train"].append(population)
        return Data(("a", "b", "c"), splits, ("rest", "drug"), ("T", "B"))


def trainer(task, kind=FlowTrainer, **settings):
    config = validate(FlowConfig, {**SMALL, **settings}, "trainer") if kind is FlowTrainer else ICNNConfig(**settings)
    torch.manual_seed(0)
    facts = kind.facts(config, task)
    made = kind(config, task, kind.build(config, task, facts), facts)
    made.setup()
    return made


def letters(**settings):
    return Letters(LettersConfig(letters="LT", rotations=2, valid="X", test="Y", **settings))


def batch(made, k=0):
    return made.draw(k, torch.Generator().manual_seed(k))


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


@pytest.mark.parametrize("model", ["mfm", "cgfm", "fm"])
def test_the_loss_falls(model):
    made = trainer(Shifts(PopulationConfig()), model=model)
    losses = [float(made.step(batch(made, k))["loss"]) for k in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_unequal_populations_weigh_by_their_points():
    made = trainer(Shifts(PopulationConfig()), points=40)
    drawn = batch(made, 3)
    assert drawn["mask"] is not None
    embedding = made.embed(drawn)
    whole = made.loss(drawn, embedding)
    alone, points = [], []
    for p in range(len(drawn["index"])):
        n = int(drawn["mask"][p].sum())
        part = {
            **drawn, "x0": drawn["x0"][p : p + 1, :n], "x1": drawn["x1"][p : p + 1, :n], "t": drawn["t"][p : p + 1, :n],
            "mask": None, "condition": drawn["condition"][p : p + 1],
        }  # fmt: skip
        alone.append(float(made.loss(part, embedding[p : p + 1]).detach()) * n)
        points.append(n)
    assert len(set(points)) > 1
    assert float(whole.detach()) == pytest.approx(sum(alone) / sum(points), rel=1e-5)


def test_the_networks_work_in_scaled_units():
    made = trainer(Shifts(PopulationConfig()))
    everything = torch.cat([p.source for p in made.populations] + [p.target for p in made.populations])
    torch.testing.assert_close(everything.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    assert float(everything.std(0).mean()) == pytest.approx(1.0, rel=1e-4)


def test_conditions_are_those_of_population_and_treatment():
    made, cgfm = (trainer(Shifts(PopulationConfig()), model=model) for model in ("mfm", "cgfm"))
    assert cgfm.conditions([2, 1]).tolist() == [[0, 0, 1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 1]]
    assert made.conditions([2, 1]).tolist() == [[1, 0], [0, 1]]


def test_the_alternate_schedule_trains_one_network_at_a_time_and_caches():
    made = trainer(letters(), schedule="alternate")
    field, embedding = weights(made.field), weights(made.embedding)
    even = batch(made, 0)
    made.step(even)
    assert torch.equal(weights(made.field), field)
    assert not torch.equal(weights(made.embedding), embedding)
    assert made.cache.known[even["index"]].all()
    kept = made.cache.values.clone()
    embedding = weights(made.embedding)
    made.step(batch(made, 1))
    assert torch.equal(weights(made.embedding), embedding)
    assert not torch.equal(weights(made.field), field)
    assert torch.equal(made.cache.values, kept)
    fresh = torch.full((2, 8), 7.0)
    made.cache.known[:] = torch.tensor([True, False, True, False])
    found = made.cache.get(torch.tensor([0, 1]), fresh)
    assert torch.equal(found[0], kept[0])
    assert torch.equal(found[1], fresh[1])


def test_a_joint_step_has_the_gradients_of_both_alternate_steps():
    joint, alternate = trainer(letters()), trainer(letters(), schedule="alternate")
    drawn = batch(joint, 0)
    grads = []
    for made in (joint, alternate):
        made.loss(drawn, made.embed(drawn)).backward()
        grads.append([p.grad for m in made.modules.values() for p in m.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_pairs_of_letters_are_a_point_and_its_own_blurred_copy():
    population = letters().populations("train")[0]
    rows, i, j = draw_population(population, 50, "auto", torch.Generator().manual_seed(0))
    assert torch.equal(i, j)
    assert torch.equal(rows, i)
    gap = population.source[i] - population.target[j]
    assert float(gap.std()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("coupling", ["independent", "ot", "ot-resample"])
def test_couplings_of_clouds_of_different_sizes(coupling):
    population = Shifts(PopulationConfig()).populations("train")[4]
    rows, i, j = draw_population(population, 30, coupling, torch.Generator().manual_seed(0))
    assert len(i) == len(j) == 30
    assert len(set(rows.tolist())) == 30  # what is embedded comes without repetition
    assert set(i.tolist()) <= set(rows.tolist())
    if coupling != "ot-resample":
        assert len(set(i.tolist())) == len(set(j.tolist())) == 30
    cost = (population.source[i] - population.target[j]).square().sum(1).mean()
    if coupling != "independent":
        _, a, b = draw_population(population, 30, "independent", torch.Generator().manual_seed(0))
        assert cost < (population.source[a] - population.target[b]).square().sum(1).mean()


def test_from_noise_the_source_is_embedded_and_not_moved():
    made = trainer(letters(), base="gaussian")
    drawn = batch(made)
    assert not torch.equal(drawn["x0"], drawn["source"])
    assert made.facts_found["base"] == "gaussian"
    with pytest.raises(UsageError, match="base is gaussian"):
        trainer(letters(), base="gaussian", coupling="ot")


def test_validation_is_by_the_averaged_weights_and_from_noise_where_training_is(monkeypatch):
    made = trainer(letters(), base="gaussian")
    given = []

    class Watched(Predictor):
        def __init__(self, modules, *args, **settings):
            given.append((modules, settings["base"]))
            super().__init__(modules, *args, **settings)

    monkeypatch.setattr("headwater_flow_meta.trainer.Predictor", Watched)
    made.averages = {"field": copy.deepcopy(made.field)}
    found = made.validate()
    assert set(found) == {"w1", "w2", "mmd"}
    ((modules, base),) = given
    assert base == "gaussian"
    assert modules["field"] is made.averages["field"]
    assert modules["embedding"] is made.embedding


def test_one_step_of_cellot_is_many_of_g_and_one_of_f_which_stays_convex():
    made = trainer(letters(), ICNNTrainer, widths=(8, 8), inner_steps=3, points=20, populations=2)
    drawn = batch(made)
    assert drawn["x0"].shape == (4, 40, 2)
    before = weights(made.f)
    found = made.step(drawn)
    assert set(found) == {"loss_f", "loss_g"}
    assert not torch.equal(weights(made.f), before)
    assert float(made.f.penalty().detach()) == 0
    assert made.optimisers["g"].state_dict()["state"][0]["step"] == 3


def test_an_embedding_cannot_alternate_with_none():
    with pytest.raises(ConfigError, match="fm has none"):
        validate(FlowConfig, {"model": "fm", "schedule": "alternate"}, "trainer")


def test_a_population_without_a_target_cannot_be_trained_on():
    class Half(Shifts):
        def load(self):
            data = super().load()
            data.splits["train"].append(Population("late", torch.zeros(4, 3), where="late.npz"))
            return data

    with pytest.raises(headwater.DataError, match=r"late\.npz has no points after"):
        trainer(Half(PopulationConfig()))


def test_a_population_not_seen_is_predicted_better_by_who_is_in_it():
    """Clouds spread by a factor that their own spread tells: what one vector field for all cannot do."""

    class Spreads(PopulationTask):
        def load(self):
            splits = {"train": [], "valid": [], "test": []}
            for i in range(24):
                wide = i % 2 == 0
                source = torch.randn(120, 2, generator=torch.Generator().manual_seed(i)) * (1.0 if wide else 0.6)
                target = source * (2.0 if wide else 0.3)
                splits["test" if i > 19 else "train"].append(Population(f"s{i}", source, target, paired=True))
            return Data(("x", "y"), splits)

    found = {}
    for model in ("mfm", "fm"):
        made = trainer(Spreads(PopulationConfig()), model=model, points=60, populations=6, learning_rate=5e-3)
        for k in range(250):
            made.step(batch(made, k))
        predictor = Predictor(made.modules, made.facts_found, made.place.device, method="midpoint", steps=10)
        clouds = [predictor(p, None, torch.Generator().manual_seed(0)) for p in made.task.populations("test")]
        found[model] = made.task.metrics(clouds)["w2"]
    assert found["mfm"] < 0.6 * found["fm"]
