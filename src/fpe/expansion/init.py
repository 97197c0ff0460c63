"""Fresh weights for an expansion of an untrained network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fpe._util.modules import check_module
from fpe.errors import ArgumentError, ModelError
from fpe.graph.layers import is_stacked, native, oriented
from fpe.masked import MaskedLayer


@torch.no_grad()
def reinitialize_(wide: nn.Module, *, seed: int = 0) -> nn.Module:
    """Reinitialize the free weights and the biases of all masked layers, in place; the masks stay.

    For a network that is expanded before it has been trained: children of an untrained parent have only a
    part of its inputs, and equal outgoing weights. Each neuron's weights are drawn as PyTorch draws those of
    a layer with as many inputs n as the neuron has free weights, uniformly within ``±1 / √n`` (Evci et al.,
    2022), its bias within ``±1 / √m``, for a layer of m inputs. With larger biases some neurons would be
    active for no sample, or for every one.

    Parameters
    ----------
    wide : nn.Module
        What `fpe.expand` returned, with masked layers. It is returned.
    seed : int, default 0
        Of the draws.

    Examples
    --------
    >>> import fpe
    >>> wide = fpe.reinitialize_(fpe.expand(fpe.mlp(8, 4, 2), factor=2, prune="balanced"), seed=1)
    >>> fpe.count_nonzero(wide) == fpe.count_nonzero(fpe.mlp(8, 4, 2))
    True
    """
    check_module(wide, "wide", "a model that fpe.expand returned")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ArgumentError(f"seed is {seed!r}; give an integer of at least 0.")
    layers = [module for module in wide.modules() if isinstance(module, MaskedLayer)]
    if not layers:
        raise ModelError("there is no masked layer to reinitialize; call fpe.expand first.")
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor) -> Tensor:  # on the CPU, so that a seed means the same everywhere
        return (2 * torch.rand(like.shape, generator=generator) - 1).to(like)

    for layer in layers:
        weight, mask = layer.weight, layer.fpe_mask
        free = oriented(layer, mask)
        own = (1,) if is_stacked(layer) else tuple(range(1, free.dim()))  # the axes of a neuron's inputs
        inputs = free.sum(dim=own, keepdim=True).clamp_min(1)
        weight.copy_(uniform(weight) * native(layer, inputs.rsqrt().expand_as(free)) * mask)
        if layer.bias is not None:
            layer.bias.copy_(uniform(layer.bias) * math.prod(free.shape[a] for a in own) ** -0.5)
    return wide
