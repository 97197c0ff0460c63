"""What becomes of each group of neurons, foreseen before any weight is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from fpe.expansion.choice import Chosen
from fpe.expansion.plan import LayerPlan
from fpe.expansion.pruning import Pruning
from fpe.expansion.splits import Split
from fpe.graph import NeuronGroup
from fpe.graph.groups import default_layout, layout_neurons
from fpe.graph.layers import bias_of, mask_of, neuron_tensors, oriented_weight, size_of
from fpe.masked import count_free


def layer_plans(
    model: nn.Module,
    chosen: Chosen,
    wanted: Sequence[tuple[int, ...] | None],
    convolutions: str,
    split: Split,
    prune: Pruning,
) -> list[LayerPlan]:
    """Foresee what becomes of each group, in order: a producer may read one that was expanded before."""
    grown: dict[str, int] = {}  # inputs that a layer has won
    planned = []
    for (group, factor), some in zip(chosen, wanted, strict=True):
        neurons, inputs = size_of(model, group.name)
        inputs += grown.get(group.name, 0)
        after = neurons * factor if some is None else neurons + len(some) * (factor - 1)
        taps = oriented_weight(model.get_submodule(group.name))[0, 0].numel()
        shares = "inputs" if taps == 1 else convolutions
        if shares == "taps" or (shares == "channels" and inputs < factor):
            shares, inputs = "taps", inputs * taps
        layer = _layer_plan(model, group, factor, inputs, shares, after, some)
        layer = replace(layer, groups=split.num_groups(neurons))
        entries = len(group.producers) * (taps if shares == "channels" else 1)
        left, note = prune.expected_dropped(neurons, layer.groups, factor, inputs, entries, layer.copies)
        layer = replace(layer, neurons_after=after - left, notes=(note,) if note else ())
        for name in group.consumers:
            own = size_of(model, name)[1]
            shared = own if not group.input_layouts else neurons * _own_columns(group, name)
            grown[name] = grown.get(name, 0) + (layer.neurons_after - neurons) * (shared // neurons)
        planned.append(layer)
    return planned


def _own_columns(group: NeuronGroup, consumer: str) -> int:
    """Return how many inputs of a consumer each neuron has."""
    return sum(k for k in group.input_layouts[group.consumers.index(consumer)] if k > 0)


def _layer_plan(
    model: nn.Module,
    group: NeuronGroup,
    factor: int,
    inputs: int,
    shares: str,
    after: int,
    some: tuple[int, ...] | None,
) -> LayerPlan:
    neurons, _ = size_of(model, group.name)
    per_neuron = parameters_per_neuron(model, group)
    expanded = range(neurons) if some is None else some
    mine, others = 0, 0
    for position in range(len(group.consumers)):
        own_weights, rest = free_by_neuron(model, group, position, expanded)
        mine += own_weights
        others += rest
    biases = [bias_of(model.get_submodule(name)) for name in group.consumers]
    others += sum(bias.numel() for bias in biases if bias is not None) + per_neuron * neurons
    return LayerPlan(
        group=group,
        factor=factor,
        inputs=inputs,
        shares=shares,
        neurons=neurons,
        neurons_after=after,
        free=sum(free_weights(model, name) for name in group.producers) + mine + others,
        copies=(factor - 1) * (mine + per_neuron * len(expanded)),
        chosen=some,
    )


def parameters_per_neuron(model: nn.Module, group: NeuronGroup) -> int:
    """Return how many biases and parameters of norms each neuron of a group has."""
    neurons, _ = size_of(model, group.name)
    total = sum(bias_of(model.get_submodule(name)) is not None for name in group.producers)
    for name in group.between:
        module = model.get_submodule(name)
        own = neuron_tensors(module, neurons)
        total += sum(own[n][0].numel() for n, _ in module.named_parameters(recurse=False) if n in own)
    return total


def free_weights(model: nn.Module, name: str) -> int:
    """Count the free weights of the layer of this name."""
    layer = model.get_submodule(name)
    mask = mask_of(layer)
    return oriented_weight(layer).numel() if mask is None else count_free(mask)


def free_by_neuron(
    model: nn.Module, group: NeuronGroup, position: int, expanded: Sequence[int]
) -> tuple[int, int]:
    """Count a consumer's free weights that read the neurons to be expanded, and the others."""
    name = group.consumers[position]
    total = free_weights(model, name)
    neurons, _ = size_of(model, group.name)
    if len(expanded) == neurons and (not group.input_layouts or min(group.input_layouts[position]) > 0):
        return total, 0
    layer = model.get_submodule(name)
    runs = (
        group.input_layouts[position]
        if group.input_layouts
        else default_layout(neurons, size_of(model, name)[1])
    )
    mine = torch.isin(layout_neurons(runs, neurons), torch.tensor(list(expanded)))
    mask = mask_of(layer)
    if mask is None:
        return (own := int(mine.sum()) * (total // len(mine))), total - own
    own = count_free(mask[:, mine.to(mask.device)].contiguous())
    return own, total - own
