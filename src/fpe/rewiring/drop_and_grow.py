"""Drop and grow: the new masks of some layers, as pure functions over a batch of M networks.

A single model is a batch of one. Scores turn weights and gradients into numbers; in each network the entries
with the smallest scores are dropped, and as many masked entries with the largest scores are grown. Counts are
exact: of equal scores, that of the earlier entry counts first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fpe.rewiring.policies import RewiringPolicy


@dataclass
class LayerBatch:
    """One masked layer of M networks of one architecture; tensors are (M, outputs, inputs, *taps).

    `gradient` is the unmasked gradient or a sum of several, `noise` uniform; each is None if the policy needs
    none. `real` is False for padding, None without padding. `children` are the rows of each parent's
    children, (parents, factor), padded with the number of rows; None for a layer that was not expanded
    itself. `blocks` are the rows of each block, (blocks, neurons), siblings side by side; by default block k
    has the k-th children of all parents.
    """

    weight: Tensor
    mask: Tensor
    gradient: Tensor | None = None
    noise: Tensor | None = None
    real: Tensor | None = None
    children: Tensor | None = None
    blocks: Tensor | None = None


@torch.no_grad()
def drop_and_grow(policy: RewiringPolicy, layers: Sequence[LayerBatch], share: float) -> list[Tensor]:
    """Return the masks of the layers of one scope after a rewiring; nothing is changed.

    A `share` of the free weights is dropped, rounded down, or fewer if fewer can be grown. Each network's
    count over all the layers stays.
    """
    scores = [_scores(policy, layer) for layer in layers]
    rewire = _rewire_columns if policy.unit == "column" else _rewire_weights
    return rewire(policy, layers, scores, share)


def _scores(policy: RewiringPolicy, layer: LayerBatch) -> tuple[Tensor, Tensor]:
    """Return the scores by which entries are dropped and grown."""
    gradient, noise = cast(Tensor, layer.gradient), cast(Tensor, layer.noise)
    drop = layer.weight.abs() if policy.drop == "magnitude" else layer.weight.mul(gradient).abs_()
    return drop, noise if policy.grow == "random" else gradient.abs()


def _rewire_weights(
    policy: RewiringPolicy,
    layers: Sequence[LayerBatch],
    scores: Sequence[tuple[Tensor, Tensor]],
    share: float,
) -> list[Tensor]:
    def flat(tensors: Sequence[Tensor]) -> Tensor:  # the entries of all layers side by side
        return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)

    def layered(entries: Tensor) -> list[Tensor]:
        parts = torch.split(entries, [layer.mask[0].numel() for layer in layers], dim=1)
        return [part.view(layer.mask.shape) for part, layer in zip(parts, layers, strict=True)]

    free = flat([layer.mask.bool() for layer in layers])
    masked = ~free
    if any(layer.real is not None for layer in layers):
        masked &= flat([torch.ones_like(b.mask).bool() if b.real is None else b.real for b in layers])

    def candidates(remaining: Tensor) -> Tensor:
        if policy.partition == "free":
            return masked
        parts = zip(layers, scores, layered(remaining), layered(masked), strict=True)
        return flat([
            allowed if layer.children is None else disjoint_candidates(own, allowed, grow, layer.children)
            for layer, (_, grow), own, allowed in parts
        ])  # fmt: skip

    counts = [int(share * count) for count in totals(free)]
    drop, grow = (flat(own) for own in zip(*scores, strict=True))
    dropped, grown = exchange(free, free, drop, grow, counts, candidates)
    new = layered((free & ~dropped) | grown)
    return [numbers(mask, layer.mask.dtype) for mask, layer in zip(new, layers, strict=True)]


def _rewire_columns(
    policy: RewiringPolicy,
    layers: Sequence[LayerBatch],
    scores: Sequence[tuple[Tensor, Tensor]],
    share: float,
) -> list[Tensor]:
    """Exchange whole columns: each grown one gets the mask of a dropped one, its masked entries included.

    With `blocks` the number of columns of each block stays. The best column of a block is never dropped, so
    that each block has an input.
    """
    first = layers[0]
    tables = [table_of(layer.children, layer.blocks) for layer in layers]

    def split(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [by_block(own, table) for own, table in zip(tensors, tables, strict=True)]

    masks = split([layer.mask for layer in layers])
    drop, grow = (
        torch.stack([own.square().sum(dim=(2, 4)) for own in split(each)]).sum(dim=0).sqrt()
        for each in zip(*scores, strict=True)
    )  # the norm of each column over all layers, (M, blocks, inputs)
    free = torch.stack([(mask != 0).any(dim=4).any(dim=2) for mask in masks]).any(dim=0)
    masked = ~free
    for layer, table in zip(layers, tables, strict=True):
        if layer.real is not None:
            masked &= by_block(layer.real, table).any(dim=4).any(dim=2)
    best = torch.where(free, drop, -torch.inf).argmax(dim=2, keepdim=True)
    droppable = free.scatter(2, best, False)

    # Columns are exchanged among all of a network, or within each block.
    rows = (-1, free.shape[2]) if first.blocks is not None else (len(free), -1)

    def candidates(remaining: Tensor) -> Tensor:
        if policy.partition == "free":
            return masked.reshape(rows)
        assert first.children is not None
        siblings = torch.arange(free.shape[1]).view(-1, first.children.shape[1])  # group by group
        return disjoint_candidates(remaining.view(free.shape), masked, grow, siblings).reshape(rows)

    counts = [int(share * count) for count in totals(free.reshape(rows))]
    by_row = partial(torch.reshape, shape=rows)
    dropped, grown = exchange(by_row(free), by_row(droppable), by_row(drop), by_row(grow), counts, candidates)
    source = torch.arange(free[0].numel(), device=free.device).repeat(len(free), 1).view(rows)
    source[dropped], source[grown] = source[grown], source[dropped]  # row by row, equally many in each
    return [
        _permuted(mask, source.view(len(free), -1), layer.mask, table)
        for mask, layer, table in zip(masks, layers, tables, strict=True)
    ]


def table_of(children: Tensor | None, blocks: Tensor | None) -> Tensor:
    """Return the rows of each block, (blocks, neurons), of an expanded layer; see `LayerBatch`."""
    return cast(Tensor, children).t() if blocks is None else blocks


def by_block(tensor: Tensor, blocks: Tensor) -> Tensor:
    """Return (M, outputs, inputs, *taps) as (M, blocks, neurons, inputs, taps)."""
    parts = tensor.reshape(*tensor.shape[:3], -1).index_select(1, blocks.flatten().to(tensor.device))
    return parts.view(len(tensor), *blocks.shape, *parts.shape[2:])


def _permuted(mask: Tensor, source: Tensor, like: Tensor, blocks: Tensor) -> Tensor:
    """Return the mask in which each column has the mask of its source, an index into (blocks × inputs)."""
    networks, count, neurons, inputs, taps = mask.shape
    columns = mask.transpose(1, 2).reshape(networks, neurons, -1, taps)
    permuted = columns.gather(2, source.view(networks, 1, -1, 1).expand(columns.shape))
    permuted = permuted.view(networks, neurons, count, inputs, taps).transpose(1, 2)
    rows = blocks.flatten().to(like.device)
    return torch.empty_like(like).index_copy_(1, rows, permuted.reshape(like.shape))


def exchange(
    mask: Tensor,
    droppable: Tensor,
    drop_scores: Tensor,
    grow_scores: Tensor,
    counts: Sequence[int],
    candidates: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Mark the entries to drop and as many to grow in each row, (M, n); no dropped entry is grown.

    The smallest `drop_scores` of `droppable` are dropped, `counts` in each row, or fewer if fewer can be
    grown; then the largest `grow_scores` are grown. `candidates` maps the remaining free entries to those
    outside `mask` that may be grown.
    """
    counts = at_most(counts, droppable)
    while True:
        dropped = smallest(drop_scores, droppable, counts)
        growable = candidates(mask & ~dropped)
        possible = at_most(counts, growable)
        if possible == counts:
            return dropped, smallest(grow_scores.neg(), growable, counts)
        counts = possible


def smallest(scores: Tensor, among: Tensor, counts: Sequence[int]) -> Tensor:
    """Mark exactly ``counts[m]`` entries in each row m, those with the smallest finite scores in `among`."""
    if not any(counts):
        return torch.zeros_like(among)
    if scores.element_size() < 4:
        scores = scores.float()
    # Infinite outside `among`; ten times as fast as `torch.where`, which branches.
    ordered = numbers(among, scores.dtype).reciprocal_().sub_(1).add_(scores)
    bounds = _bounds(ordered, counts)
    chosen = (ordered <= bounds).logical_and_(among)
    if totals(chosen) == list(counts):
        return chosen
    below = ordered < bounds
    ties = chosen.logical_and_(~below)
    wanted = torch.tensor(counts, device=ties.device) - below.sum(dim=1)
    first = ties.cumsum(dim=1, dtype=torch.int32) <= wanted.unsqueeze(1)
    return below.logical_or_(ties.logical_and_(first))


def _bounds(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the ``counts[m]``-th smallest number of each row, −∞ for a count of 0: (M, 1)."""
    bounds = rows.new_full((len(rows), 1), -torch.inf)
    for count in set(counts) - {0}:  # all rows of one count at once
        alike = [m for m, own in enumerate(counts) if own == count]
        if rows.device.type == "cpu":  # NumPy's selection is several times as fast as PyTorch's
            these = rows.numpy()[alike]
            these.partition(count - 1, axis=1)
            bounds[alike, 0] = torch.from_numpy(these[:, count - 1])
        else:
            bounds[alike, 0] = rows[alike].kthvalue(count, dim=1).values
    return bounds


def numbers(marks: Tensor, dtype: torch.dtype) -> Tensor:
    """Return booleans as new numbers, by way of bytes, which PyTorch converts faster."""
    return marks.view(torch.uint8).to(dtype)


def totals(marks: Tensor) -> list[int]:
    """Count the true entries of each row."""
    if marks.device.type == "cpu":  # faster than PyTorch's sum
        return [int(np.count_nonzero(row)) for row in marks.numpy()]
    counts: list[int] = marks.sum(dim=1).tolist()
    return counts


def at_most(counts: Sequence[int], among: Tensor) -> list[int]:
    """Return the counts, or the numbers of true entries if these are smaller."""
    return [min(count, there) for count, there in zip(counts, totals(among), strict=True)]


def disjoint_candidates(free: Tensor, allowed: Tensor, scores: Tensor, children: Tensor) -> Tensor:
    """Mark the entries of `allowed`, (M, rows, …), that can be grown so that siblings stay disjoint.

    No sibling of theirs is `free`, and of several siblings the one with the largest score is marked.
    """
    children = children.to(free.device)

    def by_parent(tensor: Tensor, absent: float) -> Tensor:
        filler = tensor.new_full((len(tensor), 1, *tensor.shape[2:]), absent)
        return torch.cat([tensor, filler], dim=1)[:, children]  # (M, parents, factor, …)

    possible = by_parent(torch.where(allowed, scores, -torch.inf), -torch.inf)
    best = possible.argmax(dim=2, keepdim=True)  # of equal ones the first
    taken = by_parent(free, False).any(dim=2, keepdim=True)
    place = torch.arange(children.shape[1], device=free.device).view(1, 1, -1, *[1] * (free.dim() - 2))
    rows = torch.zeros(len(free), free.shape[1] + 1, *free.shape[2:], dtype=torch.bool, device=free.device)
    rows[:, children] = (place == best) & ~taken & (possible > -torch.inf)
    return rows[:, :-1]
