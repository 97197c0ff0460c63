"""The plan: what an expansion does, as a value that can be printed, stored, read again and applied."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fpe._util.terminal import braced, folded, text_table
from fpe.errors import ArgumentError, ModelError
from fpe.expansion.index_maps import IndexMap
from fpe.expansion.pruning import Pruning
from fpe.expansion.splits import Split
from fpe.graph import NeuronGroup, Skipped
from fpe.masked import count_nonzero


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

    @property
    def index_map(self) -> IndexMap:
        """The child and the parent of each new neuron."""
        members = len(self.group.producers), len(self.group.between), len(self.group.consumers)
        how = self.groups, self.chosen, self.dropped, self.notes
        return IndexMap(self.neurons, self.factor, *how, members)


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
    # None for a plan that was applied, or read from a file.
    basis: Basis | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        head = ("layer", "consumers", "between", "splits", "neurons", "after", "non-zeros", "copies")
        rows = folded([_cells(layer) for layer in self.layers])
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


def remarks(notes: Sequence[tuple[str, str]], skipped: Sequence[Skipped]) -> list[str]:
    """Write what is done otherwise than asked, and the skipped layers, equal ones of a stack in one line."""
    reasons = [(s.name, s.reason) for s in skipped]
    lines = []
    for head, rows in (("otherwise than asked:", notes), ("left unchanged:", reasons)):
        lines += [head, *(f"  {name}: {reason}" for name, reason in folded(rows))] if rows else []
    return lines
