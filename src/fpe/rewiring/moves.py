"""The new masks of the layers of one scope, for a batch of M networks at once.

A model of its own is a batch of one, and the networks of an ensemble are one of many: both come here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpe.rewiring.policies import RewiringPolicy
from fpe.rewiring.scores import DROP, GROW
from fpe.rewiring.select import at_most, exchange, numbers, totals, undivided


@dataclass
class Tensors:
    """One masked layer of M networks of one architecture.

    Attributes
    ----------
    weight, mask : Tensor
        (M, outputs, inputs, *taps).
    gradient : Tensor or None
        Of the whole weight, or a sum of several; None for policies that need none.
    noise : Tensor or None
        Uniform between 0 and 1, for random growth.
    real : Tensor or None
        Of booleans: what is no padding; None if nothing is.
    children : Tensor or None
        The rows of each parent's children, (parents, factor), the number of rows where there are fewer;
        None for a layer that was not expanded itself.
    blocks : Tensor or None
        Where several groups of parents have blocks of their own, the rows of each, (blocks, neurons of each),
        those of one group side by side, child by child; else None: one block of all first children, another
        of all second ones, and so on.
    inputs_first : bool, default False
        Whether they are views of tensors that lie in memory as (M, inputs, outputs). The choice is the same;
        reading along the memory is faster.
    """

    weight: Tensor
    mask: Tensor
    gradient: Tensor | None = None
    noise: Tensor | None = None
    real: Tensor | None = None
    children: Tensor | None = None
    blocks: Tensor | None = None
    inputs_first: bool = False

    def flat(self, own: Tensor) -> Tensor:
        """View a tensor of the layer's shape as (M, entries), as it lies in memory."""
        return (own.transpose(1, 2) if self.inputs_first else own).flatten(1)

    def shaped(self, flat: Tensor) -> Tensor:
        """View what `flat` returned in the layer's shape."""
        if not self.inputs_first:
            return flat.view(self.mask.shape)
        networks, outputs, inputs = self.mask.shape
        return flat.view(networks, inputs, outputs).transpose(1, 2)


@torch.no_grad()
def new_masks(policy: RewiringPolicy, layers: Sequence[Tensors], share: float) -> list[Tensor]:
    """Return the masks of the layers of one scope after a rewiring; nothing is changed.

    Parameters
    ----------
    policy : Policy
        What counts.
    layers : sequence of Tensors
        Among all of which the count of each network is kept.
    share : float
        Share of the free weights that move, rounded down; fewer where fewer may enter.

    Returns
    -------
    list of Tensor
        Of the shapes and types of the masks.
    """
    move = _move_columns if policy.unit == "column" else _move_weights
    return move(policy, layers, share)


def _scores(policy: RewiringPolicy, layer: Tensors) -> tuple[Tensor, Tensor]:
    return DROP[policy.drop](layer.weight, layer.gradient), GROW[policy.grow](layer.gradient, layer.noise)


def _flat(tensors: Sequence[Tensor], layers: Sequence[Tensors]) -> Tensor:
    """Put the entries of several layers side by side: (M, all entries)."""
    flat = [layer.flat(own) for own, layer in zip(tensors, layers, strict=True)]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def _order(layers: Sequence[Tensors]) -> Tensor | None:
    """Return the order in which `_flat` has entries of equal scores taken: layer, output, input.

    None if they stand in it.
    """
    if not any(layer.inputs_first for layer in layers):
        return None
    orders, before = [], 0
    for layer in layers:
        size = layer.mask[0].numel()
        own = torch.arange(before, before + size, device=layer.mask.device)
        if layer.inputs_first:
            own = own.view(layer.mask.shape[:0:-1]).t().flatten()
        orders.append(own)
        before += size
    return torch.cat(orders)


def _counts(share: float, free: Tensor) -> list[int]:
    return [int(share * count) for count in totals(free)]


def _move_weights(policy: RewiringPolicy, layers: Sequence[Tensors], share: float) -> list[Tensor]:
    sizes = [layer.mask.shape[1:].numel() for layer in layers]
    scores = [_scores(policy, layer) for layer in layers]
    free = _flat([layer.mask.bool() for layer in layers], layers)
    held = ~free
    if any(layer.real is not None for layer in layers):
        marks = [torch.ones_like(la.mask, dtype=torch.bool) if la.real is None else la.real for la in layers]
        held &= _flat(marks, layers)

    def layered(flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, sizes, dim=1)
        return [layer.shaped(part) for part, layer in zip(parts, layers, strict=True)]

    def apart(still: Tensor) -> Tensor:
        parts = zip(layers, scores, layered(still), layered(held), strict=True)
        marks = [
            allowed if layer.children is None else undivided(own, allowed, grow, layer.children)
            for layer, (_, grow), own, allowed in parts
        ]
        return _flat(marks, layers)

    counts = _counts(share, free)
    candidates: Callable[[Tensor], Tensor] = apart
    if policy.partition == "free":
        counts, candidates = at_most(counts, held), lambda _: held
    drop, grow = (_flat(own, layers) for own in zip(*scores, strict=True))
    dropped, grown = exchange(free, free, drop, grow, counts, candidates, _order(layers))
    new = layered((free & ~dropped) | grown)
    return [numbers(mask, layer.mask.dtype) for mask, layer in zip(new, layers, strict=True)]


def _move_columns(policy: RewiringPolicy, layers: Sequence[Tensors], share: float) -> list[Tensor]:
    """Let columns enter in exchange for others, whose mask each takes over, its holes included.

    With blocks for several groups of parents each block keeps its number of columns.

    The last column of a block that counts most stays, so that no block loses all its inputs.
    """
    tables = [_table(layer) for layer in layers]
    blocks = [by_block(layer.mask, table) for layer, table in zip(layers, tables, strict=True)]
    scores = [_scores(policy, layer) for layer in layers]
    drop, grow = (
        _norms([by_block(own, table) for own, table in zip(each, tables, strict=True)])
        for each in zip(*scores, strict=True)
    )  # (M, blocks, inputs)
    free = torch.stack([(block != 0).any(dim=4).any(dim=2) for block in blocks]).any(dim=0)
    held = ~free
    for layer, table in zip(layers, tables, strict=True):
        if layer.real is not None:
            held &= by_block(layer.real, table).any(dim=4).any(dim=2)
    best = torch.where(free, drop, -torch.inf).argmax(dim=2, keepdim=True)
    movable = free.scatter(2, best, False)

    # Among what columns are exchanged: all of a network, or those of each block.
    rows = (-1, free.shape[2]) if layers[0].blocks is not None else (len(free), -1)

    def candidates(still: Tensor) -> Tensor:
        if policy.partition == "free":
            return held.reshape(rows)
        assert layers[0].children is not None
        siblings = torch.arange(free.shape[1]).view(-1, layers[0].children.shape[1])  # group by group
        return undivided(still.view(free.shape), held, grow, siblings).reshape(rows)

    counts = _counts(share, free.reshape(rows))
    marks, ranks = (free.reshape(rows), movable.reshape(rows)), (drop.reshape(rows), grow.reshape(rows))
    dropped, grown = exchange(*marks, *ranks, counts, candidates)
    source = torch.arange(free[0].numel(), device=dropped.device).repeat(len(free), 1).view(rows)
    leaving, entering = source[dropped], source[grown]  # row by row, equally many in each
    source[dropped], source[grown] = entering, leaving
    source = source.view(free.shape)
    return [
        _permuted(block, source, layer.mask, table)
        for block, layer, table in zip(blocks, layers, tables, strict=True)
    ]


def _table(layer: Tensors) -> Tensor:
    """Return the rows of each block."""
    if layer.blocks is not None:
        return layer.blocks
    assert layer.children is not None
    return layer.children.t()


def by_block(tensor: Tensor, blocks: Tensor) -> Tensor:
    """Return (M, outputs, inputs, *taps) as (M, blocks, neurons, inputs, taps); `blocks` as in `Tensors`."""
    parts = tensor.reshape(*tensor.shape[:3], -1).index_select(1, blocks.flatten().to(tensor.device))
    return parts.view(len(tensor), *blocks.shape, *parts.shape[2:])


def _norms(blocks: Sequence[Tensor]) -> Tensor:
    """Return the norm of each column over all layers, (M, blocks, inputs)."""
    squares = [block.square().sum(dim=(2, 4)) for block in blocks]
    return torch.stack(squares).sum(dim=0).sqrt()


def _permuted(block: Tensor, source: Tensor, like: Tensor, blocks: Tensor) -> Tensor:
    """Give each column the mask of its source, an index into (blocks × inputs); return the whole mask."""
    networks, count, neurons, inputs, taps = block.shape
    columns = block.transpose(1, 2).reshape(networks, neurons, -1, taps)
    index = source.view(networks, 1, -1, 1).expand(columns.shape)
    moved = columns.gather(2, index).view(networks, neurons, count, inputs, taps).transpose(1, 2)
    rows = blocks.flatten().to(like.device)
    return torch.empty_like(like).index_copy_(1, rows, moved.reshape(like.shape))
