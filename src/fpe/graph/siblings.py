"""Modules that a batch does not reach, such as experts of other tokens; their siblings are reached.

A sibling stands in the same list, is of the same class and has parameters of the same shapes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fpe.graph.copies import analyzed, not_run
from fpe.graph.groups import NeuronGroup
from fpe.graph.inputs import Call, copied_call

_LISTS = (nn.ModuleList, nn.ModuleDict)


def recorded_calls(model: nn.Module, call: Call) -> dict[str, list[Call]]:
    """Run a copy of a model once, and return the arguments of every call of each of its modules."""
    calls: dict[str, list[Call]] = {}

    def record(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(name, []).append((args, kwargs))

    args, kwargs = copied_call(call)
    with analyzed(model) as own, torch.no_grad():
        for name, module in own.named_modules():
            module.register_forward_pre_hook(functools.partial(record, name), with_kwargs=True)
        try:
            own(*args, **kwargs)
        except Exception as error:
            raise not_run(type(model).__name__, error) from error
    return calls


def reaches(call: Call) -> bool:
    """Tell whether a call has tensors that are not empty."""
    tensors = [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
    return bool(tensors) and all(tensor.numel() for tensor in tensors)


def sibling_call(holder: nn.Module, name: str, child: str, calls: dict[str, list[Call]]) -> Call | None:
    """Return a call of a sibling of a child of `holder`, a list of the name `name`; None if there is none."""
    if not isinstance(holder, _LISTS):
        return None
    own = holder.get_submodule(child)
    for other, module in holder.named_children():
        if other != child and type(module) is type(own) and _shapes(module) == _shapes(own):
            for call in calls.get(f"{name}.{other}".lstrip("."), ()):
                if reaches(call):
                    return call
    return None


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, parameter.shape) for name, parameter in module.named_parameters()]


def apart(model: nn.Module, group: NeuronGroup, calls: dict[str, list[Call]]) -> tuple[str, Call] | None:
    """Return the smallest part that has all of a group and siblings that are reached, and their call."""
    names = [name.split(".") for name in (*group.producers, *group.consumers, *group.between)]
    shared = [parts[0] for parts in zip(*names, strict=False) if len(set(parts)) == 1]
    for length in range(len(shared), 0, -1):
        name, child = ".".join(shared[: length - 1]), shared[length - 1]
        if (call := sibling_call(model.get_submodule(name), name, child, calls)) is not None:
            return f"{name}.{child}".lstrip("."), call
    return None
