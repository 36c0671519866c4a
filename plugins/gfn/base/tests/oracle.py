"""Plain helpers that the tests compare with: random walks, and a policy read from tables."""

import torch
from torch import nn


def random_walks(environment, n, generator):
    """States (M, ...), actions (M,) and children (M, ...) of ``n`` uniform random walks."""
    s = environment.start(n)
    states, actions, children = [], [], []
    while len(s):
        mask = environment.forward_mask(s).float()
        a = torch.multinomial(mask, 1, generator=generator).squeeze(1)
        child = environment.step(s, a)
        states.append(s)
        actions.append(a)
        children.append(child)
        s = child[~environment.terminal(child)]
    return torch.cat(states), torch.cat(actions), torch.cat(children)


class TablePolicy(nn.Module):
    """A policy that looks its answers up by the number of the state, for a table whose ``observe`` gives numbers."""

    def __init__(self, log_pf, log_pb, log_flow):
        super().__init__()
        tables = (log_pf, log_pb, log_flow)
        self.log_pf, self.log_pb, self.log_flow = (nn.Parameter(x.clamp_min(-1e9)) for x in tables)

    def forward_logits(self, s):
        return self.log_pf[s.clamp_max(len(self.log_pf) - 1)]

    def forward(self, s):
        return self.forward_logits(s), self.log_pb[s], self.log_flow[s]


def numbered(table):
    """``table`` with states observed as their numbers."""
    table.observe = lambda s: s
    return table
