"""The plan: what an expansion does, as a value that can be printed, stored, read again and applied.

`layer_plans` makes the plans of single groups of neurons, `fpe.plan` the whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fpe._util.modules import hook_problems
from fpe._util.terminal import braced, folded, text_table
from fpe.errors import ArgumentError, ModelError, raise_problems
from fpe.expansion.index_maps import IndexMap
from fpe.expansion.pruning import Pruning
from fpe.expansion.splits import Split
from fpe.graph import NeuronGroup, Skipped
from fpe.graph.groups import layout_for, layout_neurons, layout_width
from fpe.graph.kinds import takes_means
from fpe.graph.layers import (
    bias_of,
    is_frozen,
    is_stacked,
    looks_like_layer,
    mask_of,
    memory_problem,
    neuron_tensors,
    neurons_of,
    oriented_weight,
    over_neurons,
    producer_sets,
)
from fpe.masked import count_nonzero

#: Groups in the order in which they are expanded, each with its factor.
Chosen = list[tuple[NeuronGroup, int]]


@dataclass(frozen=True)
class LayerPlan:
    """One group of neurons and its expansion."""

    group: NeuronGroup  # the modules concerned
    factor: int  # children of each neuron that is expanded
    inputs: int  # how many inputs of a producer are split among the children of a neuron
    shares: str  # what is split: "inputs", "channels" with all their taps, or "taps"
    neurons: int  # before
    neurons_after: int  # with `ChildPruning` of a model with masks an estimate, until it is expanded
    free: int  # non-zero parameters of the group, before and after
    # Duplicated weights, biases and norm parameters; as many weights are pruned. Where two groups have a
    # consumer in common, an upper bound.
    copies: int
    chosen: tuple[int, ...] | None = None  # the neurons that are expanded, if not all are
    groups: int = 1  # groups of adjacent neurons with a partition each, if the split is shared
    # The children that `ChildPruning` did not create, numbered as if all were: parent × factor + child.
    dropped: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()  # what is done otherwise than asked; complete after the expansion
    frozen: tuple[str, ...] = ()  # layers of which weights are pruned, and not trained

    @property
    def index_map(self) -> IndexMap:
        """The child and the parent of each new neuron."""
        members = len(self.group.producers), len(self.group.between), len(self.group.consumers)
        how = self.groups, self.chosen, self.dropped, self.notes
        return IndexMap(self.neurons, self.factor, *how, members, self.group.parts)


@dataclass
class Basis:
    """What a plan was made from, with all that was measured for it; not stored in files."""

    split: Split
    pruning: Pruning
    batch: Any  # one batch for the model, or None
    scores: dict[str, Tensor]  # by the producer's name, what the pruning ranks by
    inputs: dict[str, Tensor]  # by the producer's name, the inputs that the split needs
    shapes: list[torch.Size] | None  # of the model's outputs on the batch
    modules: dict[str, Any]  # type and shapes of each module with parameters


#: What columns of a printed plan mean.
COLUMNS = (
    "between: modules that widen with a layer; copies: weights that children copy, as many as are pruned"
)
FROZEN = "it is expanded and stays frozen, so that no training makes up for weights that are pruned in it"


@dataclass(frozen=True)
class Plan:
    """What will be expanded, how, and what is left unchanged; ``print(plan)`` shows it as a table.

    `fpe.expand(model, plan=plan)` and `fpe.expand_` apply it.
    """

    layers: tuple[LayerPlan, ...]  # in the order in which they are expanded
    skipped: tuple[Skipped, ...]  # every other layer with the reason
    factor: int  # children of each neuron, where `layers` gave no other
    split: str  # printed form
    prune: str  # printed form
    budget: str  # whether each "group" is pruned to its own count, or the "network" to one
    seed: int  # of the partitions
    nonzero: int  # non-zero parameters of the whole network, before and after
    # Weights of the layers that are expanded, and of all linear layers and convolutions; None in older files.
    weights: tuple[int, int] | None = None
    # None for a plan that was applied, or read from a file.
    basis: Basis | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        head = ("layer", "consumers", "between", "splits", "neurons", "after", "non-zeros", "copies")
        rows = folded([_cells(layer) for layer in self.layers])
        each = ", numbers are of one layer" if len(rows) < len(self.layers) else ""
        whole = ", budget of the whole network" if self.budget == "network" else ""
        how = f"split {self.split}, prune {self.prune}{whole}, seed {self.seed}{each}"
        lines = [f"Expansion by {self.factor}: {how}", *text_table(head, rows, left=3), COLUMNS]
        frozen = [(name, FROZEN) for layer in self.layers for name in layer.frozen]
        lines += ["frozen:", *(f"  {name}: {why}" for name, why in folded(frozen))] if frozen else []
        notes = [(braced(layer.group.producers), note) for layer in self.layers for note in layer.notes]
        lines += remarks(notes, self.skipped)
        if self.weights is not None:
            some, total = self.weights
            share = f"{some:,} of {total:,} ({some / max(1, total):.0%})"
            lines.append(f"weights of linear layers and convolutions in expanded layers: {share}")
        lines.append(f"non-zero parameters of the network, before and after: {self.nonzero:,}")
        return "\n".join(lines)

    def basis_for(self, model: nn.Module) -> Basis:
        """Return what the plan was made from, if it can be applied to a model; else raise an error."""
        if self.basis is None:
            raise ArgumentError(
                "this plan was read from a file, or has been applied, and no longer has its split, pruning "
                "and measurements; make a new one with fpe.plan."
            )
        now = modules_of(model)
        if now != self.basis.modules:
            names = [n for n in {**now, **self.basis.modules} if now.get(n) != self.basis.modules.get(n)]
            raise ModelError(
                f"the model is not the one that was planned: {', '.join(map(repr, names[:5]))} "
                f"{'is' if len(names) == 1 else 'are'} other than then; make a new plan with fpe.plan."
            )
        if (count := count_nonzero(model)) != self.nonzero:
            raise ModelError(
                f"the model is not the one that was planned: it has {count:,} non-zero parameters, and had "
                f"{self.nonzero:,}; make a new plan with fpe.plan."
            )
        return self.basis

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain lists, dicts, strings and numbers, fit for JSON."""
        record = dataclasses.asdict(dataclasses.replace(self, basis=None))
        del record["basis"]
        return record

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Plan:
        """Make the plan again from what `to_dict` returned, from its JSON, or from an earlier version's."""
        layers = []
        for layer in record["layers"]:
            known = {f.name: layer[f.name] for f in dataclasses.fields(LayerPlan) if f.name in layer}
            known["group"] = NeuronGroup.from_dict(layer["group"])
            known["dropped"] = layer.get("dropped", layer.get("left", ()))  # the name in earlier versions
            for name in ("chosen", "dropped", "notes", "frozen"):
                known[name] = None if known.get(name) is None else tuple(known[name])
            empty = {name: known[name] or () for name in ("notes", "frozen")}
            layers.append(LayerPlan(**{**known, **empty}))
        names = ("factor", "split", "prune", "budget", "seed", "nonzero")
        skipped = tuple(Skipped(**s) for s in record["skipped"])
        weights = record.get("weights")
        known = {name: record[name] for name in names}
        return Plan(tuple(layers), skipped, **known, weights=tuple(weights) if weights else None)


def modules_of(model: nn.Module) -> dict[str, Any]:
    """Return the type, and the shapes of the parameters, of each module that has some."""
    return {
        name: (type(module).__qualname__, shapes)
        for name, module in model.named_modules()
        if (shapes := {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False)})
    }


def _cells(layer: LayerPlan) -> tuple[str, ...]:
    return (
        braced(layer.group.producers),
        ", ".join(layer.group.consumers),
        ", ".join(layer.group.between) or "-",
        f"{layer.inputs:,} {layer.shares}" + (f", {layer.groups} groups" if layer.groups > 1 else ""),
        *(f"{n:,}" for n in (layer.neurons, layer.neurons_after, layer.free, layer.copies)),
    )


def remarks(notes: Sequence[tuple[str, str]], skipped: Sequence[Skipped]) -> list[str]:
    """Write what is done otherwise than asked, and the skipped layers, equal ones of a stack in one line."""
    reasons = [(s.name, s.reason) for s in skipped]
    lines = []
    for head, rows in (("otherwise than asked:", notes), ("left unchanged:", reasons)):
        lines += [head, *(f"  {name}: {reason}" for name, reason in folded(rows))] if rows else []
    return lines


def weights_of(model: nn.Module, layers: Sequence[LayerPlan]) -> tuple[int, int]:
    """Count the weights of the layers of these plans, and of all linear layers and convolutions."""
    mine = {n for layer in layers for n in (*layer.group.producers, *layer.group.consumers)}
    sizes = {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if looks_like_layer(module) and isinstance(module.weight, Tensor)
    }
    return sum(sizes[name] for name in mine), sum(sizes.values())


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


def layer_plans(
    model: nn.Module,
    chosen: Chosen,
    wanted: Sequence[tuple[int, ...] | None],
    convolutions: str,
    split: Split,
    pruning: Pruning,
    budget: str,
) -> tuple[list[LayerPlan], dict[str, str]]:
    """Plan each group, in order, if it can be split as asked.

    Return also, by the name of the group, why too few of its weights could be pruned.
    """
    grown: dict[str, int] = {}  # further inputs of each layer, from groups that are expanded before it
    planned: list[LayerPlan] = []
    problems, too_many = layer_problems(model, [group for group, _ in chosen]), dict[str, str]()
    for (group, factor), some in zip(chosen, wanted, strict=True):
        neurons, groups = neurons_of(model, group), 1
        for position, names in enumerate(producer_sets(model, group)):
            _, channels, *kernel = oriented_weight(model.get_submodule(names[0])).shape
            channels, taps = channels + grown.get(names[0], 0), math.prod(kernel)
            stacked = is_stacked(model.get_submodule(names[0]))
            how = "inputs" if stacked else what_is_split(channels, taps, convolutions, factor)
            number = channels * taps if how == "taps" else channels
            problems += _split_problems(names[0], number, how, factor, split)
            if position == 0:
                inputs, shares, groups = number, how, split.num_groups(neurons)
                entries = sum(map(group.parts_of, names)) * (1 if how == "taps" else taps)
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
        frozen = tuple(n for n in (*group.producers, *group.consumers) if is_frozen(model, (n,)))
        planned.append(dataclasses.replace(layer, notes=(note,) if note else (), frozen=frozen))
        problems += _norm_problems(model, layer, pruning)
        capacity = pruning.capacity(own + factor * mine + others, entries * neurons, inputs, factor)
        if copies > capacity:
            too_many[group.name] = (
                f"factor {factor} makes {copies} copies, and {pruning!r} can prune only {capacity} weights; "
                "give a smaller factor, or another prune"
            )
        if is_stacked(model.get_submodule(group.name)) and pruning.needs_shared:
            too_many[group.name] = (
                f"its experts are stacked in one parameter, of which {pruning!r} cannot prune each alone; "
                "give prune='magnitude'"
            )
        for name, each in cycles.items():
            grown[name] = grown.get(name, 0) + (after - neurons) * each
    raise_problems(problems, ModelError, "the layers to expand")
    # With one budget for the network the copies themselves can be pruned.
    return planned, too_many if budget == "group" else {}


def what_is_split(channels: int, taps: int, convolutions: str, factor: int) -> str:
    """Return what the children of a producer's neurons split: "inputs", "channels", or "taps" of them."""
    if taps == 1:
        return "inputs"
    return "taps" if convolutions == "taps" or channels < factor else "channels"


def _free_per_input(layer: nn.Module) -> Tensor:
    """Count the free weights of each input of a layer, (inputs,)."""
    weight, mask = oriented_weight(layer), mask_of(layer)
    if mask is None:
        return torch.full((weight.shape[1],), weight.numel() // weight.shape[1])
    return mask.sum(dim=(0, *range(2, mask.dim())), dtype=torch.float64).long().cpu()


def parameters_per_neuron(model: nn.Module, group: NeuronGroup) -> int:
    """Return how many biases and parameters of norms each neuron of a group has."""
    neurons = neurons_of(model, group)
    biases = ((group.parts_of(name), bias_of(model.get_submodule(name))) for name in group.producers)
    total = sum(parts * bias[0].numel() for parts, bias in biases if bias is not None)
    for name in group.between:
        module = model.get_submodule(name)
        layout = group.entries_of(name)
        entries, each = layout_width(layout, neurons), sum(k for k in layout if k > 0)
        own = neuron_tensors(module, entries)
        total += sum(
            p.numel() // entries * each for n, p in module.named_parameters(recurse=False) if n in own
        )
    return total


def _split_problems(name: str, inputs: int, shares: str, factor: int, split: Split) -> list[str]:
    """Say why the inputs of a producer cannot be split."""
    if factor > inputs:
        return [
            f"factor {factor} is larger than the {inputs} {shares} of layer {name!r}, so that some child "
            f"would have none; give a factor from 1 to {inputs}."
        ]
    if split.needs_inputs and shares == "taps":
        return [
            f"layer {name!r} splits taps, of which split {split!r} knows nothing; give "
            "convolutions='channels' and no more children than channels, or another split."
        ]
    problem = split.problem(inputs, factor) if factor > 1 else None
    return [f"layer {name!r}: {problem}."] if problem else []


def _norm_problems(model: nn.Module, layer: LayerPlan, pruning: Pruning) -> list[str]:
    """Say why the norms between could not widen as asked."""
    problems = []
    name = layer.group.name
    for between in layer.group.between:
        norm = model.get_submodule(between)
        if layer.chosen is not None and over_neurons(norm) and takes_means(norm):
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
