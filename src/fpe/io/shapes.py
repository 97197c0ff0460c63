"""Describe the layers and groups that expanding or packing has changed, and make them again from that."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe.errors import CheckpointError
from fpe.expansion.index_maps import ExpandedGroup, IndexMap, Origins, drop_maps_, groups_in
from fpe.expansion.plan import Plan
from fpe.expansion.steps import Weights, mask
from fpe.graph.groups import layout_neurons, layout_of, layout_width
from fpe.graph.layers import PER_NEURON, bias_of, is_linear, neuron_tensors, oriented_weight, per_neuron_class
from fpe.graph.stacked import MaskedStackedLinear, StackedLinear
from fpe.graph.turned import TURNED, MaskedTransposed
from fpe.masked import MASKED, MaskedLayer, MaskedLinear
from fpe.packing.bitmask import BitmaskLayer
from fpe.packing.blocks import BlockLayer
from fpe.packing.codes import CodedLayer
from fpe.packing.layers import KINDS, DenseLayer, PackedLayer, Shape, inputs_of
from fpe.packing.sparse import SparseLayer
from fpe.packing.summary import packed_names

_FORMATS: dict[str, type[PackedLayer]] = {
    kind.format: kind for kind in (BlockLayer, CodedLayer, SparseLayer, BitmaskLayer, DenseLayer)
}
_TURNED = {kind.__name__: plain for kind, plain in TURNED.items()}
#: The kind of masked stacked experts.
STACKED = MaskedStackedLinear.__name__
#: The kind of a user's own modules between layers.
BY_HAND = "own"
_MASKED = {kind.__name__: (kind, plain) for kind, plain in KINDS.items()}


def layer_shapes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Describe the modules whose shapes expanding or packing may have changed, by name, fit for JSON."""
    found: dict[str, dict[str, Any]] = {}
    repacked = packed_names(model)
    for name, module in model.named_modules():
        if isinstance(module, PackedLayer):
            found[name] = {"kind": "packed", "config": module.config()}
        elif name in repacked and type(module) in KINDS.values():  # it had no zeros
            config = {"shape": dict(vars(Shape.of(module))), "bias": bias_of(module) is not None}
            found[name] = {"kind": "plain", "config": config}
        elif isinstance(module, MaskedStackedLinear):
            how = {"transposed": module.transposed, "interleaved": module.interleaved}
            shape, bias = list(module.weight.shape), module.bias is not None
            found[name] = {"kind": STACKED, "shape": shape, "bias": bias, **how}
        elif isinstance(module, MaskedTransposed):
            kind, shape = type(module).__name__, list(cast(Tensor, module.weight).shape)
            found[name] = {"kind": kind, "shape": shape, "bias": module.bias is not None}
        elif isinstance(module, MaskedLayer):
            kind = next(kind.__name__ for kind in MASKED if isinstance(module, kind))
            found[name] = {"kind": kind, "shape": list(module.weight.shape), "bias": module.bias is not None}
        elif (base := per_neuron_class(module)) is not None:
            widths = {attribute: getattr(module, attribute) for attribute in PER_NEURON[base]}
            found[name] = {"kind": base.__name__, "widths": widths}
        elif "fpe_between" in vars(module):
            own = (*module.named_parameters(), *module.named_buffers())
            found[name] = {"kind": BY_HAND, "shapes": {key: list(tensor.shape) for key, tensor in own}}
    return found


def rebuilt(like: nn.Module, name: str, entry: dict[str, Any]) -> nn.Module | None:
    """Make the expanded model's module in the place of the dense model's; None if it is the same."""
    module, kind = like.get_submodule(name), entry["kind"]
    if kind in ("packed", "plain"):
        return _packed(module, name, kind, entry["config"])
    if kind == STACKED:
        return _stacked(module, name, entry)
    if kind in _TURNED:
        return _turned(module, name, entry)
    if kind == BY_HAND:
        return _by_hand(module, name, entry["shapes"])
    if kind not in _MASKED:
        return _widened(module, name, kind, entry["widths"])
    if isinstance(module, _MASKED[kind][0]) and list(cast(Tensor, module.weight).shape) == entry["shape"]:
        return None
    _check_kind(module, name, kind)
    weight = torch.empty(entry["shape"], device=cast(Tensor, module.weight).device)
    bias = weight.new_empty(entry["shape"][0]) if entry["bias"] else None
    return mask(module, Weights(weight, bias, torch.ones_like(weight)))


def _stacked(module: nn.Module, name: str, entry: dict[str, Any]) -> nn.Module | None:
    """Make masked stacked experts in the place of others; None if they are the same."""
    if not isinstance(module, StackedLinear):
        raise TypeError(f"{name!r} is a {type(module).__name__} and was stacked experts")
    if isinstance(module, MaskedStackedLinear) and list(module.weight.shape) == entry["shape"]:
        return None
    module.transposed, module.interleaved = entry["transposed"], entry["interleaved"]
    weight = module.oriented(torch.empty(entry["shape"], device=module.weight.device))
    bias = weight.new_empty(weight.shape[0], weight.shape[2]) if entry["bias"] else None
    return mask(module, Weights(weight, bias, torch.ones_like(weight)))


def _turned(module: nn.Module, name: str, entry: dict[str, Any]) -> nn.Module | None:
    """Make a masked transposed convolution in the place of another; None if it is the same."""
    if not isinstance(module, _TURNED[entry["kind"]]):
        raise TypeError(f"{name!r} is a {type(module).__name__} and was a {_TURNED[entry['kind']].__name__}")
    if isinstance(module, MaskedTransposed) and list(module.weight.shape) == entry["shape"]:
        return None
    weight = torch.empty(entry["shape"], device=cast(Tensor, module.weight).device).transpose(0, 1)
    bias = weight.new_empty(len(weight)) if entry["bias"] else None
    return mask(module, Weights(weight, bias, torch.ones_like(weight)))


def _packed(module: nn.Module, name: str, kind: str, config: dict[str, Any]) -> nn.Module:
    """Make a packed layer, or the ordinary one that packing made, in the place of a dense one."""
    shape, like = Shape.from_dict(config["shape"]), oriented_weight(module).detach()
    _check_kind(module, name, shape.kind)
    made: nn.Module
    if kind == "plain":
        bias = like.new_empty(shape.outputs) if config["bias"] else None
        made = shape.plain(like.new_empty(shape.weight), bias)
    elif config["format"] in _FORMATS and (config["format"] != "bitmask" or "values" in config):
        made = _FORMATS[config["format"]].from_config(config, like)
    else:
        raise CheckpointError(
            f"layer {name!r} is packed as {config['format']!r}, a format that fpe no longer has; unpack the "
            "model with the version of fpe that wrote it, and save the masked model."
        )
    for parameter in made.parameters():
        parameter.requires_grad_(cast(Tensor, module.weight).requires_grad)
    own, old = bias_of(made), bias_of(module)
    if own is not None and old is not None:
        own.requires_grad_(old.requires_grad)
    return made.train(module.training)


def _widened(module: nn.Module, name: str, was: str, widths: dict[str, Any]) -> nn.Module | None:
    """Make a norm, or another module with a tensor entry per neuron, of other widths; None if equal."""
    kind = per_neuron_class(module)
    if kind is None or kind.__name__ != was:
        raise TypeError(f"{name!r} is a {type(module).__name__} and was a {was}")
    widths = {k: tuple(v) if isinstance(v, list) else v for k, v in widths.items()}
    before = {attribute: getattr(module, attribute) for attribute in widths}
    if before == widths:
        return None
    wide = copy.deepcopy(module)
    for attribute, width in widths.items():
        setattr(wide, attribute, width)
        if before[attribute] != width and attribute == PER_NEURON[kind][0]:
            old, new = (v[0] if isinstance(v, tuple) else v for v in (before[attribute], width))
            for tensor, _ in neuron_tensors(wide, old).values():
                tensor.data = tensor.data.new_empty(new, *tensor.shape[1:])
    return wide


def _by_hand(module: nn.Module, name: str, shapes: dict[str, list[int]]) -> nn.Module | None:
    """Make a user's own module whose parameters and buffers have these shapes; None if they have."""
    own = dict((*module.named_parameters(), *module.named_buffers()))
    if own.keys() != shapes.keys():
        had, has = (", ".join(keys) or "none" for keys in (shapes, own))
        raise TypeError(f"{name!r} is a {type(module).__name__} with tensors {has}, and had {had}")
    if all(list(own[key].shape) == shape for key, shape in shapes.items()):
        return None
    wide = copy.deepcopy(module)
    for key, shape in shapes.items():
        tensor = getattr(wide, key)
        tensor.data = tensor.data.new_empty(shape)
    return wide


def _check_kind(module: nn.Module, name: str, kind: str) -> None:
    masked, plain = _MASKED[kind]
    if not (is_linear(module) if masked is MaskedLinear else isinstance(module, plain)):
        was = "linear layer" if masked is MaskedLinear else plain.__name__
        raise TypeError(f"{name!r} is a {type(module).__name__} and was a {was}")


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
    old = "groups" not in manifest
    for group in _groups_of_plans(model, manifest) if old else map(_group, manifest["groups"]):
        for name in group.producers:
            model.get_submodule(name).fpe_neurons = group.index_map  # type: ignore[assignment]
        for name in group.between:
            vars(model.get_submodule(name)).setdefault("fpe_between", []).append(group.index_map)
        for name, neuron in group.consumers.items():
            pairs = vars(model.get_submodule(name)).setdefault("fpe_inputs", [])
            pairs.append((group.index_map, neuron))


def _group(record: Mapping[str, Any]) -> ExpandedGroup:
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in record["index_map"].items()}
    own = IndexMap(**cast("dict[str, Any]", given))
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
                layouts = layer.group.input_layouts
                for position, name in enumerate(layer.group.consumers):
                    each = inputs_of(model.get_submodule(prefix + name)) // layer.neurons_after
                    dense = each * layer.neurons  # the group is its only producer
                    inputs[name] = layout_width(layouts[position], layer.neurons) if layouts else dense
            origins = Origins(model, layers, inputs)
            for layer in layers:
                own = {prefix + n: origins.neurons[layer.group.name, n] for n in layer.group.consumers}
                producers = [prefix + name for name in layer.group.producers]
                between = [prefix + name for name in layer.group.between]
                groups.append(ExpandedGroup(layer.index_map, producers, between, own))
                consumed += own
            record = record.get("earlier")
    for group in groups:  # the inputs of the consumers of two plans are not known
        once = {n: v for n, v in group.consumers.items() if consumed.count(n) == 1}
        group.consumers = {n: v for n, v in once.items() if len(v) == inputs_of(model.get_submodule(n))}
    return groups
