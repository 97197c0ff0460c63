"""What `expand` will do, known and checked before any weight is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fpe._util.modules import hook_problems, uncompiled
from fpe.errors import ArgumentError, BudgetError, FPEError, ModelError, raise_problems
from fpe.expansion.choice import Chosen, Layers, choose, without
from fpe.expansion.foreseen import free_by_neuron, free_weights, layer_plans
from fpe.expansion.plan import LayerPlan, Plan
from fpe.expansion.pruning import Pruning, as_pruning
from fpe.expansion.ranking import example_problem, scales_of, split_problem
from fpe.expansion.splits import Split, as_split
from fpe.expansion.target import TARGETS, most_polysemantic
from fpe.expansion.widths import written_down
from fpe.graph import NeuronGroup
from fpe.graph.inputs import inputs_for
from fpe.graph.layers import (
    OVER_NEURONS,
    memory_problem,
    oriented_weight,
)
from fpe.graph.verification import unverified
from fpe.masked import check_masks, count_nonzero

BUDGETS = ("group", "network")
CONVOLUTIONS = ("channels", "taps")
#: Classes that hold on to a model's parameters, or hold them in pieces; by name, to import none of them.
WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")


def plan(
    model: nn.Module,
    factor: int = 2,
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

    Parameters
    ----------
    model : nn.Module
        Any module; it is not changed. Of a compiled one the model in it is taken. Without
        `example_inputs`, the linear layers of an ``nn.Sequential``
        or of a module that can be traced symbolically are found; for a model of transformers a batch is
        made up from its configuration.
    factor : int, default 2
        Children of each neuron, α in the paper: 1 to the number of inputs of each layer.
    split : str or Split, default "random"
        Who gets which input: ``"random"``, ``"shared"``, ``"shared-8"`` (one partition for each of 8 groups
        of neurons; see `fpe.SharedSplit`), ``"gram"``, ``"2:4"`` or an object such as
        ``fpe.LabelSplit(labels)``. ``fpe.CorrelationSplit()`` looks at `example_inputs`.
    prune : str or Prune, default "magnitude"
        Which weights pay for the copies: ``"magnitude"`` (the paper's), ``"balanced"`` (the same, but the
        readers of the new neurons keep at most half of the free weights; for networks that are expanded
        before they are trained), ``"columns"`` (whole inputs, for a shared split) or ``"children"`` (whole
        children, for a shared split whose readers are as large as the layer; see `fpe.ChildPruning`).
        ``fpe.InputPruning(by="activation")`` ranks the inputs by what they hold on `example_inputs` too,
        ``fpe.InputPruning(by="gradient")`` by the gradients that a backward pass has left.
    layers : sequence of str or Group, or mapping of these to int, optional
        Names or patterns (``"encoder.*.fc1"``) of the layers to expand; a mapping gives each its own
        factor, the last that matches. By default every second hidden layer from the first (A.7), which
        for a network with one hidden layer is that one and for a transformer every MLP; never a head,
        an embedding or a projection of attention. A `NeuronGroup` gives a layer with its readers by hand, for a
        model that cannot be followed; it needs `example_inputs`, and is taken instead of what a name or a
        pattern beside it finds for its layer.
    example_inputs : Tensor, tuple or dict, optional
        One small batch: the model's input, its positional arguments, or its keyword arguments. With it
        any model that ``torch.export`` can follow is, convolutions and gated pairs included, and each
        group is verified numerically, by permuting its neurons in evaluation and in training mode.
    seed : int, default 0
        Seed of the partitions.
    budget : str, default "group"
        Who pays for a group's copies: the ``"group"`` itself, or all groups of the ``"network"`` together.
    convolutions : str, default "channels"
        What a convolution's children share out: its input ``"channels"``, all taps of one staying
        together, or its single ``"taps"``. A layer with fewer channels than children shares out taps.
    target_fraction : float, default 1.0
        Share of each layer's neurons to expand, the most polysemantic first; the others keep one child.
    target : str, default "participation"
        What the most polysemantic neurons are: those of the highest ``"participation"`` ratio of
        incoming weights, or those whose inputs have the least feature ``"capacity"`` on `example_inputs`.

    Returns
    -------
    Plan
        Printable.

    Raises
    ------
    ArgumentError
        For an argument that no model could satisfy.
    ModelError
        If there is nothing to expand, a named layer cannot be expanded, a ranking by gradient finds none,
        or the model was expanded before and a weight is not zero where its mask is (see `fpe.project_`).
    BudgetError
        If the copies cannot be paid for.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> print(fpe.plan(model, factor=2))
    Expansion by 2: split RandomSplit(), prune MagnitudePruning(), seed 0
    layer  read by  with  shares out  neurons  after  non-zeros  copies to pay for
    -----  -------  ----  ----------  -------  -----  ---------  -----------------
    0      2        -       8 inputs        4      8         46                 12
    left alone:
      2: it is a head: its neurons are outputs of the network
    non-zero parameters of the network, before and after: 46
    """
    model = uncompiled(model)
    split, prune = check_arguments(
        model,
        factor,
        split,
        prune,
        seed,
        layers,
        budget,
        convolutions,
        target_fraction,
        target,
        example_inputs,
    )
    check_masks(model, "expanding")
    chosen, skipped = choose(model, layers, factor, example_inputs)

    def planned_for(chosen: Chosen) -> list[LayerPlan]:
        problems = _memory_problems(model, chosen) + _hook_problems(model, chosen)
        wanted = [most_polysemantic(model, g, target_fraction, target, example_inputs) for g, _ in chosen]
        planned = layer_plans(model, chosen, wanted, convolutions, split, prune)
        problems += _split_problems(model, planned, split, prune)
        raise_problems(problems, ModelError, "the layers to expand")
        _check_budget(model, planned, prune, budget)
        return planned

    planned = planned_for(chosen)
    batch = inputs_for(model) if example_inputs is None else example_inputs
    if batch is not None:
        # Only what has been verified is worth widening.
        if reasons := unverified(model, [group for group, _ in chosen], batch):
            chosen, skipped = without(model, chosen, skipped, layers, reasons)
            planned = planned_for(chosen)
        if reasons := written_down(model, planned, batch):
            chosen, skipped = without(model, chosen, skipped, layers, reasons)
            planned = planned_for(chosen)
    scales_of(model, [group for group, _ in chosen], prune, example_inputs)  # or say that it cannot be done
    earlier = vars(model).get("fpe_plan")
    return Plan(
        layers=tuple(planned),
        skipped=skipped,
        factor=factor,
        split=repr(split),
        prune=repr(prune),
        budget=budget,
        seed=seed,
        nonzero=count_nonzero(model),
        earlier=earlier if isinstance(earlier, Plan) else None,
    )


def check_arguments(
    model: nn.Module,
    factor: int,
    split: str | Split,
    prune: str | Pruning,
    seed: int,
    layers: Any = None,
    budget: str = "group",
    convolutions: str = "channels",
    target_fraction: float = 1.0,
    target: str = "participation",
    example_inputs: Any = None,
) -> tuple[Split, Pruning]:
    """Check what can be checked without looking into the model, and report all problems at once."""
    problems = []
    if not isinstance(model, torch.nn.Module):
        problems.append(f"model is a {type(model).__name__}; give a torch.nn.Module.")
    elif problem := wrapped_problem(model):
        problems.append(problem)
    if problem := factor_problem(factor):
        problems.append(problem)
    if isinstance(layers, Mapping):
        problems += [f"layers[{entry!r}]: {p}" for entry, f in layers.items() if (p := factor_problem(f))]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        problems.append(f"seed is {seed!r}; give an integer of at least 0.")
    for name, value, allowed in (
        ("budget", budget, BUDGETS),
        ("convolutions", convolutions, CONVOLUTIONS),
        ("target", target, TARGETS),
    ):
        if value not in allowed:
            problems.append(f"{name} is {value!r}; give {' or '.join(map(repr, allowed))}.")
    if not isinstance(target_fraction, int | float) or not 0 < target_fraction <= 1:
        problems.append(f"target_fraction is {target_fraction!r}; give a number above 0 and at most 1.")
    resolved: list[Any] = []
    for resolve in (lambda: as_split(split), lambda: as_pruning(prune)):
        try:
            resolved.append(resolve())
        except FPEError as error:
            problems.append(str(error))
    if len(resolved) == 2 and resolved[1].needs_shared:
        name = resolved[1]
        if not resolved[0].shared:
            problems.append(
                f"prune={name!r} needs one partition for all neurons of a layer, which split "
                f"{resolved[0]!r} does not give; use split='shared' or fpe.LabelSplit(labels, shared=True), or "
                "prune='magnitude'."
            )
        if budget == "network":
            problems.append(f"prune={name!r} pays layer by layer; give budget='group', or prune='magnitude'.")
        if target_fraction != 1:
            problems.append(
                f"prune={name!r} needs all neurons of a layer expanded; leave target_fraction out, or give "
                "prune='magnitude'."
            )
    if len(resolved) == 2:
        needs = split_problem(resolved[0], example_inputs), example_problem(resolved[1], example_inputs)
        problems += [problem for problem in needs if problem]
    raise_problems(problems, ArgumentError, "the arguments")
    return resolved[0], resolved[1]


def wrapped_problem(model: nn.Module) -> str | None:
    """Say that a model, or a part of it, is scripted or wrapped for several processes, or return None."""
    for name, module in model.named_modules():
        where = f"{name!r} in the model" if name else "model"
        if isinstance(module, torch.jit.ScriptModule):
            return (
                f"{where} is a ScriptModule, made by torch.jit.script or torch.jit.trace, which cannot be "
                "followed; expand the model first, and script it then."
            )
        found = {kind.__name__ for kind in type(module).__mro__} & set(WRAPPERS)
        if found:
            return f"{where} is a {found.pop()}; expand the model first, and wrap it then."
    return None


def factor_problem(factor: Any) -> str | None:
    """Say what is wrong with an expansion factor, or return None."""
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        return f"factor is {factor!r}; give an integer of at least 1 (2 doubles the neurons)."
    return None


def _memory_problems(model: nn.Module, chosen: Chosen) -> list[str]:
    """Check that the weights concerned are there, and are numbers."""
    names = dict.fromkeys(name for group, _ in chosen for name in (*group.producers, *group.consumers))
    return [p for name in names if (p := memory_problem(model.get_submodule(name), name))]


def _hook_problems(model: nn.Module, chosen: Chosen) -> list[str]:
    """Check that no parameter that will be replaced has hooks."""
    groups = [group for group, _ in chosen]
    names = dict.fromkeys(n for g in groups for n in (*g.producers, *g.between, *g.consumers))
    found = [
        (f"{name}.{own}", parameter)
        for name in names
        for own, parameter in model.get_submodule(name).named_parameters(recurse=False)
    ]
    return hook_problems(found)


def _split_problems(
    model: nn.Module, planned: Sequence[LayerPlan], split: Split, prune: Pruning
) -> list[str]:
    """Check that each layer can be split so."""
    problems = []
    for layer in planned:
        factor, name = layer.factor, layer.group.name
        shared_out = layer.inputs
        if factor > shared_out:
            problems.append(
                f"factor {factor} is larger than the {shared_out} {layer.shares} of layer {name!r}, so that "
                f"some child would have none; give a factor from 1 to {shared_out}."
            )
        elif split.needs_inputs and layer.shares == "taps":
            problems.append(
                f"layer {name!r} shares out taps, of which split {split!r} knows nothing; give "
                "convolutions='channels' and no more children than channels, or another split."
            )
        elif factor > 1 and (problem := split.problem(shared_out, factor)):
            problems.append(f"layer {name!r}: {problem}.")
        for between in layer.group.between:
            norm = model.get_submodule(between)
            if layer.chosen is not None and isinstance(norm, OVER_NEURONS):
                problems.append(
                    f"layer {name!r}: the {type(norm).__name__} {between!r} is over its neurons, and would "
                    "count the expanded ones more often than the others; leave target_fraction out for this "
                    "layer."
                )
            if prune.drops_children and isinstance(norm, nn.GroupNorm) and norm.num_groups > 1:
                problems.append(
                    f"layer {name!r}: the GroupNorm {between!r} cuts its neurons into {norm.num_groups} "
                    "equal pieces, of which prune='children' would take unequal parts; give "
                    "prune='magnitude', or leave this layer out."
                )
    return problems


def _check_budget(model: nn.Module, planned: Sequence[LayerPlan], prune: Pruning, budget: str) -> None:
    """Check that the copies can be paid for."""
    problems = []
    if budget == "network":
        names = dict.fromkeys(n for p in planned for n in (*p.group.producers, *p.group.consumers))
        copies = sum(layer.copies for layer in planned)
        can_pay = sum(free_weights(model, n) for n in names) + copies
        if copies > can_pay:
            problems.append(
                f"the expansion makes {copies} copies, and only {can_pay} weights could pay for them."
            )
    for layer in planned if budget == "group" else ():
        group = layer.group
        expanded = layer.chosen or range(layer.neurons)
        read = [free_by_neuron(model, group, i, expanded)[0] for i in range(len(group.consumers))]
        per_neuron = layer.copies - (layer.factor - 1) * sum(read)
        weights = sum(free_weights(model, n) for n in (*group.producers, *group.consumers))
        can_pay = weights + layer.copies - per_neuron
        shape = oriented_weight(model.get_submodule(group.name)).shape
        taps = shape[2:].numel() if layer.shares != "taps" else 1
        entries = len(group.producers) * layer.neurons * taps
        can_pay = prune.capacity(can_pay, entries, layer.inputs, layer.factor)
        if layer.copies > can_pay:
            problems.append(
                f"layer {group.name!r}: factor {layer.factor} makes {layer.copies} copies, and prune={prune!r} "
                f"can prune only {can_pay} weights; give a smaller factor, or another prune."
            )
    raise_problems(problems, BudgetError, "the budget")
