"""What the nodes of an exported forward pass are: calls of layers, views of their weights, attention."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fpe.graph.aten import name_of
from fpe.graph.layers import (
    Names,
    is_depthwise,
    is_linear,
    kind_problem,
    layer_problem,
    looks_like_layer,
    may_scale,
)
from fpe.graph.stacked import StackedLinear
from fpe.graph.stacked_calls import stacked_call

#: Products and convolutions, with the position of their input; their weight is the next argument.
CALLS = {"linear": 0, "matmul": 0, "addmm": 1, "convolution": 0, "conv1d": 0, "conv2d": 0, "conv3d": 0}
CALLS |= dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 0)
#: Views of a weight: that of masked layers, and those of layers that multiply by the transposed weight.
_VIEWS = frozenset(["view_as", "t", "numpy_T", "transpose", "permute"])
#: Norms and PReLU, which have an entry for each neuron.
NORMS = frozenset(["layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "prelu"])


class Nodes:
    """The nodes of an exported graph, and which of a model's modules and parameters they stand for."""

    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        self.known = Names(model)
        self.modules = self.known.modules
        self.graph = program.graph
        self.owned: dict[fx.Node, str] = {}
        names = {
            spec.arg.name: spec.target.removeprefix("model.")
            for spec in program.graph_signature.input_specs
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target
        }
        for node in self.graph.nodes:
            if node.op in ("placeholder", "get_attr") and node.name in names:
                owner, _, own = names[node.name].rpartition(".")
                self.owned[node] = node.meta["fpe_name"] = f"{self.first_name(owner)}.{own}".lstrip(".")
                node.meta["fpe_scale"] = may_scale(self.modules[owner])
        stacked = frozenset(n for n, module in self.modules.items() if isinstance(module, StackedLinear))
        made = ((n, stacked_call(n, self.owned, stacked)) for n in (self.graph.nodes if stacked else ()))
        #: Products with the weights of stacked experts.
        self.products = {node: call for node, call in made if call is not None}
        #: Layers that are called where there are gradients.
        self.trained = {
            name
            for node in self.graph.nodes
            if not node.meta.get("fpe_no_grad") and (name := self.called(node)) is not None
        }
        #: How often each layer, norm or depthwise convolution is called.
        self.calls = Counter(name for node in self.graph.nodes if (name := self.called(node)) is not None)

    def unknown_layer(self, node: fx.Node) -> str | None:
        """Say that neurons are passed to a layer of an unknown class, if a node is in one."""
        name = self.module_of(node)
        module = self.modules.get(name)
        if module is None or not looks_like_layer(module) or is_depthwise(module):
            return None
        unknown = kind_problem(module)
        problem = unknown and (layer_problem(self.known, name) or unknown)
        return f"its neurons are passed to {name!r}, which {problem}" if problem else None

    def called(self, node: fx.Node) -> str | None:
        """Return the layer, or the module between layers, whose main operation a node is."""
        if node.op != "call_function":
            return None
        between = name_of(node) in NORMS or self.depthwise_called(node)
        return self.module_of(node) if between else self.layer_called(node)

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
        if (product := self.products.get(node)) is not None:
            return product.layer
        if name_of(node) not in CALLS:
            return None
        weight = self.parameter(node.args[CALLS[name_of(node)] + 1])
        if weight is None or not self.owned[weight].endswith("weight"):
            return None
        layer = self.owned[weight].rpartition(".")[0]
        module = self.modules[layer]
        if name_of(node) == "matmul" and not is_linear(module):  # else its code was found to be a product
            return None
        return layer if looks_like_layer(module) and not is_depthwise(module) else None

    def depthwise_called(self, node: fx.Node) -> bool:
        """Tell whether a node is a depthwise convolution."""
        module = self.modules.get(self.module_of(node))
        return name_of(node) in CALLS and module is not None and is_depthwise(module)


def is_attention(node: fx.Node) -> bool:
    """Tell whether a node weighs values by a softmax, as attention does."""
    if "scaled_dot_product" in name_of(node):
        return True
    if name_of(node) not in ("matmul", "bmm", "einsum"):
        return False
    recent = set(node.all_input_nodes)
    for _ in range(4):
        recent |= {m for n in recent if n.op == "call_function" for m in n.all_input_nodes[:1]}
    return any(name_of(n) in ("softmax", "_softmax") for n in recent if n.op == "call_function")
