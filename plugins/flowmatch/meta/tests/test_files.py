"""Reading the user's populations: AnnData, folders of pairs, the organoid files; and one clear error for bad ones."""

import pickle

import headwater
import numpy as np
import pytest
import torch
from headwater.errors import ConfigError, DataError, UsageError
from headwater_flow_meta.tasks.h5ad import H5AD, H5ADConfig
from headwater_flow_meta.tasks.organoids import Organoids, OrganoidsConfig
from headwater_flow_meta.tasks.pairs import PopulationPairs, PopulationPairsConfig

TINY = {
    "hidden": 16, "layers": 2, "embedding_width": 8, "embedding_layers": 2, "neighbours": 3, "populations": 2,
    "points": 16, "time_features": 8, "space_features": 8,
}  # fmt: skip


# AnnData


@pytest.fixture
def anndata():
    return pytest.importorskip("anndata", reason="h5ad files are read by anndata")


@pytest.fixture
def cells(anndata, tmp_path):
    """Five donors, a control before and two treatments after, three genes, two cell types."""
    pandas = pytest.importorskip("pandas", reason="anndata brings it")
    rng = np.random.default_rng(0)
    rows = []
    for donor in "ABCDE":
        for time, treatment in (("before", "none"), ("after", "x"), ("after", "y")):
            rows += [(f"donor{donor}", time, treatment, "TB"[i % 2]) for i in range(9)]
    obs = pandas.DataFrame(rows, columns=["population", "time", "treatment", "cell_type"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    x = rng.normal(size=(len(obs), 3)).astype(np.float32) + 5
    made = anndata.AnnData(X=x, obs=obs, var=pandas.DataFrame(index=["CD3", "CD4", "CD8"]))
    made.obsm["X_pca"] = x[:, :2]
    made.layers["raw"] = x * 2
    path = tmp_path / "cells.h5ad"

    def write(change=None):
        copy = made.copy()
        if change:
            copy = change(copy) or copy
        copy.write_h5ad(path)
        return path

    return write


def h5ad(path, **settings):
    return H5AD(H5ADConfig(file=path, **settings))


def test_an_anndata_file_becomes_a_pair_for_each_donor_and_treatment(cells):
    task = h5ad(cells())
    assert task.features == ("CD3", "CD4", "CD8")
    assert task.treatments == ("x", "y")
    assert task.cell_types == ("B", "T")
    names = {s: [p.name for p in task.populations(s)] for s in ("train", "valid", "test")}
    assert names["test"] == ["donorE/x", "donorE/y"]
    assert names["valid"] == ["donorD/x", "donorD/y"]
    assert len(names["train"]) == 6
    x, y = task.populations("test")
    assert torch.equal(x.source, y.source)  # one control for both
    assert not torch.equal(x.target, y.target)
    assert (x.treatment, y.treatment) == (0, 1)
    assert x.labels.tolist() == [1, 0] * 4 + [1]


def test_donors_may_be_held_back_by_name_or_column_and_values_be_taken_from_elsewhere(cells):
    task = h5ad(cells(), test=("donorA",), use="obsm:X_pca")
    assert [p.name for p in task.populations("test")] == ["donorA/x", "donorA/y"]
    assert task.features == ("X_pca0", "X_pca1")

    def by_column(found):
        found.obs["part"] = ["test" if d == "donorB" else "train" for d in found.obs["population"]]

    task = h5ad(cells(by_column), split="part", use="layers:raw", arcsinh=5.0)
    assert [p.name for p in task.populations("test")] == ["donorB/x", "donorB/y"]
    assert float(task.populations("train")[0].source.mean()) == pytest.approx(float(np.arcsinh(10 / 5)), abs=0.2)


def test_times_may_be_numbers(cells):
    def numbered(found):
        found.obs["time"] = [0 if t == "before" else 48 for t in found.obs["time"]]

    assert len(h5ad(cells(numbered)).populations("train")) == 6


def drop(column):
    def change(found):
        del found.obs[column]

    return change


def nan(found):
    found.X[4, 1] = np.nan


def lonely(found):
    keep = ~((found.obs["population"] == "donorC") & (found.obs["time"] == "before"))
    keep.iloc[2 * 27] = True
    return found[keep].copy()


def other_times(found):
    found.obs["time"] = [t if i else "later" for i, t in enumerate(found.obs["time"])]


def missing_value(found):
    values = found.obs["population"].astype(object)
    values.iloc[7] = None
    found.obs["population"] = values


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (drop("population"), {}, r"cells\.h5ad has no column 'population' in obs; it has time, treatment, cell_type"),
        (drop("time"), {}, r"no column 'time' in obs.*set task\.time"),
        (nan, {}, r"population 'donorA'.*cell 'cell4', feature 'CD4' is nan"),
        (lonely, {}, r"population 'donorC'.*before is a population of 1 cell"),
        (other_times, {}, r"values after, before, later; say which is before"),
        (missing_value, {}, r"cell 'cell7' has no value in the column 'population'"),
        (None, {"use": "obsm:X_umap"}, "no obsm 'X_umap'; did you mean 'X_pca'"),
        (None, {"use": "raw"}, "it is X, layers:NAME or obsm:NAME"),
        (None, {"test": ("donorZ",)}, "no population 'donorZ' to hold back"),
        (None, {"before": "early", "after": "after"}, "no cell has 'early'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_place(cells, change, settings, message):
    with pytest.raises(DataError, match=message):
        h5ad(cells(change), **settings).populations("train")


def test_no_file_and_no_anndata_file_are_refused(anndata, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        h5ad(tmp_path / "no.h5ad").populations("train")
    (tmp_path / "bad.h5ad").write_text("hello")
    assert "is no h5ad file" in H5AD.check(tmp_path / "bad.h5ad")[0]


def test_a_run_on_an_anndata_file_predicts_conditions_files_and_embeds(cells, tmp_path):
    path = cells()
    run = headwater.train(
        "flow-meta", tmp_path / "run", task="h5ad",
        overrides={"task": {"file": str(path), "metric_points": 50}, "trainer": TINY,
                   "fit": {"max_steps": 4, "accelerator": "cpu"}},
    )  # fmt: skip
    model = headwater.load(run, device="cpu")
    clouds = next(model.sample(2))
    assert [(c.name, c.treatment, c.points.shape) for c in clouds] == [
        ("donorE/x", "x", (9, 3)),
        ("donorE/y", "y", (9, 3)),
    ]
    assert abs(float(clouds[0].points.mean()) - 5) < 5  # in the units of the file
    assert clouds[0].cell_types[:2] == ("T", "B")
    (other,) = next(model.sample(1, condition={"population": "donorA/x", "treatment": "y"}))
    assert (other.name, other.treatment) == ("donorA/x", "y")
    assert set(model.evaluate()) >= {"w1", "w2", "mmd", "r2"}
    for condition, message in (
        ({"population": "donorQ/x"}, "no population 'donorQ/x'; did you mean"),
        ({"population": "donorA/x", "treatment": "z"}, "no treatment 'z'"),
        ({"file": str(path)}, "holds 5 populations; for all of them: headwater apply"),
    ):
        with pytest.raises(UsageError, match=message):
            next(model.sample(1, condition=condition))
    with pytest.raises(ConfigError, match="not both"):
        next(model.sample(1, condition={"population": "donorA/x", "file": str(path)}))
    with pytest.raises(UsageError, match=r"names no treatment that the run knows \(x, y\)"):
        model.apply("predict", path, tmp_path / "all.h5ad")  # all that the file has before the change is a control
    chosen = {"operation": {"treatment": "y"}}
    written = model.apply("predict", path, tmp_path / "all.h5ad", overrides=chosen, force=True)
    assert [(c.name, c.treatment) for c in model.task.read(written)] == [(f"donor{d}", "y") for d in "ABCDE"]
    table = model.apply("embed", path, tmp_path / "embeddings.csv").read_text().splitlines()
    assert len(table) == 6
    assert np.linalg.norm([float(v) for v in table[1].split(",")[1:]]) == pytest.approx(1, abs=1e-5)

    csv = tmp_path / "new.csv"
    csv.write_text("CD8,CD3,CD4,cell_type\n" + "".join(f"{i},{i + 1},{i + 2},T\n" for i in range(6)))
    (cloud,) = next(model.sample(1, condition={"file": str(csv), "treatment": "y"}))
    assert (cloud.name, len(cloud.points)) == ("new", 6)
    csv.write_text("CD8,CD3,cell_type\n1,2,T\n3,4,T\n")
    with pytest.raises(DataError, match="lacks the feature 'CD4'"):
        next(model.sample(1, condition={"file": str(csv)}))
    csv.write_text("CD8,CD3,CD4,cell_type\n1,2,3,NK\n3,4,5,T\n")
    with pytest.raises(DataError, match="cell type 'NK' is not among those trained on"):
        next(model.sample(1, condition={"file": str(csv)}))


# Folders of pairs


def pair(folder, name, n=6, m=7, **more):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(name))
    arrays = {"before": rng.normal(size=(n, 2)), "after": rng.normal(size=(m, 2)), **more}
    np.savez(folder / f"{name}.npz", **arrays)


def pairs(root):
    return PopulationPairs(PopulationPairsConfig(root=root))


def test_a_flat_folder_is_split_by_the_rule_or_by_a_table(tmp_path):
    for name in "abcdef":
        pair(tmp_path, name, treatment="drug" if name < "c" else "none")
    task = pairs(tmp_path)
    assert [p.name for p in task.populations("train")] == ["a", "b", "c", "f"]
    assert [p.treatment for p in task.populations("train")] == [0, 0, 1, 1]
    (tmp_path / "populations.csv").write_text("population,split,treatment\na,test,none\nb,train,\n")
    task = pairs(tmp_path)
    assert "a" in [p.name for p in task.populations("test")]
    assert next(p for p in task.populations("test") if p.name == "a").treatment == 1


def test_pairs_of_csv_files(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "p.before.csv").write_text("g1,g2,cell_type,treatment\n1,2,T,x\n3,4,B,x\n")
    (tmp_path / "train" / "p.after.csv").write_text("g1,g2\n1,2\n3,4\n5,6\n")
    (p,) = pairs(tmp_path).populations("train")
    assert p.source.tolist() == [[1, 2], [3, 4]]
    assert len(p.target) == 3
    assert p.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: pair(f, "b", n=1), r"b\.npz, before is a population of 1 cell"),
        (lambda f: np.savez(f / "b.npz", before=np.zeros((3, 2))), r"b\.npz has no array 'after'"),
        (lambda f: np.savez(f / "b.npz", before=np.zeros((3, 3)), after=np.zeros((3, 3))), "other features"),
        (lambda f: np.savez(f / "b.npz", before=np.full((3, 2), np.inf), after=np.zeros((3, 2))), "row 0.*'x0' is inf"),
        (lambda f: np.savez(f / "b.npz", before=np.array([{}])), "no NPZ file of plain arrays"),
        (lambda f: pair(f, "b", paired=np.array(True)), "is paired, but has 6 points before and 7 after"),
        (lambda f: pair(f, "b", treatment="x"), r"a\.npz has no treatment, and others have"),
        (lambda f: (f / "b.before.csv").write_text("x0,x1\n1,2\n"), r"has no b\.after\.csv beside it"),
        (lambda f: (f / "populations.csv").write_text("population,split\nz,train\n"), "names 'z'"),
        (lambda f: (f / "populations.csv").write_text("population,split\na,maybe\n"), "line 2: the split 'maybe'"),
        (lambda f: (f / "populations.csv").write_bytes(b"population\xff\n"), "is no CSV file"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_with_the_place(spoil, message, tmp_path):
    pair(tmp_path, "a")
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        pairs(tmp_path).populations("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,4\n", "needs a first line with the names"),
        ("g1,g2\n1,2\n3\n", "line 3: 1 values under 2 columns"),
        ("g1,g2\n1,2\n3,much\n", "line 3, column 'g2': 'much' is no number"),
        ("g1,g2\n1,2\n3,\n", "row 1, feature 'g2' is nan"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_line(text, message, tmp_path):
    (tmp_path / "p.before.csv").write_text(text)
    (tmp_path / "p.after.csv").write_text("g1,g2\n1,2\n3,4\n")
    with pytest.raises(DataError, match=message):
        pairs(tmp_path).populations("train")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no population"):
        pairs(tmp_path).populations("train")


# The organoid files


@pytest.fixture
def screen(tmp_path):
    matrix = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    np.save(tmp_path / "cells_normalized.npy", matrix)

    def write(content, name="train.pkl"):
        with (tmp_path / name).open("wb") as out:
            pickle.dump(content, out)
        return tmp_path / name

    return tmp_path / "cells_normalized.npy", write, matrix


def cultures(start):
    types = {"epithelial": np.arange(start, start + 3), "fibroblast": np.arange(start + 3, start + 5)}
    return {"PDO": types, "PDOF": {k: v + 5 for k, v in types.items()}}


def test_the_official_layout_is_read(screen):
    data, write, matrix = screen
    split = {
        "DMSO": {"1": cultures(0)},
        "H2O": {"1": cultures(10)},
        "F": {"0.1": cultures(20), "10uM": cultures(30), "2": cultures(40)},
    }
    task = Organoids(OrganoidsConfig(data=data, train=write(split)))
    pdo, pdof = task.populations("train")
    assert (pdo.name, pdo.group, pdof.name) == ("PDO/F", "PDO", "PDOF/F")
    assert task.treatments == ("F",)
    assert task.cell_types == ("epithelial", "fibroblast")
    np.testing.assert_array_equal(pdo.target, matrix[30:35])  # the highest concentration
    expected = [*range(3), *range(10, 13), *range(3, 5), *range(13, 15)]
    np.testing.assert_array_equal(pdo.source, matrix[expected])  # both controls, type by type
    assert pdo.labels.tolist() == [0] * 6 + [1] * 4


def test_splits_by_patient_have_one_more_level(screen):
    data, write, _ = screen
    split = {
        21: {"DMSO": {"1": cultures(0)}, "F": {"1": cultures(20)}},
        27: {"AH": {"1": cultures(10)}, "S": {"1": cultures(30)}},
    }
    task = Organoids(OrganoidsConfig(data=data, train=write(split)))
    assert [p.name for p in task.populations("train")] == ["21/PDO/F", "21/PDOF/F", "27/PDO/S", "27/PDOF/S"]


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"F": {"1": cultures(0)}}, r"there is no control \(DMSO, AH, H2O\)"),
        ({"DMSO": {"1": cultures(0)}, "F": {"1": cultures(58)}}, "beyond the 60 cells"),
        ({"DMSO": {"1": cultures(0)}, "F": {"1": {"PDO": {"epithelial": np.array([3])}}}}, "population of 1 cell"),
        ({"DMSO": {"1": cultures(0)}, "F": {"1": {"PDO": {"epithelial": ["a"]}}}}, "row numbers are needed"),
        ({"DMSO": {}}, "no culture"),
        ([1, 2], "holds a list, not a split"),
        (Evil(), "not a split"),
    ],
)
def test_a_split_that_does_not_fit_is_refused_and_runs_no_code(screen, content, message, capsys):
    data, write, _ = screen
    with pytest.raises(DataError, match=message):
        Organoids(OrganoidsConfig(data=data, train=write(content))).populations("train")
    assert "must not run" not in capsys.readouterr().out


# Blood cells


def test_mixtures_of_blood_cells_respond_to_who_is_there(anndata, tmp_path):
    from headwater_flow_meta.tasks.pbmc import PBMCResponse, PBMCResponseConfig

    pandas = pytest.importorskip("pandas", reason="anndata brings it")
    rng = np.random.default_rng(0)
    obs = pandas.DataFrame({"bulk_labels": [f"type{i % 3}" for i in range(120)]}, index=[f"c{i}" for i in range(120)])
    made = anndata.AnnData(X=np.zeros((120, 2), np.float32), obs=obs)
    made.obsm["X_pca"] = rng.normal(size=(120, 12)) + 5 * np.eye(12)[np.arange(120) % 3]
    made.write_h5ad(tmp_path / "pbmc.h5ad")
    task = PBMCResponse(PBMCResponseConfig(file=tmp_path / "pbmc.h5ad", populations=10, cells=40, pull=0.0))
    assert [len(task.populations(s)) for s in ("train", "valid", "test")] == [8, 1, 1]
    shifts = [(p.target - p.source) for p in task.populations("train")]
    for p, shift in zip(task.populations("train"), shifts, strict=True):
        torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=1e-3, atol=1e-4)
        assert len(p.source) == 40
    assert float((shifts[0][0] - shifts[1][0]).norm()) > 0.1  # another mixture, another response
    pulled = PBMCResponse(PBMCResponseConfig(file=tmp_path / "pbmc.h5ad", populations=10, cells=40, push=0.0))
    p = pulled.populations("train")[0]
    assert float(p.target.std(0).mean()) < float(p.source.std(0).mean())
    with pytest.raises(DataError, match="12 components"):
        PBMCResponse(PBMCResponseConfig(file=tmp_path / "pbmc.h5ad", components=20)).populations("train")
