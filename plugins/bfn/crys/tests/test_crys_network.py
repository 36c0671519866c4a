"""The network against a plain edge list, and the symmetries of crystals."""

import math

import pytest
import torch
from headwater_bfn.vonmises import wrap
from headwater_bfn_crys.layout import Layout
from headwater_bfn_crys.lookup import Exact, Tabulated, Terms, terms_of, weighted_sums
from headwater_bfn_crys.messages import messages, messages_fused
from headwater_bfn_crys.networks import CSPNet, time_embedding

SIZES = [1, 2, 5, 5, 3]
K, WIDTH, LAYERS, FREQUENCIES, TIME = 7, 24, 2, 6, 8


def network(given_types=False, seed=0):
    torch.manual_seed(seed)
    return CSPNet(K, WIDTH, LAYERS, FREQUENCIES, TIME, given_types).double()


def inputs(sizes=SIZES, given_types=False, seed=1):
    g = torch.Generator().manual_seed(seed)
    v, b = sum(sizes), len(sizes)
    types = torch.randint(K, (v,), generator=g) if given_types else torch.randn(v, K, generator=g).double()
    angles = (2 * torch.rand(v, 3, generator=g).double() - 1) * math.pi
    i = torch.randint(1, 9, (b,), generator=g)
    return [i, types, angles, torch.randn(b, 3, 3, generator=g).double(), torch.rand(v, 3, generator=g).double()]


def by_edge_list(net, i, types, angles, lattice, log_accuracy, sizes):
    """Crystal by crystal, with all pairs of atoms written out, self pairs included."""
    outs = []
    start = 0
    for b, size in enumerate(sizes):
        atoms = slice(start, start + size)
        start += size
        time = time_embedding(i[b : b + 1], TIME).double().expand(size, -1)
        h = net.atom_latent_emb(torch.cat([net.node_embedding(types[atoms]), time, log_accuracy[atoms]], 1))
        x, cell = angles[atoms], lattice[b]
        for k in range(LAYERS):
            layer = net.get_submodule(f"csp_layer_{k}")
            z = layer.layer_norm(h)
            received = []
            for p in range(size):
                rows = []
                for q in range(size):
                    d = wrap(x[q] - x[p])
                    phase = (d.unsqueeze(1) * torch.arange(FREQUENCIES)).flatten()
                    rows.append(torch.cat([z[p], z[q], (cell @ cell.T).flatten(), phase.sin(), phase.cos()]))
                received.append(layer.edge_mlp(torch.stack(rows)).mean(0))
            h = h + layer.node_mlp(torch.cat([z, torch.stack(received)], 1))
        h = net.final_layer_norm(h)
        outs.append((net.lattice_out(h.mean(0)).view(3, 3) @ cell, net.coord_out(h), net.type_out(h)))
    return torch.stack([o[0] for o in outs]), torch.cat([o[1] for o in outs]), torch.cat([o[2] for o in outs])


def total(outs):
    return sum((part * torch.arange(part.numel()).view(part.shape).sin()).sum() for part in outs)


def gradients(net, outs, *others):
    return torch.autograd.grad(total(outs), [*net.parameters(), *others])


@pytest.mark.parametrize("given_types", [False, True])
@pytest.mark.parametrize("at_once", [1, 12, 10_000])
def test_the_network_and_its_gradients_equal_an_edge_list(given_types, at_once):
    net, given = network(given_types), inputs(given_types=given_types)
    for place in (2, 3, 4):
        given[place].requires_grad_()
    found = net(*given, Layout(SIZES, at_once))
    expected = by_edge_list(net, *given, SIZES)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    # Of the coordinates no gradient is wanted: they enter through features that are constants to the official network.
    for a, b in zip(gradients(net, found, *given[3:]), gradients(net, expected, *given[3:]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_plain_and_fused_messages_agree_with_and_without_gradient():
    layout, g = Layout(SIZES, 20), torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)

    v, f, width = layout.atoms, 3 * FREQUENCIES, 200  # in two parts of columns
    a, b, weight, bias = random(v, width), random(v, width), random(width, width), random(width)
    even, odd = random(width, f), random(width, f)
    terms = terms_of(random(v, 3).detach(), FREQUENCIES, layout)
    assert isinstance(terms, Exact)

    def fused():
        return messages_fused(layout, terms, terms.values(even, odd), a, b, weight, bias)

    plain = messages(layout, a, b, terms.cosine, terms.sine, even, odd, weight, bias)
    torch.testing.assert_close(fused(), plain)
    leaves, weights = [a, b, even, odd, weight, bias], torch.randn(v, width, generator=g, dtype=torch.float64)
    for x, y in zip(*(torch.autograd.grad((out * weights).sum(), leaves) for out in (plain, fused())), strict=True):
        torch.testing.assert_close(x, y)
    with torch.no_grad():
        torch.testing.assert_close(fused(), plain)


@pytest.mark.parametrize("frequencies", [1, 3, 16, 128])
def test_a_looked_up_edge_is_the_sum_of_its_cosines_and_sines(frequencies):
    layout, g = Layout([2, *[8] * 20]), torch.Generator().manual_seed(frequencies)
    angles = (2 * torch.rand(layout.atoms, 3, generator=g) - 1) * math.pi
    angles[:2] = torch.tensor([[-math.pi], [math.pi]])  # where the table wraps around
    terms = terms_of(angles, frequencies, layout)
    assert isinstance(terms, Tabulated)
    even, odd = torch.randn(2, 6, 3 * frequencies, generator=g) / frequencies**0.5
    a, b = torch.randn(2, layout.atoms, 6, generator=g)
    found = weighted_sums(terms.rows, terms.weights, torch.cat([terms.values(even, odd), a, b]))
    i, j = layout.edges
    d = (angles[j].double() - angles[i].double()).unsqueeze(-1)
    phase = (d * torch.arange(frequencies)).flatten(1)
    expected = phase.cos() @ even.double().T + phase.sin() @ odd.double().T + a[i] + b[j]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    # The other way round: what a row gets is what its edges give.
    edges, begins, weights = terms.transposed
    given = torch.randn(layout.edge_count, 6, generator=g)
    matrix = torch.zeros(layout.edge_count, terms.count).scatter_add_(1, terms.rows.long(), terms.weights)
    torch.testing.assert_close(weighted_sums(edges, weights, given, begins), matrix.T @ given, rtol=1e-4, atol=1e-5)


def test_more_rows_than_16_bits_number():
    terms = Terms(
        torch.tensor([[70_000, 1], [4464, 70_000]], dtype=torch.int32), torch.tensor([[1.0, 2], [3, 4]]), 70_001
    )
    edges, begins, weights = terms.transposed
    sums = weighted_sums(edges, weights, torch.tensor([[1.0], [10.0]]), begins)
    assert sums[[1, 4464, 70_000]].flatten().tolist() == [2, 30, 41]
    assert float(sums.sum()) == 73


@pytest.mark.parametrize("given_types", [False, True])
def test_single_precision_looks_up_and_equals_double_precision(given_types):
    net, given = network(given_types), inputs(given_types=given_types)
    single, rounded = network(given_types).float(), [t.float() if t.dtype == torch.float64 else t for t in given]
    given = [t.double() if t.dtype == torch.float32 else t for t in rounded]
    assert isinstance(terms_of(rounded[2], FREQUENCIES, Layout(SIZES)), Tabulated)
    found, expected = single(*rounded, Layout(SIZES)), net(*given, Layout(SIZES))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5)
    for a, b in zip(gradients(single, found), gradients(net, expected), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_unchanged_weights_are_tabulated_once_and_changed_ones_anew():
    net, given = network().float(), [t.float() if t.dtype == torch.float64 else t for t in inputs()]
    layout = Layout(SIZES)
    with net.unchanged():
        net(*given, layout)
        kept = net(*given, layout)
    for a, b in zip(kept, net(*given, layout), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert not a.requires_grad
        assert b.requires_grad
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
    with net.unchanged():
        changed = net(*given, layout)
    torch.testing.assert_close(changed[1], net(*given, layout)[1], rtol=0, atol=0)
    assert float((changed[1] - kept[1]).abs().max()) > 1e-3


def test_translated_crystals_get_translated_estimates():
    net, given = network(), inputs()
    shift = torch.tensor([0.7, -2.0, 3.0]).double()
    moved = [*given[:2], wrap(given[2] + shift), *given[3:]]
    for a, b in zip(net(*given, Layout(SIZES)), net(*moved, Layout(SIZES)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_rotated_cells_get_rotated_estimates():
    net, given = network(), inputs()
    q, _ = torch.linalg.qr(torch.randn(3, 3).double())
    cell, shift, logits = net(*given, Layout(SIZES))
    turned = net(*given[:3], given[3] @ q, given[4], Layout(SIZES))
    torch.testing.assert_close(turned[0], cell @ q)
    torch.testing.assert_close(turned[1], shift)
    torch.testing.assert_close(turned[2], logits)


def test_permuted_atoms_get_permuted_estimates():
    sizes, net = [5], network()
    given, order = inputs(sizes), torch.tensor([3, 1, 4, 0, 2])
    cell, shift, logits = net(*given, Layout(sizes))
    changed = net(given[0], given[1][order], given[2][order], given[3], given[4][order], Layout(sizes))
    torch.testing.assert_close(changed[0], cell)
    torch.testing.assert_close(changed[1], shift[order])
    torch.testing.assert_close(changed[2], logits[order])


def test_a_crystal_does_not_depend_on_those_beside_it():
    net, given = network(), inputs()
    together = net(*given, Layout(SIZES))[1]
    alone = net(given[0][2:3], given[1][3:8], given[2][3:8], given[3][2:3], given[4][3:8], Layout([5]))[1]
    torch.testing.assert_close(together[3:8], alone)


def test_an_unknown_cell_gives_an_estimate_of_0():
    net, given = network(), inputs()
    given[3] = torch.zeros_like(given[3])
    assert float(net(*given, Layout(SIZES))[0].detach().abs().max()) == 0


def test_reduced_precision_takes_the_plain_path_and_stays_near():
    net, given = network().float(), [t.float() if t.is_floating_point() else t for t in inputs()]
    exact = net(*given, Layout(SIZES))
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(*given, Layout(SIZES))
    for a, b in zip(exact, rough, strict=True):
        assert float((a - b.float()).detach().abs().max()) < 0.1


def test_the_published_size():
    assert sum(p.numel() for p in CSPNet(89, 512, 6, 128).parameters()) == 12_271_193
