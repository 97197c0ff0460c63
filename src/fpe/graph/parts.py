"""Neurons that are several outputs of a producer: halves of a gated layer, convolutions in groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import fx, nn

from fpe.graph.groups import Growing, Layout, layout_neurons, layout_of, layout_width
from fpe.graph.layers import groups_of, per_neuron_class, size_of
from fpe.graph.operations import MOST_PARTS, Flow, Flows, Refused
from fpe.graph.stacked import StackedLinear


@dataclass
class Parts:
    """Divides the outputs of producers into parts; `groups` and `flows` are those of a walk."""

    model: nn.Module
    modules: Mapping[str, nn.Module]
    groups: dict[str, Growing]
    flows: dict[fx.Node, Flows]

    def divide(
        self, root: str, parts: int, operation: str, interleaved: bool = False, many: bool = False
    ) -> None:
        """Take one output of each of so many equal parts for one neuron; `many` allows any number."""
        growing, neurons = self.groups[root], self.neurons(root)
        too_many = not many and max(growing.producers.values()) * parts > MOST_PARTS
        if neurons % parts or neurons < 2 * parts or too_many or growing.interleaved:
            raise Refused(f"its neurons are split up or picked out by {operation!r}")
        if interleaved:
            self.interleave(growing, parts, operation)
            return
        for name in growing.between:
            if per_neuron_class(self.modules[name]) is None:
                raise Refused(f"its neurons are divided into {parts} parts behind {name!r}")

        def divided(layout: Layout) -> Layout:
            return tuple(piece for k in layout for piece in ((k,) * parts if k > 0 else (k,)))

        growing.producers = {name: parts * own for name, own in growing.producers.items()}
        growing.consumers = {name: divided(layout) for name, layout in growing.consumers.items()}
        growing.between = {name: divided(layout) for name, layout in growing.between.items()}
        for node, flows in self.since(growing.node):
            own = (replace(f, layout=divided(f.layout)) if f.root == root else f for f in flows)
            self.flows[node] = tuple(own)

    def interleave(self, growing: Growing, parts: int, operation: str) -> None:
        """Take adjacent outputs of stacked experts for one neuron; of other layers they are refused."""
        layers = [self.modules[name] for name in growing.producers]
        flows = {n: own for n, own in self.since(growing.node) if any(f.root == growing.name for f in own)}
        plain = all(len(own) == 1 and own[0].layout == (1,) for own in flows.values())
        if not all(isinstance(layer, StackedLinear) for layer in layers) or growing.consumers or not plain:
            raise Refused(f"its neurons are split up or picked out by {operation!r}")
        growing.producers, growing.interleaved = dict.fromkeys(growing.producers, parts), True
        for layer in layers:
            cast(StackedLinear, layer).interleaved = parts
        for node, own in flows.items():
            self.flows[node] = (replace(own[0], layout=(parts,)),)

    def since(self, first: fx.Node) -> list[tuple[fx.Node, Flows]]:
        """Return the nodes with neurons from one on, the last first, with their flows."""
        found = []
        for node in reversed(self.flows):
            found.append((node, self.flows[node]))
            if node is first:
                break
        return found

    def joined(self, flows: Sequence[Flow], root: str) -> Flows:
        """Put together where a group's neurons are in a tensor: in a concatenation of its producers."""
        own = [flow for flow in flows if flow.root == root]
        if len(own) < 2:
            return tuple(flows)
        places = torch.stack([layout_neurons(flow.layout, self.neurons(root)) for flow in own]).amax(0)
        layout = layout_of(places, self.neurons(root))
        return (replace(own[0], layout=layout), *(flow for flow in flows if flow.root != root))

    def neurons(self, root: str) -> int:
        """Return how many neurons the producers of a group have."""
        growing = self.groups[root]
        return size_of(self.model, growing.name)[0] // growing.producers[growing.name]

    def in_each_group(self, source: fx.Node, root: str, layer: str) -> Flow:
        """Return where neurons are among the inputs of each group of a convolution, in all groups alike.

        Then a neuron is one output of each of as many parts, at least.
        """
        groups = groups_of(self.modules[layer])

        def flow() -> Flow:
            return next(flow for flow in self.flows[source] if flow.root == root)

        def each() -> Layout:
            return flow().layout[: len(flow().layout) // groups]

        more = groups // math.gcd(len(flow().layout), groups)
        if flow().layout != each() * groups and self.neurons(root) >= 2 * more:
            self.divide(root, more, "a convolution in groups", many=True)
        if flow().layout != each() * groups:
            raise Refused(
                f"{layer!r} is a convolution in {groups} groups, which do not all consume its neurons alike"
            )
        return replace(flow(), layout=each())

    def divide_alike(self, flows: list[Flow]) -> None:
        """Give producers that meet equally many parts: a convolution in groups, what gates its channels."""
        own = [self.groups[flow.root] for flow in flows]
        parts = math.lcm(*(len(flow.layout) for flow in flows))
        plain = all(flow.layout in growing.own for flow, growing in zip(flows, own, strict=True))
        whole = {layout_width(flow.layout, self.neurons(flow.root)) for flow in flows}
        if plain and len(whole) == 1 and whole.pop() >= 2 * parts > 2:
            for flow, growing in zip(flows, own, strict=True):
                if (more := parts // len(flow.layout)) > 1 and not growing.interleaved:
                    self.divide(flow.root, more, "an operation in groups", many=True)
