"""What is asked for: the arguments of `fpe.plan` are checked, and the groups to expand selected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from fpe._util.modules import module_problem, uncompiled
from fpe.errors import ArgumentError, FPEError, ModelError, did_you_mean, raise_problems
from fpe.expansion.plan import Chosen
from fpe.expansion.pruning import Pruning, as_pruning
from fpe.expansion.splits import Split, as_split
from fpe.graph import Found, NeuronGroup, Skipped, find_groups
from fpe.graph.groups import HEAD, layout_for, layout_width
from fpe.graph.layers import (
    Names,
    is_frozen,
    is_linear,
    kind_problem,
    layer_problem,
    neurons_of,
    orient_,
    oriented_weight,
    per_neuron_class,
    size_of,
    what_it_is,
    width_problem,
    written_by_hand,
)
from fpe.graph.stacked import CHILD
from fpe.graph.verification import refusal

#: What may be asked for: names, patterns and groups; or a factor for each of them.
Layers = Sequence["str | NeuronGroup"] | Mapping["str | NeuronGroup", int] | Mapping[str, int]


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


def checked_arguments(given: Mapping[str, Any]) -> tuple[Split, Pruning]:
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
    if (problem := module_problem(model)) is not None:
        return problem
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


class Selection:
    """The groups to expand: those asked for, or every second hidden layer (A.7); and the other layers.

    A group given by hand replaces one that was found for a producer of it, with its own factor.
    """

    def __init__(
        self, model: nn.Module, layers: str | NeuronGroup | Layers | None, factor: int, example_inputs: Any
    ) -> None:
        self.model, self.layers, self.factor = model, layers, factor
        self.failed: dict[str, str] = {}
        self.chosen: Chosen = []
        self.skipped: tuple[Skipped, ...] = ()
        if layers is not None:
            self._found, self.chosen, self.skipped = _asked_for(model, layers, factor, example_inputs)
            return
        self._found = find_groups(model, example_inputs)
        self._choose()

    @property
    def exported(self) -> bool:
        """Whether all groups were found in an export of the whole forward pass."""
        return self._found.exported and {group for group, _ in self.chosen} <= {*self._found.groups}

    def drop(self, reasons: Mapping[str, str]) -> None:
        """Drop groups that turn out not to be expandable, with reasons by name; refuse if they were named.

        By default, layers that consume them are chosen instead, if that leaves what is chosen alone.
        """
        named = {entry.name if isinstance(entry, NeuronGroup) else entry for entry in _entries(self.layers)}
        failed = [group for group, _ in self.chosen if group.name in reasons]
        problems = [refusal(g.name, reasons[g.name]) for g in failed if named & set(_names(g.producers))]
        raise_problems(problems, ModelError, "the layers to expand")
        if self.layers is None:
            self.failed |= reasons
            self._choose()
            return
        more = tuple(Skipped(name, reasons[group.name]) for group in failed for name in group.producers)
        self.skipped = (*more, *self.skipped)
        self.chosen = [(group, factor) for group, factor in self.chosen if group.name not in reasons]
        if not self.chosen:
            raise ModelError(_nothing(self.model, self.skipped))

    def _choose(self) -> None:
        kept = [group for group, _ in self.chosen if group.name not in self.failed]
        groups, self.skipped = _by_default(self.model, self._found, self.failed, kept)
        self.chosen = [(group, self.factor) for group in groups]
        if not groups:
            raise ModelError(_nothing(self.model, self.skipped))


def _asked_for(
    model: nn.Module, layers: str | NeuronGroup | Layers, factor: int, example_inputs: Any
) -> tuple[Found, Chosen, tuple[Skipped, ...]]:
    factors: dict[Any, int] = (
        dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(_entries(layers), factor)
    )
    given = [entry for entry in factors if isinstance(entry, NeuronGroup)]
    names = [entry for entry in factors if not isinstance(entry, NeuronGroup)]
    if given and example_inputs is None:
        raise ArgumentError(
            f"the group of {given[0].name!r} is given by hand; give example_inputs=… too, a batch on "
            "which it can be verified."
        )
    by_hand: dict[str, NeuronGroup] = {}
    problems = []
    for group in given:
        own = factors[group]
        for name in group.producers:
            if (other := by_hand.setdefault(name, group)) is not group:
                both = f"{other} and {group}"
                problems.append(f"{name!r} is a producer of two groups given by hand: {both}; give one.")
            if factors.get(name, own) != own:
                problems.append(
                    f"{name!r} has factor {factors[name]} by its name, and {own} by the group of "
                    f"{group.name!r} that is given by hand; give one of them."
                )
    raise_problems(problems, ArgumentError, "layers")
    found = find_groups(model, example_inputs) if names else Found((), ())
    problems = [p for name in names if (p := _name_problem(model, name, found, by_hand))]
    problems += [p for group in given for p in _given_problems(model, group)]
    if not factors:
        problems.append("layers is empty; name at least one layer, or leave it out.")
    raise_problems(problems, ModelError, "the layers to expand")
    chosen: dict[NeuronGroup, int] = {}
    others = []
    for group in found.groups:
        instead = [by_hand[name] for name in group.producers if name in by_hand]
        patterns = [p for p in names if any(fnmatchcase(name, p) for name in _names(group.producers))]
        if instead:
            chosen |= {own: factors[own] for own in instead}
            reason = f"the group of {instead[0].name!r} is given by hand without it"
        elif patterns:
            chosen[group] = factors[patterns[-1]]
            continue
        else:
            reason = "it was not asked for"
        others += [Skipped(name, reason) for name in group.producers if name not in by_hand]
    chosen |= {group: factors[group] for group in given}
    others += [skip for skip in found.skipped if skip.name not in by_hand]
    return found, list(chosen.items()), tuple(others)


def _names(producers: Iterable[str]) -> list[str]:
    """Return the names of some layers; stacked experts have those of their parameter and its module too."""
    found = []
    for name in producers:
        holder, inside, own = name.rpartition(f"{CHILD}.")
        found += [name, f"{holder}{own}", holder.rstrip(".")] if inside else [name]
    return found


def _entries(layers: str | NeuronGroup | Layers | None) -> list[str | NeuronGroup]:
    return [layers] if isinstance(layers, str | NeuronGroup) else list(layers or ())


def _by_default(
    model: nn.Module, found: Found, failed: Mapping[str, str], kept: Sequence[NeuronGroup]
) -> tuple[list[NeuronGroup], tuple[Skipped, ...]]:
    """Take hidden layers 1, 3, 5 … (A.7), none that has failed, is frozen or in a transformer's head.

    Groups that are `kept` are taken first.
    """
    groups: list[NeuronGroup] = []
    skipped: list[Skipped] = []
    producer_of = {name: group.name for group in kept for name in group.consumers}
    kept_by = {name: group.name for group in kept for name in group.producers}
    heads = {s.name for s in found.skipped if s.reason == HEAD}
    ranks = [group for group in found.groups if group.name in found.linear and _is_rank(model, group)]
    adapters = {name for group in ranks for name in (*group.producers, *group.consumers)}
    for group in found.groups:
        earlier = next((producer_of[name] for name in group.producers if name in producer_of), None)
        later = next((kept_by[name] for name in group.consumers if name in kept_by), None)
        if group.name in failed:
            reason = failed[group.name]
        elif group in ranks:
            reason = (
                "it is the low rank of an adapter, such as LoRA, or of a factorized layer: with no activation"
                " more of its neurons compute nothing more; name it in layers=… to expand it all the same"
            )
        elif is_frozen(model, tuple(n for n in (*group.producers, *group.consumers) if n not in adapters)):
            reason = (
                "it is frozen, so that no training could make up for pruned weights; name it in layers=… to "
                "expand it all the same"
            )
        elif found.attention and set(group.consumers) <= heads:
            reason = "it belongs to the head of a transformer; name it in layers=… to expand it"
        elif group not in kept and earlier is not None:
            reason = f"it consumes {earlier!r}, which is expanded (every second hidden layer is)"
        elif group not in kept and later is not None:
            reason = f"it is consumed by {later!r}, which is expanded; name it in layers=… to expand it too"
        else:
            groups.append(group)
            producer_of |= dict.fromkeys(group.consumers, group.name)
            continue
        skipped += [Skipped(name, reason) for name in group.producers]
    return groups, (*skipped, *found.skipped)


def _is_rank(model: nn.Module, group: NeuronGroup) -> bool:
    """Tell whether linear layers narrow to a group's neurons and widen again, as LoRA does."""
    names = (*group.producers, *group.consumers)
    neurons = neurons_of(model, group)
    wide = [
        *(size_of(model, n)[1] for n in group.producers),
        *(size_of(model, n)[0] for n in group.consumers),
    ]
    return all(is_linear(model.get_submodule(n)) for n in names) and neurons < min(wide)


def _nothing(model: nn.Module, skipped: Sequence[Skipped]) -> str:
    named = (f"{repr(s.name) if s.name else 'the model itself'}: {s.reason}" for s in skipped[:8])
    first = "; ".join(named) or "it has no linear layer"
    more = f"; and {len(skipped) - 8} more" if len(skipped) > 8 else ""
    return (
        f"there is nothing to expand in this {type(model).__name__}: {first}{more}. Expandable are "
        "neurons that a linear layer or convolution makes and another consumes, with activations, norms and "
        "dropout between."
    )


def _name_problem(model: nn.Module, name: str, found: Found, by_hand: Iterable[str]) -> str | None:
    expandable = [*(n for group in found.groups for n in group.producers), *by_hand]
    if any(fnmatchcase(n, name) for n in _names(expandable)):
        return None
    for skip in found.skipped:
        if name in _names([skip.name]):
            return f"layer {name!r} cannot be expanded: {skip.reason}."
    names = [n for n, _ in model.named_modules() if n]
    shown = ", ".join(map(repr, expandable[:12])) or "none"
    allowed = f"Expandable: {shown}{f' and {len(expandable) - 12} more' if len(expandable) > 12 else ''}."
    if name == "all" and name not in names:
        return (
            "layers is 'all', which is for fpe.expand alone; a plan, and fpe.expand_, take names or patterns."
        )
    if name in names:
        kind = _kind(model.get_submodule(name))
        return f"layer {name!r} is {kind}, which has no neurons of its own. {allowed}"
    if any(character in name for character in "*?["):
        return f"no layer that can be expanded matches {name!r}. {allowed}"
    return f"the model has no layer {name!r}.{did_you_mean(str(name), names)} {allowed}"


def _kind(module: nn.Module) -> str:
    return what_it_is(module).removeprefix("it is ")


def _given_problems(model: nn.Module, group: NeuronGroup) -> list[str]:
    known = Names(model)
    modules, layers = known.modules, (*group.producers, *group.consumers)
    names = (*layers, *group.between)
    if missing := [n for n in names if n not in modules]:
        return [f"the model has no layer {n!r}.{did_you_mean(n, modules)}" for n in missing]
    problems = [f"{n!r} {p}." for n in names if (p := layer_problem(known, n))]
    problems += [f"{n!r} {p}." for n in layers if (p := kind_problem(modules[n]))]
    if not group.producers or not group.consumers:
        owner = f"of {group.name!r} " if group.producers else ""
        problems.append(f"the group {owner}has no consumers; name the layers that consume it.")
    if group.input_layouts and len(group.input_layouts) != len(group.consumers):
        problems.append(
            f"the group of {group.name!r} has {len(group.consumers)} consumers and input_layouts for "
            f"{len(group.input_layouts)}; give a layout for each, or for none."
        )
    if group.between_layouts and len(group.between_layouts) != len(group.between):
        problems.append(
            f"the group of {group.name!r} has {len(group.between)} modules between and between_layouts for "
            f"{len(group.between_layouts)}; give a layout for each, or for none."
        )
    if isinstance(group.parts, tuple) and len(group.parts) != len(group.producers):
        problems.append(
            f"the group of {group.name!r} has {len(group.producers)} producers and parts for "
            f"{len(group.parts)}; give one number for each, or one for all."
        )
    if problems:
        return problems
    orient_(model, [group])
    shapes = {n: oriented_weight(modules[n]).shape for n in layers}
    own, neurons = shapes[group.name][0], neurons_of(model, group)
    if own % group.parts_of(group.name):
        return [f"{group.name!r} has {own} outputs, not {group.parts_of(group.name)} equal parts."]
    for n in group.producers:
        if shapes[n][0] != (wanted := neurons * group.parts_of(n)):
            problems.append(
                f"{n!r} has {shapes[n][0]} outputs, and {wanted} are those of the neurons of {group.name!r}; "
                "producers of one group have equally many neurons."
            )
    for n in group.consumers:
        inputs = shapes[n][1]
        if layout_width(layout_for(group, n, neurons, inputs), neurons) != inputs:
            problems.append(f"{n!r} has {inputs} inputs, but {group.name!r} has {neurons} neurons.")
    for n in group.between:
        if per_neuron_class(modules[n]) is None and not written_by_hand(modules[n]):
            problems.append(
                f"{n!r} is {_kind(modules[n])}; between are norms, PReLU, depthwise convolutions and "
                "modules of your own with a parameter per neuron."
            )
        elif problem := width_problem(modules[n], layout_width(group.entries_of(n), neurons)):
            problems.append(f"{n!r}: {problem}.")
    return problems
