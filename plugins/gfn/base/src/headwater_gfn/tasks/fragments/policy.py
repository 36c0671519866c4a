"""The policy network on block graphs (GraphAgent of Bengio et al., 2021), for a padded batch of trees.

The matrix of an edge is the outer product of the embeddings e and f of its two stems, so a message x e f^T is
(x . e) f: two vectors an edge, and no matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headwater_gfn.tasks.fragments.library import Block
from headwater_gfn.tasks.fragments.tables import make_tables

__all__ = ["GraphPolicy"]


class GraphPolicy(nn.Module):
    """Forward logits, stop logit and log flow of trees of blocks. P_B is left uniform.

    A block's state starts from an embedding of its SMILES; ``steps`` times it takes the mean of its neighbours'
    messages through a gated recurrent unit. A head looks at each free stem and gives a logit for each block; another
    looks at the mean of all blocks.

    Args:
        blocks: the library.
        max_blocks: N, the slots of a state.
        width: of every layer; 256 in the paper.
        steps: convolution steps.
        directed: whether messages go from parents to children only, as in the official code.
        root: how the convolution's root array W acts on a block's state, ``"linear"`` as x W^T, ``"matrix"`` as x W.
        shared_types: whether stem types are numbered as in the official code, which makes room for the stems of the
            first block of each SMILES only: where a later block has more, its last types are also those of the next
            SMILES. Every atom has a type of its own without.
    """

    true_block: Tensor
    stem_type: Tensor
    count: Tensor

    def __init__(
        self,
        blocks: Sequence[Block],
        max_blocks: int = 8,
        width: int = 64,
        steps: int = 10,
        directed: bool = False,
        root: str = "linear",
        shared_types: bool = False,
    ) -> None:
        super().__init__()
        self.max_blocks, self.steps, self.directed = max_blocks, steps, directed
        self.linear_root = root == "linear"
        tables = make_tables(blocks)
        self.n_blocks, self.positions = len(blocks), tables.atom.shape[1]
        self.n_stems = max(max_blocks - 1, 1) * self.positions
        # Blocks with one SMILES share an embedding, and each of its atoms has a stem type.
        true = sorted({b.smiles for b in blocks})
        reach = [[max(b.stems) + 1 for b in blocks if b.smiles == smiles] for smiles in true]
        atoms = [r[0] if shared_types else max(r) for r in reach]
        offset = [sum(atoms[:i]) for i in range(len(true))]
        index = torch.tensor([true.index(b.smiles) for b in blocks])
        self.n_types = max(sum(atoms), offset[-1] + max(reach[-1]))
        self.register_buffer("true_block", index, persistent=False)
        self.register_buffer("stem_type", torch.tensor(offset)[index].unsqueeze(1) + tables.atom, persistent=False)
        self.register_buffer("count", tables.count, persistent=False)

        self.blockemb = nn.Embedding(len(true) + 1, width)
        self.stememb = nn.Embedding(self.n_types + 1, width)
        self.bondemb = nn.Embedding(self.n_types, width)
        self.root = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.root)
        act = nn.LeakyReLU
        self.block2emb = nn.Sequential(nn.Linear(width, width), act(), nn.Linear(width, width))
        self.gru = nn.GRUCell(width, width)
        self.stem2pred = nn.Sequential(
            nn.Linear(2 * width, width), act(), nn.Linear(width, width), act(), nn.Linear(width, len(blocks))
        )
        self.global2pred = nn.Sequential(nn.Linear(width, width), act(), nn.Linear(width, 2))

    def forward_logits(self, observed: Tensor) -> Tensor:
        """Logits (B, n_actions) of trees (B, 4 N); those of actions that are not allowed mean nothing."""
        return self._logits(*self._run(observed))

    def forward(self, observed: Tensor) -> tuple[Tensor, None, Tensor]:
        """Forward logits (B, n_actions), no backward logits, and log flow (B,)."""
        tree, h, pooled = self._run(observed)
        return self._logits(tree, h, pooled), None, pooled[:, 1]

    def _dense(self, tree: Tensor) -> bool:
        """Whether to work on all slots, or only on those in use, which must be counted: that costs nothing on a CPU."""
        return tree.is_cuda

    def _run(self, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The tree (B, 4, N), the states of its blocks (B N, width) and the output of the graph head."""
        n = self.max_blocks
        tree = observed.long().view(-1, 4, n)
        block, parent, stem, own = tree.unbind(1)
        alive = block >= 0
        alive = torch.cat([torch.ones_like(alive[:, :1]), alive[:, 1:]], 1)  # the source counts as one block of its own
        rows = (
            torch.arange(alive.numel(), device=tree.device)
            if self._dense(tree)
            else alive.flatten().nonzero().squeeze(1)
        )
        place = torch.zeros(alive.numel(), dtype=torch.int64, device=tree.device)
        place[rows] = torch.arange(len(rows), device=tree.device)

        up = place[rows - rows % n + parent.flatten()[rows].clamp_min(0)]
        nodes, of = rows, None
        if self.directed and not self._dense(tree):
            # A block hears from its ancestors alone: where the way from the root is the same, so is its state.
            ways, of = _ways(block, parent, stem, own).flatten()[rows].unique(return_inverse=True)
            one = torch.empty_like(ways).scatter_(0, of, torch.arange(len(rows)))
            nodes, up = rows[one], of[up[one]]
        kind, stem, own, joined = (x.flatten()[nodes] for x in (block, stem, own, parent >= 0))
        h = self.blockemb(torch.where(kind >= 0, self.true_block[kind.clamp_min(0)], self.blockemb.num_embeddings - 1))
        h = self.block2emb(h)
        e = self.bondemb(self.stem_type[kind[up].clamp_min(0), stem.clamp_min(0)]) * joined.unsqueeze(1)
        f = self.bondemb(self.stem_type[kind.clamp_min(0), own.clamp_min(0)]) * joined.unsqueeze(1)
        root = self.root if self.linear_root else self.root.T
        share = h.new_ones(1)
        if not self.directed:
            degree = joined.to(h.dtype)
            degree = degree.index_add(0, up, degree).clamp_min(1)
            share = (1 / degree).unsqueeze(1)
        for _ in range(self.steps):
            m = (h[up] * e).sum(1, keepdim=True) * f
            if not self.directed:
                m = m.index_add(0, up, (h * f).sum(1, keepdim=True) * e) * share
            m = nn.functional.leaky_relu(m + nn.functional.linear(h, root, self.bias))
            h = self.gru(m, h)
        h = h if of is None else h.index_select(0, of)
        batch = rows // n
        weight = alive.flatten()[rows].to(h.dtype).unsqueeze(1)
        mean = h.new_zeros(len(tree), h.shape[1]).index_add(0, batch, h * weight)
        mean = mean / alive.sum(1, keepdim=True)
        full = h if self._dense(tree) else h.new_zeros(alive.numel(), h.shape[1]).index_copy(0, rows, h)
        return tree, full, self.global2pred(mean)

    def _logits(self, tree: Tensor, h: Tensor, pooled: Tensor) -> Tensor:
        b, n, s = len(tree), self.max_blocks, self.positions
        block, parent, stem, own = tree.unbind(1)
        slots = torch.arange(n, device=tree.device)
        exists = (torch.arange(s, device=tree.device) < self.count[block.clamp_min(0)].unsqueeze(2)) & (
            block >= 0
        ).unsqueeze(2)
        free = nn.functional.pad(exists.flatten(1), (0, 1))
        free = free.scatter(1, torch.where(parent >= 0, parent * s + stem, n * s), False)
        free = free.scatter(1, torch.where(parent >= 0, slots * s + own, n * s), False)[:, : self.n_stems]
        source = block[:, 0] < 0
        free[:, 0] |= source
        rows = (
            torch.arange(free.numel(), device=tree.device) if self._dense(tree) else free.flatten().nonzero().squeeze(1)
        )
        of, at = rows // self.n_stems, rows % self.n_stems
        kind = block[of, at // s]
        types = torch.where(kind >= 0, self.stem_type[kind.clamp_min(0), at % s], self.n_types)
        # The first layer acts on [block state | stem type]: on each part before they are put together.
        first, width = self.stem2pred[0], h.shape[1]
        assert isinstance(first, nn.Linear)
        by_type = nn.functional.linear(self.stememb.weight, first.weight[:, width:], first.bias)
        x = (h @ first.weight[:, :width].T)[of * n + at // s] + by_type[types]
        out = self.stem2pred[1:](x)
        if not self._dense(tree):
            out = out.new_zeros(free.numel(), out.shape[1]).index_copy(0, rows, out)
        return torch.cat([out.view(b, -1), pooled[:, :1]], 1)


def _ways(block: Tensor, parent: Tensor, stem: Tensor, own: Tensor) -> Tensor:
    """A hash (B, N) of the blocks and stems on the way from the root to each block: equal for equal ways."""
    last = ((block * 64 + stem) * 64 + own + 1) * 0x5851F42D4C957F2D
    way = last ^ (last >> 29)
    for i in range(1, block.shape[1]):
        before = way.gather(1, parent[:, i : i + 1].clamp_min(0)).squeeze(1)
        mixed = (before + last[:, i]) * -0x4B47D0C5B7DDB9A7
        way[:, i] = mixed ^ (mixed >> 32)
    return way
