"""Whole inputs of the blocks of a shared split pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpe.errors import ArgumentError, BudgetError, did_you_mean
from fpe.expansion.pruning import MagnitudePruning

#: How `InputPruning` may rank inputs.
RANKINGS = ("norm", "activation", "gradient")


@dataclass(frozen=True)
class InputPruning:
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
        return "InputPruning()" if self.by == "norm" else f"InputPruning(by={self.by!r})"

    def prune_(
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
            As for `MagnitudePruning.pay`; ``weights[0]`` has shape (neurons × factor, inputs) or (neurons × factor,
            inputs, taps), the children of one neuron in adjacent rows.
        count : int
            How many free weights are to be held at zero.
        factor : int
            The expansion factor.
        scale : Tensor, optional
            What the weights of the parents are multiplied by before they are ranked, of shape (neurons,
            inputs) or (neurons, inputs, taps): root mean squares of the inputs or gradients, as
            `fpe.expansion.ranking.scales_of` measures them. Not for ``by="norm"``; needed for all others.
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
                f"hold only {int(entries.sum())}; use prune='children' or 'magnitude', or a smaller factor."
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
            MagnitudePruning().prune_([kept, *weights[1:]], masks, rest, factor)

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
