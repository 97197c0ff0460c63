"""Other weights for a model whose groups are verified: random ones, and those of permuted neurons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fpe.graph.groups import Layout, NeuronGroup, layout_for, layout_neurons, layout_sources
from fpe.graph.layers import OVER_NEURONS, bias_of, is_transposed, neuron_tensors, size_of
from fpe.masked import MaskedLayer

#: Parameters and buffers, each with the value that it is to have instead.
Values = dict[Tensor, Tensor]
_Row = tuple[Tensor, int]
_Columns = tuple[Tensor, int, Layout]


def randomize_(model: nn.Module, groups: Sequence[NeuronGroup], everywhere: bool) -> None:
    """Give weights a healthy scale, everywhere or in the producers only; masked weights become free.

    A neuron does not show behind a head of zeros, nor a missing norm whose entries are all alike, nor a
    missing PReLU over neurons that are always positive: of each pair of neurons, one is negative where the
    other is positive. Norms over the neurons lose their statistics, which only whole copies of all neurons keep.
    """
    producers = {name for group in groups for name in group.producers}
    widths = {size_of(model, group.name)[0] for group in groups}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer):
            module.fpe_mask.fill_(1)
        buffers = (buffer for buffer in module.buffers(recurse=False) if _is_vector(buffer, widths))
        for tensor in (*module.parameters(recurse=False), *buffers):
            if id(tensor) in seen or not tensor.is_floating_point() or not tensor.numel():
                continue
            seen.add(id(tensor))
            if name in producers or (everywhere and not _is_vector(tensor)):
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 10
                tensor.data = _normal(tensor) * (2 / fan_in) ** 0.5
            elif everywhere or _is_vector(tensor, widths):
                generator = torch.Generator(tensor.device).manual_seed(tensor.numel())
                about_one = torch.empty_like(tensor.data).uniform_(0.5, 1.5, generator=generator)
                tensor.data = (tensor.data + 0.3 * (tensor.data.abs() < 0.1)) * about_one
    for group in groups:
        for tensor, axis in rows_of(model, group.producers):
            rows = tensor.data.movedim(axis, 0)
            rows[1::2] = -1.3 * rows[: len(rows) // 2 * 2 : 2]
        for name in group.between:
            module = model.get_submodule(name)
            if type(module) in OVER_NEURONS:
                module.__class__ = _Affine


def _is_vector(tensor: Tensor, widths: set[int] | None = None) -> bool:
    """Tell whether a tensor has one axis at most; if `widths` are given, also one entry for each neuron."""
    length = max(tensor.shape, default=1)
    return tensor.numel() == length and tensor.is_floating_point() and (widths is None or length in widths)


def _normal(tensor: Tensor) -> Tensor:
    generator = torch.Generator(tensor.device).manual_seed(tensor.numel())
    return torch.empty_like(tensor.data).normal_(generator=generator)


class _Affine(nn.Module):
    """What a norm over neurons does to each neuron alone."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2)) if hasattr(self, "num_channels") else (-1,)
        weight, bias = (cast("Tensor | None", getattr(self, name, None)) for name in ("weight", "bias"))
        x = x if weight is None else x * weight.view(shape)
        return x if bias is None else x + bias.view(shape)


def silenced(
    model: nn.Module, groups: Sequence[NeuronGroup], odd: int, values: Values | None = None
) -> Values:
    """Return values with which the neurons of even (or odd) number have no outgoing weights."""
    values = dict(values or {})
    for group in groups:
        for weight, axis, layout in columns_of(model, group):
            neuron = layout_neurons(layout, size_of(model, group.name)[0]).to(weight.device)
            silent = (neuron >= 0) & (neuron % 2 == odd)
            values[weight] = values.get(weight, weight.data).index_fill(axis, silent.nonzero().flatten(), 0)
    return values


def shuffled(model: nn.Module, groups: Sequence[NeuronGroup], odd: int) -> Values:
    """Return values like those of `silenced`, with other silent neurons, and all neurons in another order.

    Beside a neuron that matters, its silent neighbor exceeds it, so that a maximum over neurons moves.
    """
    values: Values = {}
    for group in groups:
        for tensor, axis in rows_of(model, group.producers):
            values[tensor] = values.get(tensor, tensor.data).clone()
            neurons = values[tensor].movedim(axis, 0)
            fresh, others = neurons[odd::2], neurons[1 - odd :: 2]
            fresh.copy_(_normal(fresh) * (fresh.std(correction=0) + 0.1))
            fresh[: len(others)] += 3 * others[: len(fresh)]
    values = silenced(model, groups, odd, values)
    for group in groups:
        rows = rows_of(model, group.producers)
        for name in group.between:
            tensors = neuron_tensors(model.get_submodule(name), size_of(model, group.name)[0])
            rows += [(tensor, 0) for tensor in tensors.values()]
        values |= _permuted(model, group, rows, list(columns_of(model, group)), values)
    return values


def permuted_alone(model: nn.Module, group: NeuronGroup, name: str) -> Values:
    """Return other values for a single producer or consumer of a group, with its neurons in another order."""
    if name in group.producers:
        return _permuted(model, group, rows_of(model, [name]), [], {})
    own = list(columns_of(model, group))[group.consumers.index(name)]
    return _permuted(model, group, [], [own], {})


def _permuted(
    model: nn.Module, group: NeuronGroup, rows: list[_Row], columns: list[_Columns], values: Values
) -> Values:
    neurons, _ = size_of(model, group.name)
    order = torch.randperm(neurons, generator=torch.Generator().manual_seed(0))
    order[0::2], order[1::2] = order[order % 2 == 0], order[order % 2 == 1]
    # One cycle, which leaves no neuron in its place, and puts even ones in all odd places.
    order = order.roll(1)[order.argsort()]
    own = [(tensor, axis, order) for tensor, axis in rows]
    own += [(weight, axis, layout_sources(layout, order, neurons)) for weight, axis, layout in columns]
    changed: Values = {}
    for tensor, axis, index in own:
        value = changed.get(tensor, values.get(tensor, tensor.data))
        changed[tensor] = value.index_select(axis, index.to(tensor.device))
    return changed


def rows_of(model: nn.Module, producers: Sequence[str]) -> list[_Row]:
    """Return weights and biases of producers, each with the axis of its neurons."""
    rows: list[_Row] = []
    for layer in map(model.get_submodule, producers):
        bias = bias_of(layer)
        rows.append((layer.get_parameter("weight"), 1 if is_transposed(layer) else 0))
        rows += [] if bias is None else [(bias, 0)]
    return rows


def columns_of(model: nn.Module, group: NeuronGroup) -> Iterator[_Columns]:
    """Yield the weight of each consumer, the axis of its inputs, and their layout."""
    neurons, _ = size_of(model, group.name)
    for name in group.consumers:
        layer, (_, inputs) = model.get_submodule(name), size_of(model, name)
        layout = layout_for(group, name, neurons, inputs)
        yield layer.get_parameter("weight"), 0 if is_transposed(layer) else 1, layout
