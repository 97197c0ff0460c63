"""Transposed convolutions, whose weight is (inputs, outputs, *taps), and their masked forms."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from fpe.masked import MaskedLayer

#: What the masked form keeps besides the tensors.
_GEOMETRY = ("kernel_size", "stride", "padding", "output_padding", "dilation", "padding_mode")
_FUNCTIONS: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class MaskedTransposed(MaskedLayer):
    """A transposed convolution whose weight is zero, and stays zero, where its mask is."""

    @classmethod
    def from_arrays(cls, like: nn.Module, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Any:
        """Make a layer like another; `weight` is (outputs, inputs, *taps), and zero where masked."""
        how = {name: getattr(like, name) for name in _GEOMETRY} | {"bias": bias is not None, "device": "meta"}
        layer = cls(weight.shape[1], weight.shape[0], **how, dtype=weight.dtype)
        layer._set(weight.transpose(0, 1).contiguous(), bias, mask.transpose(0, 1).contiguous())
        return layer

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve: (batch, in_channels, *size) to (batch, out_channels, *larger size)."""
        own = cast(nn.ConvTranspose2d, self)
        dims = len(own.kernel_size)
        how: Any = (own.stride, own.padding, own.kernel_size, dims, own.dilation)
        padding = own._output_padding(input, output_size, *how)
        tensors = (input, self._free_weight(), self._free_bias())
        function = _FUNCTIONS[dims]
        return cast(Tensor, function(*tensors, own.stride, own.padding, padding, own.groups, own.dilation))


class MaskedConvTranspose1d(MaskedTransposed, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` whose weight stays zero where its mask is."""


class MaskedConvTranspose2d(MaskedTransposed, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` whose weight stays zero where its mask is."""


class MaskedConvTranspose3d(MaskedTransposed, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` whose weight stays zero where its mask is."""


#: The masked transposed convolutions, and the plain layer that each replaces.
TURNED: dict[type[nn.Module], type[nn.Module]] = {
    MaskedConvTranspose1d: nn.ConvTranspose1d,
    MaskedConvTranspose2d: nn.ConvTranspose2d,
    MaskedConvTranspose3d: nn.ConvTranspose3d,
}
