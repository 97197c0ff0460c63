"""The name, the shape and the arguments of a node of an exported forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx


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
