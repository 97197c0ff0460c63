"""Follow a model in parts where its whole forward pass cannot be followed.

What Python decides by looking at data cannot be exported, and a trace of one run would not show the other
ways. So such a forward pass is not looked into: each module that it calls once is exported on its own, with
the arguments that it got in one real run, and its neurons must not leave it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fpe.errors import ModelError
from fpe.graph.analysis import analysed, copied_call
from fpe.graph.follow import exported, follow
from fpe.graph.groups import HEAD, Found, NeuronGroup, Skipped
from fpe.graph.inputs import Call
from fpe.graph.layers import looks_like_layer


def follow_parts(model: nn.Module, call: Call, error: Exception) -> Found:
    """Find the groups inside those parts of a model that can be followed.

    Parameters
    ----------
    model : nn.Module
        Not run: a copy is, in evaluation mode, without gradients.
    call : tuple
        Positional and keyword arguments for it.
    error : Exception
        Why the whole cannot be exported.

    Returns
    -------
    Found
        As of the whole; layers outside the parts are left alone with the reason.

    Raises
    ------
    ModelError
        If the model cannot be run on these arguments.
    """
    calls = _record(model, call)
    groups: list[NeuronGroup] = []
    skipped: list[Skipped] = []
    attention = False

    def visit(module: nn.Module, name: str, reason: str) -> None:
        nonlocal attention
        for child_name, child in module.named_children():
            full = f"{name}.{child_name}" if name else child_name
            if looks_like_layer(child):
                skipped.append(Skipped(full, reason))
                continue
            seen = calls.get(full, [])
            if len(seen) > 1:
                many = f"{full!r}, in which it stands, is used {len(seen)} times in one forward pass"
                visit(child, full, many)
                continue
            if not seen:
                container = isinstance(child, nn.ModuleList | nn.ModuleDict)
                visit(child, full, reason if container else "it is not reached by example_inputs")
                continue
            try:
                program = exported(child, seen[0])
            except Exception as problem:  # the user's own code may fail in any way
                visit(child, full, _not_followed(child, problem))
                continue
            found = follow(child, program)
            groups.extend(_renamed(group, full) for group in found.groups)
            for skip in found.skipped:
                inner = f"{full}.{skip.name}" if skip.name else full
                skipped.append(Skipped(inner, _leaving(skip.reason, full)))
            attention |= found.attention

    visit(model, "", _not_followed(model, error))
    return Found(tuple(groups), tuple(skipped), attention)


def _not_followed(module: nn.Module, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    why = f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
    return f"the forward pass of {type(module).__name__}, which calls it, cannot be followed ({why})"


def _leaving(reason: str, part: str) -> str:
    if reason == HEAD:
        return f"its neurons leave {part!r}, beyond which the forward pass cannot be followed"
    return reason


def _renamed(group: NeuronGroup, prefix: str) -> NeuronGroup:
    def full(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{prefix}.{name}" for name in names)

    return replace(
        group, producers=full(group.producers), consumers=full(group.consumers), between=full(group.between)
    )


def _record(model: nn.Module, call: Call) -> dict[str, list[Call]]:
    """Run a model once, and return the arguments of every call of each of its modules."""
    calls: dict[str, list[Call]] = {}
    args, kwargs = copied_call(call)
    with analysed(model) as own, torch.no_grad():
        for name, module in own.named_modules():
            if name:

                def hook(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                    calls.setdefault(name, []).append((args, kwargs))

                module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            own(*args, **kwargs)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} cannot be run on example_inputs ({type(error).__name__}: "
                f"{error}); give one batch as the model takes it: a tensor, a tuple of arguments, or a "
                "dict of named ones."
            ) from error
    return calls
