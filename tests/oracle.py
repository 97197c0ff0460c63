"""The wide network that fpe must equal, made without fpe: neurons copied whole, outgoing weights divided."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

#: Attributes that are a number of neurons.
WIDTHS = ("num_features", "num_channels", "num_parameters", "out_features", "out_channels", "nf")

#: PyTorch's own modules with an entry for each neuron.
_TORCH = (
    *(nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU),
    nn.modules.conv._ConvNd,
)


def copied(model: nn.Module, groups: list[dict[str, Any]], factor: int) -> nn.Module:
    """Return a network with `factor` copies of each neuron of some groups; it computes what `model` does.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    groups : list of dict
        The names of ``producers``, ``consumers`` and the modules ``between`` them. A consumer's inputs are
        shared out evenly among the neurons, adjacent ones together, or as in ``input_layouts``; entries of
        what is between are as in ``between_layouts``. A neuron is one output of each of ``parts`` equal parts
        of a producer, one number for all of them or one for each. The inputs of a consumer in groups are
        those of each of its groups.
    factor : int
        How many copies.
    """
    wide = copy.deepcopy(model)
    for group in groups:
        if ".stacked." in group["producers"][0]:
            _stacked_copied(wide, group, factor)
            continue
        rows = len(_oriented(wide.get_submodule(group["producers"][0])))
        parts = group.get("parts", 1)
        neurons = rows // (parts if isinstance(parts, int) else parts[0])
        entries = dict(zip(group["between"], group.get("between_layouts", ()), strict=False))
        for name in (*group["producers"], *group["between"]):
            module = wide.get_submodule(name)
            if name in entries and isinstance(module, _TORCH):
                _entries_copied(module, entries[name], neurons, factor)
                continue
            turned = _turned(module)
            width = len(_oriented(module)) if name in group["producers"] else rows
            for key, tensor in [
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            ]:
                own = name in group["between"] and not isinstance(module, _TORCH)
                if tensor.dim() and (not own or neurons in tensor.shape):
                    axis = list(tensor.shape).index(neurons) if own else int(turned and key == "weight")
                    _put(module, key, tensor.detach().repeat_interleave(factor, axis))
            for attribute in WIDTHS:
                if getattr(module, attribute, None) in (width, neurons):
                    setattr(module, attribute, getattr(module, attribute) * factor)
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.normalized_shape = (module.normalized_shape[0] * factor,)
            if getattr(module, "groups", 1) == rows and name in group["between"]:
                module.groups = module.in_channels = rows * factor
        for number, name in enumerate(group["consumers"]):
            module = wide.get_submodule(name)
            weight = _oriented(module)
            given = group.get("input_layouts")
            layout = given[number] if given else (weight.shape[1] // neurons,)
            pieces = weight.split([k * neurons if k > 0 else -k for k in layout], 1)
            weight = torch.cat([_shared(w, k, factor) for w, k in zip(pieces, layout, strict=True)], 1)
            _put(module, "weight", weight.transpose(0, 1) if _turned(module) else weight)
            for attribute in ("in_features", "in_channels", "nx"):
                if hasattr(module, attribute):
                    setattr(module, attribute, weight.shape[1] * getattr(module, "groups", 1))
    return wide


def check_copies(model: nn.Module, groups: Any, batch: tuple[Tensor, ...]) -> None:
    """Assert that two and three copies of all neurons of these groups compute the same, in both modes."""
    for factor in (2, 3):
        whole = copied(model, [vars(group) for group in groups], factor)
        for training in (False, True):
            dense = copy.deepcopy(model).train(training)(*batch)
            assert dense.abs().max() > 1e-3
            torch.testing.assert_close(whole.train(training)(*batch), dense)


def _entries_copied(module: nn.Module, layout: tuple[int, ...], neurons: int, factor: int) -> None:
    """Copy the entries of each neuron in a module of PyTorch's over other values too."""
    sizes = [k * neurons if k > 0 else -k for k in layout]
    for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if tensor.dim():
            pieces = zip(tensor.detach().split(sizes), layout, strict=True)
            _put(module, key, torch.cat([_repeated(piece, k, factor) for piece, k in pieces]))
    old, new = sum(sizes), len(module.weight)
    for attribute in (*WIDTHS, "in_channels", "groups"):
        if hasattr(module, attribute):
            setattr(module, attribute, getattr(module, attribute) * new // old)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = (new,)


def _repeated(entries: Tensor, each: int, factor: int) -> Tensor:
    """Copy the entries of each neuron, `each` adjacent ones; none if it is negative."""
    if each < 0:
        return entries
    return entries.unflatten(0, (-1, each)).repeat_interleave(factor, 0).flatten(0, 1)


def _stacked_copied(wide: nn.Module, group: dict[str, Any], factor: int) -> None:
    """Copy the neurons of experts whose weights, of shape (experts, …), are stacked in one parameter."""
    for names, consumes in ((group["producers"], False), (group["consumers"], True)):
        for name in names:
            holder, _, key = name.rpartition(".")
            if not holder.endswith("stacked"):
                raise NotImplementedError(name)
            module = wide.get_submodule(holder.removesuffix("stacked").rstrip("."))
            weight, turned = getattr(module, key).detach(), name in group["transposed"]
            bias = getattr(module, f"{key}_bias", getattr(module, f"b{key[1:]}", None))
            if consumes:
                _put(module, key, weight.repeat_interleave(factor, 1 if turned else 2) / factor)
                continue
            parts, inside = (1, group["parts"]) if group["interleaved"] else (group["parts"], 1)
            for tensor, own, axis in ((weight, key, 2 if turned else 1), (bias, None, 1)):
                if tensor is None:
                    continue
                own = own or next(n for n, p in module.named_parameters() if p is tensor)
                split = tensor.detach().unflatten(axis, (parts, -1, inside))
                _put(module, own, split.repeat_interleave(factor, axis + 1).flatten(axis, axis + 2))


def _shared(inputs: Tensor, each: int, factor: int) -> Tensor:
    """Copy the inputs of each neuron, `each` adjacent ones, and divide them; none if `each` is negative."""
    if each < 0:
        return inputs
    return inputs.unflatten(1, (-1, each)).repeat_interleave(factor, 1).flatten(1, 2) / factor


def _oriented(module: nn.Module) -> Tensor:
    weight = module.weight.detach()
    return weight.transpose(0, 1) if _turned(module) else weight


def _turned(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" or isinstance(module, nn.modules.conv._ConvTransposeNd)


def _put(module: nn.Module, key: str, value: Tensor) -> None:
    if key in module._parameters:
        value = nn.Parameter(value.contiguous())
    setattr(module, key, value)


def without_chance(model: nn.Module) -> nn.Module:
    """Switch dropout off, so that training mode computes the same each time; return the model."""
    for module in model.modules():
        for attribute, value in list(vars(module).items()):
            if "drop" in attribute and isinstance(value, float):
                setattr(module, attribute, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def double(model: nn.Module, batch: Any) -> tuple[nn.Module, Any]:
    """Return a model and its batch in double precision."""

    def finer(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    if isinstance(batch, dict):
        return model.double(), {k: finer(v) for k, v in batch.items()}
    return model.double(), tuple(map(finer, batch)) if isinstance(batch, tuple) else finer(batch)
