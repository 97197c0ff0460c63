"""Whole inputs of blocks pay: of the expanded layer's, and of those that its readers are cut into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpe.budget import Magnitude
from fpe.errors import ArgumentError, BudgetError, did_you_mean

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
    reader_groups : int, default 0
        Into how many groups of adjacent outputs each layer that reads the new neurons is cut, to pay in whole
        columns too: each group stops reading some of the children, and is a dense block of the others.
        All groups of a layer keep as many children, or one more, and each child keeps a group that reads it.
        Columns of all layers leave in the order of their mean square. By default the expanded layer pays
        alone, which it cannot where its readers are as large; as many groups as there are children can.

    Raises
    ------
    ArgumentError
        For an unknown ranking, a number of groups that is no integer of at least 0, or groups with another
        ranking than the norm.
    """

    by: str = "norm"
    reader_groups: int = 0

    needs_shared = True

    def __post_init__(self) -> None:
        groups = self.reader_groups
        if self.by not in RANKINGS:
            names = ", ".join(map(repr, RANKINGS[:-1]))
            raise ArgumentError(
                f"Columns: by is {self.by!r}; give {names} or {RANKINGS[-1]!r}."
                + (did_you_mean(self.by, RANKINGS) if isinstance(self.by, str) else "")
            )
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 0:
            raise ArgumentError(f"Columns: reader_groups is {groups!r}; give an integer of at least 0.")
        if groups and self.by != "norm":
            raise ArgumentError(
                f"Columns: reader_groups is {groups}, and by is {self.by!r}; columns of readers are ranked "
                "by 'norm' only: give by='norm', or reader_groups=0."
            )

    def __repr__(self) -> str:
        by = [] if self.by == "norm" else [f"by={self.by!r}"]
        groups = [f"reader_groups={self.reader_groups}"] if self.reader_groups else []
        return f"Columns({', '.join(by + groups)})"

    def pay(
        self,
        weights: Sequence[Tensor],
        masks: Sequence[Tensor],
        count: int,
        factor: int,
        scale: Tensor | None = None,
        blocks: Tensor | None = None,
    ) -> None:
        """Mask, in place, whole columns, `count` entries in all.

        Among columns that count the same the earlier goes first, in the order of `weights`, of the blocks and
        of the inputs of each.

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
            all second ones another; columns then leave whichever they are of, unless readers pay too.

        Raises
        ------
        ArgumentError
            Without a scale where one is needed.
        BudgetError
            If the columns that may leave cannot pay; the masks are then unchanged.
        """
        even = blocks is not None or self.reader_groups > 0
        own = torch.arange(len(weights[0])) % factor if blocks is None else blocks
        layers = [_Blocks.of(self._scaled(weights[0], factor, scale), masks[0], own, self._measure)]
        if self.reader_groups:
            for weight, mask in zip(weights[1:], masks[1:], strict=True):
                groups = reader_blocks(len(weight), self.reader_groups)
                layers.append(_Blocks.of(weight, mask, groups, self._measure))
            for layer in layers:
                layer.counts = layer.counts.square() / layer.entries.clamp(min=1)
            for layer in layers[1:]:
                layer.stays = _keepers(layer.counts, layer.entries)
        for layer in layers:
            layer.keep_the_last()
        may_leave = sum(int(layer.pays.sum()) for layer in layers)
        if count > may_leave:
            more = "" if self.reader_groups >= factor else f"prune='columns-{factor}', "
            raise BudgetError(
                f"prune={_name(self)!r}: {count} weights are to be held at zero, but the columns that may "
                f"leave hold only {may_leave}; use {more}prune='magnitude' or a smaller factor."
            )
        rest = count - _leave(layers, masks, count, even)
        if rest:
            kept = [w.detach() * mask for w, mask in zip(weights, masks, strict=True)]
            for layer, own, mask in zip(layers, kept, masks, strict=False):  # what stays pays last of all
                own.masked_fill_(layer.as_rows(layer.stays, own) & (mask > 0), torch.inf)
            Magnitude().pay(kept, masks, rest, factor)

    def _scaled(self, weight: Tensor, factor: int, scale: Tensor | None) -> Tensor:
        """Return the expanded layer's weights, times what was measured of them."""
        if self.by == "norm":
            return weight
        if scale is None:
            raise ArgumentError(
                f"{self!r} ranks by what was measured of the layer; give scale=…, or call fpe.expand, "
                "which measures it."
            )
        parents = weight.detach().float().view(-1, factor, *weight.shape[1:])
        each = scale.detach().float().reshape(len(parents), 1, *weight.shape[1:])
        return (parents * each).view(weight.shape)

    def _measure(self, own: Tensor) -> Tensor:
        """Return what the columns of a block count, given as (neurons, inputs, taps)."""
        return own.abs().sum(dim=(0, 2)) if self.by == "gradient" else own.norm(dim=(0, 2))


def reader_blocks(outputs: int, groups: int) -> Tensor:
    """Return the group of adjacent outputs that each output of a reader is in, shape (outputs,)."""
    return torch.arange(outputs) * min(groups, outputs) // outputs


def _name(columns: Columns) -> str:
    return f"columns-{columns.reader_groups}" if columns.reader_groups else "columns"


@dataclass
class _Blocks:
    """The blocks of a layer, and what may leave them.

    Attributes
    ----------
    of_row : Tensor
        The block of each neuron, (neurons,).
    counts : Tensor
        What each column counts, (blocks, inputs).
    entries : Tensor
        What each pays if it leaves, (blocks, inputs).
    stays : Tensor
        Which may not leave, (blocks, inputs).
    """

    of_row: Tensor
    counts: Tensor
    entries: Tensor
    stays: Tensor

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor, of_row: Tensor, measure: Callable[[Tensor], Tensor]) -> _Blocks:
        of_row = of_row.to(mask.device)
        counts = _per_block(weight.detach().float(), of_row, measure)
        entries = _per_block(mask, of_row, lambda own: own.count_nonzero(dim=(0, 2)))
        return cls(of_row, counts, entries, torch.zeros_like(counts, dtype=torch.bool))

    def keep_the_last(self) -> None:
        """Let the column that counts most stay in each block of which all might leave."""
        last = self.counts.masked_fill(self.entries == 0, -1).argmax(1, keepdim=True)
        none = ~self.stays.any(1, keepdim=True)
        self.stays.scatter_(1, last, self.stays.gather(1, last) | none)

    @property
    def pays(self) -> Tensor:
        """What each column pays that may leave, (blocks, inputs)."""
        return self.entries.masked_fill(self.stays, 0)

    def order(self, even: bool) -> Tensor:
        """Return the columns that may leave, flat, in the order in which they do.

        Either those that count least come first, or of the blocks that have lost the fewest.
        """
        counts = self.counts.masked_fill(self.entries == 0, -1).masked_fill(self.stays, torch.inf)
        order = counts.flatten().argsort(stable=True)
        if even:
            lost = counts.argsort(dim=1, stable=True).argsort(dim=1).flatten()
            order = order[lost[order].argsort(stable=True)]
        return order[self.pays.flatten()[order] > 0]

    def as_rows(self, columns: Tensor, like: Tensor) -> Tensor:
        """Give each neuron what its block has, (blocks, inputs), in as many axes as `like`."""
        return columns.index_select(0, self.of_row).view(*like.shape[:2], *[1] * (like.dim() - 2))


def _per_block(tensor: Tensor, blocks: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Measure the columns of each block, given as (neurons, inputs, taps); return (blocks, inputs)."""
    parts = tensor.view(*tensor.shape[:2], -1)
    owners = [(blocks == block).nonzero().flatten() for block in range(int(blocks.max()) + 1)]
    return torch.stack([measure(parts.index_select(0, rows)) for rows in owners])


def _keepers(counts: Tensor, entries: Tensor) -> Tensor:
    """Return one group of a reader for each input, which goes on reading it: (groups, inputs).

    An input stays with the group that has the largest share of its mean squares, the clearest cases first. No
    group gets more of them than its part, as far as that can be, so that all can lose as many.
    """
    groups, inputs = counts.shape
    share = (counts / counts.sum(0).clamp(min=torch.finfo(counts.dtype).tiny)).masked_fill(entries == 0, -1)
    room, keeper = [-(-inputs // groups)] * groups, share.argmax(0).tolist()
    placed = [False] * inputs
    order = share.flatten().argsort(descending=True, stable=True)
    for pair in order[: int((entries > 0).sum())].tolist():
        group, column = divmod(pair, inputs)
        if room[group] and not placed[column]:
            room[group] -= 1
            keeper[column], placed[column] = group, True
    stays = torch.zeros_like(counts, dtype=torch.bool)
    stays[torch.tensor(keeper), torch.arange(inputs)] = True
    return stays & (entries > 0)


def _leave(layers: Sequence[_Blocks], masks: Sequence[Tensor], count: int, even: bool) -> int:
    """Mask the first columns of all layers that hold `count` entries or fewer; return how many they hold.

    In which layer the next one leaves is told by what all of them count; which of this layer by its order.
    """
    orders = [layer.order(even) for layer in layers]
    pairs = list(zip(layers, orders, strict=True))
    counts = torch.cat([layer.counts.flatten()[order].sort().values for layer, order in pairs])
    number = torch.cat([torch.full_like(order, i) for i, order in enumerate(orders)])
    number = number[counts.argsort(stable=True)]
    paid = torch.empty_like(number)
    for i, (layer, order) in enumerate(pairs):
        paid[number == i] = layer.pays.flatten()[order]
    paid = paid.cumsum(0)
    leaving = int((paid <= count).sum())
    for i, ((layer, order), mask) in enumerate(zip(pairs, masks, strict=False)):
        stays = torch.ones_like(layer.counts, dtype=mask.dtype)
        stays.view(-1)[order[: int((number[:leaving] == i).sum())]] = 0
        mask.mul_(layer.as_rows(stays, mask))
    return int(paid[leaving - 1]) if leaving else 0
