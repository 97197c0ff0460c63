"""What each ATen operation does to the neurons in its input: the allow-list.

A rule gets the node and the flows of its input, and returns the flows of its output or raises `Refused`.
An operation without a rule is refused. Names are those of the operation's packet: ``relu`` stands for
``aten.relu.default`` and ``aten.relu_.default``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx

from fpe.graph.axis import Flow, joined, reshaped

Flows = tuple[Flow, ...]


class Refused(Exception):
    """Carries the reason for which neurons cannot be expanded."""


#: Operations on each entry alone; their tensor arguments are broadcast against each other.
ELEMENTWISE = frozenset(
    {
        "relu", "relu6", "leaky_relu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish",
        "tanh", "sigmoid", "log_sigmoid", "softplus", "hardtanh", "hardswish", "hardsigmoid",
        "hardshrink", "softshrink", "threshold", "dropout", "alpha_dropout", "native_dropout",
        "feature_dropout", "abs", "neg", "square", "sqrt", "rsqrt", "reciprocal", "exp", "exp2",
        "expm1", "log", "log1p", "log2", "sin", "cos", "erf", "sign", "pow", "add", "sub", "rsub",
        "mul", "div", "true_divide", "maximum", "minimum", "clamp", "clamp_min", "clamp_max",
        "where", "masked_fill", "nan_to_num", "gt", "lt", "ge", "le", "eq", "ne", "isnan", "isinf",
        "logical_not", "bitwise_not", "lerp", "addcmul", "clone", "contiguous", "detach", "alias",
        "lift_fresh_copy",
    }
)  # fmt: skip

#: Give the entries of the first argument another type or value; of others only facts are read.
RETYPING = frozenset(
    {
        "to", "_to_copy", "type_as", "zeros_like", "ones_like", "empty_like", "full_like",
    }
)  # fmt: skip

#: Change the shape and leave the order of the entries as it is.
RESHAPING = frozenset(
    {
        "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
        "view_as", "reshape_as", "_reshape_alias",
    }
)  # fmt: skip

#: Work on the last axes, here by their number, each channel alone; the channels stand before these.
SPATIAL: dict[str, int] = {
    "upsample_linear1d": 1,
    "upsample_bilinear2d": 2,
    "upsample_bicubic2d": 2,
    "upsample_trilinear3d": 3,
}
for _n in (1, 2, 3):
    for _name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest"):
        SPATIAL[f"{_name}{_n}d"] = _n
    SPATIAL[f"max_pool{_n}d_with_indices"] = _n
    SPATIAL[f"_adaptive_avg_pool{_n}d"] = _n

#: Sum up over some axes.
REDUCING = frozenset(
    {
        "mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp", "prod",
    }
)  # fmt: skip


def name_of(node: fx.Node) -> str:
    """Return the name of a node's operation, without overload and the mark of an in-place form."""
    packet = getattr(node.target, "overloadpacket", None)
    name = getattr(packet, "__name__", None) or getattr(node.target, "__name__", str(node.target))
    return str(name).rstrip("_") if not str(name).startswith("__") else str(name)


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of a node's (first) tensor as integers; of a plain number, ()."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if isinstance(value, list | tuple):
        value = value[0]
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()


def carry(node: fx.Node, flows: dict[fx.Node, Flows]) -> Flows:
    """Return the flows of a node's output, given those of its inputs.

    Raises
    ------
    Refused
        If the operation is not known to treat each neuron alone.
    """
    name = name_of(node)
    source = next((n for n in node.all_input_nodes if n in flows), None)
    if source is None:
        return ()
    if name in ELEMENTWISE or (name in ("max", "min") and _argument(node, "other") is not None):
        return _elementwise(node, flows)
    if name == "cat":
        return _cat(node, flows)
    if name in RETYPING:
        return flows.get(node.args[0], ())  # type: ignore[arg-type]
    others = [n for n in node.all_input_nodes if n is not source and n in flows]
    if others or not node.args or node.args[0] is not source:
        raise Refused(f"its neurons are read by {name!r}, which is not known to treat each neuron alone")
    rule = _RULES.get(name)
    if rule is None:
        raise Refused(f"its neurons are read by {name!r}, which is not known to treat each neuron alone")
    return tuple(rule(node, source, flow) for flow in flows[source])


def _elementwise(node: fx.Node, flows: dict[fx.Node, Flows]) -> Flows:
    """All inputs have the same neurons in the same places, or are the same for every neuron."""
    if name_of(node) == "where" and len(node.args) == 1:
        raise Refused("its neurons are picked out by 'where'")
    dims = len(shape_of(node))
    seen: Flows | None = None
    for source in (n for n in node.all_input_nodes if n in flows):
        aligned = tuple(flow.at(flow.axis + dims - len(shape_of(source))) for flow in flows[source])
        if seen is not None and aligned != seen:
            raise Refused(f"its neurons meet other neurons in {name_of(node)!r}")
        seen = aligned
    assert seen is not None
    axis = seen[0].axis
    for other in node.all_input_nodes:
        if other in flows:
            continue
        place = axis - dims + len(shape_of(other))
        if place >= 0 and shape_of(other)[place] != 1:
            raise Refused(f"its neurons meet {_described(other)} in {name_of(node)!r}")
    return seen


def _described(node: fx.Node) -> str:
    """Name a tensor that is not the neurons' own, as a user would."""
    label = node.meta.get("fpe_name")
    return f"{label!r}, which has an entry for each of them," if label else "another tensor"


def _cat(node: fx.Node, flows: dict[fx.Node, Flows]) -> Flows:
    parts: Sequence[fx.Node] = node.args[0]  # type: ignore[assignment]
    dims = len(shape_of(node))
    axis = int(_argument(node, "dim", 0)) % dims
    roots = dict.fromkeys(flow.root for part in parts for flow in flows.get(part, ()))
    result = []
    for root in roots:
        own = [next((f for f in flows.get(part, ()) if f.root == root), None) for part in parts]
        places = {f.axis for f in own if f is not None}
        if places == {axis}:
            sizes = [shape_of(part)[axis] for part in parts]
            laid = [(n, f.runs if f else None) for n, f in zip(sizes, own, strict=True)]
            result.append(joined(root, axis, laid))
        elif len({*own}) == 1 and own[0] is not None:
            result.append(own[0])
        else:
            raise Refused("its neurons are put beside other values in 'cat'")
    return tuple(result)


def _argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """Return an argument by its name: overloads have others in the same position."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return given.get(name, default)


def _reshape(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    after = reshaped(flow, shape_of(source), shape_of(node))
    if after is None:
        raise Refused(f"its neurons are split by {name_of(node)!r}, as the heads of attention are")
    return after


def _spatial(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    if flow.axis != len(shape_of(source)) - 1 - SPATIAL[name_of(node)]:
        raise Refused(f"its neurons are mixed by {name_of(node)!r}, which works along their axis")
    return flow


def _reduce(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    dims = len(shape_of(source))
    over = _argument(node, "dim")
    axes = {a % dims for a in ([over] if isinstance(over, int) else over or range(dims))}
    if flow.axis in axes:
        raise Refused(f"its neurons are added up or compared by {name_of(node)!r}")
    if len(shape_of(node)) == dims:
        return flow
    return flow.at(flow.axis - sum(a < flow.axis for a in axes))


def _permute(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    dims = len(shape_of(source))
    order = list(range(dims))
    if name_of(node) == "permute":
        order = [d % dims for d in _argument(node, "dims")]
    else:
        kind = "axis" if name_of(node) == "swapaxes" else "dim"
        a, b = (_argument(node, f"{kind}{n}", n) for n in (0, 1))
        a, b = a % dims, b % dims
        order[a], order[b] = order[b], order[a]
    return flow.at(order.index(flow.axis))


def _slice(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    axis = _argument(node, "dim", 0) % len(shape_of(source))
    if axis == flow.axis and shape_of(node) != shape_of(source):
        raise Refused(f"only some of its neurons are taken by {name_of(node)!r}")
    return flow


def _select(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    axis = _argument(node, "dim", 0) % len(shape_of(source))
    if axis == flow.axis:
        raise Refused(f"only some of its neurons are taken by {name_of(node)!r}")
    return flow.at(flow.axis - (axis < flow.axis))


def _index(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    indices = list(_argument(node, "indices"))
    places = [i for i, index in enumerate(indices) if index is not None]
    if len(places) != 1 or places[0] == flow.axis:
        raise Refused(f"its neurons are picked out by {name_of(node)!r}")
    grown = len(shape_of(indices[places[0]])) - 1
    return flow.at(flow.axis + (grown if places[0] < flow.axis else 0))


def _index_select(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    if _argument(node, "dim") % len(shape_of(source)) == flow.axis:
        raise Refused(f"its neurons are picked out by {name_of(node)!r}")
    return flow


def _expand(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    axis = flow.axis + len(shape_of(node)) - len(shape_of(source))
    if shape_of(node)[axis] != shape_of(source)[flow.axis]:
        raise Refused(f"its neurons are repeated by {name_of(node)!r}")
    return flow.at(axis)


def _pad(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    if shape_of(node)[flow.axis] != shape_of(source)[flow.axis]:
        raise Refused(f"places are added to its neurons by {name_of(node)!r}")
    return flow


def _split(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    axis = _argument(node, "dim", 0) % len(shape_of(source))
    if axis == flow.axis:
        raise Refused(f"its neurons are parted by {name_of(node)!r}")
    return flow.at(flow.axis - (name_of(node) == "unbind" and axis < flow.axis))


def _same(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    return flow


_Rule = Callable[[fx.Node, fx.Node, Flow], Flow]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(RESHAPING, _reshape),
    **dict.fromkeys(SPATIAL, _spatial),
    **dict.fromkeys(REDUCING, _reduce),
    **dict.fromkeys(("permute", "transpose", "t", "swapaxes", "swapdims"), _permute),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind", "tensor_split"), _split),
    "getitem": _same,
    "slice": _slice,
    "narrow": _slice,
    "select": _select,
    "index": _index,
    "index_select": _index_select,
    "expand": _expand,
    "expand_as": _expand,
    "pad": _pad,
    "constant_pad_nd": _pad,
}
