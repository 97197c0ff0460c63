"""Linear layers of blocks for ONNX: a product for each block, whose weight a runtime prepares once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpe.packing.blocks import BlockLinear
from fpe.packing.slabs import slabs_of


def with_separate_blocks(model: nn.Module) -> nn.Module:
    """Return a copy of a model around the same tensors, with `SeparateBlocks` in the place of linear blocks.

    Parameters
    ----------
    model : nn.Module
        Dense, expanded or packed; what holds no linear blocks is returned as it is.

    Returns
    -------
    nn.Module
        For inference. It has blocks of its own, and shares all other parameters and buffers.
    """
    layers = [module for module in model.modules() if type(module) is BlockLinear]
    if not layers:
        return model
    tensors = (*model.parameters(), *model.buffers())
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    memo |= {id(layer): SeparateBlocks(layer).train(layer.training) for layer in layers}
    return copy.deepcopy(model, memo)


class SeparateBlocks(BlockLinear):
    """A linear layer of blocks, each with its product: (…, in_features) to (…, out_features).

    onnxruntime packs a constant matrix once, for all calls, but not the matrices of a batched product. Inputs
    are picked from rows, for a row is copied at once.

    Parameters
    ----------
    layer : BlockLinear
        The layer that it stands for, which is not changed.
    """

    @torch.no_grad()
    def __init__(self, layer: BlockLinear) -> None:
        super().__init__(layer.shape, layer.sizes, layer.bias)
        self.slabs = slabs_of(layer.sizes, together=False)
        parts: list[list[Tensor]] = [[] for _ in layer.sizes]
        for slab, own in zip(layer.slabs, layer._weights(), strict=True):
            for block, part in zip(slab.blocks, layer._as_blocks(own), strict=True):
                parts[block].append(part)
        for number, block_parts in enumerate(parts):
            weight = torch.cat(block_parts, dim=1).t().contiguous()
            self.register_parameter(f"weight_{number}", nn.Parameter(weight))
            self.register_buffer(f"holes_{number}", None)
        for name in ("columns", "rows", "restore"):
            setattr(self, name, layer._buffers[name])
        if layer.columns is not None:
            read = [block.columns for block in layer.layout()]
            self.columns = torch.cat(read).to(layer.columns.dtype)

    @staticmethod
    def _as_blocks(weight: Tensor) -> Sequence[Tensor]:
        return [weight.t()]

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        x = input if input.dim() == 2 else input.reshape(-1, self.in_features)
        factors = zip(self._parts(x), self._weights(), strict=True)
        bias = self._bias_by_block()
        if bias is None:
            products = [torch.mm(part, weight) for part, weight in factors]
        else:
            biases = torch.split(bias, [neurons for neurons, _ in self.sizes])
            products = [torch.addmm(b, *own) for b, own in zip(biases, factors, strict=True)]
        y = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        if self.restore is not None:
            y = y.index_select(1, self.restore.long())
        return y if input.dim() == 2 else y.view(*input.shape[:-1], self.out_features)

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        """Return what each block reads, (samples, its inputs)."""
        if self.columns is None:
            return [x]
        columns, inputs = self.columns.long(), [inputs for _, inputs in self.sizes]
        if len(columns) <= self.in_features:
            return x.t().index_select(0, columns).t().split_with_sizes(inputs, dim=1)
        # Inputs that several blocks read are not all copied before the first product; these are narrow, and
        # take a transposed factor as it is.
        return [x.t().index_select(0, own).t() for own in torch.split(columns, inputs)]
