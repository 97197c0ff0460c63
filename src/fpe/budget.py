"""What counts as non-zero, and which weights pay for the copies.

A network's non-zero parameters are the entries of its Parameters that no mask holds at zero; an
entry that happens to be 0 while it is free counts. A way of paying is a small value that answers
``pay(weights, masks, count, factor)`` with new masks that hold exactly `count` fewer entries.
``weights[0]`` is the expanded layer, the rest are the layers that read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError, BudgetError, did_you_mean


def parameters_with_masks(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor | None]]:
    """Yield each distinct Parameter with its name and its mask (None where all entries are free)."""
    seen: set[int] = set()
    for prefix, child in module.named_modules():
        for name, parameter in child.named_parameters(prefix=prefix, recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                mask = child._buffers.get(f"{name.rpartition('.')[2]}_mask")
                yield name, parameter, mask


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
    return sum(
        parameter.numel() if mask is None else int(torch.count_nonzero(mask))
        for _, parameter, mask in parameters_with_masks(model)
    )


@runtime_checkable
class Prune(Protocol):
    """Anything that can choose the weights that pay."""

    @property
    def needs_shared(self) -> bool:
        """Whether all neurons must have one partition."""
        ...

    def pay(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], count: int, factor: int
    ) -> list[Tensor]:
        """Return new masks with `count` fewer ones."""
        ...


def _nth_smallest(values: Tensor, n: int) -> Tensor:
    """Return the n-th smallest (from 1) of a flat tensor, whose order it may change."""
    if values.device.type == "cpu":
        array = values.numpy()
        array.partition(n - 1)  # several times as fast as torch.kthvalue
        return values[n - 1].clone()
    return values.kthvalue(n).values


@dataclass(frozen=True)
class Magnitude:
    """The paper's: the smallest weights of all layers together (section 2.3)."""

    needs_shared = False

    def pay(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], count: int, factor: int
    ) -> list[Tensor]:
        """Return masks without the `count` free weights of smallest magnitude, all layers together.

        Among equal magnitudes the earlier entry goes first, in the order of `weights` and row by row.

        Parameters
        ----------
        weights, masks : sequence of Tensor
            The layers' weights and masks of the same shapes, 1 where free. Masked weights are 0.
        count : int
            How many free weights are to be held at zero.
        factor : int
            The expansion factor, not used here.

        Returns
        -------
        list of Tensor
            New masks; the old ones are not changed.
        """
        if count == 0:
            return list(masks)
        total = sum(w.numel() for w in weights)
        free = sum(int(torch.count_nonzero(m)) for m in masks)
        if count > free:
            raise BudgetError(f"{count} weights are to be held at zero, but only {free} are free.")
        dtype = torch.promote_types(weights[0].dtype, torch.float32)
        magnitude = torch.empty(total, dtype=dtype, device=weights[0].device)
        start = 0
        for w in weights:
            torch.abs(w.detach(), out=magnitude[start : start + w.numel()].view(w.shape))
            start += w.numel()
        # Masked weights are 0, so they come first in order and only shift the rank.
        threshold = float(_nth_smallest(magnitude, total - free + count))
        del magnitude
        kept, at_threshold = [], []
        for w, m in zip(weights, masks, strict=True):
            size = w.detach().abs()
            kept.append(m * (size > threshold))
            at_threshold.append(((size == threshold) & (m != 0)).flatten().nonzero().flatten())
        # Of the weights at the threshold, the first in order pay until the count is exact.
        above = sum(int(torch.count_nonzero(k)) for k in kept)
        paying = above + sum(len(where) for where in at_threshold) - (free - count)
        for mask, where in zip(kept, at_threshold, strict=True):
            mask.view(-1)[where[paying:]] = 1
            paying = max(0, paying - len(where))
        return kept


@dataclass(frozen=True)
class Columns:
    """Whole inputs leave the blocks of a shared split, the smallest norm of their column first.

    The layer stays ``factor`` dense blocks. What no whole column can pay goes by magnitude.
    No block loses its last input.
    """

    needs_shared = True

    def pay(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], count: int, factor: int
    ) -> list[Tensor]:
        """Return masks of which whole columns of ``weights[0]`` have left, `count` entries in all.

        Parameters
        ----------
        weights, masks : sequence of Tensor
            The layers' weights and masks; ``weights[0]`` has shape (neurons × factor, inputs), the
            children of one neuron in adjacent rows.
        count : int
            How many free weights are to be held at zero.
        factor : int
            The expansion factor.

        Returns
        -------
        list of Tensor
            New masks; the old ones are not changed.

        Raises
        ------
        BudgetError
            If the columns that may leave cannot pay.
        """
        inputs = weights[0].shape[1]
        free = masks[0].view(-1, factor, inputs)
        norms = weights[0].detach().view(-1, factor, inputs).float().norm(dim=0)
        entries = free.sum(0, dtype=torch.int64)
        norms[entries == 0] = -1
        last = norms.argmax(1)
        may_leave = entries.clone()
        may_leave[torch.arange(factor, device=last.device), last] = 0
        norms[may_leave == 0] = torch.inf
        if count > int(may_leave.sum()):
            raise BudgetError(
                f"prune='columns': {count} weights are to leave, but the columns hold only "
                f"{int(may_leave.sum())} that may; use prune='magnitude' or a smaller factor."
            )
        order = norms.flatten().argsort(stable=True)
        paid = may_leave.flatten()[order].cumsum(0)
        leaving = order[(paid <= count) & (may_leave.flatten()[order] > 0)]
        stays = torch.ones(factor * inputs, dtype=masks[0].dtype, device=masks[0].device)
        stays[leaving] = 0
        first = (free * stays.view(factor, inputs)).view_as(masks[0])
        rest = count - int(may_leave.flatten()[leaving].sum())
        remaining = [weights[0].detach() * first, *weights[1:]]
        return Magnitude().pay(remaining, [first, *masks[1:]], rest, factor)


PRUNES: dict[str, Prune] = {"magnitude": Magnitude(), "columns": Columns()}


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
        names = " and ".join(repr(n) for n in PRUNES)
        raise ArgumentError(f"unknown prune {prune!r}; allowed are {names}.{did_you_mean(prune, PRUNES)}")
    if isinstance(prune, type) or not isinstance(prune, Prune):
        raise ArgumentError(f"prune is {prune!r}; give 'magnitude' or 'columns'.")
    return prune


def magnitudes_are_finite(weight: Tensor) -> bool:
    """Tell whether a weight holds neither NaN nor infinity."""
    return bool(np.isfinite(float(weight.detach().abs().max()))) if weight.numel() else True
