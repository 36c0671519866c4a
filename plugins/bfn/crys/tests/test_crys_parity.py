"""Outputs, gradients, losses, training and sampling steps equal those of the official code (skipped without them)."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from headwater_bfn import continuous, discrete, vonmises
from headwater_bfn_crys import flow, objective
from headwater_bfn_crys.config import FlowConfig
from headwater_bfn_crys.convert import from_official
from headwater_bfn_crys.crystals import cell_matrix, cell_parameters
from headwater_bfn_crys.layout import Layout
from headwater_bfn_crys.networks import time_embedding
from headwater_bfn_crys.trainer import Data

DATA = next(
    (p / "shared/data/bfn-crys" for p in Path(__file__).resolve().parents if (p / "shared/data/bfn-crys").is_dir()),
    Path("shared/data/bfn-crys"),
)
FOLDER = DATA / "parity"
TYPES, LATTICE_MEAN, LATTICE_STD = 13, 0.15, 2.75

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the official reference numbers are not here")


def read(name):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}


def network(kind):
    return from_official({k.removeprefix("sd/"): v for k, v in read(f"weights_{kind}").items()})["network"]


PUBLISHED = flow.Scale.of({"lattice_std": 1.0})


def config(kind, n, **changes):
    return FlowConfig(target=kind, steps=n, standardise="scalar", beta1_types=0.8, sigma1_lattice=0.05, **changes)


def near(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b.to(a.dtype), rtol=0, atol=tolerance)


def near_angles(a, b, tolerance=1e-5):
    assert float(vonmises.wrap(a - b).detach().abs().max()) <= tolerance


class Replay:
    """Recorded noise in the order in which it was drawn."""

    def __init__(self, monkeypatch, **recorded):
        self.recorded = {name: list(values) for name, values in recorded.items()}
        for name in recorded:
            monkeypatch.setattr(torch, name, self.draw(name))

    def draw(self, name):
        def drawn(*shape, **options):
            shape = shape[0] if shape and isinstance(shape[0], tuple | torch.Size | list) else shape
            return self.recorded[name].pop(0).reshape(shape)

        return drawn


class TestMaths:
    z = property(lambda self: read("maths"))

    def test_entropy(self):
        torch.testing.assert_close(vonmises.entropy(self.z["kappa"]), self.z["entropy"], rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize(("epsilon", "suffix"), [(0.0, ""), (1e-6, "_eps")])
    def test_update(self, epsilon, suffix):
        z = self.z
        belief = vonmises.update(vonmises.Belief(z["m"], z["c"]), z["y"], z["alpha"], epsilon)
        near_angles(belief.mean, z["m_out" + suffix])
        torch.testing.assert_close(belief.concentration, z["c_out" + suffix], rtol=1e-5, atol=1e-5)

    def test_divergence(self):
        z = self.z
        found = vonmises.kl(z["kl_mu1"].double(), z["kl_k1"], z["kl_mu2"].double(), z["kl_k2"])
        torch.testing.assert_close(found, z["kl"], rtol=1e-6, atol=1e-8)

    def test_cells(self):
        z = self.z
        matrix = cell_matrix(z["lengths"].double().numpy(), z["angles"].double().numpy())
        np.testing.assert_allclose(matrix, z["matrix"], atol=1e-5)
        lengths, angles = cell_parameters(z["matrix"].double().numpy())
        np.testing.assert_allclose(lengths, z["lengths_back"], atol=1e-4)
        np.testing.assert_allclose(angles, z["angles_back"], atol=2e-3)

    def test_features(self):
        z = self.z
        near(time_embedding(z["time_index"], 96), z["time_emb"])
        phase = (z["dis_in"].unsqueeze(-1) * torch.arange(10)).flatten(1)
        near(torch.cat([phase.sin(), phase.cos()], 1), z["dis_emb"])
        near_angles(vonmises.wrap(z["wrap_in"]), z["wrap_out"])


@pytest.mark.parametrize("kind", ["gen", "csp"])
def test_the_network_and_its_gradients(kind):
    z, net = read(f"network_{kind}"), network(kind)
    lattice = z["lattice"].clone().requires_grad_()
    layout = Layout(z["num_atoms"].tolist())
    mixed, shift, logits = net(z["t_index"], z["atom_in"], z["pos"], lattice, z["log_acc"], layout)
    near(mixed, z["lattice_out"])
    near(shift, z["coord_raw"])
    near_angles(z["pos"] + shift, z["coord_out"])
    near(logits, z["type_out"])
    (mixed.square().mean() + shift.square().mean() + logits.square().mean()).backward()
    torch.testing.assert_close(lattice.grad, z["grad_lattice"], rtol=1e-4, atol=1e-6)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad.norm(), z[f"gradnorm/{name}"], rtol=1e-4, atol=1e-7)
        if f"grad/{name}" in z:
            expected = z[f"grad/{name}"]
            near(parameter.grad, expected, 1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("group", ["a", "b"])
def test_losses(group):
    z = {k.removeprefix(f"{group}/"): v for k, v in read("losses").items() if k.startswith(group)}
    n, of_atom = int(z["N"]), z["t_index_atom"][:, 0]
    close = {"rtol": 1e-5, "atol": 0}
    lattices = z["lattice_x"].view(-1, 3, 3), z["lattice_pred"].view(-1, 3, 3)
    found = objective.lattice_loss(*lattices, z["t_index"], n, 0.05)
    torch.testing.assert_close(found, z["loss_lattice"], **close)
    for distance, name in (("wrapped-square", "loss_coord"), ("cosine", "loss_coord_cos")):
        found = objective.coordinate_loss(z["pos_x"], z["pos_pred"], z["alpha_i"].double(), n, distance)
        torch.testing.assert_close(found, z[name], **close)
    logits = z["p0"].clamp_min(1e-30).log()
    found = objective.type_loss(z["onehot"].argmax(1), logits, of_atom, n, 0.8)
    torch.testing.assert_close(found, z["loss_type"], **close)


class Chain:
    """Recorded messages of all steps, given out as ``flow`` asks for them."""

    def __init__(self, alpha, deviations, steps):
        self.alpha = alpha.double()
        flat, counts = deviations.flatten(1), steps.flatten()
        self.given = torch.cat([flat[:c, v] for v, c in enumerate(counts.tolist())])

    def draw(self, j, generator=None):
        assert len(j) == len(self.given)
        return self.given.double()


@pytest.mark.parametrize("kind", ["gen", "csp"])
def test_a_training_step(kind, monkeypatch):
    z, net = read(f"trainstep_{kind}"), network(kind)
    n, sizes, i = int(z["N"]), z["num_atoms"].tolist(), z["t_index"].long()
    layout, settings = Layout(sizes), config(kind, n)
    angles = flow.angles_of(z["frac"].double()).float()
    lattice = torch.from_numpy(cell_matrix(z["lengths"].double().numpy(), z["angles"].double().numpy())).float()
    lattice = (lattice - LATTICE_MEAN) / LATTICE_STD
    steps = (i - 1)[layout.crystal_of(i.device)].unsqueeze(1).expand_as(angles)
    # The official uniform number u gives 2 pi u - pi, as ours does.
    Replay(monkeypatch, randn=[v for k, v in sorted(z.items()) if k.startswith("rnd_randn")], rand=[z["rnd_rand_0"][0]])
    deviations = vonmises.wrap(z["rnd_vm_0"][..., 0] - z["rnd_vm_loc_0"][..., 0])
    source = Chain(z["alphas"][1:], deviations, steps)
    inputs = flow.beliefs(settings, source, i, z["atom"], angles, lattice, TYPES, layout, None)
    near(inputs.types.float(), z["net_atom_in"])
    near_angles(inputs.angles, z["net_pos"])
    near(inputs.lattice, z["net_lattice"])
    near(inputs.log_accuracy, z["net_log_acc"])
    estimates = flow.estimate(settings, net, i, inputs, layout, PUBLISHED)
    near(estimates[0], z["out_lattice"])
    near_angles(estimates[1], z["out_coord"])
    of_atom = i[layout.crystal_of(i.device)]
    losses = {
        "loss_lattice": objective.lattice_loss(lattice, estimates[0], i, n, 0.05),
        "loss_coord": objective.coordinate_loss(angles, estimates[1], z["alphas"].double()[of_atom], n),
    }
    if kind == "gen":
        losses["loss_type"] = objective.type_loss(z["atom"], estimates[2], of_atom, n, 0.8)
        near(estimates[2].softmax(1), z["out_type"].softmax(1) if z["out_type"].min() < 0 else z["out_type"])
    for name, value in losses.items():
        torch.testing.assert_close(value, z[name], rtol=1e-5, atol=1e-6)
    sum(losses.values()).backward()
    for name, parameter in net.named_parameters():
        if f"gradnorm/{name}" in z:
            torch.testing.assert_close(parameter.grad.norm(), z[f"gradnorm/{name}"], rtol=1e-4, atol=1e-6)


def test_data_are_prepared_as_officially():
    from headwater_bfn_crys.crystals import Crystals, wrap_unit

    z = read("trainstep_csp")
    lengths, cell_angles = z["lengths"].double().numpy(), z["angles"].double().numpy()
    frac = wrap_unit(z["frac"].double().numpy())
    crystals = Crystals(z["atom"].numpy() + 1, frac, lengths, cell_angles, z["num_atoms"].numpy())
    data = Data(crystals, torch.arange(1, TYPES + 1), PUBLISHED)
    types, angles, lattice, sizes = data.pick(torch.arange(5))
    assert sizes == (1, 2, 4, 6, 7)
    near_angles(angles[3:7], flow.angles_of(z["frac"][8:12].double()).float())
    assert torch.equal(types[:1], z["atom"][12:13])
    near(lattice[0], torch.from_numpy(cell_matrix(lengths[3], cell_angles[3])).float())


CASES = [
    ("gen", "sampler_gen", "end-back"),
    ("csp", "sampler_csp", "end-back"),
    ("csp", "sampler_csp_vanilla", "vanilla"),
]


@pytest.mark.parametrize(("kind", "name", "method"), CASES)
def test_sampling_step_by_step(kind, name, method):
    """Each step from the official inputs: the network's estimates, and the beliefs that they lead to."""
    z, net = read(name), network(kind)
    n, layout, settings = int(z["N"]), Layout(z["num_atoms"].tolist()), config(kind, int(z["N"]))
    types = z.get("atom")
    for i in range(1, n + 1):
        now = {part: z[f"step{i}_{part}"] for part in ("pos", "lattice", "log_acc", "out_lattice", "out_coord")}
        now["lattice"] = now["lattice"].view(5, 3, 3)
        read_types = z[f"step{i}_atom_in"] if kind == "gen" else types
        inputs = flow.Inputs(read_types, now["pos"], now["lattice"], now["log_acc"])
        with torch.no_grad():
            lattice, angles, logits = flow.estimate(settings, net, torch.full((5,), i), inputs, layout, PUBLISHED)
        near(lattice, now["out_lattice"].view(5, 3, 3))
        near_angles(angles, now["out_coord"])
        if i == n:
            near_angles(angles, z["final_coord"])
            near(lattice, z["final_lattice"].view(5, 3, 3))
            break
        k = i - 1
        after = {part: z.get(f"step{i + 1}_{part}") for part in ("atom_in", "pos", "lattice", "log_acc")}
        noise = z[f"rnd_randn_{2 * k + 1 if kind == 'gen' else k}"].view(5, 3, 3)
        with pytest.MonkeyPatch.context() as patch:
            if kind == "gen":
                Replay(patch, randn=[z[f"rnd_randn_{2 * k}"]])
                p = logits.softmax(1).clamp_min(1e-6)
                theta = discrete.flow(p, i / n, 0.8).softmax(1)
                near(2 * theta - 1, after["atom_in"])
            Replay(patch, randn=[noise])
            if method == "end-back":
                near(continuous.flow(lattice, i / n, 0.05), after["lattice"].view(5, 3, 3))
            else:
                accuracy = continuous.step_alpha(i, n, 0.05)
                y = continuous.sender(lattice, accuracy)
                precision = 1 + continuous.beta((i - 1) / n, 0.05)
                near(continuous.update(now["lattice"], precision, y, accuracy)[0],
                     after["lattice"].view(5, 3, 3))  # fmt: skip
        messages = z[f"rnd_vm_{k}"]
        if method == "end-back":
            deviations = vonmises.wrap(messages[..., 0] - z[f"rnd_vm_loc_{k}"][..., 0])
            steps = torch.full((layout.atoms, 3), i)
            belief = vonmises.flow(now["out_coord"], steps, Chain(z["alphas"][1:], deviations[:i], steps))
        else:
            low = math.log(1e-7)
            c = (now["log_acc"].double() * (math.log(1e3) - low) + low).exp() - 1e-7
            before = vonmises.Belief(now["pos"].double(), c)
            belief = vonmises.update(before, messages.double(), float(z["alphas"][i]), epsilon=1e-6)
        near_angles(belief.mean.float(), after["pos"], 1e-5)
        near(vonmises.log_accuracy(belief.concentration, 1e3).float(), after["log_acc"])


def test_statistics_of_the_flow():
    z = read("flow_stats")
    n = int(z["N"])
    with np.load(DATA / "entropy_schedules.npz") as arrays:
        alpha = torch.from_numpy(arrays[f"s{n}_1000.0"])
    bank = vonmises.Bank(vonmises.Angles(alpha))
    generator, draws = torch.Generator().manual_seed(0), 20000
    for i, expected in zip(z["idx"].tolist(), z["stats"], strict=True):
        x = torch.full((draws,), float(z["centre"]), dtype=torch.float64)
        belief = bank.flow(x, torch.full((draws,), i - 1), generator)
        deviation, c = vonmises.wrap(belief.mean - x), belief.concentration
        found = [deviation.cos(), deviation.abs(), c, None, c.log()]
        for value, official in zip(found, expected, strict=True):
            if value is not None:
                # Both are means of draws: 9000 there, and of the bank's distinct trajectories here.
                error = float(value.std()) * math.sqrt(1 / 9000 + 1 / min(draws, 2 * bank.size))
                assert abs(float(value.mean()) - float(official)) < 4 * error + 1e-5
