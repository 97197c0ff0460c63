"""Whether a model can have more neurons: with whole copies of them, a wider one computes the same.

A number of neurons that is written down in a forward pass shows only here: no permutation changes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fpe._util.modules import replace_modules_
from fpe.expansion.copies import widened
from fpe.expansion.plan import LayerPlan
from fpe.graph.copies import analyzed, first_line
from fpe.graph.inputs import as_call, copied_call, tensors_in
from fpe.graph.probe import Probe
from fpe.graph.verification import Part, distance


def shape_problem(
    model: nn.Module,
    batch: Any,
    expected: list[torch.Size],
    training: bool = False,
    instead: dict[str, nn.Module] | None = None,
) -> str | None:
    """Say that a wide model, in a copy, does not run, or has outputs of other shapes; None if all is well."""
    try:
        found = _shapes_of(model, batch, training, instead)
    except Exception as error:  # the user's own code may fail in any way
        return _does_not_run(error, training)
    return None if training else _other_shapes(found, expected)  # which may be drawn at random in training


def _shapes_of(
    model: nn.Module, batch: Any, training: bool = False, instead: dict[str, nn.Module] | None = None
) -> list[torch.Size]:
    """Run a copy of a model, with other modules in the places of some.

    Return the shapes of its floating-point outputs, as `unverified` does.
    """
    args, kwargs = copied_call(as_call(batch))
    with analyzed(model) as own, torch.no_grad():
        replace_modules_(own, instead or {})
        outputs = tensors_in(own.train(training)(*args, **kwargs), consume=True)
        return [output.shape for output in outputs if output.is_floating_point() and output.numel()]


def _does_not_run(error: Exception, training: bool) -> str:
    mode = " in training mode" if training else ""
    return (
        "the forward pass has the number of neurons written down, in a view or a constant: with more of "
        f"them it does not run{mode} ({first_line(error)})"
    )


def _other_shapes(found: list[torch.Size], expected: list[torch.Size]) -> str | None:
    if found == expected:
        return None
    wide, dense = ([tuple(shape) for shape in each] for each in (found, expected))
    return f"with more of its neurons the model's outputs have shapes {wide}, not {dense}"


def width_problems(
    model: nn.Module,
    layers: Sequence[LayerPlan],
    batch: Any,
    expected: list[torch.Size],
    probe: Probe | None = None,
) -> dict[str, str]:
    """Return, by name, why groups cannot be wider: a copy does not run, or computes something else.

    All groups are widened at once; only if that copy fails are there more, by halves. A model of PyTorch's
    own modules computes the same shapes in both modes, any other is run in both. The `probe` may come from
    the verification.
    """
    plain = all(
        type(m).__module__.split(".")[0] in ("torch", "fpe")
        and not (m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m))
        for m in model.modules()
    )
    modes = (False,) if plain else (False, True)
    oracle = _Oracle(model, batch, probe)

    @cache
    def trains() -> bool:
        with suppress(Exception):  # the user's own code may fail in any way
            _shapes_of(model, batch, training=True)
            return True
        return False

    def problem(layers: Sequence[LayerPlan]) -> str | None:
        for training in modes:
            reason = oracle.problem(layers, expected, training)
            if reason and (not training or trains()):  # what cannot be trained is judged in evaluation mode
                return reason
        return None

    def search(layers: Sequence[LayerPlan]) -> dict[str, str]:
        reason = problem(layers)
        if reason is None:
            return {}
        half = len(layers) // 2
        found = search(layers[:half]) | search(layers[half:]) if half else {}
        return found or {layer.group.name: reason for layer in layers[half:]}

    return search(layers) if layers else {}


def part_problems(model: nn.Module, layers: Sequence[LayerPlan], parts: Mapping[str, Part]) -> dict[str, str]:
    """Return, by name, why groups cannot be wider that are judged in parts of the model alone."""
    found: dict[str, str] = {}
    for layer in layers:
        if (part := parts.get(layer.group.name)) is not None:
            own = replace(layer, group=layer.group.within(part.name))
            problems = width_problems(model.get_submodule(part.name), [own], part.call, part.shapes)
            found |= dict.fromkeys([layer.group.name] if problems else [], *problems.values())
    return found


class _Oracle:
    """A model with random weights, or with its own, and what it computes; one that does not run so, as it is.

    Random weights take the memory of one of several equal layers, and hide nothing behind a head of zeros.
    """

    def __init__(self, model: nn.Module, batch: Any, probe: Probe | None) -> None:
        self.model, self.batch, self.probe = model, batch, probe
        for everywhere in (True, False):  # a model may not work with random weights everywhere
            with suppress(Exception):  # the user's own code may fail in any way
                self.probe = self.probe or Probe(model, (), as_call(batch), everywhere)
                if everywhere and not all(output.isfinite().all() for output in self.probe.whole[False]):
                    self.probe = None
        self.dense: dict[bool, list[Tensor] | None] = dict(self.probe.whole if self.probe else {})
        self.wide: tuple[Sequence[LayerPlan], dict[str, nn.Module]] = (), {}

    def problem(self, layers: Sequence[LayerPlan], expected: list[torch.Size], training: bool) -> str | None:
        """Say why groups cannot be wider, in one mode, or return None."""
        probe = self.probe
        if probe is None:
            instead = widened(self.model, layers)
            return shape_problem(self.model, self.batch, expected, training, instead)
        try:
            if self.wide[0] is not layers:
                self.wide = layers, widened(probe.copy, layers)
            found = probe.outputs({}, training, instead=self.wide[1])
        except Exception as error:  # the user's own code may fail in any way
            return _does_not_run(error, training)
        if training and distance(self.dense[False] or [], found) <= probe.rounding:
            return None  # it computes what evaluation does
        if training not in self.dense:
            self.dense[training] = None
            with suppress(Exception):
                self.dense[training] = probe.outputs({}, training)
        if not training and (problem := _other_shapes([o.shape for o in found], expected)):
            return problem
        dense = self.dense[training]
        shapes = dense is not None and [o.shape for o in dense] == [o.shape for o in found]
        moved = distance(dense, found) if shapes and dense else 0.0
        if moved <= probe.rounding:
            return None
        return (
            f"with {layers[0].factor} whole copies of each of its neurons, and the inputs of the consumers "
            f"divided by {layers[0].factor}, the output moves by {moved:.2g} of its size in "
            f"{'training' if training else 'evaluation'} mode; something depends on their number"
        )
