"""Neurons that are several outputs of a producer: halves of a gated layer, convolutions in groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from torch import fx, nn

from fpe.graph.groups import Growing, Layout
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
        self, root: str, parts: int, operation: str, interleaved: bool = False, most: int = MOST_PARTS
    ) -> None:
        """Take one output of each of so many equal parts for one neuron."""
        growing = self.groups[root]
        even = self.neurons(root) % parts == 0
        if not even or self.neurons(root) < 2 * parts or growing.parts * parts > most or growing.interleaved:
            raise Refused(f"its neurons are split up or picked out by {operation!r}")
        if interleaved:
            self.interleave(growing, parts, operation)
            return
        for name in growing.between:
            if per_neuron_class(self.modules[name]) is None:
                raise Refused(f"its neurons are divided into {parts} parts behind {name!r}")

        def divided(layout: Layout) -> Layout:
            return tuple(piece for k in layout for piece in ((k,) * parts if k > 0 else (k,)))

        growing.parts *= parts
        growing.consumers = {name: divided(layout) for name, layout in growing.consumers.items()}
        growing.between = {name: divided(layout) for name, layout in growing.between.items()}
        for node, flows in self.since(growing.node):
            own = (replace(f, layout=divided(f.layout)) if f.root == root else f for f in flows)
            self.flows[node] = tuple(own)

    def interleave(self, growing: Growing, parts: int, operation: str) -> None:
        """Take adjacent outputs of stacked experts for one neuron; of other layers they are refused."""
        layers = [self.modules[name] for name in growing.producers]
        flows = {
            n: own for n, own in self.since(growing.node) if any(f.root == growing.producers[0] for f in own)
        }
        plain = all(len(own) == 1 and own[0].layout == (1,) for own in flows.values())
        if not all(isinstance(layer, StackedLinear) for layer in layers) or growing.consumers or not plain:
            raise Refused(f"its neurons are split up or picked out by {operation!r}")
        growing.parts, growing.interleaved = parts, True
        for layer in layers:
            cast(StackedLinear, layer).interleaved = parts
        for node, own in flows.items():
            self.flows[node] = (replace(own[0], layout=growing.own),)

    def since(self, first: fx.Node) -> list[tuple[fx.Node, Flows]]:
        """Return the nodes with neurons from one on, the last first, with their flows."""
        found = []
        for node in reversed(self.flows):
            found.append((node, self.flows[node]))
            if node is first:
                break
        return found

    def neurons(self, root: str) -> int:
        """Return how many neurons the producers of a group have."""
        return size_of(self.model, root)[0] // self.groups[root].parts

    def in_each_group(self, source: fx.Node, root: str, layer: str) -> Flow:
        """Return where neurons are among the inputs of each group of a convolution, in all groups alike.

        Then a neuron is one output of each of as many parts, at least.
        """
        groups, growing = groups_of(self.modules[layer]), self.groups[root]

        def flow() -> Flow:
            return next(flow for flow in self.flows[source] if flow.root == root)

        def each() -> Layout:
            return flow().layout[: len(flow().layout) // groups]

        parts = math.lcm(growing.parts, groups)
        if flow().layout != each() * groups and self.neurons(root) >= 2 * parts // growing.parts:
            self.divide(root, parts // growing.parts, "a convolution in groups", most=parts)
        if flow().layout != each() * groups:
            raise Refused(
                f"{layer!r} is a convolution in {groups} groups, which do not all consume its neurons alike"
            )
        return replace(flow(), layout=each())

    def divide_alike(self, flows: list[Flow]) -> None:
        """Give producers that meet equally many parts: a convolution in groups, what gates its channels."""
        own = [self.groups[flow.root] for flow in flows]
        parts = math.lcm(*(growing.parts for growing in own))
        plain = all(flow.layout == growing.own for flow, growing in zip(flows, own, strict=True))
        whole = {self.neurons(flow.root) * growing.parts for flow, growing in zip(flows, own, strict=True)}
        if plain and len(whole) == 1 and whole.pop() >= 2 * parts > 2:
            for flow, growing in zip(flows, own, strict=True):
                if (more := parts // growing.parts) > 1 and not growing.interleaved:
                    self.divide(flow.root, more, "an operation in groups", most=parts)
