"""Linear layers whose blocks are linear layers of their own, for inference: in ONNX, or int8 by torchao."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe.masked import HasMasks
from fpe.packing.bits import pack_zeros, unpack_zeros
from fpe.packing.blocks import BlockLayer, block_layout
from fpe.packing.formats import block_of
from fpe.packing.sparse import SparseLayer


@torch.no_grad()
def for_onnx(model: nn.Module) -> nn.Module:
    """Return a copy around the same tensors, with layers that ONNX has: `SeparateBlocks`, and dense weights.

    onnxruntime prepares a constant matrix once for all calls, but not the matrices of a batched product. A
    sparse weight is written with its zeros, which the file then leaves out.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    known = len(memo)
    for layer in model.modules():
        if type(layer) is BlockLayer and not layer.shape.taps:
            memo[id(layer)] = SeparateBlocks(layer).train(layer.training)
        elif type(layer) is SparseLayer:
            memo[id(layer)] = layer.shape.plain(layer.weight, layer.bias).train(layer.training)
    return copy.deepcopy(model, memo) if len(memo) > known else model


class LinearBlock(nn.Linear, HasMasks):
    """One block, its weight of shape (neurons, inputs)."""

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        nn.Linear.__init__(self, weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight.contiguous())
        self.register_buffer("zero_positions", pack_zeros(mask != 0))

    def free(self, name: str) -> Tensor | None:
        """Return the mask of the weight."""
        positions = cast("Tensor | None", self.zero_positions)
        return None if positions is None or name != "weight" else unpack_zeros(positions, self.weight.shape)


class SeparateBlocks(BlockLayer):
    """A linear layer of blocks, each with a product of its own: (…, in_features) to (…, out_features).

    Inputs that only make blocks equal are dropped.
    """

    format = "separate blocks"

    @torch.no_grad()
    def __init__(self, layer: BlockLayer) -> None:
        masked, bias = layer.to_masked(), None if layer.bias is None else layer.bias.detach().clone()
        blocks = layer.blocks()
        if layer.columns is not None:
            blocks = [block_of(masked.mask != 0, block.rows) for block in blocks]
        super().__init__(layer.shape, [(len(b.rows), len(b.columns)) for b in blocks], bias)
        self.batches = block_layout(self.sizes, together=False)
        self.rows, self.restore = layer.rows, layer.restore
        self.columns = None
        if layer.columns is not None:
            self.columns = torch.cat([block.columns for block in blocks]).to(torch.int32)
        self.linears = nn.ModuleList(
            LinearBlock(block.part_of(masked.weight), block.part_of(masked.mask)) for block in blocks
        )

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        x, bias = input if input.dim() == 2 else input.reshape(-1, self.in_features), self.bias_by_block()
        neurons = [own for own, _ in self.sizes]
        biases: Any = [None] * len(neurons) if bias is None else torch.split(bias, neurons)
        weights: Any = [linear.weight for linear in self.linears]
        products = list(map(F.linear, self._parts(x), weights, biases))
        y = self.restored(products[0] if len(products) == 1 else torch.cat(products, dim=1))
        return y if input.dim() == 2 else y.view(*input.shape[:-1], self.out_features)

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        """Return the inputs of each block; they are picked from rows, since a row is copied at once."""
        if self.columns is None:
            return [x]
        inputs = [own for _, own in self.sizes]
        if len(self.columns) <= self.in_features:
            return torch.split(x.t().index_select(0, self.columns).t(), inputs, dim=1)
        return [x.t().index_select(0, own).t() for own in torch.split(self.columns, inputs)]

    def block_weights(self) -> list[Tensor]:
        """Return the weight of each block, as floating-point numbers."""
        weights: list[Any] = [linear.weight for linear in self.linears]
        return [(own.dequantize() if hasattr(own, "qdata") else own).detach() for own in weights]

    def block_masks(self) -> list[Tensor]:
        """Return the mask of each block, of the weight's type."""
        masks = [cast(LinearBlock, linear).free("weight") for linear in self.linears]
        pairs = zip(self.block_weights(), masks, strict=True)
        return [torch.ones_like(weight) if mask is None else mask.to(weight) for weight, mask in pairs]
