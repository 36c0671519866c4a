import headwater
import pytest
import torch
from headwater.errors import DataError
from headwater_flow_meta.convert import from_official
from headwater_flow_meta.networks import ICNN, VelocityField


def official(field, root="decoder", embedding=None):
    """The official keys of our weights."""
    layers = [field.first, *field.hidden, field.last]
    if field.skips:
        names = ["input_layer", *(f"hidden_layers.{i}" for i in range(len(field.hidden))), "output_layer"]
    else:
        names = [str(2 * i) for i in range(len(layers))]
    state = {
        f"model.{root}.{name}.{part}": getattr(layer, part).detach().clone()
        for name, layer in zip(names, layers, strict=True)
        for part in ("weight", "bias")
    }
    for i, layer in enumerate(embedding.layers if embedding is not None else ()):
        state[f"model.gcn_convs.{i}.lin.weight"] = layer.weight.detach().clone()
        state[f"model.gcn_convs.{i}.bias"] = layer.bias.detach().clone()
    return state


@pytest.fixture
def letters():
    from headwater_flow_meta.networks import PopulationEmbedding

    torch.manual_seed(0)
    return VelocityField(2, 8, 0, 12, 3), PopulationEmbedding(2, 0, 8, 2, 50)


@pytest.fixture
def checkpoint(letters, tmp_path):
    field, embedding = letters
    state = official(field, embedding=embedding)
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 1e-4}}, tmp_path / "last.ckpt")
    torch.save({"B": field.frequencies}, tmp_path / "b.pt")
    return tmp_path


TASK = {"letters": "S", "rotations": 1, "valid": "X", "test": "Y"}


def test_a_checkpoint_with_b_beside_it_becomes_a_run_with_the_same_predictions(letters, checkpoint):
    run = headwater.convert(
        "flow-meta", [checkpoint / "last.ckpt", checkpoint / "b.pt"], checkpoint / "run", overrides={"task": TASK}
    )
    assert run.config()["trainer"]["neighbours"] == 50
    model = headwater.load(run, device="cpu")
    field, embedding = letters
    t, x = torch.tensor(0.4), torch.randn(1, 9, 2)
    with torch.no_grad():
        expected = field(t, x, embedding(x))
        found = model.modules["field"](t, x, model.modules["embedding"](x))
    torch.testing.assert_close(found, expected)
    assert len(next(model.sample(1, overrides={"sampler": {"points": 20}}))[0].points) == 20


def test_without_b_it_is_refused_and_from_a_seed_it_is_warned_of(checkpoint, capsys):
    with pytest.raises(DataError, match="does not hold the Fourier matrix B"):
        headwater.convert("flow-meta", [checkpoint / "last.ckpt"], checkpoint / "run", overrides={"task": TASK})
    overrides = {"task": TASK, "official": {"seed": 3}}
    run = headwater.convert("flow-meta", [checkpoint / "last.ckpt"], checkpoint / "run", overrides=overrides)
    assert "compare a prediction before you trust it" in capsys.readouterr().err
    frequencies = headwater.load(run, device="cpu").modules["field"].frequencies
    torch.manual_seed(3)
    torch.testing.assert_close(frequencies, 0.01 * torch.randn(2, 128))


def test_baselines_are_told_apart(tmp_path):
    fm, cgfm = VelocityField(2, 0, 0, 12, 3, True), VelocityField(2, 0, 1, 12, 3)
    for name, field in (("fm", fm), ("cgfm", cgfm)):
        torch.save({"state_dict": official(field, "net")}, tmp_path / f"{name}.ckpt")
        torch.save(field.frequencies, tmp_path / f"{name}-b.pt")
        files = [tmp_path / f"{name}.ckpt", tmp_path / f"{name}-b.pt"]
        run = headwater.convert("flow-meta", files, tmp_path / name, overrides={"task": TASK})
        assert run.config()["trainer"]["model"] == name
        assert run.config()["trainer"]["skips"] == field.skips


def test_cellot_is_converted_as_its_own_stage(tmp_path):
    torch.manual_seed(0)
    nets = {"f": ICNN(2, (5, 4)), "g": ICNN(2, (5, 4))}
    state = {f"{name}.{k}": v for name, net in nets.items() for k, v in net.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "icnn.ckpt")
    run = headwater.convert(
        "flow-meta", [tmp_path / "icnn.ckpt"], tmp_path / "run", stage="icnn", overrides={"task": TASK}
    )
    x = torch.randn(7, 2)
    found = headwater.load(run, device="cpu").modules["g"].transport(x)
    torch.testing.assert_close(found.detach(), nets["g"].transport(x).detach())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("model.decoder.2.bias"), "lacks decoder.2.bias"),
        (lambda s: s.pop("model.decoder.2.weight"), "numbered"),
        (lambda s: s.update({"model.decoder.9.bias": torch.zeros(2)}), "belong to no known network: decoder.9.bias"),
        (lambda s: s.update({"model.decoder.2.weight": torch.zeros(3, 3)}), r"decoder\.2 has the shape \(3, 3\)"),
        (lambda s: s.update({"model.decoder.0.weight": torch.zeros(12, 300)}), "set official.time_features"),
        (lambda s: s.pop("model.gcn_convs.1.bias"), "lacks gcn_convs.1.bias"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused(letters, spoil, message):
    field, embedding = letters
    state = official(field, embedding=embedding)
    spoil(state)
    with pytest.raises(DataError, match=message):
        from_official(state, frequencies=field.frequencies)
    with pytest.raises(DataError, match="B has the shape"):
        from_official(official(field, embedding=embedding), frequencies=torch.zeros(3, 128))


def test_a_file_without_weights_is_refused(tmp_path):
    torch.save({"state_dict": {"something": torch.zeros(2)}}, tmp_path / "x.ckpt")
    with pytest.raises(DataError, match="holds no weights"):
        headwater.convert("flow-meta", [tmp_path / "x.ckpt"], tmp_path / "run")
