"""Choosing: which entries leave and which enter, for a batch of M networks at once.

All tensors are (M, n): one row for each network, and within a row the entries among which is chosen.
Counts are exact. Of equal scores that of the earlier entry is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def smallest(scores: Tensor, among: Tensor, counts: Sequence[int]) -> Tensor:
    """Mark the entries of the smallest scores.

    Parameters
    ----------
    scores : Tensor
        Finite where `among` is true.
    among : Tensor
        Of booleans: what may be chosen.
    counts : sequence of int
        How many to choose in each row, at most as many as may be.

    Returns
    -------
    Tensor
        Of booleans, exactly ``counts[m]`` true in row m.
    """
    if not any(counts):
        return torch.zeros_like(among)
    if scores.element_size() < 4:
        scores = scores.float()
    ordered = scores.masked_fill(~among, torch.inf)
    bound = torch.stack([_nth(row, count) for row, count in zip(ordered, counts, strict=True)]).unsqueeze(1)
    below = (scores < bound).logical_and_(among)
    ties = (scores == bound).logical_and_(among)
    wanted = torch.tensor(counts, device=scores.device) - below.sum(dim=1)
    if torch.equal(ties.sum(dim=1), wanted):
        return below.logical_or_(ties)
    first = ties.cumsum(dim=1, dtype=torch.int32) <= wanted.unsqueeze(1)
    return below.logical_or_(ties.logical_and_(first))


def _nth(row: Tensor, count: int) -> Tensor:
    """Return the count-th smallest number, −∞ for a count of 0."""
    if count == 0:
        return row.new_full((), -torch.inf)
    if row.device.type == "cpu":  # NumPy's selection is several times as fast as PyTorch's
        return row.new_tensor(np.partition(row.numpy(), count - 1)[count - 1])
    return row.kthvalue(count).values


def largest(scores: Tensor, among: Tensor, counts: Sequence[int]) -> Tensor:
    """Mark the entries of the largest scores; see `smallest`."""
    return smallest(scores.neg(), among, counts)


def exchange(
    mask: Tensor,
    movable: Tensor,
    drop_scores: Tensor,
    grow_scores: Tensor,
    counts: Sequence[int],
    candidates: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Choose as many entries to enter as to leave, in each row.

    What has just left does not enter again. Where fewer entries may enter than are wanted, fewer leave.

    Parameters
    ----------
    mask : Tensor
        Of booleans: what is free.
    movable : Tensor
        Of booleans: what of it may leave.
    drop_scores, grow_scores : Tensor
        The smallest of the one leave, the largest of the other enter.
    counts : sequence of int
        How many are wanted in each row.
    candidates : callable
        From what is still free after some have left, (M, n), to what may enter, none of which is in `mask`.

    Returns
    -------
    dropped, grown : Tensor
        Of booleans, with equally many true in each row.
    """
    counts = _at_most(counts, movable)
    while True:
        dropped = smallest(drop_scores, movable, counts)
        entering = candidates(mask & ~dropped)
        possible = _at_most(counts, entering)
        if possible == counts:
            return dropped, largest(grow_scores, entering, counts)
        counts = possible


def _at_most(counts: Sequence[int], among: Tensor) -> list[int]:
    return [min(count, there) for count, there in zip(counts, among.sum(dim=1).tolist(), strict=True)]


def undivided(free: Tensor, allowed: Tensor, scores: Tensor, children: Tensor) -> Tensor:
    """Mark where a weight may enter so that siblings stay disjoint.

    Parameters
    ----------
    free, allowed : Tensor
        Of booleans, (M, rows, …): what is free, and what else might enter.
    scores : Tensor
        (M, rows, …): of the siblings that might enter in one place, only the one of the largest score may.
    children : Tensor
        The rows of each parent's children, (parents, factor); the number of rows where there are fewer.

    Returns
    -------
    Tensor
        Of booleans, (M, rows, …).
    """
    children = children.to(free.device)

    def families(tensor: Tensor, absent: float) -> Tensor:
        nobody = tensor.new_full((len(tensor), 1, *tensor.shape[2:]), absent)
        return torch.cat([tensor, nobody], dim=1)[:, children]  # (M, parents, factor, …)

    possible = families(torch.where(allowed, scores, -torch.inf), -torch.inf)
    best = possible.argmax(dim=2, keepdim=True)  # of equal ones the first
    taken = families(free, False).any(dim=2, keepdim=True)
    place = torch.arange(children.shape[1], device=free.device)
    place = place.view(1, 1, -1, *[1] * (free.dim() - 2))
    mine = (place == best) & ~taken & (possible > -torch.inf)
    rows = torch.zeros(len(free), free.shape[1] + 1, *free.shape[2:], dtype=torch.bool, device=free.device)
    rows[:, children] = mine
    return rows[:, :-1]
