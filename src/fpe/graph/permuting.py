"""Other weights for a model whose groups are verified: random ones, and those of permuted neurons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fpe.graph.groups import (
    Layout,
    NeuronGroup,
    layout_for,
    layout_neurons,
    layout_places,
    layout_sources,
)
from fpe.graph.layers import OVER_NEURONS, bias_of, is_transposed, neuron_tensors, neurons_of, size_of
from fpe.masked import MaskedLayer

#: Parameters and buffers, each with the value that it is to have instead.
Values = dict[Tensor, Tensor]


def randomize_(model: nn.Module, groups: Sequence[NeuronGroup], everywhere: bool) -> None:
    """Give weights a healthy scale, everywhere or in the producers only; masked weights become free.

    A neuron does not show behind a head of zeros, nor a missing norm whose entries are all alike, nor a
    missing PReLU over neurons that are always positive: of each pair of neurons, one is negative where the
    other is positive. Norms over the neurons lose their statistics, which only whole copies of all neurons
    keep.
    """
    producers = {name for group in groups for name in group.producers}
    widths = {neurons_of(model, group) for group in groups}
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
        for tensor, axis, layout in tensors_of(model, group, group.producers):
            rows, places = tensor.data.movedim(axis, 0), layout_places(layout, neurons_of(model, group))
            rows[places[1::2]] = -1.3 * rows[places[: len(places) // 2 * 2 : 2]]
        for name in group.between:
            module = model.get_submodule(name)
            if isinstance(module, OVER_NEURONS):
                cast(Any, module).__class__ = _without_statistics(type(module))


def _is_vector(tensor: Tensor, widths: set[int] | None = None) -> bool:
    """Tell whether a tensor has one axis at most; if `widths` are given, also one entry for each neuron."""
    length = max(tensor.shape, default=1)
    return tensor.numel() == length and tensor.is_floating_point() and (widths is None or length in widths)


def _normal(tensor: Tensor) -> Tensor:
    generator = torch.Generator(tensor.device).manual_seed(tensor.numel())
    return torch.empty_like(tensor.data).normal_(generator=generator)


class _WithoutStatistics(TorchFunctionMode):
    """Let norms over neurons do only what they do to each neuron alone: weight and bias."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name not in ("layer_norm", "rms_norm", "group_norm"):
            return func(*args, **kwargs)
        order = ("input", "size", "weight", "bias") if name != "rms_norm" else ("input", "size", "weight")
        given = dict(zip(order, args, strict=False)) | kwargs
        x, shape = given["input"], (-1, *[1] * (given["input"].dim() - 2)) if name == "group_norm" else (-1,)
        weight, bias = (given.get(key) for key in ("weight", "bias"))
        x = x if weight is None else x * weight.view(shape)
        return x if bias is None else x + bias.view(shape)


def _without_statistics(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass whose forward pass takes no statistics over the neurons."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _WithoutStatistics():
            return kind.forward(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward})


def silenced(
    model: nn.Module, groups: Sequence[NeuronGroup], odd: int, values: Values | None = None
) -> Values:
    """Return values with which the neurons of even (or odd) number have no outgoing weights."""
    values = dict(values or {})
    for group in groups:
        for weight, axis, layout in tensors_of(model, group, group.consumers):
            neuron = layout_neurons(layout, neurons_of(model, group)).to(weight.device)
            silent = (neuron >= 0) & (neuron % 2 == odd)
            values[weight] = values.get(weight, weight.data).index_fill(axis, silent.nonzero().flatten(), 0)
    return values


def shuffled(model: nn.Module, groups: Sequence[NeuronGroup], odd: int) -> Values:
    """Return values like those of `silenced`, with other silent neurons, and all neurons in another order.

    Beside a neuron that matters, its silent neighbor exceeds it, so that a maximum over neurons moves.
    """
    values: Values = {}
    for group in groups:
        for tensor, axis, layout in tensors_of(model, group, group.producers):
            values[tensor] = values.get(tensor, tensor.data).clone()
            rows, places = values[tensor].movedim(axis, 0), layout_places(layout, neurons_of(model, group))
            fresh, others = rows[places[odd::2]], rows[places[1 - odd :: 2]]
            fresh = _normal(fresh) * (fresh.std(correction=0) + 0.1)
            fresh[: len(others)] += 3 * others[: len(fresh)]
            rows[places[odd::2]] = fresh
    values = silenced(model, groups, odd, values)
    for group in groups:
        values = permuted(model, group, (*group.producers, *group.consumers, *group.between), values)
    return values


def permuted(
    model: nn.Module, group: NeuronGroup, names: Sequence[str], values: Values | None = None
) -> Values:
    """Return values with which the neurons stand in another order in these modules of a group."""
    neurons = neurons_of(model, group)
    order = torch.randperm(neurons, generator=torch.Generator().manual_seed(0))
    order[0::2], order[1::2] = order[order % 2 == 0], order[order % 2 == 1]
    # One cycle, which leaves no neuron in its place, and puts even ones in all odd places.
    order = order.roll(1)[order.argsort()]
    values = dict(values or {})
    for tensor, axis, layout in tensors_of(model, group, names):
        index = layout_sources(layout, order, neurons).to(tensor.device)
        values[tensor] = values.get(tensor, tensor.data).index_select(axis, index)
    return values


def tensors_of(
    model: nn.Module, group: NeuronGroup, names: Sequence[str]
) -> Iterator[tuple[Tensor, int, Layout]]:
    """Yield the tensors over a group's neurons in modules of these names, each with its axis and layout."""
    neurons = neurons_of(model, group)
    for name in names:
        module = model.get_submodule(name)
        if name in group.between:
            yield from ((tensor, 0, (1,)) for tensor in neuron_tensors(module, neurons).values())
            continue
        consumes, weight = name in group.consumers, module.get_parameter("weight")
        axis = int(consumes != is_transposed(module))
        if consumes:
            yield weight, axis, layout_for(group, name, neurons, size_of(model, name)[1])
            continue
        layout = (1,) * group.parts
        yield weight, axis, layout
        if (bias := bias_of(module)) is not None:
            yield bias, 0, layout
