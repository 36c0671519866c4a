"""Official checkpoints from the outside: what is read, what is refused, and the run that comes out."""

import headwater
import pytest
import torch
from headwater import DataError, UsageError
from headwater_vision_lzn.convert import from_official, read_official, to_official
from headwater_vision_lzn.networks import Anchors, Decoder, Encoder, ResNet50

SIZES = {"size": 8, "channels": 1, "latent": 6, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}


def checkpoint(style="plain", classes=0):
    """A file's content: raw weights and, in the averages, the same plus one."""
    torch.manual_seed(0)
    modules = {
        "encoder": Encoder(**SIZES, style=style, narrow=2, units=5),
        "decoder": Decoder(classes=classes, **SIZES, style=style),
    }
    if classes:
        modules["label_anchor"] = Anchors(classes, 6)
    content = {"optimizer": {}, "iteration": 7}
    for name, module in modules.items():
        official = to_official(module)
        content[name] = {f"model.module.{k}": v for k, v in official.items()}
        content[f"{name}_ema"] = {
            "decay": 0.9, "num_updates": 3,
            "shadow_params": [v + 1 for k, v in official.items() if k != "all_modules.0.W"],
        }  # fmt: skip
    content["decoder"]["model.module.sigmas"] = torch.ones(1000, dtype=torch.float64)
    return content, modules


def save(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(("style", "classes"), [("plain", 3), ("fir", 0)])
def test_averages_are_taken_unless_the_last_weights_are_asked_for(tmp_path, style, classes):
    content, modules = checkpoint(style, classes)
    state, hyperparameters = read_official([save(content, tmp_path / "a.pt")])
    last = from_official(state, weights="last")
    average = from_official(state, **hyperparameters)
    for name, own in modules.items():
        name = {"label_anchor": "labels"}.get(name, name)
        for (key, a), b, c in zip(
            own.named_parameters(), last[name].parameters(), average[name].parameters(), strict=True
        ):
            assert torch.equal(a, b), key
            assert torch.equal(a + 1, c), key
    if style == "fir":
        assert torch.equal(average["decoder"].frequencies, modules["decoder"].frequencies)


def test_a_converted_run_samples_and_says_what_it_lacks(tmp_path):
    content, _ = checkpoint("plain", 3)
    run = headwater.convert("vision-lzn", [save(content, tmp_path / "a.pt")], tmp_path / "run")
    assert run.manifest.stage == "joint"
    model = headwater.load(run, device="cpu")
    images = next(iter(model.sample(2, condition={"label": "2"}, overrides={"sampler": {"block_size": 2, "steps": 2}})))
    assert images.images.shape == (2, 8, 8, 1)
    assert images.labels.tolist() == [2, 2]
    model.sample_to(tmp_path / "images", 3, overrides={"sampler": {"block_size": 2, "steps": 2}})
    with pytest.raises(UsageError, match=r"operation\.reference"):
        model.apply("encode", tmp_path / "images", tmp_path / "latents.npz")
    out = model.apply(
        "encode", tmp_path / "images", tmp_path / "latents.npz",
        overrides={"operation": {"reference": str(tmp_path / "images")}},
    )  # fmt: skip
    assert out.exists()


def test_a_resnet_becomes_a_run_of_represent(tmp_path):
    official = to_official(ResNet50(3, 64, layers=3))
    content = {"encoder": {f"model.module.{k}": v for k, v in official.items()}}
    run = headwater.convert("vision-lzn", [save(content, tmp_path / "a.pt")], tmp_path / "run")
    assert run.manifest.stage == "represent"
    with pytest.raises(UsageError, match="no decoder"):
        next(iter(headwater.load(run, device="cpu").sample(1)))


@pytest.mark.parametrize(
    ("averages", "change", "said"),
    [
        (False, lambda c: c.pop("encoder"), "no entry 'encoder'"),
        (False, lambda c: c["encoder"].pop("model.module.all_modules.1.Conv_0.bias"), "lacks all_modules.1"),
        (False, lambda c: c["encoder"].pop("model.module.all_modules.2.Conv_1.weight"), "lacks all_modules.2.Conv_1"),
        (False, lambda c: c["encoder"].pop("model.module.spatial_transformations.1.0.weight"), "lacks spatial_tr"),
        (False, lambda c: c["encoder"].update({"model.module.odd": torch.ones(1)}), "no place for odd"),
        (True, lambda c: c["encoder_ema"]["shadow_params"].pop(), "tensors for the"),
        (True, lambda c: c["encoder_ema"]["shadow_params"].reverse(), "in the place of"),
        (True, lambda c: c["encoder_ema"].pop("shadow_params"), "no list 'shadow_params'"),
        (False, lambda c: c["decoder"].update({"model.module.all_modules.1.weight": torch.ones(3)}), "has the shape"),
        (False, lambda c: c["decoder"].update({"model.module.all_modules.1.weight": torch.ones(32, 32) / 0}), "finite"),
        (False, lambda c: c["encoder"].pop("model.module.all_modules.0.weight"), "neither NCSN"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, averages, change, said):
    content, _ = checkpoint()
    if not averages:
        del content["encoder_ema"], content["decoder_ema"]
    change(content)
    path = save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match=said):
        from_official(read_official([path])[0], weights="last")


def test_unknown_settings_and_other_files_are_refused(tmp_path):
    content, _ = checkpoint()
    state, _ = read_official([save(content, tmp_path / "a.pt")])
    with pytest.raises(UsageError, match="ema or last"):
        from_official(state, weights="best")
    with pytest.raises(UsageError, match="no setting"):
        from_official(state, width=3)
    (tmp_path / "b.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"b\.pt"):
        read_official([tmp_path / "b.pt"])
    with pytest.raises(UsageError, match="one file"):
        read_official([tmp_path / "a.pt", tmp_path / "b.pt"])
