"""Where a forward pass uses the weights of stacked experts: products with views of one parameter."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx

from fpe.graph.aten import argument, name_of, shape_of

#: Views of a parameter in which its axes stand as before; `view_as` is that of masked layers.
_SAME = frozenset(["view_as", "to", "_to_copy", "contiguous", "clone", "alias", "detach"])
_TURNED = frozenset(["t", "numpy_T", "transpose", "permute", "mT", "swapaxes"])
_PICKED = frozenset(["select", "index", "index_select", "unbind", "getitem"])
VIEWS = _SAME | _TURNED | _PICKED | {"unsqueeze", "slice"}
#: Products, with the positions of their factors.
_PRODUCTS = {
    **dict.fromkeys(("matmul", "mm", "bmm"), (0, 1)),
    **dict.fromkeys(("_grouped_mm", "grouped_mm", "grouped_mm_fallback"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm"), (1, 2)),
    "linear": (0, 1),
}


@dataclass(frozen=True)
class View:
    """A view of a parameter: for each of its axes that of the parameter, None for another; and the experts.

    `expert` is the one that is picked out by a number, None if all are there or a tensor picks them.
    """

    parameter: fx.Node
    axes: tuple[int | None, ...]
    expert: int | None = None


@dataclass(frozen=True)
class StackedCall:
    """A product with stacked weights: where its input is, and the axes of neurons there and in the output."""

    layer: str
    view: View
    position: int
    axis: int  # from the end, of the input and of the output
    transposed: bool


def view_of(node: Any, owned: Mapping[fx.Node, str]) -> View | None:
    """Return of which parameter a node is a view, and how; None if it is none."""
    if not isinstance(node, fx.Node):
        return None
    if node in owned:
        return View(node, tuple(range(len(shape_of(node)))))
    name = name_of(node) if node.op == "call_function" else ""
    if name not in VIEWS or (view := view_of(node.args[0], owned)) is None:
        return None
    axes, dims = list(view.axes), len(view.axes)
    if name in _SAME or (name == "unbind" and axes[0] == 0):
        return view
    if name == "unsqueeze":
        place = int(argument(node, "dim")) % (dims + 1)
        return View(view.parameter, (*axes[:place], None, *axes[place:]), view.expert)
    if name == "slice":  # of the whole axis, as ``[:, None]`` does
        return view if shape_of(node) == shape_of(node.args[0]) and argument(node, "step", 1) == 1 else None
    if name in _TURNED:
        value = node.meta.get("val")
        order = list(range(dims))
        if name == "permute":
            order = [d % dims for d in argument(node, "dims")]
        elif name in ("transpose", "swapaxes"):
            a, b = (cast(int, d) % dims for d in node.args[1:3])
            order[a], order[b] = b, a
        else:
            order[-2:] = order[-2:][::-1] if isinstance(value, Tensor) else order[-2:]
        return View(view.parameter, tuple(axes[d] for d in order), view.expert)
    picked: Any = None
    if name in ("select", "getitem"):
        number = node.args[1] if name == "getitem" else argument(node, "index")
        along = 0 if name == "getitem" else int(argument(node, "dim")) % dims
        made: tuple[int | None, ...] = ()
        picked = number if isinstance(number, int) else None
    elif name == "index_select":
        along, made = int(argument(node, "dim")) % dims, (None,)
    else:
        indices = list(cast(Any, argument(node, "indices")))
        given = [i for i, index in enumerate(indices) if index is not None]
        if len(given) != 1:
            return None
        along, made = given[0], (None,) * len(shape_of(indices[given[0]]))
    if axes[along] != 0:
        return None
    return View(view.parameter, (*axes[:along], *made, *axes[along + 1 :]), picked)


def stacked_call(node: fx.Node, owned: Mapping[fx.Node, str], layers: frozenset[str]) -> StackedCall | None:
    """Return the product with the weights of one of some stacked layers that a node is, if it is one."""
    name = name_of(node) if node.op == "call_function" else ""
    if name not in _PRODUCTS:
        return None
    for position, other in (_PRODUCTS[name], _PRODUCTS[name][::-1]):
        view = view_of(node.args[other], owned)
        layer = owned[view.parameter].removesuffix(".weight") if view else ""
        if view is None or layer not in layers or not owned[view.parameter].endswith(".weight"):
            continue
        left = other < position
        if name == "linear" and (left or len(view.axes) != 2):
            return None
        # The matrix at the left, and that of linear(), has the outputs first.
        outputs, inputs = view.axes[-2:] if left or name == "linear" else view.axes[-2:][::-1]
        if {outputs, inputs} != {1, 2} or len(shape_of(node.args[position])) < (2 if left else 1):
            return None
        return StackedCall(layer, view, position, -2 if left else -1, outputs == 2)
    return None


def only_called(parameter: fx.Node, calls: Mapping[fx.Node, StackedCall]) -> bool:
    """Tell whether a parameter is used in nothing but these products."""
    left = [parameter]
    while left:
        for user in left.pop().users:
            if user.op == "call_function" and name_of(user) in VIEWS:
                left.append(user)
            elif (call := calls.get(user)) is None or call.view.parameter is not parameter:
                return False
    return True


def bias_added(
    node: fx.Node, flows: Container[fx.Node], owned: dict[fx.Node, str]
) -> tuple[fx.Node, str] | None:
    """Return the neurons to which a node adds the biases of stacked experts, and their layer, if it does."""
    sources = [n for n in node.all_input_nodes if n in flows]
    others = [n for n in node.all_input_nodes if n not in flows]
    if name_of(node) != "add" or len(sources) != 1 or len(others) != 1 or argument(node, "alpha", 1) != 1:
        return None
    view = view_of(others[0], owned)
    if view is None or view.axes[-1:] != (1,) or not owned[view.parameter].endswith(".bias"):
        return None
    return sources[0], owned[view.parameter].removesuffix(".bias")
