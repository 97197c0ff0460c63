"""Follow the neurons through the exported forward pass, from the layers that make them to their readers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fpe._util.modules import seeded
from fpe.graph.analysis import analysis_copy
from fpe.graph.axis import Flow
from fpe.graph.copies import first_line
from fpe.graph.groups import HEAD, Found, NeuronGroup, Runs, Skipped, width_of_runs
from fpe.graph.inputs import Call, tensors_in
from fpe.graph.layers import (
    PER_NEURON,
    Names,
    a_kind,
    is_convolution,
    is_depthwise,
    is_layer,
    kind_problem,
    layer_problem,
    looks_like_layer,
    size_of,
    width_problem,
)
from fpe.graph.operations import Flows, Refused, carry, name_of, shape_of
from fpe.graph.outside import outside_kept

_CALLS = {
    "linear": (0, 1),
    "addmm": (1, 2),
    **{f"conv{n}d": (0, 1) for n in (1, 2, 3)},
    "convolution": (0, 1),
}
_NORMS = frozenset(["layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "prelu"])


class _TensorsOnly(nn.Module):
    """Returns nothing but the tensors of what a model returns: caches cannot be exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        return tensors_in(self.model(*args, **kwargs))


def exported(model: nn.Module, call: Call) -> ExportedProgram:
    """Export a model's forward pass on these arguments, in evaluation mode, from a copy."""
    args, kwargs = call
    with seeded(), outside_kept(model):
        return torch.export.export(_TensorsOnly(analysis_copy(model)).eval(), args, kwargs, strict=False)


@dataclass
class _Growing:
    """A group while it is being found."""

    producers: list[str]
    node: fx.Node
    source: fx.Node
    consumers: dict[str, Runs] = field(default_factory=dict)
    between: list[str] = field(default_factory=list)
    reason: str | None = None


class _Walk:
    """One pass over an exported graph."""

    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        self.model = model
        self.known = Names(model)
        self.modules = self.known.modules
        self.flows: dict[fx.Node, Flows] = {}
        self.groups: dict[str, _Growing] = {}
        self.skipped: dict[str, str] = {}
        self.attention = False
        self.graph = program.graph
        self.owned: dict[fx.Node, str] = {}
        kinds = (InputKind.PARAMETER, InputKind.BUFFER)
        names = {
            spec.arg.name: spec.target.removeprefix("model.")
            for spec in program.graph_signature.input_specs
            if spec.kind in kinds and spec.target
        }
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                self.owned[node] = node.meta["fpe_name"] = names[node.name]

    def run(self) -> None:
        """Visit every node in the order of the forward pass."""
        for node in self.graph.nodes:
            if node.op == "output":
                self.refuse(self.touched(node), HEAD)
            elif node.op == "call_function":
                try:
                    self.visit(node)
                except Exception as error:  # an overload that no rule foresees costs its neurons, not all
                    self.refuse(
                        self.touched(node),
                        f"its neurons are read by {name_of(node)!r} in a way that fpe does not understand "
                        f"({first_line(error)})",
                    )

    def visit(self, node: fx.Node) -> None:
        """Find out what a node does to the neurons that come in, and which go out."""
        self.attention |= _is_attention(node)
        name = name_of(node)
        layer = self.layer_called(node)
        if layer is not None:
            self.call(node, layer)
            return
        touched = self.touched(node)
        if not touched:
            return
        try:
            if name in _NORMS or self.depthwise_called(node):
                self.pass_through(node)
                return
            if name == "mul":
                self.merge(node)
            self.flows[node] = carry(node, self.flows)
        except Refused as refused:
            self.refuse(touched, str(refused))

    def touched(self, node: fx.Node) -> list[str]:
        """Return the roots of all neurons that a node gets."""
        return list(dict.fromkeys(f.root for n in node.all_input_nodes for f in self.flows.get(n, ())))

    def refuse(self, roots: Iterable[str], reason: str) -> None:
        """Give up the groups of these roots; the first reason stands."""
        for root in roots:
            if self.groups[root].reason is None:
                self.groups[root].reason = reason

    def module_of(self, node: fx.Node) -> str:
        """Return the name of the module in whose forward pass a node stands."""
        stack = node.meta.get("nn_module_stack") or {"": ("", None)}
        path = str(list(stack.values())[-1][0])
        return path.partition("@")[0].removeprefix("model").removeprefix(".")

    def parameter(self, node: Any) -> tuple[str, fx.Node] | None:
        """Return the parameter that a node is, looking through the masked layers' view of it."""
        while isinstance(node, fx.Node) and node.op == "call_function" and name_of(node) == "view_as":
            node = node.args[0]
        return (self.owned[node], node) if isinstance(node, fx.Node) and node in self.owned else None

    def layer_called(self, node: fx.Node) -> str | None:
        """Return the layer that a node is the product or convolution of, if it is one."""
        if name_of(node) not in _CALLS:
            return None
        owner = self.parameter(node.args[_CALLS[name_of(node)][1]])
        if owner is None or not owner[0].endswith("weight"):
            return None
        layer = owner[0].rpartition(".")[0]
        module = self.modules[layer]
        return layer if looks_like_layer(module) and not is_depthwise(module) else None

    def depthwise_called(self, node: fx.Node) -> bool:
        """Tell whether a node is a depthwise convolution."""
        module = self.modules.get(self.module_of(node))
        return name_of(node) in _CALLS and module is not None and is_depthwise(module)

    def call(self, node: fx.Node, layer: str) -> None:
        """A layer reads the neurons that come in, if any, and makes its own."""
        name = name_of(node)
        position, weight_position = _CALLS[name]
        source = cast(fx.Node, node.args[position])
        problem = self.call_problem(node, layer, weight_position)
        elsewhere = [n for n in node.all_input_nodes if n is not source and n in self.flows]
        for other in elsewhere:
            self.refuse((f.root for f in self.flows[other]), f"its neurons are the weights of {layer!r}")
        for flow in self.flows.get(source, ()):
            reason = f"{layer!r} {problem}" if problem else self.reader_problem(source, layer, flow)
            if reason:
                self.refuse([flow.root], reason)
            else:
                self.groups[flow.root].consumers[layer] = flow.runs
        if layer in self.groups:
            self.refuse([layer], f"{layer!r} is used several times in one forward pass")
            return
        self.groups[layer] = _Growing(
            [layer], node, source, reason=f"{layer!r} {problem}" if problem else None
        )
        self.flows[node] = (Flow(layer, _channel_axis(self.modules[layer], len(shape_of(node)))),)

    def call_problem(self, node: fx.Node, layer: str, weight_position: int) -> str | None:
        """Say why a call of a layer is not one that a wider layer could answer, or return None."""
        module = self.modules[layer]
        owner = self.parameter(node.args[weight_position])
        assert owner is not None
        if problem := kind_problem(module) or layer_problem(self.known, layer):
            return problem
        uses = len(owner[1].users)
        if uses > 1:
            return f"is used {uses} times in one forward pass"
        if self.module_of(node) != layer:
            return "is not called as a layer: its weight is read by itself"
        return None

    def reader_problem(self, source: fx.Node, layer: str, flow: Flow) -> str | None:
        """Say why a layer cannot read these neurons, or return None."""
        module = self.modules[layer]
        if flow.axis != _channel_axis(module, len(shape_of(source))):
            return f"its neurons are not the inputs of {layer!r}, which works along another axis"
        neurons, inputs = size_of(self.model, flow.root)[0], size_of(self.model, layer)[1]
        if width_of_runs(flow.runs, neurons) != inputs:
            return f"its reader {layer!r} has {inputs} inputs, not one for each of {neurons} neurons"
        if layer in self.groups[flow.root].consumers:
            return f"{layer!r} is used several times in one forward pass"
        return None

    def pass_through(self, node: fx.Node) -> None:
        """Neurons pass a norm, a PReLU or a depthwise convolution that has an entry for each of them."""
        source = cast(fx.Node, node.args[0])
        flows = self.flows.get(source, ())
        name, operation = self.module_of(node), name_of(node)
        module = self.modules[name]
        if operation == "prelu" and flows and shape_of(node.args[1]) in ((), (1,)):
            self.flows[node] = flows
            return
        if len(flows) != len(self.touched(node)) or type(module) not in PER_NEURON:
            raise Refused(f"its neurons are read by {operation!r}, which is not a norm that can widen")
        for flow in flows:
            neurons, _ = size_of(self.model, flow.root)
            if problem := self._norm_problem(node, name, flow, neurons):
                raise Refused(f"its neurons pass through {name!r}, which cannot widen: {problem}")
            if name in self.groups[flow.root].between:
                raise Refused(f"{name!r} is used several times in one forward pass")
            self.groups[flow.root].between.append(name)
        self.flows[node] = flows

    def _norm_problem(self, node: fx.Node, name: str, flow: Flow, neurons: int) -> str | None:
        module = self.modules[name]
        dims = len(shape_of(node))
        if len(self.flows[cast(fx.Node, node.args[0])]) > 1 or not flow.plain:
            return f"{type(module).__name__} is over other values too"
        last = isinstance(module, nn.LayerNorm | nn.RMSNorm)
        axis = dims - 1 if last else (_channel_axis(module, dims) if is_convolution(module) else 1)
        if flow.axis != axis:
            return f"{type(module).__name__} works along another axis"
        uses = [len(n.users) for n in node.all_input_nodes if self.owned.get(n) == f"{name}.weight"]
        if uses and uses != [1]:
            return f"it is used {uses[0]} times in one forward pass"
        problem = layer_problem(self.known, name)
        return f"it {problem}" if problem else width_problem(module, neurons)

    def merge(self, node: fx.Node) -> None:
        """Two layers that read the same tensor and meet in a product become one group."""
        sources = [n for n in node.all_input_nodes if n in self.flows]
        if len(sources) != 2 or any(len(self.flows[n]) != 1 for n in sources):
            return
        first, second = (self.flows[n][0] for n in sources)
        if first.root == second.root or first.at(0).runs != second.at(0).runs:
            return
        a, b = self.groups[first.root], self.groups[second.root]
        if a.reason or b.reason or shape_of(sources[0]) != shape_of(sources[1]):
            return
        shapes = {self.modules[n].weight.shape for n in (*a.producers, *b.producers)}
        if a.source is not b.source or first.axis != second.axis or len(shapes) > 1:
            return
        a.producers += b.producers
        a.consumers |= b.consumers
        a.between += b.between
        del self.groups[second.root]
        gone, root = second.root, first.root
        for n in reversed(self.flows):
            self.flows[n] = tuple(Flow(root, f.axis, f.runs) if f.root == gone else f for f in self.flows[n])
            if n is b.node:
                break


def _channel_axis(module: nn.Module, dims: int) -> int:
    """Return the axis along which a layer's inputs, and its neurons, stand in a tensor of so many axes."""
    spatial = len(cast(Any, module).kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 0
    return dims - 1 - spatial


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


def follow(model: nn.Module, program: ExportedProgram) -> Found:
    """Find the groups of a model in its exported forward pass.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    program : ExportedProgram
        What `exported` made of it.

    Returns
    -------
    Found
        Groups in the order of the forward pass; every other layer with its reason.
    """
    walk = _Walk(model, program)
    walk.run()
    groups, skipped = [], []
    for growing in walk.groups.values():
        reason = growing.reason or (None if growing.consumers else "no layer reads its neurons")
        if reason is None:
            columns = tuple(growing.consumers.values())
            if all(runs == (1,) for runs in columns):
                columns = ()
            groups.append(
                NeuronGroup(
                    tuple(growing.producers), tuple(growing.consumers), tuple(growing.between), columns
                )
            )
        else:
            skipped += [Skipped(name, reason) for name in growing.producers]
    reached = {name for growing in walk.groups.values() for name in growing.producers}
    passed = {name for group in groups for name in group.between}
    skipped += unreached(model, reached | passed)
    return Found(tuple(groups), tuple(skipped), walk.attention)


def unreached(model: nn.Module, reached: set[str]) -> list[Skipped]:
    """Give the reason for each module with weights that was not reached as a layer."""
    skipped = []
    known = Names(model)
    for name, module in model.named_modules():
        matrix = any(p.dim() > 1 for p in module.parameters(recurse=False))
        if name in reached or not (matrix or looks_like_layer(module)):
            continue
        if is_depthwise(module):
            reason = "it is a depthwise convolution, which makes no neurons of its own"
        elif looks_like_layer(module) and (problem := layer_problem(known, name)):
            reason = f"{name!r} {problem}" if name else f"it {problem}"
        elif is_layer(module):
            reason = "it is not called as a layer where the forward pass could be followed"
        else:
            reason = f"{a_kind(module)}; only linear layers and convolutions are expanded"
        skipped.append(Skipped(name, reason))
    return skipped
