"""Layers whose masked weights stay exactly zero, whatever trains them.

The mask acts on the gradient: the forward pass is the plain layer's, and masked entries, zero at
the start, receive a zero gradient. An optimizer that steps by the gradient alone then never moves
them. Being part of the layer's forward, this survives copying, pickling, loading and compiling.
A weight that is computed or handed in from elsewhere is multiplied by the mask instead.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _MaskGradient(torch.autograd.Function):
    """Identity forward; the gradient times the mask backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad * mask, None


class _ShowGradient(torch.autograd.Function):
    """As `_MaskGradient`, with the whole gradient for a probe."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, probe: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        (mask,) = ctx.saved_tensors
        return grad * mask, None, grad


#: The buffer of a masked layer that holds its mask: a name that neither torch nor users take.
MASK = "fpe_mask"
#: What the buffer was called in files of earlier versions.
_OLD_MASK = "weight_mask"


class HasMasks(nn.Module):
    """A layer that holds some of the entries of its parameters at zero."""

    def free(self, name: str) -> Tensor | None:
        """Return a mask over the parameter `name`, not 0 where an entry is free; None if all are."""
        return None

    @torch.no_grad()
    def project(self) -> None:
        """Set the held entries to exactly zero, in place, whatever they hold: NaN too."""
        for name, parameter in self.named_parameters(recurse=False):
            mask = self.free(name)
            if mask is not None:
                parameter.masked_fill_(placed_like(mask, parameter) == 0, 0)


class MaskedLayer(HasMasks):
    """What the masked layers have in common: a weight that is zero, and stays zero, where its mask is."""

    if TYPE_CHECKING:
        weight: Any
        bias: Any
        fpe_mask: Tensor

    #: A leaf of the weight's shape, which plays no part but that its ``grad`` gathers, over any number of
    #: backward passes, the gradient that the weight would have without its mask. Set by a rewirer, for the
    #: steps in which it needs that; otherwise nothing is spent on it.
    _probe: Tensor | None = None

    def _start_free(self) -> None:
        self.register_buffer(MASK, torch.ones_like(self.weight, requires_grad=False))

    def _free_weight(self) -> Tensor:
        """Return the weight, through which no gradient reaches a masked entry."""
        weight = self.weight
        if not isinstance(weight, nn.Parameter):
            # Given by torch.func.functional_call, or computed by a parametrization or by torch's pruning:
            # nothing says that it is zero where the mask is. The product has all derivatives, forward too.
            weight = weight * self.fpe_mask
            if self._probe is None:
                return cast(Tensor, weight)
        if self._probe is not None:
            shown = _ShowGradient.apply(weight, self.fpe_mask, self._probe)  # type: ignore[no-untyped-call]
            return cast(Tensor, shown)
        return cast(Tensor, _MaskGradient.apply(weight, self.fpe_mask))  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the probe out: a copy is not what a rewirer watches."""
        return {name: value for name, value in vars(self).items() if name != "_probe"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a layer pickled by an earlier version, whose mask had another name."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if MASK not in self._buffers and _OLD_MASK in self._buffers:
            self._buffers[MASK] = self._buffers.pop(_OLD_MASK)

    def _keep(self, weight: Tensor, bias: Tensor | None, mask: Tensor) -> None:
        self.weight = nn.Parameter(weight)
        if bias is not None:
            self.bias = nn.Parameter(bias)
        self.fpe_mask = mask

    def free(self, name: str) -> Tensor | None:
        """Return the mask of the weight, also where torch's pruning keeps it under another name."""
        return self.fpe_mask if name in ("weight", "weight_orig") else None

    def extra_repr(self) -> str:
        """Add the density to the layer's printed form."""
        if self.fpe_mask.is_meta:
            return super().extra_repr()
        return f"{super().extra_repr()}, density={float(self.fpe_mask.float().mean()):.3g}"

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        if prefix + MASK not in state_dict and prefix + _OLD_MASK in state_dict:
            state_dict[prefix + MASK] = state_dict.pop(prefix + _OLD_MASK)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        held = {name: p for name, p in self.named_parameters(recurse=False) if self.free(name) is not None}
        past = sum(
            0 if p.is_meta or self.fpe_mask.is_meta else past_mask(p, self.fpe_mask) for p in held.values()
        )
        if not past:
            return
        if local_metadata.get("assign_to_params_buffers"):
            # The weight is now the caller's own tensor, which must stay as it is.
            for name, parameter in held.items():
                setattr(self, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
        self.project()
        warnings.warn(
            f"the loaded state has {past:,} weights in {prefix.rstrip('.') or 'a layer'!r} that are not zero "
            "where the loaded mask holds zero; they have been set to 0, so the outputs differ from those of "
            "the model that was saved. Call fpe.project_(model) before saving.",
            stacklevel=2,
        )


def mask_names(model: nn.Module) -> set[str]:
    """Return the names that the masks of a model's masked layers have in its state dict."""
    return {
        f"{name}.{MASK}" if name else MASK
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, MaskedLayer)
    }


def named_as_now(names: set[str], masks: set[str]) -> dict[str, str]:
    """Return which names of a state dict are those of masks in earlier versions, and the present ones."""
    renamed = {name.removesuffix(MASK) + _OLD_MASK: name for name in masks if name not in names}
    return {old: new for old, new in renamed.items() if old in names}


def past_mask(weight: Tensor, mask: Tensor) -> int:
    """Count the entries that are not zero where their mask is.

    Of a weight that is sharded over processes, those of this process's piece.
    """
    mask = placed_like(mask, weight)
    if hasattr(weight, "qdata"):  # rounded by torchao, whose tensors cannot be compared
        weight = cast(Any, weight).dequantize()
    weight, mask = (
        cast(Any, t).to_local() if type(t).__name__ == "DTensor" else t for t in (weight.data, mask)
    )
    return int(((mask == 0) & (weight != 0)).sum())


def placed_like(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a mask where its weight is: in pieces, if the weight is sharded over processes."""
    if type(weight.data).__name__ != "DTensor" or type(mask).__name__ == "DTensor":
        return mask
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharded = cast(DTensor, weight.data)
    return distribute_tensor(mask, sharded.device_mesh, sharded.placements, src_data_rank=None)


class MaskedLinear(MaskedLayer, nn.Linear):
    """A linear layer whose weight is zero, and stays zero, where its mask is.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the input and of the output.
    bias : bool, default True
        Whether there is a bias; it is never masked.
    device, dtype
        As for ``nn.Linear``.

    Attributes
    ----------
    fpe_mask : Tensor
        A buffer of the weight's shape (out_features, in_features) and type: 1 where the weight is free,
        0 where it is held at zero. All ones at the start.

    Notes
    -----
    Loading a state dict sets the weights that the loaded mask holds back to zero, with a warning. Optimizers
    that move a weight whose gradient is zero need `fpe.enforce_masks_`.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._start_free()

    @classmethod
    def from_arrays(cls, weight: Tensor, bias: Tensor | None, mask: Tensor) -> MaskedLinear:
        """Make a layer around these tensors, which it keeps; `weight` must be zero where `mask` is."""
        layer = cls(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype)
        layer._keep(weight, bias, mask)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: (…, in_features) to (…, out_features)."""
        return F.linear(input, self._free_weight(), self.bias)


class _MaskedConvolution(MaskedLayer):
    """The part of the masked convolutions that is the same for one, two and three dimensions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start_free()

    @classmethod
    def from_arrays(
        cls, like: nn.modules.conv._ConvNd, weight: Tensor, bias: Tensor | None, mask: Tensor
    ) -> Any:
        """Make a layer around these tensors, which it keeps, with stride, padding and dilation of `like`.

        `weight`, of shape (out_channels, in_channels, *kernel), must be zero where `mask` is.
        """
        layer = cls(
            weight.shape[1],
            weight.shape[0],
            like.kernel_size,
            like.stride,
            like.padding,
            like.dilation,
            bias=bias is not None,
            padding_mode=like.padding_mode,
            device="meta",
            dtype=weight.dtype,
        )
        layer._keep(weight, bias, mask)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Convolve: (batch, in_channels, *size) to (batch, out_channels, *size)."""
        return cast(Tensor, self._conv_forward(input, self._free_weight(), self.bias))  # type: ignore[operator]


class MaskedConv1d(_MaskedConvolution, nn.Conv1d):
    """``nn.Conv1d`` whose weight stays zero where its mask is; as `MaskedLinear`."""


class MaskedConv2d(_MaskedConvolution, nn.Conv2d):
    """``nn.Conv2d`` whose weight stays zero where its mask is; as `MaskedLinear`."""


class MaskedConv3d(_MaskedConvolution, nn.Conv3d):
    """``nn.Conv3d`` whose weight stays zero where its mask is; as `MaskedLinear`."""


#: The masked layers, and the plain layer that each stands for.
MASKED: dict[type[MaskedLayer], type[nn.Module]] = {
    MaskedLinear: nn.Linear,
    MaskedConv1d: nn.Conv1d,
    MaskedConv2d: nn.Conv2d,
    MaskedConv3d: nn.Conv3d,
}
