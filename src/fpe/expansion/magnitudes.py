"""Exact selection of the smallest magnitudes of several large tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fpe.masked import count_free

Tensors = Sequence[Tensor]

#: Entries worked on at a time: few enough for the cache.
_CHUNK = 1 << 18
#: Entries that are sampled to estimate a quantile.
_SAMPLE = 1 << 16


def prune_smallest_(weights: Tensors, masks: Tensors, count: int) -> None:
    """Mask the `count` free entries of smallest magnitude of all layers; of equal ones the first."""
    if count == 0:
        return
    free = sum(map(count_free, masks))
    masked = sum(m.numel() for m in masks) - free
    # Masked weights are zero, so they are first in order and only shift the rank.
    threshold = _nth_smallest_magnitude(weights, masked + count)
    for w, m in zip(weights, masks, strict=True):
        for part, keep in _chunks(w, m):
            size = part.abs()
            keep.mul_(torch.ge(size, threshold, out=size))
    rest = count - (free - sum(map(count_free, masks)))
    for w, m in zip(weights, masks, strict=True):
        for part, keep in _chunks(w, m):
            if rest == 0:
                return
            ties = ((part.abs() == threshold) & (keep != 0)).nonzero().flatten()[:rest]
            keep[ties] = 0
            rest -= len(ties)


def _chunks(weight: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(weight.detach().view(-1), _CHUNK), torch.split(mask.view(-1), _CHUNK), strict=True)


def _nth_smallest_magnitude(weights: Tensors, n: int) -> float:
    """Return the n-th smallest (from 1) magnitude of all entries.

    A sample says between which two magnitudes it lies; one pass then counts the entries below them and
    gathers the few between them (Floyd and Rivest, 1975). Should the sample mislead, all are gathered.
    """
    total = sum(w.numel() for w in weights)
    low, high = _bracket(weights, n / total) if total > _SAMPLE else (0.0, torch.inf)
    below, between = 0, []
    for part in (part for w in weights for part in torch.split(w.detach().view(-1), _CHUNK)):
        size = part.abs()
        under = size < low
        below += int(under.count_nonzero())
        between.append(size[(size <= high) & ~under])
    gathered = torch.cat(between)
    if not below < n <= below + len(gathered):
        below, gathered = 0, torch.cat([w.detach().reshape(-1).abs() for w in weights])
    return float(gathered.kthvalue(n - below).values)


def _bracket(weights: Tensors, quantile: float) -> tuple[float, float]:
    """Return two magnitudes between which the given quantile of all magnitudes lies, almost surely."""
    generator = torch.Generator().manual_seed(0)
    total = sum(w.numel() for w in weights)
    sizes = [1 + _SAMPLE * w.numel() // total for w in weights]
    picked = [
        torch.randint(w.numel(), (k,), generator=generator) for w, k in zip(weights, sizes, strict=True)
    ]
    drawn = [w.detach().view(-1)[i.to(w.device)].abs() for w, i in zip(weights, picked, strict=True)]
    sample = torch.cat(drawn).sort().values
    spread = 5 * math.sqrt(quantile * (1 - quantile) / len(sample)) + 5 / len(sample)
    low, high = (round((quantile + side * spread) * len(sample)) for side in (-1, 1))
    return float(sample[low]) if low >= 0 else 0.0, float(sample[high]) if high < len(sample) else torch.inf
