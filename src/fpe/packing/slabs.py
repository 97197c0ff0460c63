"""Where the blocks of a layer are stored: equal ones together, for one batched product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Least share of the weights of equally many neurons that must be in the common slab.
WORTH_BATCHING = 0.5
#: Most weights of a block that is stored with others. Calls are nothing beside the product of a larger one,
#: and an optimizer's temporaries are as large as a parameter.
MOST = 1 << 23
#: Most weights that may be added, relative to those that are there, so that all blocks are of one size: with
#: indices and biases the network stays within 1.02 times the dense one's bytes. Each slab is a few calls, and
#: a pass over the output.
FILLING = 1 / 75


@dataclass(frozen=True)
class Slab:
    """Equally many inputs of some blocks that stand side by side.

    Attributes
    ----------
    blocks : range
        Whose they are.
    neurons, inputs : int
        Of each block, here.
    first : int
        Which of a block's inputs is the first that is here; above 0, the product adds to another slab's.
    output : int
        Where the neurons of the first block begin in the layer's output.
    """

    blocks: range
    neurons: int
    inputs: int
    first: int
    output: int


def slabs_of(sizes: Sequence[tuple[int, int]], together: bool) -> list[Slab]:
    """Return the slabs of blocks.

    Where all blocks have as many neurons, and none fewer inputs than the next, what all have in common is one
    slab, what the others have in common beyond that the next, and so on; else, and where they are very large,
    each block is a slab.

    Parameters
    ----------
    sizes : sequence of (int, int)
        Neurons and inputs of each block.
    together : bool
        Whether blocks may be stored together.
    """
    inputs = [own for _, own in sizes]
    if (
        together
        and len({neurons for neurons, _ in sizes}) == 1
        and inputs == sorted(inputs, reverse=True)
        and inputs[-1] * len(sizes) >= WORTH_BATCHING * sum(inputs)
        and inputs[0] * sizes[0][0] <= MOST
    ):
        levels = [0, *sorted(set(inputs))]
        return [
            Slab(range(sum(own >= end for own in inputs)), sizes[0][0], end - begin, begin, 0)
            for begin, end in pairwise(levels)
        ]
    slabs, output = [], 0
    for number, (neurons, own) in enumerate(sizes):
        slabs.append(Slab(range(number, number + 1), neurons, own, 0, output))
        output += neurons
    return slabs


def filled_up(sizes: Sequence[tuple[int, int]]) -> int:
    """Return up to how many inputs blocks are filled up, so that one slab holds them; 0 if they are not.

    Parameters
    ----------
    sizes : sequence of (int, int)
        Neurons and inputs of each block.
    """
    most, stored = max(inputs for _, inputs in sizes), sum(inputs for _, inputs in sizes)
    alike = len({neurons for neurons, _ in sizes}) == 1 and most * sizes[0][0] <= MOST
    return most if alike and 0 < len(sizes) * most - stored <= FILLING * stored else 0
