"""The shapes of the layers that expanding or packing has changed, and these layers made again from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe.errors import CheckpointError
from fpe.expansion.steps import Weights, mask
from fpe.graph.layers import PER_NEURON, bias_of, is_linear, neuron_tensors, oriented_weight
from fpe.masked import MASKED, MaskedLayer, MaskedLinear
from fpe.packing.blocks import BlockLayer
from fpe.packing.codes import CodedLayer
from fpe.packing.layers import DenseLayer, PackedLayer, Shape
from fpe.packing.summary import packed_names

_FROM_CONFIG: dict[str, Callable[[dict[str, Any], Tensor], PackedLayer]] = {
    kind.format: kind.from_config for kind in (BlockLayer, CodedLayer, DenseLayer)
}


def layer_shapes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Describe the modules whose shapes expanding or packing may have changed, by name, fit for JSON."""
    found: dict[str, dict[str, Any]] = {}
    repacked = packed_names(model)
    for name, module in model.named_modules():
        masked = next((kind for kind in MASKED if isinstance(module, kind)), None)
        if isinstance(module, PackedLayer):
            found[name] = {"kind": "packed", "config": module.config()}
        elif name in repacked and type(module) in MASKED.values():  # it had no zeros
            config = {"shape": dict(vars(Shape.of(module))), "bias": bias_of(module) is not None}
            found[name] = {"kind": "plain", "config": config}
        elif isinstance(module, MaskedLayer) and masked is not None:
            shape = list(module.weight.shape)
            found[name] = {"kind": masked.__name__, "shape": shape, "bias": module.bias is not None}
        elif type(module) in PER_NEURON:  # subclasses are never widened
            widths = {attribute: getattr(module, attribute) for attribute in PER_NEURON[type(module)]}
            found[name] = {"kind": type(module).__name__, "widths": widths}
    return found


def rebuilt(like: nn.Module, name: str, entry: dict[str, Any]) -> nn.Module | None:
    """Make the module of the expanded model that replaces this one of the dense model; None if it is the same."""
    module = like.get_submodule(name)
    if entry["kind"] in ("packed", "plain"):
        return _packed(module, name, entry["kind"], entry["config"])
    kinds = {kind.__name__: (kind, plain) for kind, plain in MASKED.items()}
    if entry["kind"] in kinds:
        kind, plain = kinds[entry["kind"]]
        if isinstance(module, kind) and list(module.weight.shape) == entry["shape"]:
            return None
        _check_stands_for(module, name, kind, plain)
        weight = torch.empty(entry["shape"], device=module.weight.device)  # type: ignore[arg-type]
        bias = weight.new_empty(entry["shape"][0]) if entry["bias"] else None
        return mask(module, Weights(weight, bias, torch.ones_like(weight)))
    per_neuron = next((kind for kind in type(module).__mro__ if kind in PER_NEURON), None)
    if per_neuron is None or per_neuron.__name__ != entry["kind"]:
        raise TypeError(f"{name!r} is a {type(module).__name__} and was a {entry['kind']}")
    widths = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["widths"].items()}
    if all(getattr(module, attribute) == width for attribute, width in widths.items()):
        return None
    wide = copy.deepcopy(module)
    for attribute, width in widths.items():
        before = getattr(module, attribute)
        setattr(wide, attribute, width)
        if before == width or attribute != PER_NEURON[per_neuron][0]:
            continue
        old, new = (v[0] if isinstance(v, tuple) else v for v in (before, width))
        for tensor in neuron_tensors(wide, old).values():
            tensor.data = tensor.data.new_empty(new, *tensor.shape[1:])
    return wide


def _packed(module: nn.Module, name: str, kind: str, config: dict[str, Any]) -> nn.Module:
    """Make a packed layer, or the ordinary one that packing made, in the place of a dense one."""
    shape = Shape.from_dict(config["shape"])
    masked, plain = next((m, p) for m, p in MASKED.items() if m.__name__ == shape.kind)
    _check_stands_for(module, name, masked, plain)
    like = oriented_weight(module).detach()
    made: nn.Module
    if kind == "packed":
        if config["format"] not in _FROM_CONFIG:
            raise CheckpointError(
                f"layer {name!r} is packed as {config['format']!r}, a format that fpe no longer has; unpack the "
                "model with the version of fpe that wrote it, and save the masked model."
            )
        made = _FROM_CONFIG[config["format"]](config, like)
    else:
        bias = like.new_empty(shape.outputs) if config["bias"] else None
        made = shape.plain(like.new_empty(shape.outputs, shape.inputs, *shape.taps), bias)
    own, old = bias_of(made), bias_of(module)
    for parameter in made.parameters():
        parameter.requires_grad_(cast(Tensor, module.weight).requires_grad)
    if own is not None and old is not None:
        own.requires_grad_(old.requires_grad)
    return made.train(module.training)


def _check_stands_for(module: nn.Module, name: str, masked: type, plain: type) -> None:
    """Refuse to put a layer in the place of one of another kind."""
    if not (is_linear(module) if masked is MaskedLinear else isinstance(module, plain)):
        was = "linear layer" if masked is MaskedLinear else plain.__name__
        raise TypeError(f"{name!r} is a {type(module).__name__} and was a {was}")
