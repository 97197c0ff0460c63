"""Make a plan: what `expand` will do, known and checked before any weight is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fpe._util.modules import hook_problems, uncompiled
from fpe.errors import ArgumentError, BudgetError, FPEError, ModelError, raise_problems
from fpe.expansion.measure import (
    TARGETS,
    Measurements,
    free_by_neuron,
    free_weights,
    inputs_of,
    most_polysemantic,
    parameters_per_neuron,
    scores_of,
    shapes_of,
    width_problems,
)
from fpe.expansion.plan import Basis, LayerPlan, Plan, modules_of
from fpe.expansion.pruning import Pruning, as_pruning
from fpe.expansion.selection import Chosen, Layers, select, without
from fpe.expansion.splits import Split, as_split
from fpe.graph import NeuronGroup
from fpe.graph.groups import layout_for
from fpe.graph.inputs import inputs_for
from fpe.graph.layers import OVER_NEURONS, bias_of, memory_problem, oriented_weight, size_of
from fpe.graph.verification import unverified
from fpe.masked import check_masks, count_nonzero

_ALLOWED = {"budget": ("group", "network"), "convolutions": ("channels", "taps"), "target": TARGETS}
#: Classes that hold on to a model's parameters, or hold them in pieces; by name, to import none of them.
_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"}


def plan(
    model: nn.Module,
    factor: int = 2,
    *,
    split: str | Split = "random",
    prune: str | Pruning = "magnitude",
    layers: str | NeuronGroup | Layers | None = None,
    example_inputs: Any = None,
    seed: int = 0,
    budget: str = "group",
    convolutions: str = "channels",
    target_fraction: float = 1.0,
    target: str = "participation",
) -> Plan:
    """Find what `fpe.expand` with the same arguments would do, and check that it can be done.

    The plan can be printed; ``fpe.expand(model, plan=plan)`` applies it.

    Parameters
    ----------
    model : nn.Module
        Any module; it is not changed. Of a compiled one the model in it is taken. Without `example_inputs`,
        the linear layers of a module that can be traced symbolically are found; for a model of transformers a
        batch is made up from its configuration.
    factor : int, default 2
        Children of each neuron, α in the paper: 1 to the number of inputs of each layer.
    split : str or Split, default "random"
        Which child gets which input: ``"random"``, ``"shared"``, ``"shared-8"`` (one partition for each of 8
        groups of neurons; see `fpe.SharedSplit`), ``"gram"``, ``"2:4"`` or an object such as
        ``fpe.LabelSplit(labels)``. ``fpe.CorrelationSplit()`` needs `example_inputs`.
    prune : str or Pruning, default "magnitude"
        Which weights are pruned: ``"magnitude"`` (the paper's), ``"balanced"`` (the same, but the consumers
        keep at most half of the free weights; for networks that are expanded before they are trained),
        ``"columns"`` (whole inputs, for a shared split; see `fpe.InputPruning`, which may rank by activations
        or gradients) or ``"children"`` (whole children; see `fpe.ChildPruning`).
    layers : str, NeuronGroup, sequence of them, or mapping of them to int, optional
        Names or patterns (``"encoder.*.fc1"``) of the layers to expand; a mapping gives each its own factor,
        the last that matches. By default every second hidden layer from the first (A.7), which for a
        transformer is every MLP; never a head, an embedding or a projection of attention. A `NeuronGroup`
        gives a layer with its consumers by hand, for a model that cannot be traced; it needs
        `example_inputs`, and replaces what a name or a pattern finds for its layer.
    example_inputs : Tensor, tuple or dict, optional
        One small batch: the model's input, its positional arguments, or its keyword arguments. With it
        convolutions and gated pairs are found too, and each group is verified numerically.
    seed : int, default 0
        Seed of the partitions.
    budget : str, default "group"
        Whether each ``"group"`` is pruned to its own count, or the ``"network"`` to one.
    convolutions : str, default "channels"
        What a convolution's children split: its input ``"channels"``, all taps of one staying together, or
        its single ``"taps"``. A layer with fewer channels than children splits taps.
    target_fraction : float, default 1.0
        Share of each layer's neurons to expand, the most polysemantic first; the others keep one child.
    target : str, default "participation"
        The most polysemantic neurons have the highest ``"participation"`` ratio of incoming weights, or
        inputs of the least feature ``"capacity"`` on `example_inputs`.

    Raises
    ------
    ArgumentError
        For an argument that no model could satisfy.
    ModelError
        If nothing, or not a named layer, can be expanded, a ranking by gradient finds none, or a masked
        weight of a model that was expanded before is not zero (see `fpe.project_`).
    BudgetError
        If too few weights can be pruned.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> print(fpe.plan(model, factor=2))
    Expansion by 2: split RandomSplit(), prune MagnitudePruning(), seed 0
    layer  consumers  between    splits  neurons  after  non-zeros  copies
    -----  ---------  -------  --------  -------  -----  ---------  ------
    0      2          -        8 inputs        4      8         46      12
    left unchanged:
      2: it is a head: its neurons are outputs of the network
    non-zero parameters of the network, before and after: 46
    """
    model = uncompiled(model)
    choices = {"budget": budget, "convolutions": convolutions, "target": target}
    data = example_inputs is not None
    own_split, pruning = _check_arguments(
        model, factor, split, prune, layers, seed, target_fraction, choices, data
    )
    check_masks(model, "expanding")
    batch = example_inputs if data else inputs_for(model)
    chosen, skipped = select(model, layers, factor, example_inputs)
    producers = [name for group, _ in chosen for name in group.producers]
    measured = Measurements(model, producers, batch, samples=own_split.needs_inputs)

    def planned_for(chosen: Chosen) -> list[LayerPlan]:
        problems = layer_problems(model, [group for group, _ in chosen])
        wanted = [most_polysemantic(model, g, target_fraction, target, measured) for g, _ in chosen]
        planned = _layer_plans(model, chosen, wanted, convolutions, own_split, pruning)
        problems += [p for layer in planned for p in _split_problems(model, layer, own_split, pruning)]
        raise_problems(problems, ModelError, "the layers to expand")
        _check_budget(model, planned, pruning, budget)
        return planned

    planned, shapes = planned_for(chosen), None
    if batch is not None:  # only what has been verified is worth widening
        if reasons := unverified(model, [group for group, _ in chosen], batch):
            chosen, skipped = without(model, chosen, skipped, layers, reasons)
            planned = planned_for(chosen)
        shapes = shapes_of(model, batch)
        if reasons := width_problems(model, planned, batch, shapes):
            chosen, skipped = without(model, chosen, skipped, layers, reasons)
            planned = planned_for(chosen)
    groups = [group for group, _ in chosen]
    scores = scores_of(model, groups, pruning, measured)
    inputs = inputs_of([g.name for g in groups], measured) if own_split.needs_inputs else {}
    basis = Basis(own_split, pruning, batch, scores, inputs, shapes, modules_of(model))
    how = (repr(own_split), repr(pruning), budget, seed)
    return Plan(tuple(planned), skipped, factor, *how, nonzero=count_nonzero(model), basis=basis)


def _check_arguments(
    model: Any,
    factor: Any,
    split: Any,
    prune: Any,
    layers: Any,
    seed: Any,
    target_fraction: Any,
    choices: dict[str, Any],
    data: bool,
) -> tuple[Split, Pruning]:
    """Check what can be checked without looking into the model, and report all problems at once."""
    problems = [_model_problem(model), factor_problem(factor)]
    if isinstance(layers, Mapping):
        problems += [f"layers[{entry!r}]: {p}" for entry, f in layers.items() if (p := factor_problem(f))]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        problems.append(f"seed is {seed!r}; give an integer of at least 0.")
    problems += [
        f"{name} is {value!r}; give {' or '.join(map(repr, _ALLOWED[name]))}."
        for name, value in choices.items()
        if value not in _ALLOWED[name]
    ]
    if not isinstance(target_fraction, int | float) or not 0 < target_fraction <= 1:
        problems.append(f"target_fraction is {target_fraction!r}; give a number above 0 and at most 1.")
    own_split, pruning = Split(), Pruning()
    try:
        own_split = as_split(split)
    except FPEError as error:
        problems.append(str(error))
    try:
        pruning = as_pruning(prune)
    except FPEError as error:
        problems.append(str(error))
    if pruning.needs_shared:
        if not own_split.shared and type(own_split) is not Split:
            problems.append(
                f"prune {pruning!r} needs one partition for all neurons of a layer, which split "
                f"{own_split!r} does not give; use split='shared' or fpe.LabelSplit(labels, shared=True), or "
                "prune='magnitude'."
            )
        if choices["budget"] == "network":
            problems.append(
                f"prune {pruning!r} works layer by layer; give budget='group', or prune='magnitude'."
            )
        if target_fraction != 1:
            problems.append(
                f"prune {pruning!r} needs all neurons of a layer expanded; leave target_fraction out, or "
                "give prune='magnitude'."
            )
    needs = {
        f"split={own_split!r}": own_split.needs_inputs,
        f"prune={pruning!r}": pruning.needs_scores == "inputs",
    }
    problems += [
        f"{what} needs the inputs of each layer on data; give example_inputs=…, a batch of them."
        for what, needed in needs.items()
        if needed and not data
    ]
    raise_problems([p for p in problems if p], ArgumentError, "the arguments")
    return own_split, pruning


def _model_problem(model: Any) -> str | None:
    if not isinstance(model, nn.Module):
        return f"model is a {type(model).__name__}; give a torch.nn.Module."
    for name, module in model.named_modules():
        where = f"{name!r} in the model" if name else "model"
        if isinstance(module, torch.jit.ScriptModule):
            return (
                f"{where} is a ScriptModule, made by torch.jit.script or torch.jit.trace, which cannot be "
                "analyzed; expand the model first, and script it then."
            )
        if found := {kind.__name__ for kind in type(module).__mro__} & _WRAPPERS:
            return f"{where} is a {found.pop()}; expand the model first, and wrap it then."
    return None


def factor_problem(factor: Any) -> str | None:
    """Say what is wrong with an expansion factor, or return None."""
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        return f"factor is {factor!r}; give an integer of at least 1 (2 doubles the neurons)."
    return None


def layer_problems(model: nn.Module, groups: Sequence[NeuronGroup]) -> list[str]:
    """Say which weights of some groups are missing or not finite, and which parameters have hooks."""
    names = dict.fromkeys(name for group in groups for name in (*group.producers, *group.consumers))
    problems = [p for name in names if (p := memory_problem(model.get_submodule(name), name))]
    names |= dict.fromkeys(name for group in groups for name in group.between)
    modules = {name: model.get_submodule(name) for name in names}
    return problems + hook_problems(
        (f"{name}.{own}", p) for name, m in modules.items() for own, p in m.named_parameters(recurse=False)
    )


def _layer_plans(
    model: nn.Module,
    chosen: Chosen,
    wanted: Sequence[tuple[int, ...] | None],
    convolutions: str,
    split: Split,
    pruning: Pruning,
) -> list[LayerPlan]:
    """Plan each group, in order: a producer may have inputs from one that is expanded before it."""
    grown: dict[str, int] = {}  # further inputs of each layer
    planned = []
    for (group, factor), some in zip(chosen, wanted, strict=True):
        neurons, inputs = size_of(model, group.name)
        inputs += grown.get(group.name, 0)
        taps = oriented_weight(model.get_submodule(group.name))[0, 0].numel()
        shares = "inputs" if taps == 1 else convolutions
        if shares == "taps" or (shares == "channels" and inputs < factor):
            shares, inputs = "taps", inputs * taps
        expanded = range(neurons) if some is None else some
        mine, others = free_by_neuron(model, group, expanded)
        biases = [bias_of(model.get_submodule(name)) for name in group.consumers]
        others += sum(bias.numel() for bias in biases if bias is not None)
        per_neuron = parameters_per_neuron(model, group)
        copies = (factor - 1) * (mine + per_neuron * len(expanded))
        own = sum(free_weights(model, name) for name in group.producers)
        groups = split.num_groups(neurons)
        entries = len(group.producers) * (taps if shares == "channels" else 1)
        dropped, note = pruning.expected_dropped(neurons, groups, factor, inputs, entries, copies)
        after = neurons + len(expanded) * (factor - 1) - dropped
        free = own + mine + others + per_neuron * neurons
        notes = (note,) if note else ()
        planned.append(
            LayerPlan(group, factor, inputs, shares, neurons, after, free, copies, some, groups, (), notes)
        )
        for name in group.consumers:
            runs = layout_for(group, name, neurons, size_of(model, name)[1])
            grown[name] = grown.get(name, 0) + (after - neurons) * sum(k for k in runs if k > 0)
    return planned


def _split_problems(model: nn.Module, layer: LayerPlan, split: Split, pruning: Pruning) -> list[str]:
    problems = []
    factor, name = layer.factor, layer.group.name
    if factor > layer.inputs:
        problems.append(
            f"factor {factor} is larger than the {layer.inputs} {layer.shares} of layer {name!r}, so that "
            f"some child would have none; give a factor from 1 to {layer.inputs}."
        )
    elif split.needs_inputs and layer.shares == "taps":
        problems.append(
            f"layer {name!r} splits taps, of which split {split!r} knows nothing; give "
            "convolutions='channels' and no more children than channels, or another split."
        )
    elif factor > 1 and (problem := split.problem(layer.inputs, factor)):
        problems.append(f"layer {name!r}: {problem}.")
    for between in layer.group.between:
        norm = model.get_submodule(between)
        if layer.chosen is not None and isinstance(norm, OVER_NEURONS):
            problems.append(
                f"layer {name!r}: the {type(norm).__name__} {between!r} is over its neurons, and would count "
                "the expanded ones more often than the others; leave target_fraction out for this layer."
            )
        if pruning.drops_children and isinstance(norm, nn.GroupNorm) and norm.num_groups > 1:
            problems.append(
                f"layer {name!r}: the GroupNorm {between!r} cuts its neurons into {norm.num_groups} equal "
                "pieces, and would lose unequal numbers of children from them; give prune='magnitude', or "
                "leave this layer out."
            )
    return problems


def _check_budget(model: nn.Module, planned: Sequence[LayerPlan], pruning: Pruning, budget: str) -> None:
    """Check that enough weights can be pruned."""
    if budget == "network":  # the copies themselves can be pruned
        return
    problems = []
    for layer in planned:
        group = layer.group
        mine, _ = free_by_neuron(model, group, layer.chosen or range(layer.neurons))
        weights = sum(free_weights(model, n) for n in (*group.producers, *group.consumers))
        shape = oriented_weight(model.get_submodule(group.name)).shape
        taps = shape[2:].numel() if layer.shares != "taps" else 1
        entries = len(group.producers) * layer.neurons * taps
        capacity = pruning.capacity(weights + (layer.factor - 1) * mine, entries, layer.inputs, layer.factor)
        if layer.copies > capacity:
            problems.append(
                f"layer {group.name!r}: factor {layer.factor} makes {layer.copies} copies, and {pruning!r} "
                f"can prune only {capacity} weights; give a smaller factor, or another prune."
            )
    raise_problems(problems, BudgetError, "the budget")
