"""Follow the neurons of a plain module from the layer that makes them to the layers that read them.

The forward pass is traced symbolically; from each linear layer the walk goes on through operations
of an allow-list, each of which treats every neuron alone. Anything else ends it with a reason:
nothing is taken for element-wise because its name is unknown.
"""

from __future__ import annotations

import operator
from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional as F

from fpe.errors import ModelError
from fpe.graph.analysis import analysed
from fpe.graph.groups import HEAD, Found, NeuronGroup, Skipped
from fpe.graph.layers import (
    Names,
    a_kind,
    is_convolution,
    is_linear,
    kind_problem,
    layer_problem,
    size_of,
    width_problem,
)

#: What may stand over the neurons; what it is over can be seen without inputs.
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d, nn.PReLU)

ELEMENTWISE_MODULES = frozenset(
    {
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
        nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish,
        nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold,
        nn.Dropout, nn.AlphaDropout, nn.Identity,
    }
)  # fmt: skip

ELEMENTWISE_FUNCTIONS = frozenset(
    {
        F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.tanh, F.sigmoid,
        F.logsigmoid, F.softplus, F.softsign, F.hardtanh, F.hardswish, F.hardsigmoid, F.dropout,
        torch.relu, torch.tanh, torch.sigmoid, torch.abs, torch.square, torch.sin, torch.cos, torch.erf,
    }
)  # fmt: skip

ELEMENTWISE_METHODS = frozenset({"relu", "relu_", "tanh", "sigmoid", "abs", "square", "contiguous", "clone"})

SCALAR_FUNCTIONS = frozenset(
    {operator.mul, operator.add, operator.sub, operator.truediv, operator.neg, operator.pow}
    | {torch.mul, torch.add, torch.sub, torch.div, torch.pow}
)


class _Tracer(fx.Tracer):
    """Looks into containers and user modules, but not into layers, nor into `opaque` ones."""

    def __init__(self, opaque: frozenset[nn.Module] = frozenset()) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, nn.Linear) or m in self.opaque
        return known or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph:
    """Trace the forward pass; children that cannot be traced are taken whole."""
    try:
        return _Tracer().trace(model)
    except Exception:  # tracing runs the user's code, which may fail in any way
        pass
    opaque = []
    for child in model.children():
        try:
            _Tracer().trace(child)
        except Exception:
            opaque.append(child)
    try:
        return _Tracer(frozenset(opaque)).trace(model)
    except Exception as error:
        raise ModelError(
            f"the forward pass of {type(model).__name__} cannot be followed symbolically "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). "
            "Give example_inputs=…, one batch, on which it can be followed."
        ) from error


class _Refused(Exception):
    """Carries the reason for which a layer's neurons cannot be expanded."""


def find_symbolically(model: nn.Module) -> Found:
    """Find the neurons of a plain module that can be expanded, without running it.

    Parameters
    ----------
    model : nn.Module
        An ``nn.Sequential``, nested or not, or any module that ``torch.fx`` can trace. Not changed.

    Returns
    -------
    Found
        Groups in the order of the forward pass; every other linear layer with the reason why it
        is left alone.

    Raises
    ------
    ModelError
        If the forward pass cannot be followed.
    """
    with analysed(model) as own:
        graph = _trace(own)
    known = Names(model)
    modules = known.modules
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    # A parameter that forward reads by itself counts as one more call of its layer.
    calls.update(str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr")
    groups, skipped = [], []
    reached = set()
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or not isinstance(modules[name], nn.Linear) or name in reached:
            continue
        reached.add(name)
        try:
            groups.append(_follow(model, node, known, calls))
        except _Refused as reason:
            skipped.append(Skipped(name, str(reason)))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name:
            skipped.append(Skipped(name, HEAD))
        elif isinstance(module, nn.Linear) and name not in reached:
            skipped.append(
                Skipped(name, "it is not called as a layer where the forward pass could be followed")
            )
        elif not isinstance(module, nn.Linear) and any(p.dim() > 1 for p in module.parameters(recurse=False)):
            kind = f"{a_kind(module)}; only linear layers and convolutions are expanded"
            if is_convolution(module):
                kind = f"{a_kind(module)}, which is followed only with example_inputs=…, a batch"
            skipped.append(Skipped(name, kind))
    return Found(tuple(groups), tuple(skipped))


def _follow(model: nn.Module, start: fx.Node, known: Names, calls: Counter[str]) -> NeuronGroup:
    """Walk from one linear layer to its readers."""
    producer = str(start.target)
    _check_layer(producer, known, calls)
    neurons, _ = size_of(model, producer)
    consumers: list[str] = []
    between: list[str] = []
    frontier = [start]
    while frontier:
        node = frontier.pop(0)
        for user in node.users:
            if user.op == "output":
                raise _Refused(HEAD)
            if user.op != "call_module":
                _check_operation(user, node)
                frontier.append(user)
                continue
            name = str(user.target)
            module = known.modules[name]
            if isinstance(module, nn.Linear):
                _check_reader(model, name, neurons, known, calls)
                if name not in consumers:
                    consumers.append(name)
                continue
            if type(module) in NORMS:
                _check_layer(name, known, calls)
                if problem := width_problem(module, neurons):
                    raise _Refused(f"its neurons pass through {name!r}, which cannot widen: {problem}")
                between.append(name)
            elif type(module) not in ELEMENTWISE_MODULES:
                raise _Refused(
                    f"its neurons are read by {name!r} ({type(module).__name__}), "
                    "which is not known to treat each neuron alone"
                )
            frontier.append(user)
    if not consumers:
        raise _Refused("no layer reads its neurons")
    return NeuronGroup((producer,), tuple(consumers), tuple(between))


def _check_layer(name: str, known: Names, calls: Counter[str]) -> None:
    module = known.modules[name]
    if isinstance(module, nn.Linear) and not is_linear(module):
        raise _Refused(f"{name!r} {kind_problem(module)}")
    if calls[name] > 1:
        raise _Refused(f"{name!r} is used {calls[name]} times in one forward pass")
    if problem := layer_problem(known, name):
        raise _Refused(f"{name!r} {problem}")


def _check_reader(model: nn.Module, name: str, neurons: int, known: Names, calls: Counter[str]) -> None:
    _check_layer(name, known, calls)
    _, inputs = size_of(model, name)
    if inputs != neurons:
        raise _Refused(f"its reader {name!r} has {inputs} inputs, not one for each of {neurons} neurons")


def _check_operation(user: fx.Node, node: fx.Node) -> None:
    """Refuse an operation unless it is element-wise and has this one tensor as its input."""
    label = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", user.target)
    if len(user.all_input_nodes) > 1:
        raise _Refused(f"its neurons meet another tensor in {label!r}")
    if user.op == "call_function" and user.target in ELEMENTWISE_FUNCTIONS | SCALAR_FUNCTIONS:
        return
    if user.op == "call_method" and user.target in ELEMENTWISE_METHODS and user.args[:1] == (node,):
        return
    raise _Refused(f"its neurons are read by {label!r}, which is not known to treat each neuron alone")
