"""Tensors as every process must see them to move the same weights: whole, and averaged over processes."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from fpe.masked import MaskedLayer, placed_like


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded over processes in one piece; all of them must call this."""
    tensor = tensor.detach()
    return cast(Any, tensor).full_tensor() if type(tensor).__name__ == "DTensor" else tensor


def local(tensor: Tensor) -> Tensor:
    """Return the piece of a tensor that this process holds."""
    tensor = tensor.detach()
    return cast(Any, tensor).to_local() if type(tensor).__name__ == "DTensor" else tensor


def average(tensor: Tensor) -> Tensor:
    """Average a tensor over all processes, in place, where there are several; all of them must call this."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
        tensor.div_(dist.get_world_size())
    return tensor


@torch.no_grad()
def put(layer: MaskedLayer, mask: Tensor, optimizers: list[Optimizer]) -> None:
    """Give a layer a mask, in place; weights that it holds are 0, and what has moved has no moments.

    Parameters
    ----------
    layer : MaskedLayer
        Its weight, mask and gradient change.
    mask : Tensor
        Whole, of the mask's shape.
    optimizers : list of Optimizer
        Every tensor of the weight's shape that one of them keeps for it is set to 0 where the masks differ,
        and where the new one holds.
    """
    own = layer.fpe_mask
    stays = placed_like(mask * (mask == whole(own)), layer.weight)
    own.copy_(placed_like(mask, own))
    layer.project()
    if layer.weight.grad is not None:
        layer.weight.grad.mul_(placed_like(mask, layer.weight))
    for optimizer in optimizers:
        for value in optimizer.state.get(layer.weight, {}).values():
            if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                value.mul_(stays)
