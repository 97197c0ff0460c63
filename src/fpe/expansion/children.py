"""Whole children pay: of the children of all neurons only those are born that count most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpe.expansion.columns import InputPruning

#: The note on a group whose columns cannot pay for what whole children leave unpaid.
SINGLE_WEIGHTS = (
    "the inputs of its blocks cannot pay for all that whole children leave unpaid: the smallest single "
    "weights of all layers of the group do, of its readers too"
)


@dataclass(frozen=True)
class ChildPruning:
    """Whole children leave a shared split, those that count least first, and the layer is so much narrower.

    A child pays with all that it has: its incoming weights, the copies of its parent's outgoing weights, its
    bias. What counts is the mean square of these weights. Of each block equally many leave, so that one
    batched product can compute them all, and the layers that read them stay dense. What no whole child of
    each block can pay goes as with `InputPruning`.

    Where the columns cannot pay either, as in the smallest of networks, the smallest weights of all layers of
    the group do, its readers among them; the plan and the summary say so, and a warning.

    It is for readers as large as the layer itself, as in the MLPs of a transformer: there the copies are more
    than what inputs of the layer alone could pay for. A network with a small head loses few, or none.
    """

    needs_shared = True

    def prune_(
        self,
        weights: Sequence[Tensor],
        masks: Sequence[Tensor],
        count: int,
        factor: int,
        blocks: Tensor | None = None,
    ) -> None:
        """Mask, in place, what those who left have not paid: whole columns of the blocks.

        Parameters
        ----------
        weights, masks, count, factor, blocks
            As for `InputPruning.pay`.

        Raises
        ------
        BudgetError
            If the columns that may leave cannot pay; the masks are then unchanged.
        """
        InputPruning().prune_(weights[:1], masks[:1], count, factor, blocks=blocks)


def leaving(squares: Tensor, entries: Tensor, blocks: Tensor, count: int) -> Tensor:
    """Return which children leave, equally many of each block, their numbers in ascending order.

    Parameters
    ----------
    squares : Tensor
        Sum of the squares of all weights into and out of each child, shape (children,).
    entries : Tensor
        How many non-zero parameters leave with each, of which the weights are the squares', (children,).
    blocks : Tensor
        The block of each, integers from 0, (children,).
    count : int
        How many non-zero parameters are to be paid for: so many leave, or fewer.
    """
    rank = torch.empty_like(blocks)
    mean = squares / entries.clamp(min=1)
    for block in range(int(blocks.max()) + 1):
        own = (blocks == block).nonzero().flatten()
        rank[own[mean[own].argsort(stable=True)]] = torch.arange(len(own), device=own.device)
    paid = torch.zeros(int(rank.max()) + 1, dtype=torch.long, device=rank.device)
    paid = paid.index_add_(0, rank, entries.long()).cumsum(0)
    return (rank < int((paid <= count).sum())).nonzero().flatten()
