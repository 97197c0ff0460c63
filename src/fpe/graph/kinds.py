"""What a module of a subclass computes: what its parent class does, or more.

A subclass is judged by its code, never by its name: it inherits the forward pass, or a symbolic trace, which
no condition on shapes or data survives, shows that its own computes the same.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import fx, nn

from fpe.graph.copies import analyzed
from fpe.graph.turned import TURNED
from fpe.masked import MASKED, MaskedLayer

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: What a layer's forward pass consists of; a class that overrides one of them computes something else.
_METHODS = ("forward", "_conv_forward", "__call__", "__getattr__", "__getattribute__")
#: What the traced forward pass of a module was found to compute, with the simple attributes that it had then.
_TRACED: WeakKeyDictionary[nn.Module, tuple[Any, bool]] = WeakKeyDictionary()


def layer_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the plain or masked class whose forward pass a layer has; None for any other module."""
    kind, bases = type(module), (nn.Linear, *CONVOLUTIONS, *TURNED.values())
    if kind in MASKED or kind in TURNED or kind in bases:
        return kind
    base = next((b for b in kind.__mro__ if b in bases), None)
    # Of torch's own subclasses, other modules use the weight directly, as attention does, or in another type.
    if base is None or issubclass(kind, MaskedLayer) or kind.__module__.startswith("torch."):
        return None
    if not _only_weight_and_bias(module, base):
        return None
    if inherits(kind, base) or (base is nn.Linear and _traced_linear(module)):
        return base
    return None


def inherits(kind: type[nn.Module], base: type[nn.Module]) -> bool:
    """Tell whether a class has the forward pass of a base."""
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in _METHODS)


def _only_weight_and_bias(module: nn.Module, base: type[nn.Module]) -> bool:
    """Tell whether a module's tensors are a weight and a bias that are stored, not computed."""
    own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    parents = type(module).__mro__
    between = parents[: parents.index(base)]
    computed = any(name in vars(kind) for kind in between for name in ("weight", "bias"))
    return own <= {"weight", "bias"} and not computed and not any(True for _ in module.children())


def _traced_linear(module: nn.Module) -> bool:
    """Tell whether a trace of the forward pass, in both modes, is the product with the weight plus bias."""
    simple = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}
    now = ({**simple, "training": None}, module._parameters.get("bias") is None)
    before = _TRACED.get(module)
    if before is None or before[0] != now:
        before = _TRACED[module] = now, all(_is_product(module, training) for training in (False, True))
    return before[1]


def takes_means(module: nn.Module) -> bool:
    """Tell whether a module takes a mean over something, or its forward pass cannot be traced."""
    if type(module).__module__.startswith("torch."):
        return True
    try:
        with analyzed(module) as own:
            graph = fx.Tracer().trace(own)
    except Exception:  # the user's own code may fail in any way
        return True
    names = {str(getattr(node.target, "__name__", node.target)) for node in graph.nodes}
    return bool(names & {"mean", "var", "std", "layer_norm", "rms_norm", "group_norm"})


def _is_product(module: nn.Module, training: bool) -> bool:
    try:
        with analyzed(module) as own:
            graph = fx.Tracer().trace(own.train(training))
    except Exception:  # the user's own code may fail in any way
        return False
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    bias = module._parameters.get("bias") is not None
    return not any(node.users for node in inputs[1:]) and _computes(output.args[0], inputs[0], bias)


def _computes(node: Any, source: fx.Node, bias: bool) -> bool:
    """Tell whether a node is `source` times the transposed weight, plus the bias if there is one."""
    name, args = _operation(node)
    if name == "add" and bias and len(args) == 2:
        return any(
            _is_parameter(b, "bias") and _computes(a, source, False) for a, b in (args, reversed(args))
        )
    if name == "linear" and len(args) >= 2:
        given = args[2] if len(args) > 2 else None
        same = _is_parameter(given, "bias") if bias else given is None
        return args[0] is source and _is_parameter(args[1], "weight") and same
    return name == "matmul" and not bias and len(args) == 2 and args[0] is source and _is_transposed(args[1])


def _operation(node: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the name of a call's function, and its arguments in order, those by name last."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return "", ()
    target: Any = node.target
    name = target if isinstance(target, str) else str(getattr(target, "__name__", target))
    order = {"linear": ("input", "weight", "bias")}.get(name, ())
    if set(node.kwargs) - set(order):
        return "", ()
    return name, (*node.args, *(node.kwargs[key] for key in order if key in node.kwargs))


def _is_parameter(node: Any, name: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and node.target == name


def _is_transposed(node: Any) -> bool:
    name, args = _operation(node)
    if not args or not _is_parameter(args[0], "weight"):
        return False
    axes = tuple(a % 2 for a in args[1:] if isinstance(a, int))
    orders: dict[str, list[tuple[int, ...]]]
    orders = {"transpose": [(0, 1), (1, 0)], "permute": [(1, 0)], "t": [()]}
    return axes in orders.get(name, ()) or (name == "getattr" and args[1:] == ("T",))
