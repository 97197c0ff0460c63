"""Layers whose weight is a few dense blocks: what a shared split makes, at the cost of the dense parent.

Each block maps some of the inputs to some of the neurons. The neurons of a block stand side by side in the
output, so that each block's product is written where it belongs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe.packed.holes import free_of, pack_holes
from fpe.packed.layers import HoldHoles, PackedLayer, Shape

#: Numbers of samples for which a matrix product takes twice its time, unless it is cut into short ones.
FEW = (2, 3)
#: Inputs in each of those.
SHORT = 32


@dataclass(frozen=True)
class Block:
    """Which neurons read which inputs, as sorted indices."""

    rows: Tensor
    columns: Tensor


class BlockLayer(PackedLayer):
    """A packed layer of dense blocks.

    Attributes
    ----------
    weight_0, weight_1, … : Parameter
        One for each block, of shape (neurons, inputs, *taps).
    columns : Tensor or None
        Buffer, small integers: the inputs that the blocks read, one block after the other; None for one
        block that reads all of them in order.
    rows : Tensor
        Buffer: the neuron of the masked layer that each output is, block by block.
    restore : Tensor or None
        Buffer: the order that makes the outputs stand as in the masked layer; None if they stay block by
        block, because their readers have been reordered.
    """

    format = "blocks"

    columns: Tensor | None
    rows: Tensor
    restore: Tensor | None

    def __init__(self, shape: Shape, sizes: Sequence[tuple[int, int]], bias: Tensor | None) -> None:
        super().__init__(shape, bias)
        self.sizes = [(int(neurons), int(inputs)) for neurons, inputs in sizes]
        self._widths = [neurons for neurons, _ in self.sizes], [inputs for _, inputs in self.sizes]
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
        rows = torch.cat([b.rows for b in blocks])
        layer = of_shape(shape)(
            shape, [(len(b.rows), len(b.columns)) for b in blocks], None if bias is None else bias[rows]
        )
        for number, block in enumerate(blocks):
            part = laid_out(weight.index_select(0, block.rows).index_select(1, block.columns))
            free = mask.index_select(0, block.rows).index_select(1, block.columns) != 0
            layer.register_parameter(f"weight_{number}", nn.Parameter(part))
            layer.register_buffer(f"holes_{number}", pack_holes(free))
        columns = torch.cat([b.columns for b in blocks])
        if len(blocks) > 1 or not torch.equal(columns, torch.arange(shape.inputs, device=columns.device)):
            layer.columns = columns.to(index_type(shape.inputs))
        layer.rows = rows.to(index_type(shape.outputs))
        if ordered and not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            layer.restore = rows.argsort().to(layer.rows.dtype)
        return layer

    def config(self) -> dict[str, Any]:
        """Add the sizes of the blocks, and shapes and types of the buffers."""
        buffers = {n: [str(t.dtype).removeprefix("torch."), *t.shape] for n, t in self.named_buffers()}
        return {**super().config(), "sizes": self.sizes, "buffers": buffers}

    @staticmethod
    def from_config(config: dict[str, Any], like: Tensor) -> BlockLayer:
        """Make a layer with weights that mean nothing yet, of the type and on the device of `like`."""
        shape = Shape.from_dict(config["shape"])
        bias = like.new_empty(shape.outputs) if config["bias"] else None
        layer = of_shape(shape)(shape, config["sizes"], bias)
        for number, (neurons, inputs) in enumerate(layer.sizes):
            weight = laid_out(like.new_empty(neurons, inputs, *shape.taps))
            layer.register_parameter(f"weight_{number}", nn.Parameter(weight))
            layer.register_buffer(f"holes_{number}", None)
        for name, (kind, *size) in config["buffers"].items():
            setattr(layer, name, torch.zeros(size, dtype=getattr(torch, kind), device=like.device))
        return layer

    def free(self, name: str) -> Tensor | None:
        """Return a mask over the weight of a block that has holes."""
        holes = self._buffers.get(name.replace("weight_", "holes_"))
        return None if holes is None else free_of(holes, self.get_parameter(name).shape)

    @torch.no_grad()
    def project(self) -> None:
        """Set the weights in holes to zero, in place."""
        for number in range(len(self.sizes)):
            free = self.free(f"weight_{number}")
            if free is not None:
                self.get_parameter(f"weight_{number}").mul_(free)

    def _weights(self) -> list[Tensor]:
        """Return the blocks, through which no gradient reaches a hole."""
        weights: list[Tensor] = []
        for number in range(len(self.sizes)):
            weight: Tensor = self.get_parameter(f"weight_{number}")
            holes = self._buffers[f"holes_{number}"]
            if holes is not None and torch.is_grad_enabled():
                weight = HoldHoles.apply(weight, holes)  # type: ignore[no-untyped-call]
            weights.append(weight)
        return weights

    def _columns(self) -> Sequence[Tensor]:
        """Return the inputs of each block."""
        return torch.split(cast(Tensor, self.columns).long(), [inputs for _, inputs in self.sizes])

    @property
    def weight(self) -> Tensor:
        """The masked layer's weight, made anew each time; for those who look at it, not for training."""
        return self.wide()[0]

    @torch.no_grad()
    def wide(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return weight, mask and bias of the masked layer, its neurons in their order there."""
        first = self._weights()[0]
        shape = (self.shape.outputs, self.shape.inputs, *self.shape.taps)
        weight, mask = first.new_zeros(shape), first.new_zeros(shape)
        rows = torch.split(self.rows.long(), [neurons for neurons, _ in self.sizes])
        if self.columns is None:
            columns: Sequence[Tensor] = [torch.arange(self.shape.inputs, device=first.device)]
        else:
            columns = self._columns()
        for number, (row, column, own) in enumerate(zip(rows, columns, self._weights(), strict=True)):
            weight[row[:, None], column] = own
            free = self.free(f"weight_{number}")
            mask[row[:, None], column] = 1.0 if free is None else free.to(mask.dtype)
        bias = None
        if self.bias is not None:
            bias = torch.empty_like(self.bias).index_copy_(0, self.rows.long(), self.bias)
        return weight, mask, bias


class BlockLinear(BlockLayer):
    """A linear layer of dense blocks: (…, in_features) to (…, out_features).

    The blocks lie in memory input by input, transposed: then the length of a row is the number of neurons,
    which is even where numbers of inputs are odd, and products of one sample read memory in order.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        x = input.reshape(-1, self.in_features)
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or type(x) is not Tensor
            or torch.is_autocast_enabled(x.device.type)
        ):
            y = self._multiply(x)
        else:
            y = self._multiply_in_place(x)
        if self.restore is not None:
            y = y.index_select(-1, self.restore.long())
        return y.view(*input.shape[:-1], self.out_features)

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        """Return what each block reads, (samples, its inputs)."""
        if self.columns is not None and torch.compiler.is_compiling():
            x = x.index_select(1, self.columns.long())
        elif self.columns is not None:
            x = x.gather(1, self.columns.long().expand(len(x), -1))  # on all cores, unlike a selection
        return x.split_with_sizes(self._widths[1], dim=1)

    def _multiply(self, x: Tensor) -> Tensor:
        weights = self._weights()
        biases = [None] * len(weights) if self.bias is None else torch.split(self.bias, self._widths[0])
        each = zip(self._parts(x), weights, biases, strict=True)
        products = [nn.functional.linear(part, weight, bias) for part, weight, bias in each]
        return products[0] if len(products) == 1 else torch.cat(products, dim=1)

    def _multiply_in_place(self, x: Tensor) -> Tensor:
        """Let each product be added where it belongs, in few calls: for one sample they are what costs."""
        bias = x.new_zeros(self.out_features) if self.bias is None else self.bias
        y = bias.repeat(len(x), 1)
        add = _add_product_of_few if len(x) in FEW else Tensor.addmm_
        places = y.split_with_sizes(self._widths[0], dim=1)
        for number, (part, place) in enumerate(zip(self._parts(x), places, strict=True)):
            add(place, part, cast(Tensor, self._parameters[f"weight_{number}"]).t())
        return y


def _add_product_of_few(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add (samples, inputs) by (inputs, neurons) to (samples, neurons), the inputs a few at a time."""
    whole = x.shape[1] - x.shape[1] % SHORT
    short = x[:, :whole].reshape(len(x), -1, SHORT).transpose(0, 1)
    y.add_(torch.bmm(short, weight[:whole].view(-1, SHORT, weight.shape[1])).sum(dim=0))
    if whole < x.shape[1]:
        y.addmm_(x[:, whole:], weight[whole:])


class _BlockConv(BlockLayer):
    """A convolution of dense blocks, each over some of the channels."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve: (batch, in_channels, *size) to (batch, out_channels, *size)."""
        channel = -1 - len(self.shape.taps)
        weights = self._weights()
        if self.columns is None:
            y = self.apply_weight(input, weights[0], self.bias)
        else:
            neurons = [neurons for neurons, _ in self.sizes]
            biases = [None] * len(weights) if self.bias is None else torch.split(self.bias, neurons)
            parts = [input.index_select(channel, own) for own in self._columns()]
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


def laid_out(weight: Tensor) -> Tensor:
    """Let a block lie in memory as its product reads it fastest; see `BlockLinear`."""
    return weight.t().contiguous().t() if weight.dim() == 2 else weight


def of_shape(shape: Shape) -> type[BlockLayer]:
    """Return the class for a layer of this shape."""
    return _KINDS[shape.kind]


def index_type(count: int) -> torch.dtype:
    """Return the smallest type of integers that numbers so many."""
    return torch.int16 if count <= 1 << 15 else torch.int32
