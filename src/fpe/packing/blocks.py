"""Layers whose weight is a few dense blocks: what a shared split makes, at the cost of the dense parent.

Each block maps some of the inputs to some of the neurons. The neurons of a block stand side by side in the
output, so that each block's product is written where it belongs. Blocks of as many neurons are multiplied
in one batched product: for one sample, calls are what costs, and for many each pass over the output. Where
these blocks have nearly as many inputs, a few more, with weights held at zero, make them equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from fpe.packing.holes import are_rows, free_of, pack_holes
from fpe.packing.layers import HoldHoles, PackedLayer, Shape
from fpe.packing.products import FEW, by_block, multiply_few
from fpe.packing.slabs import filled_up, slabs_of

#: Numbers of inputs, relative to weights, that are so few that they need not be stored in the smallest type.
READY = 1 / 500


@dataclass(frozen=True)
class Block:
    """Which neurons read which inputs, as sorted indices."""

    rows: Tensor
    columns: Tensor


class BlockLayer(PackedLayer):
    """A packed layer of dense blocks.

    Attributes
    ----------
    sizes : list of (int, int)
        Neurons and inputs of each block.
    slabs : list of Slab
        Where the blocks are stored.
    weight_0, weight_1, … : Parameter
        One for each slab; of a linear layer of shape (blocks, inputs, neurons), of a convolution, whose
        slabs are single blocks, (neurons, inputs, *taps).
    columns : Tensor or None
        Buffer, small integers: the inputs that the slabs read, block by block, one slab after the other;
        None for one block that reads all of them in order.
    rows : Tensor
        Buffer: the neuron of the masked layer that each output is, block by block.
    restore : Tensor or None
        Buffer: the order that makes the outputs stand as in the masked layer; None if they stay block by
        block, because their readers have been reordered. The bias has the order of the outputs.
    """

    format = "blocks"

    columns: Tensor | None
    rows: Tensor
    restore: Tensor | None
    #: Whether the state dict to be loaded has the bias block by block, also where the outputs are restored:
    #: so do files whose configuration has no ``bias_order``, and torch's own of the first version.
    _bias_by_rows = False
    _version = 2

    def __init__(self, shape: Shape, sizes: Sequence[tuple[int, int]], bias: Tensor | None) -> None:
        super().__init__(shape, bias)
        self.sizes = [(int(neurons), int(inputs)) for neurons, inputs in sizes]
        self.slabs = slabs_of(self.sizes, together=not shape.taps)
        self._widths = [len(slab.blocks) * slab.inputs for slab in self.slabs]
        self.register_buffer("columns", None)
        self.register_buffer("rows", None)
        self.register_buffer("restore", None)

    @classmethod
    def of(
        cls,
        shape: Shape,
        weight: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        blocks: Sequence[Block],
        ordered: bool,
    ) -> BlockLayer:
        """Take the blocks out of a masked layer's tensors.

        Parameters
        ----------
        shape : Shape
            The masked layer's.
        weight, mask : Tensor
            Shape (neurons, inputs, *taps). Outside the blocks nothing is free.
        bias : Tensor or None
            Shape (neurons,).
        blocks : sequence of Block
            Every neuron is in one of them.
        ordered : bool
            Whether the outputs must stand as in the masked layer.
        """
        if not shape.taps:
            blocks = _filled_up(blocks, shape.inputs)
        rows = torch.cat([b.rows for b in blocks])
        restored = ordered and not torch.equal(rows, torch.arange(len(rows), device=rows.device))
        sizes = [(len(b.rows), len(b.columns)) for b in blocks]
        layer = of_shape(shape)(shape, sizes, bias if bias is None or restored else bias[rows])
        read: list[Tensor] = []
        for number, slab in enumerate(layer.slabs):
            inputs = slice(slab.first, slab.first + slab.inputs)
            parts = [(blocks[i].rows, blocks[i].columns[inputs]) for i in slab.blocks]
            own, free = (
                layer._as_stored([t.index_select(0, row).index_select(1, column) for row, column in parts])
                for t in (weight, mask)
            )
            layer.register_parameter(f"weight_{number}", nn.Parameter(own))
            layer.register_buffer(f"holes_{number}", pack_holes(free != 0))
            read += [column for _, column in parts]
        columns = torch.cat(read)
        if len(blocks) > 1 or not torch.equal(columns, torch.arange(shape.inputs, device=columns.device)):
            stored = sum(own.numel() for name, own in layer.named_parameters() if name != "bias")
            ready = len(columns) <= READY * stored  # for a product of one sample, without a conversion
            layer.columns = columns.to(torch.int32 if ready else index_type(shape.inputs))
        layer.rows = rows.to(index_type(shape.outputs))
        if restored:
            layer.restore = rows.argsort().to(layer.rows.dtype)
        return layer

    def config(self) -> dict[str, Any]:
        """Add the sizes of the blocks, and shapes and types of the buffers."""
        buffers = {n: [str(t.dtype).removeprefix("torch."), *t.shape] for n, t in self.named_buffers()}
        own = {"sizes": self.sizes, "buffers": buffers, "bias_order": "outputs"}
        return {**super().config(), **own}

    @staticmethod
    def from_config(config: dict[str, Any], like: Tensor) -> BlockLayer:
        """Make a layer with weights that mean nothing yet, of the type and on the device of `like`."""
        shape = Shape.from_dict(config["shape"])
        bias = like.new_empty(shape.outputs) if config["bias"] else None
        layer = of_shape(shape)(shape, config["sizes"], bias)
        for number, slab in enumerate(layer.slabs):
            block = like.new_empty(slab.neurons, slab.inputs, *shape.taps)
            weight = layer._as_stored([block] * len(slab.blocks))
            layer.register_parameter(f"weight_{number}", nn.Parameter(weight))
            layer.register_buffer(f"holes_{number}", None)
        for name, (kind, *size) in config["buffers"].items():
            setattr(layer, name, torch.zeros(size, dtype=getattr(torch, kind), device=like.device))
        layer._bias_by_rows = "bias_order" not in config
        return layer

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        by_rows = self._bias_by_rows or local_metadata.get("version") == 1
        if by_rows and self.bias is not None and self.restore is not None:
            self.bias.data = self.bias.data.index_select(0, self.restore.long())
        self._bias_by_rows = False

    @staticmethod
    def _as_stored(blocks: Sequence[Tensor]) -> Tensor:
        """Return a slab's weight, made of blocks of shape (neurons, inputs, *taps)."""
        (block,) = blocks
        return block

    @staticmethod
    def _as_blocks(weight: Tensor) -> Sequence[Tensor]:
        """Undo `_as_stored`."""
        return [weight]

    def free(self, name: str) -> Tensor | None:
        """Return a mask over the weight of a slab that has holes."""
        holes = self._buffers.get(name.replace("weight_", "holes_"))
        return None if holes is None else free_of(holes, self.get_parameter(name).shape)

    @torch.no_grad()
    def project(self) -> None:
        """Set the weights in holes to zero, in place."""
        for number in range(len(self.slabs)):
            free = self.free(f"weight_{number}")
            if free is not None:
                self.get_parameter(f"weight_{number}").mul_(free)

    def _weights(self) -> list[Tensor]:
        """Return the weights of the slabs, through which no gradient reaches a hole."""
        weights: list[Tensor] = []
        for number in range(len(self.slabs)):
            weight: Tensor = getattr(self, f"weight_{number}")
            holes = self._buffers[f"holes_{number}"]
            if holes is not None and torch.is_grad_enabled():
                weight = HoldHoles.apply(weight, holes)  # type: ignore[no-untyped-call]
            weights.append(weight)
        return weights

    @property
    def weight(self) -> Tensor:
        """The layer's weight, made anew each time."""
        weight = self._laid_out(self._weights())
        return weight if self.restore is None else weight.index_select(0, self.restore.long())

    def _laid_out(self, slabs: Sequence[Tensor]) -> Tensor:
        """Put tensors of the slabs' shapes where they belong: (neurons block by block, inputs, *taps)."""
        whole = slabs[0].new_zeros((self.shape.outputs, self.shape.inputs, *self.shape.taps))
        blocks = self.layout()
        ends = list(accumulate(neurons for neurons, _ in self.sizes))
        for slab, own in zip(self.slabs, slabs, strict=True):
            for block, part in zip(slab.blocks, self._as_blocks(own), strict=True):
                columns = blocks[block].columns[slab.first : slab.first + slab.inputs]
                place = whole[ends[block] - self.sizes[block][0] : ends[block]]
                place.index_copy_(1, columns, part)
        return whole

    def _bias_by_block(self) -> Tensor | None:
        """Return the bias of the outputs before they are restored."""
        if self.bias is None or self.restore is None:
            return self.bias
        return self.bias.index_select(0, self.rows.long())

    def layout(self) -> list[Block]:
        """Return which neurons of the masked layer read which inputs, block by block."""
        rows = torch.split(self.rows.long(), [neurons for neurons, _ in self.sizes])
        if self.columns is None:
            everything = torch.arange(self.shape.inputs, device=self.rows.device)
            return [Block(row, everything) for row in rows]
        inputs = [slab.inputs for slab in self.slabs for _ in slab.blocks]
        read = iter(torch.split(self.columns.long(), inputs))
        columns: list[list[Tensor]] = [[] for _ in rows]
        for slab in self.slabs:
            for block in slab.blocks:
                columns[block].append(next(read))
        return [Block(row, torch.cat(own)) for row, own in zip(rows, columns, strict=True)]

    @torch.no_grad()
    def wide(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return weight, mask and bias of the masked layer, its neurons in their order there."""
        weights = self._weights()
        free = [self.free(f"weight_{number}") for number in range(len(self.slabs))]
        masks = [
            torch.ones_like(own) if mask is None else mask.to(own.dtype)
            for own, mask in zip(weights, free, strict=True)
        ]
        order = self.rows.long().argsort()
        weight, mask = (self._laid_out(own).index_select(0, order) for own in (weights, masks))
        bias = self._bias_by_block()
        return weight, mask, None if bias is None else bias.index_select(0, order)


class BlockLinear(BlockLayer):
    """A linear layer of dense blocks: (…, in_features) to (…, out_features).

    The blocks lie in memory input by input: then the length of a row is the number of neurons, which is
    even where numbers of inputs are odd, and products of one sample read memory in order.
    """

    @staticmethod
    def _as_stored(blocks: Sequence[Tensor]) -> Tensor:
        return torch.stack([block.t() for block in blocks])

    @staticmethod
    def _as_blocks(weight: Tensor) -> Sequence[Tensor]:
        return [block.t() for block in weight]

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        x = input if input.dim() == 2 else input.reshape(-1, self.in_features)
        if (
            x.shape[0] == 1
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or type(x) is not Tensor
            or torch._C._are_functorch_transforms_active()  # which cannot write into a given tensor
            or torch.is_autocast_enabled(x.device.type)
        ):
            y = self._multiply(x)
        else:
            y = self._multiply_in_place(x)
        if self.restore is not None:
            y = y.index_select(-1, self.restore.long())
        return y if input.dim() == 2 else y.view(*input.shape[:-1], self.out_features)

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        """Return what each slab reads, (samples, its blocks × its inputs)."""
        columns = self.columns
        if columns is not None and (x.shape[0] == 1 or torch.compiler.is_compiling()):
            x = x.index_select(1, columns if columns.dtype == torch.int32 else columns.long())
        elif columns is not None:
            x = x.gather(1, columns.long().expand(len(x), -1))  # on all cores, unlike a selection
        return (x,) if len(self._widths) == 1 else x.split_with_sizes(self._widths, dim=1)

    def _multiply(self, x: Tensor) -> Tensor:
        products: list[Tensor] = []
        biases = self._bias_by_block()
        for number, (slab, part) in enumerate(zip(self.slabs, self._parts(x), strict=True)):
            weight: Tensor = getattr(self, f"weight_{number}")
            holes = self._buffers[f"holes_{number}"]
            if holes is not None and torch.is_grad_enabled():
                part, weight = _without_gradient(part, weight, holes)
            read, blocks = by_block(part, slab.inputs), len(slab.blocks)
            if slab.first:
                sums = products[0].narrow(0, 0, blocks)
                if torch.is_grad_enabled() or sums.dtype != weight.dtype:  # the latter under autocast
                    sums.add_(torch.bmm(read, weight))
                else:
                    sums.baddbmm_(read, weight)
            elif biases is None:
                products.append(torch.bmm(read, weight))
            else:
                bias = biases.narrow(0, slab.output, blocks * slab.neurons)
                products.append(torch.baddbmm(bias.view(blocks, 1, slab.neurons), read, weight))
        rows = [product.transpose(0, 1).flatten(1) for product in products]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _multiply_in_place(self, x: Tensor) -> Tensor:
        """Let each product be written where it belongs."""
        y = x.new_empty(len(x), self.out_features)
        few = len(x) in FEW
        for number, (slab, part) in enumerate(zip(self.slabs, self._parts(x), strict=True)):
            weight: Tensor = getattr(self, f"weight_{number}")
            read = by_block(part, slab.inputs)
            place = by_block(y.narrow(1, slab.output, len(slab.blocks) * slab.neurons), slab.neurons)
            if slab.first:
                place.baddbmm_(read, weight)
            elif few:
                multiply_few(read, weight, place)
            else:
                torch.bmm(read, weight, out=place)
        bias = self._bias_by_block()
        return y if bias is None else y.add_(bias)


def _without_gradient(x: Tensor, weight: Tensor, holes: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a slab reads, and its weight, so that no gradient reaches a hole."""
    if are_rows(holes):  # reading zeros takes less time and memory than a pass over the weight's gradient
        return x.index_fill(1, holes.flatten().long(), 0), weight
    return x, HoldHoles.apply(weight, holes)  # type: ignore[no-untyped-call]


def _filled_up(blocks: Sequence[Block], inputs: int) -> Sequence[Block]:
    """Let blocks of nearly as many inputs read as many, of others' inputs."""
    most = filled_up([(len(block.rows), len(block.columns)) for block in blocks])
    if not most:
        return blocks
    made = []
    for block in blocks:
        others = torch.ones(inputs, dtype=torch.bool, device=block.columns.device)
        others[block.columns] = False
        more = others.nonzero().flatten()[: most - len(block.columns)]
        made.append(Block(block.rows, torch.cat([block.columns, more]).sort().values))
    return made


class _BlockConv(BlockLayer):
    """A convolution of dense blocks, each over some of the channels."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve: (batch, in_channels, *size) to (batch, out_channels, *size)."""
        channel = -1 - len(self.shape.taps)
        weights, bias = self._weights(), self._bias_by_block()
        if self.columns is None:
            y = self.apply_weight(input, weights[0], bias)
        else:
            neurons = [neurons for neurons, _ in self.sizes]
            biases = [None] * len(weights) if bias is None else torch.split(bias, neurons)
            parts = [
                input.index_select(channel, own) for own in torch.split(self.columns.long(), self._widths)
            ]
            each = [self.apply_weight(*part) for part in zip(parts, weights, biases, strict=True)]
            y = torch.cat(each, dim=channel)
        return y if self.restore is None else y.index_select(channel, self.restore.long())


class BlockConv1d(_BlockConv):
    """``nn.Conv1d`` of dense blocks."""


class BlockConv2d(_BlockConv):
    """``nn.Conv2d`` of dense blocks."""


class BlockConv3d(_BlockConv):
    """``nn.Conv3d`` of dense blocks."""


_KINDS: dict[str, type[BlockLayer]] = {
    "MaskedLinear": BlockLinear,
    "MaskedConv1d": BlockConv1d,
    "MaskedConv2d": BlockConv2d,
    "MaskedConv3d": BlockConv3d,
}


def of_shape(shape: Shape) -> type[BlockLayer]:
    """Return the class for a layer of this shape."""
    return _KINDS[shape.kind]


def index_type(count: int) -> torch.dtype:
    """Return the smallest type of integers that numbers so many."""
    return torch.int16 if count <= 1 << 15 else torch.int32
