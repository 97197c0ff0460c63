"""Packed models with linear layers in int8, through torchao: for deployment, a quarter of the bytes again."""

from __future__ import annotations

import copy
import importlib.util
import logging

import torch
from torch import nn

from fpe._util.modules import check_module, uncompiled
from fpe._util.terminal import silenced
from fpe.errors import ArgumentError, ModelError
from fpe.expansion.index_maps import copy_maps_, memo_with
from fpe.expansion.steps import Weights
from fpe.masked import MaskedLayer
from fpe.packing.blocks import Block, BlockLayer
from fpe.packing.layers import PackedLayer, Shape
from fpe.packing.separate import SeparateBlocks
from fpe.packing.summary import packed_names


@torch.no_grad()
def quantize(packed: nn.Module, *, activations: bool = False) -> nn.Module:
    """Return a copy whose linear layers have int8 weights, with one scale for each neuron; for inference.

    Blocks are quantized without the zeros between them; a layer in any other format becomes one block, zeros
    included. Zeros stay exactly zero. Convolutions keep their type.

    Parameters
    ----------
    packed : nn.Module
        What `fpe.pack` returned. It is not changed.
    activations : bool, default False
        Also round the inputs of the layers to int8, by the largest of each sample, and multiply integers:
        faster once compiled, and a little less accurate.

    Returns
    -------
    nn.Module
        The quantized model. `fpe.export` writes it (with `activations`, as .pt2 only) and `fpe.unpack` gives
        the masked model of the rounded weights; `fpe.save` refuses it: save the packed model.

    Raises
    ------
    ArgumentError
        If torchao is missing.
    ModelError
        If layers are masked, not packed, or if there is no linear layer.
    """
    check_module(packed, "packed", "a model that fpe.pack returned")
    if importlib.util.find_spec("torchao") is None:
        raise ArgumentError("int8 needs torchao: pip install 'fixed-parameter-expansion[int8]'")
    packed = uncompiled(packed)
    masked = [name for name, module in packed.named_modules() if isinstance(module, MaskedLayer)]
    if masked:
        raise ModelError(f"layer {masked[0]!r} is masked; pack first: fpe.quantize(fpe.pack(wide)).")
    known = packed_names(packed)
    replaced: dict[str, nn.Module] = {}
    for name, module in packed.named_modules():
        is_packed_linear = isinstance(module, PackedLayer) and not module.shape.taps
        if is_packed_linear or (name in known and type(module) is nn.Linear):
            replaced[name] = copy_maps_(_separated(module), module)
    copied = copy.deepcopy(packed, memo_with(packed, replaced))
    if not any(isinstance(module, nn.Linear) for module in copied.modules()):
        raise ModelError("there is no linear layer, and convolutions are not quantized; export it as it is.")
    with silenced("torchao", above=logging.WARNING):  # it reports GPU libraries that this machine lacks
        from torchao import quantization as q

        config = q.Int8DynamicActivationInt8WeightConfig if activations else q.Int8WeightOnlyConfig
        q.quantize_(copied, config())
    return copied.requires_grad_(False).eval()


def _separated(layer: nn.Module) -> SeparateBlocks:
    if not isinstance(layer, BlockLayer):
        weights = layer.to_masked() if isinstance(layer, PackedLayer) else Weights.of(layer)
        everything = Block(*(torch.arange(n, device=weights.weight.device) for n in weights.weight.shape))
        shape = layer.shape if isinstance(layer, PackedLayer) else Shape.of(layer)
        layer = BlockLayer.of(shape, weights, [everything], ordered=True)
    return SeparateBlocks(layer)
