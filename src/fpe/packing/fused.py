"""Packed models for inference: several layers in a call of C on a CPU, a Triton kernel for each on a GPU."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fpe._util.modules import check_module, unwrapped
from fpe.errors import ArgumentError, ModelError
from fpe.expansion.index_maps import copy_maps_, memo_with
from fpe.expansion.steps import Weights
from fpe.packing.blocks import Block, BlockLayer
from fpe.packing.kernel import (
    available,
    blocks_operator,
    blocks_product,
    blocks_program,
    supported,
    untracked,
)
from fpe.packing.layers import Shape
from fpe.packing.pack import MODULE_HOOKS
from fpe.packing.verify import check_outputs

#: Modules that may stand after a layer in one call of C: all but ReLU return their input in evaluation mode.
BETWEEN = (nn.ReLU, nn.Dropout, nn.Identity)
#: Types of weights that the kernel of a GPU multiplies.
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


class FusedChain(nn.Sequential):
    """Linear layers, of blocks or dense, with a ReLU after each or none, in one call of C on a CPU.

    Some samples go through all layers while they are in a cache. Where gradients are recorded, in other types
    and on other devices, the layers are applied one by one.
    """

    def __init__(self, layers: Sequence[FusedBlocks]) -> None:
        super().__init__(*layers)
        for layer, following in pairwise(layers):
            if layer.restore is not None:  # the next one takes its inputs in the order of the blocks
                order, taken = layer.restore, following.columns
                bias = layer.bias_by_block()
                layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
                following.columns, layer.restore = order if taken is None else order[taken], None
        self.in_features, self.out_features = layers[0].in_features, layers[-1].out_features
        self._widest = max((layer.out_features for layer in layers[:-1]), default=0)
        self.register_buffer("restore", layers[-1].restore, persistent=False)
        self._store(layers)

    def _store(self, layers: Sequence[FusedBlocks]) -> None:
        """Put all weights and biases, and all indices, into one tensor each, so that a call takes few."""
        weights = [layer.get_parameter(name) for layer in layers for name in layer.weight_names]
        biases = [layer.bias_by_block() for layer in layers]
        columns = [layer.columns for layer in layers]
        first = iter(_places([*weights, *biases]))
        places = [[next(first) for _ in layer.weight_names] for layer in layers]
        described = [
            layer.for_c(own, column, bias, layer.activation is not None)
            for layer, own, column, bias in zip(layers, places, _places(columns), first, strict=True)
        ]
        self._groups = sum(len(layer.groups) for layer in described)
        values = torch.cat([own.detach().flatten() for own in (*weights, *biases) if own is not None])
        for weight, place in zip(weights, _places(weights), strict=True):  # not twice in memory
            weight.data = values[place : place + weight.numel()].view_as(weight)
        nothing = torch.empty(0, dtype=torch.int32)
        own = [nothing, *(indices for indices in columns if indices is not None)]
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("columns", torch.cat(own), persistent=False)
        self.register_buffer("program", torch.tensor(blocks_program(described)), persistent=False)

    def _load_from_state_dict(self, *_: Any) -> NoReturn:
        raise ModelError("fused layers load no state dict; load it into the packed model, and fuse that.")

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layers."""
        held = self._buffers  # `__getattr__` takes as long as a small product
        values: Any = held["values"]
        if not supported(input, values, self.in_features):
            for layer in self:
                input = layer(input)
            return input
        x = (input if input.dim() == 2 else input.reshape(-1, self.in_features)).contiguous()
        product: Any = blocks_operator if torch.compiler.is_compiling() else blocks_product
        how = held["columns"], held["program"], self._groups, self.out_features, self._widest
        y: Tensor = product(x, values, *how)
        y = y if held["restore"] is None else y.index_select(1, held["restore"])
        return y if input.dim() == 2 else y.view(*input.shape[:-1], self.out_features)


def _places(tensors: Sequence[Tensor | None]) -> list[int]:
    """Return where each begins if they are stored one after another; −1 for None."""
    sizes = [0 if tensor is None else tensor.numel() for tensor in tensors]
    ends = accumulate(sizes)
    return [-1 if own is None else end - size for own, end, size in zip(tensors, ends, sizes, strict=True)]


class InFusedBlocks(nn.Module):
    """What stands for a module that the one before it applies: it returns its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        return input


def interpreted() -> bool:
    """Tell whether Triton's interpreter runs kernels, on a CPU too: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


def activation_name(module: nn.Module | None) -> str:
    """Return the kernel's name of an activation, empty for none or another module."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return "relu" if type(module) is nn.ReLU else "silu" if type(module) is nn.SiLU else ""


@torch.no_grad()
def fuse(packed: nn.Module, *, example_inputs: Any) -> nn.Module:
    """Return a copy for inference, in which packed layers take fewer calls.

    On a CPU, each linear layer of blocks is one call of C, also under ``torch.compile``, together with the
    linear layers and ReLUs beside it in an ``nn.Sequential``. On a GPU, it is one Triton kernel, together
    with a ReLU, GELU or SiLU after it. Where gradients are recorded, PyTorch computes the same.

    Parameters
    ----------
    packed : nn.Module
        What `fpe.pack` returned: in float32 on a CPU; in float16, bfloat16 or float32 on a GPU. It is not
        changed.
    example_inputs : Tensor, tuple or dict
        One batch, as for `fpe.pack`, on that device. Outputs of both models are compared on it, in evaluation
        mode.

    Returns
    -------
    nn.Module
        The fused model, in evaluation mode, whose parameters need no gradients. The first of some fused
        modules returns what the last one returned, and the others return their input. `fpe.save` and
        `fpe.unpack` refuse it: give them `packed`.

    Raises
    ------
    ArgumentError
        If there is no C compiler, or no Triton on a GPU, or if `packed` cannot be run on the batch.
    ModelError
        If there is nothing to fuse, or if the outputs differ by more than rounding.

    Notes
    -----
    C is compiled once and kept in the user's cache. Triton's kernel is compiled when it is first called, for
    each activation, type and kind of size; its time was not measured on a GPU: compare it with the packed
    model's there.
    """
    check_module(packed, "packed", "a model that fpe.pack returned")
    packed = unwrapped(packed)
    layers = {
        name: layer
        for name, layer in packed.named_modules()
        if type(layer) is BlockLayer and not layer.shape.taps
    }
    on_gpu = interpreted() or any(layer.rows.is_cuda for layer in layers.values())
    replaced, merged = _for_gpu(packed, layers) if on_gpu else _for_cpu(packed)
    fused = copy.deepcopy(packed, memo_with(packed, replaced)).requires_grad_(False).eval()
    for name in merged:
        parent, _, key = name.rpartition(".")
        fused.get_submodule(parent)._modules[key] = InFusedBlocks()
    check_outputs(packed, fused, example_inputs, "fused")
    return fused


def _for_gpu(
    packed: nn.Module, layers: Mapping[str, BlockLayer]
) -> tuple[dict[str, nn.Module], Collection[str]]:
    """Return what stands for modules of a model on a GPU, and the modules that are applied by others."""
    if importlib.util.find_spec("triton") is None:
        raise ArgumentError(
            "on a GPU this needs Triton, which torch for CUDA brings along: pip install triton"
        )
    layers = {n: layer for n, layer in layers.items() if layer.get_parameter("weight_0").dtype in TYPES}
    if not layers:
        known = ", ".join(str(kind).removeprefix("torch.") for kind in TYPES)
        raise ModelError(
            f"no linear layer of this model is packed as blocks in {known}; see its fpe_packing."
        )
    elsewhere = {str(layer.rows.device) for layer in layers.values() if not layer.rows.is_cuda}
    if elsewhere and not interpreted():
        raise ArgumentError(f"layers are on {', '.join(elsewhere)}, others on a GPU; move all to one device.")
    merged = _activations(packed, layers)
    replaced: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        activation = packed.get_submodule(merged[name]) if name in merged else None
        replaced[name] = copy_maps_(FusedBlocks.around(layer, activation), layer)
    return replaced, merged.values()


def _for_cpu(packed: nn.Module) -> tuple[dict[str, nn.Module], Collection[str]]:
    """Return the same for a model on a CPU."""
    if not available():
        raise ArgumentError(
            "on a CPU this needs a C compiler; install gcc, or use the packed model as it is."
        )
    places = Counter(map(id, dict(packed.named_modules(remove_duplicate=False)).values()))
    replaced: dict[str, nn.Module] = {}
    merged: list[str] = []
    for name, module in packed.named_modules():
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            for run in _runs(module, places):
                first, *others = [f"{name}.{key}".removeprefix(".") for key in run]
                replaced[first] = chain_of([module._modules[key] for key in run])
                merged += others
    for name, module in packed.named_modules():
        if type(module) is BlockLayer and name not in {*replaced, *merged} and _is_layer(module):
            replaced[name] = chain_of([module])
    if not replaced:
        raise ModelError(
            "there is nothing to fuse: no linear layer of this model is packed as blocks in float32; see its "
            "fpe_packing."
        )
    return replaced, merged


def _runs(module: nn.Sequential, places: Mapping[int, int]) -> Iterator[list[str]]:
    """Yield the keys of modules that one call of C can apply; at least one is a layer of blocks."""
    run: list[str] = []
    for key, own in [*module._modules.items(), ("", None)]:
        between = bool(run) and type(own) in BETWEEN and not _hooked(own)
        if between or (_is_layer(own) and places[id(own)] == 1):
            run.append(key)
        else:
            if len(run) > 1 and any(type(module._modules[name]) is BlockLayer for name in run):
                yield run
            run = []


def _hooked(module: nn.Module | None) -> bool:
    return any(getattr(module, hooks) for hooks in MODULE_HOOKS)


def _is_layer(module: nn.Module | None) -> bool:
    weights: list[Tensor]
    if type(module) is BlockLayer and not module.shape.taps:
        weights = [module.get_parameter(name) for name in module.weight_names]
    elif type(module) is nn.Linear:
        weights = [module.weight]
    else:
        return False
    return not _hooked(module) and all(weight.is_cpu and weight.dtype == torch.float32 for weight in weights)


def chain_of(modules: Iterable[nn.Module | None]) -> FusedChain:
    """Copy linear layers, of blocks or dense, into one that applies them and the ReLUs after each."""
    layers: list[FusedBlocks] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            layers.append(FusedBlocks.around(_one_block(module), None))
        elif isinstance(module, BlockLayer):
            layers.append(FusedBlocks.around(module, None))
            columns = layers[-1].columns
            layers[-1].columns = None if columns is None else columns.to(torch.int32)
        elif isinstance(module, nn.ReLU):
            layers[-1].activation = nn.ReLU()
        elif type(module) not in BETWEEN:
            raise ModelError(f"{type(module).__name__} cannot be fused.")
    return FusedChain(layers)


def _one_block(linear: nn.Linear) -> BlockLayer:
    weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
    whole = Block(*map(torch.arange, weight.shape))
    return BlockLayer.of(Shape.of(linear), Weights(weight, bias, torch.ones_like(weight)), [whole], True)


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
