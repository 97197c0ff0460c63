"""What counts as non-zero, and which weights pay for the copies.

A network's non-zero parameters are the entries of its Parameters that no mask holds at zero; an
entry that happens to be 0 while it is free counts. A way of paying is a small value that answers
``pay(weights, masks, count, factor)`` with new masks that hold exactly `count` fewer entries.
``weights[0]`` is the expanded layer (or the layers of a gated pair, one below the other), the rest are
the layers that read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError, BudgetError, did_you_mean
from fpe.masked import HoldsZeros

#: Entries worked on at a time: few enough for the cache, and for an exact sum of ones in float32.
_CHUNK = 1 << 18
#: Entries drawn to find out where a quantile lies.
_SAMPLE = 1 << 16


def parameters_with_masks(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor | None]]:
    """Yield each distinct Parameter with its name and its mask (None where all entries are free)."""
    seen: set[int] = set()
    for prefix, child in module.named_modules():
        for name, parameter in child.named_parameters(prefix=prefix, recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                own = name.rpartition(".")[2]
                yield name, parameter, child.free(own) if isinstance(child, HoldsZeros) else None


def count_nonzero(model: nn.Module) -> int:
    """Count the parameters that no mask holds at zero: weights, biases, norm parameters.

    Parameters
    ----------
    model : nn.Module
        Dense or expanded. It is not changed. A Parameter used twice counts once.

    Returns
    -------
    int
        The number of free entries.
    """
    pairs = parameters_with_masks(model)
    return sum(parameter.numel() if mask is None else count_free(mask) for _, parameter, mask in pairs)


def count_free(mask: Tensor) -> int:
    """Count the ones of a mask of zeros and ones, several times as fast as ``count_nonzero``."""
    return sum(int(part.sum(dtype=torch.float32)) for part in torch.split(mask.reshape(-1), _CHUNK))


@runtime_checkable
class Prune(Protocol):
    """Anything that can choose the weights that pay."""

    @property
    def needs_shared(self) -> bool:
        """Whether all neurons must have one partition."""
        ...

    def pay(self, weights: Sequence[Tensor], masks: Sequence[Tensor], count: int, factor: int) -> None:
        """Set `count` ones of the masks to zero, in place."""
        ...


@dataclass(frozen=True)
class Magnitude:
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
        return "Magnitude()" if self.readers is None else f"Magnitude(readers={self.readers})"

    def pay(self, weights: Sequence[Tensor], masks: Sequence[Tensor], count: int, factor: int) -> None:
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
            self._pay_together(weights, masks, count)
            return
        own = count_free(masks[0])
        kept = max(min(free - own, int(self.readers * (free - count))), free - count - own)
        self._pay_together(weights[1:], masks[1:], free - own - kept)
        self._pay_together(weights[:1], masks[:1], own - (free - count - kept))

    def _pay_together(self, weights: Sequence[Tensor], masks: Sequence[Tensor], count: int) -> None:
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


#: How `Columns` may rank inputs.
RANKINGS = ("norm", "activation", "gradient")


@dataclass(frozen=True)
class Columns:
    """Whole inputs leave the blocks of a shared split, those that count least first.

    The layer stays dense blocks: `factor` for each group of the split, and with several groups all of as many
    inputs, or one more, so that one batched product can compute them. What no whole column can pay goes by
    magnitude. No block loses its last input.

    Parameters
    ----------
    by : str, default "norm"
        What an input counts. ``"norm"``: the norm of its column of weights. ``"activation"``: that norm times
        the root mean square of the input on `example_inputs`, as Wanda ranks single weights (Sun et al.,
        2024). ``"gradient"``: the sum over its column of ``|weight × gradient|``, to first order what the
        loss would change by, as SNIP ranks single weights (Lee et al., 2019); the gradient is the one that
        ``loss.backward()`` left on the layer.

    Raises
    ------
    ArgumentError
        For an unknown ranking.
    """

    by: str = "norm"

    needs_shared = True

    def __post_init__(self) -> None:
        if self.by not in RANKINGS:
            names = ", ".join(map(repr, RANKINGS[:-1]))
            raise ArgumentError(
                f"Columns: by is {self.by!r}; give {names} or {RANKINGS[-1]!r}."
                + (did_you_mean(self.by, RANKINGS) if isinstance(self.by, str) else "")
            )

    def __repr__(self) -> str:
        return "Columns()" if self.by == "norm" else f"Columns(by={self.by!r})"

    def pay(
        self,
        weights: Sequence[Tensor],
        masks: Sequence[Tensor],
        count: int,
        factor: int,
        scale: Tensor | None = None,
        blocks: Tensor | None = None,
    ) -> None:
        """Mask, in place, whole columns of ``weights[0]``, `count` entries in all.

        Among columns that count the same the earlier goes first, in the order of the blocks and of the
        inputs of each.

        Parameters
        ----------
        weights, masks : sequence of Tensor
            As for `Magnitude.pay`; ``weights[0]`` has shape (neurons × factor, inputs) or (neurons × factor,
            inputs, taps), the children of one neuron in adjacent rows.
        count : int
            How many free weights are to be held at zero.
        factor : int
            The expansion factor.
        scale : Tensor, optional
            What the weights of the parents are multiplied by before they are ranked, of shape (neurons,
            inputs) or (neurons, inputs, taps): root mean squares of the inputs or gradients, as
            `fpe.ranking.scales_of` measures them. Not for ``by="norm"``; needed for all others.
        blocks : Tensor, optional
            The block of each neuron, integers from 0 of shape (neurons × factor,): columns then leave so
            that all blocks keep as many inputs, or one more. By default all first children make one block,
            all second ones another, and columns leave whichever they are of.

        Raises
        ------
        ArgumentError
            Without a scale where one is needed.
        BudgetError
            If the columns that may leave cannot pay; the masks are then unchanged.
        """
        even = blocks is not None
        if blocks is None:
            blocks = torch.arange(len(weights[0])) % factor
        blocks = blocks.to(masks[0].device)
        entries = _per_block(masks[0], blocks, _entries)  # what a column pays if it leaves
        counts = self._counts(weights[0].detach(), factor, blocks, scale)
        counts[entries == 0] = -1
        last = counts.argmax(1)
        entries.scatter_(1, last.unsqueeze(1), 0)  # the last input stays
        if count > int(entries.sum()):
            raise BudgetError(
                f"prune='columns': {count} weights are to be held at zero, but the columns that may leave "
                f"hold only {int(entries.sum())}; use prune='magnitude' or a smaller factor."
            )
        order = counts.flatten().argsort(stable=True)
        if even:  # of the blocks with the most inputs left the least column
            left = -counts.argsort(dim=1, stable=True).argsort(dim=1).flatten()
            order = order[left[order].argsort(descending=True, stable=True)]
        order = order[entries.flatten()[order] > 0]
        paid = entries.flatten()[order].cumsum(0)
        leaving = order[paid <= count]
        stays = torch.ones_like(counts, dtype=masks[0].dtype)
        stays.view(-1)[leaving] = 0
        masks[0].mul_(_as_rows(stays, blocks, masks[0]))
        rest = count - (int(paid[len(leaving) - 1]) if len(leaving) else 0)
        if rest:
            pinned = torch.zeros_like(counts, dtype=torch.bool).scatter_(1, last.unsqueeze(1), True)
            kept = weights[0].detach() * masks[0]  # of these the last inputs pay last of all
            kept.masked_fill_(_as_rows(pinned, blocks, kept) & (masks[0] > 0), torch.inf)
            Magnitude().pay([kept, *weights[1:]], masks, rest, factor)

    def _counts(self, weight: Tensor, factor: int, blocks: Tensor, scale: Tensor | None) -> Tensor:
        """Return what each column counts, (blocks, inputs), of the expanded layer's weight."""
        scaled = weight.float()
        if self.by != "norm":
            if scale is None:
                raise ArgumentError(
                    f"{self!r} ranks by what was measured of the layer; give scale=…, or call fpe.expand, "
                    "which measures it."
                )
            parents = scaled.view(-1, factor, *weight.shape[1:])
            each = scale.detach().float().reshape(len(parents), 1, *weight.shape[1:])
            scaled = (parents * each).view(weight.shape)
        if self.by == "gradient":
            return _per_block(scaled, blocks, lambda own: own.abs().sum(dim=(0, 2)))
        return _per_block(scaled, blocks, lambda own: own.norm(dim=(0, 2)))


def _per_block(tensor: Tensor, blocks: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Measure the columns of each block, given as (neurons, inputs, taps); return (blocks, inputs)."""
    parts = tensor.view(*tensor.shape[:2], -1)
    owners = [(blocks == block).nonzero().flatten() for block in range(int(blocks.max()) + 1)]
    return torch.stack([measure(parts.index_select(0, rows)) for rows in owners])


def _entries(own: Tensor) -> Tensor:
    return own.count_nonzero(dim=(0, 2))


def _as_rows(columns: Tensor, blocks: Tensor, like: Tensor) -> Tensor:
    """Give each neuron what its block has, (blocks, inputs), in as many axes as `like`."""
    return columns.index_select(0, blocks).view(*like.shape[:2], *[1] * (like.dim() - 2))


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


PRUNES: dict[str, Prune] = {
    "magnitude": Magnitude(),
    "balanced": Magnitude(readers=0.5),
    "columns": Columns(),
}

_NAMES = "'magnitude', 'balanced' and 'columns'"


def as_prune(prune: str | Prune) -> Prune:
    """Turn a name into its way of paying; an object passes through.

    Raises
    ------
    ArgumentError
        For an unknown name, or for what is no way of paying.
    """
    if isinstance(prune, str):
        if prune in PRUNES:
            return PRUNES[prune]
        raise ArgumentError(f"unknown prune {prune!r}; allowed are {_NAMES}.{did_you_mean(prune, PRUNES)}")
    if isinstance(prune, type) or not isinstance(prune, Prune):
        raise ArgumentError(f"prune is {prune!r}; give one of {_NAMES}.")
    return prune
