"""The network: symmetries, batches, and equality with the published sums over edges written out."""

import pytest
import torch
from headwater_bfn_moljo.data import random_rotation
from headwater_bfn_moljo.flow import Belief
from headwater_bfn_moljo.guidance import by_logits
from headwater_bfn_moljo.layout import Layout
from headwater_bfn_moljo.networks import CENTRES, Backbone, Predictor

K, WIDTH, HEADS = 5, 16, 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Case:
    def __init__(self, proteins=(14, 9), ligands=(5, 3), knn=6, layers=3, seed=0, kind=Backbone):
        g = seeded(seed)
        self.proteins, self.ligands, self.knn = proteins, ligands, knn
        self.pos = 2 * torch.randn(sum(proteins), 3, generator=g, dtype=torch.float64)
        self.features = torch.rand(sum(proteins), 27, generator=g, dtype=torch.float64)
        self.mu = torch.randn(sum(ligands), 3, generator=g, dtype=torch.float64)
        self.theta = torch.randn(sum(ligands), K, generator=g, dtype=torch.float64).softmax(-1)
        self.t = torch.rand(sum(ligands), generator=g, dtype=torch.float64)
        torch.manual_seed(seed)
        self.network = kind(K, WIDTH, layers, HEADS).double()
        with torch.no_grad():
            for p in self.network.parameters():
                if p.ndim == 1:
                    p.add_(0.1 * torch.randn(p.shape, generator=g, dtype=torch.float64))

    def __call__(self, mu=None, pos=None):
        layout = Layout(self.pos if pos is None else pos, self.proteins, self.ligands, self.knn)
        return self.network(self.mu if mu is None else mu, self.theta, self.t, self.features, layout)


def plain(case, first_protein, last_protein, first, last):
    """One complex, each edge by itself, with the first linear maps on whole rows and the second ones inside the sum."""
    body, p = case.network.body, last_protein - first_protein
    pos = torch.cat([case.pos[first_protein:last_protein], case.mu[first:last]])
    ligand = body.ligand_in(torch.cat([2 * case.theta[first:last] - 1, case.t[first:last, None]], 1))
    protein = body.protein_in(case.features[first_protein:last_protein])
    h = torch.cat([torch.cat([protein, torch.zeros(p, 1)], 1), torch.cat([ligand, torch.ones(last - first, 1)], 1)])
    n = len(pos)
    sources = []
    for i in range(n):
        d = (pos[i] - pos).norm(dim=1)
        d[i] = torch.inf
        sources.append(d.argsort(stable=True)[: min(case.knn, n - 1)].tolist())
    edges = [(j, i) for i in range(n) for j in sources[i]]
    centres = torch.tensor(CENTRES, dtype=torch.float64)

    def gaussians(x, j, i):
        return torch.exp(-0.5 * ((x[i] - x[j]).norm() - centres) ** 2)

    def kind(j, i):
        return {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}[(j >= p, i >= p)]

    gate = {(j, i): torch.sigmoid(body.gate(gaussians(pos, j, i))) for j, i in edges}
    x = pos.clone()
    for block in body.layers:

        def row(j, i, h=h, x=x):
            one = torch.eye(4, dtype=torch.float64)[kind(j, i)]
            return torch.cat([one, torch.outer(one, gaussians(x, j, i)).flatten(), h[i], h[j]])

        def attend(attention, h, i, row):
            q = attention.query(h[i]).view(HEADS, -1)
            keys = torch.stack([attention.key(row(j, i)).view(HEADS, -1) for j in sources[i]])
            return ((keys * q).sum(-1) / q.shape[1] ** 0.5).softmax(0)

        out = []
        for i in range(n):
            alpha = attend(block.x2h, h, i, row)
            values = torch.stack([block.x2h.value(row(j, i)) * gate[j, i] for j in sources[i]])
            out.append((alpha.unsqueeze(-1) * values.view(len(sources[i]), HEADS, -1)).sum(0).flatten())
        h = h + torch.stack(out)

        def moved(j, i, h=h, x=x):
            one = torch.eye(4, dtype=torch.float64)[kind(j, i)]
            return torch.cat([one, torch.outer(one, gaussians(x, j, i)).flatten(), h[i], h[j]])

        after = x.clone()
        for i in range(p, n):
            alpha = attend(block.h2x, h, i, moved)
            values = torch.stack([block.h2x.value(moved(j, i)) * gate[j, i] for j in sources[i]])
            away = torch.stack([x[i] - x[j] for j in sources[i]])
            after[i] = x[i] + ((alpha * values).unsqueeze(-1) * away.unsqueeze(1)).sum(0).mean(0)
        x = after
    return x[p:], h[p:]


def test_dense_sums_equal_the_published_ones_edge_by_edge():
    case = Case()
    with torch.no_grad():
        x, h = case.network.body(
            case.mu, case.theta, case.t, case.features, Layout(case.pos, case.proteins, case.ligands, case.knn)
        )
        for b, (protein, ligand) in enumerate((((0, 14), (0, 5)), ((14, 23), (5, 8)))):
            expected_x, expected_h = plain(case, *protein, *ligand)
            torch.testing.assert_close(x[slice(*ligand)], expected_x, rtol=0, atol=1e-10, msg=f"complex {b}")
            torch.testing.assert_close(h[slice(*ligand)], expected_h, rtol=0, atol=1e-10, msg=f"complex {b}")


@pytest.mark.parametrize("mirror", [False, True])
def test_coordinates_turn_with_the_complex_and_logits_stay(mirror):
    case = Case()
    q = random_rotation(seeded(1)).double() * (-1 if mirror else 1)
    x, logits = case()
    turned, same = case(case.mu @ q, case.pos @ q)
    torch.testing.assert_close(turned, x @ q, rtol=0, atol=1e-5)
    torch.testing.assert_close(same, logits, rtol=0, atol=1e-5)


def test_the_shift_by_guidance_turns_with_the_complex():
    case = Case(kind=Predictor)
    q = random_rotation(seeded(2)).double()
    y = case.theta.log()

    def gradients(mu, pos):
        def predict(mu, theta):
            layout = Layout(pos, case.proteins, case.ligands, case.knn)
            return [case.network(mu, theta, case.t, case.features, layout)]

        return by_logits(predict, Belief(mu, y))

    (g_mu, g_y), (turned_mu, turned_y) = gradients(case.mu, case.pos), gradients(case.mu @ q, case.pos @ q)
    torch.testing.assert_close(turned_mu, g_mu @ q, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned_y, g_y, rtol=0, atol=1e-5)


def test_the_order_of_atoms_does_not_matter():
    case = Case()
    x, logits = case()
    order = torch.tensor([3, 0, 4, 1, 2, 7, 5, 6])
    case.theta, case.t = case.theta[order], case.t[order]
    found, found_logits = case(case.mu[order])
    torch.testing.assert_close(found, x[order], rtol=0, atol=1e-9)
    torch.testing.assert_close(found_logits, logits[order], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", [Backbone, Predictor])
def test_a_complex_is_the_same_alone_and_in_a_batch(kind):
    both = Case(kind=kind)
    alone = Case(kind=kind)
    alone.proteins, alone.ligands = (9,), (3,)
    alone.pos, alone.features = both.pos[14:], both.features[14:]
    alone.mu, alone.theta, alone.t = both.mu[5:], both.theta[5:], both.t[5:]
    if kind is Predictor:
        torch.testing.assert_close(alone(), both()[1:], rtol=0, atol=1e-10)
    else:
        for one, many in zip(alone(), both(), strict=True):
            torch.testing.assert_close(one, many[5:], rtol=0, atol=1e-10)


def test_a_complex_smaller_than_k():
    small, case = Case(proteins=(3,), ligands=(2,), knn=32), Case(proteins=(3,), ligands=(2,), knn=4)
    for a, b in zip(small(), case(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert torch.isfinite(small()[0]).all()


def test_gradients_are_finite_where_all_ligand_atoms_coincide():
    case = Case(kind=Predictor)
    g_mu, g_y = by_logits(
        lambda mu, theta: [
            case.network(mu, theta, case.t, case.features, Layout(case.pos, case.proteins, case.ligands, case.knn))
        ],
        Belief(torch.zeros_like(case.mu), torch.zeros_like(case.theta)),
    )
    assert torch.isfinite(g_mu).all()
    assert torch.isfinite(g_y).all()
    assert float(g_y.abs().max()) > 0


def test_neighbours_are_the_nearest_of_the_same_complex_and_ties_go_by_number():
    case = Case()
    layout = Layout(case.pos, case.proteins, case.ligands, case.knn)
    mu = torch.zeros_like(case.mu)
    pos = torch.cat([case.pos, mu])
    owner = torch.cat([layout.protein_of, layout.ligand_of])
    into_protein, into_ligand = layout.edges(mu)
    tables = torch.cat([into_protein.sources, into_ligand.sources])
    for i in range(len(pos)):
        d = (pos - pos[i]).norm(dim=1)
        d[(owner != owner[i])] = torch.inf
        d[i] = torch.inf
        assert tables[i].tolist() == d.argsort(stable=True)[: case.knn].tolist(), i


def test_rotations_are_proper():
    for seed in range(20):
        q = random_rotation(seeded(seed))
        torch.testing.assert_close(q @ q.T, torch.eye(3), rtol=0, atol=1e-6)
        assert float(torch.linalg.det(q)) == pytest.approx(1, abs=1e-5)
