"""Files through the command line and in Python: there and back, hidden and revealed, and what is refused."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from headwater import DataError, RunError, UsageError
from headwater.cli import cli as commands
from headwater.sampling import Model
from headwater.training import convert
from headwater_vision.embedded import photograph
from headwater_vision.files import image_text, read_image, write_png
from headwater_vision.metrics import psnr
from headwater_vision_rescale.networks import Haar, HidingNet, RescalingNet
from PIL import Image

CAT = photograph("cat")[60:131, 120:223]  # 71 x 103


def official(net, folder):
    """The state dict as the published code has it."""
    state, channels = dict(net.state_dict()), 3
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).view(4, 1, 2, 2)
    for i, operation in enumerate(net.operations):
        if isinstance(operation, Haar):
            state[f"operations.{i}.haar_weights"] = signs.repeat(channels, 1, 1, 1)
            channels *= 4
    path = folder / "official.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained IRN x2: box means down, repeated pixels up."""
    folder = tmp_path_factory.mktemp("irn")
    torch.manual_seed(0)
    net = RescalingNet(2, 2, growth=4)
    for p in net.parameters():
        p.data += 0.01 * torch.randn(p.shape)
    return convert("vision-rescale", [official(net, folder)], folder / "run")


@pytest.fixture(scope="module")
def hiding(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hide")
    torch.manual_seed(0)
    net = HidingNet(2, growth=3)
    for p in net.parameters():
        p.data += 0.01 * torch.randn(p.shape)
    letters = {"H": "r", "G": "y", "F": "f"}
    state = {}
    for key, value in net.state_dict().items():
        _, i, letter, rest = key.split(".", 3)
        state[f"module.model.inv{int(i) + 1}.{letters[letter]}.{rest}"] = value
    state["module.model.tmp_var"] = torch.zeros(1)
    torch.save({"net": state, "opt": {"state": {}}}, folder / "model.pt")
    return convert("vision-rescale", [folder / "model.pt"], folder / "run")


@pytest.fixture
def folder(tmp_path):
    write_png(tmp_path / "in" / "cat.png", CAT)
    write_png(tmp_path / "in" / "deep" / "dot.png", CAT[:1, :1])
    return tmp_path / "in"


def cli(*arguments):
    return CliRunner().invoke(commands, list(map(str, arguments)))


def test_there_and_back_from_the_command_line(run, folder, tmp_path):
    assert cli("apply", run.path, "downscale", "--input", folder, "-o", tmp_path / "lr").exit_code == 0
    small = read_image(tmp_path / "lr" / "cat.png")
    assert small.shape == (36, 52, 3)
    assert '"height": 71' in image_text(tmp_path / "lr" / "cat.png")["headwater-vision-rescale"]
    done = cli("apply", run.path, "upscale", "--input", tmp_path / "lr", "-o", tmp_path / "hr", "--set", "tile=16")
    assert done.exit_code == 0, done.output
    back = read_image(tmp_path / "hr" / "cat.png")
    assert back.shape == CAT.shape
    assert psnr(CAT, back) > 20
    assert read_image(tmp_path / "hr" / "deep" / "dot.png").shape == (1, 1, 3)


def test_one_file_gives_one_file_in_python(run, folder, tmp_path):
    model = Model(run, device="cpu")
    path = model.apply("downscale", folder / "cat.png", tmp_path / "small.png")
    whole = read_image(path)
    assert whole.shape == (36, 52, 3)
    two = model.apply("upscale", path, tmp_path / "back", overrides={"operation": {"zu_mode": "normal"}})
    assert [p.name for p in two.iterdir()] == ["small.png"]
    with pytest.raises(UsageError, match="name a folder"):
        model.apply("downscale", folder, tmp_path / "one.png", force=True)
    with pytest.raises(DataError, match="does not exist"):
        model.apply("downscale", tmp_path / "none", tmp_path / "x")


def test_two_workers_write_what_one_writes(run, folder, tmp_path):
    write_png(folder / "b.png", CAT[:20])
    model = Model(run, device="cpu")
    for n in (1, 2):
        model.apply("downscale", folder, tmp_path / f"w{n}", workers=n)
    for name in ("cat", "b", "deep/dot"):
        assert (tmp_path / "w1" / f"{name}.png").read_bytes() == (tmp_path / "w2" / f"{name}.png").read_bytes()


def test_an_image_of_another_scale_or_size_is_refused_by_name(run, tmp_path):
    note = '{"scale": 4, "height": 8, "width": 8}'
    write_png(tmp_path / "x4.png", CAT[:2, :2], {"headwater-vision-rescale": note})
    with pytest.raises(DataError, match=r"x4\.png was made small by 4, and this run was trained for 2"):
        Model(run, device="cpu").apply("upscale", tmp_path / "x4.png", tmp_path / "out")
    note = '{"scale": 2, "height": 80, "width": 4}'
    write_png(tmp_path / "cut.png", CAT[:2, :2], {"headwater-vision-rescale": note})
    with pytest.raises(DataError, match=r"cut\.png has been resized or cut"):
        Model(run, device="cpu").apply("upscale", tmp_path / "cut.png", tmp_path / "out")
    write_png(tmp_path / "odd.png", CAT[:2, :2], {"headwater-vision-rescale": "{"})
    with pytest.raises(DataError, match="is damaged"):
        Model(run, device="cpu").apply("upscale", tmp_path / "odd.png", tmp_path / "out")
    # Without a note (another program dropped it) the whole is restored.
    write_png(tmp_path / "bare.png", CAT[:3, :2])
    out = Model(run, device="cpu").apply("upscale", tmp_path / "bare.png", tmp_path / "bare-hr.png")
    assert read_image(out).shape == (6, 4, 3)


def bad_files(folder):
    (folder / "words.png").write_text("no image")
    whole = (folder / "cat.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(folder / "deep16.png")
    clear = np.concatenate([CAT, np.full((*CAT.shape[:2], 1), 9, np.uint8)], 2)
    Image.fromarray(clear).save(folder / "clear.png")
    Image.fromarray(CAT).convert("CMYK").save(folder / "print.tiff")
    Image.fromarray(CAT[..., 0]).save(folder / "grey.png")
    return ("words.png", "cut.png", "deep16.png", "clear.png", "print.tiff")


def test_files_that_cannot_be_used_are_named_or_left_out(run, folder, tmp_path):
    bad = bad_files(folder)
    for name in bad:
        done = cli("apply", run.path, "downscale", "--input", folder / name, "-o", tmp_path / "one.png")
        error = done.exception
        assert isinstance(error, DataError)
        assert name in str(error)
        assert "\n" not in str(error)
    done = cli("apply", run.path, "downscale", "--input", folder, "-o", tmp_path / "kept", "--skip-bad")
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in bad)
    assert sorted(p.name for p in (tmp_path / "kept").rglob("*.png")) == ["cat.png", "dot.png", "grey.png"]
    done = cli("apply", run.path, "downscale", "--input", folder / "deep16.png", "-o", tmp_path / "c.png",
               "--set", "operation.convert=true")  # fmt: skip
    assert done.exit_code == 0, done.output


def test_names_that_would_meet_are_refused(run, folder, tmp_path):
    Image.fromarray(CAT).save(folder / "cat.bmp")
    with pytest.raises(DataError, match="several images named 'cat'"):
        Model(run, device="cpu").apply("downscale", folder, tmp_path / "x")


def test_a_secret_is_hidden_and_revealed(hiding, folder, tmp_path):
    write_png(tmp_path / "secret.png", CAT[:31, :40])
    (folder / "deep" / "dot.png").unlink()
    done = cli("apply", hiding.path, "hide", "--input", folder, "-o", tmp_path / "stego",
               "--set", f"secret={tmp_path / 'secret.png'}")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert read_image(tmp_path / "stego" / "cat.png").shape == (72, 104, 3)
    done = cli("apply", hiding.path, "reveal", "--input", tmp_path / "stego", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert read_image(tmp_path / "out" / "cat.png").shape == (31, 40, 3)


def test_secrets_in_a_folder_are_matched_by_name(hiding, folder, tmp_path):
    write_png(tmp_path / "secrets" / "cat.png", CAT[:8, :8])
    model = Model(hiding, device="cpu")
    settings = {"operation": {"secret": str(tmp_path / "secrets")}}
    with pytest.raises(DataError, match="no secret named 'dot'"):
        model.apply("hide", folder, tmp_path / "s", overrides=settings)
    model.apply("hide", folder / "cat.png", tmp_path / "s.png", overrides=settings)
    write_png(tmp_path / "secrets" / "cat.png", np.concatenate([CAT, CAT]))
    with pytest.raises(DataError, match="does not fit into"):
        model.apply("hide", folder / "cat.png", tmp_path / "t.png", overrides=settings)


def test_operations_of_the_other_stage_and_missing_secrets_are_refused(run, hiding, folder, tmp_path):
    with pytest.raises(UsageError, match="trained to hide and reveal"):
        Model(hiding, device="cpu").apply("upscale", folder, tmp_path / "x")
    with pytest.raises(UsageError, match="trained to downscale and upscale"):
        Model(run, device="cpu").apply("reveal", folder, tmp_path / "x")
    with pytest.raises(UsageError, match=r"operation\.secret is needed"):
        Model(hiding, device="cpu").apply("hide", folder, tmp_path / "x")
    with pytest.raises(UsageError, match=r"none\.png does not exist"):
        Model(hiding, device="cpu").apply(
            "hide", folder, tmp_path / "x", overrides={"operation": {"secret": "none.png"}}
        )
    write_png(tmp_path / "odd.png", CAT[:3, :2])
    with pytest.raises(DataError, match=r"odd\.png is 2x3"):
        Model(hiding, device="cpu").apply("reveal", tmp_path / "odd.png", tmp_path / "x")


# Checkpoints


def test_a_converted_run_knows_its_sizes_and_stage(run, hiding):
    assert run.config()["trainer"]["scale"] == 2
    assert run.config()["trainer"]["zd_channels"] == 0
    assert (run.manifest.stage, hiding.manifest.stage) == ("dlv", "hide")


def test_an_irn_is_converted_to_a_dlv_that_does_the_same(tmp_path):
    torch.manual_seed(0)
    net = RescalingNet(4, [2, 1], growth=3)
    for p in net.parameters():
        p.data += 0.05 * torch.randn(p.shape)
    path = official(net, tmp_path)
    wide = convert("vision-rescale", [path], tmp_path / "wide", overrides={"official": {"zd_channels": 1}})
    made = Model(wide, device="cpu").modules["rescaler"]
    assert made.zd_channels == 1
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert (made.reduce(x) - net.reduce(x)).abs().max() < 1e-6
    with pytest.raises(UsageError, match=r"official\.depth is no setting"):
        convert("vision-rescale", [path], tmp_path / "x", overrides={"official": {"depth": 1}})


def test_checkpoints_that_do_not_fit_are_refused(tmp_path, run):
    net = RescalingNet(2, 2, growth=3)
    path = official(net, tmp_path)
    whole = torch.load(path, weights_only=True)

    def refused(state, said):
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(DataError, match=said):
            convert("vision-rescale", [tmp_path / "bad.pth"], tmp_path / "x", force=True)

    refused(
        {k: v for k, v in whole.items() if k != "operations.1.G.conv3.bias"}, r"lacks operations\.1\.G\.conv3\.bias"
    )
    refused({**whole, "operations.1.G.extra": torch.zeros(1)}, r"has also operations\.1\.G\.extra")
    refused({**whole, "operations.0.haar_weights": torch.zeros(12, 1, 2, 2)}, "other filters than Haar's")
    refused({**whole, "operations.2.F.conv2.weight": torch.zeros(1, 1, 3, 3)}, "is needed")
    refused({"encoder.weight": torch.zeros(1)}, "none of IRN, HCFlow or HiNet")
    refused([1, 2], "no state dict")
    with pytest.raises((DataError, RunError, UsageError)):
        convert("vision-rescale", [path], tmp_path / "y", overrides={"trainer": {"scale": 4, "couplings": 1}})
    with pytest.raises(DataError, match="one checkpoint file"):
        convert("vision-rescale", [path, path], tmp_path / "z")
