"""The format of a bitmask: the free weights, and one bit for each place, for any layer and any mask.

It is the smallest format for masks without structure. The weight is made anew in each call; of stacked
experts, where gradients are off, only that of an expert that is asked for.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from fpe.expansion.steps import Weights
from fpe.graph.layers import native, oriented
from fpe.packing.bits import pack_bits, unpack_bits, width_in_bytes
from fpe.packing.layers import PackedLayer, Shape, empty_bias


class BitmaskLayer(PackedLayer):
    """A layer of values, and of bits that say where in the weight they stand."""

    format = "bitmask"

    #: Shape (non-zeros,), in the order of the weight as the masked layer stores it.
    values: torch.nn.Parameter
    #: Buffer: where the weight is free, as `fpe.packing.bits.pack_bits` stores it, (1, rows, bytes).
    places: Tensor

    def __init__(self, shape: Shape, values: Tensor, places: Tensor, bias: Tensor | None) -> None:
        super().__init__(shape, bias)
        self.values = torch.nn.Parameter(values)
        self.register_buffer("places", places)
        self._like = (shape.empty(),)  # in a tuple, so that it is no part of the state dict

    @classmethod
    def of(cls, shape: Shape, weights: Weights) -> BitmaskLayer:
        """Take the free weights out of a masked layer's tensors."""
        like, bias = shape.empty(), weights.bias
        weight, mask = native(like, weights.weight), native(like, weights.mask) != 0
        kind = StackedBitmaskLayer if shape.experts else BitmaskLayer
        places = pack_bits(mask.flatten(1))
        return kind(shape, weight[mask], places, None if bias is None else native(like, bias).contiguous())

    @classmethod
    def from_config(cls, config: dict[str, Any], like: Tensor) -> BitmaskLayer:  # noqa: D102
        shape = Shape.from_dict(config["shape"])
        kind = StackedBitmaskLayer if shape.experts else BitmaskLayer
        rows, columns = _sizes(native(shape.empty(), torch.empty(shape.weight, device="meta")).shape)
        places = torch.zeros(1, rows, width_in_bytes(columns), dtype=torch.uint8, device=like.device)
        return kind(shape, like.new_empty(config["values"]), places, empty_bias(config, like))

    def config(self) -> dict[str, Any]:
        """Add the number of values."""
        return {**super().config(), "values": len(self.values)}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if not self.values.is_meta and (found := int(self._mask().sum())) != len(self.values):
            errors: list[str] = rest[-1]
            errors.append(f"{prefix}places has {found:,} places for {len(self.values):,} values.")

    @property
    def _stored(self) -> torch.Size:
        """The shape of the weight as the masked layer stores it."""
        return cast(torch.Size, self._like[0].weight.shape)

    def _mask(self) -> Tensor:
        """Return where the weight is free: booleans, as the masked layer stores it."""
        _, columns = _sizes(self._stored)
        return unpack_bits(self.places, columns).bool().view(self._stored)

    @property
    def weight(self) -> Tensor:
        """The weight as the masked layer stores it, made anew each time."""
        return self.values.new_zeros(self._stored).masked_scatter(self._mask(), self.values)

    @torch.no_grad()
    def to_masked(self) -> Weights:
        """Return the tensors of the masked layer."""
        like, bias = self._like[0], None if self.bias is None else self.bias.detach()
        weight, mask = (
            oriented(like, own).contiguous() for own in (self.weight, self._mask().to(self.values))
        )
        return Weights(weight, None if bias is None else oriented(like, bias), mask)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Apply the layer."""
        tensors = {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
        return functional_call(self._like[0], tensors, args, kwargs)


class StackedBitmaskLayer(BitmaskLayer):
    """The weights of all experts; their module asks for them by calling this without inputs."""

    def forward(self) -> Tensor:
        """Return the weight as it is applied, (experts, …)."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.weight
        return _Experts(self)

    def _load_from_state_dict(self, *args: Any) -> None:
        vars(self).pop("_starts", None)  # places may be others
        super()._load_from_state_dict(*args)

    def added(self) -> Tensor | None:
        """Return the bias as it is applied, (experts, outputs)."""
        return self.bias

    @cached_property
    def _starts(self) -> list[int]:
        """The place of the first value of each expert, and the number of all."""
        counts = self._mask().flatten(1).sum(1)
        return [0, *counts.cumsum(0).tolist()]

    def expert(self, number: int) -> Tensor:
        """Return the weight of one expert."""
        number = range(len(self.places[0]))[number]
        size = self._stored[1:]
        mask = unpack_bits(self.places[:, number : number + 1], size.numel()).bool().view(size)
        values = self.values[self._starts[number] : self._starts[number + 1]]
        return values.new_zeros(size).masked_scatter(mask, values)


class _Experts(Tensor):
    """The weight of a `StackedBitmaskLayer`, of which only the experts are made that are picked out."""

    _layer: StackedBitmaskLayer

    def __new__(cls, layer: StackedBitmaskLayer) -> _Experts:
        like = layer.values
        made: Any = Tensor._make_wrapper_subclass(cls, layer._stored, dtype=like.dtype, device=like.device)
        made._layer = layer
        return cast(_Experts, made)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func is Tensor.__getitem__
            and isinstance(args[0], cls)
            and (place := _integer(args[1])) is not None
        ):
            return args[0]._layer.expert(place)
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        own, more = pytree.tree_map_only(cls, lambda own: own._layer.weight, (args, kwargs or {}))
        return func(*own, **more)


def _integer(index: Any) -> int | None:
    """Return the number of the one expert that an index picks out; None if it does something else."""
    if isinstance(index, Tensor):
        one = index.dim() == 0 and not index.is_floating_point() and index.dtype != torch.bool
        return int(index) if one else None
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def _sizes(shape: torch.Size) -> tuple[int, int]:
    """Return the rows of a weight, and the entries of each."""
    return shape[0], shape[1:].numel()
