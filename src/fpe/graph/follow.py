"""Follow neurons through the exported forward pass of a model, or of its parts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fpe._util.modules import seeded
from fpe.errors import ModelError
from fpe.graph.copies import analysis_copy, first_line, outside_kept
from fpe.graph.groups import HEAD, UNSEEN, Found, Skipped, merged
from fpe.graph.inputs import Call, tensors_in
from fpe.graph.layers import looks_like_layer
from fpe.graph.opaque import Opaque
from fpe.graph.regions import inline_
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


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Let an export store no stack trace of each node: they take a fifth of its time, and fpe uses none."""
    config: Any = getattr(fx, "config", None)
    if not hasattr(config, "do_not_emit_stack_traces"):  # an older torch
        yield
        return
    before, config.do_not_emit_stack_traces = config.do_not_emit_stack_traces, True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


def exported(
    model: nn.Module, call: Call, training: bool = False, opaque: Opaque | None = None
) -> ExportedProgram:
    """Export the forward pass of a copy of a model on these arguments."""
    args, kwargs = call
    with seeded(), outside_kept(model):
        own = _TensorsOnly(analysis_copy(model)).train(training)
        if opaque is not None:
            opaque.replace_(own.model)
        with _without_stack_traces():
            program = torch.export.export(own, args, kwargs, strict=False)
        inline_(program.graph_module)
        return program


def follow_model(model: nn.Module, call: Call) -> Found:
    """Find the groups of a model; of its parts where its whole forward pass cannot be exported.

    What Python decides by looking at data cannot be exported, and a trace of one run would not show the other
    branches. So modules inside that cannot be exported are replaced by what they returned; if the rest cannot
    be exported either, each module that is called once is exported with the arguments of one run.
    """
    try:
        return replace(_follow_both_modes(model, call), exported=True)
    except ModelError:
        raise
    except Exception as error:  # the user's own code may fail in any way
        if holds_experts(model):
            with suppress(Exception):
                return follow_traced(model, call)
        own = _Parts(recorded_calls(model, call))
        names = own.failing(model, "")
        if names and (whole := _follow_around(model, call, names)) is not None:
            parts = [whole, *(part for name in names for part in own.part(name, model.get_submodule(name)))]
        else:
            parts = list(own.follow(model, "", _not_followed(model, error)))
        groups = tuple(group for part in parts for group in part.groups)
        skipped = tuple(skip for part in parts for skip in part.skipped)
        linear = frozenset().union(*(part.linear for part in parts))
        return Found(groups, skipped, any(part.attention for part in parts), linear)


def _follow_both_modes(model: nn.Module, call: Call, opaque: Opaque | None = None) -> Found:
    """Follow a model in evaluation mode, and in training mode if evaluation does not call all layers."""
    names = tuple(opaque.results) if opaque is not None else ()
    found = _outside(follow(model, exported(model, call, opaque=opaque), names), names)
    if any(skip.reason in UNSEEN for skip in found.skipped):
        with suppress(Exception):  # then evaluation mode has to do, and the verification judges both modes
            program = exported(model, call, training=True, opaque=opaque)
            return merged(found, _outside(follow(model, program, names), names))
    return found


def _outside(found: Found, opaque: Collection[str]) -> Found:
    """Leave out the layers in opaque modules, which are followed apart."""
    return replace(found, skipped=tuple(skip for skip in found.skipped if not _is_in(skip.name, opaque)))


def _is_in(name: str, modules: Collection[str]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _follow_around(model: nn.Module, call: Call, names: Collection[str]) -> Found | None:
    """Follow a model but for some modules in it; return None if it cannot be exported without them either."""
    with suppress(Exception):  # the user's own code may fail in any way
        opaque = Opaque.of(model, call, names)
        found, inside = _follow_both_modes(model, call, opaque), opaque.holds(model)
        groups = [g for g in found.groups if inside.isdisjoint((*g.producers, *g.consumers, *g.between))]
        why = "its group shares layers with a module into which fpe cannot follow"
        skipped = (Skipped(n, why) for g in found.groups if g not in groups for n in g.producers)
        attention = found.attention or opaque.attention
        return replace(found, groups=tuple(groups), skipped=(*found.skipped, *skipped), attention=attention)
    return None


class _Parts:
    """The parts of a model that are followed one by one, each form of them once.

    `calls` has the arguments of every call of each module.
    """

    def __init__(self, calls: dict[str, list[Call]]) -> None:
        self.calls = calls
        self.known: list[tuple[Form, Found | Exception]] = []
        self.traced: list[Found] = []  # those of parts that cannot be exported
        self.around: list[tuple[Form, bool]] = []

    def failing(self, model: nn.Module, name: str) -> list[str]:
        """Return the names of the smallest modules inside without which a model could be exported."""
        names: list[str] = []
        for child_name, child in model.named_children():
            full = f"{name}.{child_name}" if name else child_name
            own = self.calls.get(full, [])
            if looks_like_layer(child):
                continue
            if not any(map(reaches, own)):
                names += self.failing(child, full) if isinstance(child, nn.ModuleList | nn.ModuleDict) else []
                continue
            found = self.found(full, child, own[0])
            if isinstance(found, Found) and not any(found is traced for traced in self.traced):
                continue
            inner = self.failing(child, full)
            names += inner if inner and self.exports_around(full, child, own[0], inner) else [full]
        return names

    def exports_around(self, name: str, part: nn.Module, call: Call, inner: list[str]) -> bool:
        """Tell whether a part can be exported without some modules in it."""
        own = Form.of(name, part, call)
        for form, known in self.around:
            if form.like(own):
                return known
        inside = [each[len(name) + 1 :] for each in inner]
        self.around.append((own, _follow_around(part, call, inside) is not None))
        return self.around[-1][1]

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
            elif own:
                yield from self.part(full, child, own)
            else:
                container = isinstance(child, nn.ModuleList | nn.ModuleDict)
                why = reason if container else "it is not reached by example_inputs"
                yield from self.follow(child, full, why)

    def part(self, name: str, part: nn.Module, calls: Sequence[Call] = ()) -> Iterator[Found]:
        """Follow a part, or its children if it cannot be followed."""
        calls = calls or self.calls[name]
        if len(calls) > 1:
            why = f"{name!r}, in which it stands, is used {len(calls)} times in one forward pass"
        else:
            found = self.found(name, part, calls[0])
            if isinstance(found, Found):
                yield _under(name, found)
                return
            why = _not_followed(part, found)
        yield from self.follow(part, name, why)

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
                    self.traced.append(new)
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
