"""The policy network against a plain loop over graphs with written-out edge matrices; official checkpoints."""

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("rdkit")

from headwater import DataError
from headwater.unpickling import load_official
from headwater_gfn.tasks.fragments import Fragments, FragmentsConfig
from headwater_gfn.tasks.fragments.convert import from_official, name_arrays
from headwater_gfn.tasks.fragments.policy import GraphPolicy

WIDTH = 6


def some_states(environment: Fragments, n: int = 12) -> Tensor:
    """States of every size, the source among them."""
    generator = torch.Generator().manual_seed(0)
    s, out = environment.start(n), []
    for _ in range(environment.size + 1):
        out.append(s)
        weight = environment.forward_mask(s)[:, :-1].float()
        s = s[weight.any(1)]
        s = environment.step(s, torch.multinomial(weight[weight.any(1)], 1, generator=generator).squeeze(1))
    return torch.cat(out)


class PlainAgent(nn.Module):
    """The published network for one graph: the full matrix of each edge, nodes one by one."""

    def __init__(self, environment: Fragments, outputs: int, old: bool) -> None:
        super().__init__()
        self.environment, self.old = environment, old
        smiles = [b.smiles for b in environment.blocks]
        self.true = sorted(set(smiles))
        size = {t: max(environment.blocks[smiles.index(t)].stems) + 1 for t in self.true}
        self.offset = np.cumsum([0] + [size[t] for t in self.true]).tolist()
        n = self.offset[-1]
        self.embeddings = nn.ModuleList(nn.Embedding(k, WIDTH) for k in (len(self.true) + 1, n + 1, n))
        # torch-geometric 1 kept the root before the bias; 2 has it in a layer, after the bias.
        self.conv = nn.ParameterList(
            [torch.randn(WIDTH, WIDTH), torch.randn(WIDTH)] if old else [torch.randn(WIDTH), torch.randn(WIDTH, WIDTH)]
        )
        act = nn.LeakyReLU
        self.block2emb = nn.Sequential(nn.Linear(WIDTH, WIDTH), act(), nn.Linear(WIDTH, WIDTH))
        self.gru = nn.GRU(WIDTH, WIDTH)
        self.stem2pred = nn.Sequential(
            nn.Linear(2 * WIDTH, WIDTH), act(), nn.Linear(WIDTH, WIDTH), act(), nn.Linear(WIDTH, len(smiles))
        )
        self.global2pred = nn.Sequential(nn.Linear(WIDTH, WIDTH), act(), nn.Linear(WIDTH, outputs))

    def forward(self, row: list[int], steps: int, directed: bool) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
        env = self.environment
        n, atom = env.size, env.tables.atom.tolist()
        smiles = [env.blocks[b].smiles for b in row[:n] if b >= 0]
        blocks = [self.true.index(s) for s in smiles]

        def stem_type(slot: int, position: int) -> Tensor:
            return torch.tensor(self.offset[blocks[slot]] + atom[row[slot]][position])

        edges = []
        for i in range(len(blocks)):
            if row[n + i] >= 0:
                ends = (row[n + i], row[2 * n + i]), (i, row[3 * n + i])
                edges.append(ends)
                if not directed:
                    edges.append((ends[1], ends[0]))
        used = {end for edge in edges for end in edge}
        x = self.block2emb(self.embeddings[0](torch.tensor(blocks or [len(self.true)])))
        h = x.unsqueeze(0)
        weight, bias = (self.conv[0], self.conv[1]) if self.old else (self.conv[1].T, self.conv[0])
        for _ in range(steps):
            m = x @ weight + bias
            for v in range(len(x)):
                arriving = []
                for (i, p), (j, q) in edges:
                    if j == v:
                        matrix = torch.outer(self.embeddings[2](stem_type(i, p)), self.embeddings[2](stem_type(j, q)))
                        arriving.append(x[i] @ matrix)
                if arriving:
                    m = m.index_add(0, torch.tensor([v]), torch.stack(arriving).mean(0, keepdim=True))
            out, h = self.gru(nn.functional.leaky_relu(m).unsqueeze(0), h)
            x = out.squeeze(0)
        last = len(self.embeddings[1].weight) - 1
        stems = {} if blocks else {(0, 0): torch.tensor(last)}
        for i in range(len(blocks)):
            for p in range(len(env.blocks[row[i]].stems)):
                if (i, p) not in used:
                    stems[i, p] = stem_type(i, p)
        logits = {k: self.stem2pred(torch.cat([x[k[0]], self.embeddings[1](t)])) for k, t in stems.items()}
        return logits, self.global2pred(x.mean(0))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Fragments:
    """Pyridine's first block has the stem 0 alone, so that the official numbers of its others are shared."""
    blocks = [
        ("c1ccncc1", [0]),
        ("c1ccncc1", [2, 0]),
        ("c1ccccc1", [0, 2, 3]),
        ("CO", [1, 0, 0]),
        ("CO", [0, 1]),
        ("c1ccsc1", [2]),
    ]
    path = tmp_path_factory.mktemp("library") / "blocks.json"
    path.write_text(json.dumps({"block_smi": [b[0] for b in blocks], "block_r": [b[1] for b in blocks]}))
    return Fragments(FragmentsConfig(blocks=path, max_blocks=5))


def save(agent: PlainAgent, path: Path) -> Path:
    with gzip.open(path, "wb") as file:
        pickle.dump([p.detach().numpy() for p in agent.parameters()], file)
    return path


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return name_arrays(load_official(path), path)


def agrees(policy: GraphPolicy, agent: PlainAgent, environment: Fragments, directed: bool, outputs: int = 2) -> None:
    states = some_states(environment)
    logits, backward, flow = policy(environment.observe(states))
    assert backward is None
    assert logits.shape == (len(states), environment.n_actions)
    assert torch.equal(policy.forward_logits(environment.observe(states)), logits)
    nb = len(environment.blocks)
    for row, found, log_flow, mask in zip(states.tolist(), logits, flow, environment.forward_mask(states), strict=True):
        expected, graph = agent(row, policy.steps, directed)
        assert found[-1].item() == pytest.approx(graph[0].item(), abs=1e-6)
        assert log_flow.item() == pytest.approx(graph[1].item() if outputs == 2 else 0.0, abs=1e-6)
        places = {slot * environment.width + p: value for (slot, p), value in expected.items()}
        if row[environment.size - 1] < 0:
            assert {int(k) // nb for k in mask[:-1].nonzero()} == set(places)
        for place, value in places.items():
            if place < environment.n_stems:
                assert torch.allclose(found[place * nb : (place + 1) * nb], value, atol=1e-6)


@pytest.mark.parametrize(("old", "outputs"), [(True, 2), (False, 1)])
def test_official_checkpoint_gives_the_published_network(
    environment: Fragments, tmp_path: Path, old: bool, outputs: int
) -> None:
    torch.manual_seed(1)
    agent = PlainAgent(environment, outputs, old).double()
    state, hyperparameters = read(save(agent, tmp_path / "params.pkl.gz"))
    assert hyperparameters == {"root": "matrix" if old else "linear"}
    library = environment.config.blocks if old else environment.blocks
    policy = from_official(state, library, environment.size, steps=4, **hyperparameters)["policy"]
    agrees(policy, agent, environment, directed=True, outputs=outputs)


@pytest.mark.parametrize("dense", [False, True])
def test_messages_both_ways_equal_a_plain_loop(
    environment: Fragments, monkeypatch: pytest.MonkeyPatch, dense: bool
) -> None:
    torch.manual_seed(2)
    agent = PlainAgent(environment, 2, old=False).double()
    policy = GraphPolicy(environment.blocks, environment.size, WIDTH, 3, shared_types=True).double()
    arrays = list(agent.parameters())
    state = dict(zip(("blockemb.weight", "stememb.weight", "bondemb.weight", "bias", "root"), arrays, strict=False))
    names = [n.replace("_l0", "") for n, _ in agent.named_parameters()][5:]
    state.update(zip(names, arrays[5:], strict=True))
    policy.load_state_dict(state)
    monkeypatch.setattr(policy, "_dense", lambda tree: dense)
    agrees(policy, agent, environment, directed=False)


def test_blocks_with_one_way_from_the_root_are_computed_once(
    environment: Fragments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same outputs and gradients as all slots of all states."""
    torch.manual_seed(3)
    policy = GraphPolicy(environment.blocks, environment.size, WIDTH, 3, directed=True).double()
    observed = environment.observe(some_states(environment))
    mask = environment.forward_mask(some_states(environment))
    rows: list[int] = []
    policy.gru.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    found = []
    for dense in (False, True):
        monkeypatch.setattr(policy, "_dense", lambda tree, dense=dense: dense)
        logits, _, flow = policy(observed)
        loss = logits[mask].square().sum() + flow.sin().sum()
        found.append((logits[mask], flow, *torch.autograd.grad(loss, list(policy.parameters()))))
    assert rows[0] < int((observed[:, : environment.size] >= 0).sum()) < rows[-1]
    for once, every in zip(*found, strict=True):
        torch.testing.assert_close(once, every, rtol=1e-10, atol=1e-12)


def test_every_parameter_learns(environment: Fragments) -> None:
    policy = GraphPolicy(environment.blocks, environment.size, 8, 2)
    types = {
        (b.smiles, a): int(row[sorted(b.stems).index(a)])
        for b, row in zip(environment.blocks, policy.stem_type, strict=True)
        for a in b.stems
    }
    assert len(set(types.values())) == len(types), "every atom has a stem type of its own"
    states = some_states(environment)
    logits, _, flow = policy(environment.observe(states))
    mask = environment.forward_mask(states)
    (logits[mask].square().sum() + flow.square().sum()).backward()
    silent = [n for n, p in policy.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert silent == []


def test_a_checkpoint_that_does_not_fit_is_refused(environment: Fragments, tmp_path: Path) -> None:
    torch.manual_seed(3)
    agent = PlainAgent(environment, 2, old=True)
    state, _ = read(save(agent, tmp_path / "params.pkl.gz"))
    with pytest.raises(DataError, match="another library"):
        from_official(state, environment.blocks[:3])
    with pytest.raises(DataError, match=r"gru\.bias_hh"):
        from_official({k: v for k, v in state.items() if k != "gru.bias_hh"}, environment.blocks)
    path = tmp_path / "short.pkl.gz"
    with gzip.open(path, "wb") as file:
        pickle.dump([np.zeros(3)], file)
    with pytest.raises(DataError, match="holds 1 arrays"):
        read(path)
    with gzip.open(path, "wb") as file:
        pickle.dump({"a": 1}, file)
    with pytest.raises(DataError, match="no list of arrays"):
        read(path)
    (tmp_path / "cut.pkl.gz").write_bytes((tmp_path / "params.pkl.gz").read_bytes()[:200])
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path / "cut.pkl.gz")
