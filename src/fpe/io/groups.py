"""The expanded groups of a model as records in files, and index maps made again from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from fpe.expansion.index_maps import ExpandedGroup, IndexMap, Origins, drop_maps_, groups_in
from fpe.expansion.plan import Plan
from fpe.graph.groups import layout_neurons, layout_of, layout_width
from fpe.packing.order import inputs_of


def group_records(model: nn.Module) -> list[dict[str, Any]]:
    """Describe the expanded groups of a model, fit for JSON."""
    return [
        {
            "index_map": dataclasses.asdict(group.index_map),
            "producers": group.producers,
            "between": group.between,
            "consumers": {n: layout_of(v, len(group.index_map.parent)) for n, v in group.consumers.items()},
        }
        for group in groups_in(model)
    ]


def attach_groups_(model: nn.Module, manifest: Mapping[str, Any]) -> None:
    """Give the layers of a model the index maps of a manifest, instead of any that they have."""
    for module in model.modules():
        drop_maps_(module)
    groups = (
        _groups_of_plans(model, manifest) if "groups" not in manifest else map(_group, manifest["groups"])
    )
    for group in groups:
        for name in group.producers:
            model.get_submodule(name).fpe_neurons = group.index_map  # type: ignore[assignment]
        for name in group.between:
            model.get_submodule(name).fpe_between = group.index_map  # type: ignore[assignment]
        for name, neuron in group.consumers.items():
            pairs = vars(model.get_submodule(name)).setdefault("fpe_inputs", [])
            pairs.append((group.index_map, neuron))


def _group(record: Mapping[str, Any]) -> ExpandedGroup:
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in record["index_map"].items()
    }
    own = IndexMap(**given)
    consumers = {n: layout_neurons(tuple(k), len(own.parent)) for n, k in record["consumers"].items()}
    return ExpandedGroup(own, record["producers"], record["between"], consumers)


def _groups_of_plans(model: nn.Module, manifest: Mapping[str, Any]) -> list[ExpandedGroup]:
    """Return the groups from the plans of a model and its parts, which earlier versions stored instead."""
    groups: list[ExpandedGroup] = []
    consumed: list[str] = []
    for part, known in {"": manifest, **manifest.get("parts", {})}.items():
        prefix, record = f"{part}." if part else "", known.get("plan")
        while record:
            done = {name for group in groups for name in group.producers}
            layers = [
                layer
                for layer in Plan.from_dict(record).layers
                if done.isdisjoint(prefix + name for name in layer.group.producers)
            ]
            inputs: dict[str, int] = {}
            for layer in layers:
                for position, name in enumerate(layer.group.consumers):
                    layouts = layer.group.input_layouts
                    each = inputs_of(model.get_submodule(prefix + name)) // layer.neurons_after
                    dense = each * layer.neurons  # the group is its only producer
                    inputs[name] = layout_width(layouts[position], layer.neurons) if layouts else dense
            origins = Origins(model, layers, inputs)
            for layer in layers:
                own = {prefix + n: origins.neuron_of_inputs(layer, n) for n in layer.group.consumers}
                producers = [prefix + name for name in layer.group.producers]
                between = [prefix + name for name in layer.group.between]
                groups.append(ExpandedGroup(layer.index_map, producers, between, own))
                consumed += own
            record = record.get("earlier")
    for group in groups:  # the inputs of the consumers of two plans are not known
        once = {n: v for n, v in group.consumers.items() if consumed.count(n) == 1}
        group.consumers = {n: v for n, v in once.items() if len(v) == inputs_of(model.get_submodule(n))}
    return groups
