"""Find the groups whose number of neurons is written down in the forward pass, by running widened copies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe._util.modules import replace_modules_
from fpe.expansion import steps as procedure
from fpe.expansion.lineage import Lineage, family_of
from fpe.expansion.plan import LayerPlan
from fpe.expansion.steps import Weights
from fpe.graph.copies import analyzed, first_line
from fpe.graph.inputs import as_call, copied_call, tensors_in
from fpe.graph.layers import bias_of

_WRITTEN_DOWN = "the forward pass has the number of neurons written down, in a view or a constant"


def written_down(model: nn.Module, layers: Sequence[LayerPlan], example_inputs: Any) -> dict[str, str]:
    """Return the groups with which a wider model does not run, or answers in other shapes.

    Parameters
    ----------
    model : nn.Module
        Not changed and not run: copies are, in evaluation mode, and in training mode if it runs in it.
    layers : sequence of LayerPlan
        What becomes of each group. All are widened at once; only if the copy fails are there more, by halves.
    example_inputs : Tensor, tuple or dict
        One batch.

    Returns
    -------
    dict of str to str
        The reason, in a clause, by the name of the group.
    """
    expected = shapes_of(model, example_inputs)
    modes = [False]
    with suppress(Exception):  # what cannot be trained so is judged in evaluation mode
        shapes_of(model, example_inputs, training=True)
        modes.append(True)

    def problem(layers: Sequence[LayerPlan]) -> str | None:
        for training in modes:
            mode = " in training mode" if training else ""
            try:
                found = shapes_of(model, example_inputs, training, _widened(model, layers))
            except Exception as error:  # the user's own code may fail in any way
                return f"{_WRITTEN_DOWN}: with more of them it does not run{mode} ({first_line(error)})"
            if found != expected and not training:  # in training mode shapes may be drawn at random
                wide, dense = ([tuple(shape) for shape in each] for each in (found, expected))
                return f"with more of its neurons the model answers in shapes {wide}, not {dense}"
        return None

    def search(layers: Sequence[LayerPlan]) -> dict[str, str]:
        reason = problem(layers)
        if reason is None:
            return {}
        half = len(layers) // 2
        found = search(layers[:half]) | search(layers[half:]) if half else {}
        return found or {layer.group.name: reason for layer in layers[half:]}

    return search(layers) if layers else {}


def shapes_of(
    model: nn.Module, example_inputs: Any, training: bool = False, instead: dict[str, nn.Module] | None = None
) -> list[torch.Size]:
    """Run a copy of a model, with other modules in the places of some; return the shapes of its answer."""
    args, kwargs = copied_call(as_call(example_inputs))
    with analyzed(model) as own, torch.no_grad():
        replace_modules_(own, instead or {})
        return [t.shape for t in tensors_in(own.train(training)(*args, **kwargs))]


def _widened(model: nn.Module, layers: Sequence[LayerPlan]) -> dict[str, nn.Module]:
    """Return the modules of a wider model, in which no child has lost an input."""
    lineage = Lineage(model)
    wide: dict[str, nn.Module] = {}
    for layer in layers:
        lineage.grow(layer)
        for name in layer.group.between:
            module = model.get_submodule(name)
            wide[name] = procedure.widen(module, layer.neurons, layer.factor, family_of(layer))
    for name in lineage.names():
        if name not in wide:
            module = model.get_submodule(name)
            old, bias = cast(Tensor, module.weight), bias_of(module)
            weight = lineage.lift(name, "weight", old.detach())
            bias = None if bias is None else lineage.lift(name, "bias", bias.detach())
            wide[name] = procedure.mask(module, Weights(weight, bias, torch.ones_like(weight)))
    return wide
