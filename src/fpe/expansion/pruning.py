"""Which weights are pruned to keep the count: by magnitude, whole inputs of blocks, whole children.

A pruning is a value whose ``prune_(weights, masks, count, factor)`` masks exactly `count` weights.
``weights[0]`` is the expanded layer (or the layers of a gated pair, one below the other); the rest are its
consumers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpe.errors import ArgumentError, BudgetError, did_you_mean
from fpe.masked import count_free

Tensors = Sequence[Tensor]
Given = Tensor | None

#: Entries worked on at a time: few enough for the cache.
_CHUNK = 1 << 18
#: Entries that are sampled to estimate a quantile.
_SAMPLE = 1 << 16

#: How `InputPruning` may rank inputs, and what must be measured for it.
RANKINGS = {"norm": "", "activation": "inputs", "gradient": "gradients"}
#: The note on a layer whose columns cannot make up for what whole children leave over.
SINGLE_WEIGHTS = (
    "the inputs of its blocks are too few for all that remains to be pruned after whole children: the "
    "smallest single weights of all layers of the group are pruned, those of its consumers too"
)


class Pruning:
    """The base of all prunings; a user's own may derive from it, or only have `needs_shared` and `prune_`.

    Examples
    --------
    Prune the last weights of each layer first:

    >>> import torch, fpe
    >>> class Last:
    ...     needs_shared = False
    ...
    ...     def prune_(self, weights, masks, count, factor):
    ...         for mask in reversed(masks):
    ...             free = mask.flatten().nonzero().flatten()
    ...             last = free[len(free) - min(count, len(free)) :]
    ...             mask.view(-1)[last] = 0
    ...             count -= len(last)
    >>> model = fpe.mlp(8, 4, 2)
    >>> fpe.count_nonzero(fpe.expand(model, prune=Last())) == fpe.count_nonzero(model)
    True
    """

    needs_shared: bool = False  # whether all neurons of a layer, or group of neurons, must have one partition
    needs_scores: str = ""  # what must be measured of each layer first: "inputs", "gradients" or nothing
    drops_children: bool = False  # whether some children are not created

    def prune_(
        self,
        weights: Tensors,
        masks: Tensors,
        count: int,
        factor: int,
        *,
        blocks: Given = None,
        scores: Given = None,
    ) -> None:
        """Mask `count` free weights, in place.

        Parameters
        ----------
        weights : sequence of Tensor
            Contiguous, zero where masked; not changed. ``weights[0]`` has shape (neurons × factor, inputs) or
            (neurons × factor, inputs, taps), the children of one neuron in adjacent rows.
        masks : sequence of Tensor
            Contiguous, of the weights' shapes, 1 where a weight is free. Changed in place.
        count, factor : int
            How many free weights to mask, and the expansion factor.
        blocks : Tensor, optional
            For a shared split, the block of each neuron, from 0, shape (neurons × factor,). A user's own
            pruning gets it if it has an attribute ``needs_blocks`` that is true.
        scores : Tensor, optional
            For a pruning with `needs_scores`, what was measured of the parents' weights, of their shape.

        Raises
        ------
        BudgetError
            If fewer weights can be pruned; the masks are then unchanged.
        """
        raise NotImplementedError

    def capacity(self, free: int, entries: int, inputs: int, factor: int) -> int:
        """Return how many weights can be pruned: `free` in all, `entries` for each of the `inputs`."""
        return free

    def expected_dropped(
        self, neurons: int, groups: int, factor: int, inputs: int, entries: int, copies: int
    ) -> tuple[int, str]:
        """Return how many children of a dense layer will be dropped, and a note; see `dropped_children`."""
        return 0, ""

    def dropped_children(self, squares: Tensor, entries: Tensor, blocks: Tensor, count: int) -> Tensor:
        """Return the numbers of the children that are not created, ascending, of at most `count` parameters.

        Of each child: the sum of the `squares` of its weights, its non-zero parameters, and its block.
        """
        return blocks.new_empty(0)


class _OwnPruning(Pruning):
    """A user's object that has only ``needs_shared`` and ``prune_``; what it prunes is checked."""

    def __init__(self, own: Any) -> None:
        self.own, self.needs_shared = own, bool(own.needs_shared)

    def __repr__(self) -> str:
        return repr(self.own)

    def prune_(self, weights: Tensors, masks: Tensors, count: int, factor: int, **given: Given) -> None:
        free = sum(map(count_free, masks))
        more = {"blocks": given.get("blocks")} if getattr(self.own, "needs_blocks", False) else {}
        self.own.prune_(weights, masks, count, factor, **more)
        pruned = free - sum(map(count_free, masks))
        if pruned != count:
            raise BudgetError(f"prune {self!r} masked {pruned} weights instead of {count}.")


@dataclass(frozen=True)
class MagnitudePruning(Pruning):
    """Prune the smallest weights of all layers together, as in the paper (section 2.3).

    Parameters
    ----------
    consumers : float, optional
        The largest share, above 0 and below 1, of the remaining free weights that the consumers may have; by
        default there is no limit. In a network that was not trained before its expansion outgoing weights are
        large only because their layer has few inputs, so that magnitudes do not compare layers.
    """

    consumers: float | None = None

    def __post_init__(self) -> None:
        share = self.consumers
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if share is not None and not (number and 0 < share < 1):
            raise ArgumentError(
                f"MagnitudePruning: consumers is {share!r}; give a number above 0 and below 1, or None."
            )

    def __repr__(self) -> str:
        return f"MagnitudePruning({'' if self.consumers is None else f'consumers={self.consumers}'})"

    def prune_(self, weights: Tensors, masks: Tensors, count: int, factor: int, **given: Given) -> None:
        """Mask the `count` free weights of smallest magnitude; of equal ones the earlier are pruned first."""
        free = sum(map(count_free, masks))
        if count > free:
            raise BudgetError(f"{count} weights are to be pruned, but only {free} are free.")
        if self.consumers is None:
            prune_smallest_(weights, masks, count)
            return
        own = count_free(masks[0])
        kept = max(min(free - own, int(self.consumers * (free - count))), free - count - own)
        prune_smallest_(weights[1:], masks[1:], free - own - kept)
        prune_smallest_(weights[:1], masks[:1], own - (free - count - kept))


@dataclass(frozen=True)
class InputPruning(Pruning):
    """Prune whole inputs of the blocks of a shared split, those of the lowest rank first.

    The layer stays dense blocks: `factor` for each group of the split, and with several groups all of as many
    inputs, or one more, so that one batched product can compute them. What is less than a whole column is
    pruned by magnitude. No block loses its last input.

    Parameters
    ----------
    by : str, default "norm"
        How an input is ranked. ``"norm"``: by the norm of its column of weights. ``"activation"``: by that
        times the root mean square of the input on `example_inputs` (Wanda; Sun et al., 2024). ``"gradient"``:
        by the sum of ``|weight × gradient|`` over the column (SNIP; Lee et al., 2019), with the gradient that
        ``loss.backward()`` stored in the layer.
    """

    by: str = "norm"

    needs_shared = True

    def __post_init__(self) -> None:
        if self.by not in RANKINGS:
            raise ArgumentError(
                f"InputPruning: by is {self.by!r}; give {' or '.join(map(repr, RANKINGS))}."
                + (did_you_mean(self.by, RANKINGS) if isinstance(self.by, str) else "")
            )
        object.__setattr__(self, "needs_scores", RANKINGS[self.by])

    def __repr__(self) -> str:
        return "InputPruning()" if self.by == "norm" else f"InputPruning(by={self.by!r})"

    def capacity(self, free: int, entries: int, inputs: int, factor: int) -> int:
        """Return how many weights the columns have, without the last one of each block."""
        return entries * (inputs - factor)

    def prune_(self, weights: Tensors, masks: Tensors, count: int, factor: int, **given: Given) -> None:
        """Mask whole columns of ``weights[0]``, `count` entries in all; of equal ranks the earlier first.

        By default all first children make one block, all second ones another, and any column may be pruned;
        with more blocks, all keep as many inputs, or one more.
        """
        blocks = _blocks(weights[0], factor, given)
        even = int(blocks.max()) >= factor
        scaled = weights[0].detach().float()
        if self.by != "norm":
            if (scores := given.get("scores")) is None:
                raise ArgumentError(
                    f"{self!r} ranks by what was measured of the layer; give scores=…, or call fpe.expand, "
                    "which measures it."
                )
            each = scores.detach().float().reshape(-1, *scaled.shape[1:])
            scaled = scaled * each.repeat_interleave(factor, 0)
        gradient = self.by == "gradient"
        rank = _per_block(scaled, blocks, lambda w: w.abs().sum((0, 2)) if gradient else w.norm(dim=(0, 2)))
        _prune_columns(weights, masks, count, blocks, rank, even)


@dataclass(frozen=True)
class ChildPruning(Pruning):
    """Drop whole children of a shared split, those of the smallest weights first; the layer is narrower.

    With a child its incoming weights, the copies of its parent's outgoing weights and its bias are pruned.
    Children are ranked by the mean square of these weights. Each block loses equally many, so that one
    batched product can compute them all, and the consumers stay dense. What is less than one child of a block
    is pruned as with `InputPruning`; where these columns are too few, the smallest weights of all layers of
    the group are pruned, with a note and a warning. It is for consumers as large as the layer itself, as in
    the MLPs of a transformer; a network with a small head drops few children, or none.
    """

    needs_shared = True
    drops_children = True

    def prune_(self, weights: Tensors, masks: Tensors, count: int, factor: int, **given: Given) -> None:
        """Mask what remains after whole children were dropped: whole columns, or else single weights."""
        blocks = _blocks(weights[0], factor, given)
        rank = _per_block(weights[0].detach().float(), blocks, lambda w: w.norm(dim=(0, 2)))
        try:
            _prune_columns(weights[:1], masks[:1], count, blocks, rank, even=True)
        except BudgetError:
            MagnitudePruning().prune_(weights, masks, count, factor)
            warnings.warn(SINGLE_WEIGHTS, stacklevel=2)

    def expected_dropped(
        self, neurons: int, groups: int, factor: int, inputs: int, entries: int, copies: int
    ) -> tuple[int, str]:
        """Return how many children are dropped if no weight of the group is masked yet, and a note."""
        if factor == 1:
            return 0, ""
        copied = copies // (factor - 1) // neurons
        rounds = copies // ((entries * inputs + factor * copied) * groups)  # one child of each block in each
        rest = copies - rounds * (entries * inputs + factor * copied) * groups
        columns = entries * (neurons - rounds * groups) * (inputs - factor)
        return rounds * groups * factor, "" if rest <= columns else SINGLE_WEIGHTS

    def dropped_children(self, squares: Tensor, entries: Tensor, blocks: Tensor, count: int) -> Tensor:
        """Return the children of the smallest mean square, equally many of each block."""
        order = (squares / entries.clamp(min=1)).argsort(stable=True)
        order = order[blocks[order].argsort(stable=True)].view(int(blocks.max()) + 1, -1)
        pruned = entries[order].sum(0).cumsum(0)  # if one child of each block is dropped, two, …
        return order[:, : int((pruned <= count).sum())].flatten().sort().values


PRUNINGS: dict[str, Pruning] = {
    "magnitude": MagnitudePruning(),
    "balanced": MagnitudePruning(consumers=0.5),
    "columns": InputPruning(),
    "children": ChildPruning(),
}


def as_pruning(prune: Any) -> Pruning:
    """Turn a name, or a user's own object, into a pruning; raise ArgumentError for anything else."""
    if isinstance(prune, Pruning):
        return prune
    names = ", ".join(map(repr, PRUNINGS))
    if isinstance(prune, str):
        if prune in PRUNINGS:
            return PRUNINGS[prune]
        raise ArgumentError(f"unknown prune {prune!r}; allowed are {names}.{did_you_mean(prune, PRUNINGS)}")
    if isinstance(prune, type) or not all(hasattr(prune, name) for name in ("needs_shared", "prune_")):
        raise ArgumentError(f"prune is {prune!r}; give one of {names}, or an object such as InputPruning().")
    return _OwnPruning(prune)


def _blocks(weight: Tensor, factor: int, given: dict[str, Given]) -> Tensor:
    blocks = given.get("blocks")
    return torch.arange(len(weight)) % factor if blocks is None else blocks


def _prune_columns(
    weights: Tensors, masks: Tensors, count: int, blocks: Tensor, rank: Tensor, even: bool
) -> None:
    """Mask the columns of lowest rank, (blocks, inputs), and by magnitude what is less than a column."""
    blocks = blocks.to(masks[0].device)
    entries = _per_block(masks[0], blocks, lambda own: own.count_nonzero(dim=(0, 2)))
    rank[entries == 0] = -1
    last = rank.argmax(1, keepdim=True)
    entries.scatter_(1, last, 0)  # the last input stays
    if count > int(entries.sum()):
        raise BudgetError(
            f"{count} weights are to be pruned in whole columns, but the columns that can be pruned have "
            f"only {int(entries.sum())}; use prune='children' or 'magnitude', or a smaller factor."
        )
    order = rank.flatten().argsort(stable=True)
    if even:  # the lowest column of the blocks with the most remaining inputs
        remaining = -rank.argsort(dim=1, stable=True).argsort(dim=1).flatten()
        order = order[remaining[order].argsort(descending=True, stable=True)]
    order = order[entries.flatten()[order] > 0]
    sums = entries.flatten()[order].cumsum(0)
    pruned = order[sums <= count]
    keeps = torch.ones_like(rank, dtype=masks[0].dtype)
    keeps.view(-1)[pruned] = 0

    def as_rows(columns: Tensor) -> Tensor:
        return columns.index_select(0, blocks).view(*masks[0].shape[:2], *[1] * (masks[0].dim() - 2))

    masks[0].mul_(as_rows(keeps))
    rest = count - (int(sums[len(pruned) - 1]) if len(pruned) else 0)
    if rest:
        pinned = torch.zeros_like(rank, dtype=torch.bool).scatter_(1, last, True)
        kept = weights[0].detach() * masks[0]  # of these, those of last inputs are pruned last
        kept.masked_fill_(as_rows(pinned) & (masks[0] > 0), torch.inf)
        prune_smallest_([kept, *weights[1:]], masks, rest)


def _per_block(tensor: Tensor, blocks: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Measure the columns of each block, given as (neurons, inputs, taps); return (blocks, inputs)."""
    parts, blocks = tensor.view(*tensor.shape[:2], -1), blocks.to(tensor.device)
    owners = [(blocks == block).nonzero().flatten() for block in range(int(blocks.max()) + 1)]
    return torch.stack([measure(parts.index_select(0, rows)) for rows in owners])


def prune_smallest_(weights: Tensors, masks: Tensors, count: int) -> None:
    """Mask the `count` free entries of smallest magnitude of all layers; of equal ones the first."""
    if count == 0:
        return
    free = sum(map(count_free, masks))
    masked = sum(m.numel() for m in masks) - free
    # Masked weights are zero, so they are first in order and only shift the rank.
    threshold = _nth_smallest_magnitude(weights, masked + count)
    for part, keep in _chunks(weights, masks):
        size = part.abs()
        keep.mul_(torch.ge(size, threshold, out=size))
    rest = count - (free - sum(map(count_free, masks)))
    for part, keep in _chunks(weights, masks):
        if rest == 0:
            return
        ties = ((part.abs() == threshold) & (keep != 0)).nonzero().flatten()[:rest]
        keep[ties] = 0
        rest -= len(ties)


def _chunks(weights: Tensors, masks: Tensors) -> Iterator[tuple[Tensor, Tensor]]:
    for w, m in zip(weights, masks, strict=True):
        yield from zip(torch.split(w.detach().view(-1), _CHUNK), torch.split(m.view(-1), _CHUNK), strict=True)


def _nth_smallest_magnitude(weights: Tensors, n: int) -> float:
    """Return the n-th smallest (from 1) magnitude of all entries.

    A sample says between which two magnitudes it lies; one pass then counts the entries below them and
    gathers the few between them (Floyd and Rivest, 1975). Should the sample mislead, all are gathered.
    """
    flat = [w.detach().view(-1) for w in weights]
    total = sum(map(len, flat))
    low, high = 0.0, math.inf
    if total > _SAMPLE:
        generator = torch.Generator().manual_seed(0)
        sizes = [1 + _SAMPLE * len(w) // total for w in flat]
        drawn = [torch.randint(len(w), (k,), generator=generator) for w, k in zip(flat, sizes, strict=True)]
        sample = torch.cat([w[i.to(w.device)].abs() for w, i in zip(flat, drawn, strict=True)]).sort().values
        quantile = n / total
        spread = 5 * math.sqrt(quantile * (1 - quantile) / len(sample)) + 5 / len(sample)
        first, last = (round((quantile + side * spread) * len(sample)) for side in (-1, 1))
        low = float(sample[first]) if first >= 0 else low
        high = float(sample[last]) if last < len(sample) else high
    below, between = 0, []
    for part in (part for w in flat for part in torch.split(w, _CHUNK)):
        size = part.abs()
        under = size < low
        below += int(under.count_nonzero())
        between.append(size[(size <= high) & ~under])
    gathered = torch.cat(between)
    if not below < n <= below + len(gathered):
        below, gathered = 0, torch.cat(flat).abs()
    return float(gathered.kthvalue(n - below).values)
