"""Layers whose masked weights stay exactly zero, whatever trains them.

The mask acts on the gradient: the forward pass is the plain layer's, and masked entries, zero at
the start, receive a zero gradient. An optimizer that steps by the gradient alone then never moves
them. Being part of the layer's forward, this survives copying, pickling, loading and compiling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer


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


class MaskedLinear(nn.Linear):
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
    weight_mask : Tensor
        A buffer of the weight's shape (out_features, in_features) and type: 1 where the weight is free,
        0 where it is held at zero. All ones at the start.

    Notes
    -----
    Loading a state dict sets the weights that the loaded mask holds back to zero. Optimizers
    that move a weight whose gradient is zero need `hold_masks`.
    """

    weight_mask: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.register_buffer("weight_mask", torch.ones_like(self.weight, requires_grad=False))

    @classmethod
    def from_arrays(cls, weight: Tensor, bias: Tensor | None, mask: Tensor) -> MaskedLinear:
        """Make a layer around these tensors, which it keeps; `weight` must be zero where `mask` is."""
        layer = cls(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype)
        layer.weight = nn.Parameter(weight)
        if bias is not None:
            layer.bias = nn.Parameter(bias)
        layer.weight_mask = mask
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: (…, in_features) to (…, out_features)."""
        weight = _MaskGradient.apply(self.weight, self.weight_mask)  # type: ignore[no-untyped-call]
        return F.linear(input, weight, self.bias)

    @torch.no_grad()
    def project(self) -> None:
        """Set the masked weights to zero, in place."""
        self.weight.mul_(self.weight_mask)

    def extra_repr(self) -> str:
        """Add the density to the layer's printed form."""
        if self.weight_mask.is_meta:
            return super().extra_repr()
        return f"{super().extra_repr()}, density={float(self.weight_mask.float().mean()):.3g}"

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        if self.weight.is_meta or self.weight_mask.is_meta:
            return
        with torch.no_grad():
            if torch.any((self.weight != 0) & (self.weight_mask == 0)):
                if local_metadata.get("assign_to_params_buffers"):
                    # The weight is now the caller's own tensor, which must stay as it is.
                    held = self.weight * self.weight_mask
                    self.weight = nn.Parameter(held, self.weight.requires_grad)
                else:
                    self.project()


def hold_masks(optimizer: Optimizer, model: nn.Module) -> torch.utils.hooks.RemovableHandle:
    """Set masked weights back to zero after each step of `optimizer`.

    Needed only for what moves a weight whose gradient is zero: Muon, noise added to weights, an
    average of other weights. For SGD, Adam and their kin the layers hold by themselves.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Gets a hook after its step; otherwise unchanged.
    model : nn.Module
        The expanded model.

    Returns
    -------
    RemovableHandle
        Its ``remove()`` ends the service.
    """
    layers = [m for m in model.modules() if isinstance(m, MaskedLinear)]

    def project(*_: Any) -> None:
        for layer in layers:
            layer.project()

    return optimizer.register_step_post_hook(project)
