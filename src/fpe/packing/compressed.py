"""Layers whose mask has no structure: values and bits are stored, the weight is made when it is needed.

``codes``: where the children of a neuron share its inputs out, each input of the neuron has one value and
the number of the child that owns it. That is the dense parent's weight and a bit for each entry (for two
children). For a few samples the product is computed straight from that, in one compiled pass for each; for
more the weight is made piece by piece.

``bitmask``: the free values in a row, and a bit for each entry: the smallest form of any mask, and slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fpe.packing.bits import pack_bits, unpack_bits, width_in_bytes
from fpe.packing.kernels import kernels_for
from fpe.packing.layers import PackedLayer, Shape

#: Entries of the weight that are made at a time where no gradient is wanted.
CHUNK = 1 << 21
#: Up to so many samples are multiplied one by one: less work than to make the weight.
FEW = 3


class _Compressed(PackedLayer):
    """A packed layer whose weight is made when it is needed."""

    values: nn.Parameter

    def made_weight(self) -> Tensor:
        """Return the weight of the masked layer."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The layer's weight, made anew each time."""
        return self.made_weight()

    def _forward(self, x: Tensor) -> Tensor:
        return self.apply_weight(x, self.made_weight(), self.bias)

    @torch.no_grad()
    def wide(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return weight, mask and bias of the masked layer."""
        return self.made_weight(), self.mask().to(self.values.dtype), self.bias

    def mask(self) -> Tensor:
        """Return which entries of the masked layer's weight are free, of its shape."""
        raise NotImplementedError

    def _whole(self) -> tuple[int, ...]:
        return (self.shape.outputs, self.shape.inputs, *self.shape.taps)


class CodedLayer(_Compressed):
    """A packed layer of parents' weights and the child that owns each.

    Attributes
    ----------
    values : Parameter
        Shape (parents, inputs × taps): the weights, each once.
    codes : Tensor
        Buffer, bit planes: which child has the weight; `factor` where nobody has.
    factor : int
        Children of each parent.
    """

    format = "codes"

    codes: Tensor

    def __init__(self, shape: Shape, factor: int, bias: Tensor | None) -> None:
        super().__init__(shape, bias)
        self.factor = factor
        self.register_buffer("codes", None)

    @classmethod
    def of(cls, shape: Shape, weight: Tensor, mask: Tensor, bias: Tensor | None, factor: int) -> CodedLayer:
        """Take values and codes out of a masked layer whose neurons share inputs out in families.

        Parameters
        ----------
        shape, weight, mask, bias
            Of the masked layer; no two of `factor` adjacent neurons have an input in common.
        factor : int
            Children in a family.
        """
        layer = _CODED[shape.kind](shape, factor, bias)
        owned = mask.reshape(shape.outputs // factor, factor, -1)
        layer.values = nn.Parameter(weight.reshape(owned.shape).sum(1))
        codes = torch.where(owned.sum(1) > 0, owned.argmax(1), factor)
        layer.codes = pack_bits(codes, bits_of(factor, bool((codes == factor).any())))
        return layer

    @staticmethod
    def from_config(config: dict[str, Any], like: Tensor) -> CodedLayer:
        """Make a layer with weights that mean nothing yet, of the type and on the device of `like`."""
        shape = Shape.from_dict(config["shape"])
        bias = like.new_empty(shape.outputs) if config["bias"] else None
        layer = _CODED[shape.kind](shape, config["factor"], bias)
        parents, columns = shape.outputs // layer.factor, shape.inputs * torch.Size(shape.taps).numel()
        layer.values = nn.Parameter(like.new_empty(parents, columns))
        size = (config["planes"], parents, width_in_bytes(columns))
        layer.codes = torch.zeros(size, dtype=torch.uint8, device=like.device)
        return layer

    def config(self) -> dict[str, Any]:
        """Add the number of children, and of bits for each weight."""
        return {**super().config(), "factor": self.factor, "planes": len(self.codes)}

    def free(self, name: str) -> Tensor | None:
        """Return a mask over the values: where somebody has the weight."""
        if name != "values" or not self._has_holes():
            return None
        return self._children() != self.factor

    @torch.no_grad()
    def project(self) -> None:
        """Set what nobody has to zero, in place."""
        free = self.free("values")
        if free is not None:
            self.values.mul_(free)

    def _has_holes(self) -> bool:
        return len(self.codes) == bits_of(self.factor, True)

    def _children(self) -> Tensor:
        return unpack_bits(self.codes, self.values.shape[1])

    def made_weight(self) -> Tensor:
        """Return the weight of the masked layer."""
        return _spread(self.values, self._children(), self.factor).view(self._whole())

    def mask(self) -> Tensor:
        """Return which entries of the masked layer's weight are free."""
        ones = torch.ones_like(self.values, requires_grad=False)
        return _spread(ones, self._children(), self.factor).view(self._whole())


def bits_of(factor: int, holes: bool) -> int:
    """Return how many bits say which of so many children has a weight, or that nobody has."""
    return max(1, (factor - 1 + holes).bit_length())


def _spread(values: Tensor, children: Tensor, factor: int) -> Tensor:
    """Give each child its own: (parents, columns) to (parents × factor, columns)."""
    nothing = values.new_zeros(())
    each = [torch.where(children == child, values, nothing) for child in range(factor)]
    return torch.stack(each, dim=1).flatten(0, 1)


class CodedLinear(CodedLayer):
    """A linear layer of parents' weights and codes: (…, in_features) to (…, out_features)."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        plain = type(input) is Tensor and not torch.is_autocast_enabled(input.device.type)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not plain:
            return self._forward(input)
        x = input.reshape(-1, self.in_features)
        kernels = kernels_for(self.values, self.factor) if self.values.dtype == x.dtype else None
        codes = self.codes[: bits_of(self.factor, holes=False)]  # whose the zeros are does not matter
        if kernels is not None and len(x) <= FEW:
            rows = [kernels.product(self.values, codes, sample).flatten() for sample in x]
            y = torch.stack(rows) if rows else x.new_empty(0, self.out_features)
            y = y if self.bias is None else y.add_(self.bias)
        else:
            y = self._in_chunks(x, None if kernels is None else kernels.spread)
        return y.view(*input.shape[:-1], self.out_features)

    def _in_chunks(self, x: Tensor, spread: Callable[..., Tensor] | None) -> Tensor:
        """Make and use the weight in pieces that fit the cache."""
        parents = max(1, CHUNK // (self.factor * self.in_features))
        pieces = []
        for first in range(0, len(self.values), parents):
            values, codes = self.values[first : first + parents], self.codes[:, first : first + parents]
            if spread is None:
                weight = _spread(values, unpack_bits(codes, self.in_features), self.factor)
            else:
                weight = spread(values, codes[: bits_of(self.factor, holes=False)])
            bias = None
            if self.bias is not None:
                bias = self.bias[first * self.factor : first * self.factor + len(weight)]
            pieces.append(nn.functional.linear(x, weight, bias))
        return torch.cat(pieces, dim=1)


class _CodedConv(CodedLayer):
    """A convolution of parents' kernels and codes."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve: (batch, in_channels, *size) to (batch, out_channels, *size)."""
        return self._forward(input)


class CodedConv1d(_CodedConv):
    """``nn.Conv1d`` of parents' kernels and codes."""


class CodedConv2d(_CodedConv):
    """``nn.Conv2d`` of parents' kernels and codes."""


class CodedConv3d(_CodedConv):
    """``nn.Conv3d`` of parents' kernels and codes."""


_CODED: dict[str, type[CodedLayer]] = {
    "MaskedLinear": CodedLinear,
    "MaskedConv1d": CodedConv1d,
    "MaskedConv2d": CodedConv2d,
    "MaskedConv3d": CodedConv3d,
}


class BitmaskLayer(_Compressed):
    """A packed layer of the free values alone, and a bit for each entry of the weight.

    Attributes
    ----------
    values : Parameter
        Shape (free entries,), row by row.
    bits : Tensor
        Buffer: where they are.
    """

    format = "bitmask"

    bits: Tensor

    def __init__(self, shape: Shape, bias: Tensor | None) -> None:
        super().__init__(shape, bias)
        self.register_buffer("bits", None)

    @classmethod
    def of(cls, shape: Shape, weight: Tensor, mask: Tensor, bias: Tensor | None) -> BitmaskLayer:
        """Take the free values out of a masked layer's tensors."""
        layer = cls(shape, bias)
        free = mask != 0
        layer.values = nn.Parameter(weight[free])
        layer.bits = pack_bits(free.flatten(1))
        return layer

    @staticmethod
    def from_config(config: dict[str, Any], like: Tensor) -> BitmaskLayer:
        """Make a layer with weights that mean nothing yet, of the type and on the device of `like`."""
        shape = Shape.from_dict(config["shape"])
        layer = BitmaskLayer(shape, like.new_empty(shape.outputs) if config["bias"] else None)
        layer.values = nn.Parameter(like.new_empty(config["values"]))
        size = (1, shape.outputs, width_in_bytes(shape.inputs * torch.Size(shape.taps).numel()))
        layer.bits = torch.zeros(size, dtype=torch.uint8, device=like.device)
        return layer

    def config(self) -> dict[str, Any]:
        """Add the number of values."""
        return {**super().config(), "values": len(self.values)}

    def made_weight(self) -> Tensor:
        """Return the weight of the masked layer."""
        mask = self.mask()
        return self.values.new_zeros(mask.shape).masked_scatter(mask, self.values)

    def mask(self) -> Tensor:
        """Return which entries of the masked layer's weight are free."""
        columns = self.shape.inputs * torch.Size(self.shape.taps).numel()
        return unpack_bits(self.bits, columns).bool().view(self._whole())

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, as the masked one does."""
        return self._forward(input)
