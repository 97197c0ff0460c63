"""Reorder neurons so that those of a block are adjacent, and their consumers to match."""

from __future__ import annotations

from torch import Tensor, nn

from fpe.expansion.index_maps import ExpandedGroup
from fpe.graph.groups import layout_of, layout_sources
from fpe.graph.layers import neuron_tensors, oriented_weight
from fpe.packing.layers import PackedLayer


def can_be_reordered(model: nn.Module, group: ExpandedGroup) -> bool:
    """Tell whether all layers of a group are in the model, and no norm cuts its neurons into adjacent pieces."""
    between = [model.get_submodule(name) for name in group.between]
    if not group.complete or any(isinstance(m, nn.GroupNorm) and m.num_groups > 1 for m in between):
        return False
    consumers = [(model.get_submodule(name), neuron) for name, neuron in group.consumers.items()]
    return all(inputs_of(module) == len(neuron) for module, neuron in consumers)


def reordered_columns(group: ExpandedGroup, order: Tensor) -> dict[str, Tensor]:
    """Return for each consumer, by name, its inputs in the order that matches the neurons in `order`."""
    neurons = len(group.index_map.parent)
    layouts = {name: layout_of(neuron, neurons) for name, neuron in group.consumers.items()}
    return {name: layout_sources(layout, order, neurons) for name, layout in layouts.items()}


def inputs_of(module: nn.Module) -> int:
    """Return how many inputs, or channels, a layer has, packed or not."""
    return module.shape.inputs if isinstance(module, PackedLayer) else oriented_weight(module).shape[1]


def reorder_between(module: nn.Module, neurons: int, order: Tensor) -> dict[str, Tensor]:
    """Return the per-neuron tensors of a module with its neurons in another order."""
    return {
        n: t.detach().index_select(0, order.to(t.device)) for n, t in neuron_tensors(module, neurons).items()
    }
