"""Packed models with linear layers in int8, through torchao: for deployment, a quarter of the bytes again."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe._util.terminal import silenced
from fpe.errors import ArgumentError, ModelError
from fpe.masked import HasMasks, MaskedLayer
from fpe.packing.blocks import Block, BlockLayer, BlockLinear
from fpe.packing.choice import block_of
from fpe.packing.holes import free_of, pack_holes
from fpe.packing.layers import PackedLayer, Shape
from fpe.packing.slabs import slabs_of
from fpe.packing.summary import packed_names


@torch.no_grad()
def quantize(packed: nn.Module, activations: bool = False) -> nn.Module:
    """Return a copy whose linear layers hold int8 weights, one scale for each neuron; for inference.

    Blocks are quantised as they are, without the zeros between them; a layer in any other format becomes
    one block, zeros and all. Zeros stay exactly zero. Convolutions are left in their type.

    Parameters
    ----------
    packed : nn.Module
        What `fpe.pack` returned. It is not changed.
    activations : bool, default False
        Round the inputs of the layers to int8 too, by the largest of each sample, and multiply integers:
        faster once compiled, and a little less accurate.

    Returns
    -------
    nn.Module
        The quantised model. `fpe.export` writes it (with `activations`, as .pt2 only) and `fpe.unpack`
        gives the masked model of the rounded weights; `fpe.save` refuses it: save what it was made from.

    Raises
    ------
    ArgumentError
        If torchao is missing.
    ModelError
        If layers are masked, not packed, or if there is no linear layer.
    """
    if importlib.util.find_spec("torchao") is None:
        raise ArgumentError("int8 needs torchao: pip install 'fixed-parameter-expansion[int8]'")
    packed = getattr(packed, "_orig_mod", packed)
    masked = [name for name, module in packed.named_modules() if isinstance(module, MaskedLayer)]
    if masked:
        raise ModelError(f"layer {masked[0]!r} is masked; pack first: fpe.quantize(fpe.pack(wide)).")
    replaced = {name: _as_linears(module) for name, module in _packed_linear(packed).items()}
    memo: dict[int, Any] = {id(packed.get_submodule(name)): new for name, new in replaced.items()}
    copied = copy.deepcopy(packed, memo)
    if not any(isinstance(module, nn.Linear) for module in copied.modules()):
        raise ModelError("there is no linear layer, and convolutions are not quantised; export it as it is.")
    _quantize_(copied, activations)
    return copied.requires_grad_(False).eval()


def _packed_linear(packed: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers that were packed, those among them that became ordinary ones too."""
    known = packed_names(packed)
    return {
        name: module
        for name, module in packed.named_modules()
        if (isinstance(module, PackedLayer) and module.shape.kind == "MaskedLinear")
        or (name in known and type(module) is nn.Linear)
    }


def _as_linears(layer: nn.Module) -> Int8Blocks:
    """Make the layer of blocks that are linear layers."""
    if not isinstance(layer, BlockLinear):
        if isinstance(layer, PackedLayer):
            shape, (weight, mask, bias) = layer.shape, layer.wide()
        else:
            shape, weight = Shape.of_plain(layer), cast(Tensor, layer.weight).detach()
            mask, bias = torch.ones_like(weight), cast("Tensor | None", layer.bias)
        everything = Block(*(torch.arange(size, device=weight.device) for size in weight.shape))
        layer = BlockLayer.of(shape, weight, mask, bias, [everything], ordered=True)
    return Int8Blocks(cast(BlockLinear, layer))


def _quantize_(model: nn.Module, activations: bool) -> None:
    with silenced("torchao", above=logging.WARNING):  # it reports GPU libraries that this machine lacks
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )

        quantize_(model, Int8DynamicActivationInt8WeightConfig() if activations else Int8WeightOnlyConfig())


class _BlockOfLinear(nn.Linear, HasMasks):
    """One block as the linear layer that torchao looks for, its weight (neurons, inputs)."""

    def __init__(self, weight: Tensor, free: Tensor | None) -> None:
        nn.Linear.__init__(self, weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight)
        self.register_buffer("holes", None if free is None else pack_holes(free != 0))

    def free(self, name: str) -> Tensor | None:
        """Return the mask of the weight."""
        holes = cast("Tensor | None", self.holes)
        return None if holes is None or name != "weight" else free_of(holes, self.weight.shape)


class Int8Blocks(BlockLinear):
    """A linear layer whose blocks are linear layers that torchao has quantised."""

    format = "int8"

    def __init__(self, layer: BlockLinear) -> None:
        bias = None if layer.bias is None else layer.bias.detach().clone()
        layout, (weight, mask, _) = layer.layout(), layer.wide()
        if layer.columns is not None:  # without the inputs that only fill blocks up
            layout = [block_of(mask != 0, block.rows) for block in layout]
        super().__init__(layer.shape, [(len(b.rows), len(b.columns)) for b in layout], bias)
        self.slabs = slabs_of(self.sizes, together=False)
        for name in ("rows", "restore"):
            own = layer._buffers[name]
            setattr(self, name, None if own is None else own.clone())
        if layer.columns is not None:
            self.columns = torch.cat([block.columns for block in layout]).to(layer.columns.dtype)
        self.blocks = nn.ModuleList()
        for block in layout:
            own, free = (t.index_select(0, block.rows).index_select(1, block.columns) for t in (weight, mask))
            self.blocks.append(_BlockOfLinear(own, free if bool((free == 0).any()) else None))

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: (…, in_features) to (…, out_features)."""
        parts: Sequence[Tensor] = [input]
        if self.columns is not None:
            inputs = [inputs for _, inputs in self.sizes]
            parts = [input.index_select(-1, own) for own in torch.split(self.columns.long(), inputs)]
        y = torch.cat([block(part) for block, part in zip(self.blocks, parts, strict=True)], dim=-1)
        y = y if self.restore is None else y.index_select(-1, self.restore.long())
        return y if self.bias is None else y + self.bias

    def free(self, name: str) -> Tensor | None:
        """Return the mask of a block that has holes."""
        number = name.removeprefix("weight_")
        return cast(_BlockOfLinear, self.blocks[int(number)]).free("weight") if number.isdigit() else None

    def _weights(self) -> list[Tensor]:
        weights = [cast(Tensor, block.weight) for block in self.blocks]
        return [(w.dequantize() if hasattr(w, "qdata") else w).detach() for w in weights]

    @staticmethod
    def _as_blocks(weight: Tensor) -> Sequence[Tensor]:
        return [weight]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as int8 what is."""
        own = [*self.parameters(), *self.buffers()]
        names = [tensor.__tensor_flatten__()[0] if hasattr(tensor, "qdata") else [] for tensor in own]  # type: ignore
        inner = [[getattr(t, n) for n in parts] or [t] for t, parts in zip(own, names, strict=True)]
        return sum(tensor.nbytes for tensors in inner for tensor in tensors)
