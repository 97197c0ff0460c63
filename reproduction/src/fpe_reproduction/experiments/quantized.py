"""What is left of a network's accuracy when its numbers are rounded to few bits after training."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fpe.training.loop import accuracy


class _RoundedInput(nn.Module):
    """A linear layer whose inputs are rounded to 8 bits, each sample on a grid of its own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, outputs)."""
        rounded: Tensor = self.layer(rounded_rows(x, 8))
        return rounded


def rounded_rows(values: Tensor, bits: int) -> Tensor:
    """Round each row to ``2^bits − 1`` levels, even on both sides of 0; zeros stay zeros."""
    levels = 2 ** (bits - 1) - 1
    step = values.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny) / levels
    rounded: Tensor = (values / step).round() * step
    return rounded


@torch.no_grad()
def quantized(network: nn.Sequential, bits: int = 8) -> nn.Sequential:
    """Return a copy whose linear layers compute with few bits: weights by neuron, inputs by sample.

    The products of these integers are what int8 arithmetic gives, up to the rounding of float32; biases
    and norms keep their precision, as is usual.

    Parameters
    ----------
    network : nn.Sequential
        Dense or expanded; unchanged.
    bits : int, default 8
        Of the weights; inputs of layers always have 8.
    """
    layers: list[nn.Module] = []
    for module in copy.deepcopy(network):
        if isinstance(module, nn.Linear):
            module.weight.copy_(rounded_rows(module.weight, bits))
            layers.append(_RoundedInput(module))
        else:
            layers.append(module)
    return nn.Sequential(*layers)


def quantised_accuracy(network: nn.Sequential, X: Tensor, y: Tensor, bits: int = 8) -> float:
    """Return the accuracy, 0 to 1, after `quantized`."""
    return accuracy(quantized(network, bits), X, y)
