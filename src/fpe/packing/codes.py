"""The format of codes: each weight of the parents once, and the child that owns it.

For splits that differ from neuron to neuron. With two children a code is one bit, so that the layer takes
little more than the dense parent's bytes. A few samples are multiplied by values and codes directly, in one
compiled pass; for more samples the weight is made piece by piece.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fpe.expansion.steps import Weights
from fpe.packing.bits import byte_shifts, pack_bits, unpack_bits, width_in_bytes
from fpe.packing.layers import PackedLayer, Shape, empty_bias

#: Entries of the weight that are made at a time if there are no gradients.
CHUNK = 1 << 21
#: Most samples that are multiplied one by one, which is less work than making the weight.
ONE_BY_ONE = 3
#: Least number of values for which kernels are compiled, which takes seconds.
WORTH_COMPILING = 1 << 18
Kernels = tuple[Callable[..., Tensor], Callable[..., Tensor]]


def pack_codes(weight: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return values, shape (parents, columns), and codes of a weight whose adjacent siblings share no input.

    A code is the number of the child that owns the weight, or `factor` if none does; `pack_bits` stores it.
    """
    owned = mask.reshape(len(mask) // factor, factor, -1)
    codes = torch.where(owned.sum(1) > 0, owned.argmax(1), factor)
    bits = bits_of(factor, bool((codes == factor).any()))
    return weight.reshape(owned.shape).sum(1), pack_bits(codes, bits)


def unpack_codes(values: Tensor, codes: Tensor, factor: int) -> Tensor:
    """Return the weight that `pack_codes` stored: (parents, columns) to (parents × factor, columns)."""
    owner, nothing = unpack_bits(codes, values.shape[1]), values.new_zeros(())
    each = [torch.where(owner == child, values, nothing) for child in range(factor)]
    return torch.stack(each, dim=1).flatten(0, 1)


def bits_of(factor: int, unowned: bool) -> int:
    """Return the bits of a code: with `unowned`, it may also say that no child owns the weight."""
    return max(1, (factor - 1 + unowned).bit_length())


class CodedLayer(PackedLayer):
    """A linear layer or a convolution of parents' weights and codes."""

    format = "codes"

    #: Shape (parents, inputs × taps).
    values: nn.Parameter
    #: Buffer: the number of the child that owns each value, in bit planes.
    codes: Tensor

    def __init__(self, shape: Shape, values: Tensor, codes: Tensor, factor: int, bias: Tensor | None) -> None:
        super().__init__(shape, bias)
        self.values, self.factor = nn.Parameter(values), factor
        self.register_buffer("codes", codes)

    @classmethod
    def of(cls, shape: Shape, weights: Weights, factor: int) -> CodedLayer:
        """Take values and codes out of a masked layer's tensors."""
        return cls(shape, *pack_codes(weights.weight, weights.mask, factor), factor, weights.bias)

    @classmethod
    def from_config(cls, config: dict[str, Any], like: Tensor) -> CodedLayer:  # noqa: D102
        shape, factor = Shape.from_dict(config["shape"]), config["factor"]
        parents, columns = shape.outputs // factor, shape.weight[1:].numel()
        size = (config["planes"], parents, width_in_bytes(columns))
        codes = torch.zeros(size, dtype=torch.uint8, device=like.device)
        return cls(shape, like.new_empty(parents, columns), codes, factor, empty_bias(config, like))

    def config(self) -> dict[str, Any]:
        """Add the number of children, and of bits for each weight."""
        return {**super().config(), "factor": self.factor, "planes": len(self.codes)}

    def free(self, name: str) -> Tensor | None:
        """Return the mask of the values: 0 where no child owns the weight."""
        if name != "values" or len(self.codes) < bits_of(self.factor, unowned=True):
            return None
        return unpack_bits(self.codes, self.values.shape[1]) != self.factor

    @property
    def weight(self) -> Tensor:
        """The layer's weight, made anew each time."""
        return unpack_codes(self.values, self.codes, self.factor).view(self.shape.weight)

    @torch.no_grad()
    def to_masked(self) -> Weights:
        """Return the tensors of the masked layer."""
        mask = unpack_codes(torch.ones_like(self.values), self.codes, self.factor)
        bias = None if self.bias is None else self.bias.detach()
        return Weights(self.weight, bias, mask.view(self.shape.weight))

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        if (
            self.shape.taps
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or type(input) is not Tensor
            or torch.is_autocast_enabled(input.device.type)
        ):
            return self.apply_weight(input, self.weight, self.bias)
        x = input.reshape(-1, self.in_features)
        kernels = kernels_for(self.values, self.factor) if self.values.dtype == x.dtype else None
        if kernels is not None and 0 < len(x) <= ONE_BY_ONE:
            codes = self.codes[: bits_of(self.factor, unowned=False)]
            y = torch.stack([kernels[0](self.values, codes, sample.clone()).flatten() for sample in x])
            y = y if self.bias is None else y.add_(self.bias)
        else:
            y = self._in_chunks(x, None if kernels is None else kernels[1])
        return y.view(*input.shape[:-1], self.out_features)

    def _in_chunks(self, x: Tensor, spread: Callable[..., Tensor] | None) -> Tensor:
        """Make and use the weight in pieces that fit the cache."""
        pieces = []
        step = max(1, CHUNK // (self.factor * self.in_features))
        for first in range(0, len(self.values), step):
            values, codes = self.values[first : first + step], self.codes[:, first : first + step]
            if spread is None:
                weight = unpack_codes(values, codes, self.factor)
            else:
                weight = spread(values, codes[: bits_of(self.factor, unowned=False)])
            children = slice(first * self.factor, first * self.factor + len(weight))
            pieces.append(nn.functional.linear(x, weight, None if self.bias is None else self.bias[children]))
        return torch.cat(pieces, dim=1)


# In the kernels, bits are factors: compilers turn products into vector instructions, but not choices. A
# weight that no child owns is 0, so that its owner does not matter.


def owner_bits(codes: Tensor, factor: int, shifts: Tensor) -> list[Tensor]:
    """Return the bits that tell `factor` children apart, each (parents, 8, columns / 8)."""
    return [(codes[plane].unsqueeze(1) >> shifts) & 1 for plane in range((factor - 1).bit_length())]


def product(values: Tensor, codes: Tensor, x: Tensor, factor: int, shifts: Tensor) -> Tensor:
    """Return the outputs for one sample: (parents, columns) and (columns,) to (parents, factor).

    Sums over the entries that have all of some bits set are cheaper than sums over each child's entries: with
    two children one multiplication instead of two. The children's are differences of them.
    """
    exact = torch.promote_types(values.dtype, torch.float32)  # a difference of halves may have no right digit
    having = [values.view(len(values), 8, -1).to(exact) * x.view(8, -1).to(exact)]
    for bit in owner_bits(codes, factor, shifts):
        having += [own * bit for own in having]
    sums = [own.sum(2).sum(1) for own in having]  # in two steps: compilers then make all of them in one loop
    for plane in range((factor - 1).bit_length()):
        for some in range(len(sums)):
            if not some >> plane & 1:
                sums[some] = sums[some] - sums[some | 1 << plane]
    return torch.stack(sums[:factor], dim=1).to(values.dtype)


def spread(values: Tensor, codes: Tensor, factor: int, shifts: Tensor) -> Tensor:
    """Do as `unpack_codes`, faster once compiled."""
    children = [values.view(len(values), 8, -1)]
    for bit in reversed(owner_bits(codes, factor, shifts)):
        children = [own * side for own in children for side in (1 - bit, bit)]
    return torch.stack(children[:factor], dim=1).view(-1, values.shape[1])


def kernels_for(values: Tensor, factor: int) -> Kernels | None:
    """Return `product` and `spread`, compiled; None for a small layer, or if there is no compiler."""
    if values.numel() < WORTH_COMPILING or values.shape[1] % 8:
        return None
    return _compiled(factor, values.shape[1], values.dtype, values.device)


@functools.cache
def _compiled(factor: int, columns: int, dtype: torch.dtype, device: torch.device) -> Kernels | None:
    shifts = byte_shifts(device)

    def multiply(values: Tensor, codes: Tensor, x: Tensor) -> Tensor:
        return product(values, codes, x, factor, shifts)

    def make(values: Tensor, codes: Tensor) -> Tensor:
        return spread(values, codes, factor, shifts)

    for function in (multiply, make):
        # The compiler keeps what it has compiled by code object, and few for each.
        function.__code__ = function.__code__.replace()
    # Only the axes that are marked below are dynamic, not those that differ from layer to layer.
    fast = (
        torch.compile(multiply, fullgraph=True, dynamic=False),
        torch.compile(make, fullgraph=True, dynamic=False),
    )
    try:
        values = torch.ones(4, columns, dtype=dtype, device=device)
        size = ((factor - 1).bit_length(), 4, columns // 8)
        codes = torch.zeros(size, dtype=torch.uint8, device=device)
        torch._dynamo.mark_dynamic(values, 0)
        torch._dynamo.mark_dynamic(codes, 1)
        fast[0](values, codes, values.new_ones(columns))  # no view: what it is a view of would be compiled in
        fast[1](values, codes)
    except Exception as error:  # compilers fail in many ways
        text = f"layers of codes are computed without a compiler, several times as slowly ({error})."
        warnings.warn(text, stacklevel=4)
        return None
    return fast
