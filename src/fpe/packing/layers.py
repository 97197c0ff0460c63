"""What packed layers have in common: an ordinary module that stands for a masked one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe.masked import MASKED, HasMasks, MaskedLayer, MaskedLinear
from fpe.packing.holes import without_holes

#: What a convolution keeps of the one that it stands for.
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


@dataclass(frozen=True)
class Shape:
    """What kind of layer a packed layer stands for.

    Attributes
    ----------
    kind : str
        ``"MaskedLinear"`` or a masked convolution's name.
    outputs, inputs : int
        Neurons and inputs, or channels, of the masked layer.
    geometry : dict
        Of a convolution: stride, padding and so on; empty for a linear layer.
    """

    kind: str
    outputs: int
    inputs: int
    geometry: dict[str, Any]

    @classmethod
    def of(cls, layer: MaskedLayer) -> Shape:
        """Read a masked layer's shape."""
        kind = next(masked.__name__ for masked in MASKED if isinstance(layer, masked))
        geometry = {k: getattr(layer, k) for k in GEOMETRY} if kind != "MaskedLinear" else {}
        return cls(kind, layer.weight.shape[0], layer.weight.shape[1], geometry)

    @classmethod
    def of_plain(cls, layer: nn.Module) -> Shape:
        """Read the shape that a plain layer's masked form would have."""
        kind = next(masked.__name__ for masked, plain in MASKED.items() if type(layer) is plain)
        geometry = {k: getattr(layer, k) for k in GEOMETRY} if kind != "MaskedLinear" else {}
        rows, columns = cast(Tensor, layer.weight).shape[:2]
        return cls(kind, rows, columns, geometry)

    @property
    def taps(self) -> tuple[int, ...]:
        """The size of the kernel; empty for a linear layer."""
        return tuple(self.geometry.get("kernel_size", ()))

    def to_dict(self) -> dict[str, Any]:
        """Return the shape as plain values, fit for JSON."""
        return dict(vars(self))

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Shape:
        """Make the shape again from what `to_dict` returned, or from its JSON."""
        geometry = {k: tuple(v) if isinstance(v, list) else v for k, v in record["geometry"].items()}
        return Shape(record["kind"], record["outputs"], record["inputs"], geometry)

    def masked(self, weight: Tensor, bias: Tensor | None, mask: Tensor) -> MaskedLayer:
        """Make the masked layer of this shape around these tensors."""
        if self.kind == "MaskedLinear":
            return MaskedLinear.from_arrays(weight, bias, mask)
        like = _PLAIN[self.kind](1, 1, **self.geometry, device="meta")
        return cast(MaskedLayer, _MASKED[self.kind].from_arrays(like, weight, bias, mask))

    def plain(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """Make the ordinary layer of this shape around these tensors."""
        size = {} if self.kind == "MaskedLinear" else self.geometry
        layer = _PLAIN[self.kind](
            self.inputs, self.outputs, **size, bias=bias is not None, device="meta", dtype=weight.dtype
        )
        layer.weight = nn.Parameter(weight)
        layer.bias = None if bias is None else nn.Parameter(bias)
        return cast(nn.Module, layer)


_MASKED: dict[str, Any] = {masked.__name__: masked for masked in MASKED}
_PLAIN: dict[str, Any] = {masked.__name__: plain for masked, plain in MASKED.items()}


class PackedLayer(HasMasks):
    """What stands for a masked layer and stores (nearly) only its free weights.

    Attributes
    ----------
    shape : Shape
        Of the masked layer.
    weight : Tensor
        As the layer applies it, so that ``F.linear(x, layer.weight, layer.bias)``, or the convolution, is
        what the layer computes. All formats but ``"dense"`` make it anew each time, with gradients for
        what they store: changing it in place changes nothing.
    bias : Parameter or None
        One entry for each output, in the order of the outputs.
    """

    format: ClassVar[str]

    if TYPE_CHECKING:
        bias: nn.Parameter | None

        @property
        def weight(self) -> Tensor:  # noqa: D102
            ...

    def __init__(self, shape: Shape, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = shape
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        if shape.kind == "MaskedLinear":
            self.out_features, self.in_features = shape.outputs, shape.inputs
        else:
            self.out_channels, self.in_channels = shape.outputs, shape.inputs
            self.groups = 1
            for name, value in shape.geometry.items():
                setattr(self, name, value)
            # Padding that is no zeros is put around the input first, last axis first.
            plain = _PLAIN[shape.kind](1, 1, **shape.geometry, device="meta")
            self._reversed_padding_repeated_twice = plain._reversed_padding_repeated_twice

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, but none in the place of a weight that is made from others."""
        if name == "weight" and isinstance(getattr(type(self), name, None), property):
            raise AttributeError(
                f"the weight of a {type(self).__name__} is made from what it stores and cannot be set; set "
                "it in what fpe.unpack returns, and pack that again."
            )
        super().register_parameter(name, param)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a weight as the masked layer does, whatever part of the whole it is."""
        if self.shape.kind == "MaskedLinear":
            return F.linear(x, weight, bias)
        return cast(Tensor, _PLAIN[self.shape.kind]._conv_forward(self, x, weight, bias))

    def wide(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return weight, mask and bias of the masked layer, its neurons in their order there."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs to make a layer that a state dict fits, fit for JSON."""
        return {"format": self.format, "shape": self.shape.to_dict(), "bias": self.bias is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        own = [*self.parameters(recurse=False), *self.buffers(recurse=False)]
        return sum(tensor.nbytes for tensor in own)

    def extra_repr(self) -> str:
        """Name the format and the size."""
        return f"{self.shape.inputs} → {self.shape.outputs}, {self.format}, {self.nbytes:,} bytes"


class HoldHoles(torch.autograd.Function):
    """Identity forward; backward no gradient where a weight is held at zero (see `fpe.packing.holes`)."""

    @staticmethod
    def forward(weight: Tensor, holes: Tensor) -> Tensor:
        """Return the weight."""
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep where the holes are."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient without the holes."""
        (holes,) = ctx.saved_tensors
        return without_holes(grad, holes), None
