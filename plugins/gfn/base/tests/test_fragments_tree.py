"""The tree engine against plain Python: every state, child and parent of small libraries, and random walks."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("rdkit")

from headwater_gfn.tasks.fragments import Fragments, FragmentsConfig, trees

# name, SMILES, stems, and the symmetries of the stems' atoms, by hand
RING = [dict(zip((0, 2, 4), p, strict=True)) for p in itertools.permutations((0, 2, 4))]
LIBRARIES: dict[str, list[tuple[str, list[int], list[dict[int, int]]]]] = {
    "ends": [("C1CCNCC1", [3, 0], [{}]), ("C1CCNCC1", [0, 3], [{}]), ("F", [0], [{}])],
    "ring": [("c1ccccc1", [0, 2, 4], RING), ("C=O", [0, 0], [{}]), ("C1CNCCN1", [2, 5], [{}, {2: 5, 5: 2}])],
    "uneven": [("CO", [1, 0, 0], [{}]), ("CO", [0, 1], [{}]), ("C1CCNCC1", [0, 3], [{}])],
    "shared": [("CO", [1, 0, 0], [{}]), ("CO", [0, 1, 0], [{}]), ("CC", [0, 0, 1, 1], [{}, {0: 1, 1: 0}])],
}


def make(tmp_path: Path, library: str, **config: Any) -> Fragments:
    blocks = LIBRARIES[library]
    path = tmp_path / "blocks.json"
    path.write_text(json.dumps({"block_smi": [b[0] for b in blocks], "block_r": [b[1] for b in blocks]}))
    return Fragments(FragmentsConfig(blocks=path, **config))


class Plain:
    """Trees as tuples: the (kind) of every node, and the bonds (node, atom, node, atom). No hashes, no tensors."""

    def __init__(self, library: str) -> None:
        self.blocks = LIBRARIES[library]
        self.kinds = [(smiles, tuple(sorted(stems))) for smiles, stems, _ in self.blocks]
        self.group = {
            kind: [{a: g.get(a, a) for a in kind[1]} for g in symmetries]
            for kind, (_, _, symmetries) in zip(self.kinds, self.blocks, strict=True)
        }

    def name(self, nodes: tuple, bonds: tuple) -> str:
        """The least of all ways to write the tree: over roots, and over symmetries at every node."""

        def seen(i: int, gate: int | None, via: int | None) -> str:
            joined = [b if b[0] == i else (b[2], b[3], b[0], b[1]) for b in bonds if i in (b[0], b[2])]
            below = [(a, seen(j, b, i)) for _, a, j, b in joined if j != via]
            ways = []
            for g in self.group[nodes[i]]:
                inside = sorted((g[a], text) for a, text in below)
                ways.append(f"{nodes[i]}<{'' if gate is None else g[gate]}>{inside}")
            return min(ways)

        return min((seen(i, None, None) for i in range(len(nodes))), default="")

    def free(self, nodes: tuple, bonds: tuple) -> list[tuple[int, int]]:
        out = []
        for i, (_, stems) in enumerate(nodes):
            left = list(stems)
            for a, x, b, y in bonds:
                if a == i:
                    left.remove(x)
                if b == i:
                    left.remove(y)
            out += [(i, a) for a in left]
        return out

    def children(self, nodes: tuple, bonds: tuple) -> Iterator[tuple[tuple, tuple]]:
        for kind, (_, stems, _) in zip(self.kinds, self.blocks, strict=True):
            if not nodes:
                yield (kind,), ()
            for i, a in self.free(nodes, bonds):
                yield (*nodes, kind), (*bonds, (i, a, len(nodes), stems[0]))

    def of(self, environment: Fragments, row: list[int]) -> tuple[tuple, tuple]:
        n, atom = environment.size, environment.tables.atom.tolist()
        block = [b for b in row[:n] if b >= 0]
        bonds = tuple(
            (row[n + i], atom[row[row[n + i]]][row[2 * n + i]], i, atom[row[i]][row[3 * n + i]])
            for i in range(len(block))
            if row[n + i] >= 0
        )
        return tuple(self.kinds[b] for b in block), bonds


def layers_of(environment: Fragments) -> list[Tensor]:
    layers = [environment.start(1)]
    for _ in range(environment.size):
        mask = environment.forward_mask(layers[-1])
        mask[:, -1] = False
        rows, actions = mask.nonzero(as_tuple=True)
        layers.append(environment.step(layers[-1][rows], actions).unique(dim=0))
    return layers


@pytest.mark.parametrize("library", LIBRARIES)
def test_states_children_and_parents_are_those_of_plain_enumeration(tmp_path: Path, library: str) -> None:
    environment, plain = make(tmp_path, library, max_blocks=4, min_blocks=1), Plain(library)
    level: dict[str, tuple[tuple, tuple]] = {"": ((), ())}
    above: dict[str, set[str]] = {"": set()}
    for depth, states in enumerate(layers_of(environment)):
        names = [plain.name(*plain.of(environment, row)) for row in states.tolist()]
        assert len(set(names)) == len(names), "two states are one object"
        assert set(names) == set(level)
        assert len(environment.key(states).unique()) == len(names)

        backward = environment.backward_mask(states)
        assert backward.sum(1).tolist() == [len(above[name]) for name in names]
        if depth:
            rows, b = backward.nonzero(as_tuple=True)
            parents = environment.undo(states[rows], b)
            found: dict[str, set[str]] = {name: set() for name in names}
            for row, parent in zip(rows.tolist(), parents.tolist(), strict=True):
                found[names[row]].add(plain.name(*plain.of(environment, parent)))
            assert found == {name: above[name] for name in names}
            again = environment.step(parents, environment.forward_action(states[rows], b))
            assert torch.equal(again, states[rows])

        level_after: dict[str, tuple[tuple, tuple]] = {}
        above_after: dict[str, set[str]] = {}
        mask = environment.forward_mask(states)
        for i, name in enumerate(names):
            children = {}
            if depth < environment.size:
                for child in plain.children(*level[name]):
                    children[plain.name(*child)] = child
            stuck = depth > 0 and not plain.free(*level[name])
            assert bool(mask[i, -1]) == (depth >= 1 or stuck)
            for text, child in children.items():
                level_after[text] = child
                above_after.setdefault(text, set()).add(name)
            actions = mask[i, :-1].nonzero().squeeze(1)
            row = states[i : i + 1].expand(len(actions), -1)
            got = environment.step(row, actions)
            texts = [plain.name(*plain.of(environment, child)) for child in got.tolist()]
            assert set(texts) == set(children)
            same = environment.same_child(row, actions)
            expected = torch.tensor([[x == y for y in texts] for x in texts], dtype=torch.bool).reshape(
                2 * [len(texts)]
            )
            assert torch.equal(same[:, actions], expected)
            assert same.sum() == expected.sum(), "an action that is not allowed is named"
            if len(actions):
                assert torch.equal(environment.undo(got, environment.backward_action(row, actions)), row)
        level, above = level_after, above_after


def walk(environment: Fragments, n: int, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Random transitions (s, a, s'), STOP among them."""
    generator = torch.Generator().manual_seed(seed)
    s, out = environment.start(n), []
    while len(s):
        mask = environment.forward_mask(s)
        assert bool(mask.any(1).all())
        weight = mask.float()
        weight[:, -1] *= 0.05 * mask.sum(1)
        a = torch.multinomial(weight, 1, generator=generator).squeeze(1)
        after = environment.step(s, a)
        out.append((s, a, after))
        s = after[~environment.terminal(after)]
    return out


@pytest.mark.parametrize("blocks", ["embedded", "ends", "shared"])
def test_undo_inverts_step_on_random_states(tmp_path: Path, blocks: str) -> None:
    environment = Fragments(FragmentsConfig()) if blocks == "embedded" else make(tmp_path, blocks)
    total = 0
    for s, a, after in walk(environment, 2000, seed=1):
        stop = environment.terminal(after)
        assert torch.equal(environment.unstop(after[stop]), s[stop])
        s, a, after = s[~stop], a[~stop], after[~stop]
        b = environment.backward_action(s, a)
        assert bool(environment.backward_mask(after).gather(1, b.unsqueeze(1)).all())
        assert torch.equal(environment.undo(after, b), s)
        again = environment.forward_action(after, b)
        assert torch.equal(environment.step(s, again), after)
        same = environment.same_child(s, a)
        assert bool(same.gather(1, a.unsqueeze(1)).all())
        assert bool(same.gather(1, again.unsqueeze(1)).all())
        assert bool((environment.forward_mask(s) | ~same).all())
        total += len(s)
    assert total > 3000


def test_canonical_form_does_not_depend_on_the_order_of_slots_and_stems() -> None:
    environment = Fragments(FragmentsConfig())
    generator = torch.Generator().manual_seed(0)
    states = torch.cat([after for _, _, after in walk(environment, 300, seed=2)])
    states = environment.unstop(states)
    tree = expected = environment.tree(states)
    n = environment.size
    # Put the slots in any order in which parents come before their children, with gaps, and root it elsewhere.
    root = (torch.rand(len(states), n, generator=generator) * (tree.block >= 0)).argmax(1, keepdim=True)
    tree = trees.rooted_at(tree, root)
    depth = torch.zeros_like(tree.block)
    for _ in range(n):
        depth = torch.where(tree.parent >= 0, depth.gather(1, tree.parent.clamp_min(0)) + 1, 0)
    depth = torch.where(tree.block >= 0, depth, torch.randint(n, depth.shape, generator=generator))
    order = (depth + torch.rand(len(states), n, generator=generator)).argsort(1)
    slot = order.argsort(1)
    parent = torch.where(tree.parent >= 0, slot.gather(1, tree.parent.clamp_min(0)), -1)
    moved = trees.Tree(*(f.gather(1, order) for f in (tree.block, parent, tree.stem, tree.own)))
    found = trees.canonical(environment.tables, moved).tree
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_a_full_or_closed_molecule_can_only_stop(tmp_path: Path) -> None:
    environment = make(tmp_path, "ends", max_blocks=3, min_blocks=3)
    s = environment.start(1)
    assert environment.forward_mask(s).sum() == 3, "at the source, one action a block"
    s = environment.step(s, torch.tensor([2]))
    closed = environment.step(s, torch.tensor([2]))
    assert environment.forward_mask(closed)[0].nonzero().tolist() == [[environment.n_actions - 1]]
    s = environment.step(s, torch.tensor([0]))
    assert not environment.forward_mask(s)[0, -1], "two blocks, and one more is needed"
    s = environment.step(s, environment.forward_mask(s).to(torch.uint8).argmax(1))
    assert environment.forward_mask(s)[0].nonzero().tolist() == [[environment.n_actions - 1]]
    assert environment.max_len == 4


def test_symmetric_stems_of_benzene_are_one_child() -> None:
    environment = Fragments(FragmentsConfig())
    fluoro = next(i for i, b in enumerate(environment.blocks) if b.name == "fluoro")
    benzene = environment.step(environment.start(1), torch.tensor([0]))
    same = environment.same_child(benzene, torch.tensor([fluoro]))
    assert same.nonzero()[:, 1].tolist() == [k * len(environment.blocks) + fluoro for k in range(6)]
    once = environment.step(benzene, torch.tensor([fluoro]))
    children = [
        environment.step(once, torch.tensor([a]))
        for a in environment.forward_mask(once)[0].nonzero().squeeze(1).tolist()
        if a % len(environment.blocks) == fluoro and a < environment.n_actions - 1
    ]
    assert len(torch.cat(children).unique(dim=0)) == 3, "ortho, meta and para"
    assert {s for child in children for s in environment.smiles(child)} == {
        "Fc1ccccc1F",
        "Fc1cccc(F)c1",
        "Fc1ccc(F)cc1",
    }


def test_exact_flows_with_a_uniform_backward_policy_sample_in_proportion_to_the_reward(
    tmp_path: Path,
) -> None:
    """Needs that children, parents and equal actions all fit: otherwise the mass goes elsewhere."""
    exact = pytest.importorskip("headwater_gfn.exact", reason="the exact diagnostics are not there")
    table = pytest.importorskip("headwater_gfn.table", reason="the exact diagnostics are not there")
    for library in LIBRARIES:
        written_out = table.TableEnvironment(make(tmp_path, library, max_blocks=3, reward="logp"))
        flows = exact.exact_flows(written_out)
        learned = exact.learned_distribution(written_out, flows.log_pf)
        assert exact.l1_distance(learned, exact.log_target(written_out).exp()) < 1e-12
        assert float(flows.log_flow[0]) == pytest.approx(float(written_out.log_rewards.double().logsumexp(0)))


def test_one_hot_observation_has_one_one_a_field() -> None:
    environment = Fragments(FragmentsConfig(network="one-hot", max_blocks=4))
    states = torch.cat([s for s, _, _ in walk(environment, 10, seed=3)])
    seen = environment.observe(states)
    assert seen.shape == (len(states), environment.n_features)
    assert bool((seen.sum(1) == 16).all())
    assert len(seen.unique(dim=0)) == len(states.unique(dim=0))
    graph = Fragments(FragmentsConfig(max_blocks=4))
    assert graph.observe(states).shape == (len(states), graph.n_features)
