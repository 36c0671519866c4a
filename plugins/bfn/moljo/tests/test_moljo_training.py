"""Stages, labels, joined runs, conditions of the sampler, operations and converted checkpoints."""

import json

import numpy as np
import pytest
import torch
from headwater import ConfigError, DataError, UsageError, convert, load, train
from headwater.api import evaluate
from headwater.trainer import Place
from headwater_bfn_moljo import data, sampler
from headwater_bfn_moljo.config import BackboneConfig
from headwater_bfn_moljo.convert import from_official, read_official
from headwater_bfn_moljo.networks import Backbone, Predictor
from headwater_bfn_moljo.tasks.chemistry import TYPES
from headwater_bfn_moljo.tasks.config import ComplexTaskConfig, UserComplexesConfig
from headwater_bfn_moljo.tasks.poses import PoseWriter
from headwater_bfn_moljo.tasks.reading import read_ligand
from headwater_bfn_moljo.tasks.scoring import chemistry, reference_pose
from headwater_bfn_moljo.tasks.task import PoseBustersComplexes, UserComplexes
from headwater_bfn_moljo.trainer import BackboneTrainer

pytest.importorskip("openbabel", reason="Open Babel is not installed")

SMALL = {
    "task": {"vina": "off", "radius": 5.0},
    "trainer": {"width": 16, "layers": 2, "heads": 2, "knn": 6, "batch_size": 4},
    "sampler": {"block_size": 2, "steps": 5},
    "fit": {"max_steps": 2, "accelerator": "cpu"},
}


def settings(**changes):
    return {part: {**table, **changes.get(part, {})} for part, table in SMALL.items()}


@pytest.fixture(scope="module")
def task():
    return PoseBustersComplexes(ComplexTaskConfig(vina="off", radius=5.0))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "backbone"
    train("bfn-moljo", out, overrides=settings())
    return out


@pytest.fixture(scope="module")
def predictors(tmp_path_factory, backbone):
    out = tmp_path_factory.mktemp("runs") / "predictors"
    changes = settings(trainer={"properties": ["qed", "sa"]})
    train("bfn-moljo", out, stage="predictor", overrides=changes, from_runs=[backbone])
    return out


def heavy_atoms(mol):
    """A property of the user's own."""
    return mol.GetNumAtoms() / 100


def test_the_losses_fall(tmp_path):
    run = train("bfn-moljo", tmp_path / "run", overrides=settings(fit={"max_steps": 60, "log_every": 20}))
    lines = [line["loss_types"] for line in run.metrics() if "loss_types" in line]
    assert lines[-1] < lines[0]


def test_what_the_discrete_loss_draws_comes_from_its_batch_alone(task):
    config = BackboneConfig(**SMALL["trainer"], loss="discrete")
    facts = BackboneTrainer.facts(config, task)
    torch.manual_seed(0)
    trainer = BackboneTrainer(config, task, BackboneTrainer.build(config, task, facts), facts, place=Place())
    trainer.setup()
    found = []
    for start in (1, 2):
        torch.manual_seed(start)
        found.append((trainer.losses(trainer.draw(0, torch.Generator().manual_seed(3)), "train"), trainer.validate()))
    assert found[0] == found[1]


def test_labels(task):
    complexes = task.train()
    qed = data.labels(complexes, "qed", task)
    expected = [(chemistry(c.ligand)["qed"] - 0.01) / 0.94 for c in complexes]
    torch.testing.assert_close(qed, torch.tensor(expected, dtype=torch.float32))
    own = data.labels(complexes, f"{__name__}:heavy_atoms", task)
    assert own.tolist() == pytest.approx([c.ligand.GetNumAtoms() / 100 for c in complexes])
    with pytest.raises(ConfigError, match="cannot be imported"):
        data.labels(complexes, "no_such_module:f", task)
    with pytest.raises(DataError, match=r"must lie in 0\.\.1"):
        data.labels(complexes, "builtins:id", task)


def test_a_vina_label_of_the_data_is_taken(task):
    source = task.train()[0]
    source.labels["vina"] = -8.0
    try:
        assert data.labels([source], "vina", task).tolist() == [0.5]
    finally:
        del source.labels["vina"]


def test_positions_come_back_from_the_units_of_the_network(task):
    source = task.train()[0]
    found = data.item(source)
    again = found.x.double() * 2 + found.centre
    np.testing.assert_allclose(again.numpy(), source.positions, atol=1e-4)
    torch.testing.assert_close(found.protein_pos.mean(0), torch.zeros(3), rtol=0, atol=1e-4)


def test_predictors_build_on_a_backbone_and_guide(backbone, predictors, tmp_path):
    with pytest.raises(UsageError, match="builds on 'train'"):
        train("bfn-moljo", tmp_path / "x", stage="predictor", overrides=settings())
    model = load(predictors)
    guided = model.sampler()
    assert guided.guides == {"predictor_qed": 1.0, "predictor_sa": 1.0}

    def positions(**config):
        (block,) = model.sampler(overrides={"sampler": config}).sample(2, seed=1)
        return np.concatenate([pose.positions for pose in block])

    free = positions(guides={})
    assert not np.array_equal(free, positions(coordinate_scale=100.0))
    np.testing.assert_array_equal(free, positions(coordinate_scale=0.0, type_scale=0.0))
    with pytest.raises(UsageError, match="names 'vina', of which the run has no predictor; it has qed, sa"):
        model.sampler(overrides={"sampler": {"guides": {"vina": 1.0}}})
    (alone,) = load(backbone).sampler().sample(2, seed=1)
    np.testing.assert_array_equal(free, np.concatenate([pose.positions for pose in alone]))


def test_runs_are_joined_by_repeated_from(backbone, predictors, tmp_path):
    """Predictors that were trained apart come together in a run of the first stage that makes no step."""
    other = tmp_path / "own"
    changes = settings(trainer={"properties": ["lipinski"]})
    train("bfn-moljo", other, stage="predictor", overrides=changes, from_runs=[backbone])
    out = tmp_path / "joined"
    train("bfn-moljo", out, overrides=settings(fit={"max_steps": 0}), from_runs=[backbone, predictors, other])
    assert set(load(out).sampler().guides) == {"predictor_qed", "predictor_sa", "predictor_lipinski"}
    assert len(list(load(out).sample(2))) == 1


@pytest.mark.parametrize(
    "config",
    [
        {"compat": "official"},
        {"compat": "official", "strategy": "window", "window": 2},
        {"compat": "official", "strategy": "vanilla"},
        {"window": 2},
        {"types": "sample"},
    ],
)
def test_samplers(predictors, config):
    (block,) = load(predictors).sampler(overrides={"sampler": config}).sample(2)
    assert len(block) == 2
    assert all(np.isfinite(pose.positions).all() for pose in block)


def test_kept_atoms_stay_where_they_are(predictors):
    model = load(predictors)
    source = model.task.targets()[2]
    for keep, grow in (("scaffold", 0), ("side-groups", 2), ((0, 3, 5), 0), ("all", 3)):
        mask = sampler.kept_atoms(source, keep)
        (block,) = model.sample(2, condition={"target": source.name, "keep": keep, "grow": grow})
        for pose in block:
            kept = int(mask.sum())
            assert pose.target == source.name
            assert pose.mol.GetNumAtoms() == max(len(mask) + grow, kept + 1)
            np.testing.assert_allclose(pose.positions[:kept], source.positions[mask], atol=1e-3)
            numbers = [atom.GetAtomicNum() for atom in pose.mol.GetAtoms()][:kept]
            assert numbers == [TYPES[k][0] for k in source.types[mask]]
    with pytest.raises(UsageError, match="atom 99"):
        sampler.kept_atoms(source, (99,))


def test_conditions_that_make_no_sense(predictors):
    model = load(predictors)
    for condition, said in (
        ({"keep": "all"}, "say how many atoms to grow"),
        ({"pocket": "p.pdb"}, "given together"),
        ({"target": "none"}, "has no complex 'none'"),
    ):
        with pytest.raises(UsageError, match=said):
            list(model.sample(1, condition=condition))
    with pytest.raises(UsageError, match="cannot keep atoms"):
        list(model.sampler(overrides={"sampler": {"compat": "official"}}).sample(
            1, condition=sampler.MoleculeCondition(target=model.task.targets()[0].name, keep="scaffold")
        ))  # fmt: skip


def test_sizes(predictors, task, tmp_path):
    model = load(predictors)
    source = model.task.targets()[0]
    assert all(
        p.mol.GetNumAtoms() == 9 for p in next(iter(model.sampler(overrides={"sampler": {"size": 9}}).sample(2)))
    )
    table = tmp_path / "prior.json"
    table.write_text(
        json.dumps({"bounds": [1.0], "bins": [{"n_atoms": [3], "p": [1.0]}, {"n_atoms": [6], "p": [1.0]}]})
    )
    config = {"size": "prior", "size_prior": str(table)}
    assert all(p.mol.GetNumAtoms() == 6 for p in next(iter(model.sampler(overrides={"sampler": config}).sample(2))))
    distances = np.linalg.norm(source.pocket.positions[:, None] - source.pocket.positions[None], axis=-1)
    largest = np.sort(distances[np.triu_indices(len(distances), 1)])[-10:]
    assert sampler.pocket_size(source.pocket.positions) == pytest.approx(np.median(largest))
    assert [sampler.size_bin(s, [1.0, 2.0]) for s in (0.5, 1.0, 2.5)] == [0, 1, 2]
    table.write_text("{}")
    with pytest.raises(DataError, match="no table of sizes"):
        list(model.sampler(overrides={"sampler": config}).sample(1))
    with pytest.raises(ConfigError, match="needs size_prior"):
        model.sampler(overrides={"sampler": {"size": "prior"}})


def files(tmp_path, source):
    protein, ligand = tmp_path / "p.pdb", tmp_path / "l.sdf"
    protein.write_text(source.receptor)
    PoseWriter().write([reference_pose(source.name, source.ligand)], ligand)
    return protein, ligand


def test_a_pocket_and_a_ligand_of_the_users_own(predictors, task, tmp_path):
    protein, ligand = files(tmp_path, task.train()[1])
    (block,) = load(predictors).sample(2, condition={"pocket": str(protein), "ligand": str(ligand)})
    assert [pose.target for pose in block] == ["l", "l"]
    assert block[0].mol.GetNumAtoms() == read_ligand(ligand).GetNumAtoms()


def test_evaluate_without_a_run(task, tmp_path):
    protein, ligand = files(tmp_path, task.train()[1])
    overrides = {"task": {"pocket": str(protein), "vina": "off"}}
    found = evaluate(task="sbmo", samples=ligand, overrides=overrides)
    assert found["valid"] == found["complete"] == 1.0
    own = UserComplexes(UserComplexesConfig(pocket=protein))
    assert own.receptors().keys() == {""}
    with pytest.raises(UsageError, match="no complex to train on"):
        own.train()


def test_operations(predictors, task, tmp_path):
    for package in ("vina", "meeko", "gemmi"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    source = next(c for c in task.targets() if c.name == "1uou")
    given, out = tmp_path / "in.sdf", tmp_path / "out.sdf"
    PoseWriter().write([reference_pose(source.name, source.ligand)] * 2, given)
    overrides = {"operation": {"cache": str(tmp_path / "cache"), "processes": 1}}
    load(predictors).apply("score", given, out, overrides=overrides)
    found = PoseWriter().read(out)
    assert len(found) == 2
    assert -12 < float(found[0].properties["vina_score"]) < -3
    assert found[0].properties == found[1].properties
    # Molecules that name no target, in a protein that the run does not know.
    protein, ligand = files(tmp_path, source)
    bare = [reference_pose("", source.ligand)]
    PoseWriter().write(bare, ligand)
    with pytest.raises(UsageError, match=r"operation\.pocket=P\.pdb"):
        load(predictors).apply("minimize", ligand, tmp_path / "no.sdf", overrides=overrides)
    overrides["operation"]["pocket"] = str(protein)
    load(predictors).apply("minimize", ligand, tmp_path / "min.sdf", overrides=overrides)
    (moved,) = PoseWriter().read(tmp_path / "min.sdf")
    assert float(moved.properties["vina_minimize"]) <= float(moved.properties["vina_score"])


def official(network):
    """A network's weights under the official names, with what is ignored."""
    from headwater_bfn_moljo.networks import CENTRES

    names = {"x2h.key": "x2h_layers.0.hk_func.net", "x2h.value": "x2h_layers.0.hv_func.net",
             "x2h.query": "x2h_layers.0.hq_func.net", "h2x.key": "h2x_layers.0.xk_func.net",
             "h2x.value": "h2x_layers.0.xv_func.net", "h2x.query": "h2x_layers.0.xq_func.net"}  # fmt: skip
    head = "expert_pred" if isinstance(network, Predictor) else "v_inference"
    made = {"unio2net.distance_expansion.offset": torch.tensor(CENTRES), "unio2net.init_h_emb_layer.x": torch.ones(2)}
    for key, value in network.state_dict().items():
        name = key.replace("body.layers.", "unio2net.base_block.").replace("body.gate", "unio2net.edge_pred_layer.net")
        name = name.replace("body.protein_in", "protein_atom_emb").replace("body.ligand_in", "ligand_atom_emb")
        name = name.replace("first.", f"{head}.0.").replace("second.", f"{head}.2.")
        for ours, theirs in names.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        made[name] = value
    return made


def checkpoint(path, network, knn=7):
    state = {f"dynamics.{k}": v for k, v in official(network).items()}
    content = {
        "state_dict": {k: v + 1 for k, v in state.items()},
        "ema_state_dict": state,
        "hyper_parameters": {"config": {"dynamics": {"sigma1_coord": 0.04, "beta1": 1.2, "net_config": {"knn": knn}}}},
    }
    torch.save(content, path)
    return path


def test_checkpoints_become_runs_that_join(tmp_path):
    torch.manual_seed(0)
    backbone, predictor = Backbone(13, 16, 2, 2), Predictor(13, 16, 2, 2)
    whole = convert("bfn-moljo", [checkpoint(tmp_path / "b.ckpt", backbone)], tmp_path / "b", overrides={
        "task": SMALL["task"], "sampler": SMALL["sampler"]})  # fmt: skip
    config = whole.config()["trainer"]
    assert {k: config[k] for k in ("width", "layers", "heads", "knn", "sigma1", "beta1")} == {
        "width": 16, "layers": 2, "heads": 2, "knn": 7, "sigma1": 0.04, "beta1": 1.2}  # fmt: skip
    path = checkpoint(tmp_path / "p.ckpt", predictor)
    with pytest.raises(DataError, match=r"official\.property=vina"):
        convert("bfn-moljo", [path], tmp_path / "x", stage="predictor")
    convert("bfn-moljo", [path], tmp_path / "p", stage="predictor", overrides={"official": {"property": "vina"}})
    train("bfn-moljo", tmp_path / "j", config=tmp_path / "b/config.toml", overrides={"fit": {"max_steps": 0}},
          from_runs=[tmp_path / "b", tmp_path / "p"])  # fmt: skip
    made = load(tmp_path / "j").sampler()
    assert made.guides == {"predictor_vina": 1.0}
    for name, module in (("backbone", backbone), ("predictor_vina", predictor)):
        for key, value in module.state_dict().items():
            assert torch.equal(made.modules[name].state_dict()[key], value), key


def test_strange_checkpoints_are_refused(tmp_path):
    state = official(Backbone(13, 16, 2, 2))
    for change, said in (
        ({"other.weight": torch.ones(1)}, "other.weight does not belong"),
        ({"v_inference.0.weight": torch.ones(3, 3)}, "has the shape"),
        ({"unio2net.distance_expansion.offset": torch.zeros(20)}, "other centres"),
    ):
        with pytest.raises(DataError, match=said):
            from_official({**state, **change})
    del state["v_inference.0.bias"]
    with pytest.raises(DataError, match="too many or missing"):
        from_official(state)
    with pytest.raises(DataError, match="one by one"):
        read_official([tmp_path / "a", tmp_path / "b"])
    torch.save({"x": 1}, tmp_path / "none.pt")
    with pytest.raises(DataError, match="holds no weights"):
        read_official([tmp_path / "none.pt"])
