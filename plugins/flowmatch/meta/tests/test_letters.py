import math

import numpy as np
import pytest
import torch
from headwater.errors import ConfigError, DataError
from headwater_flow_meta.tasks.letters import Letters, LettersConfig, font_file, silhouette
from headwater_flow_meta.tasks.pairs import PopulationPairs, PopulationPairsConfig
from headwater_flow_meta.tasks.pictures import draw_cloud
from headwater_flow_meta.tasks.populations import Cloud
from PIL import Image


def test_a_silhouette_fills_the_square_by_its_longer_side_and_stands_upright():
    font = font_file("DejaVu Sans")
    for letter in "ITW":
        x = silhouette(letter, font)
        extent = x.max(0).values - x.min(0).values
        assert float(extent.max()) == pytest.approx(6.0)
    t = silhouette("T", font)
    top = t[t[:, 1] > 2.4][:, 0]
    foot = t[t[:, 1] < 0][:, 0]
    assert float(top.max() - top.min()) > 3 * float(foot.max() - foot.min())  # the bar of a T is above
    i = silhouette("I", font)
    assert float(i[:, 0].max() - i[:, 0].min()) < 1.5  # and an I stays narrow


def test_populations_are_the_paper_s():
    task = Letters(LettersConfig())
    assert [len(task.populations(s)) for s in ("train", "valid", "test")] == [240, 10, 10]
    p = task.populations("test")[3]
    assert p.name == "Y-03"
    assert p.paired
    assert float((p.source - p.target).std()) == pytest.approx(0.5, abs=0.03)
    q = task.populations("test")[4]
    assert float(p.target.norm(dim=1).max()) == pytest.approx(float(q.target.norm(dim=1).max()), abs=0.3)  # turned
    assert float((p.target[:100] - q.target[:100]).abs().max()) > 0.5
    again = Letters(LettersConfig()).populations("test")[3]
    assert torch.equal(again.source, p.source)
    other = Letters(LettersConfig(seed=1)).populations("test")[3]
    assert not torch.equal(other.source, p.source)


def test_the_rotation_is_one():
    config = LettersConfig(letters="L", rotations=3, sharp=0.0)
    plain = silhouette("L", font_file("DejaVu Sans"))
    for p in Letters(config).populations("train"):
        torch.testing.assert_close(p.target.norm(dim=1), plain.norm(dim=1), rtol=1e-4, atol=1e-4)
        u, _, v = np.linalg.svd((plain.T @ p.target).numpy())
        assert np.linalg.det(u @ v) == pytest.approx(1.0, abs=1e-4)  # no reflection


def test_bad_letters_are_refused():
    with pytest.raises(ConfigError, match="is not installed"):
        Letters(LettersConfig(font="Deja View")).populations("train")
    with pytest.raises(ConfigError, match="no such file"):
        Letters(LettersConfig(font="none/arial.ttf")).populations("train")
    with pytest.raises(DataError, match="draws nothing"):
        Letters(LettersConfig(letters=" ")).populations("train")
    with pytest.raises(ValueError, match="among the letters to train on"):
        LettersConfig(letters="XY")


def test_letters_can_be_written_as_pairs_and_read(tmp_path):
    task = Letters(LettersConfig(letters="S", rotations=2))
    task.make(tmp_path / "letters")
    read = PopulationPairs(PopulationPairsConfig(root=tmp_path / "letters"))
    assert PopulationPairs.check(tmp_path / "letters") == []
    for split in ("train", "valid", "test"):
        for a, b in zip(task.populations(split), read.populations(split), strict=True):
            assert (a.name, a.paired) == (b.name, b.paired)
            assert torch.equal(a.target, b.target)


def test_metrics_compare_a_cloud_with_its_own_population():
    task = Letters(LettersConfig(letters="S", rotations=1, metric_points=300))
    p = task.populations("test")[0]
    rows = torch.arange(len(p.target))
    angle = torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    right = task.metrics([Cloud(p.name, p.target, rows, ("x", "y"))])
    wrong = task.metrics([Cloud(p.name, p.target @ angle, rows, ("x", "y"))])
    assert right["w2"] < 0.4 * wrong["w2"]
    assert right["mean_l2"] == 0
    with pytest.raises(DataError, match="'Q-99' is no population"):
        task.metrics([Cloud("Q-99", p.target, rows, ("x", "y"))])


def test_a_picture_shows_where_the_points_are(tmp_path):
    (tmp_path / "a.png").write_bytes(draw_cloud(torch.tensor([[0.0, 1.0]]), (torch.zeros(2), torch.ones(2))))
    pixels = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    dark = np.argwhere(pixels.sum(2) < 700)
    assert dark.max() <= 2  # top left: x is 0, y is 1
