"""Walk through an exported forward pass, from the layers that produce neurons to those that consume them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fpe.graph.copies import first_line
from fpe.graph.groups import (
    AUTOCAST,
    HEAD,
    NO_GRAD,
    NOT_CALLED,
    NOT_CONSUMED,
    Found,
    Layout,
    Skipped,
    group_of,
    layout_width,
)
from fpe.graph.layers import (
    Names,
    channel_axis,
    is_depthwise,
    is_linear,
    kind_problem,
    layer_problem,
    looks_like_layer,
    per_neuron_class,
    size_of,
    skip_reason,
    width_problem,
)
from fpe.graph.operations import (
    MOST_PARTS,
    Divided,
    Flow,
    Flows,
    Refused,
    argument,
    name_of,
    propagate,
    shape_of,
)

#: Products and convolutions, with the position of their input; their weight is the next argument.
_CALLS = {"linear": 0, "matmul": 0, "addmm": 1, "convolution": 0, "conv1d": 0, "conv2d": 0, "conv3d": 0}
#: Views of a weight: that of masked layers, and those of layers that multiply by the transposed weight.
_VIEWS = frozenset(["view_as", "t", "numpy_T", "transpose", "permute"])
_REGIONS = {"wrap_with_set_grad_enabled": NO_GRAD, "wrap_with_autocast": AUTOCAST}
#: Checks that an export inserts; they compute nothing.
_CHECKS = frozenset(["_assert_tensor_metadata"])
_NORMS = frozenset(["layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "prelu"])


def follow(model: nn.Module, program: ExportedProgram) -> Found:
    """Find the groups of a model in its exported forward pass; all other layers get a reason."""
    walk = _Walk(model, program)
    walk.run()
    groups, skipped = [], []
    for growing in walk.groups.values():
        reason = growing.reason or walk.partly_used(growing) or (None if growing.consumers else NOT_CONSUMED)
        if reason is None:
            groups.append(group_of(growing.producers, growing.consumers, growing.between, growing.parts))
        else:
            skipped += [Skipped(name, reason) for name in growing.producers]
    reached = {name for growing in walk.groups.values() for name in growing.producers}
    reached |= {name for group in groups for name in group.between}
    for name, _ in model.named_modules():
        if name not in reached and (reason := skip_reason(walk.known, name)):
            skipped.append(Skipped(name, walk.hidden.get(name, reason) if reason == NOT_CALLED else reason))
    return Found(tuple(groups), tuple(skipped), walk.attention)


@dataclass
class _Growing:
    """A group while it is being found."""

    producers: list[str]
    node: fx.Node
    reason: str | None
    consumers: dict[str, Layout] = field(default_factory=dict)
    between: list[str] = field(default_factory=list)
    parts: int = 1
    #: In how many calls each consumer, or module between, takes these neurons.
    uses: Counter[str] = field(default_factory=Counter)


class _Walk:
    """One pass over an exported graph."""

    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        self.model = model
        self.known = Names(model)
        self.modules = self.known.modules
        self.flows: dict[fx.Node, Flows] = {}
        self.groups: dict[str, _Growing] = {}
        self.root_of: dict[str, str] = {}  # of each producer
        self.hidden: dict[str, str] = {}  # layers in regions that are kept apart, and why
        self.latest: dict[str, fx.Node] = {}  # the product or convolution in the latest call of each layer
        self.attention = False
        self.graph = program.graph
        self.owned: dict[fx.Node, str] = {}
        names = {
            spec.arg.name: spec.target.removeprefix("model.")
            for spec in program.graph_signature.input_specs
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target
        }
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                owner, _, own = names[node.name].rpartition(".")
                self.owned[node] = node.meta["fpe_name"] = f"{self.first_name(owner)}.{own}".lstrip(".")
        #: How often each layer, norm or depthwise convolution is called.
        self.calls = Counter(name for node in self.graph.nodes if (name := self.called(node)) is not None)

    def run(self) -> None:
        """Visit every node in the order of the forward pass."""
        for node in self.graph.nodes:
            if node.op == "output":
                self.refuse(self.touched(node), HEAD)
            elif node.op == "call_function":
                self.look_aside(node)
                try:
                    self.visit(node)
                except Exception as error:  # an overload that no rule expects costs its neurons, not all
                    reason = f"{name_of(node)!r} in a way that fpe does not understand ({first_line(error)})"
                    self.refuse(self.touched(node), f"its neurons are passed to {reason}")

    def look_aside(self, node: fx.Node) -> None:
        """Note the layers in a region that the export keeps apart, without gradients or in another type."""
        if name_of(node) in _REGIONS:
            layers = (self.owned[n].rpartition(".")[0] for n in node.all_input_nodes if n in self.owned)
            self.hidden |= dict.fromkeys(layers, _REGIONS[name_of(node)])

    def visit(self, node: fx.Node) -> None:
        """Find out what a node does to the neurons in its inputs, and where they are in its output."""
        attends = _is_attention(node)
        self.attention |= attends
        if (layer := self.layer_called(node)) is not None:
            self.call(node, layer)
        elif attends:
            self.refuse(self.touched(node), f"its neurons are passed to attention, {name_of(node)!r}")
        elif (touched := self.touched(node)) and name_of(node) not in _CHECKS:
            try:
                if name_of(node) in _NORMS or self.depthwise_called(node):
                    self.flows[node] = self.pass_through(node)
                    return
                if self.adds_bias(node):
                    self.flows[node] = self.flows[self.latest[self.module_of(node)]]
                    return
                if name_of(node) == "mul":
                    self.merge(node)
                self.flows[node] = self.propagated(node)
            except Refused as refused:
                self.refuse(touched, self.unknown_layer(node) or str(refused))

    def unknown_layer(self, node: fx.Node) -> str | None:
        """Say that neurons are passed to a layer of an unknown class, if a node is in one."""
        name = self.module_of(node)
        module = self.modules.get(name)
        if module is None or not looks_like_layer(module) or is_depthwise(module):
            return None
        unknown = kind_problem(module)
        problem = unknown and (layer_problem(self.known, name) or unknown)
        return f"its neurons are passed to {name!r}, which {problem}" if problem else None

    def propagated(self, node: fx.Node) -> Flows:
        """Return where the neurons are in a node's output, after the producers are divided as it does."""
        while True:
            try:
                return propagate(node, self.flows)
            except Divided as divided:
                self.divide(divided.root, divided.parts, name_of(node))

    def divide(self, root: str, parts: int, operation: str) -> None:
        """Take one output of each of so many equal parts for one neuron."""
        growing = self.groups[root]
        if self.neurons(root) < 2 * parts or growing.parts * parts > MOST_PARTS:
            raise Refused(f"its neurons are split up or picked out by {operation!r}")
        if growing.between:
            raise Refused(f"its neurons are divided into {parts} parts behind {growing.between[0]!r}")

        def divided(layout: Layout) -> Layout:
            return tuple(piece for k in layout for piece in ((k,) * parts if k > 0 else (k,)))

        growing.parts *= parts
        growing.consumers = {name: divided(layout) for name, layout in growing.consumers.items()}
        for node, flows in self.since(growing.node):
            own = (replace(f, layout=divided(f.layout)) if f.root == root else f for f in flows)
            self.flows[node] = tuple(own)

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

    def touched(self, node: fx.Node) -> list[str]:
        """Return the roots of all neurons in a node's inputs."""
        return list(dict.fromkeys(f.root for n in node.all_input_nodes for f in self.flows.get(n, ())))

    def called(self, node: fx.Node) -> str | None:
        """Return the layer, or the module between layers, whose main operation a node is."""
        if node.op != "call_function":
            return None
        between = name_of(node) in _NORMS or self.depthwise_called(node)
        return self.module_of(node) if between else self.layer_called(node)

    def partly_used(self, growing: _Growing) -> str | None:
        """Say that a module does not take these neurons in all of its calls, or return None."""
        if circular := set(growing.producers) & set(growing.consumers):
            return f"{circular.pop()!r} both produces and consumes them"
        for name in (*growing.consumers, *growing.between):
            if (calls := self.calls[name]) != growing.uses[name]:
                return f"{name!r} is used {calls} times in one forward pass, not always for these neurons"
        return None

    def refuse(self, roots: Iterable[str], reason: str) -> None:
        """Refuse the groups of these roots; the first reason stands."""
        for root in roots:
            self.groups[root].reason = self.groups[root].reason or reason

    def module_of(self, node: fx.Node) -> str:
        """Return the name of the module in whose forward pass a node stands."""
        stack = node.meta.get("nn_module_stack") or {"": ("", None)}
        path = str(list(stack.values())[-1][0])
        return self.first_name(path.partition("@")[0].removeprefix("model").removeprefix("."))

    def first_name(self, name: str) -> str:
        """Return the first of the names of a module."""
        return self.known.names[self.modules[name]][0] if name in self.modules else name

    def parameter(self, node: Any) -> fx.Node | None:
        """Return the parameter that a node is, also through the views of it that layers take."""
        while isinstance(node, fx.Node) and node.op == "call_function" and name_of(node) in _VIEWS:
            node = node.args[0]
        return node if isinstance(node, fx.Node) and node in self.owned else None

    def layer_called(self, node: fx.Node) -> str | None:
        """Return the layer whose product or convolution a node is, if it is one."""
        if name_of(node) not in _CALLS:
            return None
        weight = self.parameter(node.args[_CALLS[name_of(node)] + 1])
        if weight is None or not self.owned[weight].endswith("weight"):
            return None
        layer = self.owned[weight].rpartition(".")[0]
        module = self.modules[layer]
        if name_of(node) == "matmul" and not is_linear(module):  # else its code was found to be a product
            return None
        return layer if looks_like_layer(module) and not is_depthwise(module) else None

    def adds_bias(self, node: fx.Node) -> bool:
        """Tell whether a node is the addition of its bias in a layer that multiplies and adds."""
        layer = self.module_of(node)
        own = [n for n in node.all_input_nodes if self.owned.get(n) == f"{layer}.bias"]
        product = self.latest.get(layer)
        return name_of(node) == "add" and len(own) == 1 and product in node.all_input_nodes

    def depthwise_called(self, node: fx.Node) -> bool:
        """Tell whether a node is a depthwise convolution."""
        module = self.modules.get(self.module_of(node))
        return name_of(node) in _CALLS and module is not None and is_depthwise(module)

    def call(self, node: fx.Node, layer: str) -> None:
        """Let a layer consume the neurons in its input, if any, and produce its own."""
        position = _CALLS[name_of(node)]
        source = cast(fx.Node, node.args[position])
        problem = self.call_problem(node, layer, cast(fx.Node, self.parameter(node.args[position + 1])))
        for other in node.all_input_nodes:
            if other is not source:
                roots = (f.root for f in self.flows.get(other, ()))
                self.refuse(roots, f"its neurons are the weights of {layer!r}")
        for flow in self.flows.get(source, ()):
            if reason := problem or self.consumer_problem(source, layer, flow):
                self.refuse([flow.root], reason)
            else:
                self.groups[flow.root].consumers[layer] = flow.layout
                self.groups[flow.root].uses[layer] += 1
        root = self.root_of.setdefault(layer, layer)
        if root not in self.groups:
            self.groups[root] = _Growing([layer], node, None)
        if problem:
            self.refuse([root], problem)
        self.latest[layer] = node
        axis = channel_axis(self.modules[layer], len(shape_of(node)))
        self.flows[node] = (Flow(root, axis, (1,) * self.groups[root].parts),)

    def call_problem(self, node: fx.Node, layer: str, weight: fx.Node) -> str | None:
        """Say why a wider layer could not take the place of this one in a call, or return None."""
        if problem := kind_problem(self.modules[layer]) or layer_problem(self.known, layer):
            return f"{layer!r} {problem}"
        if len(weight.users) != self.calls[layer]:
            return f"{layer!r} is used {len(weight.users)} times in one forward pass, not always as a layer"
        if self.module_of(node) != layer:
            return f"{layer!r} is not called as a layer: its weight is used directly"
        return None

    def consumer_problem(self, source: fx.Node, layer: str, flow: Flow) -> str | None:
        """Say why a layer cannot consume these neurons, or return None."""
        if flow.axis != channel_axis(self.modules[layer], len(shape_of(source))):
            return f"its neurons are not the inputs of {layer!r}, which works along another axis"
        neurons, inputs = self.neurons(flow.root), size_of(self.model, layer)[1]
        if layout_width(flow.layout, neurons) != inputs:
            return f"its consumer {layer!r} has {inputs} inputs, not one for each of {neurons} neurons"
        if self.groups[flow.root].consumers.get(layer, flow.layout) != flow.layout:
            return f"{layer!r} takes its neurons in several layouts"
        return None

    def pass_through(self, node: fx.Node) -> Flows:
        """Pass neurons through a norm, PReLU or depthwise convolution that has an entry for each of them."""
        source = cast(fx.Node, node.args[0])
        flows = self.flows.get(source, ())
        name, operation = self.module_of(node), name_of(node)
        size = argument(node, "normalized_shape")
        if size is not None and all(flow.axis < len(shape_of(node)) - len(size) for flow in flows):
            return flows  # over other axes, alike for all neurons
        if operation == "prelu" and flows and shape_of(node.args[1]) in ((), (1,)):
            return flows
        if len(flows) != len(self.touched(node)) or per_neuron_class(self.modules[name]) is None:
            raise Refused(f"its neurons are passed to {operation!r}, which is not a norm that can widen")
        for flow in flows:
            if problem := self.norm_problem(node, name, flow):
                raise Refused(f"its neurons pass through {name!r}, which cannot widen: {problem}")
            growing = self.groups[flow.root]
            growing.between += [] if name in growing.between else [name]
            growing.uses[name] += 1
        return flows

    def norm_problem(self, node: fx.Node, name: str, flow: Flow) -> str | None:
        """Say why a norm cannot widen with these neurons, or return None."""
        module, dims = self.modules[name], len(shape_of(node))
        if len(self.flows[cast(fx.Node, node.args[0])]) > 1 or flow.layout != (1,):
            return f"{type(module).__name__} is over other values too"
        axis = channel_axis(module, dims) if is_depthwise(module) else 1
        if flow.axis != (dims - 1 if isinstance(module, nn.LayerNorm | nn.RMSNorm) else axis):
            return f"{type(module).__name__} works along another axis"
        uses = [len(n.users) for n in node.all_input_nodes if self.owned.get(n) == f"{name}.weight"]
        if uses and uses != [self.calls[name]]:
            return f"it is used {uses[0]} times in one forward pass, not always as a module"
        problem = layer_problem(self.known, name)
        return f"it {problem}" if problem else width_problem(module, self.neurons(flow.root))

    def merge(self, node: fx.Node) -> None:
        """Make one group of two producers that meet in a product: gate and up, channels and their gates."""
        sources = [n for n in node.all_input_nodes if n in self.flows]
        if len(sources) != 2 or any(len(self.flows[n]) != 1 for n in sources):
            return
        # Broadcasting aligns the last axes.
        places = [self.flows[n][0].at(self.flows[n][0].axis - len(shape_of(n))) for n in sources]
        first, second = sorted(places, key=lambda flow: self.groups[flow.root].node)
        a, b = self.groups[first.root], self.groups[second.root]
        neurons = {self.neurons(first.root), self.neurons(second.root)}
        if a is b or a.reason or b.reason or first != replace(second, root=first.root):
            return
        if len(neurons) > 1 or a.parts != b.parts:
            return
        a.producers += b.producers
        a.consumers |= b.consumers
        a.between += [name for name in b.between if name not in a.between]
        a.uses.update(b.uses)
        self.root_of |= dict.fromkeys(b.producers, first.root)
        del self.groups[second.root]
        for n, flows in self.since(b.node):
            self.flows[n] = tuple(replace(f, root=first.root) if f.root == second.root else f for f in flows)


def _is_attention(node: fx.Node) -> bool:
    """Tell whether a node weighs values by a softmax, as attention does."""
    if "scaled_dot_product" in name_of(node):
        return True
    if name_of(node) not in ("matmul", "bmm", "einsum"):
        return False
    recent = set(node.all_input_nodes)
    for _ in range(4):
        recent |= {m for n in recent if n.op == "call_function" for m in n.all_input_nodes[:1]}
    return any(name_of(n) in ("softmax", "_softmax") for n in recent if n.op == "call_function")
