"""The format of blocks: a few dense matrices, for shared splits, at the cost of the dense parent.

Each block maps some of the inputs to some of the neurons, which are adjacent in the output. Blocks of
equally many neurons and inputs are one parameter and one batched product: for one sample the number of calls
counts, for many samples each pass over the output. A few masked weights may make blocks equal
(`padded_inputs`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe.expansion.steps import Weights
from fpe.packing.bits import MaskStored, are_rows, pack_zeros, unpack_zeros
from fpe.packing.kernel import LayerOfBlocks, blocks_program, run_blocks, supported, untracked
from fpe.packing.layers import PackedLayer, Shape, described, empty_bias, empty_buffer

#: Least share of the weights that must be in the batch that all blocks have in common.
WORTH_BATCHING = 0.5
#: Most weights of a block that is stored with others: the calls for a larger one do not count, and the
#: temporaries of an optimizer are as large as a parameter.
MOST_BATCHED = 1 << 23
#: Most masked weights, relative to the free ones, that may make all blocks equal: with indices and biases the
#: network stays within 1.02 times the dense network's bytes.
PADDING = 1 / 75


@dataclass(frozen=True)
class Block:
    """The neurons and the inputs of a block, as indices."""

    rows: Tensor
    columns: Tensor

    def part_of(self, weight: Tensor) -> Tensor:
        """Return the block's part of a weight, shape (neurons, inputs, *taps)."""
        return weight.index_select(0, self.rows).index_select(1, self.columns)


@dataclass(frozen=True)
class Batch:
    """Equally many inputs of adjacent blocks, which are stored as one parameter."""

    blocks: range
    #: Of each block in this batch.
    neurons: int
    inputs: int
    #: Position of the batch's inputs among those of each block; above 0, the product adds to another one.
    first: int
    #: Position of the first block's neurons in the layer's output.
    output: int


def block_layout(sizes: Sequence[tuple[int, int]], together: bool) -> list[Batch]:
    """Return how blocks are stored, given the neurons and inputs of each.

    If blocks may be stored `together`, all have equally many neurons, and none fewer inputs than the next,
    the inputs that all have are one batch, those that the larger ones have beyond these the next, and so on.
    Otherwise, and if blocks are very large or unequal, each is a batch.
    """
    inputs = [own for _, own in sizes]
    if (
        together
        and len({neurons for neurons, _ in sizes}) == 1
        and inputs == sorted(inputs, reverse=True)
        and inputs[-1] * len(sizes) >= WORTH_BATCHING * sum(inputs)
        and inputs[0] * sizes[0][0] <= MOST_BATCHED
    ):
        levels = [0, *sorted(set(inputs))]
        return [
            Batch(range(sum(own >= end for own in inputs)), sizes[0][0], end - begin, begin, 0)
            for begin, end in pairwise(levels)
        ]
    outputs = accumulate((neurons for neurons, _ in sizes), initial=0)
    return [
        Batch(range(i, i + 1), *size, 0, output)
        for i, (size, output) in enumerate(zip(sizes, outputs, strict=False))
    ]


def padded_inputs(sizes: Sequence[tuple[int, int]]) -> int:
    """Return the number of inputs to which masked weights pad all blocks, to make them one batch; or 0."""
    most, stored = max(inputs for _, inputs in sizes), sum(inputs for _, inputs in sizes)
    alike = len({neurons for neurons, _ in sizes}) == 1 and most * sizes[0][0] <= MOST_BATCHED
    return most if alike and 0 < len(sizes) * most - stored <= PADDING * stored else 0


def padded(blocks: Sequence[Block], inputs: int) -> Sequence[Block]:
    """Return blocks of equally many inputs, padded where `padded_inputs` says so by other first inputs."""
    most = padded_inputs([(len(block.rows), len(block.columns)) for block in blocks])
    if not most:
        return blocks
    made = []
    for block in blocks:
        others = torch.ones(inputs, dtype=torch.bool, device=block.columns.device)
        others[block.columns] = False
        more = others.nonzero().flatten()[: most - len(block.columns)]
        made.append(Block(block.rows, torch.cat([block.columns, more]).sort().values))
    return made


def dense_weight(size: torch.Size, blocks: Sequence[Block], parts: Sequence[Tensor]) -> Tensor:
    """Return a weight that has these parts in the blocks and is zero elsewhere; undoes `Block.part_of`."""
    whole = parts[0].new_zeros(size)
    for block, part in zip(blocks, parts, strict=True):
        whole[block.rows.unsqueeze(1), block.columns] = part
    return whole


class BlockLayer(PackedLayer):
    """A linear layer or a convolution of dense blocks.

    `sizes` has the neurons and inputs of each block, `batches` how they are stored: each as a parameter
    ``weight_0``, …, of a linear layer (blocks, inputs, neurons), of a convolution, whose batches are single
    blocks, (neurons, inputs, *taps). Buffers ``zero_positions_0``, … say where these are masked, as
    `fpe.packing.bits.pack_zeros` stores it, or are None. The bias has the order of the outputs.
    """

    format = "blocks"

    #: Buffer: the inputs of the blocks, batch by batch; None for one block of all inputs in order.
    columns: Tensor | None
    #: Buffer: the neuron of the masked layer that each output is, block by block.
    rows: Tensor
    #: Buffer: the order that puts the outputs as in the masked layer; None if they remain block by block
    #: because the consumers have been reordered.
    restore: Tensor | None
    #: Whether the state dict to be loaded has the bias block by block even where outputs are restored: files
    #: whose configuration has no ``bias_order``, and torch's own of the first version.
    _bias_by_rows = False
    _version = 2

    def __init__(self, shape: Shape, sizes: Sequence[tuple[int, int]], bias: Tensor | None) -> None:
        super().__init__(shape, bias)
        self.sizes = [(int(neurons), int(inputs)) for neurons, inputs in sizes]
        self.batches = block_layout(self.sizes, together=not shape.taps)
        self.weight_names = [f"weight_{i}" for i in range(len(self.batches))]
        for name in ("columns", "rows", "restore"):
            self.register_buffer(name, None)

    @classmethod
    def of(cls, shape: Shape, weights: Weights, blocks: Sequence[Block], ordered: bool) -> BlockLayer:
        """Take the blocks out of a masked layer's tensors.

        Every neuron is in one block, and outside the blocks nothing is free. `ordered` says whether the
        outputs must have the order of the masked layer's.
        """
        if not shape.taps:
            blocks = padded(blocks, shape.inputs)
        rows, bias = torch.cat([block.rows for block in blocks]), weights.bias
        restored = ordered and not torch.equal(rows, torch.arange(len(rows), device=rows.device))
        sizes = [(len(block.rows), len(block.columns)) for block in blocks]
        layer = cls(shape, sizes, bias if bias is None or restored else bias[rows])
        columns: list[Tensor] = []
        for number, batch in enumerate(layer.batches):
            inputs = slice(batch.first, batch.first + batch.inputs)
            parts = [Block(blocks[i].rows, blocks[i].columns[inputs]) for i in batch.blocks]
            own, free = (
                layer._stored([part.part_of(t) for part in parts]) for t in (weights.weight, weights.mask)
            )
            layer.register_parameter(f"weight_{number}", nn.Parameter(own))
            layer.register_buffer(f"zero_positions_{number}", pack_zeros(free != 0))
            columns += [part.columns for part in parts]
        picked = torch.cat(columns)
        if len(blocks) > 1 or not torch.equal(picked, torch.arange(shape.inputs, device=picked.device)):
            layer.columns = picked.to(torch.int32)
        layer.rows = rows.to(torch.int32)
        if restored:
            layer.restore = rows.argsort().to(torch.int32)
        return layer

    @classmethod
    def from_config(cls, config: dict[str, Any], like: Tensor) -> BlockLayer:  # noqa: D102
        shape = Shape.from_dict(config["shape"])
        layer = cls(shape, config["sizes"], empty_bias(config, like))
        for number, batch in enumerate(layer.batches):
            part = like.new_empty(batch.neurons, batch.inputs, *shape.taps)
            weight = nn.Parameter(layer._stored([part] * len(batch.blocks)))
            layer.register_parameter(f"weight_{number}", weight)
            layer.register_buffer(f"zero_positions_{number}", None)
        for name, description in config["buffers"].items():
            setattr(layer, name.replace("holes", "zero_positions"), empty_buffer(description, like))
        layer._bias_by_rows = "bias_order" not in config
        return layer

    def config(self) -> dict[str, Any]:
        """Add the sizes of the blocks, and types and shapes of the buffers."""
        buffers = {name: described(tensor) for name, tensor in self.named_buffers()}
        return {**super().config(), "sizes": self.sizes, "buffers": buffers, "bias_order": "outputs"}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)
        columns, errors = self.columns, rest[-1]
        inside = columns is None or columns.is_meta or ((columns >= 0) & (columns < self.shape.inputs)).all()
        if not inside:  # C would read beyond the samples
            errors.append(f"{prefix}columns are not inputs of this layer.")
        by_rows = self._bias_by_rows or metadata.get("version") == 1
        if by_rows and self.bias is not None and self.restore is not None:
            self.bias.data = _take(self.bias.data, 0, self.restore)
        self._bias_by_rows = False

    def _stored(self, blocks: Sequence[Tensor]) -> Tensor:
        """Return the parameter of a batch; its blocks have the shape (neurons, inputs, *taps).

        Linear blocks are stored input by input: a row then has as many entries as there are neurons, which is
        even where numbers of inputs are odd, and products of one sample read memory in order.
        """
        return blocks[0] if self.shape.taps else torch.stack([block.t() for block in blocks])

    def free(self, name: str) -> Tensor | None:
        """Return the mask of the parameter of a batch, if it has one."""
        positions = self._buffers.get(name.replace("weight_", "zero_positions_"))
        return None if positions is None else unpack_zeros(positions, self.get_parameter(name).shape)

    def blocks(self) -> list[Block]:
        """Return the blocks, in neurons and inputs of the masked layer."""
        rows = torch.split(self.rows.long(), [neurons for neurons, _ in self.sizes])
        if self.columns is None:
            return [Block(rows[0], torch.arange(self.shape.inputs, device=self.rows.device))]
        parts = [(block, batch.inputs) for batch in self.batches for block in batch.blocks]
        columns: list[list[Tensor]] = [[] for _ in rows]
        for (block, _), own in zip(
            parts, torch.split(self.columns.long(), [n for _, n in parts]), strict=True
        ):
            columns[block].append(own)
        return [Block(row, torch.cat(own)) for row, own in zip(rows, columns, strict=True)]

    def _stored_weight(self, number: int) -> Tensor:
        """Return the parameter of a batch, through which no masked entry gets a gradient."""
        weight: Tensor = getattr(self, f"weight_{number}")
        positions = self._buffers[f"zero_positions_{number}"]
        if positions is not None and torch.is_grad_enabled():
            weight = MaskStored.apply(weight, positions)  # type: ignore[no-untyped-call]
        return weight

    def _by_block(self, stored: Sequence[Tensor]) -> list[Tensor]:
        """Return the weight of each block, (neurons, inputs, *taps), from tensors shaped as parameters."""
        parts: list[list[Tensor]] = [[] for _ in self.sizes]
        for batch, own in zip(self.batches, stored, strict=True):
            blocks = [own] if self.shape.taps else [block.t() for block in own]
            for number, block in zip(batch.blocks, blocks, strict=True):
                parts[number].append(block)
        return [torch.cat(own, dim=1) for own in parts]

    def block_weights(self) -> list[Tensor]:
        """Return the weight of each block."""
        return self._by_block([self._stored_weight(i) for i in range(len(self.batches))])

    def block_masks(self) -> list[Tensor]:
        """Return the mask of each block."""
        stored = [(getattr(self, f"weight_{i}"), self.free(f"weight_{i}")) for i in range(len(self.batches))]
        return self._by_block([torch.ones_like(w) if free is None else free.to(w) for w, free in stored])

    @property
    def weight(self) -> Tensor:
        """The layer's weight, made anew each time."""
        blocks = self.blocks()
        if self.restore is None:
            places = torch.arange(self.shape.outputs, device=self.rows.device)
            rows = torch.split(places, [neurons for neurons, _ in self.sizes])
            blocks = [Block(own, block.columns) for own, block in zip(rows, blocks, strict=True)]
        return dense_weight(self.shape.weight, blocks, self.block_weights())

    @torch.no_grad()
    def to_masked(self) -> Weights:
        """Return the tensors of the masked layer, its neurons in their order there."""
        blocks, parts = self.blocks(), (self.block_weights(), self.block_masks())
        weight, mask = (dense_weight(self.shape.weight, blocks, own) for own in parts)
        bias = None if self.bias is None else self.bias.detach()
        if bias is not None and self.restore is None:
            bias = bias[self.rows.long().argsort()]
        return Weights(weight, bias, mask)

    def bias_by_block(self) -> Tensor | None:
        """Return the bias of the outputs before they are restored."""
        return self.bias if self.bias is None or self.restore is None else _take(self.bias, 0, self.rows)

    def restored(self, y: Tensor) -> Tensor:
        """Put outputs from the order of the blocks into the order of the layer's outputs."""
        return y if self.restore is None else _take(y, -1 - len(self.shape.taps), self.restore)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        if self.shape.taps:
            return self.restored(self._convolve(input))
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            found = self._compiled_product(input)
            if found is not None:
                return found
        y = self.restored(self._multiply(input if input.dim() == 2 else input.reshape(-1, self.shape.inputs)))
        return y if input.dim() == 2 else y.view(*input.shape[:-1], self.shape.outputs)

    def _convolve(self, input: Tensor) -> Tensor:
        channel = -1 - len(self.shape.taps)
        weights, bias = [self._stored_weight(i) for i in range(len(self.batches))], self.bias_by_block()
        if self.columns is None:
            return self.apply_weight(input, weights[0], bias)
        neurons, inputs = map(list, zip(*self.sizes, strict=True))
        biases = [None] * len(weights) if bias is None else torch.split(bias, neurons)
        parts = [_take(input, channel, own) for own in torch.split(self.columns, inputs)]
        return torch.cat(list(map(self.apply_weight, parts, weights, biases)), dim=channel)

    def _compiled_product(self, x: Tensor) -> Tensor | None:
        """Return the outputs of (…, inputs) by compiled code; None if it cannot be used.

        Tensors are taken from their dictionaries, as a small product takes no longer than `__getattr__`.
        """
        columns, weight = self._buffers["columns"], self._parameters["weight_0"]
        if columns is None or weight is None or columns.dtype != torch.int32:
            return None
        if not supported(x, weight, self.shape.inputs):
            return None
        restore = self._buffers["restore"]
        bias = self._parameters["bias"] if restore is None else self.bias_by_block()
        rows = (x if x.dim() == 2 else x.reshape(-1, self.shape.inputs)).contiguous()
        weights = [cast(Tensor, self._parameters[name]) for name in self.weight_names]
        places = [-1 if t is None else t.data_ptr() // 4 for t in (columns, bias, *weights)]
        own = self.for_c(places[2:], places[0], places[1])
        program = array("q", blocks_program([own]))
        where, size = (0, 0, program.buffer_info()[0]), sum(weight.numel() for weight in weights)
        y = self.restored(run_blocks(rows, where, len(own.groups), self.shape.outputs, 0, size))
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.shape.outputs)

    def for_c(self, weights: Sequence[int], columns: int, bias: int, relu: bool = False) -> LayerOfBlocks:
        """Describe the layer, given where the weights of each batch, its columns and its bias are."""
        groups: list[tuple[list[tuple[int, int, int]], int, int]] = []
        for place, batch in zip(weights, self.batches, strict=True):
            if not batch.first:  # others add to the batch before them
                groups.append(([], batch.neurons, batch.output))
            groups[-1][0].append((place, len(batch.blocks), batch.inputs))
        return LayerOfBlocks(groups, columns, bias, self.shape.outputs, relu)

    def _multiply(self, x: Tensor) -> Tensor:
        """Return the outputs of (samples, inputs), block by block."""
        if x.is_cuda and untracked(x, *self.parameters()):
            return self._multiply_in_place(x)
        products: list[Tensor] = []
        biases = self.bias_by_block()
        for number, (batch, part) in enumerate(zip(self.batches, self._inputs_by_batch(x), strict=True)):
            positions, blocks = self._buffers[f"zero_positions_{number}"], len(batch.blocks)
            if positions is not None and torch.is_grad_enabled() and are_rows(positions):
                part = part.index_fill(1, positions.flatten().long(), 0)  # faster than masking a gradient
                weight: Tensor = getattr(self, f"weight_{number}")
            else:
                weight = self._stored_weight(number)
            inputs = part.view(part.shape[0], blocks, batch.inputs).transpose(0, 1)
            if batch.first:
                products[0].narrow(0, 0, blocks).add_(torch.bmm(inputs, weight))
            elif biases is None:
                products.append(torch.bmm(inputs, weight))
            else:
                bias = biases.narrow(0, batch.output, blocks * batch.neurons).view(blocks, 1, batch.neurons)
                products.append(torch.baddbmm(bias, inputs, weight))
        rows = [product.transpose(0, 1).flatten(1) for product in products]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _multiply_in_place(self, x: Tensor) -> Tensor:
        """Return the same without gradients, and without copies: a product of each batch into the outputs.

        cuBLAS takes inputs and outputs by their strides.
        """
        y, bias = x.new_empty(len(x), self.shape.outputs), self.bias_by_block()
        parts = [x]
        if self.columns is not None:
            inputs = [len(batch.blocks) * batch.inputs for batch in self.batches]
            parts = list(_take(x, 1, self.columns).split_with_sizes(inputs, dim=1))
        for number, (batch, part) in enumerate(zip(self.batches, parts, strict=True)):
            size, weight = (len(batch.blocks), batch.neurons), getattr(self, f"weight_{number}")
            left = part.view(len(x), size[0], batch.inputs).transpose(0, 1)
            own = y.narrow(1, batch.output, size[0] * size[1]).view(len(x), *size).transpose(0, 1)
            if batch.first:
                own.baddbmm_(left, weight)
            elif bias is None:
                torch.bmm(left, weight, out=own)
            else:
                start = bias.narrow(0, batch.output, size[0] * size[1]).view(size[0], 1, size[1])
                torch.baddbmm(start, left, weight, out=own)
        return y

    def _inputs_by_batch(self, x: Tensor) -> Sequence[Tensor]:
        """Return the inputs of each batch, (samples, blocks × inputs)."""
        if self.columns is None:
            return [x]
        if torch.compiler.is_compiling() or x.shape[0] == 1:
            x = _take(x, 1, self.columns)
        else:
            x = x.gather(1, self.columns.long().expand(x.shape[0], -1))  # on all cores, unlike a selection
        return x.split_with_sizes([len(b.blocks) * b.inputs for b in self.batches], dim=1)


def _take(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """Select entries by small integers; files of format 3 have them in 16 bits."""
    return x.index_select(axis, index.long() if index.dtype == torch.int16 else index)
