"""What counts as non-zero, and which weights pay for the copies.

A network's non-zero parameters are the entries of its Parameters that no mask holds at zero; an
entry that happens to be 0 while it is free counts. A way of paying is a small value that answers
``prune_(weights, masks, count, factor)`` with new masks that hold exactly `count` fewer entries.
``weights[0]`` is the expanded layer (or the layers of a gated pair, one below the other), the rest are
the layers that read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError, BudgetError
from fpe.masked import HasMasks, past_mask

#: Entries worked on at a time: few enough for the cache, and for an exact sum of ones in float32.
_CHUNK = 1 << 18
#: Entries drawn to find out where a quantile lies.
_SAMPLE = 1 << 16


def counted_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Yield each distinct Parameter with its name and the number of its entries that count."""
    seen: set[int] = set()
    for prefix, child in module.named_modules():
        for name, parameter in child.named_parameters(prefix=prefix, recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                mask = child.free(name.rpartition(".")[2]) if isinstance(child, HasMasks) else None
                free = parameter.numel() if mask is None else int(mask.count_nonzero())
                yield name, parameter, free if mask is None else free + past_mask(parameter, mask)


def count_nonzero(model: nn.Module) -> int:
    """Count the parameters that are free or not zero: weights, biases, norm parameters.

    Parameters
    ----------
    model : nn.Module
        Dense or expanded. It is not changed. A Parameter used twice counts once.

    Returns
    -------
    int
        The number of entries that no mask holds at zero, and of those that are not zero although one
        should (see `fpe.project_`). Of a sharded model, the latter in the piece of this process.
    """
    return sum(count for _, _, count in counted_parameters(model))


def count_free(mask: Tensor) -> int:
    """Count the ones of a mask of zeros and ones, several times as fast as ``Tensor.count_nonzero``."""
    return sum(int(part.sum(dtype=torch.float32)) for part in torch.split(mask.reshape(-1), _CHUNK))


@runtime_checkable
class Pruning(Protocol):
    """Anything that can choose the weights that pay.

    Examples
    --------
    The last weights of each layer go first:

    >>> import torch, fpe
    >>> class Last:
    ...     needs_shared = False
    ...
    ...     def pay(self, weights, masks, count, factor):
    ...         for mask in reversed(masks):
    ...             free = mask.flatten().nonzero().flatten()
    ...             gone = free[len(free) - min(count, len(free)) :]
    ...             mask.view(-1)[gone] = 0
    ...             count -= len(gone)
    >>> model = fpe.mlp(8, 4, 2)
    >>> fpe.count_nonzero(fpe.expand(model, prune=Last())) == fpe.count_nonzero(model)
    True
    """

    @property
    def needs_shared(self) -> bool:
        """Whether all neurons must have one partition."""
        ...

    def prune_(self, weights: Sequence[Tensor], masks: Sequence[Tensor], count: int, factor: int) -> None:
        """Set `count` ones of the masks to zero, in place.

        Arguments and shapes are those of `MagnitudePruning.pay`. A method may take ``blocks`` too, a tensor of the
        block of each neuron of ``weights[0]``: it is given where `needs_shared` is true and the split makes
        several groups of neurons (`fpe.SharedSplit(groups=…)`).
        """
        ...


@dataclass(frozen=True)
class MagnitudePruning:
    """The paper's: the smallest weights of all layers together (section 2.3).

    Parameters
    ----------
    readers : float, optional
        The largest share of the free weights, when all is paid, that the layers that read the new neurons
        keep; within them and within the expanded layer the smallest weights go. By default there is no such
        limit. A network that was not trained before its expansion has outgoing weights that are large only
        because their layer has few inputs: magnitudes then do not tell the layers' worth.

    Raises
    ------
    ArgumentError
        If `readers` is not above 0 and below 1.
    """

    readers: float | None = None

    needs_shared = False

    def __post_init__(self) -> None:
        if self.readers is not None and not (
            isinstance(self.readers, int | float)
            and not isinstance(self.readers, bool)
            and 0 < self.readers < 1
        ):
            raise ArgumentError(
                f"Magnitude: readers is {self.readers!r}; give a number above 0 and below 1, or None."
            )

    def __repr__(self) -> str:
        return "MagnitudePruning()" if self.readers is None else f"MagnitudePruning(readers={self.readers})"

    def prune_(self, weights: Sequence[Tensor], masks: Sequence[Tensor], count: int, factor: int) -> None:
        """Mask, in place, the `count` free weights of smallest magnitude.

        Among equal magnitudes the earlier entry goes first, in the order of `weights` and row by row.

        Parameters
        ----------
        weights : sequence of Tensor
            Contiguous, zero where masked. Not changed.
        masks : sequence of Tensor
            Contiguous, of the weights' shapes, 1 where a weight is free. Changed in place.
        count : int
            How many free weights are to be held at zero.
        factor : int
            The expansion factor, not used here.

        Raises
        ------
        BudgetError
            If fewer weights are free; the masks are then unchanged.
        """
        free = sum(count_free(m) for m in masks)
        if count > free:
            raise BudgetError(f"{count} weights are to be held at zero, but only {free} are free.")
        if self.readers is None:
            self._prune_together(weights, masks, count)
            return
        own = count_free(masks[0])
        kept = max(min(free - own, int(self.readers * (free - count))), free - count - own)
        self._prune_together(weights[1:], masks[1:], free - own - kept)
        self._prune_together(weights[:1], masks[:1], own - (free - count - kept))

    def _prune_together(self, weights: Sequence[Tensor], masks: Sequence[Tensor], count: int) -> None:
        if count == 0:
            return
        free = sum(count_free(m) for m in masks)
        masked = sum(m.numel() for m in masks) - free
        # Masked weights are zero, so they come first in order and only shift the rank.
        threshold = _nth_smallest_magnitude(weights, masked + count)
        for w, m in zip(weights, masks, strict=True):
            for part, keep in _chunks(w, m):
                size = part.abs()
                keep.mul_(torch.ge(size, threshold, out=size))
        unpaid = count - (free - sum(count_free(m) for m in masks))
        for w, m in zip(weights, masks, strict=True):
            for part, keep in _chunks(w, m):
                if unpaid == 0:
                    return
                ties = ((part.abs() == threshold) & (keep != 0)).nonzero().flatten()[:unpaid]
                keep[ties] = 0
                unpaid -= len(ties)


def _chunks(weight: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk over two contiguous tensors in flat pieces that fit the processor's cache."""
    return zip(torch.split(weight.detach().view(-1), _CHUNK), torch.split(mask.view(-1), _CHUNK), strict=True)


def _nth_smallest_magnitude(weights: Sequence[Tensor], n: int) -> float:
    """Return the n-th smallest (from 1) magnitude of all entries.

    A sample says between which two magnitudes it lies; one pass then counts the entries below them and
    gathers the few between them (Floyd and Rivest, 1975). Should the sample mislead, all are gathered.
    """
    total = sum(w.numel() for w in weights)
    low, high = _bracket(weights, n / total) if total > _SAMPLE else (0.0, torch.inf)
    below, between = 0, []
    for w in weights:
        for part in torch.split(w.detach().view(-1), _CHUNK):
            size = part.abs()
            under = size < low
            below += int(under.count_nonzero())
            between.append(size[(size <= high) & ~under])
    gathered = torch.cat(between)
    if not below < n <= below + len(gathered):
        below, gathered = 0, torch.cat([w.detach().reshape(-1).abs() for w in weights])
    return float(gathered.kthvalue(n - below).values)


def _bracket(weights: Sequence[Tensor], quantile: float) -> tuple[float, float]:
    """Return two magnitudes that the given quantile of all magnitudes lies between, almost surely."""
    generator = torch.Generator().manual_seed(0)
    total = sum(w.numel() for w in weights)
    drawn = []
    for w in weights:
        picked = torch.randint(w.numel(), (1 + _SAMPLE * w.numel() // total,), generator=generator)
        drawn.append(w.detach().view(-1)[picked.to(w.device)].abs())
    sample = torch.cat(drawn).sort().values
    spread = 5 * math.sqrt(quantile * (1 - quantile) / len(sample)) + 5 / len(sample)
    low, high = (round((quantile + side * spread) * len(sample)) for side in (-1, 1))
    return (
        float(sample[low]) if low >= 0 else 0.0,
        float(sample[high]) if high < len(sample) else torch.inf,
    )
