"""Make a plan: what `expand` will do, known and checked before any weight is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fpe._util.modules import hook_problems, uncompiled
from fpe.errors import ArgumentError, BudgetError, FPEError, ModelError, raise_problems
from fpe.expansion.measure import Measurements, most_polysemantic, shapes_of, width_problems
from fpe.expansion.plan import Basis, LayerPlan, Plan, modules_of
from fpe.expansion.pruning import Pruning, as_pruning
from fpe.expansion.selection import Chosen, Layers, select, without
from fpe.expansion.splits import Split, as_split
from fpe.graph import NeuronGroup
from fpe.graph.groups import layout_for, layout_neurons
from fpe.graph.inputs import inputs_for
from fpe.graph.layers import (
    OVER_NEURONS,
    bias_of,
    mask_of,
    memory_problem,
    neuron_tensors,
    oriented_weight,
    size_of,
)
from fpe.graph.verification import unverified
from fpe.masked import check_masks, count_nonzero


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


#: What each argument may be, and how to say it.
_CONSTRAINTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "factor": (lambda v: _is_integer(v, 1), "an integer of at least 1 (2 doubles the neurons)"),
    "seed": (lambda v: _is_integer(v, 0), "an integer of at least 0"),
    "budget": (("group", "network").__contains__, "'group' or 'network'"),
    "convolutions": (("channels", "taps").__contains__, "'channels' or 'taps'"),
    "target": (("participation", "capacity").__contains__, "'participation' or 'capacity'"),
    "target_fraction": (
        lambda v: isinstance(v, int | float) and 0 < v <= 1,
        "a number above 0 and at most 1",
    ),
}
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
    own_split, pruning = _checked_arguments(dict(locals()))
    model = uncompiled(model)
    check_masks(model, "expanding")
    batch = inputs_for(model) if example_inputs is None else example_inputs
    chosen, skipped = select(model, layers, factor, example_inputs)
    producers = [name for group, _ in chosen for name in group.producers]
    measured = Measurements(model, producers, batch, samples=own_split.needs_inputs)

    def planned_for(chosen: Chosen) -> list[LayerPlan]:
        wanted = [
            most_polysemantic(model, g, target_fraction, target, measured) if target_fraction < 1 else None
            for g, _ in chosen
        ]
        return _layer_plans(model, chosen, wanted, convolutions, own_split, pruning, budget)

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
    scores = measured.scores(groups, pruning) if pruning.needs_scores else {}
    inputs = measured.inputs(groups) if own_split.needs_inputs else {}
    basis = Basis(own_split, pruning, batch, scores, inputs, shapes, modules_of(model))
    how = (repr(own_split), repr(pruning), budget, seed)
    return Plan(tuple(planned), skipped, factor, *how, nonzero=count_nonzero(model), basis=basis)


def _checked_arguments(given: Mapping[str, Any]) -> tuple[Split, Pruning]:
    """Check what can be checked without looking into the model, and report all problems at once."""
    problems = [_model_problem(uncompiled(given["model"]))]
    problems += [_problem(name, given[name]) for name in _CONSTRAINTS]
    if isinstance(layers := given["layers"], Mapping):
        problems += [
            f"layers[{e!r}]: {p}" for e, factor in layers.items() if (p := _problem("factor", factor))
        ]
    split, pruning, known = Split(), Pruning(), True
    try:
        split = as_split(given["split"])
    except FPEError as error:
        problems.append(str(error))
        known = False
    try:
        pruning = as_pruning(given["prune"])
    except FPEError as error:
        problems.append(str(error))
    shared, no_data = pruning.needs_shared, given["example_inputs"] is None
    needs_data = "needs the inputs of each layer on data; give example_inputs=…, a batch of them."
    contradictions = {
        f"prune {pruning!r} needs one partition for all neurons of a layer, which split {split!r} does not "
        "give; use split='shared' or fpe.LabelSplit(labels, shared=True), or prune='magnitude'.": (
            shared and known and not split.shared
        ),
        f"prune {pruning!r} works layer by layer; give budget='group', or prune='magnitude'.": (
            shared and given["budget"] == "network"
        ),
        f"prune {pruning!r} needs all neurons of a layer expanded; leave target_fraction out, or give "
        "prune='magnitude'.": shared and given["target_fraction"] != 1,
        f"split={split!r} {needs_data}": no_data and split.needs_inputs,
        f"prune={pruning!r} {needs_data}": no_data and pruning.needs_scores == "inputs",
    }
    problems += [problem for problem, found in contradictions.items() if found]
    raise_problems([p for p in problems if p], ArgumentError, "the arguments")
    return split, pruning


def _problem(name: str, value: Any) -> str | None:
    allowed, what = _CONSTRAINTS[name]
    return None if allowed(value) else f"{name} is {value!r}; give {what}."


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


def layer_problems(model: nn.Module, groups: Sequence[NeuronGroup]) -> list[str]:
    """Say which weights of some groups are missing or not finite, and which parameters have hooks."""
    layers = dict.fromkeys(name for group in groups for name in (*group.producers, *group.consumers))
    problems = [p for name in layers if (p := memory_problem(model.get_submodule(name), name))]
    names = layers | dict.fromkeys(name for group in groups for name in group.between)
    return problems + hook_problems(
        (f"{name}.{own}", parameter)
        for name in names
        for own, parameter in model.get_submodule(name).named_parameters(recurse=False)
    )


def _layer_plans(
    model: nn.Module,
    chosen: Chosen,
    wanted: Sequence[tuple[int, ...] | None],
    convolutions: str,
    split: Split,
    pruning: Pruning,
    budget: str,
) -> list[LayerPlan]:
    """Plan each group, in order, if it can be split as asked and enough weights can be pruned."""
    grown: dict[str, int] = {}  # further inputs of each layer, from groups that are expanded before it
    planned: list[LayerPlan] = []
    problems, too_many = layer_problems(model, [group for group, _ in chosen]), []
    for (group, factor), some in zip(chosen, wanted, strict=True):
        neurons, inputs, *kernel = oriented_weight(model.get_submodule(group.name)).shape
        inputs, taps = inputs + grown.get(group.name, 0), math.prod(kernel)
        shares = "inputs" if taps == 1 else convolutions
        if shares == "taps" or (shares == "channels" and inputs < factor):
            shares, inputs, taps = "taps", inputs * taps, 1
        entries, groups = len(group.producers) * taps, split.num_groups(neurons)
        own = sum(int(_free_per_input(model.get_submodule(name)).sum()) for name in group.producers)
        expanded = torch.arange(neurons) if some is None else torch.tensor(some)
        mine = others = biases = 0
        cycles = {}  # how many inputs of each consumer are one neuron's
        for name in group.consumers:
            consumer = model.get_submodule(name)
            free, bias = _free_per_input(consumer), bias_of(consumer)
            layout = layout_for(group, name, neurons, len(free))
            concerned = torch.isin(layout_neurons(layout, neurons), expanded)
            mine += int(free[concerned].sum())
            others += int(free[~concerned].sum())
            biases += 0 if bias is None else bias.numel()
            cycles[name] = sum(k for k in layout if k > 0)
        per_neuron = parameters_per_neuron(model, group)
        copies = (factor - 1) * (mine + per_neuron * len(expanded))
        dropped, note = pruning.expected_dropped(neurons, groups, factor, inputs, entries, copies)
        after = neurons + len(expanded) * (factor - 1) - dropped
        free_now = own + mine + others + biases + per_neuron * neurons
        layer = LayerPlan(group, factor, inputs, shares, neurons, after, free_now, copies, some, groups)
        planned.append(replace(layer, notes=(note,) if note else ()))
        problems += _split_problems(model, layer, split, pruning)
        capacity = pruning.capacity(own + factor * mine + others, entries * neurons, inputs, factor)
        if copies > capacity:
            too_many.append(
                f"layer {group.name!r}: factor {factor} makes {copies} copies, and {pruning!r} can prune only "
                f"{capacity} weights; give a smaller factor, or another prune."
            )
        for name, each in cycles.items():
            grown[name] = grown.get(name, 0) + (after - neurons) * each
    raise_problems(problems, ModelError, "the layers to expand")
    if budget == "group":  # with one for the network the copies themselves can be pruned
        raise_problems(too_many, BudgetError, "the budget")
    return planned


def _free_per_input(layer: nn.Module) -> Tensor:
    """Count the free weights of each input of a layer, (inputs,)."""
    weight, mask = oriented_weight(layer), mask_of(layer)
    if mask is None:
        return torch.full((weight.shape[1],), weight.numel() // weight.shape[1])
    return mask.sum(dim=(0, *range(2, mask.dim())), dtype=torch.float64).long().cpu()


def parameters_per_neuron(model: nn.Module, group: NeuronGroup) -> int:
    """Return how many biases and parameters of norms each neuron of a group has."""
    neurons, _ = size_of(model, group.name)
    total = sum(bias_of(model.get_submodule(name)) is not None for name in group.producers)
    for name in group.between:
        module = model.get_submodule(name)
        own = neuron_tensors(module, neurons)
        total += sum(own[n][0].numel() for n, _ in module.named_parameters(recurse=False) if n in own)
    return total


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
