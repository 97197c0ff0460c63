"""The steps of Fixed Parameter Expansion (section 2.3): partition, duplicate, prune, mask.

`partition` assigns each input of a neuron to one of its children, `duplicate` makes the children and copies
the outgoing weights, `prune_` masks as many weights as were copied, `mask` makes layers whose masked weights
stay zero. `widen` fits a norm over the neurons.
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
from fpe.expansion.index_maps import IndexMap
from fpe.expansion.pruning import Pruning
from fpe.expansion.splits import Split
from fpe.graph.layers import (
    bias_of,
    is_linear,
    is_turned,
    mask_of,
    neuron_tensors,
    oriented_weight,
    widths_of,
)
from fpe.graph.stacked import MaskedStackedLinear, StackedLinear
from fpe.graph.turned import TURNED
from fpe.masked import MASKED, MaskedLayer, MaskedLinear


@dataclass
class Weights:
    """The tensors of a linear layer or a convolution."""

    weight: Tensor  # (outputs, inputs), of a convolution (outputs, inputs, *taps); zero where the mask is
    bias: Tensor | None  # (outputs,)
    mask: Tensor  # shape and type of the weight, 1 where it is free

    @classmethod
    def of(cls, layer: nn.Module) -> Weights:
        """Return a layer's own tensors, not copied."""
        weight = oriented_weight(layer).detach()
        bias = bias_of(layer)
        all_free = weight.new_ones(()).expand_as(weight)  # takes no memory
        mask = mask_of(layer)
        return cls(weight, None if bias is None else bias.detach(), all_free if mask is None else mask)

    def divided(self, parts: int) -> list[Weights]:
        """Return equal parts of the outputs, such as gate and up of one layer."""
        biases = [None] * parts if self.bias is None else self.bias.chunk(parts)
        each = zip(self.weight.chunk(parts), biases, self.mask.chunk(parts), strict=True)
        return [Weights(*part) for part in each]

    def experts(self) -> list[Weights]:
        """Return the weights of each expert, of a layer of stacked experts."""
        biases = [None] * self.weight.shape[2] if self.bias is None else self.bias.unbind(1)
        each = zip(self.weight.unbind(2), biases, self.mask.unbind(2), strict=True)
        return [Weights(*expert) for expert in each]

    @classmethod
    def of_experts(cls, experts: Sequence[Weights]) -> Weights:
        """Put the weights of all experts together again."""
        biases = [own.bias for own in experts if own.bias is not None]
        weight, mask = (
            torch.stack(own, 2) for own in zip(*((e.weight, e.mask) for e in experts), strict=True)
        )
        return cls(weight, torch.stack(biases, 1) if biases else None, mask)

    @classmethod
    def joined(cls, parts: Sequence[Weights]) -> Weights:
        """Put parts together again, one below the other."""
        if len(parts) == 1:
            return parts[0]
        biases = [part.bias for part in parts if part.bias is not None]
        weight, mask = torch.cat([part.weight for part in parts]), torch.cat([part.mask for part in parts])
        return cls(weight, torch.cat(biases) if biases else None, mask)


def partition(weight: Tensor, factor: int, split: Split, rng: np.random.Generator) -> Tensor:
    """Assign each input of each neuron to one of its children: integers 0 … factor − 1, (neurons, inputs).

    Parameters
    ----------
    weight : Tensor
        Shape (neurons, inputs), or (neurons, inputs, depth) if several entries of an input stay together.
    factor, split, rng : int, Split, numpy.random.Generator
        Number of children, what assigns them, and the source of its draws.

    Raises
    ------
    ArgumentError
        If a user's own split returns anything else.
    """
    shape = weight.shape[:2]
    if factor == 1:
        return torch.zeros(shape, dtype=torch.uint8, device=weight.device)
    children = split.assign(weight, factor, rng)
    tensor = isinstance(children, Tensor)
    if not tensor or children.shape != shape or children.is_floating_point() or children.is_complex():
        found = (
            f"shape {tuple(children.shape)} and type {children.dtype}" if tensor else type(children).__name__
        )
        must = f"it must return a tensor of integers of the weight's shape {tuple(shape)}."
        raise ArgumentError(f"split {split!r} returned {found}; {must}")
    low, high = int(children.min()), int(children.max())
    if low < 0 or high >= factor:
        raise ArgumentError(
            f"split {split!r} returned children {low} to {high}; allowed are 0 to {factor - 1}."
        )
    return children.to(weight.device)


def duplicate(
    producer: Weights,
    consumers: Sequence[Weights],
    children: Tensor,
    factor: int,
    sources: Sequence[Tensor] | None = None,
    index_map: IndexMap | None = None,
) -> list[Weights]:
    """Make the children, adjacent rows, and copy the outgoing weights to each of them.

    Row (i, c) of the new producer is row i where child c keeps the weight, and zero elsewhere. Biases are
    copied to each child. Outgoing weights are copied, not divided by the factor; nothing is pruned yet. The
    producer is returned first, then the consumers.

    Parameters
    ----------
    producer, consumers : Weights, sequence of Weights
        Of shapes (neurons, inputs, *taps), and (outputs, inputs, *taps) whose inputs are the neurons.
    children : Tensor
        What `partition` returned: (neurons, inputs), or (neurons, inputs × taps) to split taps.
    factor : int
        Children of each neuron.
    sources : sequence of Tensor, optional
        For each consumer the input that each new one copies; by default its inputs are the neurons.
    index_map : IndexMap, optional
        The new neurons; by default all children of all neurons.
    """
    index_map = index_map or IndexMap(len(producer.weight), factor)
    wide = [_children_of(producer, children, index_map)]
    for source, consumer in zip(sources or [index_map.parent] * len(consumers), consumers, strict=True):
        wide.append(widened_inputs(consumer, source))
    return wide


def widened_inputs(consumer: Weights, source: Tensor) -> Weights:
    """Return a consumer each of whose inputs is a copy of the input `source` says."""
    source = source.to(consumer.weight.device)
    weight, mask = (t.index_select(1, source).contiguous() for t in (consumer.weight, consumer.mask))
    return Weights(weight, None if consumer.bias is None else consumer.bias.clone(), mask)


def _children_of(producer: Weights, children: Tensor, index_map: IndexMap) -> Weights:
    weight, factor = producer.weight, index_map.factor
    parent = index_map.parent.to(weight.device)
    bias = None if producer.bias is None else producer.bias.index_select(0, parent)
    if children.shape != weight.shape[:2]:
        children = children.view(weight.shape)
    each = children.reshape(*children.shape, *[1] * (weight.dim() - children.dim()))
    if len(parent) == len(weight) * factor:  # without the memory that index_select would take
        keeps = weight.new_empty(len(weight), factor, *weight.shape[1:])
        for child in range(factor):
            torch.eq(each.expand(weight.shape), child, out=keeps[:, child])
        keeps.mul_(producer.mask.unsqueeze(1))
        wide = torch.mul(weight.unsqueeze(1), keeps, out=torch.empty_like(keeps))
        return Weights(wide.flatten(0, 1), bias, keeps.flatten(0, 1))
    number = index_map.child.to(weight.device).view(-1, *[1] * (weight.dim() - 1))
    kept = (each.index_select(0, parent) == number) | (number >= factor)
    mask = kept * producer.mask.index_select(0, parent)
    wide = weight.index_select(0, parent).contiguous() * mask
    return Weights(wide, bias, mask.to(weight.dtype).contiguous())


def prune_(
    wide: Sequence[Weights], count: int, pruning: Pruning, factor: int, **given: Tensor | None
) -> None:
    """Mask `count` weights of what `duplicate` returned, in place: as many as were copied.

    The other arguments are those of `Pruning.prune_`.
    """
    weights, masks = [w.weight for w in wide], [w.mask for w in wide]
    pruning.prune_(weights, masks, count, factor, **given)
    for w in wide:
        w.weight.mul_(w.mask)


def mask(layer: nn.Module, weights: Weights) -> MaskedLayer:
    """Make the masked layer that replaces `layer`: linear, a convolution or stacked experts.

    It keeps the tensors of `weights`, and of `layer` stride, padding, training mode and what is trained.
    """
    masked: MaskedLayer
    if isinstance(layer, StackedLinear):
        masked = MaskedStackedLinear.from_arrays(layer, weights.weight, weights.bias, weights.mask)
    elif is_turned(layer):
        turned: Any = next(kind for kind, plain in TURNED.items() if isinstance(layer, plain))
        masked = turned.from_arrays(layer, weights.weight, weights.bias, weights.mask)
    elif is_linear(layer):
        masked = MaskedLinear.from_arrays(weights.weight, weights.bias, weights.mask)
    else:
        kind: Any = next(kind for kind, plain in MASKED.items() if isinstance(layer, plain))
        masked = kind.from_arrays(layer, weights.weight, weights.bias, weights.mask)
    old = cast(MaskedLayer, layer)
    masked.weight.requires_grad_(old.weight.requires_grad)
    if masked.bias is not None and old.bias is not None:
        masked.bias.requires_grad_(old.bias.requires_grad)
    return masked.train(layer.training)


def widen(module: nn.Module, source: Tensor, entries: int) -> nn.Module:
    """Return a copy of a per-neuron module each of whose entries is a copy of the one `source` says.

    `entries` is how many it has before.
    """
    wide = copy.deepcopy(module)
    for name, (tensor, axis) in neuron_tensors(module, entries).items():
        repeated = tensor.detach().index_select(axis, source.to(tensor.device))
        trained = name in wide._parameters
        setattr(wide, name, nn.Parameter(repeated, tensor.requires_grad) if trained else repeated)
    if not (isinstance(module, nn.PReLU) and module.num_parameters == 1):
        for attribute in widths_of(module):
            width = getattr(module, attribute)
            # A depthwise convolution may have several outputs of each input.
            new = len(source) if isinstance(width, tuple) else width * len(source) // entries
            setattr(wide, attribute, (new,) if isinstance(width, tuple) else new)
    return wide
