"""The plan: what an expansion does, as a value that can be printed, stored, read again and applied."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError, ModelError
from fpe.expansion.index_maps import IndexMap
from fpe.expansion.pruning import Pruning
from fpe.expansion.splits import Split
from fpe.graph import NeuronGroup, Skipped
from fpe.masked import count_nonzero


@dataclass(frozen=True)
class LayerPlan:
    """One group of neurons and its expansion.

    Attributes
    ----------
    group : NeuronGroup
        The modules concerned.
    factor : int
        Children of each neuron that is expanded.
    inputs : int
        How many inputs of a producer are split among the children of a neuron, when it is expanded.
    shares : str
        What is split: ``"inputs"``, ``"channels"`` with all their taps, or ``"taps"``.
    neurons, neurons_after : int
        Neurons before and after. With `ChildPruning`, in a model with masks, the number after is an estimate
        until the layer has been expanded.
    free : int
        Non-zero parameters of the group, before and after.
    copies : int
        Duplicated weights, biases and norm parameters: as many weights are pruned. Where two groups have a
        consumer in common, an upper bound.
    chosen : tuple of int, optional
        The neurons that are expanded, if not all are.
    groups : int
        Groups of adjacent neurons with a partition each, if the split is shared.
    dropped : tuple of int
        The children that `ChildPruning` did not create, numbered as if all were: parent × factor + child.
        Known when the layer has been expanded.
    notes : tuple of str
        What is done otherwise than asked, and why; complete when the layer has been expanded.
    """

    group: NeuronGroup
    factor: int
    inputs: int
    shares: str
    neurons: int
    neurons_after: int
    free: int
    copies: int
    chosen: tuple[int, ...] | None = None
    groups: int = 1
    dropped: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def index_map(self) -> IndexMap:
        """The child and the parent of each new neuron."""
        members = len(self.group.producers), len(self.group.between), len(self.group.consumers)
        how = self.groups, self.chosen, self.dropped, self.notes
        return IndexMap(self.neurons, self.factor, *how, members)


@dataclass
class Basis:
    """What a plan was made from, with all that was measured for it; not stored in files.

    Attributes
    ----------
    split, pruning : Split, Pruning
        As values, not as names.
    batch : Tensor, tuple, dict or None
        One batch for the model.
    scores, inputs : dict of str to Tensor
        By the producer's name, what the pruning ranks by and what the split looks at.
    shapes : list of torch.Size or None
        Of the model's outputs on the batch.
    modules : dict
        Type and shapes of each module with parameters.
    """

    split: Split
    pruning: Pruning
    batch: Any
    scores: dict[str, Tensor]
    inputs: dict[str, Tensor]
    shapes: list[torch.Size] | None
    modules: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What will be expanded, how, and what is left unchanged; ``print(plan)`` shows it as a table.

    `fpe.expand(model, plan=plan)` and `fpe.expand_` apply it.

    Attributes
    ----------
    layers : tuple of LayerPlan
        In the order in which they are expanded.
    skipped : tuple of Skipped
        Every other layer with the reason.
    factor : int
        Children of each neuron, where `layers` gave no other.
    split, prune : str
        Printed forms of the split and of the pruning.
    budget : str
        Whether each ``"group"`` is pruned to its own count, or the ``"network"`` to one.
    seed : int
        Seed of the partitions.
    nonzero : int
        Non-zero parameters of the whole network, before and after.
    basis : Basis, optional
        What the plan was made from; None for a plan that was applied, or read from a file.
    """

    layers: tuple[LayerPlan, ...]
    skipped: tuple[Skipped, ...]
    factor: int
    split: str
    prune: str
    budget: str
    seed: int
    nonzero: int
    basis: Basis | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        head = ("layer", "consumers", "between", "splits", "neurons", "after", "non-zeros", "copies")
        rows = _folded([_cells(layer) for layer in self.layers])
        each = ", numbers are of one layer" if len(rows) < len(self.layers) else ""
        whole = ", budget of the whole network" if self.budget == "network" else ""
        how = f"split {self.split}, prune {self.prune}{whole}, seed {self.seed}{each}"
        lines = [f"Expansion by {self.factor}: {how}", *text_table(head, rows, left=3)]
        notes = [(braced(layer.group.producers), note) for layer in self.layers for note in layer.notes]
        lines += remarks(notes, self.skipped)
        lines.append(f"non-zero parameters of the network, before and after: {self.nonzero:,}")
        return "\n".join(lines)

    def basis_for(self, model: nn.Module) -> Basis:
        """Return what the plan was made from, if it can be applied to a model; else raise an error."""
        if self.basis is None:
            raise ArgumentError(
                "this plan was read from a file, or has been applied, and no longer has its split, pruning and "
                "measurements; make a new one with fpe.plan."
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
            for name in ("chosen", "dropped", "notes"):
                known[name] = None if known.get(name) is None else tuple(known[name])
            layers.append(LayerPlan(**{**known, "notes": known["notes"] or ()}))
        names = ("factor", "split", "prune", "budget", "seed", "nonzero")
        skipped = tuple(Skipped(**s) for s in record["skipped"])
        return Plan(tuple(layers), skipped, **{name: record[name] for name in names})


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


def braced(names: Sequence[str]) -> str:
    """Write several names of one parent as one: ``mlp.{gate, up}``."""
    if len(names) == 1:
        return names[0]
    parents = {name.rpartition(".")[0] for name in names}
    if len(parents) > 1:
        return ", ".join(names)
    parent = parents.pop()
    last = ", ".join(name.rpartition(".")[2] for name in names)
    return f"{parent}.{{{last}}}" if parent else last


def remarks(notes: Sequence[tuple[str, str]], skipped: Sequence[Skipped]) -> list[str]:
    """Write what is done otherwise than asked, and the skipped layers, equal layers of a stack in one line."""
    lines = []
    for head, rows in (
        ("otherwise than asked:", notes),
        ("left unchanged:", [(s.name, s.reason) for s in skipped]),
    ):
        lines += [head, *(f"  {name}: {reason}" for name, reason in _folded(rows))] if rows else []
    return lines


def _folded(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Write rows that differ in nothing but the number of a layer as one: ``h.{0-11}.mlp``.

    Each is at the place of its first; a number in the other cells that counts with the layer is written
    as it is in the name.
    """
    numbers = re.compile(r"(?<=\.)\d+(?=\.)")

    def key(row: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(numbers.sub("#", cell) for cell in row)

    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    folded = []
    for alike in groups.values():
        found = [numbers.findall(row[0]) for row in alike]
        differing = [i for i in range(len(found[0])) if len({f[i] for f in found}) > 1]
        if len(alike) < 2 or len(differing) != 1:
            folded += alike
            continue
        values = sorted(int(f[differing[0]]) for f in found)
        first = found[0][differing[0]]
        span = _span(values)
        folded.append(tuple(re.sub(rf"(?<=\.){first}(?=\.)", span, cell, count=1) for cell in alike[0]))
    return folded


def _span(values: Sequence[int]) -> str:
    """Write sorted integers as ``{0-3,7}``."""
    runs = []
    for _, run in itertools.groupby(enumerate(values), lambda pair: pair[1] - pair[0]):
        ends = [value for _, value in run]
        runs.append(str(ends[0]) if len(ends) == 1 else f"{ends[0]}-{ends[-1]}")
    return "{" + ",".join(runs) + "}"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lay a table out in lines: the first `left` columns flush left, the rest flush right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()

    return [line(head), "  ".join("-" * w for w in widths), *(line(row) for row in rows)]
