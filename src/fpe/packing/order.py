"""In what order neurons stand: the neurons of a block side by side, and their readers reordered to match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fpe.expansion.lineage import Lineage
from fpe.expansion.plan import LayerPlan, Plan
from fpe.graph.groups import Layout, default_layout, layout_sources, layout_width
from fpe.graph.layers import neuron_tensors, oriented_weight
from fpe.packing.layers import PackedLayer


def planned_layer(plans: Sequence[Plan], name: str, rows: int) -> LayerPlan | None:
    """Return the plan that has widened a layer to so many neurons; None if there is none.

    Parameters
    ----------
    plans : sequence of Plan
        The wide model's, and those of its parts.
    name : str
        A layer of it.
    rows : int
        Its neurons.
    """
    for layer in (layer for plan in plans for layer in plan.layers):
        if name in layer.group.producers and layer.neurons_after == rows:
            return layer
    return None


def ordered_layers(plans: Sequence[Plan]) -> list[LayerPlan]:
    """Return the groups whose consumers are each in one plan, which then knows all of their inputs."""
    reads = Counter(
        name for plan in plans for name in {name for layer in plan.layers for name in layer.group.consumers}
    )
    layers = [layer for plan in plans for layer in plan.layers]
    return [layer for layer in layers if all(reads[name] == 1 for name in layer.group.consumers)]


def can_be_reordered(model: nn.Module, plan: Plan, layer: LayerPlan) -> bool:
    """Tell whether the neurons of a group can stand in any order.

    They can if no norm cuts them into adjacent pieces, and the plan accounts for all inputs of their readers.
    """
    between = [model.get_submodule(name) for name in layer.group.between]
    if any(isinstance(m, nn.GroupNorm) and m.num_groups > 1 for m in between):
        return False
    columns = reordered_columns(model, plan, layer, torch.arange(layer.neurons_after))
    inputs = {name: inputs_of(model.get_submodule(name)) for name in columns}
    return all(torch.equal(own, torch.arange(inputs[name])) for name, own in columns.items())


def reordered_columns(model: nn.Module, plan: Plan, layer: LayerPlan, order: Tensor) -> dict[str, Tensor]:
    """Return for each reader of a group which of its inputs each of its inputs becomes.

    Parameters
    ----------
    model : nn.Module
        The wide model; only shapes are read.
    plan : Plan
        Its plan.
    layer : LayerPlan
        The group, of the plan.
    order : Tensor
        The neuron that will stand at each place.

    Returns
    -------
    dict of str to Tensor
        By the name of the reader, indices into its inputs.
    """
    lineage = _final_lineage(model, plan)
    columns = {}
    for position, name in enumerate(layer.group.consumers):
        runs = _wide_runs(lineage, layer, position, name)
        columns[name] = layout_sources(runs, order, layer.neurons_after)
    return columns


def inputs_of(module: nn.Module) -> int:
    """Return how many inputs, or channels, a layer has, packed or not."""
    if isinstance(module, PackedLayer):
        return module.shape.inputs
    return oriented_weight(module).shape[1]


def _final_lineage(model: nn.Module, plan: Plan) -> Lineage:
    lineage = Lineage(model, _dense_inputs(model, plan))
    for layer in plan.layers:
        lineage.grow(layer)
    return lineage


def _dense_inputs(model: nn.Module, plan: Plan) -> dict[str, int]:
    """Return how many inputs each reader had before the expansion."""
    inputs: dict[str, int] = {}
    for layer in plan.layers:
        for position, name in enumerate(layer.group.consumers):
            given = layer.group.input_layouts
            if given:
                inputs[name] = layout_width(given[position], layer.neurons)
            else:  # the group is its only reader
                inputs[name] = inputs_of(model.get_submodule(name)) // layer.neurons_after * layer.neurons
    return inputs


def _wide_runs(lineage: Lineage, layer: LayerPlan, position: int, name: str) -> Layout:
    """Return the layout of a reader's inputs after the expansion, over the wide neurons."""
    given = layer.group.input_layouts
    dense = given[position] if given else default_layout(layer.neurons, lineage.inputs_of(name))
    origin = lineage.columns[name]
    runs, start = [], 0
    for k in dense:
        length = k * layer.neurons if k > 0 else -k
        here = int(((origin >= start) & (origin < start + length)).sum())
        runs.append(k if k > 0 else -here)
        start += length
    return tuple(runs)


def reorder_between(module: nn.Module, neurons: int, order: Tensor) -> dict[str, Tensor]:
    """Return the per-neuron tensors of a module with its neurons in another order."""
    return {
        n: t.detach().index_select(0, order.to(t.device)) for n, t in neuron_tensors(module, neurons).items()
    }
