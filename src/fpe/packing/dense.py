"""Layers that store their zeros: what nearly nothing is missing from, or what has no structure."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe.packing.holes import free_of, pack_holes
from fpe.packing.layers import HoldHoles, PackedLayer, Shape


class DenseLayer(PackedLayer):
    """A layer with the weight of the masked one, zeros and all, and where they are.

    Attributes
    ----------
    weight : Parameter
        Of the masked layer's shape.
    holes : Tensor
        Buffer: where the weight is held at zero, as in `fpe.packing.holes`.
    """

    format = "dense"

    weight: nn.Parameter
    holes: Tensor

    def __init__(self, shape: Shape, weight: Tensor, holes: Tensor, bias: Tensor | None) -> None:
        super().__init__(shape, bias)
        self.weight = nn.Parameter(weight)
        self.register_buffer("holes", holes)

    @classmethod
    def of(cls, shape: Shape, weight: Tensor, mask: Tensor, bias: Tensor | None) -> DenseLayer:
        """Take over a masked layer's tensors."""
        return cls(shape, weight.clone(), cast(Tensor, pack_holes(mask != 0)), bias)

    @staticmethod
    def from_config(config: dict[str, Any], like: Tensor) -> DenseLayer:
        """Make a layer with weights that mean nothing yet, of the type and on the device of `like`."""
        shape = Shape.from_dict(config["shape"])
        weight = like.new_empty((shape.outputs, shape.inputs, *shape.taps))
        kind, size = config["holes"][0], config["holes"][1:]
        holes = torch.zeros(size, dtype=getattr(torch, kind), device=like.device)
        return DenseLayer(shape, weight, holes, like.new_empty(shape.outputs) if config["bias"] else None)

    def config(self) -> dict[str, Any]:
        """Add shape and type of what says where the holes are."""
        holes = [str(self.holes.dtype).removeprefix("torch."), *self.holes.shape]
        return {**super().config(), "holes": holes}

    def free(self, name: str) -> Tensor | None:
        """Return the mask of the weight."""
        return free_of(self.holes, self.weight.shape) if name == "weight" else None

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
            weight = HoldHoles.apply(weight, self.holes)  # type: ignore[no-untyped-call]
        return self.apply_weight(input, weight, self.bias)
