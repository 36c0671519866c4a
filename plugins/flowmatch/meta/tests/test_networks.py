import math

import numpy as np
import pytest
import torch
from headwater_flow_meta import networks
from headwater_flow_meta.networks import ICNN, PopulationEmbedding, VelocityField, neighbour_mean, neighbours
from scipy.spatial import cKDTree


@pytest.fixture
def clouds():
    return torch.randn(3, 40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_edges(embedding, x, labels, k):
    """The graph network written out: an edge list, in-degrees, symmetric normalisation, sums at the centres."""
    n = len(x)
    _, found = cKDTree(x.numpy()).query(x.numpy(), k=min(k, n - 1) + 1)
    edges = [(j, i) for i in range(n) for j in np.atleast_1d(found[i]) if j != i] + [(i, i) for i in range(n)]
    degree = [sum(1 for _, target in edges if target == i) for i in range(n)]
    z = torch.cat([x, labels], 1) if labels is not None else x
    for number, layer in enumerate(embedding.layers):
        moved = z @ layer.weight.T
        out = torch.zeros_like(moved)
        for source, target in edges:
            out[target] += moved[source] / math.sqrt(degree[source] * degree[target])
        z = out + layer.bias
        if number < len(embedding.layers) - 1 and not (embedding.official_linear and number == 0):
            z = z.clamp(min=0)
    mean = z.mean(0)
    return mean / mean.norm()


@pytest.mark.parametrize("official_linear", [False, True])
@pytest.mark.parametrize(("k", "layers"), [(5, 3), (0, 2), (100, 2), (7, 1)])
def test_the_embedding_equals_the_edge_list_formula(k, layers, official_linear, clouds):
    embedding = PopulationEmbedding(3, 2, 8, layers, k, official_linear).double()
    labels = torch.nn.functional.one_hot(torch.arange(40) % 2).double().expand(3, -1, -1)
    with torch.no_grad():
        found = embedding(clouds, labels)
        for i in range(3):
            expected = by_edges(embedding, clouds[i], labels[i], k)
            torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-10)


def test_large_populations_take_the_sparse_way_to_the_same_numbers(clouds, monkeypatch):
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[1, 25:] = False
    z = torch.randn(3, 40, 5, dtype=torch.float64, requires_grad=True)
    dense = neighbour_mean(clouds, 6, mask)
    monkeypatch.setattr(networks, "DENSE", 10)
    monkeypatch.setattr(networks, "ROWS", 3 * 40 * 7)  # distances in pieces of seven rows
    sparse = neighbour_mean(clouds, 6, mask)
    assert sparse.matrix.is_sparse
    torch.testing.assert_close(dense(z)[mask], sparse(z)[mask], rtol=0, atol=1e-12)
    torch.testing.assert_close(dense.pooled(z), sparse.pooled(z), rtol=0, atol=1e-12)
    a, b = (torch.autograd.grad(g(z).square().sum(), z)[0] for g in (dense, sparse))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_embedding_is_a_unit_vector_and_knows_no_order(clouds):
    embedding = PopulationEmbedding(3, 0, 16, 3, 6).double()
    with torch.no_grad():
        found = embedding(clouds)
        order = torch.randperm(40)
        torch.testing.assert_close(embedding(clouds[:, order]), found, rtol=0, atol=1e-12)
        torch.testing.assert_close(embedding(clouds.repeat(2, 1, 1)), found.repeat(2, 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("k", [0, 6])
def test_a_padded_batch_equals_one_by_one(k, clouds):
    # The smallest has fewer points than neighbours are asked for.
    sizes = [40, 17, 4]
    embedding, mask = PopulationEmbedding(3, 0, 16, 3, k).double(), torch.zeros(3, 40, dtype=torch.bool)
    padded = clouds.clone()
    for i, size in enumerate(sizes):
        mask[i, :size] = True
        padded[i, size:] = 1e3
    with torch.no_grad():
        found = embedding(padded, mask=mask)
        for i, size in enumerate(sizes):
            torch.testing.assert_close(found[i], embedding(clouds[i : i + 1, :size])[0], rtol=0, atol=1e-10)


def test_an_embedding_changes_little_under_subsampling():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(1, 900, 2, generator=generator), torch.rand(1, 900, 2, generator=generator) * 4 - 2
    torch.manual_seed(0)
    embedding = PopulationEmbedding(2, 0, 32, 3, 20)
    with torch.no_grad():
        whole, other = embedding(a)[0], embedding(b)[0]
        halves = [embedding(a[:, torch.randperm(900, generator=generator)[:450]])[0] for _ in range(5)]
    apart = float((whole - other).norm())
    assert sum(float((whole - half).norm()) for half in halves) / 5 < 0.5 * apart


def test_an_empty_signal_does_not_divide_by_zero():
    embedding = PopulationEmbedding(2, 0, 4, 2, 3)
    for parameter in embedding.parameters():
        parameter.data.zero_()
    assert bool((embedding(torch.zeros(1, 5, 2)) == 0).all())


def test_neighbours_are_those_of_a_tree_and_never_the_point_itself(clouds):
    index, real = neighbours(clouds, 5)
    assert bool(real.all())
    for own, x in zip(index, clouds, strict=True):
        expected = cKDTree(x.numpy()).query(x.numpy(), k=6)[1][:, 1:]
        assert np.array_equal(np.sort(own.numpy(), 1), np.sort(expected, 1))


def test_points_at_one_place_are_neighbours_of_each_other_not_of_themselves():
    index, _ = neighbours(torch.zeros(1, 4, 2), 3)
    assert [sorted(row) for row in index[0].tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


@pytest.mark.parametrize("skips", [False, True])
def test_the_field_equals_the_same_network_on_one_long_input(skips):
    torch.manual_seed(0)
    field = VelocityField(2, 4, 3, 10, 3, skips, 6, 5, 0.3).double()
    t, y = torch.rand(2, 7, dtype=torch.float64), torch.randn(2, 7, 2, dtype=torch.float64)
    context, condition = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    found = field(t, y, context, condition)
    for p in range(2):
        for i in range(7):
            angles = 2 * math.pi * (y[p, i] @ field.frequencies)
            rates = torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64) * t[p, i]
            columns = [context[p], rates.sin(), rates.cos(), angles.cos(), angles.sin(), y[p, i], condition[p]]
            h = torch.selu(field.first(torch.cat(columns)))
            for layer in field.hidden:
                h = torch.selu(layer(h) + h if skips else layer(h))
            torch.testing.assert_close(found[p, i], field.last(h), rtol=0, atol=1e-12)
    for moment in (0.0, 0.4):
        same = torch.full((2, 7), moment, dtype=torch.float64)
        one = field(same[0, 0], y, context, condition)
        torch.testing.assert_close(one, field(same, y, context, condition), rtol=0, atol=1e-12)


def test_parameters_of_the_paper():
    # Letters: the spec counts 1,028,418 trained numbers, B not among them.
    modules = [VelocityField(2, 64, 0, 512, 4), PopulationEmbedding(2, 0, 64, 3, 50)]
    assert sum(p.numel() for m in modules for p in m.parameters()) == 1_028_418


def test_icnn_is_convex_and_its_transport_is_the_gradient():
    torch.manual_seed(0)
    net = ICNN(3, (8, 8)).double()
    for w in net.W:
        w.weight.data -= 0.05
    assert float(net.penalty().detach()) > 0
    net.make_convex()
    assert float(net.penalty().detach()) == 0
    a, b = torch.randn(2, 200, 3, dtype=torch.float64) * 3
    with torch.no_grad():
        for s in (0.2, 0.5, 0.9):
            assert bool((net(s * a + (1 - s) * b) <= s * net(a) + (1 - s) * net(b) + 1e-9).all())
        gradient = net.transport(a)
        for d in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[d] = 1e-6
            numeric = (net(a + step) - net(a - step)).squeeze(1) / 2e-6
            torch.testing.assert_close(gradient[:, d], numeric, rtol=1e-5, atol=1e-5)
