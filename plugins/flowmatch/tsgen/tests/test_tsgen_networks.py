"""Dense networks against loops over edges in double precision, and their symmetries."""

import math

import pytest
import torch
from headwater_flow_tsgen.networks import CHANNELS, CUTOFF, MolGen, Potential, TSGen, radial_basis
from torch.nn.functional import silu

SIZES = [7, 5]


def random_rotation(generator, dtype=torch.float64):
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=dtype))
    q = q * r.diagonal().sign()
    return q if torch.linalg.det(q) > 0 else q * torch.tensor([1.0, 1.0, -1.0], dtype=dtype)


def setting(kind, dtype=torch.float64, sizes=SIZES, spread=2.0):
    torch.manual_seed(0)
    if kind == "molgen":
        network = MolGen(5, 12, 2, 3, 10)
    else:
        network = TSGen(5, 12, 8, 2, 3, 10)
    for p in network.parameters():
        p.data += 0.1 * torch.randn_like(p)
    n = max(sizes)
    mask = torch.arange(n) < torch.tensor(sizes).unsqueeze(1)
    species = torch.randint(0, 4, (len(sizes), n)) * mask
    x, reactant, product = (spread * torch.randn(3, len(sizes), n, 3)) * mask.unsqueeze(-1)
    fragment = torch.where(mask, torch.arange(n) // 4, -1)
    data = {"x": x, "reactant": reactant, "product": product}
    return (
        network.to(dtype),
        {k: v.to(dtype) for k, v in data.items()} | {"species": species, "mask": mask, "fragment": fragment},
        torch.rand(len(sizes), dtype=dtype),
    )


def run(network, d, t, x=None, fragments=True, mask=True):
    context = network.prepare(
        d["species"], d["reactant"], d["product"], d["mask"] if mask else None, d["fragment"] if fragments else None
    )
    return network(d["x"] if x is None else x, t, context)


def spherical(degree, direction):
    """Real spherical harmonics of degree 0, 1, 2 with norm sqrt(2 l + 1)."""
    x, y, z = direction
    if degree == 0:
        return torch.ones(1, dtype=direction.dtype)
    if degree == 1:
        return math.sqrt(3) * direction
    return math.sqrt(15) * torch.stack(
        [x * y, y * z, (2 * z**2 - x**2 - y**2) / (2 * math.sqrt(3)), x * z, (x**2 - y**2) / 2]
    )


def invariants_by_tensor_product(block, species, vector):
    """What the published code computes for one edge: scalars times spherical harmonics, weighted, then norms."""
    r = torch.linalg.vector_norm(vector)
    node = block.embed(torch.nn.functional.one_hot(species, 5).to(vector.dtype))
    g = torch.stack(
        [
            (r < CUTOFF) * 0.5 * (torch.cos(math.pi * r / CUTOFF) + 1) * torch.exp(-b * (torch.exp(-r) - m) ** 2)
            for m, b in zip(block.means, block.betas, strict=True)
        ]
    )
    out = []
    for degree, (radial, weight) in enumerate(zip(block.radial, block.weights, strict=True)):
        edge = radial(g)[:, None] * spherical(degree, vector / r)
        message = torch.einsum("u,vm,uvw->wm", node, edge, weight) / math.sqrt(512)
        out.append(message[:, 0] if degree == 0 else message.norm(dim=1))
    return torch.cat(out)


def loop_layer(layer, h, v, pairs, lengths):
    """One layer, receiver by receiver, head by head."""
    n, d = h.shape
    size = d // layer.heads
    q, k, value = layer.qkv(layer.norm1(h)).split(d, -1)
    vectors = torch.einsum("nxc,cd->nxd", v, layer.value)
    dh, dv = torch.zeros_like(h), torch.zeros_like(v)
    for j in range(n):
        senders = [i for (i, receiver) in pairs if receiver == j]
        for head in range(layer.heads):
            part = slice(head * size, (head + 1) * size)
            logits = [
                q[j, part] @ k[i, part] / math.sqrt(size) - lengths[i, j] + layer.bias(pairs[i, j])[head]
                for i in senders
            ]
            if not senders:
                continue
            alpha = torch.stack(logits)
            alpha = (alpha - alpha.max()).exp()
            alpha = alpha / (alpha.sum() + 1e-12)
            for weight, i in zip(alpha, senders, strict=True):
                dh[j, part] += weight * value[i, part]
                dv[j, :, part] += weight * vectors[i, :, part]
    h, v = h + dh @ layer.out_h, v + dv @ layer.out_v
    w1, w2 = layer.mix.split(d, 1)
    v1, v2 = v @ w1, v @ w2
    u = layer.inner(torch.cat([layer.norm2(h), v1.norm(dim=1)], -1))
    u1, u2 = silu(u[:, : layer.ff]), silu(u[:, layer.ff :])
    return h + layer.outer1(u1), v + layer.norm(layer.outer2(u2))[:, None] * v2


def loop_network(network, kind, species, x, reactant, product, fragment, t):
    """One molecule, edge by edge, as the papers write it."""
    n = len(x)
    f = network.atom(torch.nn.functional.one_hot(species, 5).to(x.dtype))
    lengths = torch.cdist(x, x)
    edges = [(i, j) for i in range(n) for j in range(n) if i != j and lengths[i, j] < CUTOFF]
    inside = [e for e in edges if kind == "tsgen" or fragment[e[0]] == fragment[e[1]]]
    pairs = {}
    for i, j in inside:
        if kind == "tsgen":
            pairs[i, j] = network.bond(torch.cat([x[i] - x[j], lengths[i, j].view(1)]))
        else:
            three = [
                invariants_by_tensor_product(network.edge, species[i], frame[i] - frame[j])
                for frame in (x, reactant, product)
            ]
            pairs[i, j] = network.bond(torch.cat(three))
    heard, v = torch.zeros_like(f), torch.zeros(n, 3, network.d, dtype=x.dtype)
    for i, j in inside:
        s = torch.cat([f[i], f[j], pairs[i, j]])
        heard[j] += network.phi_s(s) * f[i]
        v[j] += (x[i] - x[j])[:, None] * network.phi_v(s)
    h = network.phi_h(torch.cat([f, heard], -1))
    if kind == "molgen":
        cross = torch.zeros_like(h)
        for i, j in edges:
            if (i, j) not in pairs:
                cross[j] += network.cross_s(torch.cat([h[i], h[j]]))
        h = network.fuse(torch.cat([h, network.cross_h(torch.cat([h, cross], -1))], -1))
    angle = 2 * math.pi * t * network.frequencies[0]
    h = h + network.time(torch.cat([angle.cos(), angle.sin()]))
    for k, frame in enumerate((reactant, product)):
        h = h + network.given_h[k].weight[1]
        if kind == "tsgen":
            h = h + network.condition_h[k](frame)
            v = v + (network.condition_v[k](frame) + network.given_v[k].weight[1]).view(n, network.d, 3).mT
    for layer in network.layers:
        h, v = loop_layer(layer, h, v, pairs, lengths)
    return (v @ network.out).squeeze(-1)


@pytest.mark.parametrize("kind", ["molgen", "tsgen"])
def test_dense_equals_a_loop_over_edges(kind):
    network, d, t = setting(kind, spread=3.5)
    d["x"][0, 3] = 40.0  # nobody is near this atom
    with torch.no_grad():
        found = run(network, d, t)
        for b, n in enumerate(SIZES):
            expected = loop_network(
                network, kind, *(d[name][b, :n] for name in ("species", "x", "reactant", "product", "fragment")), t[b]
            )
            torch.testing.assert_close(found[b, :n], expected, rtol=1e-9, atol=1e-9)
            assert (found[b, n:] == 0).all()


def test_invariants_depend_on_the_distance_alone():
    network, _, _ = setting("molgen")
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(3, generator=generator, dtype=torch.float64)
    turned = random_rotation(generator) @ vector
    with torch.no_grad():
        a, b = (invariants_by_tensor_product(network.edge, torch.tensor(2), x) for x in (vector, turned))
    assert a.shape == (sum(CHANNELS),)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_radial_basis_ends_at_the_cutoff():
    network, _, _ = setting("molgen")
    means, betas = network.edge.means, network.edge.betas
    g = radial_basis(torch.tensor([0.9, 11.999, 12.0, 30.0], dtype=torch.float64), means, betas)
    assert g[0].max() > 0.9
    assert g[1].max() < 1e-6
    assert (g[2:] == 0).all()
    assert float(means[0]) == pytest.approx(math.exp(-12))
    assert float(betas[0]) == pytest.approx((2 / 96 * (1 - math.exp(-12))) ** -2, rel=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_molgen_turns_with_the_input_and_not_with_the_ends(dtype, tolerance):
    network, d, t = setting("molgen", dtype)
    generator = torch.Generator().manual_seed(2)
    rotation, other, third = (random_rotation(generator).to(dtype) for _ in range(3))
    shift = torch.randn(3, generator=generator).to(dtype)
    with torch.no_grad():
        v = run(network, d, t)
        scale = float(v.abs().max())
        turned = run(network, d, t, x=d["x"] @ rotation.T + shift)
        torch.testing.assert_close(turned, v @ rotation.T, rtol=0, atol=tolerance * scale)
        moved = d | {"reactant": d["reactant"] @ other.T - shift, "product": d["product"] @ third.T + 3 * shift}
        torch.testing.assert_close(run(network, moved, t), v, rtol=0, atol=tolerance * scale)
        mirrored = d | {"reactant": d["reactant"] * torch.tensor([1.0, 1.0, -1.0], dtype=dtype)}
        torch.testing.assert_close(run(network, mirrored, t), v, rtol=0, atol=tolerance * scale)


def test_tsgen_does_not_turn_with_the_input():
    """Raw coordinates enter its scalars: it belongs to the frame of its data."""
    network, d, t = setting("tsgen")
    rotation = random_rotation(torch.Generator().manual_seed(2))
    turn = {name: d[name] @ rotation.T for name in ("x", "reactant", "product")}
    with torch.no_grad():
        v, turned = run(network, d, t), run(network, d | turn, t)
    assert float((turned - v @ rotation.T).abs().max()) > 0.1 * float(v.abs().max())


@pytest.mark.parametrize("kind", ["molgen", "tsgen"])
def test_the_order_of_atoms_and_padding_do_not_matter(kind):
    network, d, t = setting(kind)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    with torch.no_grad():
        v = run(network, d, t)
        permuted = {k: x[:1, order] for k, x in d.items()}
        torch.testing.assert_close(run(network, permuted, t[:1]), v[:1, order], rtol=0, atol=1e-10)
        alone = {k: x[1:, : SIZES[1]] for k, x in d.items()}
        torch.testing.assert_close(run(network, alone, t[1:], mask=False), v[1:, : SIZES[1]], rtol=0, atol=1e-11)
        torch.testing.assert_close(run(network, alone, t[1:]), v[1:, : SIZES[1]], rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["molgen", "tsgen"])
def test_what_is_cached_repeats_for_several_seeds(kind):
    network, d, t = setting(kind)
    context = network.prepare(d["species"], d["reactant"], d["product"], d["mask"], d["fragment"])
    with torch.no_grad():
        once = network(d["x"], t, context)
        thrice = network(d["x"].repeat_interleave(3, 0), t.repeat_interleave(3), context.repeat(3))
    torch.testing.assert_close(thrice, once.repeat_interleave(3, 0), rtol=0, atol=1e-12)


def test_one_piece_is_no_pieces():
    network, d, t = setting("molgen")
    with torch.no_grad():
        one = run(network, d | {"fragment": torch.zeros_like(d["fragment"])}, t)
        torch.testing.assert_close(run(network, d, t, fragments=False), one, rtol=0, atol=1e-12)
        assert float((run(network, d, t) - one).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["molgen", "tsgen"])
def test_gradients_are_finite_where_vectors_vanish(kind):
    network, d, t = setting(kind)
    d["x"].zero_()
    d["reactant"].zero_()
    run(network, d, t).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_the_edge_block_learns_from_the_transition_state_alone():
    network, d, t = setting("molgen")
    context = network.prepare(d["species"], d["reactant"], d["product"], d["mask"], d["fragment"])
    grads = torch.autograd.grad(context.cached[0].sum(), list(network.edge.parameters()), allow_unused=True)
    assert all(g is None for g in grads)
    run(network, d, t).sum().backward()
    assert all(p.grad is not None for p in network.edge.parameters())


def test_without_a_condition_the_ends_do_not_matter():
    torch.manual_seed(0)
    for network in (MolGen(5, 8, 1, 2, 8, conditioned=False), TSGen(5, 8, 8, 1, 2, 8, conditioned=False)):
        species, t = torch.zeros(1, 4, dtype=torch.long), torch.rand(1)
        x, a, b = torch.randn(3, 1, 4, 3)
        with torch.no_grad():
            first = network(x, t, network.prepare(species, a, b))
            assert torch.equal(first, network(x, t, network.prepare(species, b, 2 * a)))


def test_an_energy_is_a_sum_over_atoms():
    torch.manual_seed(0)
    _, d, _ = setting("tsgen", torch.float32)
    potential = Potential(5, 12, 8, 2, 3, 10)
    with torch.no_grad():
        energy = run(potential, d, torch.ones(2))
        alone = {k: x[1:, : SIZES[1]] for k, x in d.items()}
        torch.testing.assert_close(run(potential, alone, torch.ones(1)), energy[1:], rtol=0, atol=1e-5)
    assert energy.shape == (2,)
