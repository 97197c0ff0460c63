"""The plan: what an expansion does, as a value that can be printed, stored and read again."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fpe.graph import NeuronGroup, Skipped


@dataclass(frozen=True)
class LayerPlan:
    """One group of neurons and what becomes of it.

    Attributes
    ----------
    group : Group
        The modules concerned.
    factor : int
        Children of each neuron that is expanded.
    inputs : int
        What a producer has to share out among the children of a neuron, when its turn comes.
    shares : str
        What that is: ``"inputs"``, ``"channels"`` with all their taps, or ``"taps"``.
    neurons, neurons_after : int
        Neurons before and after. Where whole children pay and a mask holds weights at zero already, more or
        fewer may be left when the layer has been expanded.
    free : int
        Non-zero parameters of the group before, and again after.
    copies : int
        Duplicated weights, biases and norm parameters, each paid for by a weight held at zero. Where two
        groups have a consumer in common, the most that it can be.
    chosen : tuple of int, optional
        The neurons that are expanded, if not all are.
    groups : int
        Into how many groups of adjacent neurons, each with a partition of its own, a shared split cuts it.
    left : tuple of int
        The children that were not born because whole children paid, numbered as if all were: parent × factor
        + which child. Known when the layer has been expanded.
    notes : tuple of str
        What is done otherwise than the split and the pruning of the plan say, and why; as far as it can be
        foreseen, and completely when the layer has been expanded.
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
    left: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What will be expanded, how, and what is left alone; ``print(plan)`` shows it as a table.

    Attributes
    ----------
    layers : tuple of LayerPlan
        In the order in which they are expanded.
    skipped : tuple of Skipped
        Every other layer with the reason.
    factor : int
        Children of each neuron, where `layers` gave no other.
    split, prune : str
        Printed forms of the split and of the way of paying.
    budget : str
        Who pays for a group's copies: the ``"group"`` itself, or the whole ``"network"``.
    seed : int
        Seed of the partitions.
    nonzero : int
        Non-zero parameters of the whole network, before and after.
    earlier : Plan, optional
        That of the model's last expansion before this one.
    """

    layers: tuple[LayerPlan, ...]
    skipped: tuple[Skipped, ...]
    factor: int
    split: str
    prune: str
    budget: str
    seed: int
    nonzero: int
    earlier: Plan | None = None

    def __str__(self) -> str:
        head = (
            "layer", "read by", "with", "shares out", "neurons", "after", "non-zeros", "copies to pay for"
        )  # fmt: skip
        rows = _folded([_cells(layer) for layer in self.layers])
        each = ", numbers are of one layer" if len(rows) < len(self.layers) else ""
        whole = ", paid for by the whole network" if self.budget == "network" else ""
        lines = [
            f"Expansion by {self.factor}: split {self.split}, prune {self.prune}{whole}, seed {self.seed}"
            + each,
            *text_table(head, rows, left=3),
        ]
        lines += noted_lines(self.layers)
        if self.skipped:
            lines += ["left alone:", *skipped_lines(self.skipped)]
        lines.append(f"non-zero parameters of the network, before and after: {self.nonzero:,}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain lists, dicts, strings and numbers, fit for JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Plan:
        """Make the plan again from what `to_dict` returned, or from its JSON."""
        layers = []
        for layer in record["layers"]:
            chosen = layer["chosen"]
            again = {
                "group": NeuronGroup.from_dict(layer["group"]),
                "chosen": None if chosen is None else tuple(chosen),
            }
            again |= {name: tuple(layer.get(name, ())) for name in ("left", "notes")}
            layers.append(LayerPlan(**{**layer, **again}))
        skipped = tuple(Skipped(**s) for s in record["skipped"])
        earlier = Plan.from_dict(record["earlier"]) if record.get("earlier") else None
        return Plan(**{**record, "layers": tuple(layers), "skipped": skipped, "earlier": earlier})

    def under(self, name: str) -> Plan:
        """Return the plan in the names of a larger model, of which its own is the part `name`."""
        if not name:
            return self

        def longer(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(f"{name}.{inner}" for inner in names)

        layers = []
        for layer in self.layers:
            own = layer.group
            producers, consumers, between = map(longer, (own.producers, own.consumers, own.between))
            group = NeuronGroup(producers, consumers, between, own.input_layouts)
            layers.append(dataclasses.replace(layer, group=group))
        skipped = tuple(Skipped(f"{name}.{one.name}", one.reason) for one in self.skipped)
        return dataclasses.replace(self, layers=tuple(layers), skipped=skipped)


def plans_in(model: nn.Module) -> list[Plan]:
    """Return the plans by which a model and its parts were expanded, in the model's names.

    Each holds the layers that are still as it says. No layer that makes neurons is in two of them; it is in
    the plan of the outermost module, and there in the latest.
    """
    found: list[Plan] = []
    known: set[str] = set()
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in model.named_modules():
        plan = vars(module).get("fpe_plan")
        while isinstance(plan, Plan):
            here = plan.under(name)
            layers = tuple(layer for layer in here.layers if _is_as_planned(modules, layer, known))
            known.update(producer for layer in layers for producer in layer.group.producers)
            found.append(dataclasses.replace(here, layers=layers))
            plan = plan.earlier
    return found


def _is_as_planned(modules: Mapping[str, nn.Module], layer: LayerPlan, known: set[str]) -> bool:
    """Tell whether a group's modules are there, with the planned number of neurons, and not known yet."""
    group = layer.group
    if known.intersection(group.producers) or not modules.keys() >= {
        *group.producers, *group.consumers, *group.between
    }:  # fmt: skip
        return False
    producers = [modules[name] for name in group.producers]
    widths = {getattr(m, "out_features", getattr(m, "out_channels", None)) for m in producers}
    return widths == {layer.neurons_after}


def _cells(layer: LayerPlan) -> tuple[str, ...]:
    return (
        braced(layer.group.producers),
        ", ".join(layer.group.consumers),
        ", ".join(layer.group.between) or "-",
        f"{layer.inputs:,} {layer.shares}" + (f", {layer.groups} groups" if layer.groups > 1 else ""),
        f"{layer.neurons:,}",
        f"{layer.neurons_after:,}",
        f"{layer.free:,}",
        f"{layer.copies:,}",
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


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Write what is left alone in lines, equal layers of a stack in one."""
    return [f"  {name}: {reason}" for name, reason in _folded([(s.name, s.reason) for s in skipped])]


def noted_lines(layers: Sequence[LayerPlan]) -> list[str]:
    """Return what is done otherwise than asked, layer by layer, under a heading; nothing if nothing is."""
    noted = [(braced(layer.group.producers), note) for layer in layers for note in layer.notes]
    return ["otherwise than asked:", *(f"  {name}: {note}" for name, note in _folded(noted))] if noted else []


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
