"""The steps of Fixed Parameter Expansion, as section 2.3 tells them: partition, duplicate, prune, mask.

`partition` shares a neuron's inputs out among its children, `duplicate` makes the children and copies
what leaves the neuron, `prune` pays for the copies, `mask` makes layers that hold it all in place. A norm
over the neurons is made to fit by `widen`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fpe.budget import Prune
from fpe.errors import ArgumentError
from fpe.graph.groups import PER_NEURON, neuron_tensors
from fpe.masked import MaskedLinear
from fpe.partition import Split


@dataclass
class Weights:
    """What a linear layer holds.

    Attributes
    ----------
    weight : Tensor
        Shape (outputs, inputs), zero where the mask is.
    bias : Tensor or None
        Shape (outputs,).
    mask : Tensor
        Shape and type of the weight, 1 where it is free.
    """

    weight: Tensor
    bias: Tensor | None
    mask: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> Weights:
        """Look at a layer's own tensors."""
        weight = layer.weight.detach()
        bias = None if layer.bias is None else layer.bias.detach()
        all_free = weight.new_ones(()).expand_as(weight)  # takes no memory
        return cls(weight, bias, layer.weight_mask if isinstance(layer, MaskedLinear) else all_free)


def partition(weight: Tensor, factor: int, split: Split, rng: np.random.Generator) -> Tensor:
    """Give each input of each neuron to one of its children.

    Parameters
    ----------
    weight : Tensor
        Shape (neurons, inputs).
    factor : int
        Number of children.
    split : Split
        Who gets which input.
    rng : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    Tensor
        Integers 0 … factor − 1 of shape (neurons, inputs), on the weight's device.

    Raises
    ------
    ArgumentError
        If a split of the user's own returns anything else.
    """
    if factor == 1:
        return torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    children = split.assign(weight, factor, rng)
    if not isinstance(children, Tensor):
        raise ArgumentError(
            f"split {split!r} returned a {type(children).__name__}; it must return a tensor of integers of "
            f"the weight's shape {tuple(weight.shape)}."
        )
    if children.shape != weight.shape or children.is_floating_point() or children.is_complex():
        raise ArgumentError(
            f"split {split!r} returned shape {tuple(children.shape)} and type {children.dtype}; it must "
            f"return integers of the weight's shape {tuple(weight.shape)}."
        )
    if int(children.min()) < 0 or int(children.max()) >= factor:
        raise ArgumentError(
            f"split {split!r} returned children {int(children.min())} to {int(children.max())}; allowed are "
            f"0 to {factor - 1}."
        )
    return children.to(weight.device)


def duplicate(
    producer: Weights, consumers: Sequence[Weights], children: Tensor, factor: int
) -> list[Weights]:
    """Make the children, adjacent rows, and copy the outgoing weights to each of them.

    Row (i, c) of the new producer is row i where child c keeps the weight, and zero elsewhere. Biases
    are copied to each child. Outgoing weights are copied, not divided by the factor; nothing is paid
    for yet.

    Parameters
    ----------
    producer : Weights
        Weight of shape (neurons, inputs).
    consumers : sequence of Weights
        Weights of shape (outputs, neurons).
    children : Tensor
        What `partition` returned, (neurons, inputs).
    factor : int
        Number of children.

    Returns
    -------
    list of Weights
        The producer, (neurons × factor, inputs), then the consumers, (outputs, neurons × factor).
    """
    neurons, inputs = producer.weight.shape
    keeps = producer.weight.new_empty(neurons, factor, inputs)
    for child in range(factor):
        torch.eq(children, child, out=keeps[:, child])
    keeps.mul_(producer.mask.unsqueeze(1))
    weight = torch.mul(producer.weight.unsqueeze(1), keeps)
    bias = None if producer.bias is None else producer.bias.repeat_interleave(factor)
    wide = [Weights(weight.view(-1, inputs), bias, keeps.view(-1, inputs))]
    for reader in consumers:
        columns = reader.weight.repeat_interleave(factor, dim=1)
        copied = None if reader.bias is None else reader.bias.clone()
        wide.append(Weights(columns, copied, reader.mask.repeat_interleave(factor, dim=1)))
    return wide


def prune(wide: Sequence[Weights], copies: int, method: Prune, factor: int) -> None:
    """Hold as many weights at zero, in place, as were copied: the count of non-zeros is the parent's again.

    Parameters
    ----------
    wide : sequence of Weights
        What `duplicate` returned; weights and masks change where a weight pays.
    copies : int
        How many weights pay.
    method : Prune
        Which ones.
    factor : int
        Number of children.
    """
    method.pay([w.weight for w in wide], [w.mask for w in wide], copies, factor)
    for w in wide:
        w.weight.mul_(w.mask)


def mask(layer: nn.Linear, weights: Weights) -> MaskedLinear:
    """Make the layer that holds these weights at zero where their mask is, for good.

    Parameters
    ----------
    layer : nn.Linear
        The layer that it stands for: gives training mode and which parameters are trained.
    weights : Weights
        Kept by the new layer.

    Returns
    -------
    MaskedLinear
        A new layer.
    """
    masked = MaskedLinear.from_arrays(weights.weight, weights.bias, weights.mask)
    masked.weight.requires_grad_(layer.weight.requires_grad)
    if masked.bias is not None:
        masked.bias.requires_grad_(layer.bias.requires_grad)
    return masked.train(layer.training)


def widen(module: nn.Module, neurons: int, factor: int) -> nn.Module:
    """Return a copy of a per-neuron module in which each neuron's entries stand once for each child."""
    wide = copy.deepcopy(module)
    for name, tensor in neuron_tensors(module, neurons).items():
        repeated = tensor.detach().repeat_interleave(factor)
        if name in wide._parameters:
            setattr(wide, name, nn.Parameter(repeated, tensor.requires_grad))
        else:
            setattr(wide, name, repeated)
    attribute = PER_NEURON[type(module)]
    width = getattr(module, attribute)
    if width == (neurons,):
        setattr(wide, attribute, (neurons * factor,))
    elif width == neurons and not (isinstance(module, nn.PReLU) and neurons == 1):
        setattr(wide, attribute, neurons * factor)
    return wide
