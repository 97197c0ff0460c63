"""What `expand` will do, known and checked before any weight is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fpe.budget import Prune, as_prune, count_free, count_nonzero
from fpe.errors import ArgumentError, BudgetError, FPEError, ModelError, did_you_mean, raise_problems
from fpe.graph import Found, Group, Skipped, find_groups, prove
from fpe.graph.groups import (
    PER_NEURON,
    is_plain_linear,
    layer_problem,
    linear,
    neuron_tensors,
    width_problem,
)
from fpe.masked import MaskedLinear
from fpe.partition import Split, as_split
from fpe.plans import LayerPlan, Plan


def plan(
    model: nn.Module,
    factor: int = 2,
    split: str | Split = "random",
    prune: str | Prune = "magnitude",
    layers: Sequence[str | Group] | None = None,
    example_inputs: Any = None,
    seed: int = 0,
) -> Plan:
    """Find what `fpe.expand` with the same arguments would do, and check that it can be done.

    Parameters
    ----------
    model : nn.Module
        An ``nn.Sequential`` or any module that can be traced symbolically. It is not changed.
    factor : int, default 2
        Children of each neuron, α in the paper: 1 to the number of inputs of each layer.
    split : str or Split, default "random"
        Who gets which input: ``"random"``, ``"shared"``, ``"gram"``, ``"2:4"`` or an object such as
        ``fpe.Groups(labels)``.
    prune : str or Prune, default "magnitude"
        Which weights pay for the copies: ``"magnitude"`` (the paper's) or ``"columns"`` (whole inputs,
        for a shared split).
    layers : sequence of str or Group, optional
        Names of the layers to expand. By default every second hidden layer from the first (A.7), which
        for a network with one hidden layer is that one. A `Group` gives a layer with its readers by
        hand, for a model that cannot be followed; it needs `example_inputs`.
    example_inputs : Tensor, tuple or dict, optional
        One batch. If given, each group is proved by a permutation of its neurons.
    seed : int, default 0
        Seed of the partitions.

    Returns
    -------
    Plan
        Printable.

    Raises
    ------
    ArgumentError
        For an argument that no model could satisfy.
    ModelError
        If there is nothing to expand, or a named layer cannot be expanded.
    BudgetError
        If the copies cannot be paid for.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> print(fpe.plan(model, factor=2))
    Expansion by 2: split Random(), prune Magnitude(), seed 0
    layer  read by  with  inputs  neurons  after  non-zeros  copies to pay for
    -----  -------  ----  ------  -------  -----  ---------  -----------------
    0      2        -          8        4      8         46                 12
    left alone:
      2: it is a head: its neurons are outputs of the network
    non-zero parameters of the network, before and after: 46
    """
    split, prune = check_arguments(model, factor, split, prune, seed)
    groups, skipped = _choose(model, layers, example_inputs)
    _check_groups(model, groups, factor, split, prune)
    if example_inputs is not None:
        for group in groups:
            prove(model, group, example_inputs)
    widths = _inputs(model, groups, factor)
    return Plan(
        layers=tuple(_layer_plan(model, group, factor, widths[group.producer]) for group in groups),
        skipped=skipped,
        factor=factor,
        split=repr(split),
        prune=repr(prune),
        seed=seed,
        nonzero=count_nonzero(model),
    )


def check_arguments(
    model: nn.Module, factor: int, split: str | Split, prune: str | Prune, seed: int
) -> tuple[Split, Prune]:
    """Check what can be checked without looking into the model, and report all problems at once."""
    problems = []
    if not isinstance(model, torch.nn.Module):
        problems.append(f"model is a {type(model).__name__}; give a torch.nn.Module.")
    if problem := factor_problem(factor):
        problems.append(problem)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        problems.append(f"seed is {seed!r}; give an integer of at least 0.")
    resolved: list[Any] = []
    for resolve in (lambda: as_split(split), lambda: as_prune(prune)):
        try:
            resolved.append(resolve())
        except FPEError as error:
            problems.append(str(error))
    if len(resolved) == 2 and resolved[1].needs_shared and not resolved[0].shared:
        problems.append(
            f"prune='columns' needs one partition for all neurons of a layer, which split {resolved[0]!r} "
            "does not give; use split='shared' or fpe.Groups(labels, shared=True), or prune='magnitude'."
        )
    raise_problems(problems, ArgumentError, "the arguments")
    return resolved[0], resolved[1]


def factor_problem(factor: Any) -> str | None:
    """Say what is wrong with an expansion factor, or return None."""
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        return f"factor is {factor!r}; give an integer of at least 1 (2 doubles the neurons)."
    return None


def _choose(
    model: nn.Module, layers: Sequence[str | Group] | None, example_inputs: Any
) -> tuple[list[Group], tuple[Skipped, ...]]:
    """Choose the groups to expand: those asked for, or every second hidden layer (A.7)."""
    if isinstance(layers, str | Group):
        layers = [layers]
    given = [entry for entry in layers or [] if isinstance(entry, Group)]
    if given and example_inputs is None:
        raise ArgumentError(
            f"the group of {given[0].producer!r} is given by hand; give example_inputs=… too, a batch on "
            "which it can be proved."
        )
    names = [entry for entry in layers or [] if not isinstance(entry, Group)]
    found = find_groups(model) if names or layers is None else Found((), ())
    if layers is None:
        groups, skipped = _alternate(found)
        if not groups:
            reasons = "; ".join(f"{s.name!r}: {s.reason}" for s in skipped) or "it has no linear layer"
            raise ModelError(
                f"there is nothing to expand in this {type(model).__name__}: {reasons}. Expandable are "
                "neurons that a linear layer makes and another reads, with activations, norms and dropout "
                "between."
            )
        return groups, skipped
    problems = [p for name in names if (p := _name_problem(model, name, found))]
    problems += [p for group in given for p in _given_problems(model, group)]
    if not layers:
        problems.append("layers is empty; name at least one layer, or leave it out.")
    raise_problems(problems, ModelError, "the layers to expand")
    chosen = {group.producer: group for group in found.groups if group.producer in names}
    chosen |= {group.producer: group for group in given}
    others = [Skipped(g.producer, "it was not asked for") for g in found.groups if g.producer not in chosen]
    return list(chosen.values()), (*others, *found.skipped)


def _alternate(found: Found) -> tuple[list[Group], tuple[Skipped, ...]]:
    """Take hidden layers 1, 3, 5 …: none that already reads an expanded one."""
    groups: list[Group] = []
    skipped: list[Skipped] = []
    readers: dict[str, str] = {}
    for group in found.groups:
        if group.producer in readers:
            reason = f"it reads {readers[group.producer]!r}, which is expanded (every second hidden layer is)"
            skipped.append(Skipped(group.producer, reason))
        else:
            groups.append(group)
            readers |= dict.fromkeys(group.consumers, group.producer)
    return groups, (*skipped, *found.skipped)


def _name_problem(model: nn.Module, name: str, found: Found) -> str | None:
    expandable = [group.producer for group in found.groups]
    if name in expandable:
        return None
    for skip in found.skipped:
        if skip.name == name:
            return f"layer {name!r} cannot be expanded: {skip.reason}."
    names = [n for n, _ in model.named_modules() if n]
    allowed = f"Expandable: {', '.join(map(repr, expandable)) or 'none'}."
    if name in names:
        kind = type(model.get_submodule(name)).__name__
        return f"layer {name!r} is a {kind}, which has no neurons of its own. {allowed}"
    return f"the model has no layer {name!r}.{did_you_mean(str(name), names)} {allowed}"


def _given_problems(model: nn.Module, group: Group) -> list[str]:
    """Check a group that the user gave by hand."""
    modules = dict(model.named_modules())
    names = [group.producer, *group.consumers, *group.between]
    missing = [n for n in names if n not in modules]
    if missing:
        return [f"the model has no layer {n!r}.{did_you_mean(n, modules)}" for n in missing]
    problems = [f"{n!r} {p}." for n in names if (p := layer_problem(model, n))]
    for n in (group.producer, *group.consumers):
        if not is_plain_linear(modules[n]):
            problems.append(f"{n!r} is a {type(modules[n]).__name__}; producers and consumers are nn.Linear.")
    if not group.consumers:
        problems.append(f"the group of {group.producer!r} has no consumers; name the layers that read it.")
    if problems:
        return problems
    neurons = linear(model, group.producer).out_features
    for n in group.consumers:
        inputs = linear(model, n).in_features
        if inputs != neurons:
            problems.append(f"{n!r} has {inputs} inputs, but {group.producer!r} has {neurons} neurons.")
    for n in group.between:
        if type(modules[n]) not in PER_NEURON:
            known = ", ".join(kind.__name__ for kind in PER_NEURON)
            problems.append(f"{n!r} is a {type(modules[n]).__name__}; between can stand {known}.")
        elif problem := width_problem(modules[n], neurons):
            problems.append(f"{n!r}: {problem}.")
    return problems


def _check_groups(model: nn.Module, groups: Sequence[Group], factor: int, split: Split, prune: Prune) -> None:
    """Check that each layer can be split so, and that its copies can be paid for."""
    problems = []
    widths = _inputs(model, groups, factor)
    for group in groups:
        inputs = widths[group.producer]
        if factor > inputs:
            problems.append(
                f"factor {factor} is larger than the {inputs} inputs of layer {group.producer!r}, so that "
                f"some child would have none; give a factor from 1 to {inputs}."
            )
        elif factor > 1 and (problem := split.problem(inputs, factor)):
            problems.append(f"layer {group.producer!r}: {problem}.")
        for name in (group.producer, *group.consumers):
            weight = linear(model, name).weight
            if weight.is_meta:
                problems.append(f"layer {name!r} is on the meta device; load its weights first.")
            elif not weight.is_floating_point():
                problems.append(f"layer {name!r} has {weight.dtype} weights; floating point is allowed.")
            elif not all(bool(end.isfinite()) for end in torch.aminmax(weight.detach())):
                problems.append(f"the weight of layer {name!r} has NaN or infinite entries; repair it first.")
    raise_problems(problems, ModelError, "the layers to expand")
    for group in groups:
        layer = _layer_plan(model, group, factor, widths[group.producer])
        weights = sum(_free_weights(model, n) for n in (group.producer, *group.consumers))
        readers = sum(_free_weights(model, n) for n in group.consumers)
        can_pay = weights + (factor - 1) * readers
        what = "weights"
        if prune.needs_shared:
            can_pay = layer.neurons * (layer.inputs - factor)
            what = "weights in the columns that may leave"
        if layer.copies > can_pay:
            problems.append(
                f"layer {group.producer!r}: factor {factor} makes {layer.copies} copies, and only {can_pay} "
                f"{what} could pay for them; give a smaller factor"
                + (" or prune='magnitude'." if prune.needs_shared else ".")
            )
    raise_problems(problems, BudgetError, "the budget")


def _free_weights(model: nn.Module, name: str) -> int:
    layer = linear(model, name)
    if isinstance(layer, MaskedLinear):
        return count_free(layer.weight_mask)
    return layer.weight.numel()


def _inputs(model: nn.Module, groups: Sequence[Group], factor: int) -> dict[str, int]:
    """Return the inputs of each producer when its turn comes: more, if it reads one expanded before."""
    inputs: dict[str, int] = {}
    widened: set[str] = set()
    for group in groups:
        own = linear(model, group.producer).in_features
        inputs[group.producer] = own * factor if group.producer in widened else own
        widened.update(group.consumers)
    return inputs


def _layer_plan(model: nn.Module, group: Group, factor: int, inputs: int) -> LayerPlan:
    producer = linear(model, group.producer)
    neurons = producer.out_features
    per_neuron = 0 if producer.bias is None else neurons
    for name in group.between:
        module = model.get_submodule(name)
        own = {n for n, _ in module.named_parameters(recurse=False)}
        per_neuron += neurons * len(own & neuron_tensors(module, neurons).keys())
    readers = sum(_free_weights(model, name) for name in group.consumers)
    biases = [linear(model, name).bias for name in group.consumers]
    rest = sum(bias.numel() for bias in biases if bias is not None)
    return LayerPlan(
        group=group,
        inputs=inputs,
        neurons=neurons,
        neurons_after=neurons * factor,
        free=_free_weights(model, group.producer) + readers + per_neuron + rest,
        copies=(factor - 1) * (readers + per_neuron),
    )
