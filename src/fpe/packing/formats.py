"""The format in which a masked layer is packed: one rule, by its mask and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fpe.masked import count_free
from fpe.packing.blocks import Block, padded_inputs

FORMATS = ("blocks", "codes", "sparse", "2:4", "bitmask", "dense")

#: Least free share of what blocks store: below, another format is smaller or faster.
WORTH_BLOCKS = 0.6
#: Least share of the places of the parents' weights that some child owns, for codes.
WORTH_CODES = 0.5
#: Largest free share of a sparse layer, and its least size: below, dense is as fast or faster.
WORTH_SPARSE, LEAST_SPARSE = 0.4, 1 << 18
#: Least free share of a single block, or of a dense layer, for its zeros not to matter.
NEARLY_DENSE = 0.9
#: Least neurons of a block where no plan says how a layer was expanded, and the factors tried there.
LEAST_NEURONS = 4
FACTORS = (2, 3, 4, 5, 6, 7, 8)
#: Neurons whose inputs are converted to float64 at a time.
ROWS_AT_ONCE = 1 << 10


@dataclass(frozen=True)
class Choice:
    """A format, the reason as a clause for the summary, and the blocks, or the factor of codes."""

    format: str
    why: str
    blocks: Sequence[Block] = field(default=(), repr=False)
    factor: int = 1


@dataclass(frozen=True)
class Structure:
    """The structure of a mask."""

    free: int
    entries: int
    #: Entries for each input.
    taps: int
    #: One block of all neurons and all inputs that any of them has.
    whole: list[Block]
    #: The densest blocks of children that were found.
    blocks: list[Block]
    #: Children of each parent, if no two adjacent siblings have an input in common.
    factor: int | None
    #: Whether each neuron has at most two of each four consecutive inputs.
    two_four: bool

    @classmethod
    def of(cls, mask: Tensor, child: Tensor | None, block: Tensor | None = None) -> Structure:
        """Analyse a mask of shape (neurons, inputs, *taps).

        `child` and `block` are the number of each neuron among its siblings, and of the block that it was
        made for, if a plan says so.
        """
        rows = len(mask)
        used = inputs_used(mask)
        if child is not None:
            children, others = [child], [] if block is None else [block]
        else:
            factors = [f for f in FACTORS if rows % f == 0 and rows >= LEAST_NEURONS * f]
            children, others = [torch.arange(rows) % f for f in factors], _alike(used)
        cuts = [_blocks(used, own.to(mask.device)) for own in children + others if int(own.max()) > 0]
        whole = _blocks(used, torch.zeros(rows, dtype=torch.long, device=mask.device))
        factors = [f for own in children if (f := int(own.max()) + 1) > 1 and rows % f == 0]
        disjoint = [f for f in factors if bool((mask.view(rows // f, f, -1).sum(1) <= 1).all())]
        in_fours = mask.dim() == 2 and mask.shape[1] % 4 == 0
        return cls(
            count_free(mask),
            mask.numel(),
            mask[0, 0].numel(),
            whole,
            min(cuts, key=_stored, default=whole),
            max(disjoint, default=None),  # two of four siblings have no input in common either
            in_fours and bool((used.view(rows, -1, 4).sum(2) <= 2).all()),
        )

    def density(self, blocks: Sequence[Block]) -> float:
        """Return the free share of what these blocks store."""
        return self.free / max(1, _stored(blocks) * self.taps)

    @property
    def owned(self) -> float:
        """Return the share of the places of the parents' weights that some child owns."""
        return self.free * self.factor / self.entries if self.factor else 0.0


def inputs_used(mask: Tensor) -> Tensor:
    """Return the inputs that each neuron has: booleans of shape (neurons, inputs)."""
    return mask.flatten(2).any(2) if mask.dim() > 2 else mask != 0


def block_of(used: Tensor, rows: Tensor) -> Block:
    """Return the block of these neurons: the inputs that any of them has, at least one."""
    columns = used.index_select(0, rows).any(0).nonzero().flatten()
    return Block(rows, columns if len(columns) else torch.zeros_like(rows[:1]))


def _blocks(used: Tensor, owner: Tensor) -> list[Block]:
    """Return the block of each owner; those of most inputs first, for `block_layout`, unless padded."""
    owners = torch.split(owner.argsort(stable=True), owner.bincount().tolist())
    blocks = [block_of(used, rows) for rows in owners if len(rows)]
    if padded_inputs([(len(block.rows), len(block.columns)) for block in blocks]):
        return blocks
    return sorted(blocks, key=lambda block: -len(block.columns))


def _alike(used: Tensor) -> list[Tensor]:
    """Return the set of equal inputs that each neuron belongs to, if there are few sets; otherwise nothing.

    Sums of random integers, one for each input, tell sets apart; below 2**53 they are exact.
    """
    rows, inputs = used.shape
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(2**53 // inputs, (inputs,), generator=generator).to(used.device, torch.float64)
    sums = torch.cat([part.double() @ keys for part in torch.split(used, ROWS_AT_ONCE)])
    found, own = torch.unique(sums, return_inverse=True)
    if len(found) > rows // LEAST_NEURONS:
        return []
    first = own.new_full(found.shape, rows).scatter_reduce(0, own, torch.arange(rows).to(own), "amin")
    return [first.argsort().argsort()[own]]


def _stored(blocks: Sequence[Block]) -> int:
    return sum(len(block.rows) * len(block.columns) for block in blocks)


def choose_format(seen: Structure, weight: Tensor, requested: str | None) -> Choice | str:
    """Return how to pack a layer, or why it cannot be packed as requested.

    The rule, in order: a layer without zeros is dense; 2:4 on a GPU that computes with it; blocks, if most of
    what they store is free; one block, if nearly all of it is; codes, if siblings share no input; sparse, for
    a linear layer of many zeros, in float32 on a CPU; otherwise dense, zeros included. Of `weight` only
    shape, type and device matter.
    """
    if requested == "blocks":
        return _as_blocks(seen)
    if requested == "codes":
        return _as_codes(seen)
    if requested == "sparse":
        return _as_sparse(seen, weight)
    if requested == "2:4":
        return _two_four(seen, weight)
    if requested == "bitmask":
        return as_bitmask(seen.free, seen.entries)
    if requested == "dense":
        return Choice("dense", "as requested: zeros are stored and computed")
    if seen.free == seen.entries:
        return Choice("dense", "it has no zeros")
    if weight.is_cuda and isinstance(choice := _two_four(seen, weight), Choice):
        return choice
    if len(seen.blocks) > 1 and seen.density(seen.blocks) >= WORTH_BLOCKS:
        return _as_blocks(seen)
    if seen.free >= NEARLY_DENSE * seen.entries:
        return Choice("dense", f"{seen.free / seen.entries:.1%} of it is free")
    if seen.density(seen.whole) >= NEARLY_DENSE:
        return _as_blocks(seen)
    if seen.owned >= WORTH_CODES:
        return _as_codes(seen)
    large = seen.entries >= LEAST_SPARSE and seen.free <= WORTH_SPARSE * seen.entries
    if large and weight.dtype == torch.float32 and isinstance(choice := _as_sparse(seen, weight), Choice):
        return choice
    zeros = 1 - seen.free / seen.entries
    return Choice("dense", f"its mask has no structure, and {zeros:.0%} of the stored weights are zeros")


def as_bitmask(free: int, entries: int, what: str = "") -> Choice:
    """Return the choice for any layer; `what` says what it is if it has no other packed form."""
    return Choice("bitmask", f"{what}{1 - free / entries:.0%} zeros, a bit for each place")


def _as_blocks(seen: Structure) -> Choice | str:
    blocks = max(seen.whole, seen.blocks, key=seen.density)
    density = seen.density(blocks)
    if density < WORTH_BLOCKS:
        other = "codes" if seen.owned >= WORTH_CODES else "dense"
        return (
            f"its neurons have no inputs in common that would make blocks (only {density:.0%} of these would "
            f"be free): expand with split='shared', or pack it as {other!r}."
        )
    number = "1 block" if len(blocks) == 1 else f"{len(blocks)} blocks"
    free = "all of it free" if density == 1 else f"{density:.1%} of it free"
    return Choice("blocks", f"{number}, {free}", blocks)


def _as_codes(seen: Structure) -> Choice | str:
    if seen.factor is None:
        return "its neurons are not siblings that share no input; pack it as 'dense'."
    return Choice("codes", f"each input of {seen.factor} children once, with its owner", factor=seen.factor)


def _as_sparse(seen: Structure, weight: Tensor) -> Choice | str:
    if weight.dim() > 2:
        return "sparse is for linear layers; pack a convolution as 'dense'."
    if weight.device.type != "cpu":
        return f"sparse is for CPUs, and the layer is on {weight.device}; pack it as 'dense'."
    if seen.free >= 1 << 31:
        return "it has more non-zeros than 32 bits count; pack it as 'dense'."
    zeros = 1 - seen.free / seen.entries
    return Choice("sparse", f"its mask has no structure: {zeros:.0%} zeros, each weight with its input")


def _two_four(seen: Structure, weight: Tensor) -> Choice | str:
    if not seen.two_four:
        return "of some four inputs more than two are free; expand with split='2:4', or pack it as 'codes'."
    if not weight.is_cuda:
        return "2:4 needs a GPU that computes with it, and the layer is on the CPU; pack it as 'codes'."
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"2:4 is computed in float16 or bfloat16, not in {weight.dtype}; pack it as 'codes'."
    if weight.shape[0] % 32 or weight.shape[1] % 64:
        size = tuple(weight.shape)
        return f"2:4 needs multiples of 32 neurons and 64 inputs, not {size}; pack it as 'codes'."
    return Choice("2:4", "two of every four inputs, by the GPU's own instructions; for inference only")
