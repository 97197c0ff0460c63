"""The steps of Fixed Parameter Expansion, as section 2.3 tells them: partition, duplicate, prune, mask.

`partition` shares a neuron's inputs out among its children, `duplicate` makes the children and copies
what leaves the neuron, `prune` pays for the copies, `mask` makes layers that hold it all in place. A norm
over the neurons is made to fit by `widen`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError
from fpe.expansion.pruning import Pruning
from fpe.expansion.splits import Split
from fpe.graph.groups import Layout, layout_sources
from fpe.graph.layers import PER_NEURON, bias_of, is_linear, mask_of, neuron_tensors, oriented_weight
from fpe.masked import MASKED, MaskedLayer, MaskedLinear


@dataclass(frozen=True)
class Family:
    """The neurons of an expanded layer, in the order in which they stand.

    Attributes
    ----------
    parent : Tensor
        The parent of each, integers in ascending order.
    role : Tensor
        Which child of it each is, from 0; a number of at least the factor for a neuron that was not expanded
        and keeps all its inputs.
    """

    parent: Tensor
    role: Tensor

    @classmethod
    def of(cls, neurons: int, factor: int) -> Family:
        """Return the family in which each neuron has all its children, side by side."""
        parent = torch.arange(neurons).repeat_interleave(factor)
        return cls(parent, torch.arange(factor).repeat(neurons))


@dataclass
class Weights:
    """What a linear layer or a convolution holds.

    Attributes
    ----------
    weight : Tensor
        Shape (outputs, inputs), of a convolution (outputs, inputs, *taps); zero where the mask is.
    bias : Tensor or None
        Shape (outputs,).
    mask : Tensor
        Shape and type of the weight, 1 where it is free.
    """

    weight: Tensor
    bias: Tensor | None
    mask: Tensor

    @classmethod
    def of(cls, layer: nn.Module) -> Weights:
        """Look at a layer's own tensors."""
        weight = oriented_weight(layer).detach()
        bias = bias_of(layer)
        all_free = weight.new_ones(()).expand_as(weight)  # takes no memory
        mask = mask_of(layer)
        return cls(weight, None if bias is None else bias.detach(), all_free if mask is None else mask)


def partition(weight: Tensor, factor: int, split: Split, rng: np.random.Generator) -> Tensor:
    """Give each input of each neuron to one of its children.

    Parameters
    ----------
    weight : Tensor
        Shape (neurons, inputs), or (neurons, inputs, depth) if several entries of an input stay together.
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
    shape = weight.shape[:2]
    if factor == 1:
        return torch.zeros(shape, dtype=torch.uint8, device=weight.device)
    children = split.assign(weight, factor, rng)
    if not isinstance(children, Tensor):
        raise ArgumentError(
            f"split {split!r} returned a {type(children).__name__}; it must return a tensor of integers of "
            f"the weight's shape {tuple(shape)}."
        )
    if children.shape != shape or children.is_floating_point() or children.is_complex():
        raise ArgumentError(
            f"split {split!r} returned shape {tuple(children.shape)} and type {children.dtype}; it must "
            f"return integers of the weight's shape {tuple(shape)}."
        )
    if int(children.min()) < 0 or int(children.max()) >= factor:
        raise ArgumentError(
            f"split {split!r} returned children {int(children.min())} to {int(children.max())}; allowed are "
            f"0 to {factor - 1}."
        )
    return children.to(weight.device)


def duplicate(
    producer: Weights,
    consumers: Sequence[Weights],
    children: Tensor,
    factor: int,
    columns: Sequence[Layout] | None = None,
    family: Family | None = None,
) -> list[Weights]:
    """Make the children, adjacent rows, and copy the outgoing weights to each of them.

    Row (i, c) of the new producer is row i where child c keeps the weight, and zero elsewhere. Biases
    are copied to each child. Outgoing weights are copied, not divided by the factor; nothing is paid
    for yet.

    Parameters
    ----------
    producer : Weights
        Weight of shape (neurons, inputs, *taps).
    consumers : sequence of Weights
        Weights of shape (outputs, inputs, *taps) whose inputs are the neurons.
    children : Tensor
        What `partition` returned: (neurons, inputs), or (neurons, inputs × taps) to share taps out.
    factor : int
        Children of each neuron.
    columns : sequence of tuple of int, optional
        For each consumer the layout of its inputs, as in `NeuronGroup.input_layouts`; by default they are the neurons.
    family : Family, optional
        Who is born; by default all children of all neurons.

    Returns
    -------
    list of Weights
        The producer, with as many rows as there are children, then the consumers.
    """
    neurons = len(producer.weight)
    family = family or Family.of(neurons, factor)
    wide = [_children_of(producer, children, factor, family)]
    for position, reader in enumerate(consumers):
        runs = columns[position] if columns is not None else (1,)
        source = layout_sources(runs, family.parent, neurons).to(reader.weight.device)
        copied = None if reader.bias is None else reader.bias.clone()
        weight = reader.weight.index_select(1, source).contiguous()
        wide.append(Weights(weight, copied, reader.mask.index_select(1, source).contiguous()))
    return wide


def _children_of(producer: Weights, children: Tensor, factor: int, family: Family) -> Weights:
    weight, device = producer.weight, producer.weight.device
    if children.shape != weight.shape[:2]:
        children = children.view(weight.shape)
    each = children.reshape(*children.shape, *[1] * (weight.dim() - children.dim()))
    parent = family.parent.to(device)
    bias = None if producer.bias is None else producer.bias.index_select(0, parent)
    if len(parent) == len(weight) * factor:
        keeps = weight.new_empty(len(weight), factor, *weight.shape[1:])
        for child in range(factor):
            torch.eq(each.expand(weight.shape), child, out=keeps[:, child])
        keeps.mul_(producer.mask.unsqueeze(1))
        born = torch.mul(weight.unsqueeze(1), keeps, out=torch.empty_like(keeps))
        return Weights(born.flatten(0, 1), bias, keeps.flatten(0, 1))
    role = family.role.to(device).view(-1, *[1] * (weight.dim() - 1))
    kept = (each.index_select(0, parent) == role) | (role >= factor)
    mask = kept * producer.mask.index_select(0, parent)
    born = weight.index_select(0, parent).contiguous() * mask
    return Weights(born, bias, mask.to(weight.dtype).contiguous())


def prune(
    wide: Sequence[Weights],
    copies: int,
    method: Pruning,
    factor: int,
    scale: Tensor | None = None,
    blocks: Tensor | None = None,
) -> None:
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
    scale : Tensor, optional
        For a `InputPruning` that ranks by more than the weights; see `InputPruning.pay`.
    blocks : Tensor, optional
        For `InputPruning`, the block of each neuron where a child is more than one, and for `ChildPruning`; see
        `InputPruning.pay`. Both go only to a method whose `prune_` has an argument of that name.
    """
    weights, masks = [w.weight for w in wide], [w.mask for w in wide]
    method.prune_(weights, masks, copies, factor, blocks=blocks, scores=scale)
    for w in wide:
        w.weight.mul_(w.mask)


def mask(layer: nn.Module, weights: Weights) -> MaskedLayer:
    """Make the layer that holds these weights at zero where their mask is, for good.

    Parameters
    ----------
    layer : nn.Module
        The layer that it stands for: gives stride and padding, training mode and what is trained.
    weights : Weights
        Kept by the new layer.

    Returns
    -------
    MaskedLayer
        A `MaskedLinear` for any linear layer, a masked convolution for a convolution.
    """
    masked: MaskedLayer
    if is_linear(layer):
        masked = MaskedLinear.from_arrays(weights.weight, weights.bias, weights.mask)
    else:
        kind: Any = next(kind for kind, plain in MASKED.items() if isinstance(layer, plain))
        masked = kind.from_arrays(layer, weights.weight, weights.bias, weights.mask)
    old = cast(MaskedLayer, layer)
    masked.weight.requires_grad_(old.weight.requires_grad)
    if masked.bias is not None and old.bias is not None:
        masked.bias.requires_grad_(old.bias.requires_grad)
    return masked.train(layer.training)


def widen(module: nn.Module, neurons: int, factor: int, family: Family | None = None) -> nn.Module:
    """Return a copy of a per-neuron module in which each neuron's entries stand once for each child."""
    wide = copy.deepcopy(module)
    parent = (family or Family.of(neurons, factor)).parent
    for name, tensor in neuron_tensors(module, neurons).items():
        repeated = tensor.detach().index_select(0, parent.to(tensor.device))
        if name in wide._parameters:
            setattr(wide, name, nn.Parameter(repeated, tensor.requires_grad))
        else:
            setattr(wide, name, repeated)
    if not (isinstance(module, nn.PReLU) and module.num_parameters == 1):
        for attribute in PER_NEURON[type(module)]:
            width = getattr(module, attribute)
            setattr(wide, attribute, (len(parent),) if isinstance(width, tuple) else len(parent))
    return wide
