"""Outputs, losses, gradients and sampling steps equal those of the official code (skipped without its numbers)."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from headwater_bfn_moljo import chains, flow, guidance
from headwater_bfn_moljo.convert import from_official
from headwater_bfn_moljo.flow import Belief
from headwater_bfn_moljo.layout import Layout
from torch.nn.functional import one_hot

DATA = next(
    (p / "shared/data/bfn-moljo" for p in Path(__file__).resolve().parents if (p / "shared/data/bfn-moljo").is_dir()),
    Path("shared/data/bfn-moljo"),
)
FOLDER = DATA / "parity"
SIGMA1, BETA1, KNN, STEPS = 0.04, 1.2, 11, 1000

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the official reference numbers are not here")


@cache
def read(name):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}


@cache
def network(name, **options):
    prefix = f"{name}/sd/"
    state = {k.removeprefix(prefix): v for k, v in read("weights").items() if k.startswith(prefix)}
    options = {} if name == "backbone" else {"property": name.removeprefix("predictor_")}
    (module,) = from_official(state, **options).values()
    return module


@cache
def layout():
    z = read("inputs")
    protein, ligand = (torch.bincount(z[f"batch_{k}"]).tolist() for k in ("protein", "ligand"))
    return Layout(z["protein_pos"], protein, ligand, KNN)


def types():
    return one_hot(read("inputs")["ligand_v"].long(), 13).float()


def owner():
    return read("inputs")["batch_ligand"]


def near(a, b, tolerance=2e-5):
    torch.testing.assert_close(a, b.to(a.dtype), rtol=0, atol=tolerance)


def estimate(mu, theta, t):
    return network("backbone")(mu, theta, t, read("inputs")["protein_v"].float(), layout())


def predict(name, mu, theta, t):
    return network(name)(mu, theta, t, read("inputs")["protein_v"].float(), layout())


class TestFlowAndNetwork:
    z = property(lambda self: read("backbone"))

    def test_flow(self, monkeypatch):
        recorded = [self.z["eps_pos"], self.z["eps_type"]]
        monkeypatch.setattr(torch, "randn", lambda *shape, **options: recorded.pop(0))
        found = flow.flow(
            read("inputs")["ligand_pos"], types(), self.z["t"].squeeze(1), SIGMA1, BETA1, torch.Generator()
        )
        near(found.mu, self.z["mu"], 1e-6)
        near(found.theta, self.z["theta"], 1e-6)

    def test_backbone(self):
        x, logits = estimate(self.z["mu"], self.z["theta"], self.z["t"].squeeze(1))
        near(x, self.z["x_hat"])
        near(logits.softmax(-1), self.z["p0"])

    def test_rotated(self):
        q = self.z["rot_Q"]
        turned = Layout(read("inputs")["protein_pos"] @ q, layout().protein_sizes, layout().ligand_sizes, KNN)
        x, logits = network("backbone")(
            self.z["mu"] @ q, self.z["theta"], self.z["t"].squeeze(1), read("inputs")["protein_v"].float(), turned
        )
        near(x, self.z["rot_x_hat"])
        near(logits.softmax(-1), self.z["rot_p0"])

    def losses(self, steps):
        t = self.z["t"].squeeze(1)
        x, logits = estimate(self.z["mu"], self.z["theta"], t)
        positions = flow.coordinate_loss(read("inputs")["ligand_pos"], x, t, SIGMA1, steps)
        kinds = flow.type_loss(types(), logits, t, BETA1, steps, torch.Generator().manual_seed(0), draws=4000)
        return flow.mean_by_molecule(positions, owner(), 4), kinds

    def test_losses(self):
        for steps, name in ((STEPS, "dtime"), (None, "ctime")):
            positions, kinds = self.losses(steps)
            torch.testing.assert_close(positions, self.z[f"closs_{name}"], rtol=1e-5, atol=0)
            if steps is None:
                found = flow.mean_by_molecule(kinds, owner(), 4)
                torch.testing.assert_close(found, self.z["dloss_ctime"], rtol=1e-5, atol=0)
            else:
                off = abs(float(kinds.detach().mean() - self.z["dloss_dtime_mean"]))
                assert off < 5 * float(self.z["dloss_dtime_sem"]) + 1e-3

    def test_gradients(self):
        from headwater_bfn_moljo.convert import IGNORED, _renamed

        positions, _ = self.losses(STEPS)
        _, kinds = self.losses(None)
        backbone = network("backbone")
        backbone.zero_grad()
        (positions.mean() + flow.mean_by_molecule(kinds, owner(), 4).mean()).backward()
        norms = {k.removeprefix("gradnorm/"): v for k, v in self.z.items() if k.startswith("gradnorm/")}
        norms = _renamed({k.removeprefix("sd/"): v for k, v in norms.items() if not IGNORED.match(k)})
        assert len(norms) > 50
        grads = {name: p.grad for name, p in backbone.named_parameters()}
        for name, norm in norms.items():
            if name.endswith("key.3.bias"):  # it drops out of the softmax
                assert grads[name] is None
                assert float(norm) < 1e-5
                continue
            torch.testing.assert_close(grads[name].norm(), norm.float(), rtol=1e-3, atol=1e-6, msg=name)
        for name, grad in grads.items():
            if name not in norms:
                assert grad is None or float(grad.norm()) < 1e-5, name


class TestPredictor:
    def test_value_and_gradients(self):
        z, b = read("predictor"), read("backbone")
        mu, theta = b["mu"].clone().requires_grad_(), b["theta"].clone().requires_grad_()
        value = predict("predictor_affinity", mu, theta, b["t"].squeeze(1))
        near(value, z["value"])
        g_mu, g_theta = torch.autograd.grad(value.log().sum(), (mu, theta))
        near(g_mu, z["dlog_dmu"], 1e-5)
        near(g_theta, z["dlog_dtheta"], 1e-5)

    def test_loss(self, monkeypatch):
        z = read("predictor")
        recorded = [z["loss_noise_0"], z["loss_noise_1"]]
        monkeypatch.setattr(torch, "randn", lambda *shape, **options: recorded.pop(0))
        t = z["loss_t"].squeeze(1)
        belief = flow.flow(read("inputs")["ligand_pos"], types(), t, SIGMA1, BETA1, torch.Generator())
        value = predict("predictor_affinity", belief.mu, belief.theta, t)
        near((value - z["loss_prop"]).abs(), z["loss"])


GUIDES = ("predictor_affinity", "predictor_sa")


class TestSampler:
    """Step by step from the stored states. The last stored state is the network's last estimate.

    At step 1 the atoms coincide and ties decide the graph, so that gradients there are not compared.
    """

    def belief(self, z, j):
        return Belief(z["mu"][j], z["theta"][j].log())

    def time(self, t):
        return torch.full((44,), t)

    def estimates(self, belief, j, n):
        with torch.no_grad():
            x, logits = estimate(belief.mu, belief.theta, self.time(j / n))
        return x, logits.softmax(-1).clamp_min(chains.FLOOR)

    def gradient(self, z, j, t):
        found = lambda mu, theta: [predict(name, mu, theta, self.time(t)) for name in GUIDES]  # noqa: E731
        return guidance.by_probabilities(found, self.belief(z, j))

    def same(self, z, i, n, made):
        if i < n:
            near(made.mu, z["mu"][i])
            near(made.theta, z["theta"][i])
        else:
            with torch.no_grad():
                x, logits = estimate(made.mu, made.theta, self.time(1.0))
            near(x, z["x_hat"][n])
            if "p_final" in z:
                near(logits.softmax(-1), z["p_final"])
            else:  # the guided code keeps the logits, clamped as if they were probabilities
                near(logits.clamp_min(chains.FLOOR), z["p_hat"][n])

    def weights(self, z):
        return float(z["weight_pos"]), float(z["weight_type"])

    def test_molcraft(self):
        z, n = read("sample_end_back_pmf"), 7
        for i in range(1, n + 1):
            x, p = self.estimates(self.belief(z, i - 1), i - 1, n)
            y_noise, mu_noise = z[f"noise_{4 * i - 2}"], z[f"noise_{4 * i - 1}"]
            made = chains.end_back_step(x, p, i, n, SIGMA1, BETA1, mu_noise, y_noise)
            self.same(z, i, n, made)

    @pytest.mark.parametrize("name", ["guided_end_back_pmf", "guided_pos_only", "unguided_pmf"])
    def test_end_back(self, name):
        z, n = read(f"sample_{name}"), 9
        guided = any(self.weights(z))
        for i in range(1, n + 1):
            x, p = self.estimates(self.belief(z, i - 1), i - 1, n)
            if i > 1 and guided:
                gradient = self.gradient(z, i - 1, i / n)
                x, p = chains.official_shift(x, p, gradient, self.weights(z), SIGMA1 ** (2 * (i - 1) / n), log=False)
            near(x, z["x_hat"][i - 1])
            made = chains.end_back_step(x, p, i, n, SIGMA1, BETA1, z[f"noise_{4 * i}"], z[f"noise_{4 * i - 1}"])
            self.same(z, i, n, made)

    @pytest.mark.parametrize("j", range(1, 9))
    def test_guides(self, j):
        z, n = read("sample_guided_end_back_pmf"), 9
        t = self.time((j + 1) / n)
        for c, name in enumerate(GUIDES):
            near(predict(name, z["mu"][j], z["theta"][j], t), z[f"guide_{j}_value"][c])
            found = guidance.by_probabilities(
                lambda mu, theta, name=name: [predict(name, mu, theta, t)], self.belief(z, j)
            )
            for got, key in zip(found, ("mu", "theta"), strict=True):
                torch.testing.assert_close(got, z[f"guide_{j}_grad_{key}"][c], rtol=1e-3, atol=1e-5)

    def test_vanilla(self):
        z, n = read("sample_guided_vanilla"), 9
        for i in range(1, n + 1):
            x, p = self.estimates(self.belief(z, i - 1), i - 1, n)
            e = chains.draw_classes(p, z["uniforms"][2 * i - 1])
            made = chains.vanilla_step(
                self.belief(z, i - 1), x, e, i, n, SIGMA1, BETA1, z[f"noise_{2 * i - 1}"], z[f"noise_{2 * i}"]
            )
            self.same(z, i, n, made)

    @pytest.mark.parametrize("k", [3, 5])
    def test_window(self, k):
        z, n = read(f"sample_guided_back{k}"), 9
        row = 2
        for i in range(2, n + 1):
            x, p = self.estimates(self.belief(z, i - 1), i - 1, n)
            late = i > k
            factor = SIGMA1 ** (2 * (i if late else i - 1) / n)
            gradient = self.gradient(z, i - 1, (i - 1) / n)
            x, p = chains.official_shift(x, p, gradient, self.weights(z), factor, log=late)
            near(x, z["x_hat"][i - 1])
            first, second = z[f"noise_{4 * i - 1}"], z[f"noise_{4 * i}"]
            if late:
                e = chains.draw_classes(p, z["uniforms"][row + 2])
                before = self.belief(z, i - 1 - k)
                made = chains.window_step(before, x, e, i, k, n, SIGMA1, BETA1, first, second)
            else:
                made = chains.end_back_step(x, p, i, n, SIGMA1, BETA1, first, second)
            row += 3 if late else 2
            self.same(z, i, n, made)
