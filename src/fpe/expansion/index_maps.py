"""Index maps: which child of which parent each neuron of an expanded layer is.

They are attributes of the layers themselves, so that copies, parts and larger models have them too:
``fpe_neurons`` of a producer is the `IndexMap` of the group, ``fpe_between`` of a norm over its neurons holds
those of all its groups, ``fpe_inputs`` of a consumer pairs of an `IndexMap` and the neuron of each input, −1
for other inputs. All layers of a group share one object, by which `groups_in` finds them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fpe.graph.groups import Layout, layout_for, layout_neurons, layout_of, layout_sources, layout_width
from fpe.graph.layers import neuron_tensors, oriented, oriented_weight, size_of

if TYPE_CHECKING:
    from fpe.expansion.plan import LayerPlan

_ATTRIBUTES = ("fpe_neurons", "fpe_between", "fpe_inputs")
#: The attribute of a model with a hash of its modules when it was expanded.
STRUCTURE = "fpe_structure"


@dataclass(frozen=True)
class IndexMap:
    """The neurons of an expanded layer, in their order."""

    neurons: int  # parents
    factor: int  # children of each parent that is expanded
    groups: int = 1  # groups of adjacent parents with a partition each, if the split is shared
    chosen: tuple[int, ...] | None = None  # the parents that are expanded, if not all are
    dropped: tuple[int, ...] = ()  # children that were not created, numbered parent × factor + child
    notes: tuple[str, ...] = ()  # what was done otherwise than asked
    members: tuple[int, ...] = ()  # how many producers, modules between and consumers the group had
    # Equal parts of each producer's outputs, of which a neuron has one each; several if producers differ.
    parts: int | tuple[int, ...] = 1

    @cached_property
    def _parent_and_child(self) -> tuple[Tensor, Tensor]:
        expanded = torch.full((self.neurons,), self.chosen is None)
        expanded[list(self.chosen or ())] = True
        parent = torch.arange(self.neurons).repeat_interleave(torch.where(expanded, self.factor, 1))
        child = torch.arange(len(parent)) - torch.searchsorted(parent, parent)
        child = child.masked_fill(~expanded[parent], self.factor)
        stays = torch.ones(len(parent), dtype=torch.bool)
        stays[list(self.dropped)] = False
        return parent[stays], child[stays]

    @property
    def parent(self) -> Tensor:
        """The parent of each neuron, in ascending order."""
        return self._parent_and_child[0]

    @property
    def child(self) -> Tensor:
        """Which child of it each is, from 0; `factor` for a neuron that was not expanded."""
        return self._parent_and_child[1]

    @property
    def blocks(self) -> Tensor:
        """The block of each neuron: in each group of parents all first children make one, and so on."""
        group = self.parent * self.groups // self.neurons
        return group * (self.factor + (self.chosen is not None)) + self.child

    def parts_in(self, rows: int) -> int:
        """Return how many parts a producer with so many rows has; 0 if no producer has so many."""
        parts = self.parts if isinstance(self.parts, tuple) else (self.parts,)
        return next((n for n in parts if n * len(self.parent) == rows), 0)

    def origins(self, parts: int) -> Tensor:
        """Return the old row of each new one of a tensor with so many rows of each neuron, part by part."""
        return layout_sources((1,) * parts, self.parent, self.neurons)


@dataclass
class ExpandedGroup:
    """The layers of a model that share an index map, by name; of each consumer the neuron of each input."""

    index_map: IndexMap
    producers: list[str] = field(default_factory=list)
    between: list[str] = field(default_factory=list)
    consumers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all its layers are in the model."""
        return (len(self.producers), len(self.between), len(self.consumers)) == self.index_map.members


def groups_in(model: nn.Module) -> list[ExpandedGroup]:
    """Return the expanded groups of a model and its parts, with the layers that it still has of each."""
    found: dict[int, ExpandedGroup] = {}

    def group(index_map: IndexMap) -> ExpandedGroup:
        return found.setdefault(id(index_map), ExpandedGroup(index_map))

    for name, module in model.named_modules():
        neurons, between, inputs = (vars(module).get(attribute) for attribute in _ATTRIBUTES)
        if neurons is not None:
            group(neurons).producers.append(name)
        for index_map in between or ():
            group(index_map).between.append(name)
        for index_map, neuron in inputs or ():
            group(index_map).consumers[name] = neuron
    return [one for one in found.values() if one.producers]


def remember_structure_(model: nn.Module) -> None:
    """Let a model know its modules, so that `is_as_expanded` sees whether others have come since."""
    setattr(model, STRUCTURE, _structure(model))


def is_as_expanded(model: nn.Module) -> bool:
    """Tell whether a model has the modules, and as many hooks, as when it was expanded or loaded."""
    return vars(model).get(STRUCTURE) == _structure(model)


def _structure(model: nn.Module) -> str:
    """Return a hash of all modules' names, of the types of those not expanded, and of their hooks."""
    layers = {name for group in groups_in(model) for name in (*group.producers, *group.consumers)}
    modules = [
        (
            name,
            "" if name in layers else type(m).__qualname__,
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
        )
        for name, m in model.named_modules(remove_duplicate=False)
    ]
    return hashlib.sha256(repr(modules).encode()).hexdigest()[:16]


def index_map_of(layer: nn.Module) -> IndexMap | None:
    """Return the index map of an expanded layer's neurons; None for another layer."""
    own = vars(layer).get("fpe_neurons")
    fits = isinstance(own, IndexMap) and own.parts_in(len(oriented_weight(layer))) > 0
    return cast(IndexMap, own) if fits else None


def copy_maps_(module: nn.Module, like: nn.Module) -> nn.Module:
    """Give a module the index maps of the one that it replaces."""
    for attribute in _ATTRIBUTES:
        if attribute in vars(like):
            setattr(module, attribute, vars(like)[attribute])
    return module


def drop_maps_(module: nn.Module) -> nn.Module:
    """Take the index maps from a module."""
    for attribute in _ATTRIBUTES:
        vars(module).pop(attribute, None)
    return module


def memo_with(model: nn.Module, replaced: Mapping[str, nn.Module]) -> dict[int, Any]:
    """Return a memo for copying a model with some modules replaced, and with the same index maps."""
    memo: dict[int, Any] = {id(model.get_submodule(name)): new for name, new in replaced.items()}
    return memo | {id(group.index_map): group.index_map for group in groups_in(model)}


class Origins:
    """The old row and column of each new one, after the groups of a model that were expanded so far.

    `inputs` are numbers of inputs before that the model does not show; `parents` are those of wide neurons by
    the name of their group, where they are not those of its plan.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[LayerPlan] = (),
        inputs: Mapping[str, int] | None = None,
        parents: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.inputs, self.parents = model, inputs or {}, parents or {}
        self.rows: dict[str, Tensor] = {}
        self.columns: dict[str, Tensor] = {}
        self.neurons: dict[tuple[str, str], Tensor] = {}  # by group and consumer, the neuron of each input
        self.widths: dict[str, int] = {}  # of modules between layers, the old number of entries
        for layer in layers:
            self.add(layer)

    def layout(self, layer: LayerPlan, name: str) -> Layout:
        """Return the present layout of a consumer's inputs: other groups may have widened it."""
        inputs = self.inputs[name] if name in self.inputs else size_of(self.model, name)[1]
        layout = layout_for(layer.group, name, layer.neurons, inputs)
        if name in self.columns:
            layout = layout_of(layout_neurons(layout, layer.neurons)[self.columns[name]], layer.neurons)
        return layout

    def add(self, layer: LayerPlan) -> list[Tensor]:
        """Record the expansion of a group; return, for each consumer, the input that each new one copies."""
        group = layer.group
        parent = self.parents.get(group.name, layer.index_map.parent)
        for name in group.producers:
            self.rows[name] = layout_sources((1,) * group.parts_of(name), parent, layer.neurons)
        for name in group.between:
            layout, old = group.entries_of(name), self.rows.get(name)
            self.widths.setdefault(name, layout_width(layout, layer.neurons))
            if old is not None:  # another group has widened it
                layout = layout_of(layout_neurons(layout, layer.neurons)[old], layer.neurons)
            source = layout_sources(layout, parent, layer.neurons)
            self.rows[name] = source if old is None else old[source]
        sources = []
        for name in group.consumers:
            layout = self.layout(layer, name)
            source = layout_sources(layout, parent, layer.neurons)
            self.columns[name] = self.columns[name][source] if name in self.columns else source
            for key in [key for key in self.neurons if key[1] == name]:
                self.neurons[key] = self.neurons[key][source]
            self.neurons[group.name, name] = layout_neurons(layout, len(parent))
            sources.append(source)
        return sources

    def lift(self, name: str, parameter: str, value: Tensor) -> Tensor:
        """Give each entry of a new parameter the value of its origin, such as a moment; nothing is masked.

        The value is returned in the shape of `oriented_weight`.
        """
        value = oriented(self.model.get_submodule(name), value)
        axis: int | None = 0
        if name in self.widths:
            own = neuron_tensors(self.model.get_submodule(name), self.widths[name])
            axis = own[parameter][1] if parameter in own else None
        if name in self.rows and axis is not None and len(value):
            value = value.index_select(axis, self.rows[name].to(value.device))
        if name in self.columns and parameter == "weight":
            value = value.index_select(1, self.columns[name].to(value.device))
        return value.contiguous()

    def attach_maps_(self, modules: dict[str, nn.Module], layers: Sequence[LayerPlan]) -> None:
        """Give the new modules of a model their index maps, and the older ones that are still true."""
        old = {name: self.model.get_submodule(name) for name in modules}
        gone = {id(vars(old[n]).get("fpe_neurons")) for layer in layers for n in layer.group.producers}
        inputs: dict[str, list[Any]] = {}
        between: dict[str, list[Any]] = {}
        for name, module in modules.items():
            older = vars(copy_maps_(module, old[name])).get("fpe_inputs", ())
            columns = self.columns.get(name, slice(None))
            inputs[name] = [(own, neuron[columns]) for own, neuron in older if id(own) not in gone]
            between[name] = [own for own in vars(module).get("fpe_between", ()) if id(own) not in gone]
        for layer in layers:
            index_map, group = layer.index_map, layer.group
            for name in group.producers:
                modules[name].fpe_neurons = index_map  # type: ignore[assignment]
            for name in group.between:
                between[name].append(index_map)
            for name in group.consumers:
                inputs[name].append((index_map, self.neurons[group.name, name]))
        for attribute, found in (("fpe_inputs", inputs), ("fpe_between", between)):
            for name, own in found.items():
                if own:
                    setattr(modules[name], attribute, own)
