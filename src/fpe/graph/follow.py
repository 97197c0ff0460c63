"""Follow neurons through the exported forward pass, from the layers that produce them to their consumers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fpe._util.modules import seeded
from fpe.errors import ModelError
from fpe.graph.copies import analysis_copy, analyzed, first_line, not_run, outside_kept
from fpe.graph.groups import (
    HEAD,
    NOT_CALLED,
    NOT_CONSUMED,
    Found,
    Layout,
    Skipped,
    group_of,
    layout_width,
    merged,
)
from fpe.graph.inputs import Call, copied_call, tensors_in
from fpe.graph.layers import (
    PER_NEURON,
    Names,
    channel_axis,
    is_convolution,
    is_depthwise,
    kind_problem,
    layer_problem,
    looks_like_layer,
    size_of,
    skip_reason,
    width_problem,
)
from fpe.graph.operations import Flow, Flows, Refused, name_of, propagate, shape_of

#: Products and convolutions, with the position of their input; their weight is the next argument.
_CALLS = {"linear": 0, "addmm": 1, "convolution": 0, "conv1d": 0, "conv2d": 0, "conv3d": 0}
_NORMS = frozenset(["layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "prelu"])


class _TensorsOnly(nn.Module):
    """Returns only the tensors that a model returns: caches cannot be exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return tensors_in(self.model(*args, **kwargs))


def exported(model: nn.Module, call: Call, training: bool = False) -> ExportedProgram:
    """Export the forward pass of a copy of a model on these arguments."""
    args, kwargs = call
    with seeded(), outside_kept(model):
        own = _TensorsOnly(analysis_copy(model)).train(training)
        return torch.export.export(own, args, kwargs, strict=False)


def follow_model(model: nn.Module, call: Call) -> Found:
    """Find the groups of a model; of its parts where its whole forward pass cannot be exported.

    What Python decides by looking at data cannot be exported, and a trace of one run would not show the other
    branches. So each module that such a forward pass calls once is exported with the arguments of one run.
    """
    try:
        return _follow_both_modes(model, call)
    except ModelError:
        raise
    except Exception as error:  # the user's own code may fail in any way
        parts = list(_follow_parts(model, "", _not_followed(model, error), _record(model, call)))
        groups = tuple(group for part in parts for group in part.groups)
        skipped = tuple(skip for part in parts for skip in part.skipped)
        return Found(groups, skipped, any(part.attention for part in parts))


def _follow_both_modes(model: nn.Module, call: Call) -> Found:
    """Follow a model in evaluation mode, and in training mode if evaluation does not call all layers."""
    found = follow(model, exported(model, call))
    if any(skip.reason == NOT_CALLED for skip in found.skipped):
        with suppress(Exception):  # then evaluation mode has to do, and the verification judges both modes
            return merged(found, follow(model, exported(model, call, training=True)))
    return found


def follow(model: nn.Module, program: ExportedProgram) -> Found:
    """Find the groups of a model in its exported forward pass; all other layers get a reason."""
    walk = _Walk(model, program)
    walk.run()
    groups, skipped = [], []
    for growing in walk.groups.values():
        reason = growing.reason or (None if growing.consumers else NOT_CONSUMED)
        if reason is None:
            groups.append(group_of(growing.producers, growing.consumers, growing.between))
        else:
            skipped += [Skipped(name, reason) for name in growing.producers]
    reached = {name for growing in walk.groups.values() for name in growing.producers}
    reached |= {name for group in groups for name in group.between}
    for name, _ in model.named_modules():
        if name not in reached and (reason := skip_reason(walk.known, name)):
            skipped.append(Skipped(name, reason))
    return Found(tuple(groups), tuple(skipped), walk.attention)


@dataclass
class _Growing:
    """A group while it is being found."""

    producers: list[str]
    node: fx.Node
    source: fx.Node
    reason: str | None
    consumers: dict[str, Layout] = field(default_factory=dict)
    between: list[str] = field(default_factory=list)


class _Walk:
    """One pass over an exported graph."""

    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        self.model = model
        self.known = Names(model)
        self.modules = self.known.modules
        self.flows: dict[fx.Node, Flows] = {}
        self.groups: dict[str, _Growing] = {}
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
                self.owned[node] = node.meta["fpe_name"] = names[node.name]

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
        self.attention |= _is_attention(node)
        if (layer := self.layer_called(node)) is not None:
            self.call(node, layer)
        elif touched := self.touched(node):
            try:
                if name_of(node) in _NORMS or self.depthwise_called(node):
                    self.flows[node] = self.pass_through(node)
                    return
                if name_of(node) == "mul":
                    self.merge(node)
                self.flows[node] = propagate(node, self.flows)
            except Refused as refused:
                self.refuse(touched, str(refused))

    def touched(self, node: fx.Node) -> list[str]:
        """Return the roots of all neurons in a node's inputs."""
        return list(dict.fromkeys(f.root for n in node.all_input_nodes for f in self.flows.get(n, ())))

    def refuse(self, roots: Iterable[str], reason: str) -> None:
        """Refuse the groups of these roots; the first reason stands."""
        for root in roots:
            self.groups[root].reason = self.groups[root].reason or reason

    def module_of(self, node: fx.Node) -> str:
        """Return the name of the module in whose forward pass a node stands."""
        stack = node.meta.get("nn_module_stack") or {"": ("", None)}
        path = str(list(stack.values())[-1][0])
        return path.partition("@")[0].removeprefix("model").removeprefix(".")

    def parameter(self, node: Any) -> fx.Node | None:
        """Return the parameter that a node is, also through the view of it that masked layers take."""
        while isinstance(node, fx.Node) and node.op == "call_function" and name_of(node) == "view_as":
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
        return layer if looks_like_layer(module) and not is_depthwise(module) else None

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
        if layer in self.groups:
            self.refuse([layer], f"{layer!r} is used several times in one forward pass")
            return
        self.groups[layer] = _Growing([layer], node, source, problem)
        self.flows[node] = (Flow(layer, channel_axis(self.modules[layer], len(shape_of(node)))),)

    def call_problem(self, node: fx.Node, layer: str, weight: fx.Node) -> str | None:
        """Say why a wider layer could not take the place of this one in a call, or return None."""
        if problem := kind_problem(self.modules[layer]) or layer_problem(self.known, layer):
            return f"{layer!r} {problem}"
        if len(weight.users) > 1:
            return f"{layer!r} is used {len(weight.users)} times in one forward pass"
        if self.module_of(node) != layer:
            return f"{layer!r} is not called as a layer: its weight is used directly"
        return None

    def consumer_problem(self, source: fx.Node, layer: str, flow: Flow) -> str | None:
        """Say why a layer cannot consume these neurons, or return None."""
        if flow.axis != channel_axis(self.modules[layer], len(shape_of(source))):
            return f"its neurons are not the inputs of {layer!r}, which works along another axis"
        neurons, inputs = size_of(self.model, flow.root)[0], size_of(self.model, layer)[1]
        if layout_width(flow.layout, neurons) != inputs:
            return f"its consumer {layer!r} has {inputs} inputs, not one for each of {neurons} neurons"
        if layer in self.groups[flow.root].consumers:
            return f"{layer!r} is used several times in one forward pass"
        return None

    def pass_through(self, node: fx.Node) -> Flows:
        """Pass neurons through a norm, PReLU or depthwise convolution that has an entry for each of them."""
        source = cast(fx.Node, node.args[0])
        flows = self.flows.get(source, ())
        name, operation = self.module_of(node), name_of(node)
        if operation == "prelu" and flows and shape_of(node.args[1]) in ((), (1,)):
            return flows
        if len(flows) != len(self.touched(node)) or type(self.modules[name]) not in PER_NEURON:
            raise Refused(f"its neurons are passed to {operation!r}, which is not a norm that can widen")
        for flow in flows:
            if problem := self.norm_problem(node, name, flow):
                raise Refused(f"its neurons pass through {name!r}, which cannot widen: {problem}")
            if name in self.groups[flow.root].between:
                raise Refused(f"{name!r} is used several times in one forward pass")
            self.groups[flow.root].between.append(name)
        return flows

    def norm_problem(self, node: fx.Node, name: str, flow: Flow) -> str | None:
        """Say why a norm cannot widen with these neurons, or return None."""
        module, dims = self.modules[name], len(shape_of(node))
        if len(self.flows[cast(fx.Node, node.args[0])]) > 1 or flow.layout != (1,):
            return f"{type(module).__name__} is over other values too"
        axis = channel_axis(module, dims) if is_convolution(module) else 1
        if flow.axis != (dims - 1 if isinstance(module, nn.LayerNorm | nn.RMSNorm) else axis):
            return f"{type(module).__name__} works along another axis"
        uses = [len(n.users) for n in node.all_input_nodes if self.owned.get(n) == f"{name}.weight"]
        if uses and uses != [1]:
            return f"it is used {uses[0]} times in one forward pass"
        problem = layer_problem(self.known, name)
        return f"it {problem}" if problem else width_problem(module, size_of(self.model, flow.root)[0])

    def merge(self, node: fx.Node) -> None:
        """Make one group of two layers that consume the same tensor and meet in a product."""
        sources = [n for n in node.all_input_nodes if n in self.flows]
        if len(sources) != 2 or any(len(self.flows[n]) != 1 for n in sources):
            return
        first, second = (self.flows[n][0] for n in sources)
        a, b = self.groups[first.root], self.groups[second.root]
        same_place = a.source is b.source and first == replace(second, root=first.root)
        shapes = {self.modules[n].weight.shape for n in (*a.producers, *b.producers)}
        same_shape = shape_of(sources[0]) == shape_of(sources[1]) and len(shapes) == 1
        if a is b or a.reason or b.reason or not (same_place and same_shape):
            return
        a.producers += b.producers
        a.consumers |= b.consumers
        a.between += b.between
        del self.groups[second.root]
        for n in reversed(self.flows):
            flows = self.flows[n]
            self.flows[n] = tuple(replace(f, root=first.root) if f.root == second.root else f for f in flows)
            if n is b.node:
                break


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


def _follow_parts(model: nn.Module, name: str, reason: str, calls: dict[str, list[Call]]) -> Iterator[Found]:
    """Follow each child; where that fails, its own children. Skip single layers with this reason."""
    for child_name, child in model.named_children():
        full = f"{name}.{child_name}" if name else child_name
        own = calls.get(full, [])
        if looks_like_layer(child):
            yield Found((), (Skipped(full, reason),))
            continue
        if len(own) > 1:
            why = f"{full!r}, in which it stands, is used {len(own)} times in one forward pass"
        elif not own:
            container = isinstance(child, nn.ModuleList | nn.ModuleDict)
            why = reason if container else "it is not reached by example_inputs"
        else:
            try:
                yield _under(full, _follow_both_modes(child, own[0]))
                continue
            except Exception as error:  # the user's own code may fail in any way
                why = _not_followed(child, error)
        yield from _follow_parts(child, full, why, calls)


def _under(part: str, found: Found) -> Found:
    """Give what was found in a part the names of the whole, where nothing is known about its outputs."""
    leaving = f"its neurons leave {part!r}, beyond which the forward pass cannot be followed"
    skipped = (
        Skipped(f"{part}.{skip.name}".rstrip("."), leaving if skip.reason == HEAD else skip.reason)
        for skip in found.skipped
    )
    return Found(tuple(group.under(part) for group in found.groups), tuple(skipped), found.attention)


def _not_followed(module: nn.Module, error: Exception) -> str:
    forward = f"the forward pass of {type(module).__name__}, which calls it,"
    return f"{forward} cannot be followed ({first_line(error)})"


def _record(model: nn.Module, call: Call) -> dict[str, list[Call]]:
    """Run a copy of a model once, and return the arguments of every call of each of its modules."""
    calls: dict[str, list[Call]] = {}

    def record(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(name, []).append((args, kwargs))

    args, kwargs = copied_call(call)
    with analyzed(model) as own, torch.no_grad():
        for name, module in own.named_modules():
            module.register_forward_pre_hook(functools.partial(record, name), with_kwargs=True)
        try:
            own(*args, **kwargs)
        except Exception as error:
            raise not_run(type(model).__name__, error) from error
    return calls
