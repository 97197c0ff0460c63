"""Packed models whose layers of blocks are one Triton kernel each, for inference on a GPU."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fpe._util.modules import unwrapped
from fpe.errors import ArgumentError, ModelError
from fpe.expansion.index_maps import copy_maps_, memo_with
from fpe.packing.blocks import BlockLayer
from fpe.packing.kernel import untracked
from fpe.packing.pack import MODULE_HOOKS
from fpe.packing.verify import check_outputs

#: Types of weights that the kernel multiplies.
TYPES = (torch.float16, torch.bfloat16, torch.float32)


class FusedBlocks(BlockLayer):
    """A linear layer of blocks: (…, in_features) to (…, out_features), with the activation after it.

    Its parameters are the block layer's. One kernel for each of them picks the inputs, multiplies, and adds
    the bias; where gradients are recorded, or the call is traced or compiled, PyTorch computes the same.
    """

    format = "fused blocks"
    activation: nn.Module | None

    @classmethod
    def around(cls, layer: BlockLayer, activation: nn.Module | None) -> FusedBlocks:
        """Copy a layer, and let the copy apply the activation too."""
        made = cls.__new__(cls)
        vars(made).update(copy.deepcopy(vars(layer)))
        made.activation = copy.deepcopy(activation)
        return made.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer and the activation."""
        if self._fits(input):
            return self._fused(input)
        y = super().forward(input)
        return y if self.activation is None else self.activation(y)

    def _fits(self, x: Tensor) -> bool:
        weight = self.get_parameter("weight_0")
        same = x.dtype == weight.dtype and x.device == weight.device and x.dtype in TYPES
        fits = same and x.dim() > 0 and x.shape[-1] == self.in_features
        return fits and (x.is_cuda or interpreted()) and untracked(x, *self.parameters())

    def _fused(self, input: Tensor) -> Tensor:
        from fpe.packing.triton_kernel import block_products_

        x = input.reshape(-1, self.in_features)
        x = x if x.stride(1) == 1 else x.contiguous()
        y, bias, place = x.new_empty(len(x), self.out_features), self.bias_by_block(), 0
        complete = not any(batch.first for batch in self.batches)  # else only the last call has the sums
        name = activation_name(self.activation) if complete else ""
        for number, batch in enumerate(self.batches):
            blocks, neurons = len(batch.blocks), len(batch.blocks) * batch.neurons
            block_products_(
                y.narrow(1, batch.output, neurons),
                x,
                self.get_parameter(f"weight_{number}"),
                None if self.columns is None else self.columns.narrow(0, place, blocks * batch.inputs),
                None if bias is None or batch.first else bias.narrow(0, batch.output, neurons),
                add=batch.first > 0,
                activation=name,
            )
            place += blocks * batch.inputs
        y = self.restored(y if name or self.activation is None else self.activation(y))
        return y.view(*input.shape[:-1], self.out_features)

    def _refuse(self) -> NoReturn:
        raise ModelError("fused layers are for inference only; save or unpack what fpe.pack returned.")

    def config(self) -> NoReturn:
        """Refuse to be saved."""
        self._refuse()

    def to_masked(self) -> NoReturn:
        """Refuse to be unpacked."""
        self._refuse()


class InFusedBlocks(nn.Module):
    """What stands for an activation that the layer before it applies: it returns its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        return input


def interpreted() -> bool:
    """Tell whether Triton's interpreter runs kernels, on a CPU too: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def activation_name(module: nn.Module | None) -> str:
    """Return the kernel's name of an activation, empty for none or another module."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return "relu" if type(module) is nn.ReLU else "silu" if type(module) is nn.SiLU else ""


@torch.no_grad()
def fuse(packed: nn.Module, *, example_inputs: Any) -> nn.Module:
    """Return a copy whose linear layers of blocks are computed by one Triton kernel each, on a GPU.

    The kernel picks the inputs, multiplies, adds the bias, and applies a ReLU, GELU or SiLU that follows the
    layer in an ``nn.Sequential``. For inference; where gradients are recorded, and under ``torch.compile``
    and ``torch.export``, PyTorch computes the same.

    Parameters
    ----------
    packed : nn.Module
        What `fpe.pack` returned, on a GPU, in float16, bfloat16 or float32. It is not changed.
    example_inputs : Tensor, tuple or dict
        One batch, as for `fpe.pack`, on that GPU. Outputs of both models are compared on it, in evaluation
        mode.

    Returns
    -------
    nn.Module
        The fused model, in evaluation mode, whose parameters need no gradients. A fused layer's output has
        the activation applied, and the activation's module returns its input. `fpe.save` and `fpe.unpack`
        refuse it: give them `packed`.

    Raises
    ------
    ArgumentError
        If Triton is missing, if the layers are not on a GPU, or if `packed` cannot be run on the batch.
    ModelError
        If no linear layer is packed as blocks in one of these types, or if the outputs differ by more than
        rounding.

    Notes
    -----
    The kernel is compiled when it is first called, for each activation, type and kind of size. Its time was
    not measured on a GPU: compare it with the packed model's there.
    """
    packed = unwrapped(packed)
    if importlib.util.find_spec("triton") is None:
        raise ArgumentError("fused layers need Triton, which torch for CUDA brings along: pip install triton")
    layers = {
        name: layer
        for name, layer in packed.named_modules()
        if type(layer) is BlockLayer
        and not layer.shape.taps
        and layer.get_parameter("weight_0").dtype in TYPES
    }
    if not layers:
        known = ", ".join(str(kind).removeprefix("torch.") for kind in TYPES)
        raise ModelError(
            f"no linear layer of this model is packed as blocks in {known}; see its fpe_packing."
        )
    elsewhere = {str(layer.rows.device) for layer in layers.values() if not layer.rows.is_cuda}
    if elsewhere and not interpreted():
        raise ArgumentError(f"layers are on {', '.join(elsewhere)}; they need a GPU: packed.to('cuda').")
    merged = _activations(packed, layers)
    replaced: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        activation = packed.get_submodule(merged[name]) if name in merged else None
        replaced[name] = copy_maps_(FusedBlocks.around(layer, activation), layer)
    fused = copy.deepcopy(packed, memo_with(packed, replaced)).requires_grad_(False).eval()
    for name in merged.values():
        parent, _, key = name.rpartition(".")
        fused.get_submodule(parent)._modules[key] = InFusedBlocks()
    check_outputs(packed, fused, example_inputs, "fused")
    return fused


def _activations(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the activation after each layer in an ``nn.Sequential``, by name, if the layer can apply it."""
    places = Counter(map(id, dict(model.named_modules(remove_duplicate=False)).values()))
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
            continue
        for (key, layer), (after, activation) in pairwise(module._modules.items()):
            own, other = (f"{name}.{end}".removeprefix(".") for end in (key, after))
            hooked = any(getattr(m, hooks) for m in (layer, activation) for hooks in MODULE_HOOKS)
            if own in layers and places[id(layer)] == 1 and activation_name(activation) and not hooked:
                found[own] = other
    return found
