"""Packed layers, which are ordinary modules in place of masked ones: the common part and the dense format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe.expansion.steps import Weights, mask
from fpe.graph.layers import native, oriented_weight
from fpe.graph.stacked import MaskedStackedLinear, StackedLinear
from fpe.graph.turned import TURNED, MaskedTransposed
from fpe.masked import MASKED, HasMasks, MaskedLayer, MaskedLinear
from fpe.packing.bits import MaskStored, pack_zeros, unpack_zeros

#: The masked layers, and the plain layer that each replaces.
KINDS: dict[type[MaskedLayer], Any] = {**MASKED, **TURNED, MaskedStackedLinear: StackedLinear}  # type: ignore[dict-item]
_PLAIN: dict[str, Any] = {masked.__name__: plain for masked, plain in KINDS.items()}
#: Attributes of a convolution that its packed form keeps.
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


def _attributes(kind: type[MaskedLayer]) -> tuple[str, ...]:
    """Return the attributes of a kind of masked layer that its packed form keeps."""
    if issubclass(kind, MaskedStackedLinear):
        return ("transposed", "interleaved")
    if issubclass(kind, MaskedTransposed):
        return (*GEOMETRY, "output_padding")
    return () if issubclass(kind, MaskedLinear) else (*GEOMETRY, "groups")


@dataclass(frozen=True)
class Shape:
    """The shape and the options of a masked layer, without its tensors."""

    #: ``"MaskedLinear"`` or the name of another kind of masked layer.
    kind: str
    outputs: int
    #: Of one group of channels.
    inputs: int
    #: Stride, padding and so on of a convolution; of stacked experts, their number and how they are stored.
    geometry: dict[str, Any]

    @classmethod
    def of(cls, layer: nn.Module) -> Shape:
        """Return the shape of a masked layer, or that of a plain layer's masked form."""
        kind = next(m for m, plain in KINDS.items() if isinstance(layer, m) or type(layer) is plain)
        geometry = {name: getattr(layer, name) for name in _attributes(kind)}
        outputs, inputs, *taps = oriented_weight(layer).shape
        if issubclass(kind, MaskedStackedLinear):
            geometry["experts"] = taps[0]
        return cls(kind.__name__, outputs, inputs, geometry)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Shape:
        """Return the shape that was stored as ``vars(shape)`` in JSON."""
        geometry = {k: tuple(v) if isinstance(v, list) else v for k, v in record["geometry"].items()}
        return cls(record["kind"], record["outputs"], record["inputs"], geometry)

    @property
    def experts(self) -> int:
        """The number of stacked experts; 0 for other layers."""
        return cast(int, self.geometry.get("experts", 0))

    @property
    def taps(self) -> tuple[int, ...]:
        """The size of the kernel, or the number of stacked experts; empty for a linear layer."""
        return (self.experts,) if self.experts else tuple(self.geometry.get("kernel_size", ()))

    @property
    def groups(self) -> int:
        """The number of groups in which channels are convolved apart."""
        return cast(int, self.geometry.get("groups", 1))

    @property
    def weight(self) -> torch.Size:
        """The shape of the weight: (outputs, inputs, *taps)."""
        return torch.Size((self.outputs, self.inputs, *self.taps))

    def empty(self) -> Any:
        """Make the ordinary layer, without bias, on the meta device."""
        if self.experts:
            layer = StackedLinear(torch.empty(0, device="meta"), None)
            layer.transposed, layer.interleaved = self.geometry["transposed"], self.geometry["interleaved"]
            layer.weight = nn.Parameter(layer.native(torch.empty(self.weight, device="meta")))
            return layer
        sizes = self.inputs * self.groups, self.outputs
        return _PLAIN[self.kind](*sizes, **self.geometry, bias=False, device="meta")

    def masked(self, weights: Weights) -> MaskedLayer:
        """Make the masked layer around these tensors."""
        return mask(self.empty(), weights)

    def plain(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """Make the ordinary layer around these tensors."""
        layer = self.empty()
        layer.weight = nn.Parameter(native(layer, weight).contiguous())
        layer.bias = None if bias is None else nn.Parameter(native(layer, bias).contiguous())
        return cast(nn.Module, layer)


class PackedLayer(HasMasks):
    """A layer that computes what a masked one does and stores (nearly) only its free weights.

    Attributes
    ----------
    shape : Shape
        Of the masked layer.
    weight : Tensor
        As the layer applies it, so that ``F.linear(x, layer.weight, layer.bias)``, or the convolution, is
        what the layer computes. All formats but ``"dense"`` make it anew each time, with gradients for
        what they store: changing it in place changes nothing.
    bias : Parameter or None
        One entry for each output, in the order of the outputs; of stacked experts (experts, outputs).
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
        if not shape.taps:
            self.out_features, self.in_features = shape.outputs, shape.inputs
        elif not shape.experts:
            self.out_channels, self.in_channels = shape.outputs, shape.inputs * shape.groups
            for name, value in {"groups": 1, **shape.geometry}.items():
                setattr(self, name, value)
            padding = shape.empty()._reversed_padding_repeated_twice  # for padding other than by zeros
            self._reversed_padding_repeated_twice = padding

    @classmethod
    def from_config(cls, config: dict[str, Any], like: Tensor) -> PackedLayer:
        """Make a layer with uninitialized weights, of the type and on the device of `like`."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Return what `from_config` needs to make a layer that a state dict fits, as JSON values."""
        return {"format": self.format, "shape": dict(vars(self.shape)), "bias": self.bias is not None}

    def to_masked(self) -> Weights:
        """Return the tensors of the masked layer, its neurons in their order there."""
        raise NotImplementedError

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, unless it would replace a weight that is made from others."""
        if name == "weight" and isinstance(getattr(type(self), name, None), property):
            raise AttributeError(
                f"the weight of a {type(self).__name__} is made from what it stores and cannot be set; set "
                "it in what fpe.unpack returns, and pack that again."
            )
        super().register_parameter(name, param)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the whole weight, or that of some neurons and inputs, as the masked layer does."""
        if not self.shape.taps:
            return F.linear(x, weight, bias)
        return cast(Tensor, _PLAIN[self.shape.kind]._conv_forward(self, x, weight, bias))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return bytes_of(self)

    def extra_repr(self) -> str:
        """Name the format and the size."""
        return f"{self.shape.inputs} → {self.shape.outputs}, {self.format}, {self.nbytes:,} bytes"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        old = prefix + "holes"  # the name of ``zero_positions`` in files of format 3
        for key in [key for key in state_dict if key.startswith(old)]:
            state_dict[prefix + "zero_positions" + key.removeprefix(old)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class DenseLayer(PackedLayer):
    """A layer with the masked one's weight, zeros included, for a mask without structure."""

    format = "dense"

    weight: nn.Parameter
    #: Buffer: where the weight is masked, as `fpe.packing.bits.pack_zeros` stores it.
    zero_positions: Tensor

    def __init__(self, shape: Shape, weight: Tensor, zero_positions: Tensor, bias: Tensor | None) -> None:
        super().__init__(shape, bias)
        self.weight = nn.Parameter(weight)
        self.register_buffer("zero_positions", zero_positions)

    @classmethod
    def of(cls, shape: Shape, weights: Weights) -> DenseLayer:
        """Copy the tensors of a masked layer that has zeros."""
        zero_positions = cast(Tensor, pack_zeros(weights.mask != 0))
        return cls(shape, weights.weight.clone(), zero_positions, weights.bias)

    @classmethod
    def from_config(cls, config: dict[str, Any], like: Tensor) -> DenseLayer:  # noqa: D102
        shape = Shape.from_dict(config["shape"])
        positions = empty_buffer(config.get("zero_positions") or config["holes"], like)
        return cls(shape, like.new_empty(shape.weight), positions, empty_bias(config, like))

    def config(self) -> dict[str, Any]:
        """Add type and shape of the zero positions."""
        return {**super().config(), "zero_positions": described(self.zero_positions)}

    def free(self, name: str) -> Tensor | None:
        """Return the mask of the weight."""
        return unpack_zeros(self.zero_positions, self.weight.shape) if name == "weight" else None

    def to_masked(self) -> Weights:
        """Return the tensors of the masked layer."""
        weight = self.weight.detach()
        bias = None if self.bias is None else self.bias.detach()
        return Weights(weight, bias, unpack_zeros(self.zero_positions, weight.shape).to(weight.dtype))

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        weight: Tensor = self.weight
        if torch.is_grad_enabled():
            weight = MaskStored.apply(weight, self.zero_positions)  # type: ignore[no-untyped-call]
        return self.apply_weight(input, weight, self.bias)


def inputs_of(module: nn.Module) -> int:
    """Return how many inputs, or channels, a layer has, packed or not."""
    return module.shape.inputs if isinstance(module, PackedLayer) else oriented_weight(module).shape[1]


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    total = 0
    for tensor in (*module.parameters(), *module.buffers()):
        flatten = getattr(tensor, "__tensor_flatten__", None)  # of tensors made of others, such as 2:4
        total += sum(getattr(tensor, name).nbytes for name in flatten()[0]) if flatten else tensor.nbytes
    return total


def described(tensor: Tensor) -> list[Any]:
    """Return type and shape of a tensor, as JSON values."""
    return [str(tensor.dtype).removeprefix("torch."), *tensor.shape]


def empty_buffer(description: list[Any], like: Tensor) -> Tensor:
    """Make a tensor of zeros from what `described` returned."""
    kind, *size = description
    return torch.zeros(size, dtype=getattr(torch, kind), device=like.device)


def empty_bias(config: dict[str, Any], like: Tensor) -> Tensor | None:
    """Make the uninitialized bias of a packed layer."""
    shape = Shape.from_dict(config["shape"])
    size = (shape.experts, shape.outputs) if shape.experts else (shape.outputs,)
    return like.new_empty(size) if config["bias"] else None
