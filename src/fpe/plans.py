"""The plan: what an expansion does, as a value that can be printed, stored and read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fpe.graph import Group, Skipped


@dataclass(frozen=True)
class LayerPlan:
    """One group of neurons and what becomes of it.

    Attributes
    ----------
    group : Group
        The modules concerned.
    inputs, neurons : int
        Size of the producer when its turn comes.
    neurons_after : int
        ``neurons × factor``.
    free : int
        Non-zero parameters of the group before, and again after.
    copies : int
        Duplicated weights, biases and norm parameters, each paid for by a weight held at zero.
    """

    group: Group
    inputs: int
    neurons: int
    neurons_after: int
    free: int
    copies: int


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
        Children of each neuron.
    split, prune : str
        Printed forms of the split and of the way of paying.
    seed : int
        Seed of the partitions.
    nonzero : int
        Non-zero parameters of the whole network, before and after.
    """

    layers: tuple[LayerPlan, ...]
    skipped: tuple[Skipped, ...]
    factor: int
    split: str
    prune: str
    seed: int
    nonzero: int

    def __str__(self) -> str:
        head = ("layer", "read by", "with", "inputs", "neurons", "after", "non-zeros", "copies to pay for")
        rows = [
            (
                layer.group.producer,
                ", ".join(layer.group.consumers),
                ", ".join(layer.group.between) or "-",
                f"{layer.inputs:,}",
                f"{layer.neurons:,}",
                f"{layer.neurons_after:,}",
                f"{layer.free:,}",
                f"{layer.copies:,}",
            )
            for layer in self.layers
        ]
        lines = [
            f"Expansion by {self.factor}: split {self.split}, prune {self.prune}, seed {self.seed}",
            *text_table(head, rows, left=3),
        ]
        if self.skipped:
            lines += ["left alone:", *(f"  {s.name}: {s.reason}" for s in self.skipped)]
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
            group = layer["group"]
            names = Group(group["producer"], tuple(group["consumers"]), tuple(group["between"]))
            layers.append(LayerPlan(**{**layer, "group": names}))
        skipped = tuple(Skipped(**s) for s in record["skipped"])
        return Plan(**{**record, "layers": tuple(layers), "skipped": skipped})


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lay a table out in lines: the first `left` columns flush left, the rest flush right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()

    return [line(head), "  ".join("-" * w for w in widths), *(line(row) for row in rows)]
