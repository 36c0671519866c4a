"""The exact flows to all outcomes as a network, and small environments to have them of."""

import math

import torch
from headwater_gfn.tasks.bits import BitSequence, BitSequenceConfig
from headwater_gfn.tasks.hypergrid import HyperGrid, HyperGridConfig
from headwater_gfn.tasks.strings import Strings, StringsConfig
from headwater_gfn_oc.conversion import exact_weights, ways_of

ENVIRONMENTS = {
    "grid": lambda: HyperGrid(HyperGridConfig(side=5)),
    "grid 3d": lambda: HyperGrid(HyperGridConfig(side=3, dimensions=3)),
    "both ends": lambda: Strings(StringsConfig(length=4, alphabet="ABC")),
    "append": lambda: Strings(StringsConfig(length=4, alphabet="ABC", build="append")),
    "bits": lambda: BitSequence(BitSequenceConfig(bits=8, word=2)),
}


class Exact:
    """The exact flows and policies to all outcomes of a table, seen as (state, outcome)."""

    def __init__(self, table):
        ways = ways_of(table)
        n, inner = ways.n_outcomes, table.n_inner
        self.inner = inner
        self.log_flow = torch.full((len(table.states), n), -30.0, dtype=torch.float64)
        self.log_pf = torch.full((inner, n, table.n_actions), -1e9, dtype=torch.float64)
        for layer, weight in zip(ways.layers, exact_weights(ways), strict=True):
            flow = torch.zeros(len(layer.pair_state), dtype=torch.float64).index_add(0, layer.pair, weight.exp())
            self.log_flow[layer.pair_state, layer.pair_outcome] = flow.log()
            p = weight - flow.log()[layer.pair]
            same = table.same_child(layer.state, layer.action)
            if same is None:
                self.log_pf[layer.state, layer.outcome, layer.action] = p
            else:
                for edge, twins in enumerate(same):
                    shared = p[edge] - math.log(int(twins.sum()))
                    self.log_pf[layer.state[edge], layer.outcome[edge], twins] = shared
        table.observe = lambda s: s.unsqueeze(1)
        self.ways = ways

    def _pairs(self, observed):
        return observed[:, 0].clamp_max(len(self.log_flow) - 1), observed[:, 1] - self.inner

    def forward_logits(self, observed):
        s, y = self._pairs(observed)
        return self.log_pf[s.clamp_max(self.inner - 1), y]

    def __call__(self, observed):
        s, y = self._pairs(observed)
        return self.forward_logits(observed), None, self.log_flow[s, y]
