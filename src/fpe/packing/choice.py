"""In which format a masked layer is packed: one rule, from its mask alone and from how it was expanded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fpe.masked import count_free
from fpe.packing.blocks import Block
from fpe.packing.slabs import filled_up

FORMATS = ("blocks", "codes", "bitmask", "2:4", "dense")

#: Least share of what blocks store that must be free: below, another format is smaller or faster.
WORTH_IT = 0.6
#: The same of codes, for which the zeros of the children are the alternative. Where prune="balanced" gave the
#: readers half of all weights, a little more than half of the parent's places are left to its children.
WORTH_CODING = 0.5
#: Least share of one single block that must be free for its zeros not to matter.
NEARLY_DENSE = 0.9
#: Neurons that a block has at least, where no plan says how a layer was expanded.
AT_LEAST = 4
#: Neurons that are looked at together, in numbers of 8 bytes.
TOGETHER = 1 << 10
#: Factors that are tried where no plan says how a layer was expanded.
FACTORS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Choice:
    """A format, and why.

    Attributes
    ----------
    format : str
        One of `FORMATS`.
    why : str
        A clause for the summary.
    blocks : sequence of Block
        For blocks.
    factor : int
        For codes: children in a family.
    """

    format: str
    why: str
    blocks: Sequence[Block] = field(default=(), repr=False)
    factor: int = 1


@dataclass(frozen=True)
class Structure:
    """What can be seen in a mask.

    Attributes
    ----------
    free, entries, taps : int
        Free entries; entries in all; entries for each input.
    whole : list of Block
        One block of all neurons and all inputs that anybody reads.
    blocks : list of Block
        The blocks of the children, the densest that there are.
    factor : int or None
        Children in a family, if no two adjacent neurons of a family have an input in common.
    two_four : bool
        Whether of each four consecutive inputs each neuron reads at most two.
    """

    free: int
    entries: int
    taps: int
    whole: list[Block]
    blocks: list[Block]
    factor: int | None
    two_four: bool

    @classmethod
    def of(cls, mask: Tensor, role: Tensor | None, block: Tensor | None = None) -> Structure:
        """Look at a mask of shape (neurons, inputs, *taps).

        Parameters
        ----------
        mask : Tensor
            1 where a weight is free.
        role : Tensor or None
            Which child of its parent each neuron is, if it is known.
        block : Tensor or None
            Which block each neuron was made for, if that is known too.
        """
        rows, inputs = mask.shape[:2]
        read = reads(mask)
        roles = (
            [role]
            if role is not None
            else [torch.arange(rows) % f for f in FACTORS if rows % f == 0 and rows >= AT_LEAST * f]
        )
        owners = list(roles)
        if block is not None:
            owners.append(block)
        elif role is None:
            owners += _alike(read)
        cuts = [_blocks(read, r.to(mask.device)) for r in owners if int(r.max()) > 0]
        everybody = _blocks(read, torch.zeros(rows, dtype=torch.long, device=mask.device))
        factors = [int(r.max()) + 1 for r in roles]
        families = [f for f in factors if f > 1 and rows % f == 0 and _disjoint(mask, f)]
        in_fours = inputs % 4 == 0 and mask.dim() == 2
        return cls(
            count_free(mask),
            mask.numel(),
            mask[0, 0].numel(),
            everybody,
            min(cuts, key=_stored, default=everybody),
            max(families, default=None),  # two of four siblings have no input in common either
            in_fours and bool((read.view(rows, -1, 4).sum(2) <= 2).all()),
        )

    def density(self, blocks: Sequence[Block]) -> float:
        """Return the share of what these blocks store that is free."""
        return self.free / max(1, _stored(blocks) * self.taps)

    @property
    def fill(self) -> float:
        """Return the share of the places of a parent that some child has."""
        return self.free * self.factor / self.entries if self.factor else 0.0


def reads(mask: Tensor) -> Tensor:
    """Return which neuron reads which input at all: booleans of shape (neurons, inputs)."""
    return mask.flatten(2).any(2) if mask.dim() > 2 else mask != 0


def block_of(read: Tensor, rows: Tensor) -> Block:
    """Return the block of these neurons: what any of them reads, at least one input."""
    columns = read.index_select(0, rows).any(0).nonzero().flatten()
    return Block(rows, columns if len(columns) else torch.zeros_like(rows[:1]))


def _blocks(read: Tensor, role: Tensor) -> list[Block]:
    """Return the block of each role that some neuron has.

    Those of most inputs come first, as slabs want them, unless all are filled up to one size anyway.
    """
    owners = torch.split(role.argsort(stable=True), role.bincount().tolist())
    blocks = [block_of(read, rows) for rows in owners if len(rows)]
    if filled_up([(len(block.rows), len(block.columns)) for block in blocks]):
        return blocks
    return sorted(blocks, key=lambda block: -len(block.columns))


def _alike(read: Tensor) -> list[Tensor]:
    """Return in which group of equal inputs each neuron is, if such groups are few; else nothing.

    They are told apart by sums of random whole numbers, one for each input, which are exact: below 2**53.
    """
    rows, inputs = read.shape
    draw = torch.Generator().manual_seed(0)
    keys = torch.randint(2**53 // inputs, (inputs,), generator=draw).to(read.device, torch.float64)
    sums = torch.cat([part.double() @ keys for part in torch.split(read, TOGETHER)])
    found, own = torch.unique(sums, return_inverse=True)
    if len(found) > rows // AT_LEAST:
        return []
    first = own.new_full(found.shape, rows).scatter_reduce(0, own, torch.arange(rows).to(own), "amin")
    return [first.argsort().argsort()[own]]


def _stored(blocks: Sequence[Block]) -> int:
    return sum(len(b.rows) * len(b.columns) for b in blocks)


def _disjoint(mask: Tensor, factor: int) -> bool:
    return bool((mask.view(len(mask) // factor, factor, -1).sum(1) <= 1).all())


def choose_format(seen: Structure, weight: Tensor, demanded: str | None) -> Choice | str:
    """Return how to pack a layer, or why it cannot be packed as demanded.

    The rule, in order: a layer without zeros is dense; the pattern 2:4 on a GPU that computes with it;
    blocks, if most of what they store is free; one block, if nearly all of it is; codes, if children share
    inputs out; else dense, zeros and all.

    Parameters
    ----------
    seen : Structure
        Of its mask.
    weight : Tensor
        Only its type and device matter.
    demanded : str or None
        A format that must be taken.
    """
    if demanded is not None:
        return _MAKERS[demanded](seen, weight)
    if seen.free == seen.entries:
        return Choice("dense", "it has no zeros")
    if seen.two_four and weight.is_cuda:
        choice = _two_four(seen, weight)
        if isinstance(choice, Choice):
            return choice
    if len(seen.blocks) > 1 and seen.density(seen.blocks) >= WORTH_IT:
        return _as_blocks(seen, weight)
    if seen.free >= NEARLY_DENSE * seen.entries:
        return Choice("dense", f"{seen.free / seen.entries:.1%} of it is free")
    if seen.density(seen.whole) >= NEARLY_DENSE:
        return _as_blocks(seen, weight)
    if seen.fill >= WORTH_CODING:
        return _as_codes(seen, weight)
    zeros = 1 - seen.free / seen.entries
    return Choice(
        "dense",
        f"its mask has no structure, and {zeros:.0%} of what is stored are zeros; bitmask would store "
        f"{seen.free / seen.entries + 1 / (8 * weight.element_size()):.2f} of it and be slower",
    )


def _as_blocks(seen: Structure, weight: Tensor) -> Choice | str:
    many, one = seen.density(seen.blocks), seen.density(seen.whole)
    blocks = seen.blocks if many > one else seen.whole
    density = max(many, one)
    if density < WORTH_IT:
        return (
            f"its neurons have no inputs in common that would make blocks (only {density:.0%} of these would "
            "be free): expand with split='shared', or pack it as "
            + ("'codes'." if seen.fill >= WORTH_CODING else "'bitmask' or 'dense'.")
        )
    kinds = "1 block" if len(blocks) == 1 else f"{len(blocks)} blocks"
    holes = "all of it free" if density == 1 else f"{density:.1%} of it free"
    return Choice("blocks", f"{kinds}, {holes}", blocks)


def _as_codes(seen: Structure, weight: Tensor) -> Choice | str:
    if seen.factor is None:
        return "no neurons share inputs out among them; pack it as 'bitmask' or 'dense'."
    return Choice("codes", f"each input of {seen.factor} children once, with its owner", factor=seen.factor)


def _as_bitmask(seen: Structure, weight: Tensor) -> Choice | str:
    return Choice("bitmask", "as demanded: the smallest, and slow")


def _two_four(seen: Structure, weight: Tensor) -> Choice | str:
    if not seen.two_four:
        return "of some four inputs more than two are free; expand with split='2:4', or pack it as 'codes'."
    if not weight.is_cuda:
        return "2:4 needs a GPU that computes with it, and the layer is on the CPU; pack it as 'codes'."
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"2:4 is computed in float16 or bfloat16, not in {weight.dtype}; pack it as 'codes'."
    if weight.shape[0] % 32 or weight.shape[1] % 64:
        return (
            f"2:4 needs multiples of 32 neurons and 64 inputs, not {tuple(weight.shape)}; pack it as 'codes'."
        )
    return Choice("2:4", "two of every four inputs, by the GPU's own instructions; for inference only")


def _as_dense(seen: Structure, weight: Tensor) -> Choice | str:
    return Choice("dense", "as demanded: zeros are stored and computed")


_MAKERS: dict[str, Callable[[Structure, Tensor], Choice | str]] = {
    "blocks": _as_blocks,
    "codes": _as_codes,
    "bitmask": _as_bitmask,
    "2:4": _two_four,
    "dense": _as_dense,
}
