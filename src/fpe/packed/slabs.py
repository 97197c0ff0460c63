"""Where the blocks of a layer are stored: equal ones together, for one batched product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Least share of the weights of equally many neurons that must be in the common slab.
WORTH_BATCHING = 0.5


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

    Where all blocks have as many neurons, what they have in common is one slab, and what some read beyond
    that is a slab for each of these; else each block is a slab.

    Parameters
    ----------
    sizes : sequence of (int, int)
        Neurons and inputs of each block.
    together : bool
        Whether blocks may be stored together.
    """
    starts = [sum(neurons for neurons, _ in sizes[:number]) for number in range(len(sizes))]
    least = min(inputs for _, inputs in sizes)
    equal = len({neurons for neurons, _ in sizes}) == 1
    if together and equal and least * len(sizes) >= WORTH_BATCHING * sum(inputs for _, inputs in sizes):
        neurons = sizes[0][0]
        common = Slab(range(len(sizes)), neurons, least, 0, 0)
        rest = [
            Slab(range(i, i + 1), neurons, inputs - least, least, starts[i])
            for i, (_, inputs) in enumerate(sizes)
            if inputs > least
        ]
        return [common, *rest]
    return [Slab(range(i, i + 1), neurons, inputs, 0, starts[i]) for i, (neurons, inputs) in enumerate(sizes)]
