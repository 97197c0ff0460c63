"""What is measured of a layer before it is expanded: its inputs on a batch, or gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError, ModelError, raise_problems
from fpe.expansion.pruning import Pruning
from fpe.expansion.splits import Split
from fpe.graph import NeuronGroup
from fpe.graph.copies import analyzed
from fpe.graph.inputs import as_call, copied_call
from fpe.graph.layers import is_linear, is_transposed, oriented_weight

#: Samples of a layer's inputs that a split looks at; more are thinned out evenly.
LOOKED_AT = 4096


def split_problem(split: Split, example_inputs: Any) -> str | None:
    """Say that a split needs data that were not given, or return None."""
    if split.needs_inputs and example_inputs is None:
        what = f"split={split!r} looks at the inputs of each layer on data"
        return f"{what}; give example_inputs=…, a batch of them."
    return None


def example_problem(prune: Pruning, example_inputs: Any) -> str | None:
    """Say that a ranking needs data that were not given, or return None."""
    if prune.needs_scores == "inputs" and example_inputs is None:
        what = f"prune={prune!r} measures the inputs of each layer on data"
        return f"{what}; give example_inputs=…, a batch of them."
    return None


def scales_of(
    model: nn.Module, groups: Sequence[NeuronGroup], prune: Pruning, example_inputs: Any
) -> dict[str, Tensor]:
    """Measure what the weights of each producer are multiplied by before `prune` ranks its columns.

    Parameters
    ----------
    model : nn.Module
        Run once, in evaluation mode, to rank by activation; left as it was.
    groups : sequence of Group
        Whose producers.
    prune : Prune
        Nothing is measured unless it is a `InputPruning` that ranks by activation or by gradient.
    example_inputs : Tensor, tuple or dict, optional
        The batch to rank by activation.

    Returns
    -------
    dict of str to Tensor
        By the producer's name, each of shape (neurons, inputs, *taps).

    Raises
    ------
    ArgumentError
        If a batch is needed and not given.
    ModelError
        If a layer has no gradient, is not called on the batch, or what is measured is not finite.
    """
    if not prune.needs_scores:
        return {}
    if problem := example_problem(prune, example_inputs):
        raise ArgumentError(problem)
    names = [name for group in groups for name in group.producers]
    if prune.needs_scores == "gradients":
        scales = _gradients(model, names, prune)
    else:
        scales = {}
        for name, each in input_scales(model, names, example_inputs).items():
            weight = oriented_weight(model.get_submodule(name))
            shape = (1, -1, *[1] * (weight.dim() - 2))
            scales[name] = each.view(shape).expand(weight.shape)
    what = "gradients" if prune.needs_scores == "gradients" else "inputs on example_inputs"
    problems = [
        f"layer {name!r} has {what} that are NaN or infinite, which cannot be ranked; repair them first."
        for name, scale in scales.items()
        if not bool(scale.isfinite().all())
    ]
    raise_problems(problems, ModelError, "what is to be ranked")
    return scales


def _gradients(model: nn.Module, names: Sequence[str], prune: Pruning) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    problems = []
    for name in names:
        layer = model.get_submodule(name)
        gradient = layer.get_parameter("weight").grad
        if gradient is None:
            problems.append(
                f"layer {name!r} has no gradient, which prune={prune!r} ranks by; call loss.backward() on a "
                "batch first, and expand before the gradients are cleared."
            )
        else:
            gradient = gradient.detach().to_dense()
            found[name] = gradient.t() if is_transposed(layer) else gradient
    raise_problems(problems, ModelError, "the gradients")
    return found


def input_scales(model: nn.Module, names: Sequence[str], example_inputs: Any) -> dict[str, Tensor]:
    """Return the root mean square of each input, or channel, of some layers on the data.

    Parameters
    ----------
    model, names, example_inputs
        As for `layer_inputs`.

    Returns
    -------
    dict of str to Tensor
        For each layer shape (inputs,), in double precision.

    Raises
    ------
    ModelError
        If a layer is not called.
    """
    found = _watched(model, names, example_inputs, lambda x: x.double().square().mean(0).sqrt())
    return {name: torch.stack(each).mean(0) for name, each in found.items()}


def layer_inputs(model: nn.Module, names: Sequence[str], example_inputs: Any) -> dict[str, Tensor]:
    """Return what some layers read on the data: inputs, or channels, at no more than 4096 places.

    Parameters
    ----------
    model : nn.Module
        Run once in evaluation mode without gradients; left as it was.
    names : sequence of str
        Linear layers and convolutions.
    example_inputs : Tensor, tuple or dict
        The data.

    Returns
    -------
    dict of str to Tensor
        For each layer shape (samples, inputs), where each position of a text or an image is a sample.

    Raises
    ------
    ModelError
        If a layer is not called, or what it reads is not finite.
    """
    found = _watched(model, names, example_inputs, _thinned)
    inputs = {name: _thinned(torch.cat(each)) for name, each in found.items()}
    problems = [
        f"layer {name!r} has inputs on example_inputs that are NaN or infinite; repair them first."
        for name, x in inputs.items()
        if not bool(x.isfinite().all())
    ]
    raise_problems(problems, ModelError, "what a split looks at")
    return inputs


def _thinned(x: Tensor) -> Tensor:
    return x[:: max(1, -(-len(x) // LOOKED_AT))].clone()


def _watched(
    model: nn.Module, names: Sequence[str], example_inputs: Any, measure: Callable[[Tensor], Tensor]
) -> dict[str, list[Tensor]]:
    """Run a copy of a model once; measure what some layers read, (samples, inputs), at each call."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def watch(name: str, layer: nn.Module) -> None:
        axis = -1 if is_linear(layer) else -1 - len(layer.kernel_size)  # type: ignore[arg-type]

        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            x = (*args, *kwargs.values())[0].detach()
            seen[name].append(measure(x.movedim(axis, -1).flatten(0, -2)))

        layer.register_forward_pre_hook(hook, with_kwargs=True)

    args, kwargs = copied_call(as_call(example_inputs))
    with analyzed(model) as own, torch.no_grad():
        for name in seen:
            watch(name, own.get_submodule(name))
        own(*args, **kwargs)
    problems = [
        f"layer {name!r} is not called as a module on example_inputs, so that its inputs cannot be measured; "
        "leave it out of layers=…, or rank by something else."
        for name, found in seen.items()
        if not found
    ]
    raise_problems(problems, ModelError, "what is to be measured")
    return seen
