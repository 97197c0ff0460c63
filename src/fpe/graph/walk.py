"""Walk through an exported forward pass, from the layers that produce neurons to those that consume them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, cast

from torch import fx, nn
from torch.export import ExportedProgram

from fpe.graph.aten import LINEAR, argument, name_of, shape_of
from fpe.graph.copies import first_line
from fpe.graph.groups import (
    HEAD,
    NO_GRAD,
    NOT_CONSUMED,
    Found,
    Growing,
    Skipped,
    group_of,
    layout_width,
)
from fpe.graph.layers import (
    OVER_NEURONS,
    channel_axis,
    groups_of,
    is_depthwise,
    kind_problem,
    layer_problem,
    per_neuron_class,
    size_of,
    skip_reason,
    width_problem,
)
from fpe.graph.nodes import CALLS, NORMS, Nodes, is_attention
from fpe.graph.operations import (
    Divided,
    Flow,
    Flows,
    Refused,
    propagate,
)
from fpe.graph.parts import Parts
from fpe.graph.scales import Scales
from fpe.graph.stacked import StackedLinear
from fpe.graph.stacked_calls import bias_added, only_called
from fpe.masked import MaskedLayer

#: Checks that an export inserts; they compute nothing.
_CHECKS = frozenset(["_assert_tensor_metadata"])


def follow(model: nn.Module, program: ExportedProgram, opaque: Collection[str] = ()) -> Found:
    """Find the groups of a model in its exported forward pass; all other layers get a reason.

    Of `opaque` modules the program has only what they return.
    """
    return followed(model, program, opaque)[0]


def followed(
    model: nn.Module, program: Any, opaque: Collection[str] = ()
) -> tuple[Found, dict[str, set[int]]]:
    """Find the groups of a model; return also which experts each product with stacked ones uses."""
    walk = _Walk(model, program, opaque)
    walk.run()
    groups, skipped = [], []
    for growing in walk.groups.values():
        reason = growing.reason or walk.partly_used(growing) or walk.scales.problem(growing)
        reason = reason or (None if growing.consumers else NOT_CONSUMED)
        if reason is None:
            group = group_of(growing.producers, growing.consumers, growing.between)
            groups.append(replace(group, **walk.stored(growing)))
        else:
            skipped += [Skipped(name, reason) for name in growing.producers]
    reached = {name for growing in walk.groups.values() for name in growing.producers}
    reached |= {name for group in groups for name in group.between}
    for name, _ in model.named_modules():
        if name not in reached and (reason := skip_reason(walk.known, name)):
            skipped.append(Skipped(name, reason))
    used: dict[str, set[int]] = {}
    for product in walk.products.values():
        experts, one = range(shape_of(product.view.parameter)[0]), product.view.expert
        used.setdefault(product.layer, set()).update(experts if one is None else [one % len(experts)])
    linear = frozenset(group.name for group in groups if walk.groups[group.name].linear)
    return Found(tuple(groups), tuple(skipped), walk.attention, linear), used


class _Walk:
    """One pass over an exported graph."""

    def __init__(self, model: nn.Module, program: ExportedProgram, opaque: Collection[str]) -> None:
        self.opaque = opaque
        self.model, self.nodes = model, Nodes(model, program)
        self.known, self.modules = self.nodes.known, self.nodes.modules
        self.products, self.owned = self.nodes.products, self.nodes.owned
        self.flows: dict[fx.Node, Flows] = {}
        self.groups: dict[str, Growing] = {}
        self.root_of: dict[str, str] = {}  # of each producer
        self.latest: dict[str, fx.Node] = {}  # the product or convolution in the latest call of each layer
        self.attention = False
        self.graph = program.graph
        self.scales = Scales(self.nodes, self.groups, self.root_of)
        self.parts = Parts(model, self.modules, self.groups, self.flows)
        self.turned: dict[str, bool] = {}  # which of those store (experts, inputs, outputs)

    def run(self) -> None:
        """Visit every node in the order of the forward pass."""
        for node in self.graph.nodes:
            if node.op == "output":
                self.refuse(self.touched(node), HEAD)
            elif node.op == "call_function":
                try:
                    self.visit(node)
                except Exception as error:  # an overload that no rule expects costs its neurons, not all
                    reason = f"{name_of(node)!r} in a way that fpe does not understand ({first_line(error)})"
                    self.refuse(self.touched(node), f"its neurons are passed to {reason}")

    def visit(self, node: fx.Node) -> None:
        """Find out what a node does to the neurons in its inputs, and where they are in its output."""
        if (inside := self.nodes.module_of(node)) in self.opaque:
            self.refuse(self.touched(node), f"its neurons enter {inside!r}, into which fpe cannot follow")
            return
        attends = is_attention(node)
        self.attention |= attends
        try:
            if self.scales.averages(node, self.flows):
                return
        except Refused as refused:
            self.refuse(self.touched(node), str(refused))
        if (layer := self.nodes.layer_called(node)) is not None:
            self.call(node, layer)
        elif attends:
            self.refuse(self.touched(node), f"its neurons are passed to attention, {name_of(node)!r}")
        elif (touched := self.touched(node)) and name_of(node) not in _CHECKS:
            try:
                if name_of(node) in NORMS or self.nodes.depthwise_called(node):
                    self.flows[node] = self.pass_through(node)
                    self.bend(node)
                    return
                if self.adds_bias(node):
                    self.flows[node] = self.flows[self.latest[self.nodes.module_of(node)]]
                    return
                if (source := self.stacked_bias_added(node)) is not None:
                    self.flows[node] = self.flows[source]
                    return
                if name_of(node) in ("mul", "add"):
                    self.merge(node)
                self.flows[node] = self.propagated(node)
                if name_of(node) not in LINEAR or sum(n in self.flows for n in node.all_input_nodes) > 1:
                    self.bend(node)
                self.scales.meet(node, self.flows[node])
            except Refused as refused:
                self.refuse(touched, self.nodes.unknown_layer(node) or str(refused))

    def bend(self, node: fx.Node) -> None:
        """Note that the neurons in a node are no longer what their layers compute, or that scaled."""
        for flow in self.flows[node]:
            self.groups[flow.root].linear = False

    def propagated(self, node: fx.Node) -> Flows:
        """Return where the neurons are in a node's output, after the producers are divided as it does."""
        while True:
            try:
                return propagate(node, self.flows)
            except Divided as divided:
                self.parts.divide(divided.root, divided.parts, name_of(node), divided.interleaved)

    def stored(self, growing: Growing) -> dict[str, Any]:
        """Return how the stacked layers of a group store their weights."""
        turned = tuple(n for n in (*growing.producers, *growing.consumers) if self.turned.get(n))
        return {"transposed": turned, "interleaved": growing.interleaved}

    def touched(self, node: fx.Node) -> list[str]:
        """Return the roots of all neurons in a node's inputs."""
        inputs = node.all_input_nodes
        roots = dict.fromkeys(f.root for n in inputs for f in self.flows.get(n, ()))
        means = dict.fromkeys(self.scales.means[n] for n in inputs if n in self.scales.means)
        return list(roots | dict.fromkeys(self.root_of[name] for name in means))

    def partly_used(self, growing: Growing) -> str | None:
        """Say that a module does not take these neurons in all of its calls, or return None."""
        if circular := growing.producers.keys() & growing.consumers.keys():
            return f"{circular.pop()!r} both produces and consumes them"
        for name in (*growing.consumers, *growing.between):
            if (calls := self.nodes.calls[name]) != growing.uses[name]:
                return f"{name!r} is used {calls} times in one forward pass, not always for these neurons"
        return None

    def refuse(self, roots: Iterable[str], reason: str) -> None:
        """Refuse the groups of these roots; the first reason stands."""
        for root in roots:
            self.groups[root].reason = self.groups[root].reason or reason

    def adds_bias(self, node: fx.Node) -> bool:
        """Tell whether a node is the addition of its bias in a layer that multiplies and adds."""
        layer = self.nodes.module_of(node)
        own = [n for n in node.all_input_nodes if self.owned.get(n) == f"{layer}.bias"]
        product = self.latest.get(layer)
        return name_of(node) == "add" and len(own) == 1 and product in node.all_input_nodes

    def stacked_bias_added(self, node: fx.Node) -> fx.Node | None:
        """Return the neurons to which a node adds the biases of their own stacked layer, if it does."""
        source, layer = bias_added(node, self.flows, self.owned) or (node, "")
        flows = self.flows.get(source, ())
        if len(flows) != 1 or self.root_of.get(layer) != flows[0].root:
            return None
        last = len(shape_of(source)) - 1
        plain = flows[0].axis == last and flows[0].layout == self.groups[flows[0].root].outputs_of(layer)
        return source if plain else None

    def call(self, node: fx.Node, layer: str) -> None:
        """Let a layer consume the neurons in its input, if any, and produce its own."""
        product, module = self.products.get(node), self.modules[layer]
        position = product.position if product else CALLS[name_of(node)]
        source = cast(fx.Node, node.args[position])
        if product:
            problem = self.product_problem(node, layer)
            axis = len(shape_of(source)) + product.axis
        else:
            problem = self.call_problem(
                node, layer, cast(fx.Node, self.nodes.parameter(node.args[position + 1]))
            )
            axis = channel_axis(module, len(shape_of(source)))
        if problem is None and layer not in self.nodes.trained:
            self.refuse(self.touched(node), f"its consumer {layer!r} {NO_GRAD.removeprefix('it ')}")
            problem = NO_GRAD
        for other in node.all_input_nodes:
            if other is not source:
                roots = (f.root for f in self.flows.get(other, ()))
                self.refuse(roots, f"its neurons are the weights of {layer!r}")
        for root in dict.fromkeys(flow.root for flow in self.flows.get(source, ())):
            try:
                flow = self.parts.in_each_group(source, root, layer)
            except Refused as refused:
                self.refuse([root], str(refused))
                continue
            if reason := problem or self.consumer_problem(axis, layer, flow):
                self.refuse([root], reason)
            else:
                self.groups[root].consumers[layer] = flow.layout
                self.groups[root].uses[layer] += 1
        root = self.root_of.setdefault(layer, layer)
        if root not in self.groups:
            self.groups[root] = Growing({layer: groups_of(module)}, node)
        if problem:
            self.refuse([root], problem)
        self.latest[layer] = node
        self.groups[root].calls.append(node)
        axis = len(shape_of(node)) + product.axis if product else channel_axis(module, len(shape_of(node)))
        self.flows[node] = (Flow(root, axis, self.groups[root].outputs_of(layer)),)

    def product_problem(self, node: fx.Node, layer: str) -> str | None:
        """Say why wider stacked experts could not take the place of these in a product, or return None."""
        product, module = self.products[node], cast(StackedLinear, self.modules[layer])
        if layer not in self.turned:
            self.turned[layer] = product.transposed
            if not isinstance(module, MaskedLayer):
                module.transposed, module.interleaved = product.transposed, 1
        if self.turned[layer] != product.transposed or module.transposed != product.transposed:
            return f"{layer!r} is used in two orientations"
        if not only_called(product.view.parameter, self.products):
            return f"{layer!r} is not used as the weights of a linear layer alone"
        problem = layer_problem(self.known, layer)
        return f"{layer!r} {problem}" if problem else None

    def call_problem(self, node: fx.Node, layer: str, weight: fx.Node) -> str | None:
        """Say why a wider layer could not take the place of this one in a call, or return None."""
        if problem := kind_problem(self.modules[layer]) or layer_problem(self.known, layer):
            return f"{layer!r} {problem}"
        if len(weight.users) != self.nodes.calls[layer]:
            return f"{layer!r} is used {len(weight.users)} times in one forward pass, not always as a layer"
        if self.nodes.module_of(node) != layer:
            return f"{layer!r} is not called as a layer: its weight is used directly"
        return None

    def consumer_problem(self, axis: int, layer: str, flow: Flow) -> str | None:
        """Say why a layer, whose inputs are along an axis, cannot consume these neurons, or return None."""
        if flow.axis != axis:
            return f"its neurons are not the inputs of {layer!r}, which works along another axis"
        neurons, inputs = self.parts.neurons(flow.root), size_of(self.model, layer)[1]
        if layout_width(flow.layout, neurons) != inputs:
            return f"its consumer {layer!r} has {inputs} inputs, not one for each of {neurons} neurons"
        if self.groups[flow.root].consumers.get(layer, flow.layout) != flow.layout:
            return f"{layer!r} takes its neurons in several layouts"
        return None

    def pass_through(self, node: fx.Node) -> Flows:
        """Pass neurons through a norm, PReLU or depthwise convolution that has an entry for each of them."""
        source = cast(fx.Node, node.args[0])
        flows = self.flows.get(source, ())
        name, operation = self.nodes.module_of(node), name_of(node)
        size = argument(node, "normalized_shape")
        if size is not None and all(flow.axis < len(shape_of(node)) - len(size) for flow in flows):
            return flows  # over other axes, alike for all neurons
        if operation == "prelu" and flows and shape_of(node.args[1]) in ((), (1,)):
            return flows
        if len(flows) != len(self.touched(node)) or per_neuron_class(self.modules[name]) is None:
            raise Refused(f"its neurons are passed to {operation!r}, which is not a norm that can widen")
        outputs = 1
        if is_depthwise(self.modules[name]):
            conv = cast(nn.Conv2d, self.modules[name])
            outputs = conv.out_channels // conv.in_channels
        made = [replace(flow, layout=tuple(k * outputs for k in flow.layout)) for flow in flows]
        for flow in made:
            if problem := self.norm_problem(node, name, flow):
                raise Refused(f"its neurons pass through {name!r}, which cannot widen: {problem}")
            growing = self.groups[flow.root]
            growing.between[name] = flow.layout
            growing.uses[name] += 1
        return tuple(made)

    def norm_problem(self, node: fx.Node, name: str, flow: Flow) -> str | None:
        """Say why a norm cannot widen with these neurons, or return None."""
        module, dims = self.modules[name], len(shape_of(node))
        growing = self.groups[flow.root]
        if isinstance(module, OVER_NEURONS) and flow.layout not in growing.own:
            return f"{type(module).__name__} is over other values too"
        if growing.between.get(name, flow.layout) != flow.layout:
            return "it takes its neurons in several layouts"
        axis = channel_axis(module, dims) if is_depthwise(module) else 1
        if flow.axis != (dims - 1 if isinstance(module, nn.LayerNorm | nn.RMSNorm) else axis):
            return f"{type(module).__name__} works along another axis"
        uses = [len(n.users) for n in node.all_input_nodes if self.owned.get(n) == f"{name}.weight"]
        if uses and uses != [self.nodes.calls[name]]:
            return f"it is used {uses[0]} times in one forward pass, not always as a module"
        problem = layer_problem(self.known, name)
        return (
            f"it {problem}"
            if problem
            else width_problem(module, layout_width(flow.layout, self.parts.neurons(flow.root)))
        )

    def merge(self, node: fx.Node) -> None:
        """Make one group of two producers that meet in a product: gate and up, channels and their gates.

        Producers that meet in a sum are one if neither computes from the other, as in a residual sum: a
        convolution and the projection of a time, a layer and its adapter. So it is in a product of more than
        two with different numbers of parts: a layer that scales a residual stream in one part may gate in
        another what is added to it.
        """
        sources = [n for n in node.all_input_nodes if n in self.flows]
        if len(sources) != 2 or any(len(self.flows[n]) != 1 for n in sources):
            return
        self.parts.divide_alike([self.flows[n][0] for n in sources])
        # Broadcasting aligns the last axes.
        places = [self.flows[n][0].at(self.flows[n][0].axis - len(shape_of(n))) for n in sources]
        first, second = sorted(places, key=lambda flow: self.groups[flow.root].node)
        a, b = self.groups[first.root], self.groups[second.root]
        neurons = {self.parts.neurons(first.root), self.parts.neurons(second.root)}
        if a is b or a.reason or b.reason or first != replace(second, root=first.root):
            return
        if len(neurons) > 1 or a.interleaved != b.interleaved:
            return
        stacked = any(isinstance(self.modules[n], StackedLinear) for n in (*a.producers, *b.producers))
        alike = len({*a.producers.values(), *b.producers.values()}) == 1
        gates = name_of(node) == "mul" and (alike or len(a.producers) == len(b.producers) == 1)
        if (stacked and not (gates and alike)) or not (gates or a.beside(b)):
            return
        for own, other in ((a.consumers, b.consumers), (a.between, b.between)):
            for name in own.keys() & other.keys():
                if own[name] != other[name]:
                    raise Refused(
                        f"its neurons meet others in {name_of(node)!r} that {name!r} has in other places"
                    )
        a.producers |= b.producers
        a.consumers |= b.consumers
        a.between |= b.between
        a.uses.update(b.uses)
        a.calls += b.calls
        a.linear = a.linear and b.linear
        self.root_of |= dict.fromkeys(b.producers, first.root)
        del self.groups[second.root]
        for n, flows in self.parts.since(b.node):
            renamed = [replace(f, root=first.root) if f.root == second.root else f for f in flows]
            self.flows[n] = self.parts.joined(renamed, first.root)
