"""The names of ATen operations, by what they do; the name, the shape and the arguments of a node."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

#: Operations on each entry alone; their tensor arguments are broadcast.
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
        "lift_fresh_copy", "clip", "atan", "atan2", "asinh", "sinh", "cosh", "tan", "floor", "ceil",
        "round", "trunc", "erfc", "logaddexp",
    }
)  # fmt: skip

#: Give the entries of the first argument another type or value; others are used for their type or shape.
RETYPING = frozenset({"to", "_to_copy", "type_as", "zeros_like", "ones_like", "empty_like", "full_like"})

#: Of one tensor, keep what they are given, or scale it.
LINEAR = frozenset(
    {
        "mul", "div", "true_divide", "dropout", "native_dropout", "clone", "contiguous", "detach", "alias",
        "to", "_to_copy", "type_as", "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze",
        "unsqueeze", "permute", "transpose", "t", "getitem",
    }
)  # fmt: skip

#: Take the second argument for its shape alone.
SHAPED = frozenset({"view_as", "reshape_as", "expand_as"})
#: Make tensors of one value.
CONSTANT = frozenset({"zeros", "new_zeros", "ones", "new_ones", "full", "new_full", "scalar_tensor"})

#: Work on the last axes, here by their number, for each channel alone; the channels stand before these.
SPATIAL = {
    "upsample_linear1d": 1,
    "upsample_bilinear2d": 2,
    "upsample_bicubic2d": 2,
    "upsample_trilinear3d": 3,
    **{"grid_sampler": 2, "grid_sampler_2d": 2, "grid_sampler_3d": 3},
}
for _n in (1, 2, 3):
    for _name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest"):
        SPATIAL[f"{_name}{_n}d"] = _n
    SPATIAL[f"max_pool{_n}d_with_indices"] = _n
    SPATIAL[f"_adaptive_avg_pool{_n}d"] = _n


def name_of(node: fx.Node) -> str:
    """Return the name of a node's operation, without overload and without the mark of an in-place form."""
    packet = getattr(node.target, "overloadpacket", None)
    name = getattr(packet, "__name__", None) or getattr(node.target, "__name__", str(node.target))
    return str(name).rstrip("_") if not str(name).startswith("__") else str(name)


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of a node's (first) tensor; of a plain number, ()."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if isinstance(value, list | tuple):
        value = value[0]
    return tuple(map(_number, value.shape)) if isinstance(value, Tensor) else ()


def _number(size: Any) -> int:
    """Return a size; one that depends on data is a number that no other size is likely to be."""
    if isinstance(size, int):
        return size
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols  # takes a second to load

    if not (symbols := free_unbacked_symbols(size)):
        return int(size)
    names = sorted(str(symbol) for symbol in symbols)
    primes = {symbol: 1009 + 2 * names.index(str(symbol)) for symbol in symbols}
    return int(size.node.expr.xreplace(primes))


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """Return an argument by its name: overloads have others in the same position."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return given.get(name, default)
