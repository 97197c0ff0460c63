"""Choosing: which entries leave and which enter, for a batch of M networks at once.

All tensors are (M, n): one row for each network, and within a row the entries among which is chosen.
Counts are exact. Of equal scores that of the earlier entry is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def smallest(scores: Tensor, among: Tensor, counts: Sequence[int], order: Tensor | None = None) -> Tensor:
    """Mark the entries of the smallest scores.

    Parameters
    ----------
    scores : Tensor
        Finite.
    among : Tensor
        Of booleans: what may be chosen.
    counts : sequence of int
        How many to choose in each row, at most as many as may be.
    order : Tensor, optional
        The numbers of all entries, the earlier first; by default as they stand.

    Returns
    -------
    Tensor
        Of booleans, exactly ``counts[m]`` true in row m.
    """
    if not any(counts):
        return torch.zeros_like(among)
    if scores.element_size() < 4:
        scores = scores.float()
    # Infinite where nothing may be chosen. `torch.where` says the same, ten times as slow: it branches.
    ordered = numbers(among, scores.dtype).reciprocal_().sub_(1).add_(scores)
    bounds = _bounds(ordered, counts)
    chosen = (ordered <= bounds).logical_and_(among)
    if totals(chosen) == list(counts):
        return chosen
    below = ordered < bounds
    ties = chosen.logical_and_(~below)
    wanted = torch.tensor(counts, device=ties.device) - below.sum(dim=1)
    if order is None:
        order = torch.arange(ties.shape[1], device=ties.device)
    ranks = ties[:, order].cumsum(dim=1, dtype=torch.int32)
    first = torch.zeros_like(ties)
    first[:, order] = ranks <= wanted.unsqueeze(1)
    return below.logical_or_(ties.logical_and_(first))


def numbers(marks: Tensor, dtype: torch.dtype) -> Tensor:
    """Return booleans as new numbers, 0 and 1; by way of bytes, which PyTorch converts much faster."""
    return marks.view(torch.uint8).to(dtype)


def _bounds(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the ``counts[m]``-th smallest number of each row, −∞ for a count of 0: (M, 1)."""
    bounds = rows.new_full((len(rows), 1), -torch.inf)
    for count in set(counts) - {0}:  # all rows of one count at once
        alike = [m for m, own in enumerate(counts) if own == count]
        if rows.device.type == "cpu":  # NumPy's selection is several times as fast as PyTorch's
            these = rows.numpy()[alike]
            these.partition(count - 1, axis=1)
            nth = torch.from_numpy(these[:, count - 1])
        else:
            nth = rows[alike].kthvalue(count, dim=1).values
        bounds[alike, 0] = nth
    return bounds


def largest(scores: Tensor, among: Tensor, counts: Sequence[int], order: Tensor | None = None) -> Tensor:
    """Mark the entries of the largest scores; see `smallest`."""
    return smallest(scores.neg(), among, counts, order)


def exchange(
    mask: Tensor,
    movable: Tensor,
    drop_scores: Tensor,
    grow_scores: Tensor,
    counts: Sequence[int],
    candidates: Callable[[Tensor], Tensor],
    order: Tensor | None = None,
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
    order : Tensor, optional
        As for `smallest`.

    Returns
    -------
    dropped, grown : Tensor
        Of booleans, with equally many true in each row.
    """
    counts = at_most(counts, movable)
    while True:
        dropped = smallest(drop_scores, movable, counts, order)
        entering = candidates(mask & ~dropped)
        possible = at_most(counts, entering)
        if possible == counts:
            return dropped, largest(grow_scores, entering, counts, order)
        counts = possible


def at_most(counts: Sequence[int], among: Tensor) -> list[int]:
    """Return the counts, less where fewer entries are there."""
    return [min(count, there) for count, there in zip(counts, totals(among), strict=True)]


def totals(marks: Tensor) -> list[int]:
    """Count what is true in each row."""
    if marks.device.type == "cpu":  # PyTorch makes numbers of them first
        return [int(np.count_nonzero(row)) for row in marks.numpy()]
    counts: list[int] = marks.sum(dim=1).tolist()
    return counts


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
