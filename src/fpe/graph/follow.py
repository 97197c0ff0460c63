"""Follow neurons through the exported forward pass of a model, or of its parts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fpe._util.modules import seeded
from fpe.errors import ModelError
from fpe.graph.copies import analysis_copy, first_line, outside_kept
from fpe.graph.groups import HEAD, UNSEEN, Found, Skipped, merged
from fpe.graph.inputs import Call, tensors_in
from fpe.graph.layers import looks_like_layer
from fpe.graph.siblings import reaches, recorded_calls, sibling_call
from fpe.graph.traced import follow_traced, holds_experts
from fpe.graph.walk import follow


class _TensorsOnly(nn.Module):
    """Returns only the tensors that a model returns: caches cannot be exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return tensors_in(self.model(*args, **kwargs))


def exported(model: nn.Module, call: Call, training: bool = False) -> ExportedProgram:
    """Export the forward pass of a copy of a model on these arguments."""
    args, kwargs = call
    with seeded(), outside_kept(model):
        own = _TensorsOnly(analysis_copy(model)).train(training)
        return torch.export.export(own, args, kwargs, strict=False)


def follow_model(model: nn.Module, call: Call) -> Found:
    """Find the groups of a model; of its parts where its whole forward pass cannot be exported.

    What Python decides by looking at data cannot be exported, and a trace of one run would not show the other
    branches. So each module that such a forward pass calls once is exported with the arguments of one run.
    """
    try:
        return _follow_both_modes(model, call)
    except ModelError:
        raise
    except Exception as error:  # the user's own code may fail in any way
        if holds_experts(model):
            with suppress(Exception):
                return follow_traced(model, call)
        parts = list(_Parts(recorded_calls(model, call)).follow(model, "", _not_followed(model, error)))
        groups = tuple(group for part in parts for group in part.groups)
        skipped = tuple(skip for part in parts for skip in part.skipped)
        linear = frozenset().union(*(part.linear for part in parts))
        return Found(groups, skipped, any(part.attention for part in parts), linear)


def _follow_both_modes(model: nn.Module, call: Call) -> Found:
    """Follow a model in evaluation mode, and in training mode if evaluation does not call all layers."""
    found = follow(model, exported(model, call))
    if any(skip.reason in UNSEEN for skip in found.skipped):
        with suppress(Exception):  # then evaluation mode has to do, and the verification judges both modes
            return merged(found, follow(model, exported(model, call, training=True)))
    return found


class _Parts:
    """The parts of a model that are followed one by one, each form of them once.

    `calls` has the arguments of every call of each module.
    """

    def __init__(self, calls: dict[str, list[Call]]) -> None:
        self.calls = calls
        self.known: list[tuple[Form, Found | Exception]] = []

    def follow(self, model: nn.Module, name: str, reason: str) -> Iterator[Found]:
        """Follow each child; where that fails, its own children. Skip single layers with this reason."""
        for child_name, child in model.named_children():
            full = f"{name}.{child_name}" if name else child_name
            own = self.calls.get(full, [])
            if not any(map(reaches, own)):
                sibling = sibling_call(model, name, child_name, self.calls)
                own = own if sibling is None else [sibling]
            if looks_like_layer(child):
                yield Found((), (Skipped(full, reason),))
                continue
            if len(own) > 1:
                why = f"{full!r}, in which it stands, is used {len(own)} times in one forward pass"
            elif not own:
                container = isinstance(child, nn.ModuleList | nn.ModuleDict)
                why = reason if container else "it is not reached by example_inputs"
            else:
                found = self.found(full, child, own[0])
                if isinstance(found, Found):
                    yield _under(full, found)
                    continue
                why = _not_followed(child, found)
            yield from self.follow(child, full, why)

    def found(self, name: str, part: nn.Module, call: Call) -> Found | Exception:
        """Return what is found in a part, or why it cannot be followed."""
        own = Form.of(name, part, call)
        for form, found in self.known:
            if form.like(own):
                return found
        new: Found | Exception
        try:
            new = _follow_both_modes(part, call)
        except Exception as error:  # the user's own code may fail in any way
            new = error.with_traceback(None)
            if holds_experts(part):
                with suppress(Exception):
                    new = follow_traced(part, call)
        self.known.append((own, new))
        return new


@dataclass(frozen=True)
class Form:
    """All of a part and of its arguments that its forward pass may depend on, but for the values of tensors.

    `place` is its number, such as the 3 of ``layers.3``; parts may know their own.
    """

    place: int | None
    values: list[Any]

    @staticmethod
    def of(name: str, part: nn.Module, call: Call) -> Form:
        """Return the form of a part."""
        values: list[Any] = []
        numbers: dict[int, int] = {}

        def add(value: Any, traced: bool = True) -> None:
            if isinstance(value, Tensor) and traced:  # others are constants, on whose values it may depend
                number = numbers.setdefault(id(value), len(numbers))  # tied ones have the same
                values.append((number, value.shape, value.dtype, value.device, value.requires_grad))
            elif isinstance(value, nn.Module):
                values.append(nn.Module)  # it has its own place in the list
            elif type(value) in (list, tuple, set, dict, OrderedDict):
                values.append((type(value), len(value)))
                for item in value.items() if isinstance(value, dict) else value:
                    add(item, traced)
            elif value is None or isinstance(value, int | float | complex | str | bytes | torch.dtype):
                values.append((type(value), value))
            else:
                values.append(id(value))

        for own, module in part.named_modules():
            values += [own, type(module)]
            for key, value in vars(module).items():
                values.append(key)
                add(value, traced=key in ("_parameters", "_buffers"))
        add(call)
        return Form(next((int(own) for own in reversed(name.split(".")) if own.isdigit()), None), values)

    def like(self, other: Form) -> bool:
        """Tell whether two parts differ in nothing but what they know of their own places."""
        places = (int, self.place), (int, other.place)
        return len(self.values) == len(other.values) and all(
            a == b or (a, b) == places for a, b in zip(self.values, other.values, strict=True)
        )


def _under(part: str, found: Found) -> Found:
    """Give what was found in a part the names of the whole, where nothing is known about its outputs."""
    leaving = f"its neurons leave {part!r}, beyond which the forward pass cannot be followed"
    skipped = (
        Skipped(f"{part}.{skip.name}".rstrip("."), leaving if skip.reason == HEAD else skip.reason)
        for skip in found.skipped
    )
    groups = tuple(group.under(part) for group in found.groups)
    return Found(
        groups, tuple(skipped), found.attention, frozenset(f"{part}.{name}" for name in found.linear)
    )


def _not_followed(module: nn.Module, error: Exception) -> str:
    forward = f"the forward pass of {type(module).__name__}, which calls it,"
    return f"{forward} cannot be followed ({first_line(error)})"
