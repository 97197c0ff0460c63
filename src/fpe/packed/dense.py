"""Layers that store their zeros: what nearly nothing is missing from, or what has no structure."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe.packed.bits import pack_bits, unpack_bits, width_in_bytes
from fpe.packed.layers import HoldHoles, PackedLayer, Shape


class DenseLayer(PackedLayer):
    """A layer with the weight of the masked one, zeros and all, and its mask in bits.

    Attributes
    ----------
    weight : Parameter
        Of the masked layer's shape.
    bits : Tensor
        Buffer: which entries are free.
    """

    format = "dense"

    def __init__(self, shape: Shape, weight: Tensor, bits: Tensor, bias: Tensor | None) -> None:
        super().__init__(shape, bias)
        self.weight = nn.Parameter(weight)
        self.register_buffer("bits", bits)

    @classmethod
    def of(cls, shape: Shape, weight: Tensor, mask: Tensor, bias: Tensor | None) -> DenseLayer:
        """Take over a masked layer's tensors."""
        own = None if bias is None else bias.clone()
        return cls(shape, weight.clone(), pack_bits((mask != 0).flatten(1)), own)

    @staticmethod
    def from_config(config: dict[str, Any], like: Tensor) -> DenseLayer:
        """Make a layer with weights that mean nothing yet, of the type and on the device of `like`."""
        shape = Shape.from_dict(config["shape"])
        weight = like.new_empty((shape.outputs, shape.inputs, *shape.taps))
        bits = (1, shape.outputs, width_in_bytes(weight[0].numel()))
        bias = like.new_empty(shape.outputs) if config["bias"] else None
        return DenseLayer(shape, weight, torch.zeros(bits, dtype=torch.uint8, device=like.device), bias)

    def free(self, name: str) -> Tensor | None:
        """Return the mask of the weight."""
        if name != "weight":
            return None
        return unpack_bits(self.bits, self.weight[0].numel()).view(self.weight.shape)

    @torch.no_grad()
    def project(self) -> None:
        """Set the held weights to zero, in place."""
        self.weight.mul_(cast(Tensor, self.free("weight")))

    @torch.no_grad()
    def wide(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return weight, mask and bias of the masked layer."""
        return self.weight, cast(Tensor, self.free("weight")).to(self.weight.dtype), self.bias

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, as the masked one does."""
        weight: Tensor = self.weight
        if torch.is_grad_enabled():
            weight = HoldHoles.apply(weight, self.bits)  # type: ignore[no-untyped-call]
        return self.apply_weight(input, weight, self.bias)
