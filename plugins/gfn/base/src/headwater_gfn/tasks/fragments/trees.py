"""Trees of blocks as batched integer tensors: canonical form, symmetry, growing and pruning.

A tree has N slots. Slot i holds a block, or -1; the slot of its parent, -1 at the root; the position of the parent's
stem that the bond uses, and of its own. Which block is the root, the order of the slots, and which of several
equivalent positions a bond uses say nothing about the object: two trees are equal if an isomorphism, with a symmetry
of the block at every node, carries one into the other.

Everything rests on *codes*: 64-bit hashes of a tree seen from one point, equal for points that an isomorphism carries
into one another (unequal points get equal codes about never). Each block combines what arrives at its stems into what
it sends through each, slot by slot over the batch: a parent's slot comes before those of its children.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from headwater_gfn.tasks.fragments.tables import FREE, Tables

__all__ = [
    "Canonical",
    "Codes",
    "Tree",
    "canonical",
    "codes",
    "free_stems",
    "grow",
    "prune",
    "removable",
    "rooted_at",
    "twins",
]

BOND, MARK, ROOT = 0x2545F4914F6CDD1D, 0x1B873593CC9E2D51, 0x4CF5AD432745937F
LAST = 2**63 - 1


class Tree(NamedTuple):
    """Four tensors (B, N): ``block``, ``parent`` slot, parent's ``stem`` and ``own`` stem of each slot; -1 for none.

    A parent's slot is lower than those of its children.
    """

    block: Tensor
    parent: Tensor
    stem: Tensor
    own: Tensor


class Codes(NamedTuple):
    """``arriving`` (B, N, S): the code of what is joined to each stem; ``partial`` (B, N, G): see :func:`codes`.

    ``whole`` (B, N): the code of the tree seen from each block. ``identity`` (B,): that of the tree, from nowhere.
    """

    arriving: Tensor
    partial: Tensor
    whole: Tensor
    identity: Tensor


class Canonical(NamedTuple):
    """A tree in canonical form; ``slot`` (B, N) and ``position`` (B, N, S) say where each old slot and stem went."""

    tree: Tree
    slot: Tensor
    position: Tensor


def _mix(x: Tensor) -> Tensor:
    x = (x ^ (x >> 32)) * -0x4B47D0C5B7DDB9A7
    return x ^ (x >> 29)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.clamp_min(0))


def _ends(tree: Tree, width: int) -> tuple[Tensor, Tensor]:
    """The two ends of each slot's bond to its parent, as numbers slot * S + position; N * S where there is none."""
    n = tree.block.shape[1]
    slots = torch.arange(n, device=tree.block.device)
    joined = tree.parent >= 0
    return (
        torch.where(joined, tree.parent * width + tree.stem, n * width),
        torch.where(joined, slots * width + tree.own, n * width),
    )


def codes(tables: Tables, tree: Tree) -> Codes:
    """The codes of each tree of a batch.

    With a_p what arrives at position p of a block, w_gp the word of the image of p under symmetry g, and l the block's
    label, ``partial`` is c_g = l + sum_p w_gp a_p. A block sends through position p the minimum over g of
    mix(c_g + w_gp (MARK - a_p)), and its ``whole`` is the minimum over g of mix(c_g + ROOT). All modulo 2^64.
    """
    block = tree.block.clamp_min(0)
    n, (width, symmetries) = block.shape[1], tables.turned.shape[1:]
    joined = (tree.parent >= 0).unsqueeze(2)
    parent = tree.parent.clamp_min(0)
    wide = parent.unsqueeze(2).expand(-1, -1, symmetries)
    # The words of the two ends of each bond, 0 where there is none; what is free adds a constant of the block.
    end = torch.where(joined, tables.turned[block, tree.own.clamp_min(0)], 0)
    far_end = torch.where(joined, tables.turned[block.gather(1, parent), tree.stem.clamp_min(0)], 0)
    base = tables.label[block].unsqueeze(2) + tables.free[block]
    # A code needs those of the blocks behind it: first the way up, last slots first, then the way down.
    # On a CPU it costs nothing to see how many slots are in use.
    slots = torch.arange(1, n + 1, device=block.device)
    used = n if block.is_cuda or not len(block) else int(((tree.block >= 0) * slots).amax())
    mark = end * (MARK - FREE)
    behind = base + mark
    up, down = torch.full_like(block, BOND), torch.full_like(block, BOND)
    far = torch.zeros_like(far_end)
    for i in reversed(range(1, used)):
        up[:, i] = _mix(behind[:, i]).amin(1)
        far[:, i] = far_end[:, i] * (up[:, i] - FREE).unsqueeze(1)
        behind.scatter_add_(1, wide[:, i : i + 1], far[:, i : i + 1])
    partial = behind - mark
    ahead = far_end * (MARK - FREE) - far
    for i in range(1, used):
        seen = partial.gather(1, wide[:, i : i + 1]).squeeze(1) + ahead[:, i]
        down[:, i] = _mix(seen).amin(1)
        partial[:, i] += end[:, i] * (down[:, i] - FREE).unsqueeze(1)
    arriving = torch.full((len(block), n * width + 1), FREE, device=block.device)
    above, below = _ends(tree, width)
    arriving.scatter_(1, above, up).scatter_(1, below, down)
    whole = torch.where(tree.block >= 0, _mix(partial + ROOT).amin(2), LAST)
    return Codes(arriving[:, :-1].view(-1, n, width), partial, whole, whole.amin(1))


def stem_codes(tables: Tables, tree: Tree, found: Codes) -> Tensor:
    """The code (B, N, S) of the tree seen from each stem, looking into its block: equal for equivalent stems."""
    change = tables.turned[tree.block.clamp_min(0)] * (MARK - found.arriving).unsqueeze(3)
    return _mix(found.partial.unsqueeze(2) + change).amin(3)


def _rounds(n: int) -> int:
    return max(n - 1, 1).bit_length()


def _along(values: Tensor, ancestor: Tensor) -> Tensor:
    """Add to each slot's value those of all its ancestors; the root is its own ``ancestor`` and has the value 0."""
    for _ in range(_rounds(values.shape[1])):
        values = values + values.gather(1, ancestor)
        ancestor = ancestor.gather(1, ancestor)
    return values


def rooted_at(tree: Tree, root: Tensor) -> Tree:
    """Make the slots ``root`` (B, 1) the roots: the bonds on the way from there to the old root are turned round."""
    n = tree.block.shape[1]
    slots = torch.arange(n, device=root.device).expand_as(tree.block)
    joined = tree.parent >= 0
    ancestor = torch.where(joined, tree.parent, slots)
    on_way = (slots == root).to(torch.int64)
    for _ in range(_rounds(n)):
        on_way = on_way + torch.zeros_like(on_way).scatter_add(1, ancestor, on_way)
        ancestor = ancestor.gather(1, ancestor)
    turned = torch.where((on_way > 0) & joined, tree.parent, n)

    def turn(old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([old, old[:, :1]], 1).scatter(1, turned, new)[:, :n].scatter(1, root, -1)

    return Tree(tree.block, turn(tree.parent, slots), turn(tree.stem, tree.own), turn(tree.own, tree.stem))


def canonical(tables: Tables, tree: Tree) -> Canonical:
    """Bring trees into the form that depends on the object alone; there may be empty slots between the others.

    The root is the block from which, if it is put down first, most others can be added by their first stems; of several
    that with the lowest code. Each block is turned by the symmetry that gives the lowest code; the slots are in the
    order of a walk that takes stems by position, first to last.
    """
    block = tree.block.clamp_min(0)
    n, width = block.shape[1], tables.atom.shape[1]
    found = codes(tables, tree)
    alive = tree.block >= 0
    slots = torch.arange(n, device=block.device).expand_as(block)

    joined = tree.parent >= 0
    kept = tables.attach[block, tree.own.clamp_min(0)] >= 0
    turned = tables.attach[_at(block, tree.parent), tree.stem.clamp_min(0)] >= 0
    change = torch.where(joined, kept.to(torch.int64) - turned.to(torch.int64), 0)
    cost = _along(change, torch.where(joined, tree.parent, slots))
    cost = torch.where(alive, cost, n)
    best = torch.where(cost == cost.amin(1, keepdim=True), found.whole, LAST)
    tree = rooted_at(tree, best.argmin(1, keepdim=True))

    joined = tree.parent >= 0
    _, down = _ends(tree, width)
    arriving = torch.nn.functional.pad(found.arriving.flatten(1), (0, 1))
    end = torch.where(joined.unsqueeze(2), tables.turned[block, tree.own.clamp_min(0)], 0)
    symmetry = _mix(found.partial + end * (MARK - arriving.gather(1, down)).unsqueeze(2)).argmin(2)
    marked = arriving.scatter(1, down, MARK)[:, :-1].view_as(found.arriving)
    image = tables.image[block, symmetry]
    a, b = image.unsqueeze(3), image.unsqueeze(2)
    x, y = marked.unsqueeze(3), marked.unsqueeze(2)
    position = torch.arange(width, device=block.device)
    earlier = position < position.unsqueeze(1)
    before = (b < a) | ((b == a) & ((y < x) | ((y == x) & earlier)))
    position = before.sum(3)
    own = torch.where(joined, position.gather(2, tree.own.clamp_min(0).unsqueeze(2)).squeeze(2), -1)
    stem = torch.where(joined, position.flatten(1).gather(1, (tree.parent * width + tree.stem).clamp_min(0)), -1)

    ancestor = torch.where(joined, tree.parent, slots)
    depth = _along(joined.to(torch.int64), ancestor)
    digit = (width + 1) ** (n - 1 - depth)
    walk = _along((stem + 1) * digit, ancestor)
    order = torch.where(alive, walk, LAST).argsort(1)
    slot = torch.empty_like(order).scatter(1, order, slots)
    parent = torch.where(joined, _at(slot, tree.parent), -1)
    fields = (tree.block, parent, stem, own)
    return Canonical(Tree(*(f.gather(1, order) for f in fields)), slot, position)


def free_stems(tables: Tables, tree: Tree) -> Tensor:
    """Which positions (B, N, S) have no bond."""
    n, width = tree.block.shape[1], tables.atom.shape[1]
    up, down = _ends(tree, width)
    exists = torch.arange(width, device=up.device) < tables.count[tree.block.clamp_min(0)].unsqueeze(2)
    free = torch.nn.functional.pad((exists & (tree.block >= 0).unsqueeze(2)).flatten(1), (0, 1))
    return free.scatter(1, up, False).scatter(1, down, False)[:, :-1].view(-1, n, width)


def grow(tables: Tables, tree: Tree, at: Tensor, block: Tensor) -> tuple[Tree, Tensor]:
    """Add ``block`` (B,) at the stem ``at`` (B,), a number slot * S + position; also the slot (B, 1) that it takes.

    An empty tree gets it as its root.
    """
    width = tables.atom.shape[1]
    size = (tree.block >= 0).sum(1, keepdim=True)
    slot = size.clamp_max(tree.block.shape[1] - 1)
    rooted = (size > 0).squeeze(1)
    new = (
        tables.kind[block],
        torch.where(rooted, at // width, -1),
        torch.where(rooted, at % width, -1),
        torch.where(rooted, tables.own[block], -1),
    )
    return Tree(*(old.scatter(1, slot, value.unsqueeze(1)) for old, value in zip(tree, new, strict=True))), slot


def prune(tree: Tree, slot: Tensor) -> Tree:
    """Take away the block in ``slot`` (B,), which has one neighbour at most; a child of it becomes the root."""
    slot = slot.unsqueeze(1)
    gone = torch.arange(tree.block.shape[1], device=slot.device) == slot
    cut = gone | (tree.parent == slot)
    return Tree(torch.where(gone, -1, tree.block), *(torch.where(cut, -1, f) for f in tree[1:]))


def bonds_of_leaves(tree: Tree) -> tuple[Tensor, Tensor, Tensor]:
    """For blocks with one neighbour: its slot, the position of its stem, and the position of the block's own (B, N)."""
    n = tree.block.shape[1]
    slots = torch.arange(n, device=tree.block.device).expand_as(tree.block)
    joined = tree.parent >= 0
    index = torch.where(joined, tree.parent, n)

    def from_child(value: Tensor) -> Tensor:
        return torch.nn.functional.pad(torch.zeros_like(value), (0, 1)).scatter(1, index, value)[:, :n]

    return (
        torch.where(joined, tree.parent, from_child(slots)),
        torch.where(joined, tree.stem, from_child(tree.own)),
        torch.where(joined, tree.own, from_child(tree.stem)),
    )


def removable(tables: Tables, tree: Tree) -> Tensor:
    """Which blocks (B, N) may have been added last: one neighbour, bound at the first stem of a block of the kind."""
    n = tree.block.shape[1]
    alive, joined = tree.block >= 0, tree.parent >= 0
    index = torch.where(joined, tree.parent, n)
    children = torch.zeros(len(index), n + 1, dtype=torch.int64, device=index.device)
    children = children.scatter_add(1, index, joined.to(torch.int64))[:, :n]
    _, _, own = bonds_of_leaves(tree)
    fits = tables.attach[tree.block.clamp_min(0), own] >= 0
    alone = alive.sum(1, keepdim=True) == 1
    return alive & (alone | ((children + joined == 1) & fits))


def twins(tables: Tables, tree: Tree, found: Codes) -> Tensor:
    """For each removable block the first whose removal leaves an equal tree (B, N); -1 for the others.

    Blocks in equivalent places leave equal trees. So may two of one kind in places that are not equivalent, as the
    ends of a chain in which every block is joined head to tail; where there are such, the trees left are compared.
    """
    free = removable(tables, tree)
    same = (found.whole.unsqueeze(2) == found.whole.unsqueeze(1)) & free.unsqueeze(1)
    first = torch.where(free, same.to(torch.uint8).argmax(2), -1)
    n = free.shape[1]
    slots = torch.arange(n, device=free.device)
    leads = first == slots
    alike = (tree.block.unsqueeze(2) == tree.block.unsqueeze(1)) & leads.unsqueeze(2) & leads.unsqueeze(1)
    doubtful = (alike.sum((1, 2)) > leads.sum(1)).nonzero().squeeze(1)
    if len(doubtful):
        rows = doubtful.repeat_interleave(n)
        left = prune(Tree(*(f[rows] for f in tree)), slots.repeat(len(doubtful)))
        identity = codes(tables, left).identity.view(-1, n)
        may = free[doubtful]
        same = (identity.unsqueeze(2) == identity.unsqueeze(1)) & may.unsqueeze(1)
        first[doubtful] = torch.where(may, same.to(torch.uint8).argmax(2), -1)
    return first
