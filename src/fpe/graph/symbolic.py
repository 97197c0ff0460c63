"""Follow linear layers through a symbolic trace of a plain module, where there is no batch to export it with.

From each linear layer the walk passes operations of an allow-list, each of which treats every neuron alone.
"""

from __future__ import annotations

import operator
from contextlib import suppress

import torch
from torch import fx, nn
from torch.nn import functional as F

from fpe.errors import ModelError
from fpe.graph.aten import ELEMENTWISE
from fpe.graph.copies import analyzed, first_line
from fpe.graph.groups import HEAD, NOT_CONSUMED, Found, NeuronGroup, Skipped, merged
from fpe.graph.layers import (
    Names,
    is_convolution,
    is_linear,
    kind_problem,
    layer_problem,
    size_of,
    skip_reason,
    what_it_is,
    width_problem,
)
from fpe.graph.operations import Refused, unknown

#: The end of the reason why a layer is left unchanged that a batch would let be followed.
NEEDS_BATCH = "which is followed only with example_inputs=…, a batch"
#: Modules over the neurons whose width is known without a batch.
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d, nn.PReLU)
_MODULES = frozenset(
    {
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
        nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish,
        nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold,
        nn.Dropout, nn.AlphaDropout, nn.Identity,
    }
)  # fmt: skip
#: The functions of torch and of Python with the names of element-wise operations. They get one tensor here.
_FUNCTIONS = {
    getattr(place, name)
    for place in (torch, F, operator)
    for name in ELEMENTWISE - {"where"}
    if hasattr(place, name)
} | {F.logsigmoid, F.softsign, operator.truediv}


class _Tracer(fx.Tracer):
    """Looks into containers and user modules, but not into layers, nor into `opaque` modules."""

    def __init__(self, opaque: frozenset[nn.Module] = frozenset()) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, nn.Linear) or m in self.opaque
        return known or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> fx.Graph:
    """Trace a forward pass; children that cannot be traced become single nodes."""
    with suppress(Exception):  # tracing runs the user's code, which may fail in any way
        return _Tracer().trace(model)
    opaque = []
    for child in model.children():
        try:
            _Tracer().trace(child)
        except Exception:
            opaque.append(child)
    return _Tracer(frozenset(opaque)).trace(model)


def follow_symbolically(model: nn.Module) -> Found:
    """Find the groups of linear layers of a module that ``torch.fx`` can trace, in both modes if it can."""
    try:
        with analyzed(model) as own:
            graph = _traced(own)
    except Exception as error:
        raise ModelError(
            f"the forward pass of {type(model).__name__} cannot be followed symbolically "
            f"({first_line(error)}). Give example_inputs=…, one batch, on which it can be followed."
        ) from error
    found = _Walk(model, graph).found()
    with suppress(Exception), analyzed(model) as own:
        return merged(found, _Walk(model, _traced(own.train())).found())
    return found


class _Walk:
    """A walk through a traced graph from each linear layer to its consumers."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.model, self.known = model, Names(model)
        self.linear: set[str] = set()
        #: The calls of each module; a parameter that the forward pass uses directly counts as one more.
        self.uses: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                name = str(node.target)
                name = name if node.op == "call_module" else name.rpartition(".")[0]
                self.uses.setdefault(name, []).append(node)

    def found(self) -> Found:
        """Return the groups in the order of the forward pass, and a reason for every other layer."""
        groups, skipped = [], []
        called = [name for name, nodes in self.uses.items() if any(n.op == "call_module" for n in nodes)]
        reached = [name for name in called if isinstance(self.known.modules[name], nn.Linear)]
        for name in reached:
            try:
                groups.append(self.follow(name))
            except Refused as refused:
                skipped.append(Skipped(name, str(refused)))
        for name, module in self.model.named_modules():
            if name not in reached and (reason := skip_reason(self.known, name)):
                if is_convolution(module):
                    reason = f"{what_it_is(module)}, {NEEDS_BATCH}"
                skipped.append(Skipped(name, reason if name or not isinstance(module, nn.Linear) else HEAD))
        return Found(tuple(groups), tuple(skipped), linear=frozenset(self.linear))

    def follow(self, producer: str) -> NeuronGroup:
        """Walk from one linear layer to its consumers."""
        self.check_layer(producer)
        neurons, _ = size_of(self.model, producer)
        consumers: dict[str, None] = {}
        between: list[str] = []
        linear = True
        frontier = list(self.uses[producer])
        while frontier:
            node = frontier.pop(0)
            for user in node.users:
                if user.op == "output":
                    raise Refused(HEAD)
                name = str(user.target)
                module = self.known.modules.get(name) if user.op == "call_module" else None
                linear &= isinstance(module, nn.Linear | nn.Dropout | nn.Identity)
                if user.op != "call_module":
                    _check_operation(user, node)
                elif isinstance(module, nn.Linear):
                    self.check_layer(name)
                    if (inputs := size_of(self.model, name)[1]) != neurons:
                        what = f"its consumer {name!r} has {inputs} inputs"
                        raise Refused(f"{what}, not one for each of {neurons} neurons")
                    consumers[name] = None
                    continue
                elif module is not None and type(module) in _NORMS:
                    self.check_layer(name)
                    if problem := width_problem(module, neurons):
                        raise Refused(f"its neurons pass through {name!r}, which cannot widen: {problem}")
                    between.append(name)
                elif type(module) not in _MODULES:
                    raise unknown(f"{name!r} ({type(module).__name__})")
                frontier.append(user)
        if not consumers:
            raise Refused(NOT_CONSUMED)
        self.linear |= {producer} if linear else set()
        return NeuronGroup((producer,), tuple(consumers), tuple(between))

    def check_layer(self, name: str) -> None:
        """Refuse a layer that is called several times or cannot be replaced."""
        module = self.known.modules[name]
        if isinstance(module, nn.Linear) and not is_linear(module):
            raise Refused(f"{name!r} {layer_problem(self.known, name) or kind_problem(module)}")
        if len(self.uses[name]) > 1:
            raise Refused(f"{name!r} is used {len(self.uses[name])} times in one forward pass")
        if problem := layer_problem(self.known, name):
            raise Refused(f"{name!r} {problem}")


def _check_operation(user: fx.Node, node: fx.Node) -> None:
    """Refuse an operation unless it is element-wise and has this one tensor as its input."""
    label = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", user.target)
    if len(user.all_input_nodes) > 1:
        raise Refused(f"its neurons meet another tensor in {label!r}")
    if user.op == "call_function" and user.target in _FUNCTIONS:
        return
    if user.op == "call_method" and str(user.target).rstrip("_") in ELEMENTWISE and user.args[:1] == (node,):
        return
    raise unknown(repr(label))
