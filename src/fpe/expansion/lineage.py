"""Which row and which column of the dense model each row and column of the wide one comes from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fpe.expansion.plan import LayerPlan, Plan
from fpe.expansion.steps import Family
from fpe.graph.groups import Layout, default_layout, layout_neurons, layout_of, layout_sources
from fpe.graph.layers import is_transposed, size_of


def family_of(layer: LayerPlan) -> Family:
    """Return the neurons of an expanded layer: all children of all parents, but for those who have left."""
    if layer.chosen is None:
        family = Family.of(layer.neurons, layer.factor)
        if not layer.left:
            return family
        stays = torch.ones(len(family.parent), dtype=torch.bool)
        stays[list(layer.left)] = False
        return Family(family.parent[stays], family.role[stays])
    counts = torch.ones(layer.neurons, dtype=torch.long)
    counts[list(layer.chosen)] = layer.factor
    parent = torch.arange(layer.neurons).repeat_interleave(counts)
    role = torch.arange(len(parent)) - torch.searchsorted(parent, parent)
    alone = torch.ones(layer.neurons, dtype=torch.bool)
    alone[list(layer.chosen)] = False
    return Family(parent, role.masked_fill(alone[parent], layer.factor))


def blocks_of(layer: LayerPlan) -> Tensor:
    """Return the block of each neuron of an expanded layer, shape (neurons_after,).

    In each group of parents all first children make one, all second ones the next, and so on.
    """
    family = family_of(layer)
    group = family.parent * layer.groups // layer.neurons
    roles = layer.factor + (layer.chosen is not None)
    return group * roles + family.role


class Lineage:
    """Where rows and columns come from, after the groups that have been expanded so far.

    Parameters
    ----------
    model : nn.Module
        The dense model; only shapes are read.
    inputs : mapping of str to int, optional
        How many inputs its readers have, if `model` is another than the dense one.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, int] | None = None) -> None:
        self.model, self.inputs = model, inputs or {}
        self.rows: dict[str, Tensor] = {}
        self.columns: dict[str, Tensor] = {}

    @classmethod
    def of(cls, model: nn.Module, plan: Plan) -> Lineage:
        """Return the lineage after a whole plan."""
        lineage = cls(model)
        for layer in plan.layers:
            lineage.grow(layer)
        return lineage

    def inputs_of(self, name: str) -> int:
        """Return how many inputs a layer of the dense model has."""
        return self.inputs[name] if name in self.inputs else size_of(self.model, name)[1]

    def layouts(self, layer: LayerPlan) -> list[Layout]:
        """Return the present layouts of a group's consumers: other groups may have widened them."""
        layouts = []
        for position, name in enumerate(layer.group.consumers):
            given = layer.group.input_layouts
            inputs = self.inputs_of(name)
            runs = given[position] if given else default_layout(layer.neurons, inputs)
            if name in self.columns:
                neuron = layout_neurons(runs, layer.neurons)[self.columns[name]]
                runs = layout_of(neuron, layer.neurons)
            layouts.append(runs)
        return layouts

    def grow(self, layer: LayerPlan) -> None:
        """Take down the expansion of one group."""
        parent = family_of(layer).parent
        layouts = self.layouts(layer)
        for name in (*layer.group.producers, *layer.group.between):
            self.rows[name] = parent
        for name, runs in zip(layer.group.consumers, layouts, strict=True):
            before = self.columns.get(name, torch.arange(self.inputs_of(name)))
            self.columns[name] = before[layout_sources(runs, parent, layer.neurons)]

    def names(self) -> list[str]:
        """Return the modules concerned."""
        return list(dict.fromkeys([*self.rows, *self.columns]))

    def lift(self, name: str, parameter: str, value: Tensor) -> Tensor:
        """Give each entry of the wide model's parameter what its dense origin had.

        Parameters
        ----------
        name, parameter : str
            Module, and parameter of it: ``"weight"`` or ``"bias"``, say.
        value : Tensor
            Of the shape of the dense parameter: a moment, for instance.

        Returns
        -------
        Tensor
            Of the shape of the wide parameter; masks are not applied.
        """
        if is_transposed(self.model.get_submodule(name)) and value.dim() == 2:
            value = value.t()
        if name in self.rows and len(value):
            value = value.index_select(0, self.rows[name].to(value.device))
        if name in self.columns and parameter == "weight":
            value = value.index_select(1, self.columns[name].to(value.device))
        return value.contiguous()
